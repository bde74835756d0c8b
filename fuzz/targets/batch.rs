//! What is read back from the disk: batches, segments, headers, cursors.
//!
//! Input: a byte that says which reader, then its bytes. A checksum keeps nearly all random bytes out, so half of the
//! readers get bytes whose checksum was made right: what a bug of ours or an ill-willed peer could write.

use std::io::{self, ErrorKind, IoSlice};

use bytes::Bytes;
use twinlog::journal::cursors;
use twinlog::journal::segment::{self, Found, Header, Scan};
use twinlog::journal::storage::Storage;
use twinlog::proto::batch::{self, Batch, BatchBuilder, BatchError, HEADER_LEN, Stamp};
use twinlog::proto::envelope::{Envelope, Flags, Kind, Origin, Timestamp, Transport};
use twinlog::proto::position::{Incarnation, JournalId, Mark, Position};

/// One input.
pub fn run(data: &[u8]) {
    let [reader, rest @ ..] = data else { return };
    match reader % 7 {
        0 => decode(rest.to_vec()),
        1 => decode(sealed(rest)),
        2 => header(rest.to_vec()),
        3 => header(sealed_header(rest)),
        4 => damaged_segment(rest),
        5 => saved_cursors(rest.to_vec()),
        _ => saved_cursors(sealed_cursors(rest)),
    }
}

/// Makes magic, length and checksum right.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(bytes.len().max(HEADER_LEN), 0);
    let body = (bytes.len() - HEADER_LEN) as u32;
    bytes[..4].copy_from_slice(&batch::MAGIC);
    bytes[8..12].copy_from_slice(&body.to_le_bytes());
    let crc = crc32c::crc32c_append(
        crc32c::crc32c_append(crc32c::crc32c(&bytes[HEADER_LEN..]), &bytes[..28]),
        &bytes[32..HEADER_LEN],
    );
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: Vec<u8>) {
    let bytes = Bytes::from(bytes);
    let batch = match Batch::decode(&bytes) {
        Ok(batch) => batch,
        Err(BatchError::Incomplete { needed }) => return assert!(needed > bytes.len()),
        Err(_) => return,
    };
    assert!(bytes.starts_with(batch.bytes()));
    assert!(batch.start().position < batch.end().position);
    let envelopes: Vec<_> = batch.envelopes().collect();
    assert_eq!(envelopes.iter().map(Envelope::messages).sum::<u64>(), u64::from(batch.messages()));
    assert_eq!(batch.end().messages_since(batch.start()), u64::from(batch.messages()));
    assert!(envelopes.windows(2).all(|pair| pair[0].position < pair[1].position));
    let inside = |position| batch.start().position < position && position < batch.end().position;
    assert!(envelopes.iter().all(|envelope| inside(envelope.position)));
    assert_eq!(Batch::decode_at(&bytes, batch.stamp(), batch.start().position).as_ref(), Ok(&batch));

    // Made anew from what was read, it says the same.
    let mut builder = BatchBuilder::new();
    for envelope in &envelopes {
        builder.set_origin(&envelope.origin);
        match envelope.kind {
            Kind::Syslog => builder.push(envelope.flags, envelope.payload),
            Kind::Forward(chunk) => builder.push_chunk(envelope.flags, &chunk, envelope.payload),
        }
    }
    let again = builder.seal(batch.stamp(), batch.start());
    let said = |batch: &Batch| -> Vec<(Vec<u8>, Flags, String)> {
        let tell = |e: Envelope<'_>| {
            let source = e.origin.source.map(|source| (source.ip().to_canonical(), source.port()));
            let tag = e.origin.tag;
            let Origin { received_at, input, .. } = e.origin;
            (e.payload.to_vec(), e.flags, format!("{source:?} {received_at:?} {input:?} {tag:?} {:?}", e.kind))
        };
        batch.envelopes().map(tell).collect()
    };
    assert_eq!(said(&again), said(&batch));
    assert_eq!(Batch::decode(again.bytes()).as_ref(), Ok(&again));
}

