//! The segment: one file of a journal, a header and then batches without a byte between them.
//!
//! ```text
//! header, 128 bytes, little endian
//!  0  magic "TWINLOGS"       24  position of the first batch, u64
//!  8  version, u16 = 1       32  its ordinal, u64
//! 10  length of the name     40  zero
//! 12  CRC-32C, u32           64  name of the node, 64 bytes, padded with zeros
//! 16  incarnation, u64
//! ```
//!
//! The CRC covers the header with its own field left out. The file's name is the position in 16 hexadecimal digits and
//! `.seg`. The byte at `position` stands at `position - start + 128`. The header is synced before the first batch is
//! written, and a segment is synced whole before the next one is made: only the last one can have a torn tail.
//!
//! A segment may stand in the file of a removed one (`spares`), which is then longer than what was written: behind the last
//! batch are old bytes, with old batches in them. Those are of other positions, so none of them is ever taken for one of
//! this place. A sealed segment ends where the next one starts, the last one with its last sound batch.

use bytes::Bytes;
use thiserror::Error;

use crate::proto::batch::{self, Batch, BatchError, HEADER_LEN as BATCH_HEADER_LEN, Stamp};
use crate::proto::position::{Incarnation, JournalId, Mark, NODE_NAME_MAX, Position};

/// Bytes before the first batch.
pub const HEADER_LEN: usize = 128;
/// The segment format this code writes and the newest it reads.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"TWINLOGS";
const NAME_AT: usize = 64;

/// Why a header is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Too short, another magic, or changed since it was written.
    #[error("the segment's header is damaged")]
    Damaged,
    /// Written by a newer version of twinlog.
    #[error("segment format {0} is newer than this program reads ({VERSION})")]
    Version(u16),
}

/// What a segment's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The journal it belongs to.
    pub journal: JournalId,
    /// Where its first batch stands.
    pub start: Mark,
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let name = self.journal.node.as_str().as_bytes();
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10..12].copy_from_slice(&(name.len() as u16).to_le_bytes());
        header[16..24].copy_from_slice(&self.journal.incarnation.0.to_le_bytes());
        header[24..32].copy_from_slice(&self.start.position.0.to_le_bytes());
        header[32..40].copy_from_slice(&self.start.ordinal.to_le_bytes());
        header[NAME_AT..NAME_AT + name.len()].copy_from_slice(name);
        let crc = checksum(&header);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`HeaderError`]; a newer version is told apart from damage by its intact magic and checksum.
    pub fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(HeaderError::Damaged)?;
        let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let crc = u32::from_le_bytes(header[12..16].try_into().expect("four bytes"));
        if header[..8] != MAGIC || crc != checksum(header) {
            return Err(HeaderError::Damaged);
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version > VERSION {
            return Err(HeaderError::Version(version));
        }
        let length = usize::from(u16::from_le_bytes([header[10], header[11]]));
        let name = header[NAME_AT..].get(..length.min(NODE_NAME_MAX)).unwrap_or_default();
        let node = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()).ok_or(HeaderError::Damaged)?;
        Ok(Header {
            journal: JournalId { node, incarnation: Incarnation(u64_at(16)) },
            start: Mark { position: Position(u64_at(24)), ordinal: u64_at(32) },
        })
    }
}

fn checksum(header: &[u8; HEADER_LEN]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..])
}

/// The name of the segment that starts at `position`.
#[must_use]
pub fn file_name(position: Position) -> String {
    format!("{:016x}.seg", position.0)
}

/// Where the segment of this name starts; `None` for any other file, and for a place that no journal ever reaches (it
/// would take 2^63 bytes): sums of a position and a length need no check then.
#[must_use]
pub fn position_of(name: &str) -> Option<Position> {
    let digits = name.strip_suffix(".seg")?;
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (digits.len() == 16 && digits.bytes().all(lower_hex))
        .then(|| u64::from_str_radix(digits, 16).ok().filter(|position| *position < 1 << 63).map(Position))
        .flatten()
}

