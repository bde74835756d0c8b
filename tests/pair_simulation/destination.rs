//! Where messages go: one place for each output, the same for both nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use twinlog::proto::batch::Batch;
use twinlog::proto::position::{JournalId, Position};

/// See the module.
pub struct Destination {
    pub output: &'static str,
    /// Whether it takes anything.
    pub is_there: bool,
    /// Longest time until something arrives there, and the same until its acknowledgement is back.
    pub delay_max: Duration,
    /// What came, by id, and when first.
    pub received: BTreeMap<(JournalId, Position), (Duration, Vec<u8>)>,
    pub repeats: u64,
}

impl Destination {
    pub fn new(output: &'static str) -> Destination {
        let delay_max = Duration::from_millis(10);
        Destination { output, is_there: true, delay_max, received: BTreeMap::new(), repeats: 0 }
    }

    /// Is gone, or slow.
    pub fn fail(&mut self, is_gone: bool) {
        self.is_there = !is_gone;
        self.delay_max = Duration::from_millis(2500);
    }

    pub fn recover(&mut self) {
        (self.is_there, self.delay_max) = (true, Duration::from_millis(10));
    }

    pub fn is_well(&self) -> bool {
        self.is_there && self.delay_max <= Duration::from_millis(10)
    }

    /// Takes a batch. Returns when the first of its messages had come that came again.
    pub fn take(&mut self, now: Duration, journal: &JournalId, batch: &Batch) -> Option<Duration> {
        let mut repeated: Option<Duration> = None;
        for envelope in batch.envelopes() {
            let id = (journal.clone(), envelope.position);
            if let Some((first, content)) = self.received.get(&id) {
                assert_eq!(content, envelope.payload, "{}/{} has two contents", id.0, id.1);
                repeated = Some(repeated.map_or(*first, |earlier| earlier.max(*first)));
                self.repeats += 1;
            } else {
                self.received.insert(id, (now, envelope.payload.to_vec()));
            }
        }
        repeated
    }
}
