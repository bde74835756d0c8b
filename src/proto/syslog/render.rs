//! A message as it leaves: RFC 5424 for collectors, one JSON object for files, `tail` and `journal cat`.
//!
//! Both carry the message's stable id, so that a destination can drop a repeat. RFC 5424 carries it as the structured
//! data element `[twinlog@32473 id="…" src="…" rcv="…"]` beside those of the message. If the message went through
//! another twinlog before, the element stands already, and an id must not stand twice (RFC 5424, 6.3.2): ours is put in
//! front of its parameters, newest first, like the `Received` lines of mail.
//!
//! The text leaves as it came. Fields of the header cannot: RFC 5424 allows printable ASCII and a length there. A
//! character it does not allow becomes `_`, a field that is too long is cut; whoever needs the bytes takes `raw`.
//!
//! JSON is written by hand, for each message of a busy output. The names of the keys are a contract
//! (`tests/fixtures/README.md`); each key is always there, `null` if the message has no such thing.

use std::fmt::Write;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::calendar::write_rfc3339;
use super::decimal;
use super::message::{Host, Message};
use super::notes::Notes;
use super::structured_data::StructuredData;
use crate::proto::envelope::{Envelope, Flags, Origin};
use crate::proto::position::MessageId;

/// The id of our structured data element. 32473 is the number that RFC 5612 reserves for examples: twinlog has none.
pub const SD_ID: &str = "twinlog@32473";

/// Fraction digits of a timestamp in RFC 5424, and in JSON.
const RFC5424_DIGITS: usize = 6;
pub(in crate::proto) const JSON_DIGITS: usize = 9;

/// Appends `message` as an RFC 5424 message, without framing.
pub fn rfc5424(out: &mut Vec<u8>, id: MessageId<'_>, envelope: &Envelope<'_>, message: &Message<'_>) {
    out.push(b'<');
    decimal::push(out, u64::from(message.priority.value()));
    out.extend_from_slice(b">1 ");
    write_rfc3339(out, message.timestamp, RFC5424_DIGITS);
    out.push(b' ');
    match &message.host {
        Host::Message(name) => push_field(out, name, 255),
        Host::Source(ip) => push_ip(out, *ip),
        Host::Unknown => out.push(b'-'),
    }
    for (field, length_max) in [(&message.app, 48), (&message.pid, 128), (&message.msgid, 32)] {
        out.push(b' ');
        push_field(out, field.as_deref().unwrap_or(""), length_max);
    }
    out.push(b' ');
    push_structured_data(out, id, envelope, message.structured_data);
    if !message.msg.is_empty() {
        out.push(b' ');
        out.extend_from_slice(message.msg);
    }
}

fn push_structured_data(
    out: &mut Vec<u8>,
    id: MessageId<'_>,
    envelope: &Envelope<'_>,
    beside: Option<StructuredData<'_>>,
) {
    out.push(b'[');
    out.extend_from_slice(SD_ID.as_bytes());
    out.extend_from_slice(b" id=\"");
    push_id(out, id);
    if let Some(source) = envelope.origin.source {
        out.extend_from_slice(b"\" src=\"");
        push_ip(out, source.ip().to_canonical());
    }
    out.extend_from_slice(b"\" rcv=\"");
    write_rfc3339(out, envelope.origin.received_at, JSON_DIGITS);
    out.push(b'"');
    match beside {
        None => out.push(b']'),
        Some(data) if !data.may_contain(SD_ID) => {
            out.push(b']');
            out.extend_from_slice(data.as_str().as_bytes());
        }
        Some(data) => push_merged(out, data),
    }
}

/// Ends our element with the parameters of an earlier one and appends the other elements.
fn push_merged(out: &mut Vec<u8>, data: StructuredData<'_>) {
    let elements = data.escaped_elements();
    for element in elements.iter().filter(|element| element.id == SD_ID) {
        for (name, value) in &element.params {
            out.push(b' ');
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"=\"");
            out.extend_from_slice(value.as_bytes());
            out.push(b'"');
        }
    }
    out.push(b']');
    for element in elements.iter().filter(|element| element.id != SD_ID) {
        out.extend_from_slice(element.to_string().as_bytes());
    }
}

/// Appends a header field: printable ASCII, at most `length_max` bytes, `-` when empty.
fn push_field(out: &mut Vec<u8>, text: &str, length_max: usize) {
    if text.is_empty() {
        return out.push(b'-');
    }
    // Nearly every one; looked at whole, without a branch.
    if text.len() <= length_max && text.bytes().fold(true, |all, byte| all & byte.is_ascii_graphic()) {
        return out.extend_from_slice(text.as_bytes());
    }
    let field = text.chars().take(length_max);
    out.extend(field.map(|c| if c.is_ascii_graphic() { c as u8 } else { b'_' }));
}

