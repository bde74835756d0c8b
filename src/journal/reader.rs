//! Reading a journal: what an output, `tail` and `journal cat` see.
//!
//! A reader goes up to `durable` and no further, so that nothing it gave out can be forgotten by a crash. The fresh
//! message, the backlog after an outage and the start after a crash take this same path: there is no tail in memory
//! beside the file.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use super::Shared;
use super::index::Place;
use super::segment::{self, Found, HEADER_LEN, Scan};
use crate::proto::batch::{Batch, BatchError};
use crate::proto::position::{Mark, Position};

/// Bytes read in one call.
const READ_BYTES: usize = 1024 * 1024;

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
    /// The disk answered with an error.
    Unreadable,
}

/// Reads a journal from a position on.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    durable: watch::Receiver<Mark>,
    at: Position,
    buffer: BytesMut,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, at: Position) -> Reader {
        Reader { durable: shared.durable.subscribe(), shared, at, buffer: BytesMut::new() }
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
                Place::End => {}
                Place::GapUntil(to) => return self.skip(to.min(durable), SkipCause::Gone),
                Place::In(segment) => {
                    let end = segment.end.min(durable);
                    if let Some(read) = self.read(segment.start.position, end).await {
                        return read;
                    }
                }
            }
            if self.durable.changed().await.is_err() {
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

    /// Reads from the segment at `start` up to `end`; `None` if the segment went away meanwhile.
    async fn read(&mut self, start: Position, end: Position) -> Option<Read> {
        let available = end.bytes_since(self.at) as usize;
        let mut want = available.min(READ_BYTES);
        loop {
            let bytes = match self.fetch(start, want).await {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    // Trimmed under us. Without a turn through the index this could spin; with it, it is a gap.
                    return Some(self.skip(end, SkipCause::Gone));
                }
                Err(error) => {
                    tracing::error!(%error, position = %self.at, "cannot read the journal");
                    self.shared.counters.read_errors.inc();
                    return Some(self.skip(end, SkipCause::Unreadable));
                }
            };
            let (batches, rest) = self.decode(bytes);
            if !batches.is_empty() {
                return Some(Read::Batches(batches));
            }
            match rest {
                BatchError::Incomplete { needed } if needed > want && needed <= available => want = needed,
                // The whole rest of the segment is needed to find the way past the damage.
                _ if want < available => want = available,
                cause => return Some(self.skip_damage(start, end, cause).await),
            }
        }
    }

    /// Bytes from the reader's position on. On a thread of its own, because a backlog may have to come from the disk.
    async fn fetch(&mut self, start: Position, want: usize) -> std::io::Result<Bytes> {
        let storage = self.shared.storage.clone();
        let offset = HEADER_LEN as u64 + self.at.bytes_since(start);
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = tokio::task::spawn_blocking(move || {
            buffer.resize(want, 0);
            let read = storage.read_at(&segment::file_name(start), offset, &mut buffer);
            (buffer, read)
        });
        let (mut buffer, read) = read.await.map_err(std::io::Error::other)?;
        buffer.truncate(read?);
        let bytes = buffer.split().freeze();
        // Once the batches are dropped, the allocation comes back with the next `resize`.
        self.buffer = buffer;
        Ok(bytes)
    }

    /// Takes the batches at the front and moves on behind them; also says what stopped it.
    fn decode(&mut self, mut bytes: Bytes) -> (Vec<Batch>, BatchError) {
        let mut batches = Vec::new();
        loop {
            match Batch::decode_at(&bytes, self.shared.stamp, self.at) {
                Ok(batch) => {
                    bytes = bytes.slice(batch.bytes().len()..);
                    self.at = batch.end().position;
                    batches.push(batch);
                }
                Err(cause) => return (batches, cause),
            }
        }
    }

    async fn skip_damage(&mut self, start: Position, end: Position, cause: BatchError) -> Read {
        let want = end.bytes_since(self.at) as usize;
        let to = match self.fetch(start, want).await {
            Err(_) => end,
            Ok(bytes) => match Scan::new(bytes, self.at, self.shared.stamp).next() {
                Some(Found::Damage { to, .. }) => to,
                _ => end,
            },
        };
        tracing::error!(from = %self.at, %to, %cause, "the journal is damaged here; skipped");
        self.shared.counters.checksum_errors.inc();
        self.skip(to, SkipCause::Damaged(cause))
    }
}
