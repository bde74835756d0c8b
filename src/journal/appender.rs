//! The queue before the journal's thread: bounded by bytes, and where positions are given out.
//!
//! Positions are given out under the queue's lock, in the order of arrival. Waiting for room in the queue *is* the
//! backpressure: whoever appends does not read meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::Shared;
use super::memory::Memory;
use super::reader::Reader;
use super::writer::Poisoned;
use crate::proto::batch::{Batch, BatchBuilder, Stamp};
use crate::proto::position::{Mark, Position};

/// Bytes that may wait for the disk; beyond, inputs wait. What waits gets cold, and is still to be written, summed and sent:
/// with twice as much a thousand busy connections cost a quarter more each message.
pub const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of datagrams that may wait beside: their senders do not.
pub const DATAGRAMS_BYTES: usize = 32 * 1024 * 1024;
/// Connections that may hold what they have read at the same time, a read of 256 KiB each: with a full queue, thousands
/// would hold more than the queue does.
const HANDS: usize = 128;
/// Bytes that are written before they are due: beyond, waiting longer saves nothing.
pub(super) const WRITE_BYTES: usize = 1024 * 1024;

/// Why a batch was not taken. Whoever holds it must not promise it.
#[derive(Clone, Debug, Error)]
pub enum Refused {
    /// A write or a sync failed.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// It is not the next one of another node's journal.
    #[error("a batch at position {at} came where {expected} was expected")]
    OutOfPlace {
        /// Where it stands.
        at: Position,
        /// Where the journal ends here.
        expected: Position,
    },
    /// The daemon is stopping.
    #[error("the journal is closed")]
    Closed,
}

/// What one place in the queue holds.
#[derive(Debug)]
pub(super) enum Waiting {
    /// What this node received: it becomes a batch where it stands.
    Fresh(BatchBuilder),
    /// A batch of another node's journal.
    Sealed(Batch),
    /// Nothing: the journal goes on behind a hole that ends here.
    Hole,
}

impl Waiting {
    /// Bytes that it has in the journal.
    pub(super) fn len(&self) -> usize {
        match self {
            Waiting::Fresh(builder) => builder.len(),
            Waiting::Sealed(batch) => batch.bytes().len(),
            Waiting::Hole => 0,
        }
    }

    /// Messages that it has.
    pub(super) fn messages(&self) -> u32 {
        match self {
            Waiting::Fresh(builder) => builder.messages(),
            Waiting::Sealed(batch) => batch.messages(),
            Waiting::Hole => 0,
        }
    }

    /// The batch that stands at `at`; `None` for a hole.
    pub(super) fn seal(self, stamp: Stamp, at: Mark) -> Option<Batch> {
        match self {
            Waiting::Fresh(builder) => Some(builder.seal(stamp, at)),
            Waiting::Sealed(batch) => Some(batch),
            Waiting::Hole => None,
        }
    }
}

/// What waits for the journal's thread.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<(Waiting, Mark)>,
    /// Bytes that were taken in and not written, with those that the thread has in its hands.
    pub(super) waiting_bytes: usize,
    /// When the first of `waiting` came.
    pub(super) waiting_since: Instant,
    /// Bytes of the room for datagrams that are taken: of what is written, it gets back its own first.
    pub(super) datagrams_bytes: usize,
    /// Where the next batch will stand.
    pub(super) end: Mark,
    pub(super) refused: Option<Refused>,
    /// Once set, what cannot be written at this time is given up.
    pub(super) give_up_at: Option<Instant>,
}

/// The queue with its lock, its bell and its bound.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) queue: Mutex<Queue>,
    pub(super) bell: Condvar,
    pub(super) room: Semaphore,
    pub(super) datagrams_room: Semaphore,
    hands: Semaphore,
    pub(super) memory: Arc<Memory>,
}

