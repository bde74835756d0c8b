//! Chunks that come again: known, and compared with the journal's own copy, before they are journaled twice.
//!
//! A client that lost a connection before the acknowledgement sends the chunk again with the same id. The id alone says
//! little: fluent-bit makes it of the content, without the tag, and old builds of the Go logger give all hosts the same
//! random half. So a chunk is looked up by client address, tag and id, is suspected if the length and both ends of its
//! entries agree, and is a repeat only if the journal holds the same bytes.
//!
//! A chunk that is still on its way on a connection that lives is no candidate: its client has not given up on it. One
//! whose connection the client has closed is: a network that comes back delivers the old connection's bytes too. The
//! window is bounded in number and age; what falls out of it is journaled again, which is what at-least-once permits.
//! After a restart it is filled from the journal's tail: what was acknowledged is not known there, so all of it counts
//! as interrupted.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::journal::Journal;
use crate::proto::batch::Batch;
use crate::proto::envelope::{Kind, Timestamp};
use crate::proto::position::{Mark, Position};

/// Chunks that are known at most: some 100 bytes each.
const CHUNKS_MAX: usize = 65_536;
/// How long a chunk is known. fluentd waits 190 s for an acknowledgement, others less.
const AGE_MAX: Duration = Duration::from_secs(600);
/// Bytes of the journal that are looked at after a restart.
const REBUILD_BYTES: u64 = 64 << 20;
/// Bytes at each end of the entries that are part of the fingerprint. It only chooses whom to compare, and with an id it
/// chooses well; a checksum of all was a thirtieth of a relay's time.
const END_BYTES: usize = 256;

/// What makes a chunk the same as another, but for the bytes of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Hash of client address, tag and id.
    key: u64,
    length: usize,
    /// CRC-32C of both ends of the entries.
    ends: u32,
}

/// Where the first copy of a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// Where its batch starts.
    pub start: Position,
    /// Where its batch ends: what has to be promised before a repeat is acknowledged.
    pub end: Mark,
}

/// The chunks of the last minutes, of all forward inputs of the node.
#[derive(Debug, Default)]
pub struct Repeats {
    hasher: RandomState,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    chunks: HashMap<u64, Known>,
    /// Keys by age; one that was replaced stands here twice.
    ages: VecDeque<(Timestamp, u64)>,
}

#[derive(Debug)]
struct Known {
    fingerprint: Fingerprint,
    first: First,
    received: Timestamp,
    /// Not yet acknowledged, on a connection whose client may still wait for it.
    in_flight: bool,
}

impl Repeats {
    /// What the journal's tail tells, at `now`. Blocks.
    #[must_use]
    pub fn of(journal: &Journal, now: Timestamp) -> Repeats {
        let repeats = Repeats::default();
        journal.recent(REBUILD_BYTES, |batch| repeats.remember(batch, now));
        repeats
    }

    fn remember(&self, batch: &Batch, now: Timestamp) {
        let first = First { start: batch.start().position, end: batch.end() };
        for envelope in batch.envelopes() {
            let Kind::Forward(chunk) = envelope.kind else { continue };
            let (Some(id), Some(source)) = (chunk.id, envelope.origin.source) else { continue };
            if !is_old(envelope.origin.received_at, now) {
                let fingerprint = self.fingerprint(source.ip(), envelope.origin.tag, id, envelope.payload);
                self.note(fingerprint, first, envelope.origin.received_at, false);
            }
        }
    }

    /// The fingerprint of a chunk with these entries.
    #[must_use]
    pub fn fingerprint(&self, client: IpAddr, tag: &[u8], id: &[u8], entries: &[u8]) -> Fingerprint {
        let key = self.hasher.hash_one((client.to_canonical(), tag, id));
        let first = &entries[..entries.len().min(END_BYTES)];
        let last = &entries[entries.len().saturating_sub(END_BYTES)..];
        Fingerprint { key, length: entries.len(), ends: crc32c::crc32c_append(crc32c::crc32c(first), last) }
    }

    /// Where a chunk of this fingerprint is already, unless it is still in flight. Only the bytes there can tell whether
    /// it is the same.
    #[must_use]
    pub fn first(&self, fingerprint: &Fingerprint) -> Option<First> {
        let window = self.lock();
        let known = window.chunks.get(&fingerprint.key)?;
        (known.fingerprint == *fingerprint && !known.in_flight).then_some(known.first)
    }

