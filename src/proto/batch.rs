//! The batch: an immutable run of envelopes, the unit of everything that moves.
//!
//! The same bytes stand in memory, on disk and (with a pair) on the link. Inputs fill a [`BatchBuilder`]; the journal
//! alone knows the position, so it [seals](BatchBuilder::seal); readers [decode](Batch::decode).
//!
//! ```text
//! header, 64 bytes, little endian                    body: items, one after the other
//!  0  magic "TWB1"          24  node hash (CRC-32C    0  length of the item's data, u32
//!  4  version, u16 = 1          of the name), u32     4  kind, u8: 1 origin, 2 syslog message, 3 forward chunk
//!  6  zero, u16             28  CRC-32C, u32          5  flags, u8
//!  8  body length, u32      32  position, u64         6  zero, u16
//! 12  messages, u32         40  ordinal, u64          8  data
//! 16  incarnation, u64      48  first received, u64
//!                           56  last received, u64
//!
//! origin: received, u64 · transport, u8 · family, u8 (0 none, 4, 6) · port, u16 · address, 16 ·
//!         input length, u8 · tag length, u16 · input · tag
//! forward chunk: events, u32 · marks, u8 (1 plain, 2 has an id) · zero, u8 · id length, u16 · id · entries
//! ```
//!
//! The CRC covers the body, then the header with its own field left out: the body is there first. A batch is valid only at
//! its own position in its own journal: that is what lets a segment's blocks be reused and a damaged stretch be skipped. A
//! [`Batch`] exists only valid: whoever holds one can iterate without errors. An origin holds for the messages after it; the
//! first item of a batch is an origin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use thiserror::Error;

use super::envelope::{Chunk, Envelope, Flags, Kind, Origin, Timestamp, Transport};
use super::position::{Incarnation, JournalId, Mark, Position};

/// Bytes of a batch before its body.
pub const HEADER_LEN: usize = 64;
/// Size at which a builder says that it is full. One envelope larger than this makes a batch of its own.
pub const BATCH_BYTES: usize = 256 * 1024;
/// Bytes after which the checksum is brought up to date while a batch is filled: they are still in the nearest cache.
const SUM_BYTES: usize = 16 * 1024;
/// Largest body a decoder accepts, in bytes: bounds what a damaged length can make anyone read.
pub const BODY_BYTES_MAX: usize = 80 * 1024 * 1024;
/// First bytes of every batch.
pub const MAGIC: [u8; 4] = *b"TWB1";
/// The format this code writes and the newest it reads.
pub const VERSION: u16 = 1;

const ITEM_HEADER_LEN: usize = 8;
const ORIGIN_FIXED_LEN: usize = 31;
const KIND_ORIGIN: u8 = 1;
const KIND_SYSLOG: u8 = 2;
const KIND_FORWARD: u8 = 3;
const CHUNK_FIXED_LEN: usize = 8;
const MARK_PLAIN: u8 = 1;
const MARK_ID: u8 = 2;
/// Messages at which a builder says that it is full: compressed chunks hold many in few bytes, and their number must fit
/// its field together with those of one more chunk (at most 2^28 bytes, 3 or more each).
const MESSAGES_FULL: u32 = 1 << 31;

/// Why bytes are no batch.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BatchError {
    /// The bytes end before the batch does; `needed` bytes in all would show more.
    #[error("the batch is cut: {needed} bytes are needed")]
    Incomplete {
        /// Bytes from the batch's start that are needed to go on.
        needed: usize,
    },
    /// These bytes do not start a batch.
    #[error("no batch starts here")]
    NotABatch,
    /// Sound, but in another format than this program reads.
    #[error("batch format {0} is not the one this program reads ({VERSION})")]
    Version(u16),
    /// Header or body changed since the batch was written.
    #[error("the checksum does not match")]
    Checksum,
    /// A batch, but of another journal or another place.
    #[error("the batch belongs to another journal or position")]
    Foreign,
    /// The checksum holds but the items do not: it was written by something that is not twinlog.
    #[error("the batch's items are malformed")]
    Malformed,
}

/// A journal's identity as batches carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which life of the node's disk.
    pub incarnation: Incarnation,
    /// CRC-32C of the node's name.
    pub node_hash: u32,
}

