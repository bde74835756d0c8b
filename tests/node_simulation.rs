//! Two whole nodes on a network that loses, delays and parts, family by family, with daemons that are killed, hosts that
//! are lost, journals that fill up and operators who move the addresses.
//!
//! `SEED=7 cargo test --test node_simulation` runs one seed; without it a fixed list, `TWINLOG_SEEDS=20000` a longer one.
//! The same seed gives the same trace. After each fault comes a sound time, at whose end the one that should has the
//! addresses, and the other has not; what is asked of the time of the fault itself stands at [`Fault`].

#![allow(clippy::unwrap_used)]

mod seeds;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use fastrand::Rng;
use twinlog::proto::node::{self, Effect, Fault as NodeFault, Node, Report};
use twinlog::proto::vrrp::advertisement::Advertisement;
use twinlog::proto::vrrp::interval::{Centiseconds, Interval};
use twinlog::proto::vrrp::settings::{Member, Settings};
use twinlog::proto::vrrp::vip_list::VipList;
use twinlog::proto::vrrp::{BootTime, Family, Priority, Vrid};

const FAULTS: usize = 10;
const SEEDS: u64 = 300;
const SETTLE: Duration = Duration::from_secs(2);

#[test]
fn the_right_node_has_the_addresses_after_every_fault() {
    seeds::each(SEEDS, &[], |seed| drop(Simulation::new(seed).run()));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    seeds::same_trace(20, |seed| Simulation::new(seed).run());
}

/// What goes wrong, alone each time, and what is asked meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Ways are cut: any of them, in one or both directions, in one or both families. Two masters are what a cut explains.
    Cut,
    /// A node stands still, then goes on.
    Stall,
    /// The daemon is killed. Its guardian releases the addresses and says priority 0; or dies with it, and the host's
    /// kernel answers that nobody is there; or the host is lost. Later it starts again.
    Death(Death),
    /// The node is told to stop, and starts again. The addresses are always held.
    Stop,
    /// The master is told to hand over. The addresses are always held.
    FailOver,
    /// Something is wrong with the node for a while: it has no address meanwhile.
    Unwell,
    /// The journal of one node is full for a while, or of both. The addresses are always held.
    Full { both: bool },
    /// Somebody removes an address: it is back at once.
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    Guarded,
    Unguarded,
    HostLost,
}

/// One of the two hosts.
struct Host {
    /// `None` while nothing runs.
    node: Option<Node>,
    /// When its clock began.
    booted: Duration,
    asleep: bool,
    /// Whether its kernel answers.
    is_there: bool,
    faults: BTreeSet<NodeFault>,
    inbox: Vec<(IpAddr, Advertisement)>,
    /// Only the wake-up of this number counts.
    alarm: u64,
    holds: bool,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake {
        host: usize,
        alarm: u64,
    },
    Deliver {
        host: usize,
        number: u64,
    },
    /// A question to the host's kernel arrives; a refusal goes back.
    Question {
        host: usize,
    },
    Refusal {
        host: usize,
    },
}

struct Simulation {
    rng: Rng,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    /// Advertisements under way.
    mail: BTreeMap<u64, (IpAddr, Advertisement)>,
    hosts: [Host; 2],
    priorities: [Priority; 2],
    /// The families, the first of which decides ties.
    families: Vec<Family>,
    /// Whether the nodes know from where the other advertises over the second family.
    knows_all: bool,
    interval: Interval,
    preempt: bool,
    /// Longest way of a packet, and longest delay of a wake-up.
    delay: Duration,
    /// When the last packet of a way arrives: none overtakes another.
    arrivals: [Duration; 2],
    /// Cut ways, by receiver and family.
    cut: Vec<(usize, Family)>,
    /// Whether somebody must hold the addresses at every moment.
    always_held: bool,
    trace: String,
}

