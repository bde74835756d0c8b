//! A payload read as a syslog message: priority, time, origin, text.
//!
//! [`Message::parse`] takes any bytes and borrows from them. What it cannot read it leaves in `msg` and says so in
//! [`Notes`]; the only answer without a message is for a payload without content. Rules P0 to P11 of
//! `tests/fixtures/README.md`; this file holds those about the payload as a whole (P0, P1, P3, P10, P11).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use super::notes::Notes;
use super::priority::{Field, Priority, skip_preamble};
use super::structured_data::StructuredData;
use super::zone::Zone;
use super::{header, rfc5424, timestamp};
use crate::proto::envelope::{Origin, Timestamp};

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
    /// What was noticed, but for [`Notes::MSG_NOT_UTF8`]: whoever shows `msg` as text has to look anyway.
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
        if message.app.is_none() {
            message.app = header::cef_or_leef(message.msg).map(Cow::Borrowed);
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
        self.host = Host::Message(name_of(&rest_behind[..end]));
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

/// A name as text. Nearly all are UTF-8, which is found out faster than it is repaired.
pub(super) fn name_of(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

fn trim_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|b| **b == b' ').count();
    &text[spaces..]
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
}