impl Inbox {
    pub(super) fn new(end: Mark, memory: Arc<Memory>) -> Inbox {
        let queue = Queue {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_since: Instant::now(),
            datagrams_bytes: 0,
            end,
            refused: None,
            give_up_at: None,
        };
        Inbox {
            queue: Mutex::new(queue),
            bell: Condvar::new(),
            room: Semaphore::new(QUEUE_BYTES),
            datagrams_room: Semaphore::new(DATAGRAMS_BYTES),
            hands: Semaphore::new(HANDS),
            memory,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the next batch will stand.
    pub(super) fn end(&self) -> Mark {
        self.lock().end
    }

    /// Bytes that wait for the thread.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.lock().waiting_bytes
    }

    pub(super) fn refuse(&self, why: Refused) {
        self.lock().refused.get_or_insert(why);
        self.close_room();
    }

    fn close_room(&self) {
        self.room.close();
        self.datagrams_room.close();
        self.bell.notify_all();
    }

    /// Takes nothing more; the thread ends when all is written, or at `give_up_at`.
    pub(super) fn close(&self, give_up_at: Instant) {
        let mut queue = self.lock();
        queue.refused.get_or_insert(Refused::Closed);
        queue.give_up_at = Some(queue.give_up_at.map_or(give_up_at, |earlier| earlier.min(give_up_at)));
        drop(queue);
        self.close_room();
    }

    pub(super) fn push(&self, queue: &mut Queue, waiting: Waiting) -> Mark {
        let at = queue.end;
        let length = waiting.len();
        queue.end =
            Mark { position: at.position.advance(length as u64), ordinal: at.ordinal + u64::from(waiting.messages()) };
        let before = queue.waiting_bytes;
        queue.waiting_bytes += length;
        if queue.waiting.is_empty() {
            queue.waiting_since = Instant::now();
        }
        queue.waiting.push_back((waiting, at));
        // The thread has to learn when something is due; what comes after that is no news until it is much.
        if queue.waiting.len() == 1 || (before < WRITE_BYTES && queue.waiting_bytes >= WRITE_BYTES) {
            self.bell.notify_one();
        }
        queue.end
    }
}

/// Bytes of the queue's bound that a batch takes: one larger than the queue takes all of it.
pub(super) fn permits(length: usize) -> u32 {
    length.min(QUEUE_BYTES) as u32
}

/// Hands batches to the journal. Cheap to clone; one for every connection.
#[derive(Clone, Debug)]
pub struct Appender {
    pub(super) shared: Arc<Shared>,
}

impl Appender {
    /// Queues a batch and returns where it ends. Waits while the queue is full: the caller stops reading meanwhile. The
    /// batch is kept only once [`durable`](Appender::durable) has reached the returned mark.
    ///
    /// # Errors
    /// [`Refused`]; the batch is gone and nothing must be promised for it.
    pub async fn append(&self, builder: BatchBuilder) -> Result<Mark, Refused> {
        let room = self.shared.inbox.room.acquire_many(permits(builder.len())).await;
        self.push(builder, room.ok(), 0)
    }

    /// The same for datagrams, whose senders cannot wait: there is room for them when streams have filled theirs.
    ///
    /// # Errors
    /// As [`append`](Appender::append).
    pub async fn append_datagrams(&self, builder: BatchBuilder) -> Result<Mark, Refused> {
        let (inbox, bytes) = (&self.shared.inbox, permits(builder.len()));
        if let Ok(room) = inbox.room.try_acquire_many(bytes) {
            return self.push(builder, Some(room), 0);
        }
        let room = inbox.datagrams_room.acquire_many(bytes).await;
        self.push(builder, room.ok(), bytes as usize)
    }

    /// Queues a batch that has its room, none if that is closed; so much of it is that of datagrams.
    fn push(
        &self,
        builder: BatchBuilder,
        room: Option<SemaphorePermit<'_>>,
        datagrams_bytes: usize,
    ) -> Result<Mark, Refused> {
        let mut queue = self.shared.inbox.lock();
        match (room, &queue.refused) {
            (Some(room), None) => {
                room.forget();
                queue.datagrams_bytes += datagrams_bytes;
                Ok(self.shared.inbox.push(&mut queue, Waiting::Fresh(builder)))
            }
            (_, refused) => Err(refused.clone().unwrap_or(Refused::Closed)),
        }
    }

    /// The right to read, until what was read is appended: take it when there is something to read, or leave it to others.
    ///
    /// # Panics
    /// Never: nobody closes the semaphore.
    pub async fn hand(&self) -> SemaphorePermit<'_> {
        self.shared.inbox.hands.acquire().await.expect("nobody closes the semaphore")
    }

    /// How old the oldest byte gets before it is synced: `journal.commit_interval`.
    #[must_use]
    pub fn commit_interval(&self) -> Duration {
        self.shared.settings.commit_interval
    }

    /// Memory for batches to come.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.shared.inbox.memory
    }

    /// A reader from `at` on, which must be where a batch starts: an appended batch's end less its length is one.
    #[must_use]
    pub fn reader(&self, at: Position) -> Reader {
        Reader::new(self.shared.clone(), at)
    }

    /// How far the journal may be acknowledged to senders: what `journal.acknowledge` means.
    #[must_use]
    pub fn promised(&self) -> watch::Receiver<Mark> {
        self.shared.promised.subscribe()
    }

    /// How far the journal is safe on this node's disk.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<Mark> {
        self.shared.durable.subscribe()
    }
}
