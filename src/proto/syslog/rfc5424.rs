//! The header of RFC 5424, section 6 (rule P2).
//!
//! A message is of this kind if a version and an RFC 3339 timestamp follow the priority: the version alone also starts
//! ordinary sentences. What follows is read as far as it holds. VMware leaves the MSGID out, some senders stop behind
//! the host; their text is not lost, it is `msg`.

use std::borrow::Cow;

use memchr::memchr;

use super::message::{Format, Host, Message, name_of};
use super::notes::Notes;
use super::structured_data::StructuredData;
use super::timestamp;
use crate::proto::envelope::Timestamp;

/// Reads `text`, which stands behind the priority, into `message`. False and no change if it is not of this kind.
pub(super) fn read<'a>(message: &mut Message<'a>, text: &'a [u8]) -> bool {
    let Some((time, text)) = version_and_time(text) else { return false };
    message.format = Format::Rfc5424;
    match time {
        Some(time) => message.set_timestamp(time),
        None => message.notes.insert(Notes::TIMESTAMP_MISSING),
    }
    let (host, rest) = token(text);
    if let Some(host) = value(host) {
        message.host = Host::Message(host);
    }
    let (app, behind_app) = token(rest);
    let (pid, behind_pid) = token(behind_app);
    let (msgid, behind_msgid) = token(behind_pid);
    let (msgid, data) = if msgid.first() == Some(&b'[') { (&b""[..], behind_pid) } else { (msgid, behind_msgid) };
    message.msg = match data {
        [b'-'] => b"",
        [b'-', b' ', msg @ ..] => without_bom(msg),
        [b'[', ..] => match StructuredData::read(data) {
            Some((structured_data, msg)) => {
                message.structured_data = Some(structured_data);
                without_bom(msg.strip_prefix(b" ").unwrap_or(msg))
            }
            None => {
                message.notes.insert(Notes::SD_INVALID);
                data
            }
        },
        _ => {
            message.notes.insert(Notes::RFC5424_PARTIAL);
            message.msg = rest;
            return true;
        }
    };
    message.app = value(app);
    message.pid = value(pid);
    message.msgid = value(msgid);
    true
}

/// `VERSION SP TIMESTAMP SP`: the time (`None` for `-`, inside it `None` for no such date) and what follows.
fn version_and_time(text: &[u8]) -> Option<(Option<Option<Timestamp>>, &[u8])> {
    let text = match text {
        [b'1'..=b'9', b' ', rest @ ..] | [b'1'..=b'9', b'0'..=b'9', b' ', rest @ ..] => rest,
        _ => return None,
    };
    if let [b'-', b' ', rest @ ..] = text {
        return Some((None, rest));
    }
    let (time, end) = timestamp::rfc3339(text)?;
    Some((Some(time), text[end..].strip_prefix(b" ")?))
}

/// The bytes up to the next space, and what stands behind it.
fn token(text: &[u8]) -> (&[u8], &[u8]) {
    match memchr(b' ', text) {
        Some(end) => (&text[..end], &text[end + 1..]),
        None => (text, b""),
    }
}

fn value(token: &[u8]) -> Option<Cow<'_, str>> {
    match token {
        b"" | b"-" => None,
        _ => Some(name_of(token)),
    }
}

/// A byte order mark says that the text is UTF-8 (RFC 5424, 6.4); it is no part of it.
fn without_bom(msg: &[u8]) -> &[u8] {
    msg.strip_prefix(b"\xef\xbb\xbf").unwrap_or(msg)
}

#[cfg(test)]
mod tests {
    use super::super::message::{Context, TimestampSource};
    use super::*;

    fn parse(payload: &str) -> Message<'_> {
        Message::parse(payload.as_bytes(), &Context::default()).unwrap()
    }

    #[test]
    fn every_field_of_the_standard_is_found() {
        let message = parse("<165>1 2003-10-11T22:14:15.003Z mymachine evntslog 7 ID47 [a@1 b=\"c\"] \u{feff}text");
        assert_eq!(message.format, Format::Rfc5424);
        assert_eq!(message.host, Host::Message("mymachine".into()));
        assert_eq!(message.app.as_deref(), Some("evntslog"));
        assert_eq!(message.pid.as_deref(), Some("7"));
        assert_eq!(message.msgid.as_deref(), Some("ID47"));
        assert_eq!(message.structured_data.as_ref().map(|data| data.as_str()), Some("[a@1 b=\"c\"]"));
        assert_eq!((message.msg, message.notes), (&b"text"[..], Notes::NONE));
    }

    #[test]
    fn a_version_without_a_time_is_text() {
        assert_eq!(parse("<34>1 failed attempts").format, Format::Rfc3164);
        assert_eq!(parse("<34>01 - h a - - - x").format, Format::Rfc3164);
    }

    #[test]
    fn malformed_structured_data_is_text() {
        let message = parse("<14>1 - h app 7 ID [action:\"Drop\"; flags:\"1\"] x");
        assert!(message.notes.contains(Notes::SD_INVALID));
        assert_eq!((message.app.as_deref(), message.msgid.as_deref()), (Some("app"), Some("ID")));
        assert_eq!(message.msg, b"[action:\"Drop\"; flags:\"1\"] x");
    }

    #[test]
    fn structured_data_in_the_place_of_the_msgid_is_found() {
        let message = parse("<14>1 2026-03-10T11:59:58.123Z esx Hostd 7 [Originator@6876 sub=Vimsvc opID=1] Task");
        assert!(message.notes.contains(Notes::SD_INVALID));
        assert_eq!((message.pid.as_deref(), message.msgid.as_deref()), (Some("7"), None));
        assert_eq!(message.msg, b"[Originator@6876 sub=Vimsvc opID=1] Task");
    }

    #[test]
    fn a_header_that_ends_early_keeps_its_text() {
        for (payload, msg) in [
            ("<14>1 - h app 77 ID1 hello there", "app 77 ID1 hello there"),
            ("<14>1 - h app", "app"),
            ("<14>1 - h", ""),
            ("<14>1 - h app - - -x y", "app - - -x y"),
        ] {
            let message = parse(payload);
            assert!(message.notes.contains(Notes::RFC5424_PARTIAL));
            assert_eq!(message.host, Host::Message("h".into()));
            assert_eq!((message.app.as_deref(), message.msg), (None, msg.as_bytes()), "{payload}");
        }
    }

    #[test]
    fn an_impossible_date_does_not_hide_the_rest() {
        let message = parse("<14>1 2026-02-30T11:59:58Z h app - - - x");
        assert_eq!((message.format, message.timestamp_source), (Format::Rfc5424, TimestampSource::Received));
        assert!(message.notes.contains(Notes::TIMESTAMP_INVALID));
        assert_eq!(message.app.as_deref(), Some("app"));
    }
}
