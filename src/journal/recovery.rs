//! Opening a journal after whatever ended its last run.
//!
//! The segments are the only truth. Each is judged by three questions, and [`decide`] is the whole answer:
//!
//! | header | is it the last? | sound batches in it? | what happens |
//! |---|---|---|---|
//! | sound | no | – | kept; it was synced whole before the next one was made, so readers find damage if there is any |
//! | sound | yes | – | scanned; bytes after the last sound batch are a torn tail and are cut; writing goes on here |
//! | damaged | no | yes | kept; its batches prove themselves |
//! | damaged | no | no | kept, reported: a gap for readers, something for `journal verify` to look at |
//! | damaged | yes | yes | kept as it is, its tail not cut; writing goes on in a new segment |
//! | damaged | yes | no | removed: it was being made when the node died, and nothing was ever promised in it |
//! | newer or foreign | – | – | the journal is refused (exit status 78) |
//!
//! Bytes between two segments are a gap that is reported, not an end. The journal's end never goes below a cursor: if
//! bytes that were delivered are gone, writing goes on behind them, so that no position ever means two messages.
//! Recovering twice gives the same as recovering once.

use std::io;

use bytes::Bytes;
use thiserror::Error;

use super::cursors::{self, Saved};
use super::segment::{self, Found, HEADER_LEN, Header, HeaderError, Scan};
use super::storage::Storage;
use crate::proto::batch::{self, BatchError, Stamp};
use crate::proto::position::{Incarnation, JournalId, Mark, NodeName, Position};

/// Why a journal cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A newer twinlog wrote it; an older one must not guess. Exit status 78.
    #[error(
        "{file} was written by a newer version of twinlog ({cause}); install that version again, or move the journal away"
    )]
    Newer {
        /// The segment.
        file: String,
        /// Which format it has.
        cause: String,
    },
    /// It is another node's. Exit status 78.
    #[error(
        "{file} belongs to node {found}, but this node is {expected}; set --node {found}, or move the journal away"
    )]
    Foreign {
        /// The segment.
        file: String,
        /// Whose it is.
        found: String,
        /// Who asks.
        expected: NodeName,
    },
    /// Another process has it open.
    #[error("another twinlog process holds the journal in {0}")]
    Locked(String),
    /// The system refused.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> OpenError {
        let file = file.to_owned();
        move |source| OpenError::Io { action, file, source }
    }
}

/// One segment as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its first batch stands.
    pub start: Mark,
    /// Where its bytes end; only ever below the next segment's start if bytes are missing between them.
    pub end: Position,
}

/// Something that was not as it should be, found at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Bytes after the last sound batch, never promised to anyone, were cut off.
    TornTail {
        /// Where.
        from: Position,
        /// How many bytes.
        bytes: u64,
    },
    /// Damaged bytes with sound batches behind them: skipped by readers.
    Damage {
        /// First damaged byte.
        from: Position,
        /// Where sound batches go on.
        to: Position,
    },
    /// No segment holds these positions.
    Missing {
        /// First missing byte.
        from: Position,
        /// First byte that is there again.
        to: Position,
    },
    /// A segment's header is damaged.
    BadHeader {
        /// The segment's file.
        file: String,
    },
    /// A segment without header or batches, left from a crash while it was made, was removed.
    Unborn {
        /// The segment's file.
        file: String,
    },
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finding::TornTail { from, bytes } => write!(f, "torn tail of {bytes} bytes at position {from} was cut"),
            Finding::Damage { from, to } => write!(f, "damage from position {from} to {to} is skipped"),
            Finding::Missing { from, to } => write!(f, "no segment holds positions {from} to {to}"),
            Finding::BadHeader { file } => write!(f, "{file} has a damaged header"),
            Finding::Unborn { file } => write!(f, "{file} was never finished and was removed"),
        }
    }
}

/// What is to be done with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it as it is and let readers read it.
    Keep,
    /// Cut its tail and go on writing in it.
    Continue,
    /// Delete the file.
    Remove,
}

/// The table in the module's head.
#[must_use]
pub fn decide(header_sound: bool, last: bool, has_batches: bool) -> Verdict {
    match (header_sound, last, has_batches) {
        (true, false, _) => Verdict::Keep,
        (true, true, _) => Verdict::Continue,
        (false, false, _) => Verdict::Keep,
        (false, true, true) => Verdict::Keep,
        (false, true, false) => Verdict::Remove,
    }
}

