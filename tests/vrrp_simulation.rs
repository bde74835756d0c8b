//! Two or three routers on a network that loses, delays and parts, with hosts that stand still, crash and come back.
//!
//! `SEED=7 cargo test --test vrrp_simulation` runs one seed; without it a fixed list, `TWINLOG_SEEDS=20000` a longer one.
//! The same seed gives the same trace. Each fault is followed by a sound time, in which one master must be found within a
//! master down interval and stay; what is asked of the time of the fault itself stands at [`Fault`].

#![allow(clippy::unwrap_used)]

mod seeds;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use fastrand::Rng;
use twinlog::proto::vrrp::advertisement::{Advertisement, ChecksumForm, Dialect, Expected};
use twinlog::proto::vrrp::datagram::Datagram;
use twinlog::proto::vrrp::interval::{Centiseconds, Interval};
use twinlog::proto::vrrp::settings::{Member, Settings};
use twinlog::proto::vrrp::vip_list::VipList;
use twinlog::proto::vrrp::virtual_router::{Output, State, VirtualRouter};
use twinlog::proto::vrrp::{BootTime, Family, Priority, Version, Vrid};

const FAULTS: usize = 10;
const SEEDS: u64 = 400;

#[test]
fn one_master_is_found_after_every_fault() {
    seeds::each(SEEDS, &[], |seed| drop(Simulation::new(seed).run()));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    seeds::same_trace(20, |seed| Simulation::new(seed).run());
}

/// What goes wrong, alone each time, and what is asked meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// At most so many packets in a row are lost on each way. Two masters see each other as soon as one gets through.
    Loss(u32),
    /// Ways are cut: any of them, in one or both directions, in one or both families. Two masters are what a cut explains.
    Cut,
    /// A host stands still, its packets wait or are lost. It may hold the addresses as long as it does not know better.
    Stall { deaf: bool },
    /// A host is gone and comes back later; with or without a word.
    Restart { crash: bool },
    /// The master hands over. The addresses are always held.
    HandOver,
}

/// Shows the trace of one seed that fails.
impl Drop for Simulation {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("SEED").is_some() {
            eprintln!("{}{:?} failed", self.trace, self.now);
        }
    }
}

struct Node {
    addresses: [IpAddr; 2],
    priority: Priority,
    /// `None` while the host is down.
    router: Option<VirtualRouter>,
    /// When its clock began.
    booted: Duration,
    asleep: bool,
    deaf: bool,
    inbox: Vec<Vec<u8>>,
    /// Only the wake-up of this number counts.
    alarm: u64,
    holds: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake { node: usize, alarm: u64 },
    Deliver { node: usize, packet: Vec<u8> },
}