impl From<&JournalId> for Stamp {
    fn from(id: &JournalId) -> Stamp {
        Stamp { incarnation: id.incarnation, node_hash: crc32c::crc32c(id.node.as_str().as_bytes()) }
    }
}

/// Collects envelopes until the journal seals them into a [`Batch`].
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// Room for the header, then the body: sealing fills the header in place.
    bytes: Vec<u8>,
    messages: u32,
    first_received: Timestamp,
    last_received: Timestamp,
    /// Where the data of the origin in force stands in `bytes`.
    origin: (usize, usize),
    /// Checksum of the first bytes of the body, and where in `bytes` they end.
    summed: (u32, usize),
}

impl BatchBuilder {
    /// An empty builder that allocates nothing before its first envelope.
    #[must_use]
    pub fn new() -> BatchBuilder {
        BatchBuilder::default()
    }

    /// An empty builder with room for `bytes` of body.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> BatchBuilder {
        BatchBuilder { bytes: Vec::with_capacity(HEADER_LEN + bytes), ..BatchBuilder::default() }
    }

    /// An empty builder that fills `memory`.
    #[must_use]
    pub fn in_memory(mut memory: Vec<u8>) -> BatchBuilder {
        memory.clear();
        BatchBuilder { bytes: memory, ..BatchBuilder::default() }
    }

    /// Says where the messages pushed from now on come from.
    ///
    /// # Panics
    /// If the input's name or the tag is longer than its length field: both are bounded where they are read.
    pub fn set_origin(&mut self, origin: &Origin<'_>) {
        if self.bytes.is_empty() {
            self.bytes.resize(HEADER_LEN, 0);
        }
        let item = self.bytes.len();
        let data = item + ITEM_HEADER_LEN;
        let length = ORIGIN_FIXED_LEN + origin.input.len() + origin.tag.len();
        self.push_item_header(KIND_ORIGIN, Flags::NONE, length);
        let (family, port, address) = match origin.source.map(|s| (s.ip().to_canonical(), s.port())) {
            None => (0, 0, [0; 16]),
            Some((IpAddr::V4(ip), port)) => (4, port, ip.to_ipv6_mapped().octets()),
            Some((IpAddr::V6(ip), port)) => (6, port, ip.octets()),
        };
        let mut fixed = [0; ORIGIN_FIXED_LEN];
        fixed[..8].copy_from_slice(&origin.received_at.0.to_le_bytes());
        fixed[8] = origin.transport.code();
        fixed[9] = family;
        fixed[10..12].copy_from_slice(&u16::to_le_bytes(port));
        fixed[12..28].copy_from_slice(&address);
        fixed[28] = u8::try_from(origin.input.len()).expect("an input's name is at most 255 bytes");
        let tag_length = u16::try_from(origin.tag.len()).expect("a tag is at most 65535 bytes");
        fixed[29..31].copy_from_slice(&tag_length.to_le_bytes());
        self.bytes.extend_from_slice(&fixed);
        self.bytes.extend_from_slice(origin.input.as_bytes());
        self.bytes.extend_from_slice(origin.tag);
        let (last, end) = self.origin;
        if self.bytes[last..end] == self.bytes[data..] && end > last {
            self.bytes.truncate(item);
            return;
        }
        self.origin = (data, self.bytes.len());
        if self.messages == 0 {
            self.first_received = origin.received_at;
        }
        self.last_received = origin.received_at;
    }

    /// Adds one message from the origin in force.
    ///
    /// # Panics
    /// If no origin was set, or the body would be longer than [`BODY_BYTES_MAX`], which no reader would take: inputs bound
    /// their messages far below, and append a builder when it is full.
    pub fn push(&mut self, flags: Flags, payload: &[u8]) {
        self.push_item(KIND_SYSLOG, flags, payload.len());
        self.bytes.extend_from_slice(payload);
        self.messages += 1;
        self.sum(SUM_BYTES);
    }

    /// Adds the entries of one forward frame from the origin in force.
    ///
    /// # Panics
    /// As [`push`](BatchBuilder::push); also if the chunk's id is longer than its length field, or the builder holds so many
    /// events that their number does not fit: both are bounded where frames are read and [`is_full`] is asked.
    ///
    /// [`is_full`]: BatchBuilder::is_full
    pub fn push_chunk(&mut self, flags: Flags, chunk: &Chunk<'_>, entries: &[u8]) {
        let id = chunk.id.unwrap_or_default();
        self.push_item(KIND_FORWARD, flags, CHUNK_FIXED_LEN + id.len() + entries.len());
        let mut fixed = [0; CHUNK_FIXED_LEN];
        fixed[..4].copy_from_slice(&chunk.events.to_le_bytes());
        fixed[4] = u8::from(chunk.plain) * MARK_PLAIN + u8::from(chunk.id.is_some()) * MARK_ID;
        let id_length = u16::try_from(id.len()).expect("a chunk id is at most 480 bytes");
        fixed[6..8].copy_from_slice(&id_length.to_le_bytes());
        self.bytes.extend_from_slice(&fixed);
        self.bytes.extend_from_slice(id);
        self.bytes.extend_from_slice(entries);
        self.messages = self.messages.checked_add(chunk.events).expect("a full builder is appended");
        self.sum(SUM_BYTES);
    }

    /// Adds to the checksum what came since, if that is so much. Whoever fills a batch has it in its processor's cache,
    /// unlike the thread that seals it.
    fn sum(&mut self, least: usize) {
        let (sum, end) = (self.summed.0, self.summed.1.max(HEADER_LEN));
        if self.bytes.len() >= end + least {
            self.summed = (crc32c::crc32c_append(sum, &self.bytes[end..]), self.bytes.len());
        }
    }

    fn push_item(&mut self, kind: u8, flags: Flags, length: usize) {
        assert!(self.origin.1 > 0, "a message has an origin");
        let end = self.bytes.len() + ITEM_HEADER_LEN + length;
        assert!(end <= HEADER_LEN + BODY_BYTES_MAX, "inputs bound their messages, and their batches");
        self.push_item_header(kind, flags, length);
    }

    fn push_item_header(&mut self, kind: u8, flags: Flags, length: usize) {
        let mut header = [0; ITEM_HEADER_LEN];
        header[..4].copy_from_slice(&(length as u32).to_le_bytes());
        header[4] = kind;
        header[5] = flags.0;
        self.bytes.extend_from_slice(&header);
    }

    /// Messages pushed so far.
    #[must_use]
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Whether there is nothing to seal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Bytes that the sealed batch will have.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len().max(HEADER_LEN)
    }

    /// Whether it is time to append this builder and begin another.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.messages >= MESSAGES_FULL
    }

    /// Makes the batch that stands at `at` in the journal of `stamp`.
    #[must_use]
    pub fn seal(mut self, stamp: Stamp, at: Mark) -> Batch {
        self.bytes.resize(self.len(), 0);
        let body_length = (self.bytes.len() - HEADER_LEN) as u32;
        let header = &mut self.bytes[..HEADER_LEN];
        header[..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[8..12].copy_from_slice(&body_length.to_le_bytes());
        header[12..16].copy_from_slice(&self.messages.to_le_bytes());
        header[16..24].copy_from_slice(&stamp.incarnation.0.to_le_bytes());
        header[24..28].copy_from_slice(&stamp.node_hash.to_le_bytes());
        header[32..40].copy_from_slice(&at.position.0.to_le_bytes());
        header[40..48].copy_from_slice(&at.ordinal.to_le_bytes());
        header[48..56].copy_from_slice(&self.first_received.0.to_le_bytes());
        header[56..64].copy_from_slice(&self.last_received.0.to_le_bytes());
        self.sum(0);
        let crc = with_header(self.summed.0, &self.bytes);
        self.bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        Batch { bytes: self.bytes.into() }
    }
}

