//! What happens to the two nodes, from a seed: a time of faults and commands, then a sound time, at whose end everything
//! that is owed has arrived.

use std::time::Duration;

use fastrand::Rng;
use twinlog::journal::writer::Limits;
use twinlog::proto::drain::Until;
use twinlog::proto::pair::promise::Acknowledge;
use twinlog::proto::vrrp::Priority;

use crate::host::{Death, Host};
use crate::node::Settings;
use crate::senders::Sender;
use crate::surroundings::Surroundings;

/// How far the world goes on at a time.
const STEP: Duration = Duration::from_millis(5);
/// The time of faults.
const TROUBLE: Duration = Duration::from_secs(15);
/// The sound time: a node that starts, takes part, waits for the other's deliveries, drains or gives that up.
const PEACE: Duration = Duration::from_secs(20);
/// In it, the last new message.
const LAST_MESSAGE: Duration = Duration::from_secs(5);

/// What stops being wrong.
#[derive(Clone, Copy, Debug)]
enum Relief {
    Network,
    Space(usize),
    Destination(usize),
}

/// See the module.
pub struct History {
    around: Surroundings,
    hosts: [Host; 2],
    senders: Vec<Sender>,
    /// Whether only commands are given: then nothing is ever delivered twice.
    is_calm: bool,
    reliefs: Vec<(Duration, Relief)>,
}

/// Shows the trace of one seed that fails.
impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("SEED").is_some() {
            eprintln!("{}{:?} failed", self.around.trace, self.around.now);
        }
    }
}

impl History {
    pub fn new(seed: u64) -> History {
        let mut rng = Rng::with_seed(!seed);
        let acknowledge = match rng.u8(..10) {
            0 => Acknowledge::Durable,
            1..3 => Acknowledge::Replicated { alone: false },
            _ => Acknowledge::Replicated { alone: true },
        };
        let settings = Settings {
            limits: Limits { segment_size: 8192, max_size: [30_000, 1 << 30][rng.usize(..2)] },
            acknowledge,
            preempt: rng.bool(),
            priorities: if rng.bool() { [Priority(100); 2] } else { [Priority(150), Priority(100)] },
        };
        let mut around = Surroundings::new(seed);
        around.note(format_args!("{settings:?}"));
        let hosts = [0, 1].map(|number| Host::new(number, seed * 2 + number as u64, settings));
        let senders = (0..4).map(|number| Sender::new(number, number < 3)).collect();
        History { around, hosts, senders, is_calm: rng.u8(..4) == 0, reliefs: Vec::new() }
    }

    /// A time of troubles; the trace of it.
    pub fn run(mut self) -> String {
        self.run_until(Duration::from_secs(4));
        if !self.is_calm && self.around.chance(3) {
            // For all of it: so there is a backlog, and a lost disk leaves an orphan.
            self.around.destinations[1].fail(true);
        }
        let end = self.around.now + TROUBLE;
        while self.around.now < end {
            self.suffer();
            let pause = self.around.some(Duration::from_millis(1500));
            self.run_until(self.around.now + pause);
        }
        self.come_to_rest();
        std::mem::take(&mut self.around.trace)
    }

    /// One trouble: a node dies at a call of one of its disks, the one with this number from now on.
    pub fn run_to_call(mut self, host: usize, of_mirror: bool, call: u64) {
        self.run_until(Duration::from_secs(3));
        self.hosts[host].disks.die_at_call(of_mirror, call);
        self.run_until(Duration::from_secs(7));
        self.come_to_rest();
    }

    fn come_to_rest(&mut self) {
        self.heal();
        self.run_until(self.around.now + LAST_MESSAGE);
        // Those whose inputs were just coming to their end.
        for node in self.hosts.iter_mut().filter_map(|host| host.node.as_mut()) {
            node.undrain();
        }
        self.senders.iter_mut().for_each(|sender| sender.is_done = true);
        let end = self.around.now + PEACE - LAST_MESSAGE;
        while self.around.now < end && !self.is_quiet() {
            self.run_until(self.around.now + Duration::from_millis(500));
        }
        // Whatever comes to rest stays there.
        self.run_until(self.around.now + Duration::from_secs(1));
        self.check_the_end();
    }

    fn run_until(&mut self, end: Duration) {
        while self.around.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        let around = &mut self.around;
        around.now += STEP * around.rng.u32(1..4);
        if !around.network.is_whole() || around.destinations.iter().any(|destination| !destination.is_well()) {
            around.disturb();
        }
        // Who starts at the same moment may be master at the same moment.
        if self.hosts.iter().all(|host| host.node.as_ref().is_some_and(|node| node.holds)) {
            around.disturb_briefly();
        }
        let nodes = self.hosts.iter().filter_map(|host| host.node.as_ref());
        let talking: Vec<bool> = nodes.map(|node| node.link.connected_since.is_some()).collect();
        if talking.len() == 2 && talking.contains(&false) {
            around.disturb_briefly();
        }
        let mut order = [0, 1];
        around.rng.shuffle(&mut order);
        for host in order {
            around.listens = [0, 1].map(|host| self.hosts[host].node.is_some());
            around.refuses = [0, 1].map(|host| self.hosts[host].refuses());
            self.hosts[host].step(around);
        }
        for sender in &mut self.senders {
            sender.step(around, &mut self.hosts);
        }
        for node in self.hosts.iter_mut().filter_map(|host| host.node.as_mut()) {
            node.check(around);
        }
        self.check_both();
        self.relieve();
    }

