//! What one reader of a journal has just read, for the others: every output, and the link to the other node, reads the same
//! bytes a moment apart. A read is a copy out of the kernel, a checksum and a look at every message.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::proto::batch::Batch;
use crate::proto::position::Position;

/// Reads that are kept, of a megabyte each at most. Readers that keep up with the journal are no further apart; others read
/// for themselves.
const KEPT: usize = 4;

/// What came of a read, once something has.
type Outcome = Option<Vec<Batch>>;
/// Reads and where they begin, the newest last.
type Reads = VecDeque<(Position, watch::Receiver<Outcome>)>;

/// The newest reads of a journal.
#[derive(Debug, Default)]
pub(super) struct Recent {
    reads: Mutex<Reads>,
    readers: AtomicUsize,
}

/// Who does the read that begins at a position.
pub(super) enum Turn {
    /// This reader, which tells the others what came of it.
    First(Tell),
    /// Another one has, or is about to.
    Later(Told),
    /// This reader, and there is nobody to tell.
    Alone,
}

/// Where a read's outcome goes. Dropped without one, it has others read for themselves.
pub(super) struct Tell(watch::Sender<Outcome>);

impl Tell {
    pub(super) fn tell(self, batches: &[Batch]) {
        self.0.send_replace(Some(batches.to_vec()));
    }
}

/// Where it comes from.
pub(super) struct Told(watch::Receiver<Outcome>);

impl Told {
    /// What was read; `None` if that came to nothing. Cancelling loses nothing.
    pub(super) async fn batches(mut self) -> Option<Vec<Batch>> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl Recent {
    pub(super) fn reader_came(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reader_left(&self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Who reads from `at` on.
    pub(super) fn turn(&self, at: Position) -> Turn {
        if self.readers.load(Ordering::Relaxed) < 2 {
            return Turn::Alone;
        }
        let mut reads = self.lock();
        if let Some((_, read)) = reads.iter().find(|(start, _)| *start == at) {
            return Turn::Later(Told(read.clone()));
        }
        if reads.len() == KEPT {
            reads.pop_front();
        }
        let (tell, read) = watch::channel(None);
        reads.push_back((at, read));
        Turn::First(Tell(tell))
    }

    /// Lets go of all.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
