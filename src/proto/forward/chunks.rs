//! What of a batch leaves in which chunk.
//!
//! A pure function of the batch and the settings: whoever sends a batch again (after a broken connection, after a crash,
//! from the other node) makes the same chunks with the same ids, so a destination can drop the repeat. That is why a chunk
//! never spans batches, whose borders are journaled, and why nothing here depends on time.
//!
//! | what is journaled | leaves |
//! | --- | --- |
//! | syslog messages | as entries ([`syslog_entry`]) tagged `TAG.FACILITY.SEVERITY`, one chunk for each tag |
//! | plain entries | byte by byte, one chunk for each tag |
//! | a gzip stream of plain entries | byte by byte, a chunk of its own: not every receiver takes two members |
//! | a zstd stream | decompressed, with the plain ones of its tag: fluentd before 1.19 knows no zstd |
//! | a stream with fluent-bit's metadata or group markers | without them, decompressed, with the plain ones of its tag |
//!
//! A chunk of [`CHUNK_BYTES_FULL`] takes no more, and a stream that was decompressed goes on in the next: receivers bound
//! their frames. With [`Settings::gzip`] what is not compressed is compressed. An id is derived from the place of the
//! chunk's first entry, the second chunk that begins in the same stream from the byte behind it, and so on; as an entry
//! has one tag and a stream more bytes than chunks, no two chunks have the same.
//!
//! A batch can decompress to a thousand times its size and more. So its chunks are made in steps of [`STEP_BYTES`], which
//! are a function of the batch too.
//!
//! Large streams are not copied: a frame is a list of parts, and theirs are slices of the batch.

use std::collections::HashMap;

use bytes::Bytes;

use super::compression::{Encoding, gzip, inflate};
use super::entry::Entries;
use super::message::INFLATED_BYTES_MAX;
use super::render::{ChunkId, frame_head, frame_tail, plain_up_to, syslog_entry, syslog_tag};
use crate::proto::batch::Batch;
use crate::proto::envelope::{Chunk, Envelope, Kind};
use crate::proto::position::{JournalId, Position};
use crate::proto::syslog::message::{Context, Message};
use crate::proto::syslog::zone::Zone;

/// Bytes of entries at which a chunk takes no more. Four batches: only what was decompressed comes to it.
pub const CHUNK_BYTES_FULL: usize = 1 << 20;

/// Bytes of entries after which a batch's chunks are given out before its next stream is looked at. A batch of 256 KiB
/// comes to it only by decompression.
pub const STEP_BYTES: usize = 16 << 20;

/// Streams below this are copied together: to send a part on its own costs about as much as to copy so many bytes.
const COPY_BELOW: usize = 4096;

/// How chunks are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose positions the ids are made of.
    pub journal: JournalId,
    /// Whether entries that are not compressed are.
    pub gzip: bool,
    /// Whether the frames have a chunk id, which asks for an acknowledgement.
    pub ask_for_ack: bool,
}

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What its acknowledgement will say.
    pub id: ChunkId,
    /// Entries in it.
    pub events: u64,
    /// The frame, in parts that follow each other.
    pub parts: Vec<Bytes>,
}

impl Outgoing {
    /// Bytes of the frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// The frames of a batch, or of a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// In the order of their first entries.
    pub chunks: Vec<Outgoing>,
    /// Events in streams that could not be decompressed. Never of one that was accepted: it was decompressed then.
    pub unreadable: u64,
    /// The envelope of the batch to go on [`from`](pack); `None`: that was all.
    pub rest: Option<usize>,
}