    /// What is true of the pair at every moment.
    fn check_both(&self) {
        if let [Some(a), Some(b)] = [0, 1].map(|host| self.hosts[host].node.as_ref()) {
            let is_forced = [a, b].iter().any(|node| node.drain.as_ref().is_some_and(|draining| draining.is_forced));
            assert!(!(a.is_aside && b.is_aside) || is_forced, "drains have left both nodes out of the election");
        }
    }

    fn relieve(&mut self) {
        let now = self.around.now;
        let due: Vec<Relief> = self.reliefs.extract_if(.., |(at, _)| *at <= now).map(|(_, relief)| relief).collect();
        for relief in due {
            self.around.note(format_args!("ends: {relief:?}"));
            match relief {
                Relief::Network => self.around.network.heal(),
                Relief::Space(host) => self.hosts[host].disks.make_room(),
                Relief::Destination(output) => self.around.destinations[output].recover(),
            }
        }
    }

    /// Something happens.
    fn suffer(&mut self) {
        let host = self.around.rng.usize(..2);
        if self.is_calm || self.around.chance(3) {
            return self.command(host);
        }
        let around = &mut self.around;
        let until = around.now + around.some(Duration::from_secs(4));
        let what = around.rng.u8(..23);
        around.note(format_args!("fault {what} of host {host} until {until:?}"));
        match what {
            0 => around.network.link_cut = [around.rng.bool(), around.rng.bool()],
            1 => around.network.adverts_cut = [around.rng.bool(), around.rng.bool()],
            2 => (around.network.link_cut, around.network.adverts_cut) = ([true; 2], [true; 2]),
            3 => around.network.loss = 30,
            4..6 => {
                around.disturb();
                around.network.reset();
            }
            6 => self.hosts[host].die(around, Death::Killed { is_guarded: true }),
            7 => self.hosts[host].die(around, Death::Killed { is_guarded: false }),
            8 => self.hosts[host].die(around, Death::PowerLoss),
            9 => self.hosts[host].die(around, Death::Wiped),
            10..13 => self.hosts[host].disks.die_soon(around),
            13 => self.hosts[host].disks.fail_soon(around),
            14 => {
                self.hosts[host].disks.fill(around);
                self.reliefs.push((until, Relief::Space(host)));
            }
            15 => self.hosts[host].slow_down(until),
            16 => {
                around.disturb();
                self.hosts[host].stall(until);
            }
            17..20 => {
                let output = around.rng.usize(..2);
                around.destinations[output].fail(around.rng.bool());
                self.reliefs.push((until, Relief::Destination(output)));
            }
            20 => self.hosts[host].set_clock(around),
            _ => self.hosts[host].die(around, Death::Wiped),
        }
        self.reliefs.push((until, Relief::Network));
    }

    /// An operator wants something.
    fn command(&mut self, host: usize) {
        let around = &mut self.around;
        let Some(node) = &mut self.hosts[host].node else { return };
        let now = node.boot_time(around.now);
        let (until, time) = ([Until::Handover, Until::Empty][around.rng.usize(..2)], Duration::from_secs(10));
        let what = around.rng.u8(..8);
        let is_done = match what {
            0..2 => node.election.fail_over(now).is_ok(),
            2..4 => node.begin_drain(around, until, time, false),
            4 if self.is_calm => false,
            4 => node.begin_drain(around, until, time, true),
            5..7 => node.undrain(),
            _ => {
                node.stop(around);
                true
            }
        };
        around.note(format_args!("command {what} to host {host}: {is_done}"));
    }

    fn heal(&mut self) {
        let around = &mut self.around;
        around.note(format_args!("peace"));
        self.reliefs.clear();
        around.network.heal();
        around.destinations.iter_mut().for_each(|destination| destination.recover());
        for host in &mut self.hosts {
            host.heal(around);
        }
    }

    fn is_quiet(&self) -> bool {
        let nodes = self.hosts.iter().filter_map(|host| host.node.as_ref());
        nodes.filter(|node| node.own.promise.is_whole() && node.drain.is_none()).count() == 2
            && self.around.ledger.owed() == 0
            && self.senders.iter().all(Sender::is_idle)
    }

    fn check_the_end(&mut self) {
        let (acknowledged, excused) = (self.around.ledger.acknowledged, self.around.ledger.excused);
        let repeats: u64 = self.around.destinations.iter().map(|destination| destination.repeats).sum();
        self.around.note(format_args!("{acknowledged} acknowledged, {excused} excused, {repeats} repeated"));
        let ledger = &self.around.ledger;
        let nodes = [0, 1].map(|host| self.hosts[host].node.as_ref().expect("both run"));
        assert_eq!(nodes.iter().filter(|node| node.holds).count(), 1, "one node holds the addresses");
        assert!(self.senders.iter().all(Sender::is_idle), "every sender has its answer");
        assert_eq!(ledger.owed(), 0, "everything has arrived");
        for (node, other) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
            let mirror = other.mirrors.get(&node.own.id).expect("each is mirrored");
            assert_eq!((mirror.durable(), node.own.appended()), (node.own.durable(), node.own.durable()), "whole");
            assert!(node.own.promise.is_whole(), "and the writer knows");
            assert_eq!(node.own.delivered_by_all(), node.own.durable(), "and delivered");
        }
    }
}
