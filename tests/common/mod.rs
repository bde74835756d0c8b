//! The real binary in a directory of its own, and plain sockets around it.
//!
//! A [`Lab`] is a temporary directory, a [`Daemon`] is `twinlog run` in it, a [`Sink`] is where it delivers to. All end
//! with the test, also with a failing one, which then shows what the daemon logged. Nothing here waits for a time to
//! pass: [`wait_until`] waits for a fact.

// Every test file that says `mod common` uses its own part of it.
#![allow(dead_code, unused_imports)]

pub mod authority;
pub mod forward;
pub mod forward_server;
pub mod journal;
pub mod kills;
pub mod lab;
pub mod ports;
pub mod relp;
pub mod sink;

use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

pub use authority::{Authority, place, tls_client, tls_connect, tls_server};
pub use forward_server::{Answer, ForwardServer, Got};
pub use lab::{Daemon, Lab};
pub use ports::free_port;
pub use sink::{Framing, Sink};

/// How long anything may take that takes milliseconds on a machine of its own.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
///
/// # Panics
/// After [`SOON`], with `what`.
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_until_within(SOON, what, condition);
}

/// Waits until `condition` holds.
///
/// # Panics
/// After `limit`, with `what`.
#[track_caller]
pub fn wait_until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Messages `<13>1 … NAME 0`, `<13>1 … NAME 1` and so on: all different, one line each.
pub fn numbered(name: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| message(&format!("{name} {number}"))).collect()
}

/// An RFC 5424 message with this text.
pub fn message(text: &str) -> Vec<u8> {
    format!("<13>1 2026-03-10T12:00:00Z host app - - - {text}").into_bytes()
}

/// The messages with a line feed after each.
pub fn lines(messages: &[Vec<u8>]) -> Vec<u8> {
    messages.iter().flat_map(|message| [message.as_slice(), b"\n"].concat()).collect()
}

/// The message with its length before it: RFC 6587, 3.4.1.
pub fn counted(message: &[u8]) -> Vec<u8> {
    [format!("{} ", message.len()).as_bytes(), message].concat()
}

/// Connects and writes all of `bytes`.
pub fn connect_and_send(to: impl Into<SocketAddr>, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to.into()).expect("twinlog accepts connections");
    stream.write_all(bytes).expect("twinlog reads");
    stream
}

/// Waits until a count has not moved for so long: its senders have to wait.
///
/// # Panics
/// If it moves on for a minute.
#[track_caller]
pub fn wait_until_it_stands_still(so_long: Duration, count: impl Fn() -> usize) {
    let mut since = (0, Instant::now());
    wait_until_within(Duration::from_secs(60), "the senders have to wait", || {
        let now = count();
        if now != since.0 {
            since = (now, Instant::now());
        }
        now > 0 && since.1.elapsed() > so_long
    });
}

/// The input `net` for syslog over TCP, with more `keys`, and the output `out` to a port of this host.
pub fn tcp_to_tcp(input: u16, keys: &str, output: u16) -> String {
    format!(
        r#"
[[input.syslog]]
name = "net"
listen = "tcp://127.0.0.1:{input}"
{keys}

[[output.syslog]]
name = "out"
to = "tcp://127.0.0.1:{output}"
"#
    )
}

/// A socket that sends to `to` from the loopback address of the same family.
pub fn udp_to(to: impl Into<SocketAddr>) -> UdpSocket {
    let to = to.into();
    let from: SocketAddr = if to.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { ([0, 0, 0, 0, 0, 0, 0, 1], 0).into() };
    let socket = UdpSocket::bind(from).expect("a loopback address");
    socket.connect(to).expect("an address of the same family");
    socket
}

/// The loopback address with this port.
pub fn v4(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// The IPv6 loopback address with this port.
pub fn v6(port: u16) -> SocketAddr {
    ([0, 0, 0, 0, 0, 0, 0, 1], port).into()
}

/// In order, each once: equal multisets are equal vectors.
pub fn sorted(mut messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    messages.sort();
    messages
}

/// Without repeats, in the order of first arrival: what at-least-once delivery promises.
pub fn first_arrivals(messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut seen = std::collections::HashSet::new();
    messages.into_iter().filter(|message| seen.insert(message.clone())).collect()
}

/// Fails with the first difference instead of thousands of messages.
#[track_caller]
pub fn assert_same(got: &[Vec<u8>], expected: &[Vec<u8>]) {
    let differs = got.iter().zip(expected).position(|(got, expected)| got != expected);
    if let Some(at) = differs {
        panic!("message {at} is {}, not {}", shown(&got[at]), shown(&expected[at]));
    }
    assert_eq!(got.len(), expected.len(), "the number of messages; those that both have are the same");
}

fn shown(message: &[u8]) -> String {
    let text = message.escape_ascii().to_string();
    if text.len() > 300 { format!("{}… ({} bytes)", &text[..300], message.len()) } else { text }
}