/// A journal as it was found.
#[derive(Debug)]
pub struct Recovered {
    /// Whose journal.
    pub journal: JournalId,
    /// Its segments, in order of position.
    pub segments: Vec<Segment>,
    /// Whether the last segment can be written on; else the writer makes one at `end`.
    pub continues: bool,
    /// Where the next batch will stand.
    pub end: Mark,
    /// The saved cursors.
    pub saved: Saved,
    /// What was not as it should be.
    pub findings: Vec<Finding>,
}

/// Finds out what is there, cuts the torn tail, and leaves everything it vouches for synced.
///
/// `fresh` names the incarnation if there is no journal yet.
///
/// # Errors
/// See [`OpenError`].
pub fn recover(storage: &dyn Storage, node: &NodeName, fresh: Incarnation) -> Result<Recovered, OpenError> {
    let files = list(storage)?;
    let mut findings = Vec::new();
    let mut heads = Vec::new();
    for (start, length) in &files {
        heads.push(read_head(storage, node, *start, *length)?);
    }
    let known = heads.iter().find_map(|head| head.as_ref().map(|header| header.journal.incarnation));
    let incarnation = match known {
        Some(incarnation) => incarnation,
        None => incarnation_from_batches(storage, node, &files)?.unwrap_or(fresh),
    };
    let journal = JournalId { node: node.clone(), incarnation };
    let stamp = Stamp::from(&journal);
    let mut segments: Vec<Segment> = Vec::new();
    let mut end = Mark::default();
    let mut continues = false;
    for (index, (&(start, length), head)) in files.iter().zip(&heads).enumerate() {
        let name = segment::file_name(start);
        let last = index + 1 == files.len();
        let body = length.saturating_sub(HEADER_LEN as u64);
        if head.is_none() {
            findings.push(Finding::BadHeader { file: name.clone() });
        }
        if start > end.position && !segments.is_empty() {
            findings.push(Finding::Missing { from: end.position, to: start });
        }
        // Whole segments are read only where the table needs to know: the last one, or a damaged header.
        let walk = match head {
            Some(_) if !last => None,
            _ => Some(walk(storage, &name, start, body, stamp)?),
        };
        let has_batches = walk.as_ref().is_some_and(|walk| walk.first.is_some());
        let verdict = decide(head.is_some(), last, has_batches);
        if verdict == Verdict::Remove {
            findings.pop();
            findings.push(Finding::Unborn { file: name.clone() });
            storage.remove(&name).map_err(OpenError::io("remove", &name))?;
            storage.sync_directory().map_err(OpenError::io("sync the directory of", &name))?;
            end = end.max(Mark { position: start, ordinal: end.ordinal });
            continue;
        }
        let first = head.as_ref().map(|header| header.start).or(walk.as_ref().and_then(|walk| walk.first));
        let ordinal = first.map_or(end.ordinal, |mark| mark.ordinal);
        let mut segment = Segment { start: Mark { position: start, ordinal }, end: start.advance(body) };
        end = Mark { position: segment.end, ordinal };
        if let Some(walk) = walk {
            findings.extend(walk.findings);
            end.ordinal = walk.end.map_or(ordinal, |mark| mark.ordinal);
            if verdict == Verdict::Continue {
                let sound = walk.end.map_or(start, |mark| mark.position);
                let torn = segment.end.bytes_since(sound);
                if torn > 0 {
                    findings.push(Finding::TornTail { from: sound, bytes: torn });
                    let keep = HEADER_LEN as u64 + sound.bytes_since(start);
                    storage.truncate(&name, keep).map_err(OpenError::io("cut the torn tail of", &name))?;
                }
                segment.end = sound;
                end.position = sound;
                continues = true;
            }
        }
        if last {
            // What a crash left in the page cache is about to be vouched for.
            storage.sync(&name).map_err(OpenError::io("sync", &name))?;
        }
        segments.push(segment);
    }
    let saved = cursors::load(storage, incarnation).map_err(OpenError::io("read", "cursors"))?;
    if let Some(furthest) = saved.marks.values().max().filter(|mark| mark.position > end.position) {
        findings.push(Finding::Missing { from: end.position, to: furthest.position });
        end = Mark { position: furthest.position, ordinal: furthest.ordinal.max(end.ordinal) };
        continues = false;
    }
    Ok(Recovered { journal, segments, continues, end, saved, findings })
}

