//! Opening a journal after whatever ended its last run.
//!
//! The segments are the only truth. Each is judged by three questions, and [`decide`] is the whole answer:
//!
//! | header | is it the last? | bytes behind it? | what happens |
//! |---|---|---|---|
//! | sound | no | – | kept; it was synced whole before the next one was made, so readers find damage if there is any |
//! | sound | yes | – | scanned; bytes after the last sound batch, torn or of an earlier use, are cut; writing goes on here |
//! | damaged | no | – | kept, reported; batches in it prove themselves, the rest is a gap for readers |
//! | damaged | yes | yes | kept as it is, its tail not cut; writing goes on in a new segment |
//! | damaged | yes | no | it was being made when the node died, nothing was ever promised in it: the writer makes it anew |
//! | newer or foreign | – | – | the journal is refused (exit status 78) |
//!
//! Where a file was used before (`spares`), its length does not say where its bytes end: the start of the next one does, or
//! the scan.
//!
//! Bytes between two segments are a gap that is reported, not an end. A file that has neither a sound header nor a sound
//! batch and stands where another segment has bytes is none of ours: reported and left alone; but where that one's batches
//! end, it is the next one that was being made, whatever torn or old bytes are behind them. The journal's end never
//! goes below a cursor: if bytes that were delivered are gone, writing goes on behind them, so that no position ever
//! means two messages. Recovering twice gives the same as recovering once, which is why no file is removed here.
//!
//! Of a mirror, what its end says is believed by the node that writes the journal: everything before is safe here too, and
//! is not sent again. So it ends at the first damage in its last segment, where a loss of power may have left the later of
//! two batches alone; a cursor beyond its end, which may be of one output only, does not move it, nor does a segment that
//! was being made behind a hole.

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
    /// Its segments are of two journals: a directory was copied into another one. Exit status 78.
    #[error("{file} belongs to journal {found}, but others beside it to {expected}; move one of the two journals away")]
    Mixed {
        /// The segment.
        file: String,
        /// The journal it names.
        found: JournalId,
        /// The journal that the oldest segment names.
        expected: JournalId,
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
    /// A segment without header or batches, left from a crash while it was made; it is made anew.
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
            Finding::Unborn { file } => write!(f, "{file} was never finished and is made anew"),
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
    /// Write a new segment over it.
    Remake,
}