fn sealed_header(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(segment::HEADER_LEN, 0);
    bytes[..8].copy_from_slice(b"TWINLOGS");
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn header(bytes: Vec<u8>) {
    if let Ok(header) = Header::decode(&bytes) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
}

fn journal() -> JournalId {
    JournalId { node: "agg-a".parse().expect("a valid name"), incarnation: Incarnation(77) }
}

/// Sound batches with wounds: what is left whole must be found, the rest be told as damage, without a byte between.
///
/// Input: pairs of a place and a value to put there, after a count of batches.
fn damaged_segment(data: &[u8]) {
    let [count, wounds @ ..] = data else { return };
    let (stamp, start) = (Stamp::from(&journal()), Position(1 << 40));
    let mut at = Mark { position: start, ordinal: 5 };
    let (mut bytes, mut batches) = (Vec::new(), Vec::new());
    for number in 0..count % 6 {
        let batch = small_batch(number, stamp, at);
        at = batch.end();
        bytes.extend_from_slice(batch.bytes());
        batches.push(batch);
    }
    let sound = bytes.clone();
    for wound in wounds.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([wound[0], wound[1]]));
        match bytes.len() {
            0 => break,
            // One place in eight cuts the end off instead.
            length if place % 8 == 0 => bytes.truncate(place / 8 % (length + 1)),
            length => bytes[place / 8 % length] = wound[2],
        }
    }
    let whole = |batch: &&Batch| {
        let from = batch.start().position.bytes_since(start) as usize;
        let to = from + batch.bytes().len();
        bytes.get(from..to) == Some(&sound[from..to])
    };
    let expected: Vec<&Batch> = batches.iter().filter(whole).collect();

    let mut end = start;
    let mut found = Vec::new();
    for step in Scan::new(bytes.clone().into(), start, stamp) {
        match step {
            Found::Batch(batch) => {
                assert_eq!(batch.start().position, end);
                end = batch.end().position;
                found.push(batch);
            }
            Found::Damage { from, to, .. } => {
                assert!(from == end && from < to);
                end = to;
            }
            Found::Tail { from, .. } => {
                assert_eq!(from, end);
                end = start.advance(bytes.len() as u64);
            }
        }
    }
    assert_eq!(end.bytes_since(start), bytes.len() as u64);
    assert_eq!(found.iter().collect::<Vec<_>>(), expected);
}

fn small_batch(number: u8, stamp: Stamp, at: Mark) -> Batch {
    let mut builder = BatchBuilder::new();
    let origin = Origin {
        received_at: Timestamp(u64::from(number)),
        source: Some(([192, 0, 2, number], 514).into()),
        transport: Transport::Udp,
        input: "net",
        tag: b"syslog",
    };
    builder.set_origin(&origin);
    for message in 0..=number {
        // A payload that begins like a batch must not be taken for one.
        builder.push(Flags::NONE, &[&batch::MAGIC[..], &[message; 9]].concat());
    }
    builder.seal(stamp, at)
}

fn sealed_cursors(data: &[u8]) -> Vec<u8> {
    let mut slot = data.to_vec();
    slot.resize(slot.len().max(24), 0);
    let length = (slot.len() - 8) as u32;
    slot[4..8].copy_from_slice(&length.to_le_bytes());
    slot[16..24].copy_from_slice(&77_u64.to_le_bytes());
    let crc = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn saved_cursors(bytes: Vec<u8>) {
    let saved = cursors::load(&OneFile(bytes), Incarnation(77)).expect("reading does not fail");
    assert!(saved.marks.keys().all(|name| name.len() <= 255));
}

/// A disk with one file, to read from.
struct OneFile(Vec<u8>);

impl Storage for OneFile {
    fn read_at(&self, _: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Err(ErrorKind::Unsupported.into())
    }

    fn create(&self, _: &str, _: u64) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _: &str, _: u64, _: &[IoSlice<'_>]) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn sync(&self, _: &str) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn truncate(&self, _: &str, _: u64) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}