/// The segments of a directory by position, with their lengths.
///
/// # Errors
/// If the directory cannot be listed.
pub fn list(storage: &dyn Storage) -> Result<Vec<(Position, u64)>, OpenError> {
    let files = storage.list().map_err(OpenError::io("list", "the journal"))?;
    let mut segments: Vec<_> =
        files.iter().filter_map(|(name, length)| Some((segment::position_of(name)?, *length))).collect();
    segments.sort_unstable();
    Ok(segments)
}

/// A segment's header; `None` if it is damaged.
fn read_head(
    storage: &dyn Storage,
    node: &NodeName,
    start: Position,
    length: u64,
) -> Result<Option<Header>, OpenError> {
    let file = segment::file_name(start);
    let mut bytes = [0; HEADER_LEN];
    let read = storage.read_at(&file, 0, &mut bytes).map_err(OpenError::io("read", &file))?;
    match Header::decode(&bytes[..read.min(length as usize)]) {
        Err(cause @ HeaderError::Version(_)) => Err(OpenError::Newer { file, cause: cause.to_string() }),
        Err(HeaderError::Damaged) => Ok(None),
        Ok(header) if header.journal.node != *node => {
            Err(OpenError::Foreign { file, found: header.journal.node.to_string(), expected: node.clone() })
        }
        Ok(header) if header.start.position != start => Ok(None),
        Ok(header) => Ok(Some(header)),
    }
}

/// With every header damaged: the incarnation that the first sound batch of this node names.
fn incarnation_from_batches(
    storage: &dyn Storage,
    node: &NodeName,
    files: &[(Position, u64)],
) -> Result<Option<Incarnation>, OpenError> {
    let node_hash = crc32c::crc32c(node.as_str().as_bytes());
    for &(start, length) in files {
        let name = segment::file_name(start);
        let bytes = read_body(storage, &name, length.saturating_sub(HEADER_LEN as u64))?;
        for at in memchr::memmem::find_iter(&bytes, &batch::MAGIC) {
            let Ok(head) = batch::peek(&bytes[at..]) else { continue };
            let stamp = Stamp { node_hash, ..head.stamp };
            if batch::Batch::decode_at(&bytes.slice(at..), stamp, start.advance(at as u64)).is_ok() {
                return Ok(Some(head.stamp.incarnation));
            }
        }
    }
    Ok(None)
}

struct Walk {
    first: Option<Mark>,
    end: Option<Mark>,
    findings: Vec<Finding>,
}

fn walk(storage: &dyn Storage, name: &str, start: Position, body: u64, stamp: Stamp) -> Result<Walk, OpenError> {
    let bytes = read_body(storage, name, body)?;
    let mut walk = Walk { first: None, end: None, findings: Vec::new() };
    for found in Scan::new(bytes, start, stamp) {
        match found {
            Found::Batch(batch) => {
                walk.first.get_or_insert(batch.start());
                walk.end = Some(batch.end());
            }
            Found::Damage { from, to, .. } => walk.findings.push(Finding::Damage { from, to }),
            Found::Tail { cause: cause @ BatchError::Version(_), .. } => {
                return Err(OpenError::Newer { file: name.to_owned(), cause: cause.to_string() });
            }
            Found::Tail { .. } => {}
        }
    }
    Ok(walk)
}

fn read_body(storage: &dyn Storage, name: &str, body: u64) -> Result<Bytes, OpenError> {
    let mut bytes = vec![0; body as usize];
    let read = storage.read_at(name, HEADER_LEN as u64, &mut bytes).map_err(OpenError::io("read", name))?;
    bytes.truncate(read);
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sound_batch_is_ever_removed_and_only_a_sound_last_segment_is_written_on() {
        for case in 0..8 {
            let (header, last, batches) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
            match decide(header, last, batches) {
                Verdict::Remove => assert!(!batches && !header && last),
                Verdict::Continue => assert!(header && last),
                Verdict::Keep => {}
            }
        }
    }
}
