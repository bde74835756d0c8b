//! Whether the peer's process lives: a datagram to its port is answered by the process, or by its kernel when nobody has
//! the port any more.
//!
//! Both nodes have a UDP socket from `pair.port` to `pair.port`. A refusal is a proof of death only if the process answered
//! shortly before: a router that is no twinlog never has the port.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::proto::vrrp::BootTime;

const QUESTION: &[u8] = b"twinlog?";
const ANSWER: &[u8] = b"twinlog!";
/// Between two questions while nothing is late.
const EVERY: Duration = Duration::from_secs(1);
/// How long an answer proves that the peer is a twinlog.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// How long an answer says that the peer is there.
const PRESENT_FOR: Duration = Duration::from_secs(3);
/// Datagrams taken at a time: a flood must not keep the thread.
const TAKEN_MAX: usize = 32;

/// The question, and what came of it.
#[derive(Debug)]
pub(super) struct Probe {
    socket: UdpSocket,
    answered_at: Option<BootTime>,
    ask_at: BootTime,
}

impl Probe {
    /// A socket between the two nodes. Its own address may come later.
    pub(super) fn open(own: IpAddr, peer: IpAddr, port: u16, now: BootTime) -> io::Result<Probe> {
        let domain = if own.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        match domain {
            Domain::IPV4 => socket.set_freebind_v4(true)?,
            _ => socket.set_freebind_v6(true)?,
        }
        socket.bind(&SocketAddr::new(own, port).into())?;
        // Without a route there is nobody to ask, now.
        let _ = socket.connect(&SocketAddr::new(peer, port).into());
        Ok(Probe { socket: socket.into(), answered_at: None, ask_at: now })
    }

    /// Asks if it is time; true if the peer is dead.
    pub(super) fn ask_in_turn(&mut self, now: BootTime) -> bool {
        self.ask_at <= now && self.ask(now)
    }

    /// Asks; true if an earlier question was refused meanwhile, which is told here.
    pub(super) fn ask(&mut self, now: BootTime) -> bool {
        self.ask_at = now + EVERY;
        match self.socket.send(QUESTION) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.is_known(now),
            _ => false,
        }
    }

    /// Takes what came, and answers; true if the peer is dead.
    pub(super) fn receive(&mut self, now: BootTime) -> bool {
        let (mut bytes, mut refused) = ([0; 16], false);
        for _ in 0..TAKEN_MAX {
            match self.socket.recv(&mut bytes) {
                // Whoever asks lives as well as whoever answers.
                Ok(length) if [QUESTION, ANSWER].contains(&&bytes[..length]) => {
                    if bytes[..length] == *QUESTION {
                        let _ = self.socket.send(ANSWER);
                    }
                    self.answered_at = Some(now);
                    refused = false;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused = true,
                Err(_) => break,
            }
        }
        refused && self.is_known(now)
    }

    /// When to ask next.
    pub(super) fn ask_at(&self) -> BootTime {
        self.ask_at
    }

    /// Whether the peer's process answered lately.
    pub(super) fn is_present(&self, now: BootTime) -> bool {
        self.answered_at.is_some_and(|at| now.since(at) < PRESENT_FOR)
    }

    fn is_known(&self, now: BootTime) -> bool {
        self.answered_at.is_some_and(|at| now.since(at) < KNOWN_FOR)
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> BootTime {
        BootTime(Duration::from_millis(milliseconds))
    }

    /// Loopback delivers before `send` returns, so nothing here waits.
    #[test]
    fn a_process_that_answered_is_proven_dead_and_one_that_never_did_is_not() {
        let (one, two) = ([127, 7, 7, 1].into(), [127, 7, 7, 2].into());
        let port = UdpSocket::bind((one, 0)).unwrap().local_addr().unwrap().port();
        let mut asking = Probe::open(one, two, port, at(0)).unwrap();
        asking.ask(at(0));
        assert!(!asking.receive(at(1)), "it was never there");
        let mut answering = Probe::open(two, one, port, at(0)).unwrap();
        assert!(!asking.ask(at(2)));
        answering.receive(at(2));
        assert!(!asking.receive(at(2)) && asking.is_present(at(2)));
        drop(answering);
        asking.ask(at(10));
        assert!(asking.receive(at(10)));
        asking.ask(at(20_000));
        assert!(!asking.receive(at(20_000)), "who has the port by then is anybody's guess");
    }
}
