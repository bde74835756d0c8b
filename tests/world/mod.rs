//! What the tests of the journal share: a simulated disk, and short ways to make and read batches.

// Every test file is a crate of its own and uses its part of this one.
#![allow(dead_code, clippy::unwrap_used)]

pub mod storage;

use std::collections::VecDeque;
use std::io;

use twinlog::journal::index::{Index, Place};
use twinlog::journal::segment::{self, Found, HEADER_LEN, Scan};
use twinlog::journal::storage::Storage;
use twinlog::journal::writer::{AppendError, Writer};
use twinlog::proto::batch::{Batch, BatchBuilder, Stamp};
use twinlog::proto::envelope::{Flags, Origin, Timestamp, Transport};
use twinlog::proto::position::{Incarnation, JournalId, Mark, NodeName, Position};

pub const INCARNATION: Incarnation = Incarnation(0x19a_a3f0);

pub fn node() -> NodeName {
    "agg-a".parse().unwrap()
}

pub fn journal_id() -> JournalId {
    JournalId { node: node(), incarnation: INCARNATION }
}

pub fn stamp() -> Stamp {
    Stamp::from(&journal_id())
}

/// A builder with these messages.
pub fn builder(messages: &[&[u8]]) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    builder.set_origin(&Origin {
        received_at: Timestamp(1_700_000_000_000_000_000),
        source: Some("192.0.2.7:514".parse().unwrap()),
        transport: Transport::Udp,
        input: "net",
        tag: b"",
    });
    for message in messages {
        builder.push(Flags::NONE, message);
    }
    builder
}

/// A batch with these messages that stands at `at`.
pub fn batch(at: Mark, messages: &[&[u8]]) -> Batch {
    builder(messages).seal(stamp(), at)
}

/// Appends one batch behind everything that was appended.
pub fn append(writer: &mut Writer, messages: &[&[u8]]) -> Result<Batch, AppendError> {
    let batch = batch(writer.appended(), messages);
    writer.append(&mut VecDeque::from([batch.clone()])).map(|()| batch)
}

/// Everything that a reader gets who starts at `from`: as `journal::Reader` does it, without its thread and its waiting.
pub fn read(storage: &dyn Storage, index: &Index, from: Position, durable: Position) -> Vec<Batch> {
    read_of(storage, index, stamp(), from, durable).unwrap()
}

/// The same of any journal, on a disk that may not answer.
pub fn read_of(
    storage: &dyn Storage,
    index: &Index,
    stamp: Stamp,
    from: Position,
    durable: Position,
) -> io::Result<Vec<Batch>> {
    let mut at = from;
    let mut batches = Vec::new();
    while at < durable {
        let segment = match index.find(at) {
            Place::End => break,
            Place::GapUntil(to) => {
                assert!(to > at, "a gap leads forward");
                at = to;
                continue;
            }
            Place::In(segment) => segment,
        };
        let end = segment.end.min(durable);
        let mut bytes = vec![0; end.bytes_since(at) as usize];
        let offset = HEADER_LEN as u64 + at.bytes_since(segment.start.position);
        let filled = storage.read_at(&segment::file_name(segment.start.position), offset, &mut bytes)?;
        bytes.truncate(filled);
        for found in Scan::new(bytes.into(), at, stamp) {
            if let Found::Batch(batch) = found {
                batches.push(batch);
            }
        }
        assert!(end > at, "a segment leads forward");
        at = end;
    }
    Ok(batches)
}

/// Everything that the index leads to.
pub fn read_all(storage: &dyn Storage, index: &Index) -> Vec<Batch> {
    read(storage, index, Position::ZERO, Position(u64::MAX))
}