/// A valid batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    bytes: Bytes,
}

impl Batch {
    /// Takes the batch at the start of `bytes`; bytes after it are not looked at. Nothing is copied.
    ///
    /// # Errors
    /// Says why these bytes are no batch; [`BatchError::Incomplete`] alone can be cured by more bytes.
    pub fn decode(bytes: &Bytes) -> Result<Batch, BatchError> {
        let length = validate(bytes)?;
        Ok(Batch { bytes: bytes.slice(..length) })
    }

    /// Like [`Batch::decode`], for the batch that must stand at `position` of the journal of `stamp`.
    ///
    /// # Errors
    /// [`BatchError::Foreign`] for a sound batch from elsewhere, else as [`Batch::decode`].
    pub fn decode_at(bytes: &Bytes, stamp: Stamp, position: Position) -> Result<Batch, BatchError> {
        let head = peek(bytes)?;
        if head.stamp != stamp || head.mark.position != position {
            return Err(BatchError::Foreign);
        }
        Batch::decode(bytes)
    }

    /// The batch as it stands on disk and on the link.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The memory that the batch stood in, empty; `None` if others hold it.
    #[must_use]
    pub fn into_memory(self) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.try_into_mut().ok()?;
        // Now, or the conversion would move them.
        bytes.clear();
        Some(bytes.into())
    }

    /// Where the batch starts.
    #[must_use]
    pub fn start(&self) -> Mark {
        Mark { position: Position(read_u64(&self.bytes, 32)), ordinal: read_u64(&self.bytes, 40) }
    }

    /// Where the next batch starts.
    #[must_use]
    pub fn end(&self) -> Mark {
        let start = self.start();
        Mark {
            position: start.position.advance(self.bytes.len() as u64),
            ordinal: start.ordinal + u64::from(self.messages()),
        }
    }

    /// The identity of the journal this batch belongs to.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        read_stamp(&self.bytes)
    }

    /// Number of messages.
    #[must_use]
    pub fn messages(&self) -> u32 {
        read_u32(&self.bytes, 12)
    }

    /// When the first message was received.
    #[must_use]
    pub fn first_received(&self) -> Timestamp {
        Timestamp(read_u64(&self.bytes, 48))
    }

    /// When the last message was received.
    #[must_use]
    pub fn last_received(&self) -> Timestamp {
        Timestamp(read_u64(&self.bytes, 56))
    }

    /// The messages in the order they were received.
    #[must_use]
    pub fn envelopes(&self) -> Envelopes<'_> {
        Envelopes { bytes: &self.bytes, at: HEADER_LEN, start: self.start().position, origin: None }
    }
}

