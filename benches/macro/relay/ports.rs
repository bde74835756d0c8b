//! Ports of this host that nobody else has.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

#[derive(Clone, Copy)]
pub struct Ports {
    /// UDP and TCP, where the relay listens.
    pub input: u16,
    /// Where it forwards to.
    pub sink: u16,
    /// Where a second output goes.
    pub second_sink: u16,
}

impl Ports {
    pub fn choose() -> Ports {
        Ports { input: free_port(), sink: free_port(), second_sink: free_port() }
    }
}

/// A port that nobody has, for UDP and TCP. Below the ephemeral range, so that none of the generator's thousands of
/// connections takes it before the relay or the sink does.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 10_000) as u16;
    let is_free = |port: &u16| {
        let address = (Ipv4Addr::LOCALHOST, *port);
        TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
    };
    std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000)
        .find(is_free)
        .expect("one of ten thousand ports is free")
}
