//! One of the two hosts: its disks, its clocks, and the process that runs on it or not.

use std::time::Duration;

use twinlog::proto::position::Incarnation;

use crate::disks::Disks;
use crate::node::{Node, Settings};
use crate::surroundings::Surroundings;

/// How a node comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// In order, or when the time for that was over.
    Stopped { is_in_time: bool },
    /// The process is killed; its guardian says goodbye, or not.
    Killed { is_guarded: bool },
    /// The host loses its power.
    PowerLoss,
    /// The host is lost, with its disks; another takes its place.
    Wiped,
}

/// See the module.
pub struct Host {
    pub number: usize,
    settings: Settings,
    pub disks: Disks,
    pub node: Option<Node>,
    /// Counts the processes.
    pub life: u64,
    booted: Duration,
    /// Whether there is power: then the kernel answers for a process that is not there.
    has_power: bool,
    starts_at: Option<Duration>,
    stalled_until: Duration,
    slow_until: Duration,
    /// Wall clock, in milliseconds since the epoch, at the begin of the world.
    wall: u64,
    seed: u64,
}

impl Host {
    pub fn new(number: usize, seed: u64, settings: Settings) -> Host {
        Host {
            number,
            settings,
            disks: Disks::new(seed),
            node: None,
            life: 0,
            booted: Duration::ZERO,
            has_power: true,
            starts_at: Some(Duration::ZERO),
            stalled_until: Duration::ZERO,
            slow_until: Duration::ZERO,
            wall: 1_700_000_000_000,
            seed,
        }
    }

    /// Whether the addresses are here.
    pub fn holds(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.holds)
    }

    pub fn is_stalled(&self, now: Duration) -> bool {
        self.stalled_until > now
    }

    /// Whether its kernel says that no process is there.
    pub fn refuses(&self) -> bool {
        self.has_power && self.node.is_none()
    }

    pub fn stall(&mut self, until: Duration) {
        self.stalled_until = until;
    }

    pub fn slow_down(&mut self, until: Duration) {
        self.slow_until = until;
    }

    /// Somebody sets the clock, by up to a day.
    pub fn set_clock(&mut self, around: &mut Surroundings) {
        self.wall = self.wall + around.rng.u64(..172_800_000) - 86_400_000;
    }

    pub fn step(&mut self, around: &mut Surroundings) {
        if self.starts_at.is_some_and(|at| at <= around.now) {
            self.start(around);
        }
        if self.is_stalled(around.now) {
            return;
        }
        let is_slow = self.slow_until > around.now;
        let mut parts = [0, 1, 2, 3, 4];
        around.rng.shuffle(&mut parts);
        for part in parts {
            let Some(node) = &mut self.node else { return };
            // Threads come and go as they like.
            if around.chance(10) {
                continue;
            }
            match part {
                0 => node.step_journals(around, is_slow),
                1 => node.step_link(around, &mut self.disks),
                2 => node.step_election(around),
                3 => node.step_daemon(around),
                _ => node.step_deliveries(around),
            }
            if self.disks.has_died() {
                let kinds = [Death::PowerLoss, Death::Killed { is_guarded: true }, Death::Killed { is_guarded: false }];
                let death = kinds[around.rng.usize(..3)];
                self.die(around, death);
            }
        }
        let Some(node) = &mut self.node else { return };
        node.step_stop(around);
        if let Some(is_in_time) = node.has_ended {
            self.die(around, Death::Stopped { is_in_time });
        }
    }

    fn start(&mut self, around: &mut Surroundings) {
        self.has_power = true;
        self.disks.heal();
        if around.chance(8) {
            // It may die on the way.
            self.disks.die_soon(around);
        }
        self.life += 1;
        if self.life == 1 {
            // Nobody has told the other anything yet.
            around.disturb();
        }
        let fresh = Incarnation(self.wall + around.now.as_millis() as u64);
        let node = Node::start(around, self.number, &mut self.disks, self.settings, self.booted, fresh);
        self.starts_at = None;
        match node {
            Ok(node) => self.node = Some(node),
            Err(error) => {
                assert!(self.disks.has_died(), "a sound disk: {error}");
                if around.chance(2) {
                    self.disks.power_cut(around);
                }
                self.starts_at = Some(around.now + Duration::from_millis(100));
            }
        }
    }

    /// The process ends like this, if there is one, and starts again after a while.
    pub fn die(&mut self, around: &mut Surroundings, death: Death) {
        around.note(format_args!("host {} dies: {death:?}", self.number));
        if death == (Death::Stopped { is_in_time: true }) {
            around.end();
        } else {
            around.disturb();
        }
        let is_guarded = matches!(death, Death::Killed { is_guarded: true } | Death::Stopped { .. });
        let is_killed = matches!(death, Death::Killed { .. } | Death::Stopped { .. });
        let mut death = death;
        if let Some(node) = self.node.take() {
            // What a failed sync gave up is seen until the cache is gone, and a process that starts on it vouches for it.
            // The next power cut would take that: a known gap, so here the host itself starts anew.
            if is_killed && node.is_poisoned() {
                death = Death::PowerLoss;
            }
            node.die(around, is_guarded);
        }
        around.network.end_all(around.now, self.number, is_killed);
        match death {
            Death::Stopped { .. } | Death::Killed { .. } => {}
            Death::PowerLoss => self.lose_power(around),
            Death::Wiped => {
                self.lose_power(around);
                self.seed += 1000;
                self.disks = Disks::new(self.seed);
                around.ledger.wiped(self.number, around.now);
            }
        }
        self.disks.heal();
        self.starts_at = Some(around.now + around.some(Duration::from_secs(3)));
    }

    /// Nothing is wrong any more; what cannot go on starts anew, and nobody stays drained.
    pub fn heal(&mut self, around: &mut Surroundings) {
        self.disks.heal();
        (self.stalled_until, self.slow_until) = (Duration::ZERO, Duration::ZERO);
        if self.node.as_ref().is_some_and(Node::is_poisoned) {
            self.die(around, Death::PowerLoss);
        }
        if let Some(node) = &mut self.node {
            node.undrain();
        }
    }

    fn lose_power(&mut self, around: &mut Surroundings) {
        self.has_power = false;
        self.booted = around.now;
        self.disks.power_cut(around);
    }
}