/// What a batch's header says before the body was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which journal.
    pub stamp: Stamp,
    /// Where in it.
    pub mark: Mark,
    /// Bytes of header and body.
    pub length: usize,
}

/// Reads a header without vouching for it: the checksum is only known to hold once the whole batch was decoded.
///
/// # Errors
/// [`BatchError::NotABatch`] or [`BatchError::Incomplete`].
pub fn peek(bytes: &[u8]) -> Result<Head, BatchError> {
    let magic = &bytes[..bytes.len().min(MAGIC.len())];
    if magic != &MAGIC[..magic.len()] {
        return Err(BatchError::NotABatch);
    }
    if bytes.len() < HEADER_LEN {
        return Err(BatchError::Incomplete { needed: HEADER_LEN });
    }
    let body_length = read_u32(bytes, 8) as usize;
    if body_length > BODY_BYTES_MAX {
        return Err(BatchError::NotABatch);
    }
    Ok(Head {
        stamp: read_stamp(bytes),
        mark: Mark { position: Position(read_u64(bytes, 32)), ordinal: read_u64(bytes, 40) },
        length: HEADER_LEN + body_length,
    })
}

/// Checks the batch at the start of `bytes` and returns its length.
fn validate(bytes: &[u8]) -> Result<usize, BatchError> {
    let length = peek(bytes)?.length;
    if bytes.len() < length {
        return Err(BatchError::Incomplete { needed: length });
    }
    let bytes = &bytes[..length];
    if checksum(bytes) != read_u32(bytes, 28) {
        return Err(BatchError::Checksum);
    }
    // Magic, length and checksum keep their places in every version, so that damage is never taken for the future.
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    if version != VERSION {
        return Err(BatchError::Version(version));
    }
    // No journal ever gets there (as in `segment::position_of`), and so `end` needs no check.
    if read_u64(bytes, 32) >= 1 << 63 || read_u64(bytes, 40) >= 1 << 63 {
        return Err(BatchError::Malformed);
    }
    let mut at = HEADER_LEN;
    let mut messages = 0_u64;
    let mut has_origin = false;
    while at < length {
        let data = at + ITEM_HEADER_LEN;
        let end = (length >= data).then(|| data.checked_add(read_u32(bytes, at) as usize)).flatten();
        let end = end.filter(|end| *end <= length).ok_or(BatchError::Malformed)?;
        match bytes[at + 4] {
            KIND_ORIGIN => has_origin = read_origin(&bytes[data..end]).is_some(),
            KIND_SYSLOG => messages += 1,
            KIND_FORWARD => {
                let (chunk, _) = read_chunk(&bytes[data..end]).ok_or(BatchError::Malformed)?;
                messages += u64::from(chunk.events);
            }
            _ => return Err(BatchError::Malformed),
        }
        if !has_origin {
            return Err(BatchError::Malformed);
        }
        at = end;
    }
    if messages != u64::from(read_u32(bytes, 12)) {
        return Err(BatchError::Malformed);
    }
    Ok(length)
}

