//! A payload read as a syslog message: priority, time, origin, text.
//!
//! [`Message::parse`] takes any bytes and borrows from them. What it cannot read it leaves in `msg` and says so in
//! [`Notes`]; the only answer without a message is for a payload without content. Rules P0 to P11 of
//! `tests/fixtures/README.md`; this file holds those about the payload as a whole (P0, P1, P3, P10, P11).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use super::structured_data::StructuredData;
use super::zone::Zone;
use super::{header, rfc5424, timestamp};
use crate::proto::envelope::{Origin, Timestamp};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// What the payload alone does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// When it was received: decides a missing year and stands in for a missing time.
    pub received: Timestamp,
    /// Who sent it: stands in for a missing host.
    pub source: Option<IpAddr>,
    /// The zone of a time that names none; default UTC.
    pub zone: Zone,
}

impl Context {
    /// The context of a message from `origin`, whose input is configured for `zone`.
    #[must_use]
    pub fn new(origin: &Origin<'_>, zone: Zone) -> Context {
        Context { received: origin.received_at, source: origin.source.map(|s| s.ip().to_canonical()), zone }
    }
}

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

    /// The priority that [`Message::parse`] would find, without parsing: what a `match` needs.
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
enum Field {
    Valid { priority: Priority, length: usize },
    Invalid,
    Missing,
}

impl Field {
    #[inline]
    fn read(text: &[u8]) -> Field {
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

/// How a message was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The header of RFC 5424.
    Rfc5424,
    /// A priority or a timestamp in the manner of RFC 3164.
    Rfc3164,
    /// Text without a syslog header.
    Raw,
}

impl Format {
    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Rfc5424 => "rfc5424",
            Format::Rfc3164 => "rfc3164",
            Format::Raw => "raw",
        }
    }
}

/// Where a message's time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimestampSource {
    /// The message says it.
    Message,
    /// The message says none or an impossible one: the time of reception.
    Received,
}

impl TimestampSource {
    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TimestampSource::Message => "message",
            TimestampSource::Received => "received",
        }
    }
}

/// Who made the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host<'a> {
    /// The message says it.
    Message(Cow<'a, str>),
    /// The message does not say it: the address it came from. Never a name looked up: that could block.
    Source(IpAddr),
    /// Neither: a message that twinlog made itself.
    Unknown,
}

impl Host<'_> {
    /// Where the host comes from, as in JSON.
    #[must_use]
    pub fn source(&self) -> Option<&'static str> {
        match self {
            Host::Message(_) => Some("message"),
            Host::Source(_) => Some("source_ip"),
            Host::Unknown => None,
        }
    }
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Message(name) => f.write_str(name),
            Host::Source(ip) => ip.fmt(f),
            Host::Unknown => f.write_str("-"),
        }
    }
}

/// What the parser noticed about one message: the flags that are not the envelope's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes(u16);

impl Notes {
    /// Nothing to note.
    pub const NONE: Notes = Notes(0);
    /// A byte order mark stood before the priority.
    pub const BOM_STRIPPED: Notes = Notes(1);
    /// An octet count stood in the message.
    pub const UNEXPECTED_FRAMING: Notes = Notes(1 << 1);
    /// No priority; 13 was assumed.
    pub const PRI_MISSING: Notes = Notes(1 << 2);
    /// No valid priority; 13 was assumed and nothing else was read.
    pub const PRI_INVALID: Notes = Notes(1 << 3);
    /// No timestamp.
    pub const TIMESTAMP_MISSING: Notes = Notes(1 << 4);
    /// The timestamp is no date or no time of day.
    pub const TIMESTAMP_INVALID: Notes = Notes(1 << 5);
    /// The device told its uptime instead of the time.
    pub const TIMESTAMP_UPTIME: Notes = Notes(1 << 6);
    /// The time was in seconds since the epoch.
    pub const TIMESTAMP_EPOCH: Notes = Notes(1 << 7);
    /// The device says that its clock is not synchronised.
    pub const CLOCK_UNSYNCED: Notes = Notes(1 << 8);
    /// The zone word is not known; the input's zone was applied.
    pub const TZ_UNKNOWN: Notes = Notes(1 << 9);
    /// A sequence number of Cisco stood before the time.
    pub const CISCO_SEQ: Notes = Notes(1 << 10);
    /// The structured data is malformed; it is part of the text.
    pub const SD_INVALID: Notes = Notes(1 << 11);
    /// The RFC 5424 header ends early; what is behind the host is part of the text.
    pub const RFC5424_PARTIAL: Notes = Notes(1 << 12);
    /// The text is not UTF-8.
    pub const MSG_NOT_UTF8: Notes = Notes(1 << 13);