    /// Notes a chunk that was appended, now in flight.
    pub fn appended(&self, fingerprint: Fingerprint, first: First, received: Timestamp) {
        self.note(fingerprint, first, received, true);
    }

    /// Notes that chunks are acknowledged, or that nobody waits for it on their connection.
    pub fn settled(&self, chunks: impl Iterator<Item = (Fingerprint, Mark)>) {
        let mut window = self.lock();
        for (fingerprint, end) in chunks {
            if let Some(known) = window.chunks.get_mut(&fingerprint.key).filter(|known| known.first.end == end) {
                known.in_flight = false;
            }
        }
    }

    fn note(&self, fingerprint: Fingerprint, first: First, received: Timestamp, in_flight: bool) {
        let mut window = self.lock();
        while window.ages.front().is_some_and(|(at, _)| window.ages.len() >= CHUNKS_MAX || is_old(*at, received)) {
            window.forget_oldest();
        }
        window.ages.push_back((received, fingerprint.key));
        window.chunks.insert(fingerprint.key, Known { fingerprint, first, received, in_flight });
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn forget_oldest(&mut self) {
        let Some((at, key)) = self.ages.pop_front() else { return };
        if self.chunks.get(&key).is_some_and(|known| known.received == at) {
            self.chunks.remove(&key);
        }
    }
}

/// A clock that was set back makes nothing old.
fn is_old(received: Timestamp, now: Timestamp) -> bool {
    received.seconds_until(now) > AGE_MAX.as_secs_f64()
}

/// Whether `batch` holds exactly this chunk.
#[must_use]
pub fn holds(batch: &Batch, client: IpAddr, tag: &[u8], id: &[u8], entries: &[u8]) -> bool {
    batch.envelopes().any(|envelope| {
        let Kind::Forward(chunk) = envelope.kind else { return false };
        chunk.id == Some(id)
            && envelope.origin.tag == tag
            && envelope.origin.source.is_some_and(|source| source.ip().to_canonical() == client.to_canonical())
            && envelope.payload == entries
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn at(position: u64) -> First {
        let end = Mark { position: Position(position + 100), ordinal: position };
        First { start: Position(position), end }
    }

    fn second(second: u64) -> Timestamp {
        Timestamp(second * 1_000_000_000)
    }

    #[test]
    fn a_chunk_is_suspected_once_it_is_settled_and_only_with_the_same_content() {
        let repeats = Repeats::default();
        let chunk = repeats.fingerprint(CLIENT, b"tag", b"id", b"entries");
        assert_eq!(repeats.first(&chunk), None);
        repeats.appended(chunk, at(0), second(1));
        assert_eq!(repeats.first(&chunk), None, "in flight");
        repeats.settled([(chunk, at(500).end)].into_iter());
        assert_eq!(repeats.first(&chunk), None, "that was another copy of it");
        repeats.settled([(chunk, at(0).end)].into_iter());
        assert_eq!(repeats.first(&chunk), Some(at(0)));
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(repeats.first(&repeats.fingerprint(mapped, b"tag", b"id", b"entries")), Some(at(0)));
        for other in [
            repeats.fingerprint("127.0.0.2".parse().unwrap(), b"tag", b"id", b"entries"),
            repeats.fingerprint(CLIENT, b"tagi", b"d", b"entries"),
            repeats.fingerprint(CLIENT, b"tag", b"id", b"entrieS"),
        ] {
            assert_eq!(repeats.first(&other), None);
        }
    }

    #[test]
    fn the_window_is_bounded_in_number_and_age() {
        let repeats = Repeats::default();
        let chunk = |number: usize| repeats.fingerprint(CLIENT, b"tag", &number.to_le_bytes(), b"");
        for number in 0..CHUNKS_MAX + 10 {
            repeats.note(chunk(number), at(number as u64), second(1), false);
        }
        assert_eq!(repeats.lock().chunks.len(), CHUNKS_MAX);
        assert_eq!(repeats.first(&chunk(9)), None);
        assert!(repeats.first(&chunk(10)).is_some());
        repeats.note(chunk(0), at(0), second(602), false);
        let window = repeats.lock();
        assert_eq!((window.chunks.len(), window.ages.len()), (1, 1));
    }
}
