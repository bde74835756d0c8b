//! Real device lines and stream recordings against the parse contract of `tests/fixtures/README.md`.
//!
//! Every field that a case expects is compared twice: through [`Message`] and through the JSON that outputs write. At
//! least 98 of 100 must be right, and no byte of a payload may change. What differs is printed.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use twinlog::proto::envelope::{Envelope, Flags, Kind, Origin, Timestamp, Transport};
use twinlog::proto::position::{Incarnation, JournalId, Position};
use twinlog::proto::syslog::framing::{Ending, Framer, FramingError, Step};
use twinlog::proto::syslog::message::{Context, Format, Host, Message};
use twinlog::proto::syslog::priority::Priority;
use twinlog::proto::syslog::render;
use twinlog::proto::syslog::shared_text::SharedText;
use twinlog::proto::syslog::structured_data::Element;
use twinlog::proto::syslog::zone::Zone;

const CORPUS: &str = include_str!("fixtures/devices.jsonl");

#[test]
fn device_lines_are_read_as_the_contract_says() {
    let mut score = Score::default();
    for case in cases("message") {
        let payload = bytes(&case["raw_b64"]);
        let envelope = envelope(&case, &payload);
        let zone: Zone = text(&case["default_tz"]).parse().unwrap();
        let Some(message) = Message::parse(&payload, &Context::new(&envelope.origin, zone)) else {
            score.check(&case, "format", &case["expect"]["format"], &json!("none"));
            continue;
        };
        assert_eq!(Priority::of(&payload), message.priority, "{}", case["id"]);
        let (journal, mut out) = (journal(), Vec::new());
        render::json(&mut out, &mut SharedText::new(&journal), &envelope, &message, true);
        let rendered: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(rendered["raw_b64"], case["raw_b64"], "{}", case["id"]);
        assert_eq!(rendered["received"], case["received"], "{}", case["id"]);
        assert_eq!(rendered["source"], case["source_ip"], "{}", case["id"]);
        for (key, expected) in case["expect"].as_object().unwrap() {
            if key == "flags_include" {
                for flag in expected.as_array().unwrap() {
                    let has = rendered["flags"].as_array().unwrap().contains(flag);
                    score.check(&case, "flags", flag, if has { flag } else { &rendered["flags"] });
                }
                continue;
            }
            score.check(&case, key, expected, &field(&message, key));
            score.check(&case, &format!("json {key}"), expected, &rendered[key]);
        }
    }
    score.finish();
}

#[test]
fn streams_are_cut_into_the_frames_of_the_contract() {
    let mut score = Score::default();
    for case in cases("stream") {
        let chunks = chunks_of(&case);
        let max_message = case["max_message_bytes"].as_u64().unwrap() as usize;
        for chunks in [chunks.clone(), chunks.concat().chunks(1).map(<[u8]>::to_vec).collect()] {
            let stream = read_stream(max_message, &chunks);
            let frames: Vec<String> = stream.frames.iter().map(|frame| BASE64.encode(frame)).collect();
            let expect = &case["expect"];
            score.check(&case, "frames", &expect["frames_b64"], &json!(frames));
            score.check(&case, "closed", &expect["connection_closed_by_receiver"], &json!(stream.closed));
            let errors_min = expect["framing_errors_min"].as_u64().unwrap();
            score.check(&case, "errors", &json!(true), &json!(stream.errors.len() as u64 >= errors_min));
        }
    }
    score.finish();
}

/// The standard's own kind of message is also read by `syslog_loose`, which others have tested: what both can read must
/// be the same.
#[test]
fn rfc5424_messages_agree_with_an_independent_parser() {
    let mut compared = 0;
    for case in cases("message") {
        let payload = bytes(&case["raw_b64"]);
        let Some(ours) = Message::parse(&payload, &Context::default()) else { continue };
        let Ok(payload) = std::str::from_utf8(&payload) else { continue };
        if ours.format != Format::Rfc5424 || !ours.notes.is_empty() {
            continue;
        }
        let Ok(theirs) = syslog_loose::parse_message_with_year_exact(payload, |_| 2026, syslog_loose::Variant::RFC5424)
        else {
            continue;
        };
        compared += 1;
        let id = &case["id"];
        let pri = ours.priority.value();
        assert_eq!(theirs.facility.map(|f| f as u8), Some(pri / 8), "{id}");
        assert_eq!(theirs.severity.map(|s| s as u8), Some(pri % 8), "{id}");
        let time = theirs.timestamp.and_then(|time| time.timestamp_nanos_opt()).map(|nanos| Timestamp(nanos as u64));
        assert_eq!(Some(ours.timestamp), time, "{id}");
        let cef = ours.app.as_deref().filter(|app| matches!(*app, "CEF" | "LEEF"));
        assert_eq!(ours.app.as_deref(), theirs.appname.or(cef), "{id}");
        assert_eq!(ours.msgid.as_deref(), theirs.msgid, "{id}");
        assert_eq!(ours.pid.as_deref(), theirs.procid.map(|pid| pid.to_string()).as_deref(), "{id}");
        assert_eq!(ours.host, theirs.hostname.map_or(Host::Unknown, |name| Host::Message(name.into())), "{id}");
        let elements: Vec<Element> = ours.structured_data.map(|data| data.elements()).unwrap_or_default();
        let ids: Vec<&str> = elements.iter().map(|element| element.id.as_str()).collect();
        assert_eq!(ids, theirs.structured_data.iter().map(|element| element.id).collect::<Vec<_>>(), "{id}");
        let msg = theirs.msg.trim_start_matches('\u{feff}');
        assert_eq!(ours.msg.trim_ascii(), msg.trim_ascii().as_bytes(), "{id}");
    }
    assert!(compared >= 15, "{compared} messages compared");
}

