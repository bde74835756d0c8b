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

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::calendar::write_rfc3339;
use super::decimal;
use super::message::{Host, Message};
use super::notes::Notes;
use super::priority::Priority;
use super::shared_text::{SharedText, push_ip};
use super::structured_data::StructuredData;
use crate::proto::envelope::{Envelope, Flags};
use crate::proto::json_string::Text;

/// The id of our structured data element. 32473 is the number that RFC 5612 reserves for examples: twinlog has none.
pub const SD_ID: &str = "twinlog@32473";

/// Fraction digits of a timestamp in RFC 5424, and in JSON.
const RFC5424_DIGITS: usize = 6;
pub(in crate::proto) const JSON_DIGITS: usize = 9;

/// Keys and values of each priority, with the key of the timestamp behind them, from the end of the format on.
static PRIORITY_KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let keys = |priority: Priority| {
        let (pri, facility, severity) = (priority.value(), priority.facility(), priority.severity());
        format!("\",\"pri\":{pri},\"facility\":{facility},\"severity\":{severity},\"timestamp\":\"")
    };
    (0..).map_while(Priority::new).map(keys).collect()
});

/// Appends `message` as an RFC 5424 message, without framing.
///
/// `event` is its number if it is one of a chunk, here as in all of this module.
pub fn rfc5424(
    out: &mut Vec<u8>,
    text: &mut SharedText,
    envelope: &Envelope<'_>,
    event: Option<u32>,
    message: &Message<'_>,
) {
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
    text.push_element(out, envelope, event);
    push_elements_beside(out, message.structured_data);
    if !message.msg.is_empty() {
        out.push(b' ');
        out.extend_from_slice(message.msg);
    }
}

/// Ends our element, and appends those of the message.
fn push_elements_beside(out: &mut Vec<u8>, beside: Option<StructuredData<'_>>) {
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
pub fn json(out: &mut Vec<u8>, text: &mut SharedText, envelope: &Envelope<'_>, message: &Message<'_>, raw: bool) {
    out.reserve(384 + message.msg.len());
    text.push_keys(out, envelope, None);
    out.extend_from_slice(message.format.as_str().as_bytes());
    out.extend_from_slice(PRIORITY_KEYS[usize::from(message.priority.value())].as_bytes());
    write_rfc3339(out, message.timestamp, JSON_DIGITS);
    out.extend_from_slice(b"\",\"timestamp_source\":\"");
    out.extend_from_slice(message.timestamp_source.as_str().as_bytes());
    out.extend_from_slice(b"\",\"host\":");
    match &message.host {
        Host::Message(name) => Text::of(name).push(out),
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
    let mut notes = message.notes;
    match Text::utf8(message.msg) {
        Some(text) => {
            out.extend_from_slice(b",\"msg\":");
            text.push(out);
        }
        None => {
            notes.insert(Notes::MSG_NOT_UTF8);
            out.extend_from_slice(b",\"msg_b64\":\"");
            push_base64(out, message.msg);
            out.push(b'"');
        }
    }
    push_flags(out, envelope.flags, notes);
    if raw {
        out.extend_from_slice(b",\"raw_b64\":\"");
        push_base64(out, envelope.payload);
        out.push(b'"');
    }
    out.push(b'}');
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
        Some(text) => Text::of(text).push(out),
        None => out.extend_from_slice(b"null"),
    }
}

pub(in crate::proto) fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    let length = base64::encoded_len(bytes.len(), true).expect("a payload is far smaller than half the address space");
    out.resize(start + length, 0);
    BASE64.encode_slice(bytes, &mut out[start..]).expect("the space is the encoded length");
}

#[cfg(test)]
mod tests {
    use super::super::message::Context;
    use super::super::zone::Zone;
    use super::*;
    use crate::proto::envelope::{Kind, Origin, Timestamp, Transport};
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
        rfc5424(&mut out, &mut SharedText::new(&journal), &envelope, None, &message);
        String::from_utf8(out).unwrap()
    }

    fn as_json(envelope: &Envelope<'_>, raw: bool) -> String {
        let journal = journal();
        let message = Message::parse(envelope.payload, &Context::new(&envelope.origin, Zone::UTC)).unwrap();
        let mut out = Vec::new();
        json(&mut out, &mut SharedText::new(&journal), envelope, &message, raw);
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
}
