//! Who sends: some wait for an acknowledgement and send again to whoever holds the addresses until they have it, others
//! send once. What a node took and kept in the journal is in the ledger; here is what was said to senders.

use std::time::Duration;

use twinlog::proto::position::{JournalId, Mark, Position};

use crate::host::Host;
use crate::surroundings::Surroundings;

/// Longest wait for an acknowledgement.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Longest way from a sender to a node, and longest pause between two messages.
const WAY: Duration = Duration::from_millis(20);

/// Where a message is.
enum Attempt {
    None,
    Travels {
        to: usize,
        life: u64,
        at: Duration,
    },
    /// In a journal, and not yet promised.
    Taken {
        host: usize,
        life: u64,
        journal: JournalId,
        mark: Mark,
        positions: Vec<Position>,
        since: Duration,
    },
    Answered {
        at: Duration,
    },
}

/// See the module.
pub struct Sender {
    number: usize,
    wants_answer: bool,
    sent: u32,
    contents: Vec<Vec<u8>>,
    attempt: Attempt,
    pause_until: Duration,
    pub is_done: bool,
}

impl Sender {
    pub fn new(number: usize, wants_answer: bool) -> Sender {
        let (contents, attempt) = (Vec::new(), Attempt::None);
        Sender { number, wants_answer, sent: 0, contents, attempt, pause_until: Duration::ZERO, is_done: false }
    }

    /// Goes on. A sender that is done sends nothing new.
    pub fn step(&mut self, around: &mut Surroundings, hosts: &mut [Host; 2]) {
        self.attempt = match std::mem::replace(&mut self.attempt, Attempt::None) {
            Attempt::None if self.pause_until > around.now => Attempt::None,
            Attempt::None => self.begin(around, hosts),
            Attempt::Travels { to, life, at } if at <= around.now => self.arrive(around, &mut hosts[to], life),
            Attempt::Taken { host, life, journal, mark, positions, since } => {
                let node = hosts[host].node.as_ref().filter(|_| hosts[host].life == life);
                let promised = node.map(|node| node.promises(mark));
                match promised {
                    Some(Some(alone)) if !hosts[host].is_stalled(around.now) => {
                        for position in positions {
                            around.ledger.acknowledge(host, &(journal.clone(), position), alone);
                        }
                        // It may not get there: then the message is sent again, and is another one.
                        let is_lost = around.chance(20) || !hosts[host].holds();
                        if is_lost { Attempt::None } else { Attempt::Answered { at: around.now + around.some(WAY) } }
                    }
                    Some(_) if around.now - since < PATIENCE => {
                        Attempt::Taken { host, life, journal, mark, positions, since }
                    }
                    // The connection broke, or it took too long.
                    _ => Attempt::None,
                }
            }
            Attempt::Answered { at } if at <= around.now => {
                self.finish(around);
                Attempt::None
            }
            attempt => attempt,
        };
    }

    fn begin(&mut self, around: &mut Surroundings, hosts: &[Host; 2]) -> Attempt {
        if self.contents.is_empty() {
            if self.is_done {
                return Attempt::None;
            }
            for _ in 0..around.rng.usize(1..4) {
                self.sent += 1;
                let filler = "x".repeat(around.rng.usize(..600));
                self.contents.push(format!("sender {} message {} {filler}", self.number, self.sent).into_bytes());
            }
        }
        // Now and then somebody sends to a node's own address.
        let holders = (0..2).filter(|host| hosts[*host].holds() || around.rng.u8(..30) == 0);
        let holders: Vec<usize> = holders.collect();
        let Some(to) = holders.get(around.rng.usize(..2) % holders.len().max(1)).copied() else {
            self.pause_until = around.now + WAY;
            return Attempt::None;
        };
        Attempt::Travels { to, life: hosts[to].life, at: around.now + around.some(WAY) }
    }

    fn arrive(&mut self, around: &mut Surroundings, host: &mut Host, life: u64) -> Attempt {
        self.pause_until = around.now + around.some(WAY * 10);
        let is_there = host.life == life && !host.is_stalled(around.now);
        let taken = host.node.as_mut().filter(|_| is_there).and_then(|node| {
            let batch = node.receive(&self.contents)?;
            Some((node.own.id.clone(), batch))
        });
        match taken {
            Some((journal, batch)) if self.wants_answer => {
                let positions = batch.envelopes().map(|envelope| envelope.position).collect();
                Attempt::Taken { host: host.number, life, journal, mark: batch.end(), positions, since: around.now }
            }
            // Nobody says whether it came.
            _ if !self.wants_answer => {
                self.finish(around);
                Attempt::None
            }
            _ => Attempt::None,
        }
    }

    fn finish(&mut self, around: &mut Surroundings) {
        self.contents.clear();
        self.pause_until = around.now + around.some(WAY * 10);
    }

    /// Whether everything that it has was answered.
    pub fn is_idle(&self) -> bool {
        self.is_done && self.contents.is_empty()
    }
}