/// Appends `message` as one JSON object without a line end; with `raw` also the payload as `raw_b64`.
pub fn json(out: &mut Vec<u8>, id: MessageId<'_>, envelope: &Envelope<'_>, message: &Message<'_>, raw: bool) {
    out.reserve(384 + message.msg.len());
    push_head(out, id, &envelope.origin);
    out.extend_from_slice(message.format.as_str().as_bytes());
    out.extend_from_slice(b"\",\"pri\":");
    decimal::push(out, u64::from(message.priority.value()));
    out.extend_from_slice(b",\"facility\":");
    decimal::push(out, u64::from(message.priority.facility()));
    out.extend_from_slice(b",\"severity\":");
    decimal::push(out, u64::from(message.priority.severity()));
    out.extend_from_slice(b",\"timestamp\":\"");
    write_rfc3339(out, message.timestamp, JSON_DIGITS);
    out.extend_from_slice(b"\",\"timestamp_source\":\"");
    out.extend_from_slice(message.timestamp_source.as_str().as_bytes());
    out.extend_from_slice(b"\",\"host\":");
    match &message.host {
        Host::Message(name) => push_string(out, name.as_bytes()),
        Host::Source(ip) => {
            out.push(b'"');
            push_ip(out, *ip);
            out.push(b'"');
        }
        Host::Unknown => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"host_source\":");
    push_optional(out, message.host.source());
    out.extend_from_slice(b",\"app\":");
    push_optional(out, message.app.as_deref());
    out.extend_from_slice(b",\"pid\":");
    push_optional(out, message.pid.as_deref());
    out.extend_from_slice(b",\"msgid\":");
    push_optional(out, message.msgid.as_deref());
    out.extend_from_slice(b",\"structured_data\":");
    push_optional(out, message.structured_data.map(|data| data.as_str()));
    if message.notes.contains(Notes::MSG_NOT_UTF8) {
        out.extend_from_slice(b",\"msg_b64\":\"");
        push_base64(out, message.msg);
        out.push(b'"');
    } else {
        out.extend_from_slice(b",\"msg\":");
        push_string(out, message.msg);
    }
    push_flags(out, envelope.flags, message.notes);
    if raw {
        out.extend_from_slice(b",\"raw_b64\":\"");
        push_base64(out, envelope.payload);
        out.push(b'"');
    }
    out.push(b'}');
}

/// Appends the keys that every kind of message begins with, up to the value of `format`.
pub(in crate::proto) fn push_head(out: &mut Vec<u8>, id: MessageId<'_>, origin: &Origin<'_>) {
    out.extend_from_slice(b"{\"id\":\"");
    push_id(out, id);
    out.extend_from_slice(b"\",\"received\":\"");
    write_rfc3339(out, origin.received_at, JSON_DIGITS);
    out.extend_from_slice(b"\",\"source\":");
    match origin.source {
        Some(source) => {
            out.push(b'"');
            push_ip(out, source.ip().to_canonical());
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"input\":");
    push_string(out, origin.input.as_bytes());
    out.extend_from_slice(b",\"format\":\"");
}

pub(in crate::proto) fn push_flags(out: &mut Vec<u8>, flags: Flags, notes: Notes) {
    out.extend_from_slice(b",\"flags\":[");
    if flags != Flags::NONE || !notes.is_empty() {
        for name in flags.names().chain(notes.names()) {
            out.push(b'"');
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\",");
        }
        if out.last() == Some(&b',') {
            out.pop();
        }
    }
    out.push(b']');
}

fn push_optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => push_string(out, text.as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends UTF-8 as a JSON string (RFC 8259, 7).
pub(in crate::proto) fn push_string(out: &mut Vec<u8>, mut text: &[u8]) {
    out.push(b'"');
    loop {
        let plain = plain_prefix(text);
        out.extend_from_slice(&text[..plain]);
        let Some(&byte) = text.get(plain) else { break };
        push_escape(out, byte);
        text = &text[plain + 1..];
    }
    out.push(b'"');
}

/// The number of bytes at the start of `text` that stand for themselves in JSON.
fn plain_prefix(text: &[u8]) -> usize {
    // A stride is looked at whole, without a branch: the compiler makes vector instructions of it. What is left, and most
    // strings are short, by the word.
    const STRIDE: usize = 32;
    let (strides, _) = text.as_chunks::<STRIDE>();
    let plain = strides.iter().take_while(|stride| !stride.iter().fold(false, |any, byte| any | needs_escape(*byte)));
    let mut begin = plain.count() * STRIDE;
    let (words, _) = text[begin..].as_chunks();
    for word in words {
        let marks = escapes_in(u64::from_le_bytes(*word));
        if marks != 0 {
            return begin + marks.trailing_zeros() as usize / 8;
        }
        begin += 8;
    }
    begin + text[begin..].iter().take_while(|byte| !needs_escape(**byte)).count()
}

/// Marks the highest bit of the lowest byte that needs an escape; bytes above it may be marked for nothing.
fn escapes_in(word: u64) -> u64 {
    const EACH: u64 = u64::MAX / 0xff;
    let is_below = |word: u64, limit: u8| word.wrapping_sub(EACH * u64::from(limit)) & !word;
    let is = |byte: u8| is_below(word ^ (EACH * u64::from(byte)), 1);
    (is_below(word, b' ') | is(b'"') | is(b'\\')) & (EACH * 0x80)
}

fn needs_escape(byte: u8) -> bool {
    (byte < b' ') | (byte == b'"') | (byte == b'\\')
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hexadecimal(byte >> 4), hexadecimal(byte & 15)]),
    }
}