/// Iterator over the messages of a batch.
#[derive(Clone, Debug)]
pub struct Envelopes<'a> {
    bytes: &'a [u8],
    at: usize,
    start: Position,
    origin: Option<Origin<'a>>,
}

impl<'a> Iterator for Envelopes<'a> {
    type Item = Envelope<'a>;

    fn next(&mut self) -> Option<Envelope<'a>> {
        while self.at < self.bytes.len() {
            let item = self.at;
            let data = item + ITEM_HEADER_LEN;
            let end = data + read_u32(self.bytes, item) as usize;
            self.at = end;
            if self.bytes[item + 4] == KIND_ORIGIN {
                self.origin = read_origin(&self.bytes[data..end]);
                continue;
            }
            let content = &self.bytes[data..end];
            let (kind, payload) = match self.bytes[item + 4] {
                KIND_FORWARD => read_chunk(content).map(|(chunk, entries)| (Kind::Forward(chunk), entries))?,
                _ => (Kind::Syslog, content),
            };
            return Some(Envelope {
                position: self.start.advance(item as u64),
                origin: self.origin?,
                flags: Flags(self.bytes[item + 5]),
                kind,
                payload,
            });
        }
        None
    }
}

fn read_origin(data: &[u8]) -> Option<Origin<'_>> {
    if data.len() < ORIGIN_FIXED_LEN {
        return None;
    }
    let input_end = ORIGIN_FIXED_LEN + usize::from(data[28]);
    let tag_length = usize::from(u16::from_le_bytes([data[29], data[30]]));
    if data.len() != input_end + tag_length {
        return None;
    }
    let address: [u8; 16] = data[12..28].try_into().ok()?;
    let ip = match data[9] {
        0 => None,
        4 => Some(IpAddr::V4(Ipv4Addr::new(address[12], address[13], address[14], address[15]))),
        6 => Some(IpAddr::V6(Ipv6Addr::from(address))),
        _ => return None,
    };
    Some(Origin {
        received_at: Timestamp(read_u64(data, 0)),
        source: ip.map(|ip| SocketAddr::new(ip, u16::from_le_bytes([data[10], data[11]]))),
        transport: Transport::from_code(data[8])?,
        input: std::str::from_utf8(&data[ORIGIN_FIXED_LEN..input_end]).ok()?,
        tag: &data[input_end..],
    })
}

/// A chunk and its entries.
fn read_chunk(data: &[u8]) -> Option<(Chunk<'_>, &[u8])> {
    let (fixed, rest) = data.split_at_checked(CHUNK_FIXED_LEN)?;
    let (id, entries) = rest.split_at_checked(usize::from(u16::from_le_bytes([fixed[6], fixed[7]])))?;
    let id = (fixed[4] & MARK_ID > 0).then_some(id);
    Some((Chunk { events: read_u32(fixed, 0), plain: fixed[4] & MARK_PLAIN > 0, id }, entries))
}

fn checksum(batch: &[u8]) -> u32 {
    with_header(crc32c::crc32c(&batch[HEADER_LEN..]), batch)
}

/// The same, when that of the body is known.
fn with_header(body: u32, batch: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(body, &batch[..28]);
    crc32c::crc32c_append(crc, &batch[32..HEADER_LEN])
}

fn read_stamp(bytes: &[u8]) -> Stamp {
    Stamp { incarnation: Incarnation(read_u64(bytes, 16)), node_hash: read_u32(bytes, 24) }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
