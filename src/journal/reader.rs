//! Reading a journal: what an output, `tail` and `journal cat` see.
//!
//! A reader goes up to `durable` and no further, so that nothing it gave out can be forgotten by a crash. The fresh
//! message, the backlog after an outage and the start after a crash take this same path; the bytes of what was written
//! last are still in memory, which is only a shorter way to the file's.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Shared;
use super::index::Place;
use super::segment::{self, Found, HEADER_LEN, Scan};
use super::storage::{Storage, is_shortage};
use crate::proto::batch::{Batch, BatchError, Stamp};
use crate::proto::position::{Mark, Position};

/// Bytes read in one call.
const READ_BYTES: usize = 1024 * 1024;

/// Memory of earlier reads that is kept for later ones, in reads. Batches in it may wait for an acknowledgement; a new
/// buffer has to be cleared and mapped, which cost a tenth of a forward relay's time. So there are more than are on their
/// way to one server.
const BUFFERS_MAX: usize = 24;

/// Of these so many when there was nothing to read for a while. A busy reader is at the end many times a second.
const BUFFERS_IDLE: usize = 2;

/// That while.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// Wait before a read that failed for want of a file descriptor is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// What a reader found.
#[derive(Clone, Debug)]
pub enum Read {
    /// Batches in order, without a gap between them and to what was read before; at least one.
    Batches(Vec<Batch>),
    /// The positions before `to` cannot be read: dropped, missing or damaged. Reading goes on at `to`.
    Skipped {
        /// First position that was skipped.
        from: Position,
        /// Where reading goes on.
        to: Position,
        /// Why.
        cause: SkipCause,
    },
}

/// Why positions cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipCause {
    /// Their segment is gone: dropped because the journal was full, or removed by hand.
    Gone,
    /// The bytes changed on the disk.
    Damaged(BatchError),
    /// The disk answered with an error, also when asked page by page.
    Unreadable,
}

