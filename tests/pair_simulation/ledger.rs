//! What the pair owes: every message that was ever safe on a disk, where it is, who has delivered it, and what was said of
//! it to its sender.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use twinlog::proto::batch::Batch;
use twinlog::proto::position::{JournalId, Mark, Position};

use crate::OUTPUTS;

/// A message's id.
pub type Id = (JournalId, Position);

#[derive(Debug)]
struct Entry {
    content: Vec<u8>,
    /// On which host's disk it is safe.
    held: [bool; 2],
    acknowledged: bool,
    /// Whether a host's copy went with its disk.
    lost: [bool; 2],
    /// Whether one copy was said to be all there is: acknowledged while degraded, or one of two disks was lost.
    is_single: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<Id, Entry>,
    /// What an output has not delivered.
    undelivered: BTreeMap<(&'static str, JournalId), BTreeSet<Position>>,
    /// When a host's disk was last lost.
    wiped_at: [Option<Duration>; 2],
    /// Messages that were acknowledged to their senders.
    pub acknowledged: u64,
    /// Messages that went with a disk, as had been said that they could.
    pub excused: u64,
}

/// The longest that something is on its way between the hosts.
const ON_THE_WAY: Duration = Duration::from_millis(250);

impl Ledger {
    /// A batch is safe on a host's disk.
    pub fn safe(&mut self, host: usize, journal: &JournalId, batch: &Batch) {
        for envelope in batch.envelopes() {
            let id = (journal.clone(), envelope.position);
            if !self.entries.contains_key(&id) {
                for output in OUTPUTS {
                    self.undelivered.entry((output, journal.clone())).or_default().insert(envelope.position);
                }
            }
            let fresh = || Entry {
                content: envelope.payload.to_vec(),
                held: [false; 2],
                lost: [false; 2],
                acknowledged: false,
                is_single: true,
            };
            let entry = self.entries.entry(id).or_insert_with(fresh);
            assert_eq!(entry.content, envelope.payload, "{journal}/{} means two messages", envelope.position);
            entry.held[host] = true;
            entry.is_single &= !entry.held[1 - host];
        }
    }

    /// A host has started and found these in a journal that begins at `oldest`: all that it had is there.
    pub fn found(&mut self, host: usize, journal: &JournalId, batches: &[Batch], oldest: Position) {
        for batch in batches {
            self.safe(host, journal, batch);
        }
        let there: BTreeSet<Position> =
            batches.iter().flat_map(|batch| batch.envelopes().map(|envelope| envelope.position)).collect();
        for position in self.owed_of(journal) {
            let entry = &self.entries[&(journal.clone(), position)];
            let is_missing = entry.held[host] && !there.contains(&position);
            assert!(!is_missing, "host {host} has lost {journal}/{position}; its journal begins at {oldest}");
        }
    }

    /// Positions of a journal that some output has not delivered.
    fn owed_of(&self, journal: &JournalId) -> BTreeSet<Position> {
        let sets = OUTPUTS.iter().filter_map(|output| self.undelivered.get(&(*output, journal.clone())));
        sets.flatten().copied().collect()
    }

    /// A host keeps nothing of a journal that is before `oldest`.
    pub fn trimmed(&self, host: usize, journal: &JournalId, oldest: Position) {
        for output in OUTPUTS {
            let waiting = self.undelivered.get(&(output, journal.clone()));
            let first = waiting.and_then(|waiting| waiting.first());
            if let Some(first) = first.filter(|first| **first < oldest) {
                let held = self.entries[&(journal.clone(), *first)].held[host];
                assert!(!held, "host {host} removed {journal}/{first} before {output} delivered it");
            }
        }
    }

    /// A host's directory of a mirror goes.
    pub fn forgotten(&mut self, host: usize, journal: &JournalId) {
        for position in self.owed_of(journal) {
            let held = self.entries[&(journal.clone(), position)].held;
            assert!(!held[host] || held[1 - host], "host {host} forgot {journal}/{position} before it was delivered");
        }
        self.drop_copies(host, |id| id.0 == *journal);
    }

