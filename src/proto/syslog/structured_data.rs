//! Structured data: `[id name="value" …][…]` (RFC 5424, 6.3).
//!
//! Two readers. One runs for each message and only finds where well-formed data end, without allocating: text in
//! brackets that is not structured data must stay text. [`StructuredData::elements`] takes the data apart, with
//! `syslog_loose`, for whoever wants the values: few messages, few outputs. `syslog_loose` alone could not do the
//! first: it swallows `[not sd]` and drops it.

use memchr::{memchr2, memmem};
use syslog_loose::{StructuredElement, Variant};

/// Well-formed structured data: one element or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructuredData<'a>(&'a str);

/// One element, its values without escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The SD-ID, for instance `timeQuality` or `name@32473`.
    pub id: String,
    /// Names and values in their order; a name may stand more than once.
    pub params: Vec<(String, String)>,
}

impl<'a> StructuredData<'a> {
    /// Reads the data at the start of `text`; returns them and what follows. `None` if they are not well-formed.
    ///
    /// More is taken for well-formed than the standard allows, where nothing can be misunderstood: names of any length,
    /// a `]` without an escape inside quotes.
    pub(in crate::proto) fn read(text: &'a [u8]) -> Option<(StructuredData<'a>, &'a [u8])> {
        let mut end = 0;
        while text.get(end) == Some(&b'[') {
            end += element(&text[end..])?;
        }
        let (data, rest) = text.split_at(end);
        std::str::from_utf8(data).ok().filter(|data| !data.is_empty()).map(|data| (StructuredData(data), rest))
    }

    /// The data as they stand in the message.
    #[must_use]
    pub fn as_str(&self) -> &'a str {
        self.0
    }

    /// The elements in their order.
    #[must_use]
    pub fn elements(&self) -> Vec<Element> {
        let unescaped = |(name, value): (String, String)| (name, unescape(&value));
        let elements = self.escaped_elements().into_iter();
        elements.map(|e| Element { id: e.id, params: e.params.into_iter().map(unescaped).collect() }).collect()
    }

    /// The elements with the escapes in their values, as they are written.
    pub(super) fn escaped_elements(&self) -> Vec<StructuredElement<String>> {
        // The crate reads messages, not structured data: give it the shortest message around them. Its own answer for
        // values, `params()`, is not used: it makes a line end of `\n`, also in `C:\new` (RFC 5424, 6.3.3: two
        // characters).
        let message = format!("<0>1 - - - - - {}", self.0);
        let year = |_| 1970;
        match syslog_loose::parse_message_with_year_exact_tz::<_, chrono::Utc>(&message, year, None, Variant::RFC5424) {
            Ok(message) => message.structured_data.into_iter().map(StructuredElement::from).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Whether an element might have `id`; false is certain.
    pub(super) fn may_contain(&self, id: &str) -> bool {
        memmem::find(self.0.as_bytes(), id.as_bytes()).is_some()
    }
}

/// The length of the element at the start of `text`.
fn element(text: &[u8]) -> Option<usize> {
    let mut at = 1 + name(&text[1..])?;
    loop {
        match text.get(at)? {
            b']' => return Some(at + 1),
            b' ' => at += 1,
            _ => return None,
        }
        at += name(&text[at..])?;
        if text.get(at..at + 2)? != b"=\"" {
            return None;
        }
        at += 2;
        loop {
            at += memchr2(b'"', b'\\', &text[at..])?;
            match text[at] {
                b'"' => break,
                _ => at += 2,
            }
            if at > text.len() {
                return None;
            }
        }
        at += 1;
    }
}

/// The length of an SD-NAME; not empty.
fn name(text: &[u8]) -> Option<usize> {
    let is_name = |b: &&u8| b.is_ascii_graphic() && !matches!(b, b'=' | b']' | b'"');
    let length = text.iter().take_while(is_name).count();
    (length > 0).then_some(length)
}

/// Removes the escapes that the standard knows; a backslash before anything else is a backslash (RFC 5424, 6.3.3).
fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match characters.peek() {
            Some(next @ ('"' | '\\' | ']')) if character == '\\' => {
                out.push(*next);
                characters.next();
            }
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(&str, &[u8])> {
        StructuredData::read(text.as_bytes()).map(|(data, rest)| (data.as_str(), rest))
    }

    #[test]
    fn well_formed_data_end_where_their_last_element_ends() {
        for (text, data, rest) in [
            ("[a@1]", "[a@1]", ""),
            ("[a@1 k=\"\"][b] m", "[a@1 k=\"\"][b]", " m"),
            ("[a k=\"\\\"\\]\\\\\"] m", "[a k=\"\\\"\\]\\\\\"]", " m"),
            ("[a k=\"x]y [z\"] [m]", "[a k=\"x]y [z\"]", " [m]"),
            ("[a k=\"日本語\" k=\"2\"]", "[a k=\"日本語\" k=\"2\"]", ""),
        ] {
            assert_eq!(read(text), Some((data, rest.as_bytes())), "{text}");
        }
    }

    #[test]
    fn text_in_brackets_is_not_structured_data() {
        for text in [
            "[]",
            "[not sd]",
            "[a k=v]",
            "[a k=\"v]",
            "[a k=\"v\"",
            "[a  k=\"v\"]",
            "[a k=\"v\" ]",
            "[",
            "[a k=\"\\",
            "[é]",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(StructuredData::read(b"[a k=\"\xff\"]"), None, "values are UTF-8");
    }

    #[test]
    fn values_lose_their_escapes_and_nothing_else() {
        let (data, _) = StructuredData::read(br#"[a@1 p="C:\new\\x" q="\"\]"][b]"#).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            data.elements(),
            [
                Element { id: "a@1".into(), params: vec![pair("p", r"C:\new\x"), pair("q", "\"]")] },
                Element { id: "b".into(), params: vec![] }
            ]
        );
    }
}
