//! Frames that real clients sent, and handshakes, against `tests/fixtures/devices.jsonl`; then the same frames damaged.
//!
//! A case is the bytes of a connection. They are cut into frames, each is read, accepted and answered, and compared:
//! tag, mode, events, option, acknowledgement.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use twinlog::proto::forward::ack::write_ack;
use twinlog::proto::forward::compression::{Encoding, inflate};
use twinlog::proto::forward::entry::{Entries, Entry, GroupMarker};
use twinlog::proto::forward::handshake::{Client, HANDSHAKE_BYTES_MAX};
use twinlog::proto::forward::handshake::{Credentials, HandshakeError, Security, Server, User};
use twinlog::proto::forward::json::write_json;
use twinlog::proto::forward::message::{Accepted, Mode, Request, Scratch};
use twinlog::proto::forward::render;
use twinlog::proto::forward::scan::{Scanner, Step};

const CORPUS: &str = include_str!("fixtures/devices.jsonl");
const MAX_CHUNK: usize = 64 << 20;

#[test]
fn frames_of_real_clients_are_read_and_answered() {
    let mut scratch = Scratch::default();
    let mut count = 0;
    for case in cases("forward") {
        let stream = unhex(text(&case["hex"]));
        let frames = frames(&stream);
        let expected = case["expect"]["messages"].as_array().unwrap();
        assert_eq!(frames.len(), expected.len(), "{}", case["id"]);
        for (bytes, expected) in frames.iter().zip(expected) {
            assert_eq!(&read(bytes, &mut scratch), expected, "{}", case["id"]);
            count += 1;
        }
    }
    assert_eq!(count, 20);
}

#[test]
fn frames_are_found_wherever_reads_end() {
    for case in cases("forward") {
        let stream = unhex(text(&case["hex"]));
        let whole = frames(&stream);
        for split in 0..=stream.len() {
            assert_eq!(frames_of_reads(&stream, &[split, stream.len()]), whole, "{} at {split}", case["id"]);
        }
        let byte_by_byte: Vec<usize> = (0..=stream.len()).collect();
        assert_eq!(frames_of_reads(&stream, &byte_by_byte), whole, "{}", case["id"]);
    }
}