    /// A host's disk is lost.
    pub fn wiped(&mut self, host: usize, now: Duration) {
        self.wiped_at[host] = Some(now);
        let owed: BTreeSet<Id> = self
            .undelivered
            .iter()
            .flat_map(|((_, journal), positions)| positions.iter().map(|position| (journal.clone(), *position)))
            .collect();
        for id in owed {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if !entry.held[host] {
                continue;
            }
            entry.lost[host] = true;
            if entry.held[1 - host] {
                entry.is_single = true;
                continue;
            }
            let broken = entry.acknowledged && !entry.is_single;
            assert!(!broken, "{}/{} was acknowledged as safe on both, and went with one disk", id.0, id.1);
            self.excused += 1;
            for output in OUTPUTS {
                if let Some(waiting) = self.undelivered.get_mut(&(output, id.0.clone())) {
                    waiting.remove(&id.1);
                }
            }
        }
        self.drop_copies(host, |_| true);
    }

    fn drop_copies(&mut self, host: usize, which: impl Fn(&Id) -> bool) {
        for (_, entry) in self.entries.iter_mut().filter(|(id, _)| which(id)) {
            entry.held[host] = false;
        }
    }

    /// A host tells the sender of this message that it is safe: on both disks, or (`alone`) on its own.
    pub fn acknowledge(&mut self, host: usize, id: &Id, alone: bool) {
        let is_owed = OUTPUTS.iter().any(|output| {
            self.undelivered.get(&(*output, id.0.clone())).is_some_and(|waiting| waiting.contains(&id.1))
        });
        let entry = self.entries.get_mut(id);
        let entry = entry.unwrap_or_else(|| panic!("{}/{} was acknowledged and is on no disk", id.0, id.1));
        assert!(entry.held[host] || !is_owed, "{}/{} was acknowledged before it was safe", id.0, id.1);
        // Nobody has told this host yet of the disk that was lost.
        assert!(
            alone || entry.lost[1 - host] || entry.held[1 - host] || !is_owed,
            "{}/{} was acknowledged with one copy",
            id.0,
            id.1
        );
        entry.is_single |= alone && !entry.held[1 - host];
        entry.acknowledged = true;
        self.acknowledged += 1;
    }

    /// An output's destination has a batch.
    pub fn delivered(&mut self, output: &'static str, journal: &JournalId, batch: &Batch) {
        let Some(waiting) = self.undelivered.get_mut(&(output, journal.clone())) else {
            panic!("{journal} was delivered before it was safe")
        };
        for envelope in batch.envelopes() {
            let known = self.entries.contains_key(&(journal.clone(), envelope.position));
            assert!(known, "{journal}/{} was delivered before it was safe", envelope.position);
            waiting.remove(&envelope.position);
        }
    }

    /// An output is said to have delivered everything before `mark`.
    pub fn check_cursor(&self, output: &str, journal: &JournalId, mark: Mark) {
        let waiting = self.undelivered.iter().find(|((name, id), _)| *name == output && id == journal);
        let first = waiting.and_then(|(_, waiting)| waiting.first());
        let told = first.is_none_or(|first| *first >= mark.position);
        assert!(
            told,
            "the cursor of {output} in {journal} at {mark:?} has passed {first:?}, which it has not delivered"
        );
    }

    /// How many messages are to be delivered, by output.
    pub fn owed(&self) -> usize {
        self.undelivered.values().map(BTreeSet::len).sum()
    }

    /// The first undelivered message that is on this host's disk only; but for what the other one has lost since the nodes
    /// began to talk, or at all if they do not.
    pub fn only_on(&self, host: usize, talks_since: Option<Duration>) -> Option<Id> {
        let wiped_at = self.wiped_at[1 - host];
        // What a node said before its host was lost may be heard after that.
        let excused = talks_since.is_none_or(|since| wiped_at.is_some_and(|at| since <= at + ON_THE_WAY));
        let owed = self
            .undelivered
            .iter()
            .flat_map(|((_, journal), positions)| positions.iter().map(|position| (journal.clone(), *position)));
        let mut here = owed.filter(|id| {
            let entry = &self.entries[id];
            entry.held[host] && !entry.held[1 - host] && !(excused && entry.lost[1 - host])
        });
        here.next()
    }
}
