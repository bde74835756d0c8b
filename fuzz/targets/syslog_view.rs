//! A payload read as syslog and written as RFC 5424 and JSON.
//!
//! Input: a byte of choices (zone, sender), the time of reception in eight bytes, then the payload. What is written
//! must be what others can read, and must say what was read; the payload is never changed.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use twinlog::proto::envelope::{Envelope, Flags, Kind, Origin, Timestamp, Transport};
use twinlog::proto::position::{Incarnation, JournalId, Position};
use twinlog::proto::syslog::message::{Context, Format, Message};
use twinlog::proto::syslog::priority::Priority;
use twinlog::proto::syslog::render;
use twinlog::proto::syslog::shared_text::SharedText;
use twinlog::proto::syslog::zone::Zone;

/// One input.
pub fn run(data: &[u8]) {
    let [choices, rest @ ..] = data else { return };
    let Some((received, payload)) = rest.split_first_chunk() else { return };
    let zone = ["UTC", "Europe/Berlin", "America/St_Johns", "+05:30"][usize::from(choices & 3)];
    let source: Option<SocketAddr> = match choices >> 2 & 3 {
        0 => None,
        1 => Some(([192, 0, 2, 7], 514).into()),
        2 => Some(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7], 514).into()),
        _ => Some(([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0207], 514).into()),
    };
    let origin = Origin {
        received_at: Timestamp(u64::from_le_bytes(*received)),
        source,
        transport: Transport::Tcp,
        input: "net",
        tag: b"syslog",
    };
    let envelope =
        Envelope { position: Position(4711), origin, flags: Flags(choices >> 4), kind: Kind::Syslog, payload };
    let zone: Zone = zone.parse().unwrap_or(Zone::UTC);
    view(&envelope, &Context::new(&origin, zone));
}

fn view(envelope: &Envelope<'_>, context: &Context) {
    let payload = envelope.payload;
    let Some(message) = Message::parse(payload, context) else {
        assert!(payload.iter().all(|byte| b"\n\r\0".contains(byte)), "only a payload without content is no message");
        return;
    };
    assert_eq!(Priority::of(payload), message.priority);
    let inside = payload.as_ptr_range();
    let msg = message.msg.as_ptr_range();
    assert!(message.msg.is_empty() || (inside.start <= msg.start && msg.end <= inside.end), "msg is a part of it");

    let journal = JournalId { node: "agg-a".parse().expect("a valid name"), incarnation: Incarnation(77) };
    let id = format!("{journal}/{}", envelope.position);
    let mut shared = SharedText::new(&journal);
    let mut json = Vec::new();
    render::json(&mut json, &mut shared, envelope, &message, true);
    let value: Value = serde_json::from_slice(&json).expect("JSON that others can read");
    assert_eq!(BASE64.decode(value["raw_b64"].as_str().expect("text")).expect("base64"), payload);
    assert_eq!(value["id"], id);
    match value.get("msg") {
        Some(text) => assert_eq!(text.as_str().expect("text").as_bytes(), message.msg),
        None => assert_eq!(BASE64.decode(value["msg_b64"].as_str().expect("text")).expect("base64"), message.msg),
    }

    let (mut out, mut again) = (Vec::new(), Vec::new());
    render::rfc5424(&mut out, &mut shared, envelope, None, &message);
    let read = reread(&out, &message, context);
    let elements = read.structured_data.expect("our element is there").elements();
    assert_eq!(elements[0].params[0], ("id".to_owned(), id));
    // Twice through, as over two nodes in a row: nothing grows but our own element.
    render::rfc5424(&mut again, &mut shared, envelope, None, &read);
    let twice = reread(&again, &read, context);
    assert_eq!(twice.structured_data.expect("our element is there").elements().len(), elements.len());
}

/// Reads back what was rendered and compares it with what was read before.
fn reread<'a>(text: &'a [u8], before: &Message<'_>, context: &Context) -> Message<'a> {
    let shown = text.escape_ascii();
    let read = Message::parse(text, context).expect("a rendered message has content");
    assert_eq!((read.format, read.priority), (Format::Rfc5424, before.priority), "{shown}");
    assert_eq!(read.timestamp.0, before.timestamp.0 / 1000 * 1000, "{shown}");
    // A mark before the text says that it is UTF-8; it is read as such and not as text.
    assert_eq!(read.msg, before.msg.strip_prefix("\u{feff}".as_bytes()).unwrap_or(before.msg), "{shown}");
    read
}