pub(in crate::proto) fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    let length = base64::encoded_len(bytes.len(), true).expect("a payload is far smaller than half the address space");
    out.resize(start + length, 0);
    BASE64.encode_slice(bytes, &mut out[start..]).expect("the space is the encoded length");
}

/// `NODE/INCARNATION/POSITION`, with `.EVENT` if it is one of a chunk, as `MessageId` displays it. A node's name needs no escapes in JSON or structured data.
fn push_id(out: &mut Vec<u8>, id: MessageId<'_>) {
    out.extend_from_slice(id.journal.node.as_str().as_bytes());
    out.push(b'/');
    push_hexadecimal(out, id.journal.incarnation.0);
    out.push(b'/');
    decimal::push(out, id.position.0);
    if let Some(event) = id.event {
        out.push(b'.');
        decimal::push(out, u64::from(event));
    }
}

fn push_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for octet in ip.octets() {
                decimal::push(out, u64::from(octet));
                out.push(b'.');
            }
            out.pop();
        }
        IpAddr::V6(ip) => {
            let mut text = String::with_capacity(39);
            write!(text, "{ip}").expect("a String takes everything");
            out.extend_from_slice(text.as_bytes());
        }
    }
}

fn push_hexadecimal(out: &mut Vec<u8>, value: u64) {
    let digits = (u64::BITS - value.leading_zeros()).div_ceil(4).max(1) as usize;
    let mut text = [0; 16];
    for (place, digit) in text.iter_mut().rev().enumerate() {
        *digit = hexadecimal((value >> (4 * place)) as u8 & 15);
    }
    out.extend_from_slice(&text[text.len() - digits..]);
}