/// The table in the module's head.
#[must_use]
pub fn decide(header_sound: bool, last: bool, has_bytes: bool) -> Verdict {
    match (header_sound, last, has_bytes) {
        (true, false, _) => Verdict::Keep,
        (true, true, _) => Verdict::Continue,
        (false, false, _) => Verdict::Keep,
        (false, true, true) => Verdict::Keep,
        (false, true, false) => Verdict::Remake,
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

/// Finds out what is there, cuts the torn tail, and leaves everything it vouches for synced. For the node that writes the
/// journal.
///
/// `fresh` names the incarnation if there is no journal yet.
///
/// # Errors
/// See [`OpenError`].
pub fn recover(storage: &dyn Storage, node: &NodeName, fresh: Incarnation) -> Result<Recovered, OpenError> {
    let mut recovered = find(storage, node, fresh, false)?;
    recovered.go_behind_cursors();
    Ok(recovered)
}

/// The same for the mirror of a journal that another node writes.
///
/// # Errors
/// See [`OpenError`].
pub fn recover_mirror(storage: &dyn Storage, journal: &JournalId) -> Result<Recovered, OpenError> {
    find(storage, &journal.node, journal.incarnation, true)
}

fn find(storage: &dyn Storage, node: &NodeName, fresh: Incarnation, is_mirror: bool) -> Result<Recovered, OpenError> {
    let mut findings = Vec::new();
    let mut files = Vec::new();
    for (start, length) in list(storage)? {
        let header = read_head(storage, node, start, length)?;
        files.push(File { start, body: length.saturating_sub(HEADER_LEN as u64), header, walk: None });
    }
    let journal = identify(storage, node, &files, fresh)?;
    let stamp = Stamp::from(&journal);
    for file in files.iter_mut().filter(|file| file.header.is_none()) {
        file.walk = Some(walk(storage, file.start, file.body, stamp)?);
        findings.push(Finding::BadHeader { file: segment::file_name(file.start) });
    }
    let mut files = without_strangers(storage, files, stamp)?;
    // Whole segments are read only where it matters what is in them: the last one, and where the next one cannot say
    // with how many messages it begins.
    for index in 0..files.len() {
        let told = files.get(index + 1).is_some_and(|next| next.header.is_some());
        if !told && files[index].walk.is_none() {
            files[index].walk = Some(walk(storage, files[index].start, files[index].body, stamp)?);
        }
    }
    let mut segments: Vec<Segment> = Vec::new();
    let mut end = Mark::default();
    let mut continues = false;
    let count = files.len();
    for (index, file) in files.into_iter().enumerate() {
        let name = segment::file_name(file.start);
        let last = index + 1 == count;
        match segments.last_mut() {
            Some(_) if file.start > end.position => {
                findings.push(Finding::Missing { from: end.position, to: file.start });
            }
            // The previous file has grown since it was sealed.
            Some(previous) => previous.end = previous.end.min(file.start),
            None => {}
        }
        let verdict = decide(file.header.is_some(), last, file.body > 0);
        if verdict == Verdict::Remake {
            findings.retain(|finding| !matches!(finding, Finding::BadHeader { file } if *file == name));
            findings.push(Finding::Unborn { file: name });
            // Behind positions that will never come, only its header would have told how many messages those had: a mirror
            // is told again. Its writer uses no position twice.
            let is_told_again = is_mirror && file.start > end.position;
            end.position = if is_told_again { end.position } else { file.start };
            continue;
        }
        let ordinal = file.first_ordinal().unwrap_or(end.ordinal);
        let mut segment = Segment { start: Mark { position: file.start, ordinal }, end: file.end() };
        end = Mark { position: segment.end, ordinal };
        if let Some(mut walk) = file.walk {
            if is_mirror && verdict == Verdict::Continue {
                walk.end_at_damage();
            }
            findings.extend(walk.findings);
            end.ordinal = walk.end.map_or(ordinal, |mark| mark.ordinal);
            if verdict == Verdict::Continue {
                let sound = walk.end.map_or(file.start, |mark| mark.position);
                if walk.torn > 0 {
                    findings.push(Finding::TornTail { from: sound, bytes: walk.torn });
                }
                if segment.end > sound {
                    let keep = HEADER_LEN as u64 + sound.bytes_since(file.start);
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
    // The last segment's name may be as unsafe as its content.
    storage.sync_directory().map_err(OpenError::io("sync the directory of", "the journal"))?;
    let saved = cursors::load(storage, journal.incarnation).map_err(OpenError::io("read", "cursors"))?;
    Ok(Recovered { journal, segments, continues, end, saved, findings })
}

impl Recovered {
    /// Bytes that were delivered are gone: their positions stay empty.
    fn go_behind_cursors(&mut self) {
        let end = self.end;
        if let Some(furthest) = self.saved.marks.values().max().filter(|mark| **mark > end) {
            if furthest.position > end.position {
                self.findings.push(Finding::Missing { from: end.position, to: furthest.position });
            }
            self.end = Mark { position: furthest.position, ordinal: furthest.ordinal.max(end.ordinal) };
            self.continues = false;
        }
    }
}

/// Leaves out the files that stand where another segment has bytes and have neither a sound header nor a sound batch.
fn without_strangers(storage: &dyn Storage, files: Vec<File>, stamp: Stamp) -> Result<Vec<File>, OpenError> {
    let mut ours: Vec<File> = Vec::new();
    for file in files {
        if let Some(before) = ours.last_mut()
            && !(file.header.is_some() || file.has_batches())
            && file.start < before.end()
        {
            // The last bytes of that one may be of an earlier use, and this one be what comes next: the next one is made
            // where the batches end.
            let walked = match before.walk.take() {
                Some(walked) => walked,
                None => walk(storage, before.start, before.body, stamp)?,
            };
            let is_next = walked.end.is_some_and(|end| end.position == file.start);
            let is_inside = file.start < walked.used_until && !is_next;
            before.walk = Some(walked);
            if is_inside {
                continue;
            }
        }
        ours.push(file);
    }
    Ok(ours)
}

/// A segment's file while it is judged.
struct File {
    start: Position,
    /// Bytes behind the header.
    body: u64,
    header: Option<Header>,
    /// What is in it, where that was looked at.
    walk: Option<Walk>,
}

impl File {
    fn end(&self) -> Position {
        self.start.advance(self.body)
    }

    fn has_batches(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| walk.first.is_some())
    }

    fn first_ordinal(&self) -> Option<u64> {
        let batch = self.walk.as_ref().and_then(|walk| walk.first);
        self.header.as_ref().map(|header| header.start).or(batch).map(|mark| mark.ordinal)
    }
}

/// Which journal these segments are of: as the headers say, or else the batches; `fresh` if nothing says anything.
fn identify(
    storage: &dyn Storage,
    node: &NodeName,
    files: &[File],
    fresh: Incarnation,
) -> Result<JournalId, OpenError> {
    let mut named = files.iter().filter_map(|file| Some((file, &file.header.as_ref()?.journal)));
    let Some((_, expected)) = named.next() else {
        let incarnation = incarnation_from_batches(storage, node, files)?.unwrap_or(fresh);
        return Ok(JournalId { node: node.clone(), incarnation });
    };
    match named.find(|(_, found)| *found != expected) {
        None => Ok(expected.clone()),
        Some((file, found)) => Err(OpenError::Mixed {
            file: segment::file_name(file.start),
            found: found.clone(),
            expected: expected.clone(),
        }),
    }
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
    files: &[File],
) -> Result<Option<Incarnation>, OpenError> {
    let node_hash = crc32c::crc32c(node.as_str().as_bytes());
    for &File { start, body, .. } in files {
        let bytes = read_body(storage, &segment::file_name(start), body)?;
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
    /// Where the batches before the first damage end.
    undamaged: Option<Mark>,
    /// Bytes behind that may be an unfinished batch.
    torn: u64,
    /// Where bytes of an earlier use of the file begin, or the file ends.
    used_until: Position,
    findings: Vec<Finding>,
}

impl Walk {
    /// Makes everything behind the first damage a torn tail.
    fn end_at_damage(&mut self) {
        if let Some(Finding::Damage { from, .. }) = self.findings.first() {
            self.torn = self.used_until.bytes_since(*from);
            self.end = self.undamaged;
            self.findings.clear();
        }
    }
}

fn walk(storage: &dyn Storage, start: Position, body: u64, stamp: Stamp) -> Result<Walk, OpenError> {
    let name = segment::file_name(start);
    let bytes = read_body(storage, &name, body)?;
    let used_until = start.advance(bytes.len() as u64);
    let mut walk = Walk { first: None, end: None, undamaged: None, torn: 0, used_until, findings: Vec::new() };
    for found in Scan::new(bytes, start, stamp) {
        match found {
            Found::Batch(batch) => {
                walk.first.get_or_insert(batch.start());
                walk.end = Some(batch.end());
                if walk.findings.is_empty() {
                    walk.undamaged = walk.end;
                }
            }
            Found::Damage { from, to, .. } => walk.findings.push(Finding::Damage { from, to }),
            Found::Tail { cause: cause @ BatchError::Version(_), .. } => {
                return Err(OpenError::Newer { file: name, cause: cause.to_string() });
            }
            Found::Tail { from, torn, .. } => (walk.torn, walk.used_until) = (torn, from.advance(torn)),
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
    fn no_byte_behind_a_header_is_ever_written_over_and_only_a_sound_last_segment_is_written_on() {
        for case in 0..8 {
            let (header, last, bytes) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
            match decide(header, last, bytes) {
                Verdict::Remake => assert!(!bytes && !header && last),
                Verdict::Continue => assert!(header && last),
                Verdict::Keep => {}
            }
        }
    }
}
