//! Time per message of framing, parsing and rendering: `cargo bench --bench syslog`.
//!
//! No framework: each step runs over the messages of the corpus that devices really send in numbers, a few million
//! times, and the best of several rounds is printed, because the machine is shared.

use std::hint::black_box;
use std::time::Instant;

use twinlog::proto::envelope::{Envelope, Flags, Kind, Origin, Timestamp, Transport};
use twinlog::proto::position::{Incarnation, JournalId, Position};
use twinlog::proto::syslog::framing::{Framer, Step};
use twinlog::proto::syslog::message::{Context, Message};
use twinlog::proto::syslog::priority::Priority;
use twinlog::proto::syslog::render;
use twinlog::proto::syslog::shared_text::SharedText;
use twinlog::proto::syslog::zone::Zone;

const LINES: [(&str, &str); 6] = [
    (
        "sshd, RFC 3164",
        "<38>Mar 10 11:59:58 web1 sshd[20133]: Accepted publickey for netops from 198.51.100.40 port 51122 ssh2: ED25519 SHA256:0123456789abcdefghijklmnopqrstuvwxyzABCDEFG and some more text here",
    ),
    (
        "Cisco IOS",
        "<189>1042: rtr-edge1: 001039: Mar 10 11:59:58.123: %SYS-5-CONFIG_I: Configured from console by admin on vty0 (192.0.2.77)",
    ),
    (
        "Fortinet, no time",
        "<188>date=2026-03-10 time=11:59:58 logver=700140601 devname=FGVM-9 devid=FGVM000000000000 logid=0102043039 type=event subtype=user level=warning msg=\"User bob failed: bad password\"",
    ),
    (
        "rsyslog, ISO",
        "<30>2026-03-10T13:59:58.123456+02:00 web3 dockerd[901]: time=\"2026-03-10T11:59:58Z\" level=info msg=\"ignoring event\"",
    ),
    (
        "RFC 5424",
        "<30>1 2026-03-10T11:59:58.123456+00:00 web2 systemd 1 - - Started Session 4711 of User alice. And so on, and so on, until the line is as long as those that one sees",
    ),
    (
        "RFC 5424 with SD",
        "<165>1 2026-03-10T11:59:58.123Z mx1 mgd 3046 UI_LOGOUT [junos@2636.1.1.1.2.18 username=\"netops\" level=\"super-user\"] User 'netops' exiting configuration mode",
    ),
];

fn main() {
    let journal = JournalId { node: "agg-a".parse().expect("a node name"), incarnation: Incarnation(0x19a_a3f0) };
    for size in [64, 256, 1024] {
        frames(size);
    }
    println!();
    for (name, line) in LINES {
        let origin = Origin {
            received_at: Timestamp(1_773_144_000_123_456_789),
            source: Some("192.0.2.7:514".parse().expect("an address")),
            transport: Transport::Tcp,
            input: "net",
            tag: b"syslog",
        };
        let (position, kind) = (Position(123_456_789), Kind::Syslog);
        let envelope = Envelope { position, origin, flags: Flags::NONE, kind, payload: line.as_bytes() };
        let context = Context::new(&origin, Zone::UTC);
        let message = Message::parse(envelope.payload, &context).expect("a message");
        let mut shared = SharedText::new(&journal);
        let mut out = Vec::with_capacity(4096);
        let pri = best(|| {
            black_box(Priority::of(black_box(envelope.payload)));
        });
        let parse = best(|| drop(black_box(Message::parse(black_box(envelope.payload), &context))));
        let json = best(|| {
            out.clear();
            render::json(&mut out, &mut shared, &envelope, black_box(&message), false);
        });
        let rfc5424 = best(|| {
            out.clear();
            render::rfc5424(&mut out, &mut shared, &envelope, None, black_box(&message));
        });
        println!(
            "{name:18} {:4} bytes: pri {pri:4.1} parse {parse:5.0} json {json:5.0} rfc5424 {rfc5424:5.0} ns",
            line.len()
        );
    }
}

fn frames(size: usize) {
    let mut frame = vec![b'x'; size];
    frame[..4].copy_from_slice(b"<13>");
    frame[size - 1] = b'\n';
    let stream = frame.repeat(256 * 1024 / size);
    let frames = stream.len() / size;
    let mut framer = Framer::new(65_536);
    let mut pass = || {
        let mut at = 0;
        while let Step::Frame { payload, consumed, .. } = framer.next(&stream[at..]) {
            black_box(payload);
            at += consumed;
        }
    };
    let mut least = f64::MAX;
    for _ in 0..200 {
        let begin = Instant::now();
        pass();
        least = least.min(begin.elapsed().as_nanos() as f64 / frames as f64);
    }
    let mut search = f64::MAX;
    for _ in 0..200 {
        let begin = Instant::now();
        let mut at = 0;
        while let Some(end) = memchr::memchr2(b'\n', 0, &stream[at..]) {
            at += black_box(end) + 1;
        }
        search = search.min(begin.elapsed().as_nanos() as f64 / frames as f64);
    }
    println!("frame of {size:4} bytes: {least:4.1} ns; the search alone {search:4.1} ns");
}

/// Nanoseconds of one call of `step`, in the best of several rounds.
fn best(mut step: impl FnMut()) -> f64 {
    const CALLS: u32 = 20_000;
    let mut least = f64::MAX;
    for _ in 0..30 {
        let begin = Instant::now();
        for _ in 0..CALLS {
            step();
        }
        least = least.min(begin.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    least
}
