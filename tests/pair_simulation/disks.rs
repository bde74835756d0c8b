//! The disks of a host: one directory for its own journal and one for each mirror, on one machine that loses power as a
//! whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use twinlog::proto::position::JournalId;

use crate::surroundings::Surroundings;
use crate::world::storage::{EIO, ENOSPC, SimStorage};

/// See the module.
pub struct Disks {
    pub own: Arc<SimStorage>,
    pub mirrors: BTreeMap<JournalId, Arc<SimStorage>>,
    /// Removed, which is not yet safe.
    removed: Vec<(JournalId, Arc<SimStorage>)>,
    seed: u64,
}

impl Disks {
    pub fn new(seed: u64) -> Disks {
        let own = Arc::new(SimStorage::new(seed));
        Disks { own, mirrors: BTreeMap::new(), removed: Vec::new(), seed }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<SimStorage>> {
        std::iter::once(&self.own).chain(self.mirrors.values())
    }

    /// The directory of a mirror, made if there is none.
    pub fn mirror(&mut self, journal: &JournalId) -> Arc<SimStorage> {
        self.seed += 1;
        let (seed, make) = (self.seed, |seed| Arc::new(SimStorage::new(seed)));
        self.mirrors.entry(journal.clone()).or_insert_with(|| make(seed)).clone()
    }

    pub fn remove(&mut self, journal: &JournalId) {
        self.removed.extend(self.mirrors.remove_entry(journal));
    }

    /// Whether a call has come at which the machine dies.
    pub fn has_died(&self) -> bool {
        self.all().any(|storage| storage.has_died())
    }

    pub fn power_cut(&mut self, around: &mut Surroundings) {
        for (journal, storage) in std::mem::take(&mut self.removed) {
            if around.chance(2) {
                self.mirrors.entry(journal).or_insert(storage);
            }
        }
        self.all().for_each(|storage| storage.power_cut());
    }

    /// No more faults.
    pub fn heal(&self) {
        self.all().for_each(|storage| storage.heal());
    }

    fn any(&self, around: &mut Surroundings) -> &Arc<SimStorage> {
        let count = 1 + self.mirrors.len();
        self.all().nth(around.rng.usize(..count)).unwrap()
    }

    /// The machine, or its process, dies at one of the next calls.
    pub fn die_soon(&self, around: &mut Surroundings) {
        let calls = around.rng.u64(..40);
        self.any(around).die_at_call(calls);
    }

    /// The same at this call, of the own journal's disk or of a mirror's.
    pub fn die_at_call(&self, of_mirror: bool, call: u64) {
        if let Some(storage) = self.all().nth(usize::from(of_mirror)) {
            storage.die_at_call(call);
        }
    }

    /// One of the next calls fails: for good, or for want of space.
    pub fn fail_soon(&self, around: &mut Surroundings) {
        let calls = around.rng.u64(..20);
        let errno = if around.chance(2) { EIO } else { ENOSPC };
        self.any(around).fail_call(calls, errno);
    }

    /// There is space again.
    pub fn make_room(&self) {
        self.all().for_each(|storage| storage.set_capacity(u64::MAX));
    }

    /// There is no more space than a little.
    pub fn fill(&self, around: &mut Surroundings) {
        for storage in self.all() {
            storage.set_capacity(storage.used() + around.rng.u64(..6000));
        }
    }
}
