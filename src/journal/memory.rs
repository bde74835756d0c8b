//! Memory of batches that were written, for those that come.
//!
//! A batch of a busy input is a megabyte. Memory of that size goes from the allocator to the kernel and comes back page by
//! page, cleared, which cost a tenth of a forward relay's time. So the journal keeps some of it while it is busy.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::proto::batch::Batch;

/// Smaller pieces stay with the allocator anyway; also what sizes are rounded up to, so that most pieces fit most batches.
const PIECE_BYTES: usize = 512 * 1024;
/// Larger pieces are too rare to be kept.
const PIECE_BYTES_MAX: usize = 4 * PIECE_BYTES;
/// Bytes kept at most: some more than the journal writes at once.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Pieces of memory that nobody uses.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last one was used last, and is likelier still in the processor's cache.
    free: Vec<Vec<u8>>,
    /// Their bytes.
    kept: usize,
    /// Pieces that were taken and have not come back: no more than these are kept.
    taken: usize,
    /// Whether one was taken since the last look.
    busy: bool,
}

impl Memory {
    /// An empty vector with room for `bytes`.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        if !(PIECE_BYTES / 4..=PIECE_BYTES_MAX).contains(&bytes) {
            return Vec::with_capacity(bytes);
        }
        let mut state = self.lock();
        state.busy = true;
        state.taken = (state.taken + 1).min(KEPT_BYTES_MAX / PIECE_BYTES);
        let fitting = state.free.iter().rposition(|piece| piece.capacity() >= bytes);
        if let Some(at) = fitting {
            let piece = state.free.remove(at);
            state.kept -= piece.capacity();
            return piece;
        }
        drop(state);
        Vec::with_capacity(bytes.next_multiple_of(PIECE_BYTES))
    }

    /// Keeps the memory of a batch that is no longer needed, if nobody else holds it.
    pub(super) fn give(&self, batch: Batch) {
        if batch.bytes().len() < PIECE_BYTES / 4 {
            return;
        }
        let Some(piece) = batch.into_memory() else { return };
        let mut state = self.lock();
        if state.taken > 0 && state.kept + piece.capacity() <= KEPT_BYTES_MAX {
            state.taken -= 1;
            state.kept += piece.capacity();
            state.free.push(piece);
        }
    }

    /// Lets go of what is kept if none of it was wanted since the last call.
    pub(super) fn rest(&self) {
        let mut state = self.lock();
        if !std::mem::take(&mut state.busy) {
            *state = State::default();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::batch::{BatchBuilder, Stamp};
    use crate::proto::envelope::{Flags, Origin, Timestamp, Transport};
    use crate::proto::position::{Incarnation, Mark};

    fn batch(memory: Vec<u8>) -> Batch {
        let mut builder = BatchBuilder::in_memory(memory);
        let (received_at, transport) = (Timestamp(1), Transport::Tcp);
        builder.set_origin(&Origin { received_at, source: None, transport, input: "net", tag: b"" });
        builder.push(Flags::NONE, &[b'x'; PIECE_BYTES]);
        builder.seal(Stamp { incarnation: Incarnation(1), node_hash: 0 }, Mark::default())
    }

    #[test]
    fn a_piece_is_used_again_once_nobody_holds_it() {
        let memory = Memory::default();
        let first = batch(memory.take(PIECE_BYTES + 1));
        let (place, held) = (first.bytes().as_ptr(), first.clone());
        memory.give(first);
        let other = memory.take(PIECE_BYTES + 1);
        assert_ne!(other.as_ptr(), place);
        memory.give(held);
        let again = memory.take(PIECE_BYTES + 1);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert!(again.capacity() > PIECE_BYTES);
    }

    #[test]
    fn no_more_is_kept_than_was_taken_and_nothing_for_long() {
        let memory = Memory::default();
        memory.give(batch(Vec::new()));
        assert_eq!(memory.lock().free.len(), 0, "nobody would take it");
        memory.give(batch(memory.take(PIECE_BYTES + 1)));
        memory.rest();
        assert_eq!(memory.lock().free.len(), 1, "it was just used");
        memory.rest();
        assert_eq!(memory.lock().free.len(), 0);
        let taken: Vec<Vec<u8>> = (0..100).map(|_| memory.take(PIECE_BYTES + 1)).collect();
        taken.into_iter().for_each(|piece| memory.give(batch(piece)));
        assert!(memory.lock().kept <= KEPT_BYTES_MAX);
    }
}