/// The digit of `value`, which is below 16.
fn hexadecimal(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

#[cfg(test)]
mod tests {
    use super::super::message::Context;
    use super::super::zone::Zone;
    use super::*;
    use crate::proto::envelope::{Kind, Timestamp, Transport};
    use crate::proto::position::{Incarnation, JournalId, Position};

    fn journal() -> JournalId {
        JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(0x19a_a3f0) }
    }

    fn envelope(payload: &[u8]) -> Envelope<'_> {
        Envelope {
            position: Position(8123),
            origin: Origin {
                received_at: Timestamp(1_773_144_000_000_000_001),
                source: Some("192.0.2.7:51400".parse().unwrap()),
                transport: Transport::Tcp,
                input: "net",
                tag: b"syslog",
            },
            flags: Flags::NONE,
            kind: Kind::Syslog,
            payload,
        }
    }

    fn rendered(payload: &[u8]) -> String {
        let (journal, envelope) = (journal(), envelope(payload));
        let message = Message::parse(payload, &Context::new(&envelope.origin, Zone::UTC)).unwrap();
        let mut out = Vec::new();
        rfc5424(&mut out, journal.message(envelope.position), &envelope, &message);
        String::from_utf8(out).unwrap()
    }

    fn as_json(envelope: &Envelope<'_>, raw: bool) -> String {
        let journal = journal();
        let message = Message::parse(envelope.payload, &Context::new(&envelope.origin, Zone::UTC)).unwrap();
        let mut out = Vec::new();
        json(&mut out, journal.message(envelope.position), envelope, &message, raw);
        String::from_utf8(out).unwrap()
    }

    const OURS: &str =
        "[twinlog@32473 id=\"agg-a/19aa3f0/8123\" src=\"192.0.2.7\" rcv=\"2026-03-10T12:00:00.000000001Z\"]";

    #[test]
    fn a_bsd_message_leaves_as_rfc5424() {
        assert_eq!(
            rendered(b"<34>Oct 11 22:14:15 mymachine su[7]: 'su root' failed"),
            format!("<34>1 2025-10-11T22:14:15Z mymachine su 7 - {OURS} 'su root' failed")
        );
    }

    #[test]
    fn what_a_message_does_not_say_is_filled_from_its_reception() {
        assert_eq!(rendered(b"text"), format!("<13>1 2026-03-10T12:00:00Z 192.0.2.7 - - - {OURS} text"));
        assert_eq!(rendered(b"<34>"), format!("<34>1 2026-03-10T12:00:00Z 192.0.2.7 - - - {OURS}"));
    }

    #[test]
    fn our_element_stands_beside_the_messages_own() {
        let rest = "[a@1 k=\"\\\"\\]\"][b]";
        assert_eq!(
            rendered(format!("<34>1 2003-10-11T22:14:15.123456789Z h a p m {rest} x").as_bytes()),
            format!("<34>1 2003-10-11T22:14:15.123456Z h a p m {OURS}{rest} x")
        );
    }

    #[test]
    fn the_element_of_an_earlier_twinlog_is_joined_with_ours() {
        let payload = "<34>1 2003-10-11T22:14:15Z h a p m [a@1 k=\"\\]\"][twinlog@32473 id=\"b/1/2\" rcv=\"x\"] t";
        let joined = OURS.replace(']', " id=\"b/1/2\" rcv=\"x\"]");
        assert_eq!(
            rendered(payload.as_bytes()),
            format!("<34>1 2003-10-11T22:14:15Z h a p m {joined}[a@1 k=\"\\]\"] t")
        );
    }

    #[test]
    fn header_fields_are_printable_and_of_limited_length() {
        let payload = format!("<34>1 2003-10-11T22:14:15Z h\u{e9}\t {} - - - x", "a".repeat(60));
        let expected = format!("<34>1 2003-10-11T22:14:15Z h__ {} - - {OURS} x", "a".repeat(48));
        assert_eq!(rendered(payload.as_bytes()), expected);
    }

    #[test]
    fn json_has_the_keys_of_the_contract() {
        let envelope = Envelope { flags: Flags::TRUNCATED, ..envelope(b"<34>Oct 11 22:14:15 h su[7]: \"a\\b\"\t\x1b") };
        assert_eq!(
            as_json(&envelope, false),
            concat!(
                r#"{"id":"agg-a/19aa3f0/8123","received":"2026-03-10T12:00:00.000000001Z","source":"192.0.2.7","#,
                r#""input":"net","format":"rfc3164","pri":34,"facility":4,"severity":2,"#,
                r#""timestamp":"2025-10-11T22:14:15Z","timestamp_source":"message","host":"h","host_source":"message","#,
                r#""app":"su","pid":"7","msgid":null,"structured_data":null,"msg":"\"a\\b\"\t\u001b","#,
                r#""flags":["truncated"]}"#
            )
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_base64() {
        let value: serde_json::Value = serde_json::from_str(&as_json(&envelope(b"<34>\xff\xfe"), true)).unwrap();
        assert_eq!(value["msg_b64"], "//4=");
        assert_eq!(value["raw_b64"], "PDM0Pv/+");
        assert_eq!(value["flags"], serde_json::json!(["timestamp_missing", "msg_not_utf8"]));
        assert_eq!(value.get("msg"), None);
    }

    #[test]
    fn every_character_survives_json() {
        let text: String = ('\u{1}'..='\u{100}').chain("日本語".chars()).collect();
        for begin in 0..40 {
            let text = format!("{}{text}", "x".repeat(begin));
            let mut out = Vec::new();
            push_string(&mut out, text.as_bytes());
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn what_needs_an_escape_is_found_at_every_place() {
        for length in 0..80 {
            for at in 0..length {
                for byte in (0..0x80).chain([0xc3]) {
                    let mut text = vec![b'x'; length];
                    text[at] = byte;
                    let expected = if needs_escape(byte) { at } else { length };
                    assert_eq!(plain_prefix(&text), expected, "{byte:#x} at {at} of {length}");
                    // The first one counts, whatever comes behind it.
                    text[length - 1] = b'"';
                    assert_eq!(
                        plain_prefix(&text),
                        expected.min(length - 1),
                        "{byte:#x} at {at} of {length}, then a quote"
                    );
                }
            }
        }
    }

    #[test]
    fn the_id_is_the_one_that_is_displayed() {
        let journal = JournalId { node: "n".parse().unwrap(), incarnation: Incarnation(u64::MAX) };
        for position in [0, 9, 10, u64::MAX] {
            let id = journal.message(Position(position));
            let mut out = Vec::new();
            push_id(&mut out, id);
            assert_eq!(out, id.to_string().as_bytes());
        }
    }
}
