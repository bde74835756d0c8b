//! Whether the peer's process lives: a datagram to its port is answered by the process, or by its kernel when nobody has
//! the port any more.
//!
//! Both nodes have a UDP socket from `pair.port` to `pair.port`. A refusal is a proof of death only if the process answered
//! shortly before: a router that is no twinlog never has the port.
//!
//! Question and answer are text: a word, then the addresses that the sender advertises from. Over IPv6 those are link-local
//! ones, which no configuration names, and without which nobody knows that the master that was heard is the peer.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::proto::vrrp::BootTime;

const QUESTION: &str = "twinlog?";
const ANSWER: &str = "twinlog!";
/// A word and two addresses of at most 39 characters, each behind a space.
const MESSAGE_BYTES_MAX: usize = 8 + 2 * 40;
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
    question: String,
    answer: String,
    peers: Vec<IpAddr>,
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
        let (question, answer) = (QUESTION.to_owned(), ANSWER.to_owned());
        Ok(Probe { socket: socket.into(), question, answer, peers: Vec::new(), answered_at: None, ask_at: now })
    }

    /// Tells the peer from now on which addresses this node advertises from.
    pub(super) fn introduce(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: String = addresses.into_iter().map(|address| format!(" {address}")).collect();
        self.question = format!("{QUESTION}{addresses}");
        self.answer = format!("{ANSWER}{addresses}");
    }

    /// Which addresses the peer says that it advertises from; at most one of each family.
    pub(super) fn peers(&self) -> &[IpAddr] {
        &self.peers
    }

    /// Asks if it is time; true if the peer is dead.
    pub(super) fn ask_in_turn(&mut self, now: BootTime) -> bool {
        self.ask_at <= now && self.ask(now)
    }

    /// Asks; true if an earlier question was refused meanwhile, which is told here.
    pub(super) fn ask(&mut self, now: BootTime) -> bool {
        self.ask_at = now + EVERY;
        match self.socket.send(self.question.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.is_known(now),
            _ => false,
        }
    }

    /// Takes what came, and answers; true if the peer is dead.
    pub(super) fn receive(&mut self, now: BootTime) -> bool {
        let (mut bytes, mut refused) = ([0; MESSAGE_BYTES_MAX], false);
        for _ in 0..TAKEN_MAX {
            match self.socket.recv(&mut bytes) {
                Ok(length) => {
                    let Some((word, peers)) = read(&bytes[..length]) else { continue };
                    if word == QUESTION {
                        let _ = self.socket.send(self.answer.as_bytes());
                    }
                    // Whoever asks lives as well as whoever answers.
                    (self.peers, self.answered_at, refused) = (peers, Some(now), false);
                }
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

/// A question's or an answer's word, and where its sender advertises from; `None` for anything else.
fn read(message: &[u8]) -> Option<(&str, Vec<IpAddr>)> {
    let mut parts = std::str::from_utf8(message).ok()?.split(' ');
    let word = parts.next().filter(|word| [QUESTION, ANSWER].contains(word))?;
    let mut peers: Vec<IpAddr> = Vec::new();
    for address in parts.flat_map(str::parse::<IpAddr>) {
        if peers.iter().all(|other| other.is_ipv4() != address.is_ipv4()) {
            peers.push(address);
        }
    }
    Some((word, peers))
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_question_or_answer_is_nothing() {
        assert_eq!(read(b"twinlog? fe80::1 nonsense fe80::2"), Some((QUESTION, vec!["fe80::1".parse().unwrap()])));
        assert_eq!(read(b"twinlog!"), Some((ANSWER, Vec::new())));
        for other in [&b""[..], b"twinlog", b"twinlog?fe80::1", b"\xff\xfe"] {
            assert_eq!(read(other), None);
        }
    }

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
        answering.introduce([[192, 0, 2, 2].into(), "fe80::2".parse().unwrap()]);
        assert!(!asking.ask(at(2)));
        answering.receive(at(2));
        assert!(!asking.receive(at(2)) && asking.is_present(at(2)));
        assert_eq!(asking.peers(), [IpAddr::from([192, 0, 2, 2]), "fe80::2".parse().unwrap()]);
        drop(answering);
        asking.ask(at(10));
        assert!(asking.receive(at(10)));
        asking.ask(at(20_000));
        assert!(!asking.receive(at(20_000)), "who has the port by then is anybody's guess");
    }
}