#[test]
fn handshakes_have_the_digests_of_the_corpus() {
    let mut count = 0;
    for case in cases("handshake") {
        let field = |name: &str| text(&case[name]).to_owned();
        let expected = |name: &str| text(&case["expect"][name]).as_bytes().to_vec();
        let (nonce, auth) = (unhex(&field("nonce_hex")), unhex(&field("auth_salt_hex")));
        let user = User { name: field("username"), password: field("password").into() };
        let security = Security {
            self_hostname: field("server_hostname"),
            shared_key: field("shared_key").into(),
            users: if auth.is_empty() { vec![] } else { vec![user] },
        };
        let random: [u8; 32] = [nonce, [auth, vec![0; 16]].concat()[..16].to_vec()].concat().try_into().unwrap();
        let server = Server::new(&security, random);
        assert!(server.helo().len() < 512);
        let str8 = |bytes: &[u8]| [&[0xd9, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let ping = [
            b"\x96\xa4PING".to_vec(),
            str8(field("client_hostname").as_bytes()),
            str8(&unhex(&field("shared_key_salt_hex"))),
            str8(&expected("ping_shared_key_hexdigest")),
            str8(field("username").as_bytes()),
            str8(&expected("ping_password_hexdigest")),
        ];
        let verdict = server.handle_ping(&security, &ping.concat());
        assert_eq!(verdict.outcome.unwrap().hostname, field("client_hostname"), "{}", case["id"]);
        assert!(verdict.reply.ends_with(&expected("pong_shared_key_hexdigest")), "{}", case["id"]);
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
fn our_client_sends_the_digest_of_the_corpus() {
    // The salt of d-166 is the hexadecimal form of these 16 bytes.
    let case = cases("handshake").find(|case| case["id"] == "d-166").unwrap();
    let salt: [u8; 16] = unhex("0123456789abcdef0123456789abcdef").try_into().unwrap();
    let credentials = Credentials {
        self_hostname: text(&case["client_hostname"]).into(),
        shared_key: text(&case["shared_key"]).into(),
        user: None,
    };
    let helo =
        [&b"\x92\xa4HELO\x83\xa5nonce\xc4\x10"[..], &unhex(text(&case["nonce_hex"])), b"\xa4auth\xa0\xa9keepalive\xc3"];
    let (ping, awaiting) = Client::new(credentials, salt).handle_helo(&helo.concat()).unwrap();
    assert!(ping.len() <= HANDSHAKE_BYTES_MAX);
    let digest = text(&case["expect"]["ping_shared_key_hexdigest"]).as_bytes();
    assert!(ping.windows(digest.len()).any(|part| part == digest));
    let proof = text(&case["expect"]["pong_shared_key_hexdigest"]).as_bytes();
    let pong = |proof: &[u8]| [b"\x95\xa4PONG\xc3\xa0\xb1agg-a.example.net\xd9\x80", proof].concat();
    assert_eq!(awaiting.handle_pong(&pong(proof)).unwrap().hostname, "agg-a.example.net");
    let credentials = Credentials { self_hostname: "n".into(), shared_key: b"x".to_vec(), user: None };
    let (_, awaiting) = Client::new(credentials, salt).handle_helo(&helo.concat()).unwrap();
    assert_eq!(awaiting.handle_pong(&pong(proof)), Err(HandshakeError::Server("agg-a.example.net".into())));
}

/// Damaged frames: nothing panics, and what is accepted is sound: a frame made of it is scanned, read and accepted
/// again, with the same entries and none invalid.
#[test]
fn damaged_frames_are_refused_or_sound() {
    let seeds: Vec<Vec<u8>> = cases("forward").map(|case| unhex(text(&case["hex"]))).collect();
    let mut random = fastrand::Rng::with_seed(24224);
    let (mut scratch, mut again) = (Scratch::new(1 << 20), Scratch::new(1 << 20));
    let (mut accepted_count, mut invalid_count) = (0, 0);
    for _ in 0..100_000 {
        let mut stream = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..random.usize(1..4) {
            mutate(&mut stream, &mut random);
        }
        let mut scanner = Scanner::new(MAX_CHUNK);
        let mut rest = &stream[..];
        while let Ok(Step::Complete(length)) = scanner.scan(rest) {
            let (bytes, behind) = rest.split_at(length);
            rest = behind;
            let Ok(Request::Frame(frame)) = Request::parse(bytes) else { continue };
            if let Some(chunk) = frame.option.chunk {
                let mut ack = Vec::new();
                write_ack(&mut ack, chunk);
                assert_eq!(Scanner::new(511).scan(&ack), Ok(Step::Complete(ack.len())));
            }
            let Ok(accepted) = frame.accept(&mut scratch) else { continue };
            assert_sound(frame.tag, &accepted, &mut again);
            accepted_count += 1;
            invalid_count += accepted.invalid;
        }
    }
    assert!(accepted_count > 10_000 && invalid_count > 1000, "{accepted_count} {invalid_count}");
}

fn assert_sound(tag: &[u8], accepted: &Accepted<'_>, scratch: &mut Scratch) {
    let mut out = Vec::new();
    render::packed_forward(&mut out, tag, accepted.entries, accepted.events, None);
    assert_eq!(Scanner::new(MAX_CHUNK).scan(&out), Ok(Step::Complete(out.len())));
    let Ok(Request::Frame(frame)) = Request::parse(&out) else { panic!("{out:02x?}") };
    assert_eq!(&frame.accept(scratch).unwrap(), &Accepted { invalid: 0, ..*accepted });
    let mut packed = Vec::new();
    inflate(&mut packed, accepted.entries, 1 << 20).unwrap();
    for entry in Entries::new(&packed) {
        write_json(&mut Vec::new(), entry.record).unwrap();
    }
    let mut plain = Vec::new();
    assert_eq!(render::plain(&mut plain, &packed), accepted.events);
    assert_eq!(Entries::new(&plain).filter(|entry| entry.metadata.is_none()).count() as u64, accepted.events);
}

fn mutate(stream: &mut Vec<u8>, random: &mut fastrand::Rng) {
    // What headers are made of, so that a damage is more often another structure than another letter.
    const BYTES: [u8; 18] =
        [0x80, 0x81, 0x90, 0x92, 0xa0, 0xc0, 0xc1, 0xc4, 0xc6, 0xc7, 0xd7, 0xd9, 0xdb, 0xdc, 0xdd, 0xdf, 0xff, 0x00];
    let at = random.usize(..stream.len());
    match random.u8(..5) {
        0 => stream[at] ^= 1 << random.u8(..8),
        1 => stream[at] = BYTES[random.usize(..BYTES.len())],
        2 => stream.insert(at, BYTES[random.usize(..BYTES.len())]),
        3 if stream.len() > 1 => drop(stream.remove(at)),
        _ => stream.truncate(at + 1),
    }
}

/// The frames of a stream that is there at once.
fn frames(stream: &[u8]) -> Vec<&[u8]> {
    frames_of_reads(stream, &[stream.len()])
}

/// The frames of a stream whose reads end at `ends`.
fn frames_of_reads<'a>(stream: &'a [u8], ends: &[usize]) -> Vec<&'a [u8]> {
    let (mut scanner, mut start, mut frames) = (Scanner::new(MAX_CHUNK), 0, Vec::new());
    for &end in ends {
        while start < end {
            match scanner.scan(&stream[start..end]).unwrap() {
                Step::Complete(length) => {
                    frames.push(&stream[start..start + length]);
                    start += length;
                }
                Step::Incomplete { needed, .. } => {
                    assert!(needed > end - start && start + needed <= stream.len());
                    break;
                }
            }
        }
    }
    assert_eq!(start, stream.len());
    frames
}

/// A frame as the corpus describes one.
fn read(bytes: &[u8], scratch: &mut Scratch) -> Value {
    let Ok(Request::Frame(frame)) = Request::parse(bytes) else { panic!("{bytes:02x?}") };
    let accepted = frame.accept(scratch).unwrap();
    assert_eq!(accepted.invalid, 0);
    assert_eq!(accepted.encoding, Encoding::of(accepted.entries));
    let mut packed = Vec::new();
    inflate(&mut packed, accepted.entries, 1 << 20).unwrap();
    let events: Vec<Value> = Entries::new(&packed).map(|entry| event(&entry)).collect();
    let markers = events.iter().filter(|event| event.get("group_marker").is_some()).count();
    assert_eq!(accepted.events as usize, events.len() - markers);
    let mode = match frame.mode {
        Mode::Message => "Message",
        Mode::Forward => "Forward",
        Mode::PackedForward => "PackedForward",
        Mode::CompressedPackedForward(Encoding::Gzip) => "CompressedPackedForward/gzip",
        Mode::CompressedPackedForward(_) => "CompressedPackedForward/zstd",
    };
    let option = frame.option.raw.map_or(Value::Null, |mut raw| value(&mut raw));
    let mut message = json!({
        "mode": mode,
        "tag": String::from_utf8(frame.tag.to_vec()).unwrap(),
        "events": events,
        "option": option,
    });
    if let Some(chunk) = frame.option.chunk {
        let mut ack = Vec::new();
        write_ack(&mut ack, chunk);
        message["expected_ack_hex"] = ack.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    }
    message
}

fn event(entry: &Entry<'_>) -> Value {
    let mut record = entry.record;
    let mut event = json!({
        "sec": entry.time.seconds(),
        "nsec": entry.time.nanos(),
        "record": value(&mut record),
    });
    if let Some(mut metadata) = entry.metadata {
        event["metadata"] = value(&mut metadata);
    }
    match entry.time.group_marker() {
        None => {}
        Some(GroupMarker::Start) => event["group_marker"] = "start".into(),
        Some(GroupMarker::End) => event["group_marker"] = "end".into(),
    }
    event
}

/// MessagePack in the corpus' notation, read with `rmp` directly, so that the codec does not check itself.
fn value(bytes: &mut &[u8]) -> Value {
    use rmp::decode::{read_array_len, read_bin_len, read_f64, read_int, read_map_len, read_str_len};
    let split = |bytes: &mut &[u8], length: u32| bytes.split_off(..length as usize).unwrap().to_vec();
    match bytes[0] {
        0xc0 => bytes.split_off(..1).map(|_| Value::Null).unwrap(),
        marker @ (0xc2 | 0xc3) => bytes.split_off(..1).map(|_| Value::Bool(marker == 0xc3)).unwrap(),
        0xcb => read_f64(bytes).unwrap().into(),
        0xc4..=0xc6 => {
            let length = read_bin_len(bytes).unwrap();
            json!({ "$bin_b64": BASE64.encode(split(bytes, length)) })
        }
        0xa0..=0xbf | 0xd9..=0xdb => {
            let length = read_str_len(bytes).unwrap();
            String::from_utf8(split(bytes, length))
                .map_or_else(|error| json!({ "$str_b64": BASE64.encode(error.as_bytes()) }), Value::String)
        }
        0x90..=0x9f | 0xdc | 0xdd => {
            let length = read_array_len(bytes).unwrap();
            (0..length).map(|_| value(bytes)).collect()
        }
        0x80..=0x8f | 0xde | 0xdf => {
            let length = read_map_len(bytes).unwrap();
            let pairs = (0..length).map(|_| (text(&value(bytes)).to_owned(), value(bytes)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
        _ => read_int::<i64, _>(bytes).unwrap().into(),
    }
}

fn cases(kind: &str) -> impl Iterator<Item = Value> {
    CORPUS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(move |case| case["kind"] == kind)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
