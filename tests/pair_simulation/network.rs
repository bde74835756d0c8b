//! The network between the two hosts: connections of the pair link, each with a delay of its own, and advertisements.
//!
//! A cut way holds bytes back, as TCP does, and loses advertisements and questions. The link and the advertisements are
//! cut each for itself.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use twinlog::proto::vrrp::advertisement::Advertisement;

/// How long a handshake is waited for.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// What a connection's end hears.
pub enum Heard {
    Bytes(Bytes),
    Closed,
}

struct Connection {
    /// On their way to each host.
    ways: [VecDeque<(Duration, Heard)>; 2],
    delay: Duration,
    open: [bool; 2],
}

/// See the module.
pub struct Network {
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Connections that a host is about to have, and when.
    fresh: [Vec<(Duration, u64)>; 2],
    adverts: [VecDeque<(Duration, Advertisement)>; 2],
    refusals: [Vec<Duration>; 2],
    /// Cut ways, by receiver.
    pub link_cut: [bool; 2],
    pub adverts_cut: [bool; 2],
    /// How many of a hundred advertisements are lost beside.
    pub loss: u8,
    delay_max: Duration,
}

impl Network {
    pub fn new(rng: &mut Rng) -> Network {
        Network {
            connections: BTreeMap::new(),
            next: 0,
            fresh: Default::default(),
            adverts: Default::default(),
            refusals: Default::default(),
            link_cut: [false; 2],
            adverts_cut: [false; 2],
            loss: 0,
            delay_max: Duration::from_millis([1, 5, 25][rng.usize(..3)]),
        }
    }

    pub fn heal(&mut self) {
        (self.link_cut, self.adverts_cut, self.loss) = ([false; 2], [false; 2], 0);
    }

    /// Whether both ways of the link are sound.
    pub fn is_whole(&self) -> bool {
        self.link_cut == [false; 2] && self.adverts_cut == [false; 2] && self.loss == 0
    }

    /// Dials the other host; when to dial again if that fails.
    pub fn dial(&mut self, rng: &mut Rng, now: Duration, from: usize, answers: bool) -> Option<Duration> {
        if self.link_cut != [false; 2] {
            return Some(now + CONNECT_MAX);
        }
        if !answers {
            return Some(now);
        }
        let delay = self.some_delay(rng);
        self.next += 1;
        self.connections.insert(self.next, Connection { ways: Default::default(), delay, open: [true; 2] });
        self.fresh[from].push((now + delay * 2, self.next));
        let accepted = now + delay + self.some_delay(rng) * 2;
        self.fresh[1 - from].push((accepted, self.next));
        None
    }

    /// A connection that is ready to be talked on at `host`.
    pub fn connected(&mut self, now: Duration, host: usize) -> Option<u64> {
        let at = self.fresh[host].iter().position(|(at, _)| *at <= now)?;
        Some(self.fresh[host].remove(at).1)
    }

    pub fn send(&mut self, rng: &mut Rng, now: Duration, connection: u64, from: usize, bytes: Bytes) {
        let jitter = Duration::from_millis(rng.u64(..3));
        let Some(connection) = self.connections.get_mut(&connection) else { return };
        let way = &mut connection.ways[1 - from];
        let at = way.back().map_or(Duration::ZERO, |(at, _)| *at).max(now + connection.delay + jitter);
        way.push_back((at, Heard::Bytes(bytes)));
    }

    pub fn receive(&mut self, now: Duration, connection: u64, host: usize) -> Option<Heard> {
        if self.link_cut[host] {
            return None;
        }
        let Some(connection) = self.connections.get_mut(&connection) else { return Some(Heard::Closed) };
        let way = &mut connection.ways[host];
        if way.front()?.0 > now {
            return None;
        }
        way.pop_front().map(|(_, heard)| heard)
    }

    /// The host's end is closed; the other one hears of it behind everything that is on its way.
    pub fn close(&mut self, now: Duration, number: u64, host: usize) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let way = &mut connection.ways[1 - host];
        let at = way.back().map_or(Duration::ZERO, |(at, _)| *at).max(now + connection.delay);
        way.push_back((at, Heard::Closed));
        self.forget(number, host);
    }

    /// The host's process is gone. Its kernel closes what it had, if there is a kernel.
    pub fn end_all(&mut self, now: Duration, host: usize, says_so: bool) {
        let open = self.connections.iter().filter(|(_, connection)| connection.open[host]);
        let open: Vec<u64> = open.map(|(number, _)| *number).collect();
        for number in open {
            if says_so {
                self.close(now, number, host);
            } else {
                self.forget(number, host);
            }
        }
        self.fresh[host].clear();
        self.adverts[host].clear();
        self.refusals[host].clear();
    }

    /// Every connection breaks at both ends, with what is on its way.
    pub fn reset(&mut self) {
        self.connections.clear();
    }

    fn forget(&mut self, number: u64, host: usize) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.open[host] = false;
            if connection.open == [false; 2] {
                self.connections.remove(&number);
            }
        }
    }

    pub fn advertise(&mut self, rng: &mut Rng, now: Duration, from: usize, advertisement: Advertisement) {
        let to = 1 - from;
        if !self.adverts_cut[to] && rng.u8(..100) >= self.loss {
            let at = self.adverts[to].back().map_or(Duration::ZERO, |(at, _)| *at).max(now + self.some_delay(rng));
            self.adverts[to].push_back((at, advertisement));
        }
    }

    pub fn advertisement(&mut self, now: Duration, host: usize) -> Option<Advertisement> {
        self.adverts[host].front().filter(|(at, _)| *at <= now)?;
        self.adverts[host].pop_front().map(|(_, advertisement)| advertisement)
    }

    /// Asks whether the other host's process lives; its kernel refuses if there is a kernel and no process.
    pub fn probe(&mut self, rng: &mut Rng, now: Duration, from: usize, refuses: bool) {
        if refuses && self.link_cut == [false; 2] {
            let at = now + self.some_delay(rng) * 2;
            self.refusals[from].push(at);
        }
    }

    pub fn refusal(&mut self, now: Duration, host: usize) -> bool {
        let before = self.refusals[host].len();
        self.refusals[host].retain(|at| *at > now);
        self.refusals[host].len() < before
    }

    pub fn some_delay(&self, rng: &mut Rng) -> Duration {
        Duration::from_micros(rng.u64(200..=self.delay_max.as_micros() as u64))
    }
}