/// Reads a journal from a position on.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    durable: watch::Receiver<Mark>,
    at: Position,
    /// The memory of the last reads, the newest last. It is used again once the batches in it are dropped, without being
    /// cleared.
    buffers: VecDeque<Bytes>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, at: Position) -> Reader {
        shared.recent.reader_came();
        Reader { durable: shared.durable.subscribe(), shared, at, buffers: VecDeque::new() }
    }

    /// Where the reader stands: everything before was given out or skipped.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    /// Goes to another position, which must be where a batch starts.
    pub fn seek(&mut self, to: Position) {
        self.at = to;
    }

    /// How far there is something to read.
    #[must_use]
    pub fn end(&self) -> Mark {
        *self.durable.borrow()
    }

    /// The next batches, up to a megabyte or one larger batch; waits at the durable end. Cancelling loses nothing.
    pub async fn next(&mut self) -> Read {
        loop {
            let durable = self.durable.borrow_and_update().position;
            match self.shared.index.find(self.at) {
                _ if durable <= self.at => {}
                // The journal's end was moved behind what was delivered and lost: there is nothing up to there.
                Place::End => return self.skip(durable, SkipCause::Gone),
                Place::GapUntil(to) => return self.skip(to.min(durable), SkipCause::Gone),
                Place::In(segment) => {
                    let end = segment.end.min(durable);
                    let recent = self.shared.recent.from(self.at, end, READ_BYTES);
                    if let Some(last) = recent.last() {
                        self.at = last.end().position;
                        return Read::Batches(recent);
                    }
                    return self.read(segment.start.position, end).await;
                }
            }
            let changed = match timeout(IDLE_AFTER, self.durable.changed()).await {
                Ok(changed) => changed,
                Err(_) => {
                    self.buffers.truncate(BUFFERS_IDLE);
                    self.durable.changed().await
                }
            };
            if changed.is_err() {
                // The sender lives in `shared`, which this reader holds.
                std::future::pending::<()>().await;
            }
        }
    }

    fn skip(&mut self, to: Position, cause: SkipCause) -> Read {
        let from = self.at;
        self.at = to;
        Read::Skipped { from, to, cause }
    }

    /// Reads from the segment at `start` up to `end`.
    async fn read(&mut self, start: Position, end: Position) -> Read {
        let available = end.bytes_since(self.at) as usize;
        let mut want = available.min(READ_BYTES);
        loop {
            let fetched = match self.fetch(start, want).await {
                Ok(fetched) => fetched,
                // Trimmed or dropped under us.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return self.skip(end, SkipCause::Gone),
                Err(error) => {
                    tracing::warn!(%error, position = %self.at, "cannot read the journal; trying again");
                    self.shared.counters.read_errors.inc();
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let Fetched { bytes, unreadable, batches, rest } = fetched;
            if let Some(last) = batches.last() {
                self.at = last.end().position;
                return Read::Batches(batches);
            }
            // Trimmed or dropped under us, and its file is another segment's now.
            if self.shared.index.first().is_none_or(|first| first.start.position > start) {
                return self.skip(end, SkipCause::Gone);
            }
            match rest {
                BatchError::Incomplete { needed } if needed > want && needed <= available => want = needed,
                // The whole rest of the segment is needed to find the way past the damage.
                _ if want < available => want = available,
                cause => return self.skip_damage(bytes, unreadable, end, cause),
            }
        }
    }

    /// Bytes from the reader's position on, and the batches in them. On a thread of its own, because a backlog may have to
    /// come from the disk; there the bytes are looked at too, while the processor has them at hand.
    async fn fetch(&mut self, start: Position, want: usize) -> io::Result<Fetched> {
        let storage = self.shared.storage.clone();
        let offset = HEADER_LEN as u64 + self.at.bytes_since(start);
        let mut buffer = self.buffer();
        let (stamp, at) = (self.shared.stamp, self.at);
        let read = tokio::task::spawn_blocking(move || {
            if buffer.len() < want {
                // Whole, so that it fits every later read but one of a larger batch.
                buffer = BytesMut::zeroed(want.max(READ_BYTES));
            }
            let read = salvage(&*storage, &segment::file_name(start), offset, &mut buffer[..want]);
            let buffer = buffer.freeze();
            let fetched = read.map(|(filled, error)| {
                let bytes = buffer.slice(..filled);
                let (batches, rest) = decode(bytes.clone(), stamp, at);
                (Fetched { bytes, unreadable: error.is_some(), batches, rest }, error)
            });
            (buffer, fetched)
        });
        let (buffer, fetched) = read.await.map_err(io::Error::other)?;
        if buffer.len() <= READ_BYTES {
            self.buffers.push_back(buffer);
        }
        let (fetched, error) = fetched?;
        if let Some(error) = error {
            tracing::error!(%error, position = %self.at, "a part of the journal cannot be read");
            self.shared.counters.read_errors.inc();
        }
        Ok(fetched)
    }

    /// Memory of an earlier read that nobody uses any more, the newest, or none.
    fn buffer(&mut self) -> BytesMut {
        let free = self.buffers.iter().rposition(Bytes::is_unique);
        let buffer = free.and_then(|at| self.buffers.remove(at)).map(Bytes::try_into_mut);
        if self.buffers.len() >= BUFFERS_MAX {
            self.buffers.pop_front();
        }
        buffer.and_then(Result::ok).unwrap_or_default()
    }

    /// Goes on at the next sound batch in `bytes`, the whole rest of the segment, or at its end.
    fn skip_damage(&mut self, bytes: Bytes, unreadable: bool, end: Position, cause: BatchError) -> Read {
        let to = match Scan::new(bytes, self.at, self.shared.stamp).next() {
            Some(Found::Damage { to, .. }) => to,
            _ => end,
        };
        tracing::error!(from = %self.at, %to, %cause, "the journal is damaged here; skipped");
        self.shared.counters.checksum_errors.inc();
        self.skip(to, if unreadable { SkipCause::Unreadable } else { SkipCause::Damaged(cause) })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.recent.reader_left();
    }
}

struct Fetched {
    bytes: Bytes,
    /// Whether some of the bytes are zeros in the place of what the disk did not give.
    unreadable: bool,
    /// The batches at the front.
    batches: Vec<Batch>,
    /// What ended them.
    rest: BatchError,
}

/// Takes the batches at the front of `bytes`, which stand at `at`; also says what stopped it.
fn decode(mut bytes: Bytes, stamp: Stamp, mut at: Position) -> (Vec<Batch>, BatchError) {
    let mut batches = Vec::new();
    loop {
        match Batch::decode_at(&bytes, stamp, at) {
            Ok(batch) => {
                bytes = bytes.slice(batch.bytes().len()..);
                at = batch.end().position;
                batches.push(batch);
            }
            Err(cause) => return (batches, cause),
        }
    }
}

/// Fills `buffer` with what can be read of it and zeros for the pages that cannot; says why if there are any. One bad
/// sector then costs the batches that touch it, found as damage, and not the whole segment.
fn salvage(
    storage: &dyn Storage,
    name: &str,
    offset: u64,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<io::Error>)> {
    const PAGE_BYTES: usize = 4096;
    let passes = |error: &io::Error| error.kind() == io::ErrorKind::NotFound || is_shortage(error);
    match storage.read_at(name, offset, buffer) {
        Err(error) if !passes(&error) => {}
        read => return read.map(|filled| (filled, None)),
    }
    let mut filled = 0;
    let mut unreadable = None;
    while filled < buffer.len() {
        let at = offset + filled as u64;
        let page = &mut buffer[filled..];
        let length = (PAGE_BYTES - (at % PAGE_BYTES as u64) as usize).min(page.len());
        let page = &mut page[..length];
        match storage.read_at(name, at, page) {
            Ok(read) => {
                filled += read;
                if read < length {
                    break;
                }
            }
            Err(error) if passes(&error) => return Err(error),
            Err(error) => {
                page.fill(0);
                filled += length;
                unreadable = Some(error);
            }
        }
    }
    Ok((filled, unreadable))
}