    const NAMES: [(Notes, &'static str); 14] = [
        (Notes::BOM_STRIPPED, "bom_stripped"),
        (Notes::UNEXPECTED_FRAMING, "unexpected_framing"),
        (Notes::PRI_MISSING, "pri_missing"),
        (Notes::PRI_INVALID, "pri_invalid"),
        (Notes::TIMESTAMP_MISSING, "timestamp_missing"),
        (Notes::TIMESTAMP_INVALID, "timestamp_invalid"),
        (Notes::TIMESTAMP_UPTIME, "timestamp_uptime"),
        (Notes::TIMESTAMP_EPOCH, "timestamp_epoch"),
        (Notes::CLOCK_UNSYNCED, "clock_unsynced"),
        (Notes::TZ_UNKNOWN, "tz_unknown"),
        (Notes::CISCO_SEQ, "cisco_seq"),
        (Notes::SD_INVALID, "sd_invalid"),
        (Notes::RFC5424_PARTIAL, "rfc5424_partial"),
        (Notes::MSG_NOT_UTF8, "msg_not_utf8"),
    ];

    /// Whether every note of `other` is set.
    #[must_use]
    pub fn contains(self, other: Notes) -> bool {
        self.0 & other.0 == other.0
    }

    /// Adds the notes of `other`.
    pub fn insert(&mut self, other: Notes) {
        self.0 |= other.0;
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The notes' names as they stand in JSON.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Notes::NAMES.into_iter().filter(move |(note, _)| self.contains(*note)).map(|(_, name)| name)
    }
}

/// A syslog message, borrowed from its payload.
///
/// Names that are not UTF-8 are shown with replacement characters; `msg` is always the bytes themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// How it was read.
    pub format: Format,
    /// Facility and severity; 13 if the message has none.
    pub priority: Priority,
    /// When it was made, or received: see `timestamp_source`.
    pub timestamp: Timestamp,
    /// Where the timestamp comes from.
    pub timestamp_source: TimestampSource,
    /// Who made it.
    pub host: Host<'a>,
    /// The program, or Cisco's `%FACILITY-SEVERITY-MNEMONIC`.
    pub app: Option<Cow<'a, str>>,
    /// The process.
    pub pid: Option<Cow<'a, str>>,
    /// The kind of message (RFC 5424, 6.2.7).
    pub msgid: Option<Cow<'a, str>>,
    /// Structured data (RFC 5424, 6.3).
    pub structured_data: Option<StructuredData<'a>>,
    /// The text: a part of the payload, unchanged.
    pub msg: &'a [u8],
    /// What was noticed.
    pub notes: Notes,
}