/// Damaged and mixed device lines: no bytes may stop the receiver, and what it writes is what others can read.
#[test]
fn no_bytes_break_reading_or_writing() {
    let payloads: Vec<Vec<u8>> = cases("message").map(|case| bytes(&case["raw_b64"])).collect();
    let mut random = fastrand::Rng::with_seed(20_260_310);
    let journal = journal();
    let mut shared = SharedText::new(&journal);
    let case = cases("message").next().unwrap();
    let zones = [Zone::UTC, "Europe/Berlin".parse().unwrap()];
    let (mut out, mut again) = (Vec::new(), Vec::new());
    for _ in 0..100_000 {
        let payload = mutated(&payloads, &mut random);
        let envelope = envelope(&case, &payload);
        let context = Context::new(&envelope.origin, zones[random.usize(..zones.len())]);
        let Some(message) = Message::parse(&payload, &context) else { continue };
        assert_eq!(Priority::of(&payload), message.priority);
        assert!(payload.as_ptr_range().contains(&message.msg.as_ptr()) || message.msg.is_empty());
        assert!(message.msg.is_empty() || payload.windows(message.msg.len()).any(|part| part == message.msg));

        let id = format!("{journal}/{}", envelope.position);
        out.clear();
        render::json(&mut out, &mut shared, &envelope, &message, true);
        let rendered: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(bytes(&rendered["raw_b64"]), payload);
        for key in ["format", "pri", "timestamp", "host", "app", "pid", "msgid", "structured_data"] {
            assert_eq!(rendered[key], field(&message, key), "{}", payload.escape_ascii());
        }
        let msg = rendered.get("msg").map_or_else(|| bytes(&rendered["msg_b64"]), |msg| text(msg).into());
        assert_eq!(msg, message.msg);

        out.clear();
        render::rfc5424(&mut out, &mut shared, &envelope, None, &message);
        let read = Message::parse(&out, &context).unwrap();
        let shown = out.escape_ascii();
        assert_eq!((read.format, read.priority), (Format::Rfc5424, message.priority), "{shown}");
        assert_eq!(read.timestamp.0, message.timestamp.0 / 1000 * 1000, "{shown}");
        // A mark before the text says that it is UTF-8; it is read as such and not as text.
        assert_eq!(read.msg, message.msg.strip_prefix("\u{feff}".as_bytes()).unwrap_or(message.msg), "{shown}");
        let elements = read.structured_data.expect("our element is there").elements();
        assert_eq!(elements[0].params[0], ("id".to_owned(), id));
        let before = message.structured_data.map(|data| data.elements()).unwrap_or_default();
        assert_eq!(elements[1..], before, "{shown}");

        // Twice through: the second element joins the first.
        again.clear();
        render::rfc5424(&mut again, &mut shared, &envelope, None, &read);
        let read_again = Message::parse(&again, &context).unwrap();
        assert_eq!(read_again.msg, read.msg.strip_prefix("\u{feff}".as_bytes()).unwrap_or(read.msg));
        let elements = read_again.structured_data.expect("our element is there").elements();
        assert_eq!((elements.len(), elements[0].params.len()), (1 + before.len(), 6), "{shown}");
    }
}

#[test]
fn no_bytes_break_framing() {
    let payloads: Vec<Vec<u8>> = cases("stream").map(|case| chunks_of(&case).concat()).collect();
    let mut random = fastrand::Rng::with_seed(6587);
    for _ in 0..20_000 {
        let stream = mutated(&payloads, &mut random);
        let max_message = random.usize(1..200);
        let whole = read_stream(max_message, std::slice::from_ref(&stream));
        let size = random.usize(1..9);
        let pieces = read_stream(max_message, &stream.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>());
        assert_eq!(pieces, whole, "{} {max_message} {size}", stream.escape_ascii());
        assert!(whole.frames.iter().all(|frame| !frame.is_empty() && frame.len() <= max_message));
    }
}