/// Makes the frames of those messages of `batch` that `takes` says yes to, `from` an envelope on: 0 at first, then
/// [`Packed::rest`]. `zone_of` gives the zone of an input.
#[must_use]
pub fn pack(
    batch: &Batch,
    from: usize,
    settings: &Settings,
    takes: impl Fn(&Envelope<'_>) -> bool,
    zone_of: impl Fn(&str) -> Zone,
) -> Packed {
    let mut groups = Groups::default();
    let (mut unreadable, mut rest) = (0, None);
    for (number, envelope) in batch.envelopes().enumerate().skip(from) {
        if groups.made >= STEP_BYTES {
            rest = Some(number);
            break;
        }
        if !takes(&envelope) {
            continue;
        }
        match envelope.kind {
            Kind::Syslog => groups.take_syslog(&envelope, zone_of(envelope.origin.input)),
            Kind::Forward(chunk) => {
                if groups.take_chunk(batch, &envelope, &chunk).is_none() {
                    unreadable += u64::from(chunk.events);
                }
            }
        }
    }
    let chunks = groups.all.into_iter().filter(|group| group.events > 0).map(|group| group.finish(settings));
    Packed { chunks: chunks.collect(), unreadable, rest }
}

/// The chunks of a batch while they are being filled.
#[derive(Default)]
struct Groups {
    all: Vec<Group>,
    /// The group of each tag that takes more.
    open: HashMap<Vec<u8>, usize>,
    /// The group that took the last message: the next is often of the same tag.
    last: usize,
    tag: Vec<u8>,
    /// Bytes that were decompressed.
    made: usize,
}

struct Group {
    tag: Vec<u8>,
    begin: Position,
    events: u64,
    encoding: Encoding,
    parts: Vec<Bytes>,
    length: usize,
    /// Entries that were copied or made, behind `parts`.
    copied: Vec<u8>,
}

impl Groups {
    fn take_syslog(&mut self, envelope: &Envelope<'_>, zone: Zone) {
        let context = Context::new(&envelope.origin, zone);
        // A message without content makes no event (P11), here as in every output.
        let Some(message) = Message::parse(envelope.payload, &context) else { return };
        let mut tag = std::mem::take(&mut self.tag);
        tag.clear();
        syslog_tag(&mut tag, envelope.origin.tag, message.priority);
        let group = self.group(&tag, envelope.position);
        let before = group.copied.len();
        syslog_entry(&mut group.copied, &message);
        group.length += group.copied.len() - before;
        group.events += 1;
        self.tag = tag;
    }

    /// `None` if the stream cannot be decompressed.
    fn take_chunk(&mut self, batch: &Batch, envelope: &Envelope<'_>, chunk: &Chunk<'_>) -> Option<()> {
        let (tag, position, stream) = (envelope.origin.tag, envelope.position, envelope.payload);
        match Encoding::of(stream) {
            Encoding::Plain if chunk.plain => {
                let group = self.group(tag, position);
                group.push(batch, stream);
                group.events += u64::from(chunk.events);
            }
            Encoding::Gzip if chunk.plain => {
                let mut group = Group::new(tag, position, Encoding::Gzip);
                group.parts.push(batch.bytes().slice_ref(stream));
                group.length = stream.len();
                group.events = chunk.events.into();
                self.all.push(group);
            }
            Encoding::Plain => self.split(tag, position, stream),
            Encoding::Gzip | Encoding::Zstd => {
                // Given back at once: the next one may be as large.
                let mut inflated = Vec::new();
                inflate(&mut inflated, stream, INFLATED_BYTES_MAX).ok()?;
                self.split(tag, position, &inflated);
            }
        }
        Some(())
    }

    /// Takes the plain entries of a stream, in as many chunks as they fill.
    fn split(&mut self, tag: &[u8], position: Position, packed: &[u8]) {
        self.made += packed.len();
        let mut entries = Entries::new(packed);
        for part in 0.. {
            let group = self.group(tag, position.advance(part));
            let before = group.copied.len();
            group.events += plain_up_to(&mut group.copied, &mut entries, CHUNK_BYTES_FULL - group.length);
            group.length += group.copied.len() - before;
            if group.length < CHUNK_BYTES_FULL {
                break;
            }
        }
    }

    /// The group of `tag` that takes more; a new one begins at `position`.
    fn group(&mut self, tag: &[u8], position: Position) -> &mut Group {
        let takes_more = |group: &Group| group.encoding == Encoding::Plain && group.length < CHUNK_BYTES_FULL;
        let is_last = self.all.get(self.last).is_some_and(|group| group.tag == tag && takes_more(group));
        if !is_last {
            let known = self.open.get(tag).copied().filter(|at| takes_more(&self.all[*at]));
            self.last = known.unwrap_or_else(|| {
                self.all.push(Group::new(tag, position, Encoding::Plain));
                self.open.insert(tag.to_vec(), self.all.len() - 1);
                self.all.len() - 1
            });
        }
        &mut self.all[self.last]
    }
}

impl Group {
    fn new(tag: &[u8], begin: Position, encoding: Encoding) -> Group {
        Group { tag: tag.to_vec(), begin, events: 0, encoding, parts: Vec::new(), length: 0, copied: Vec::new() }
    }

    /// Adds a plain stream of the batch.
    fn push(&mut self, batch: &Batch, stream: &[u8]) {
        self.length += stream.len();
        if stream.len() < COPY_BELOW {
            self.copied.extend_from_slice(stream);
        } else {
            self.close_copied();
            self.parts.push(batch.bytes().slice_ref(stream));
        }
    }

    fn close_copied(&mut self) {
        if !self.copied.is_empty() {
            self.parts.push(std::mem::take(&mut self.copied).into());
        }
    }

    fn finish(mut self, settings: &Settings) -> Outgoing {
        self.close_copied();
        if settings.gzip && self.encoding == Encoding::Plain {
            let mut compressed = Vec::new();
            match &self.parts[..] {
                [only] => gzip(&mut compressed, only),
                parts => gzip(&mut compressed, &parts.concat()),
            }
            (self.length, self.encoding) = (compressed.len(), Encoding::Gzip);
            self.parts = vec![compressed.into()];
        }
        let id = ChunkId::derive(&settings.journal, self.begin, &self.tag);
        let (mut head, mut tail) = (Vec::with_capacity(self.tag.len() + 16), Vec::with_capacity(96));
        frame_head(&mut head, &self.tag, self.length);
        frame_tail(&mut tail, self.events, settings.ask_for_ack.then_some(&id), self.encoding);
        let mut parts = Vec::with_capacity(self.parts.len() + 2);
        parts.push(head.into());
        parts.append(&mut self.parts);
        parts.push(tail.into());
        Outgoing { id, events: self.events, parts }
    }
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
