//! Time per entry of scanning, accepting and rendering fluent-forward: `cargo bench --bench forward`.
//!
//! No framework, as in `syslog.rs`: the best of several rounds is printed, because the machine is shared.

use std::hint::black_box;
use std::time::Instant;

use twinlog::proto::envelope::Timestamp;
use twinlog::proto::forward::compression::gzip;
use twinlog::proto::forward::entry::Entries;
use twinlog::proto::forward::json::write_json;
use twinlog::proto::forward::message::{Request, Scratch};
use twinlog::proto::forward::render::{packed_forward, syslog_entry};
use twinlog::proto::forward::scan::{Scanner, Step};
use twinlog::proto::syslog::message::{Context, Message};
use twinlog::proto::syslog::zone::Zone;

const ENTRIES: u32 = 10_000;

/// One key and a short text; what fluent-bit's tail sends of a container, nested time included.
const SMALL: &[u8] = b"\x92\xd7\x00\x69\xb0\x07\xbe\x00\x00\x00\x05\x81\xa7message\xbbone line of a small log ...";
const CONTAINER: &[u8] = b"\x92\x92\xd7\x00\x69\xb0\x07\xbe\x00\x00\x00\x05\x80\x84\xa3log\xd9\x61\
    2026-03-10T11:59:58.123456Z INFO  request finished method=GET path=/api/v1/items status=200 ms=12\
    \xa6stream\xa6stdout\xa4time\xbe2026-03-10T11:59:58.123456789Z\xaakubernetes\x84\xa8pod_name\xb7web-5d9c7b8f6d-x2x4z-01\
    \xaenamespace_name\xa7default\xa6labels\x82\xa3app\xa3web\xaapod-number\x07\xa4host\xa6node-1";

const LINE: &[u8] = b"<38>Mar 10 11:59:58 web1 sshd[20133]: Accepted publickey for netops from 198.51.100.40 port 51122 ssh2: ED25519 SHA256:0123456789abcdefghijklmnopqrstuvwxyzABCDEFG and some more text here";

fn main() {
    for (name, entry) in [("small", SMALL), ("container", CONTAINER)] {
        let count = Entries::new(entry).map(|e| e.raw.len()).sum::<usize>();
        assert_eq!(count, entry.len(), "{name}: the entry is sound");
        let packed = entry.repeat(ENTRIES as usize);
        println!("{name}, {} bytes an entry", entry.len());
        let forward = [b"\x92\xa1t\xdd", &ENTRIES.to_be_bytes()[..], &packed].concat();
        let mut packed_frame = Vec::new();
        packed_forward(&mut packed_frame, b"t", &packed, ENTRIES.into(), None);
        let (mut blob, mut gzip_frame) = (Vec::new(), Vec::new());
        gzip(&mut blob, &packed);
        packed_forward(&mut gzip_frame, b"t", &blob, ENTRIES.into(), None);
        per_entry("scan, Forward at once", || scan(&forward, forward.len()));
        per_entry("scan, Forward in reads of 16 KiB", || scan(&forward, 16 << 10));
        let mut scratch = Scratch::default();
        per_entry("parse + accept, Forward", || accept(&forward, &mut scratch));
        per_entry("parse + accept, PackedForward", || accept(&packed_frame, &mut scratch));
        per_entry("parse + accept, gzip", || accept(&gzip_frame, &mut scratch));
        let mut out = Vec::new();
        per_entry("iterate + JSON", || {
            out.clear();
            for entry in Entries::new(&packed) {
                write_json(&mut out, entry.record).expect("a sound record");
            }
            black_box(out.len());
        });
    }
    println!("syslog message, {} bytes", LINE.len());
    let context = Context {
        received: Timestamp(1_773_144_000_123_456_789),
        source: Some("192.0.2.7".parse().expect("an address")),
        zone: Zone::UTC,
    };
    per_entry("parse", || {
        (0..ENTRIES).for_each(|_| drop(black_box(Message::parse(black_box(LINE), &context))));
    });
    let message = Message::parse(LINE, &context).expect("a message");
    let mut out = Vec::new();
    per_entry("render as entry", || {
        out.clear();
        (0..ENTRIES).for_each(|_| syslog_entry(&mut out, black_box(&message)));
        black_box(out.len());
    });
}

fn scan(frame: &[u8], read: usize) {
    let mut scanner = Scanner::new(256 << 20);
    let mut end = 0;
    loop {
        end = frame.len().min(end + read);
        if let Step::Complete(length) = scanner.scan(black_box(&frame[..end])).expect("a sound frame") {
            assert_eq!(length, frame.len());
            return;
        }
    }
}

fn accept(frame: &[u8], scratch: &mut Scratch) {
    let Ok(Request::Frame(frame)) = Request::parse(black_box(frame)) else { panic!("a sound frame") };
    assert_eq!(frame.accept(scratch).expect("sound entries").events, u64::from(ENTRIES));
}

fn per_entry(name: &str, mut round: impl FnMut()) {
    let best = (0..200)
        .map(|_| {
            let begin = Instant::now();
            round();
            begin.elapsed()
        })
        .min()
        .expect("there are rounds");
    println!("  {name:<36} {:7.1} ns", best.as_secs_f64() * 1e9 / f64::from(ENTRIES));
}
