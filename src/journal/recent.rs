//! The newest batches of a journal, for its readers: every output, and the link to the other node, wants what was just
//! written. Out of the file it would be a copy, a checksum and a way to another thread for each of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::memory::Memory;
use crate::proto::batch::Batch;
use crate::proto::position::Position;

/// Bytes that are kept at most: all of a full queue that was written at once, and what a reader is behind it. One that is
/// further behind reads the file, which costs so much more that it stays behind.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Batches that were written last, as long as somebody reads.
#[derive(Debug, Default)]
pub(super) struct Recent {
    newest: Mutex<Newest>,
    readers: AtomicUsize,
    memory: Arc<Memory>,
}

#[derive(Debug, Default)]
struct Newest {
    /// In order; where positions stay empty for ever, one does not begin where the one before ends.
    batches: VecDeque<Batch>,
    bytes: usize,
    /// How many were there at the last rest.
    old: usize,
}

impl Recent {
    /// Where the memory of batches goes that are no longer kept.
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(super) fn reader_came(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reader_left(&self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Keeps batches that were written behind those before.
    pub(super) fn keep(&self, written: impl Iterator<Item = Batch>) {
        let mut newest = self.lock();
        let is_read = self.readers.load(Ordering::Relaxed) > 0;
        for batch in written {
            newest.bytes += batch.bytes().len();
            newest.batches.push_back(batch);
            while newest.bytes > if is_read { KEPT_BYTES_MAX } else { 0 } {
                self.give_oldest(&mut newest);
            }
        }
    }

    /// Batches from `at` on without a gap, of which none ends behind `end`: up to so many bytes, or one. None if the first
    /// one is not kept.
    pub(super) fn from(&self, at: Position, end: Position, bytes_max: usize) -> Vec<Batch> {
        let newest = self.lock();
        let first = newest.batches.partition_point(|batch| batch.start().position < at);
        let (mut next, mut bytes) = (at, 0);
        let run = newest.batches.range(first..).take_while(|batch| {
            let follows = batch.start().position == next;
            next = batch.end().position;
            bytes += batch.bytes().len();
            follows && next <= end && (bytes <= bytes_max || bytes == batch.bytes().len())
        });
        run.cloned().collect()
    }

    /// Lets go of what was there at the last call already.
    pub(super) fn rest(&self) {
        let mut newest = self.lock();
        for _ in 0..newest.old {
            self.give_oldest(&mut newest);
        }
        newest.old = newest.batches.len();
        drop(newest);
        self.memory.rest();
    }

    fn give_oldest(&self, newest: &mut Newest) {
        if let Some(oldest) = newest.batches.pop_front() {
            newest.bytes -= oldest.bytes().len();
            newest.old = newest.old.saturating_sub(1);
            self.memory.give(oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::batch::{BatchBuilder, Stamp};
    use crate::proto::envelope::{Flags, Origin, Timestamp, Transport};
    use crate::proto::position::{Incarnation, Mark};

    fn batch(start: u64, bytes: usize) -> Batch {
        let mut builder = BatchBuilder::new();
        let (received_at, transport) = (Timestamp(1), Transport::Tcp);
        builder.set_origin(&Origin { received_at, source: None, transport, input: "net", tag: b"" });
        builder.push(Flags::NONE, &vec![b'x'; bytes]);
        let at = Mark { position: Position(start), ordinal: 0 };
        builder.seal(Stamp { incarnation: Incarnation(1), node_hash: 0 }, at)
    }

    /// Batches that follow each other from 0 on.
    fn run(count: usize, bytes: usize) -> Vec<Batch> {
        let length = batch(0, bytes).bytes().len() as u64;
        (0..count as u64).map(|number| batch(number * length, bytes)).collect()
    }

    fn starts(batches: &[Batch]) -> Vec<u64> {
        batches.iter().map(|batch| batch.start().position.0).collect()
    }

    #[test]
    fn a_reader_gets_what_follows_up_to_its_end_and_no_more_than_it_wants() {
        let recent = Recent::default();
        recent.reader_came();
        let batches = run(5, 100);
        let [.., fourth, end] = [1, 2, 3, 4].map(|number| batches[number].start().position);
        let length = batches[0].bytes().len();
        recent.keep(batches.into_iter());
        let found = |at: Position, end, bytes| starts(&recent.from(at, end, bytes)).len();
        assert_eq!(found(Position(0), end, usize::MAX), 4);
        assert_eq!(found(fourth, end, usize::MAX), 1);
        assert_eq!(found(Position(0), Position(end.0 - 1), usize::MAX), 3, "the last one ends behind");
        assert_eq!(found(Position(0), end, 2 * length + 1), 2);
        assert_eq!(found(Position(0), end, 1), 1, "one at least");
        assert_eq!(found(Position(1), end, usize::MAX), 0, "no batch starts there");
        assert_eq!(found(end, end, usize::MAX), 0);
    }

    #[test]
    fn a_gap_ends_what_a_reader_gets() {
        let recent = Recent::default();
        recent.reader_came();
        recent.keep([batch(0, 10), batch(5000, 10)].into_iter());
        assert_eq!(starts(&recent.from(Position(0), Position(9000), usize::MAX)), [0]);
        assert_eq!(starts(&recent.from(Position(5000), Position(9000), usize::MAX)), [5000]);
    }

    #[test]
    fn what_nobody_reads_is_not_kept_nor_more_than_the_bound_nor_anything_for_long() {
        let recent = Recent::default();
        recent.keep(run(3, 100).into_iter());
        assert!(recent.lock().batches.is_empty());
        recent.reader_came();
        recent.keep(run(40, 1024 * 1024).into_iter());
        assert!((KEPT_BYTES_MAX / 2..=KEPT_BYTES_MAX).contains(&recent.lock().bytes));
        recent.rest();
        assert!(!recent.lock().batches.is_empty(), "it was just written");
        recent.rest();
        assert!(recent.lock().batches.is_empty());
        assert_eq!(recent.lock().bytes, 0);
        recent.keep(run(3, 100).into_iter());
        recent.reader_left();
        recent.keep([batch(9000, 1)].into_iter());
        assert!(recent.lock().batches.is_empty());
    }
}
