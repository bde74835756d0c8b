//! The priority: the number in `<PRI>`, at the start of nearly every message (rules P0 and P1).
//!
//! It is read alone as well, because a `match` on severity must not cost a parse.

use super::notes::Notes;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Facility and severity as one number, 0 to 191 (RFC 5424, 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Default for Priority {
    /// `user.notice`, what RFC 3164, 4.3.3 gives to a message without a priority.
    fn default() -> Priority {
        Priority(13)
    }
}

impl Priority {
    /// The priority of `value`; `None` above 191.
    #[must_use]
    pub fn new(value: u8) -> Option<Priority> {
        (value <= 191).then_some(Priority(value))
    }

    /// The priority that [`Message::parse`](super::message::Message::parse) would find, without parsing: what a `match`
    /// needs.
    #[inline]
    #[must_use]
    pub fn of(payload: &[u8]) -> Priority {
        let text = match payload {
            [b'<', ..] => payload,
            _ => skip_preamble(payload).0,
        };
        match Field::read(text) {
            Field::Valid { priority, .. } => priority,
            Field::Invalid | Field::Missing => Priority::default(),
        }
    }

    /// The number.
    #[must_use]
    pub fn value(self) -> u8 {
        self.0
    }

    /// The facility, 0 (`kern`) to 23 (`local7`).
    #[must_use]
    pub fn facility(self) -> u8 {
        self.0 >> 3
    }

    /// The severity, 0 (`emerg`) to 7 (`debug`).
    #[must_use]
    pub fn severity(self) -> u8 {
        self.0 & 7
    }
}

/// The `<PRI>` at a text's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Valid { priority: Priority, length: usize },
    Invalid,
    Missing,
}

impl Field {
    #[inline]
    pub(super) fn read(text: &[u8]) -> Field {
        let [b'<', digits @ ..] = text else { return Field::Missing };
        let mut value = 0_u32;
        for (at, byte) in digits.iter().take(4).enumerate() {
            match byte {
                b'0'..=b'9' => value = value * 10 + u32::from(byte - b'0'),
                b'>' if at > 0 && value <= 191 => {
                    return Field::Valid { priority: Priority(value as u8), length: at + 2 };
                }
                _ => break,
            }
        }
        Field::Invalid
    }
}

/// P0: a byte order mark, and an octet count that a framing left in a datagram.
pub(super) fn skip_preamble(payload: &[u8]) -> (&[u8], Notes) {
    let mut notes = Notes::NONE;
    let mut text = payload;
    if let Some(rest) = text.strip_prefix(BOM) {
        notes.insert(Notes::BOM_STRIPPED);
        text = rest;
    }
    let digits = text.iter().take(11).take_while(|b| b.is_ascii_digit()).count();
    if (1..=10).contains(&digits) && text[digits..].starts_with(b" <") {
        notes.insert(Notes::UNEXPECTED_FRAMING);
        text = &text[digits + 1..];
    }
    (text, notes)
}

#[cfg(test)]
mod tests {
    use super::super::message::{Context, Message};
    use super::*;

    #[test]
    fn priority_is_found_without_a_parse() {
        for (payload, value) in [
            ("<34>x", 34),
            ("<034>x", 34),
            ("<0>", 0),
            ("<191>", 191),
            ("<192>", 13),
            ("<>", 13),
            ("<1340>", 13),
            ("<34", 13),
            ("x<34>", 13),
            ("", 13),
            ("\u{feff}<34>x", 34),
            ("12 <34>x", 34),
        ] {
            assert_eq!(Priority::of(payload.as_bytes()).value(), value, "{payload}");
            if let Some(message) = Message::parse(payload.as_bytes(), &Context::default()) {
                assert_eq!(message.priority.value(), value, "{payload}");
            }
        }
        assert_eq!((Priority(165).facility(), Priority(165).severity()), (20, 5));
    }
}