/// Shows the trace of one seed that fails.
impl Drop for Simulation {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("SEED").is_some() {
            eprintln!("{}{:?} failed", self.trace, self.now);
        }
    }
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut rng = Rng::with_seed(seed);
        let interval = Interval::V3(Centiseconds::new([1, 3, 10, 100][rng.usize(..4)]).unwrap());
        let families = [&[Family::V4][..], &[Family::V6], &[Family::V4, Family::V6], &[Family::V6, Family::V4]];
        let host = || Host {
            node: None,
            booted: Duration::ZERO,
            asleep: false,
            is_there: true,
            faults: BTreeSet::new(),
            inbox: Vec::new(),
            alarm: 0,
            holds: false,
        };
        Simulation {
            now: Duration::from_secs(1000),
            events: BinaryHeap::new(),
            sequence: 0,
            mail: BTreeMap::new(),
            hosts: [host(), host()],
            priorities: if rng.bool() { [Priority(100); 2] } else { [Priority(100), Priority(150)] },
            families: families[rng.usize(..4)].to_vec(),
            knows_all: rng.bool(),
            interval,
            preempt: rng.bool(),
            delay: interval.duration() / [10, 20, 100][rng.usize(..3)],
            arrivals: [Duration::ZERO; 2],
            cut: Vec::new(),
            always_held: false,
            trace: String::new(),
            rng,
        }
    }

    fn run(mut self) -> String {
        (0..2).for_each(|host| self.boot(host));
        self.settle();
        for _ in 0..FAULTS {
            self.suffer();
            self.settle();
        }
        std::mem::take(&mut self.trace)
    }

    /// A time in which nothing new goes wrong: the right one gets the addresses, and keeps them.
    fn settle(&mut self) {
        // Two waits: that of a node which had to step back, and that of the one which takes its place.
        self.run_for(SETTLE + self.longest_wait() * 2 + self.interval.duration() + self.delay * 8);
        let holder = self.only_holder().expect("one holds the addresses");
        let full = |host: &Host| host.faults.contains(&NodeFault::JournalFull);
        if self.hosts.iter().any(|host| !full(host)) {
            assert!(!full(&self.hosts[holder]), "a node that is well has relieved one that is full");
        }
        let moves = self.trace.matches("Became").count();
        self.run_for(self.interval.duration() * 10);
        assert_eq!(self.trace.matches("Became").count(), moves, "the addresses moved for no reason");
    }

    /// One fault, from its begin to its end.
    fn suffer(&mut self) {
        let fault = match self.rng.u8(..16) {
            0..3 => Fault::Cut,
            3..5 => Fault::Stall,
            5..7 => Fault::Death(Death::Guarded),
            7 => Fault::Death(Death::Unguarded),
            8 => Fault::Death(Death::HostLost),
            9 => Fault::Stop,
            10..12 => Fault::FailOver,
            12 => Fault::Unwell,
            13..15 => Fault::Full { both: self.rng.bool() },
            _ => Fault::Removed,
        };
        writeln!(self.trace, "{:?} {fault:?}", self.now).unwrap();
        let time = self.interval.duration() * self.rng.u32(5..150) / 10;
        let host = self.rng.usize(..2);
        let holder = self.only_holder().expect("the time before was sound");
        match fault {
            Fault::Cut => self.cut(time),
            Fault::Stall => self.stall(host, time),
            Fault::Death(death) => self.die(host, death, time),
            Fault::Stop => self.stop(host, time),
            Fault::FailOver => self.fail_over(holder),
            Fault::Unwell => self.be_unwell(host, time),
            Fault::Full { both } => self.fill(host, both),
            Fault::Removed => self.remove(holder),
        }
        self.always_held = false;
    }

    fn cut(&mut self, time: Duration) {
        for host in 0..2 {
            let ways = [Family::V4, Family::V6].map(|family| (host, family));
            self.cut.extend(ways.into_iter().filter(|_| self.rng.bool()));
        }
        self.run_for(time);
        self.cut.clear();
    }

    fn stall(&mut self, host: usize, time: Duration) {
        self.hosts[host].asleep = true;
        self.run_for(time);
        self.hosts[host].asleep = false;
        self.wake(host);
    }

    fn die(&mut self, host: usize, death: Death, time: Duration) {
        let node = self.hosts[host].node.take().unwrap();
        self.hosts[host].holds = false;
        self.hosts[host].inbox.clear();
        match death {
            Death::Guarded => {
                // Also for a standby: it does no harm, and the guardian does not know.
                let farewells: Vec<Advertisement> = node.router().advertisements(Priority::LEAVING).collect();
                farewells.iter().for_each(|farewell| self.transmit(host, farewell));
            }
            Death::Unguarded => {}
            Death::HostLost => self.hosts[host].is_there = false,
        }
        self.run_for(self.longest_wait() + self.delay * 4);
        assert!(self.hosts[1 - host].holds, "the other took over");
        self.run_for(time);
        self.hosts[host].is_there = true;
        self.boot(host);
    }

    fn stop(&mut self, host: usize, time: Duration) {
        self.always_held = true;
        let now = self.local_time(host);
        self.hosts[host].node.as_mut().unwrap().leave(now);
        self.wake(host);
        self.run_for(self.interval.duration() + self.longest_wait() + self.delay * 4);
        assert!(self.hosts[host].node.as_ref().unwrap().has_left() && self.hosts[1 - host].holds);
        self.hosts[host].node = None;
        self.hosts[host].inbox.clear();
        self.run_for(time);
        self.boot(host);
    }

    fn fail_over(&mut self, holder: usize) {
        self.always_held = true;
        let now = self.local_time(holder);
        self.hosts[holder].node.as_mut().unwrap().fail_over(now).unwrap();
        self.wake(holder);
        let moves = format!("node {} Report(HandedOver)", holder);
        let before = self.trace.matches(&moves).count();
        self.run_for(self.longest_wait() + self.delay * 4);
        assert_eq!(self.trace.matches(&moves).count(), before + 1, "handed over");
    }

    fn be_unwell(&mut self, host: usize, time: Duration) {
        let fault =
            [NodeFault::JournalPoisoned, NodeFault::InterfaceDown, NodeFault::InputNotListening][self.rng.usize(..3)];
        self.set_fault(host, fault, true);
        assert!(!self.hosts[host].holds);
        self.run_for(self.longest_wait() + self.delay * 4 + time);
        assert!(self.hosts[1 - host].holds && !self.hosts[host].holds);
        self.set_fault(host, fault, false);
    }

    fn fill(&mut self, host: usize, both: bool) {
        self.always_held = true;
        let full: Vec<usize> = if both { vec![host, 1 - host] } else { vec![host] };
        for host in &full {
            self.set_fault(*host, NodeFault::JournalFull, true);
            let pause = self.interval.duration() * self.rng.u32(0..20) / 10;
            self.run_for(pause);
        }
        self.settle();
        for host in full {
            self.set_fault(host, NodeFault::JournalFull, false);
            let pause = self.interval.duration() * self.rng.u32(0..20) / 10;
            self.run_for(pause);
        }
    }

    fn remove(&mut self, holder: usize) {
        let now = self.local_time(holder);
        self.hosts[holder].holds = false;
        self.hosts[holder].node.as_mut().unwrap().handle_address_lost(now);
        self.wake(holder);
        assert!(self.hosts[holder].holds, "it is back");
    }

    fn set_fault(&mut self, host: usize, fault: NodeFault, present: bool) {
        let now = self.local_time(host);
        if present {
            self.hosts[host].faults.insert(fault);
        } else {
            self.hosts[host].faults.remove(&fault);
        }
        self.hosts[host].node.as_mut().unwrap().set_fault(now, fault, present);
        self.wake(host);
    }

    fn boot(&mut self, number: usize) {
        let address = |host: usize, family: Family| -> IpAddr {
            match family {
                Family::V4 => [10, 77, 0, host as u8 + 1].into(),
                Family::V6 => format!("fe80::{}", 9 - host).parse().unwrap(),
            }
        };
        let vip = |family| if family == Family::V4 { "10.77.0.100" } else { "fd77::100" };
        let known = |at: usize| at == 0 || self.knows_all;
        let member = |(at, family): (usize, &Family)| Member {
            address: address(number, *family),
            peers: if known(at) { vec![address(1 - number, *family)] } else { Vec::new() },
            vips: VipList::new(&[vip(*family).parse().unwrap()]).unwrap(),
        };
        let router = Settings {
            vrid: Vrid::new(77).unwrap(),
            interval: self.interval,
            priority: self.priorities[number],
            preempt: self.preempt,
            preempt_delay: Duration::ZERO,
            members: self.families.iter().enumerate().map(member).collect(),
        };
        self.hosts[number].booted = self.now - Duration::from_millis(self.rng.u64(..500_000));
        let faults: Vec<NodeFault> = self.hosts[number].faults.iter().copied().collect();
        let now = self.local_time(number);
        self.hosts[number].node = Some(Node::new(node::Settings { router, settle: SETTLE }, &faults, now).unwrap());
        self.wake(number);
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Reverse((at, _, event)) = self.events.pop().unwrap();
            self.now = at;
            match event {
                Event::Wake { host, alarm } if alarm == self.hosts[host].alarm => self.wake(host),
                Event::Wake { .. } => {}
                Event::Deliver { host, number } => {
                    let mail = self.mail.remove(&number).unwrap();
                    if self.hosts[host].node.is_some() {
                        self.hosts[host].inbox.push(mail);
                        self.wake(host);
                    }
                }
                Event::Question { host } if self.hosts[host].is_there && self.hosts[host].node.is_none() => {
                    let at = self.now + self.some_delay();
                    self.schedule(at, Event::Refusal { host: 1 - host });
                }
                Event::Question { .. } => {}
                Event::Refusal { host } => self.hear_of_death(host),
            }
            self.observe();
        }
        self.now = end;
    }

    fn hear_of_death(&mut self, host: usize) {
        let now = self.local_time(host);
        let asleep = self.hosts[host].asleep;
        if let Some(node) = self.hosts[host].node.as_mut().filter(|_| !asleep) {
            node.handle_timeout(now);
            node.handle_peer_death(now);
            self.do_effects(host);
        }
    }

    /// What the thread does at each wake-up.
    fn wake(&mut self, number: usize) {
        let now = self.local_time(number);
        let host = &mut self.hosts[number];
        let Some(node) = host.node.as_mut().filter(|_| !host.asleep) else { return };
        for (source, advertisement) in host.inbox.drain(..) {
            node.handle_advertisement(now, source, &advertisement).unwrap();
        }
        node.handle_timeout(now);
        self.do_effects(number);
    }

    fn do_effects(&mut self, number: usize) {
        while let Some(effect) = self.hosts[number].node.as_mut().and_then(Node::poll_effect) {
            if !matches!(effect, Effect::Transmit(_) | Effect::Probe) {
                writeln!(self.trace, "{:?} node {number} {effect:?}", self.now).unwrap();
            }
            match effect {
                Effect::Transmit(advertisement) => self.transmit(number, &advertisement),
                Effect::Take => self.hosts[number].holds = true,
                Effect::Release => self.hosts[number].holds = false,
                Effect::Announce => assert!(self.hosts[number].holds, "only a holder announces"),
                Effect::Probe => {
                    let at = self.now + self.some_delay();
                    // Questions go over the family of the nodes' own addresses, the first.
                    if !self.cut.contains(&(1 - number, self.families[0])) {
                        self.schedule(at, Event::Question { host: 1 - number });
                    }
                }
                Effect::Report(Report::AddressRestored) => assert!(self.hosts[number].holds),
                Effect::Report(_) => {}
            }
        }
        let host = &mut self.hosts[number];
        host.alarm += 1;
        let Some(due) = host.node.as_ref().and_then(Node::poll_timeout) else { return };
        let (event, at) = (Event::Wake { host: number, alarm: host.alarm }, host.booted + due.0);
        let late = self.some_delay();
        self.schedule(at + late, event);
    }

    fn transmit(&mut self, from: usize, advertisement: &Advertisement) {
        let (to, family) = (1 - from, advertisement.vips.family());
        if self.cut.contains(&(to, family)) {
            return;
        }
        let source: IpAddr = match family {
            Family::V4 => [10, 77, 0, from as u8 + 1].into(),
            Family::V6 => format!("fe80::{}", 9 - from).parse().unwrap(),
        };
        let at = (self.now + self.some_delay()).max(self.arrivals[to]);
        self.arrivals[to] = at;
        self.sequence += 1;
        self.mail.insert(self.sequence, (source, advertisement.clone()));
        let number = self.sequence;
        self.schedule(at, Event::Deliver { host: to, number });
    }

    /// What must be true at every moment.
    fn observe(&self) {
        for host in self.hosts.iter().filter(|host| !host.asleep) {
            let wanted = host.node.as_ref().is_some_and(|node| node.desired().hold_addresses);
            assert_eq!(host.holds, wanted, "the addresses are where they are wanted");
            let excluded = host.faults.iter().any(|fault| *fault != NodeFault::JournalFull);
            assert!(!(host.holds && excluded), "a node with a fault holds nothing");
        }
        assert!(!self.always_held || self.hosts.iter().any(|host| host.holds), "nobody holds the addresses");
    }

    fn only_holder(&self) -> Option<usize> {
        let mut holders = (0..2).filter(|host| self.hosts[*host].holds);
        holders.next().filter(|_| holders.next().is_none())
    }

    fn local_time(&self, host: usize) -> BootTime {
        BootTime(self.now - self.hosts[host].booted)
    }

    /// A master down interval of the lowest priority that there is.
    fn longest_wait(&self) -> Duration {
        self.interval.master_down_interval(Priority::YIELDING)
    }

    fn some_delay(&mut self) -> Duration {
        Duration::from_nanos(self.rng.u64(..=self.delay.as_nanos() as u64))
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at.max(self.now), self.sequence, event)));
    }
}
