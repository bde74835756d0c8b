//! What both hosts share: time, chance, the network, the destinations, and the ledger of what is owed.

use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::destination::Destination;
use crate::ledger::Ledger;
use crate::network::Network;

/// How long a delivery may take to be heard of: `DELIVERED_EVERY`, and the slowest link.
const TOLD_WITHIN: Duration = Duration::from_millis(250);
/// After something went wrong, what is delivered may be delivered again for so long: until the nodes talk and have heard who
/// delivers, and for the time that either waits for the other.
const REPEATS_AFTER: Duration = Duration::from_secs(8);
/// The same from the nodes' first word on: what was delivered is told at once.
const UNHEARD_FOR: Duration = Duration::from_millis(200);

/// See the module.
pub struct Surroundings {
    pub rng: Rng,
    /// Since the world began.
    pub now: Duration,
    begin: Instant,
    pub network: Network,
    pub ledger: Ledger,
    pub destinations: Vec<Destination>,
    /// Whether a process listens on each host, and whether its kernel says that none does.
    pub listens: [bool; 2],
    pub refuses: [bool; 2],
    /// What is delivered before this may be delivered twice: something was wrong.
    disturbed_until: Duration,
    /// From when to when a node was away that had ended in order: what the other one delivered meanwhile, or just before, it
    /// has not heard of.
    away: Vec<(Duration, Option<Duration>)>,
    pub trace: String,
}

impl Surroundings {
    pub fn new(seed: u64) -> Surroundings {
        let mut rng = Rng::with_seed(seed);
        Surroundings {
            network: Network::new(&mut rng),
            now: Duration::from_secs(1),
            begin: Instant::now(),
            ledger: Ledger::default(),
            destinations: crate::OUTPUTS.iter().map(|name| Destination::new(name)).collect(),
            listens: [false; 2],
            refuses: [false; 2],
            disturbed_until: Duration::ZERO,
            away: Vec::new(),
            trace: String::new(),
            rng,
        }
    }

    /// The monotonic clock.
    pub fn instant(&self) -> Instant {
        self.begin + self.now
    }

    /// Some time up to `max`, in whole milliseconds.
    pub fn some(&mut self, max: Duration) -> Duration {
        Duration::from_millis(self.rng.u64(..=max.as_millis() as u64))
    }

    /// True about once in `often` calls.
    pub fn chance(&mut self, often: u32) -> bool {
        self.rng.u32(..often) == 0
    }

    /// Something is wrong now.
    pub fn disturb(&mut self) {
        self.disturbed_until = self.disturbed_until.max(self.now + REPEATS_AFTER);
    }

    /// Both nodes run, and do not talk yet: neither knows what the other one delivers.
    pub fn disturb_briefly(&mut self) {
        self.disturbed_until = self.disturbed_until.max(self.now + UNHEARD_FOR);
    }

    /// A node ends in order now.
    pub fn end(&mut self) {
        self.away.push((self.now, None));
    }

    /// The nodes talk.
    pub fn meet(&mut self) {
        let now = self.now;
        self.away.iter_mut().for_each(|(_, until)| *until = until.or(Some(now)));
    }

    /// Whether what was first delivered at `first` may be delivered once more.
    pub fn excuses_repeat(&self, first: Duration) -> bool {
        let untold = |(from, until): &(Duration, Option<Duration>)| {
            first + TOLD_WITHIN >= *from && until.is_none_or(|until| first <= until)
        };
        first <= self.disturbed_until || self.away.iter().any(untold)
    }

    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        use std::fmt::Write;
        writeln!(self.trace, "{:?} {what}", self.now).unwrap();
    }
}