impl<'a> Message<'a> {
    /// Reads `payload`. `None` if it has no content: such a message is counted and makes no event.
    #[must_use]
    pub fn parse(payload: &'a [u8], context: &Context) -> Option<Message<'a>> {
        let payload = trim_end(payload);
        if payload.is_empty() {
            return None;
        }
        let mut message = Message {
            format: Format::Raw,
            priority: Priority::default(),
            timestamp: context.received,
            timestamp_source: TimestampSource::Received,
            host: context.source.map_or(Host::Unknown, Host::Source),
            app: None,
            pid: None,
            msgid: None,
            structured_data: None,
            msg: payload,
            notes: Notes::NONE,
        };
        message.read(payload, context);
        if message.app.is_none() && message.format != Format::Raw {
            message.app = header::cef_or_leef(message.msg).map(Cow::Borrowed);
        }
        if std::str::from_utf8(message.msg).is_err() {
            message.notes.insert(Notes::MSG_NOT_UTF8);
        }
        Some(message)
    }

    fn read(&mut self, payload: &'a [u8], context: &Context) {
        let mut text = payload;
        if text[0] != b'<' {
            (text, self.notes) = skip_preamble(payload);
        }
        match Field::read(text) {
            Field::Invalid => self.notes.insert(Notes::PRI_INVALID),
            Field::Missing => {
                self.notes.insert(Notes::PRI_MISSING);
                if let Some(reading) = timestamp::read(text, context) {
                    self.format = Format::Rfc3164;
                    header::behind_timestamp(self, text, reading);
                }
            }
            Field::Valid { priority, length } => {
                self.priority = priority;
                let text = trim_spaces(&text[length..]);
                if !(text.first().is_some_and(u8::is_ascii_digit)
                    && (rfc5424::read(self, text) || self.read_meraki(text)))
                {
                    self.format = Format::Rfc3164;
                    header::read(self, text, context);
                }
            }
        }
    }

    /// P3: `1 1773143998.5 host text`, what Meraki sends.
    fn read_meraki(&mut self, text: &'a [u8]) -> bool {
        let [b'1', b' ', rest @ ..] = text else { return false };
        if !rest.get(..10).is_some_and(|seconds| seconds.iter().all(u8::is_ascii_digit)) {
            return false;
        }
        let (nanos, length) = timestamp::fraction(&rest[10..]);
        let [b' ', rest_behind @ ..] = &rest[10 + length..] else { return false };
        let Some(end) = memchr::memchr(b' ', rest_behind).filter(|end| *end > 0) else { return false };
        let seconds = rest[..10].iter().fold(0_u64, |value, b| value * 10 + u64::from(b - b'0'));
        self.format = Format::Rfc3164;
        self.notes.insert(Notes::TIMESTAMP_EPOCH);
        self.timestamp = Timestamp(seconds * 1_000_000_000 + u64::from(nanos));
        self.timestamp_source = TimestampSource::Message;
        self.host = Host::Message(String::from_utf8_lossy(&rest_behind[..end]));
        self.msg = &rest_behind[end + 1..];
        true
    }

    /// Takes over a time that was read, valid or not.
    pub(super) fn set_timestamp(&mut self, time: Option<Timestamp>) {
        match time {
            Some(time) => {
                self.timestamp = time;
                self.timestamp_source = TimestampSource::Message;
            }
            None => self.notes.insert(Notes::TIMESTAMP_INVALID),
        }
    }
}

/// P0: what senders put behind a message is no part of it.
fn trim_end(payload: &[u8]) -> &[u8] {
    let end = payload.iter().rposition(|b| !matches!(b, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
    &payload[..end]
}

fn trim_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|b| **b == b' ').count();
    &text[spaces..]
}

/// P0: a byte order mark, and an octet count that a framing left in a datagram.
fn skip_preamble(payload: &[u8]) -> (&[u8], Notes) {
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
    use super::*;

    fn context() -> Context {
        Context { received: Timestamp(9), source: Some("192.0.2.10".parse().unwrap()), zone: Zone::UTC }
    }

    fn parse(payload: &[u8]) -> Message<'_> {
        Message::parse(payload, &context()).unwrap()
    }

    #[test]
    fn nothing_but_line_ends_is_no_message() {
        for payload in [&b""[..], b"\n", b"\r\n\0\0"] {
            assert_eq!(Message::parse(payload, &context()), None);
        }
    }

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
            if let Some(message) = Message::parse(payload.as_bytes(), &context()) {
                assert_eq!(message.priority.value(), value, "{payload}");
            }
        }
        assert_eq!((Priority(165).facility(), Priority(165).severity()), (20, 5));
    }

    #[test]
    fn text_without_a_header_is_kept_whole() {
        for payload in ["<999>Mar 10 11:59:58 h a: x", "{\"a\":1}", "  <13>x", "\u{feff}text"] {
            let message = parse(payload.as_bytes());
            assert_eq!((message.format, message.msg), (Format::Raw, payload.as_bytes()));
            assert_eq!(message.host, Host::Source("192.0.2.10".parse().unwrap()));
        }
    }

    #[test]
    fn what_stands_before_the_priority_is_skipped_and_noted() {
        let message = parse("\u{feff}30 <34>Oct 11 22:14:15 h su: x".as_bytes());
        assert!(message.notes.contains(Notes::BOM_STRIPPED));
        assert!(message.notes.contains(Notes::UNEXPECTED_FRAMING));
        assert_eq!((message.app.as_deref(), message.msg), (Some("su"), &b"x"[..]));
    }

    #[test]
    fn a_message_of_our_own_has_no_host() {
        let message = Message::parse(b"<13>x", &Context::default()).unwrap();
        assert_eq!((message.host.source(), message.host.to_string().as_str()), (None, "-"));
    }

    #[test]
    fn every_note_has_its_name() {
        let all = Notes(u16::MAX >> 2);
        assert_eq!(all.names().count(), 14);
        assert_eq!(Notes::CISCO_SEQ.names().collect::<Vec<_>>(), ["cisco_seq"]);
    }
}