struct Simulation {
    rng: Rng,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    nodes: Vec<Node>,
    families: usize,
    interval: Interval,
    preempt: bool,
    /// Longest way of a packet, and longest delay of a wake-up: a fraction of an interval each.
    delay: Duration,
    /// When the last packet of a way arrives: none overtakes another.
    arrivals: BTreeMap<(usize, usize), Duration>,
    /// Packets lost in a row, by way and family.
    lost: BTreeMap<(usize, usize, Family), u32>,
    /// Cut ways, by family.
    cut: Vec<(usize, usize, Family)>,
    fault: Option<Fault>,
    /// When the last fault ended.
    sound_since: Duration,
    /// Who holds the addresses, and since when just these.
    holders: Vec<usize>,
    holders_since: Duration,
    trace: String,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut rng = Rng::with_seed(seed);
        let interval = Interval::V3(Centiseconds::new([1, 3, 10, 100][rng.usize(..4)]).unwrap());
        let equal = rng.bool();
        let node = |number: usize| Node {
            addresses: [[10, 77, 0, number as u8 + 1].into(), format!("fe80::{}", 9 - number).parse().unwrap()],
            priority: Priority(if equal { 100 } else { [100, 150, 254][number] }),
            router: None,
            booted: Duration::ZERO,
            asleep: false,
            deaf: false,
            inbox: Vec::new(),
            alarm: 0,
            holds: false,
        };
        Simulation {
            now: Duration::from_secs(1000),
            events: BinaryHeap::new(),
            sequence: 0,
            nodes: (0..rng.usize(2..=3)).map(node).collect(),
            families: rng.usize(1..=2),
            interval,
            preempt: rng.bool(),
            delay: interval.duration() / [10, 20, 100][rng.usize(..3)],
            arrivals: BTreeMap::new(),
            lost: BTreeMap::new(),
            cut: Vec::new(),
            fault: None,
            sound_since: Duration::from_secs(1000),
            holders: Vec::new(),
            holders_since: Duration::from_secs(1000),
            trace: String::new(),
            rng,
        }
    }

    fn run(mut self) -> String {
        (0..self.nodes.len()).for_each(|node| self.boot(node));
        self.settle();
        for _ in 0..FAULTS {
            let fault = self.suffer();
            // One that has just become master may find a better one.
            let settled = self.now - self.holders_since > self.interval.duration() + self.answer();
            let master = self.only_master().filter(|_| settled);
            self.settle();
            let hears_all = matches!(fault, Fault::Stall { deaf: false } | Fault::Restart { .. });
            if hears_all && !self.preempt && master.is_some() {
                assert_eq!(self.only_master(), master, "the addresses moved although they were held");
            }
        }
        std::mem::take(&mut self.trace)
    }

    /// A time in which nothing goes wrong: one master is found, and stays.
    fn settle(&mut self) {
        self.run_for(self.master_down_interval_max() + self.answer());
        let master = self.only_master().expect("one master");
        if self.preempt {
            let best = self.nodes.iter().map(|node| node.priority).max().unwrap();
            assert_eq!(self.nodes[master].priority, best, "the best is master");
        }
        let moves = self.trace.matches("Became").count();
        self.run_for(self.interval.duration() * 10);
        assert_eq!(self.trace.matches("Became").count(), moves, "the addresses moved for no reason");
    }

    /// One fault, from its begin to its end.
    fn suffer(&mut self) -> Fault {
        let fault = match self.rng.u8(..10) {
            0..2 => Fault::Loss(self.rng.u32(1..8)),
            2..5 => Fault::Cut,
            5..7 => Fault::Stall { deaf: self.rng.bool() },
            7..9 => Fault::Restart { crash: self.rng.bool() },
            _ => Fault::HandOver,
        };
        writeln!(self.trace, "{:?} {fault:?}", self.now).unwrap();
        let time = self.interval.duration() * self.rng.u32(5..150) / 10;
        let node = self.rng.usize(..self.nodes.len());
        self.fault = Some(fault);
        match fault {
            Fault::Loss(_) => self.run_for(time * 3),
            Fault::Cut => self.cut(time),
            Fault::Stall { deaf } => self.stall(node, deaf, time),
            Fault::Restart { crash } => self.restart(node, crash, time),
            Fault::HandOver => self.hand_over(),
        }
        self.fault = None;
        self.sound_since = self.now;
        fault
    }

    fn cut(&mut self, time: Duration) {
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                let families = [Family::V4, Family::V6].map(|family| (from, to, family));
                self.cut.extend(families.into_iter().filter(|_| self.rng.u8(..3) > 0));
            }
        }
        self.run_for(time);
        self.cut.clear();
    }

    fn stall(&mut self, node: usize, deaf: bool, time: Duration) {
        (self.nodes[node].asleep, self.nodes[node].deaf) = (true, deaf);
        self.run_for(time);
        (self.nodes[node].asleep, self.nodes[node].deaf) = (false, false);
        let was_master = self.nodes[node].holds;
        let has_successor = self.nodes.iter().filter(|node| node.holds).count() > 1;
        self.wake(node);
        assert!(!(was_master && has_successor && self.nodes[node].holds), "whoever stood still listens first");
    }

    fn restart(&mut self, node: usize, crash: bool, time: Duration) {
        if !crash {
            self.nodes[node].router.as_mut().unwrap().handle_shutdown();
            self.do_outputs(node);
        }
        self.nodes[node].router = None;
        self.nodes[node].inbox.clear();
        self.nodes[node].holds = false;
        self.observe();
        self.run_for(time);
        self.boot(node);
    }

    fn hand_over(&mut self) {
        let master = self.only_master().expect("the time before was sound");
        let priority = self.nodes[master].priority;
        self.set_priority(master, Priority::LEAVING);
        self.run_for(self.interval.duration() + self.answer());
        assert!(!self.nodes[master].holds, "handed over");
        self.set_priority(master, priority);
        // A wait that has begun with the skew of priority 0 goes on.
        self.run_for(self.interval.duration());
    }

    fn set_priority(&mut self, node: usize, priority: Priority) {
        let now = self.local_time(node);
        self.nodes[node].router.as_mut().unwrap().set_priority(now, priority);
        self.do_outputs(node);
    }

    fn boot(&mut self, number: usize) {
        let vips = [["10.77.0.100"], ["fd77::100"]];
        let member = |family: usize| Member {
            address: self.nodes[number].addresses[family],
            peers: if family == 0 { self.nodes.iter().map(|node| node.addresses[0]).collect() } else { Vec::new() },
            vips: VipList::new(&vips[family].map(|vip| vip.parse().unwrap())).unwrap(),
        };
        let settings = Settings {
            vrid: Vrid::new(77).unwrap(),
            interval: self.interval,
            priority: self.nodes[number].priority,
            preempt: self.preempt,
            preempt_delay: Duration::ZERO,
            members: (0..self.families).map(member).collect(),
        };
        let node = &mut self.nodes[number];
        node.booted = self.now - Duration::from_millis(self.rng.u64(..500_000));
        node.router = Some(VirtualRouter::new(settings).unwrap());
        let now = self.local_time(number);
        self.nodes[number].router.as_mut().unwrap().handle_startup(now);
        self.wake(number);
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Reverse((at, _, event)) = self.events.pop().unwrap();
            self.now = at;
            match event {
                Event::Wake { node, alarm } if alarm == self.nodes[node].alarm => self.wake(node),
                Event::Wake { .. } => {}
                Event::Deliver { node, packet } => self.deliver(node, packet),
            }
            self.observe();
        }
        self.now = end;
        self.observe();
    }

    fn deliver(&mut self, number: usize, packet: Vec<u8>) {
        let node = &mut self.nodes[number];
        if node.router.is_some() && !node.deaf {
            node.inbox.push(packet);
            self.wake(number);
        }
    }

    /// What a driver does at each wake-up.
    fn wake(&mut self, number: usize) {
        let now = self.local_time(number);
        let node = &mut self.nodes[number];
        let Some(router) = node.router.as_mut().filter(|_| !node.asleep) else { return };
        let expected = Expected { version: Version::V3, vrid: Vrid::new(77).unwrap(), password: None };
        for packet in node.inbox.drain(..) {
            let datagram =
                if packet[0] >> 4 == 4 { Datagram::from_ipv4(&packet) } else { Datagram::from_ipv6(&packet) };
            let datagram = datagram.unwrap();
            let received = Advertisement::decode(&datagram, Some(&expected)).unwrap();
            router.handle_advertisement(datagram.source, &received.advertisement).unwrap();
        }
        router.handle_timeout(now);
        self.do_outputs(number);
    }

    fn do_outputs(&mut self, number: usize) {
        while let Some(output) = self.nodes[number].router.as_mut().and_then(VirtualRouter::poll_output) {
            writeln!(self.trace, "{:?} node {number} {output:?}", self.now).unwrap();
            match output {
                Output::Advertise(advertisement) => self.transmit(number, &advertisement),
                Output::BecameMaster(_) => self.nodes[number].holds = true,
                Output::BecameBackup(_) | Output::BecameInitialize(_) => self.nodes[number].holds = false,
                Output::Announce => {}
            }
        }
        let node = &mut self.nodes[number];
        node.alarm += 1;
        let Some(due) = node.router.as_ref().and_then(VirtualRouter::poll_timeout) else { return };
        let event = Event::Wake { node: number, alarm: node.alarm };
        let at = node.booted + due.0 + self.some_delay();
        self.schedule(at, event);
    }

    fn transmit(&mut self, from: usize, advertisement: &Advertisement) {
        let family = advertisement.vips.family();
        let source = self.nodes[from].addresses[usize::from(family == Family::V6)];
        let checksum = [ChecksumForm::PseudoHeader, ChecksumForm::MessageOnly][from % 2];
        let message = advertisement.encode(&Dialect { password: None, checksum }, source, family.group());
        let packet = Datagram::new(source, family.group(), &message).to_packet(0).unwrap();
        for node in (0..self.nodes.len()).filter(|node| *node != from) {
            if self.cut.contains(&(from, node, family)) || self.is_lost(from, node, family) {
                continue;
            }
            let earliest = self.arrivals.get(&(from, node)).copied().unwrap_or_default();
            let at = (self.now + self.some_delay()).max(earliest);
            self.arrivals.insert((from, node), at);
            self.schedule(at, Event::Deliver { node, packet: packet.clone() });
        }
    }

    fn is_lost(&mut self, from: usize, to: usize, family: Family) -> bool {
        let Some(Fault::Loss(most)) = self.fault else { return false };
        let lost = self.lost.entry((from, to, family)).or_default();
        *lost = if *lost < most && self.rng.u8(..4) > 0 { *lost + 1 } else { 0 };
        *lost > 0
    }

    /// What must be true at every moment.
    fn observe(&mut self) {
        for node in self.nodes.iter().filter(|node| !node.asleep) {
            let master = node.router.as_ref().is_some_and(|router| matches!(router.state(), State::Master { .. }));
            assert_eq!(node.holds, master, "a master knows it, and no other holds the addresses");
        }
        let holders: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].holds).collect();
        if holders != self.holders {
            self.holders_since = self.now;
            self.holders.clone_from(&holders);
        }
        let since = if self.fault.is_none() { self.holders_since.max(self.sound_since) } else { self.holders_since };
        let time = self.now - since;
        match (holders.len(), self.fault) {
            (0, Some(Fault::HandOver)) => panic!("nobody holds the addresses in a hand-over"),
            (0, None) => assert!(time <= self.master_down_interval_max() + self.answer(), "no master for {time:?}"),
            (2.., Some(Fault::Loss(most))) => {
                let bound = self.interval.duration() * (most + 1) + self.answer();
                assert!(time <= bound, "{holders:?} are masters for {time:?}");
            }
            (2.., None | Some(Fault::HandOver | Fault::Restart { .. })) => {
                let bound = self.interval.duration() + self.answer();
                assert!(time <= bound, "{holders:?} are masters for {time:?}");
            }
            _ => {}
        }
    }

    fn only_master(&self) -> Option<usize> {
        let mut masters = (0..self.nodes.len()).filter(|node| self.nodes[*node].holds);
        masters.next().filter(|_| masters.next().is_none())
    }

    fn local_time(&self, node: usize) -> BootTime {
        BootTime(self.now - self.nodes[node].booted)
    }

    fn master_down_interval_max(&self) -> Duration {
        let intervals = self.nodes.iter().map(|node| self.interval.master_down_interval(node.priority));
        intervals.max().unwrap()
    }

    /// A late wake-up, an advertisement's way, an answer's way, and its reader's.
    fn answer(&self) -> Duration {
        self.delay * 4
    }

    fn some_delay(&mut self) -> Duration {
        Duration::from_nanos(self.rng.u64(..=self.delay.as_nanos() as u64))
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at.max(self.now), self.sequence, event)));
    }
}