/// One of `payloads` with up to eight wounds: bytes changed, doubled, lost, or another's tail.
fn mutated(payloads: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    const TELLING: &[u8] = b"<>[]\"\\=: %*.-+0191TZ/,;{}\n\r\0\t\xef\xbb\xbf\xff\xc3";
    let mut bytes = payloads[random.usize(..payloads.len())].clone();
    for _ in 0..random.usize(1..=8) {
        if bytes.is_empty() {
            break;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..6) {
            0 => bytes[at] = random.u8(..),
            1 => bytes[at] = TELLING[random.usize(..TELLING.len())],
            2 => bytes.insert(at, TELLING[random.usize(..TELLING.len())]),
            3 => drop(bytes.remove(at)),
            4 => bytes.truncate(at),
            _ => {
                let other = &payloads[random.usize(..payloads.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.usize(..other.len())..]);
            }
        }
    }
    bytes
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Stream {
    frames: Vec<Vec<u8>>,
    errors: Vec<FramingError>,
    closed: bool,
}

/// What a reader makes of successive reads and the end of the stream.
fn read_stream(max_message: usize, chunks: &[Vec<u8>]) -> Stream {
    let mut framer = Framer::new(max_message);
    let mut stream = Stream::default();
    let mut kept = Vec::new();
    for chunk in chunks {
        kept.extend_from_slice(chunk);
        loop {
            let consumed = match framer.next(&kept) {
                Step::Frame { payload, flags, consumed } => {
                    stream.frames.push(payload.to_vec());
                    stream.errors.extend(flags.contains(Flags::TRUNCATED).then_some(FramingError::Oversize));
                    consumed
                }
                Step::Skip { consumed, error } => {
                    stream.errors.push(error);
                    consumed
                }
                Step::NeedMore { consumed } => {
                    kept.drain(..consumed);
                    break;
                }
                Step::Close(error) => {
                    stream.errors.push(error);
                    stream.closed = true;
                    return stream;
                }
            };
            kept.drain(..consumed);
        }
    }
    match framer.finish(&kept) {
        Some(Ending::Frame { payload, .. }) => stream.frames.push(payload.to_vec()),
        Some(Ending::Incomplete(_)) => stream.errors.push(FramingError::Incomplete),
        None => {}
    }
    stream
}

/// The message's field under its name in the corpus.
fn field(message: &Message<'_>, key: &str) -> Value {
    match key {
        "format" => json!(message.format.as_str()),
        "pri" => json!(message.priority.value()),
        "facility" => json!(message.priority.facility()),
        "severity" => json!(message.priority.severity()),
        "timestamp" => {
            let time = chrono::DateTime::from_timestamp_nanos(message.timestamp.0 as i64);
            let shown = time.format("%Y-%m-%dT%H:%M:%S%.9f").to_string();
            json!(format!("{}Z", shown.trim_end_matches('0').trim_end_matches('.')))
        }
        "timestamp_source" => json!(message.timestamp_source.as_str()),
        "host" => json!(message.host.to_string()),
        "host_source" => json!(message.host.source()),
        "app" => json!(message.app),
        "pid" => json!(message.pid),
        "msgid" => json!(message.msgid),
        "structured_data" => json!(message.structured_data.map(|data| data.as_str())),
        "msg" => json!(std::str::from_utf8(message.msg).ok()),
        "msg_b64" => json!(BASE64.encode(message.msg)),
        _ => panic!("the corpus has a new key {key}"),
    }
}

#[derive(Default)]
struct Score {
    checked: u32,
    wrong: u32,
}

impl Score {
    fn check(&mut self, case: &Value, what: &str, expected: &Value, got: &Value) {
        self.checked += 1;
        if expected != got {
            self.wrong += 1;
            println!("{} {what}: expected {expected}, got {got}\n  {}", case["id"], case["raw"]);
        }
    }

    fn finish(&self) {
        println!("{} of {} fields are right", self.checked - self.wrong, self.checked);
        assert!(self.checked > 0 && self.wrong * 100 <= self.checked * 2, "{} fields are wrong", self.wrong);
    }
}

fn cases(kind: &str) -> impl Iterator<Item = Value> {
    let all = CORPUS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(move |case| case["kind"] == kind)
}

fn envelope<'a>(case: &Value, payload: &'a [u8]) -> Envelope<'a> {
    let received = chrono::DateTime::parse_from_rfc3339(text(&case["received"])).unwrap();
    let source: IpAddr = text(&case["source_ip"]).parse().unwrap();
    Envelope {
        position: Position(4711),
        origin: Origin {
            received_at: Timestamp(received.timestamp_nanos_opt().unwrap() as u64),
            source: Some((source, 514).into()),
            transport: Transport::Udp,
            input: "net",
            tag: b"syslog",
        },
        flags: Flags::NONE,
        kind: Kind::Syslog,
        payload,
    }
}

fn journal() -> JournalId {
    JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(77) }
}

fn chunks_of(case: &Value) -> Vec<Vec<u8>> {
    case["chunks_b64"].as_array().unwrap().iter().map(bytes).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64.decode(text(value)).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}