/// One step of a [`Scan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A sound batch, in its place.
    Batch(Batch),
    /// A damaged stretch with a sound batch behind it.
    Damage {
        /// First damaged byte.
        from: Position,
        /// Where sound batches go on.
        to: Position,
        /// What was wrong at `from`.
        cause: BatchError,
    },
    /// Bytes after the last sound batch that are none.
    Tail {
        /// First byte that is not part of a sound batch.
        from: Position,
        /// How many bytes may be a batch that was never finished; the others were left by an earlier use of the file.
        torn: u64,
        /// What was wrong there.
        cause: BatchError,
    },
}

/// Walks the batches in a stretch of a segment and finds its way past damage.
#[derive(Debug)]
pub struct Scan {
    bytes: Bytes,
    at: Position,
    stamp: Stamp,
}

impl Scan {
    /// Scans `bytes`, whose first byte stands at `start` of the journal of `stamp`.
    #[must_use]
    pub fn new(bytes: Bytes, start: Position, stamp: Stamp) -> Scan {
        Scan { bytes, at: start, stamp }
    }

    /// Where the next batch starts, or the damage.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    fn skip(&mut self, bytes: usize) {
        self.bytes = self.bytes.slice(bytes..);
        self.at = self.at.advance(bytes as u64);
    }
}

impl Iterator for Scan {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if self.bytes.is_empty() {
            return None;
        }
        let cause = match Batch::decode_at(&self.bytes, self.stamp, self.at) {
            Ok(batch) => {
                self.skip(batch.bytes().len());
                return Some(Found::Batch(batch));
            }
            Err(cause) => cause,
        };
        let from = self.at;
        match resync(&self.bytes, from, self.stamp) {
            Some(distance) => {
                self.skip(distance);
                Some(Found::Damage { from, to: self.at, cause })
            }
            None => {
                let tail = std::mem::take(&mut self.bytes);
                Some(Found::Tail { from, torn: torn(&tail, from, self.stamp), cause })
            }
        }
    }
}

/// Bytes from the start of `bytes` to the next sound batch that stands in its own place.
fn resync(bytes: &Bytes, start: Position, stamp: Stamp) -> Option<usize> {
    let candidates = memchr::memmem::find_iter(bytes.get(1..)?, &batch::MAGIC).map(|at| at + 1);
    candidates
        .filter(|at| bytes.len() - at >= BATCH_HEADER_LEN)
        .find(|at| Batch::decode_at(&bytes.slice(at..), stamp, start.advance(*at as u64)).is_ok())
}

/// How much of a tail at `start` may be an unfinished batch. With a batch of an earlier place in it, the file was used
/// before: then it is what claims to be a batch of this place, and else all of it.
fn torn(tail: &[u8], start: Position, stamp: Stamp) -> u64 {
    let ours = |at: usize| batch::peek(&tail[at..]).ok().filter(|head| head.stamp == stamp);
    let mut candidates = memchr::memmem::find_iter(tail, &batch::MAGIC);
    let used_before = candidates.any(|at| ours(at).is_some_and(|head| head.mark.position < start));
    match ours(0).filter(|head| head.mark.position == start) {
        Some(head) if used_before => head.length.min(tail.len()) as u64,
        None if used_before => 0,
        _ => tail.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_no_flipped_bit_passes() {
        let journal = JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(9) };
        let header = Header { journal, start: Mark { position: Position(4711), ordinal: 3 } };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes), Err(HeaderError::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_segment_is_told_apart_from_damage() {
        let journal = JournalId { node: "agg-a".parse().unwrap(), incarnation: Incarnation(9) };
        let mut bytes = Header { journal, start: Mark::default() }.encode();
        bytes[8] = 2;
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Version(2)));
    }

    #[test]
    fn only_segments_have_a_position() {
        assert_eq!(position_of(&file_name(Position(0xabc))), Some(Position(0xabc)));
        for other in
            ["cursors", "lock", "abc.seg", "0000000000000ABC.seg", "+000000000000abc.seg", "ffffffffffffffff.seg"]
        {
            assert_eq!(position_of(other), None, "{other}");
        }
    }
}
