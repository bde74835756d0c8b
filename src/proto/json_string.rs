//! A string of JSON (RFC 8259, 7), for each message of a busy output.
//!
//! Nearly every text stands for itself, so it is looked at once, whole and without a branch, and copied at once. The same
//! look tells whether it is ASCII, which spares it the search for what is not UTF-8.

/// UTF-8, and whether something in it has to be escaped.
#[derive(Clone, Copy, Debug)]
pub(in crate::proto) struct Text<'a> {
    bytes: &'a [u8],
    is_plain: bool,
}

impl<'a> Text<'a> {
    pub(in crate::proto) fn of(text: &'a str) -> Text<'a> {
        Text { bytes: text.as_bytes(), is_plain: marks(text.as_bytes()) & ESCAPE == 0 }
    }

    /// `None` if these bytes are not UTF-8.
    pub(in crate::proto) fn utf8(bytes: &'a [u8]) -> Option<Text<'a>> {
        let marks = marks(bytes);
        let is_utf8 = marks & NOT_ASCII == 0 || std::str::from_utf8(bytes).is_ok();
        is_utf8.then_some(Text { bytes, is_plain: marks & ESCAPE == 0 })
    }

    /// Appends it with its quotes.
    pub(in crate::proto) fn push(self, out: &mut Vec<u8>) {
        out.push(b'"');
        if self.is_plain {
            out.extend_from_slice(self.bytes);
        } else {
            push_escaped(out, self.bytes);
        }
        out.push(b'"');
    }
}

/// Of a byte that needs an escape.
const ESCAPE: u8 = 1;
/// Of a byte that is not ASCII.
const NOT_ASCII: u8 = 0x80;

fn mark(byte: u8) -> u8 {
    u8::from(needs_escape(byte)) | (byte & NOT_ASCII)
}

fn needs_escape(byte: u8) -> bool {
    (byte < b' ') | (byte == b'"') | (byte == b'\\')
}

/// The marks of all bytes of `text` together.
fn marks(text: &[u8]) -> u8 {
    // The compiler makes vector instructions of whole lanes only. The last one, or word, overlaps the one before, so that
    // nothing is left over.
    const LANE: usize = 16;
    let fold = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | mark(*byte));
    if let Some(last) = text.last_chunk::<LANE>() {
        return fold(text.as_chunks::<LANE>().0.as_flattened()) | fold(last);
    }
    if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
        return marks_of_word(u64::from_le_bytes(*first)) | marks_of_word(u64::from_le_bytes(*last));
    }
    if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
        return marks_of_word(u64::from(u32::from_le_bytes(*first)) | (u64::from(u32::from_le_bytes(*last)) << 32));
    }
    fold(text)
}

/// The marks of eight bytes together.
fn marks_of_word(word: u64) -> u8 {
    const EACH: u64 = u64::MAX / 0xff;
    // The highest bit of each byte that is below `limit`, which is at most 0x80; and, for nothing, maybe of bytes above it.
    let below = |word: u64, limit: u8| word.wrapping_sub(EACH * u64::from(limit)) & !word;
    let is = |byte: u8| below(word ^ (EACH * u64::from(byte)), 1);
    let escapes = (below(word, b' ') | is(b'"') | is(b'\\')) & (EACH * 0x80);
    let beyond_ascii = word & (EACH * 0x80);
    (u8::from(escapes != 0) * ESCAPE) | (u8::from(beyond_ascii != 0) * NOT_ASCII)
}

fn push_escaped(out: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(plain) = text.iter().position(|byte| needs_escape(*byte)) {
        out.extend_from_slice(&text[..plain]);
        push_escape(out, text[plain]);
        text = &text[plain + 1..];
    }
    out.extend_from_slice(text);
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_survives_json() {
        let text: String = ('\u{1}'..='\u{100}').chain("日本語".chars()).collect();
        for begin in 0..40 {
            let text = format!("{}{text}", "x".repeat(begin));
            let mut out = Vec::new();
            Text::of(&text).push(&mut out);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            out.clear();
            Text::utf8(text.as_bytes()).unwrap().push(&mut out);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn each_byte_is_marked_at_every_place() {
        for length in 0..80 {
            let mut text = vec![b'x'; length];
            assert_eq!(marks(&text), 0, "{length}");
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    text[at] = byte;
                    assert_eq!(marks(&text), mark(byte), "{byte:#x} at {at} of {length}");
                }
                text[at] = b'x';
            }
        }
    }

    #[test]
    fn marks_of_neighbours_come_together() {
        for length in [7, 8, 12, 16, 40] {
            for (one, other) in [(b'"', 0x80), (0xff, b'\\'), (0x1f, 0xc3), (0x80, 0xff)] {
                let mut text = vec![b'x'; length];
                (text[0], text[length - 1]) = (one, other);
                assert_eq!(marks(&text), mark(one) | mark(other), "{one:#x} and {other:#x} in {length}");
            }
        }
    }

    #[test]
    fn what_is_not_utf8_is_no_text() {
        for bytes in [&b"\xff"[..], b"a text that ends in the middle of a character: \xe2\x82", b"twelve bytes\x80"] {
            assert!(Text::utf8(bytes).is_none(), "{}", bytes.escape_ascii());
        }
        assert!(Text::utf8("größer".as_bytes()).is_some());
    }
}
