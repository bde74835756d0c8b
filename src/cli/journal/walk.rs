//! Walking a segment's batches in pieces: like `segment::Scan`, for files that need not fit into memory.

use std::io;

use bytes::Bytes;

use super::directory::Segment;
use crate::journal::segment::{Found, HEADER_LEN, Header, Scan};
use crate::journal::storage::Storage;
use crate::proto::batch::{Batch, BatchError, Stamp};
use crate::proto::position::Position;

/// Bytes read in one call.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// The batches of one segment.
pub(super) struct Walk<'a> {
    storage: &'a dyn Storage,
    file: String,
    header: Option<Header>,
    start: Position,
    end: Position,
    stamp: Stamp,
    at: Position,
    bytes: Bytes,
    done: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(storage: &'a dyn Storage, segment: &Segment, from: Position, stamp: Stamp) -> Walk<'a> {
        let Segment { file, start, end, header, .. } = segment.clone();
        Walk { storage, file, header, start, end, stamp, at: from.max(start), bytes: Bytes::new(), done: false }
    }

    /// Makes the bytes at hand `want` long, or as long as the segment has; false if there is no more than before.
    fn fetch(&mut self, want: u64) -> io::Result<bool> {
        let want = want.min(self.end.bytes_since(self.at));
        if want <= self.bytes.len() as u64 {
            return Ok(false);
        }
        let mut bytes = vec![0; want as usize];
        let offset = HEADER_LEN as u64 + self.at.bytes_since(self.start);
        let read = self.storage.read_at(&self.file, offset, &mut bytes)?;
        bytes.truncate(read);
        let more = bytes.len() > self.bytes.len();
        self.bytes = bytes.into();
        Ok(more)
    }

    fn step(&mut self) -> io::Result<Option<Found>> {
        while self.at < self.end {
            match Batch::decode_at(&self.bytes, self.stamp, self.at) {
                Ok(batch) => {
                    self.bytes = self.bytes.slice(batch.bytes().len()..);
                    self.at = batch.end().position;
                    return Ok(Some(Found::Batch(batch)));
                }
                Err(BatchError::Incomplete { needed }) if self.fetch(PIECE_BYTES.max(needed as u64))? => {}
                Err(_) if self.was_recycled()? => return Err(io::ErrorKind::NotFound.into()),
                Err(_) => return self.pass_damage(),
            }
        }
        Ok(None)
    }

    /// Whether a daemon at work has removed the segment and uses its file for another: the header is what it writes first.
    fn was_recycled(&self) -> io::Result<bool> {
        let mut head = [0; HEADER_LEN];
        let read = self.storage.read_at(&self.file, 0, &mut head)?;
        Ok(self.header.is_some() && Header::decode(&head[..read]).ok() != self.header)
    }

    /// The whole rest of the segment is needed to find the way past damage.
    fn pass_damage(&mut self) -> io::Result<Option<Found>> {
        self.fetch(u64::MAX)?;
        let mut scan = Scan::new(self.bytes.clone(), self.at, self.stamp);
        let found = scan.next();
        match &found {
            Some(Found::Damage { to, .. }) => {
                self.bytes = self.bytes.slice(to.bytes_since(self.at) as usize..);
                self.at = *to;
            }
            _ => self.at = self.end,
        }
        Ok(found)
    }
}

impl Iterator for Walk<'_> {
    type Item = io::Result<Found>;

    fn next(&mut self) -> Option<io::Result<Found>> {
        if self.done {
            return None;
        }
        let step = self.step();
        self.done = step.is_err();
        step.transpose()
    }
}
