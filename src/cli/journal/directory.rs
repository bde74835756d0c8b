//! A journal's directory as it lies there: its segments, whose it is, and how far its outputs are.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;

use super::super::configuration;
use super::super::{Exit, Failure, Shared};
use super::walk::Walk;
use crate::journal::cursors::{self, Saved};
use crate::journal::segment::{self, HEADER_LEN, Header, HeaderError};
use crate::journal::storage::{FileStorage, Storage};
use crate::journal::{OWN_DIRECTORY, OpenError, recovery};
use crate::proto::batch::{self, Batch, Stamp};
use crate::proto::position::{JournalId, Position};
use crate::zones::Zones;

/// Bytes searched for a sound batch when every header is damaged.
const SEARCH_BYTES: usize = 64 * 1024 * 1024;

/// One segment's file.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Its name.
    pub(super) file: String,
    /// Where its first batch stands.
    pub(super) start: Position,
    /// Length of the file in bytes.
    pub(super) length: u64,
    /// Where its bytes end: where the next one starts, or with the file. Of the last one's file the last bytes may be of an
    /// earlier use.
    pub(super) end: Position,
    /// What its head says; `None` if that is damaged.
    pub(super) header: Option<Header>,
}

/// A journal's directory.
pub(super) struct Directory {
    path: PathBuf,
    pub(super) storage: FileStorage,
    pub(super) journal: JournalId,
    /// Time zones of the inputs, as the configuration at hand says.
    pub(super) zones: Zones,
}

impl Directory {
    /// Whether it is the own journal's, and not a mirror's.
    pub(super) fn is_own(&self) -> bool {
        !self.path.parent().is_some_and(|parent| parent.ends_with(crate::pair::mirrors::DIRECTORY))
    }

    /// Opens `given` or the configured data directory; either that or the journal's own directory may be named.
    pub(super) fn open(shared: &Shared, given: Option<&Path>) -> anyhow::Result<Directory> {
        let config = match given {
            Some(_) => configuration::for_looking(shared),
            None => Some(configuration::for_run(shared)?.config),
        };
        let data_dir = given.or(config.as_ref().map(|config| config.data_dir.as_path())).unwrap_or(Path::new("."));
        let own = data_dir.join(OWN_DIRECTORY);
        let path = if own.is_dir() { own } else { data_dir.to_owned() };
        let opened = FileStorage::open_read_only(&path);
        let storage = opened.with_context(|| format!("cannot read the journal in {}", path.display()))?;
        let zones = config.as_ref().map(Zones::of).unwrap_or_default();
        let segments = segments_of(&storage)?;
        let journal = identify(&storage, &segments)?;
        let journal = journal.ok_or_else(|| Failure::new(Exit::Failed, nothing_in(&path, &segments)))?;
        Ok(Directory { path, storage, journal, zones })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The segments as they are now, by position.
    pub(super) fn segments(&self) -> anyhow::Result<Vec<Segment>> {
        segments_of(&self.storage)
    }

    /// How far the outputs are, as last saved.
    pub(super) fn cursors(&self) -> anyhow::Result<Saved> {
        cursors::load(&self.storage, self.journal.incarnation).context("cannot read the cursors")
    }

    /// Whether a batch begins at this place of a segment, whole or not.
    pub(super) fn begins_at(&self, segment: &Segment, at: Position) -> anyhow::Result<bool> {
        let mut head = [0; batch::HEADER_LEN];
        let offset = HEADER_LEN as u64 + at.bytes_since(segment.start);
        let read = self.storage.read_at(&segment.file, offset, &mut head);
        let read = read.with_context(|| format!("cannot read {}", segment.file))?;
        let stamp = Stamp::from(&self.journal);
        Ok(batch::peek(&head[..read]).is_ok_and(|head| head.stamp == stamp && head.mark.position == at))
    }

    /// Walks the batches of a segment from `from` on, which must be where one starts.
    pub(super) fn walk(&self, segment: &Segment, from: Position) -> Walk<'_> {
        Walk::new(&self.storage, segment, from, Stamp::from(&self.journal))
    }
}

fn nothing_in(path: &Path, segments: &[Segment]) -> String {
    match segments.len() {
        0 => format!("there is no journal in {}", path.display()),
        files => format!("nothing sound is in the {files} files of {}", path.display()),
    }
}

fn segments_of(storage: &FileStorage) -> anyhow::Result<Vec<Segment>> {
    let mut segments: Vec<Segment> = Vec::new();
    for (start, length) in recovery::list(storage)? {
        let file = segment::file_name(start);
        let mut head = [0; HEADER_LEN];
        let read = match storage.read_at(&file, 0, &mut head) {
            // A daemon at work removed it meanwhile: everyone has its messages.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.with_context(|| format!("cannot read {file}"))?,
        };
        let header = match Header::decode(&head[..read]) {
            Err(cause @ HeaderError::Version(_)) => {
                return Err(OpenError::Newer { file, cause: cause.to_string() }.into());
            }
            Err(HeaderError::Damaged) => None,
            Ok(header) => Some(header).filter(|header| header.start.position == start),
        };
        if let Some(before) = segments.last_mut() {
            before.end = before.end.min(start);
        }
        let end = start.advance(length.saturating_sub(HEADER_LEN as u64));
        segments.push(Segment { file, start, length, end, header });
    }
    Ok(segments)
}

/// Whose journal it is: the first sound header says it, and for want of one the first sound batch says half of it.
fn identify(storage: &FileStorage, segments: &[Segment]) -> anyhow::Result<Option<JournalId>> {
    if let Some(header) = segments.iter().find_map(|segment| segment.header.as_ref()) {
        return Ok(Some(header.journal.clone()));
    }
    for segment in segments {
        let mut bytes = vec![0; (segment.length as usize).min(SEARCH_BYTES)];
        let read = storage.read_at(&segment.file, HEADER_LEN as u64, &mut bytes);
        bytes.truncate(read.with_context(|| format!("cannot read {}", segment.file))?);
        let bytes = Bytes::from(bytes);
        for at in memchr::memmem::find_iter(&bytes, &batch::MAGIC) {
            let Ok(found) = Batch::decode(&bytes.slice(at..)) else { continue };
            // Of the name there is only a hash; the host's own is tried, as it usually is that one's disk.
            let node = crate::config::node_name(None).ok();
            let node = node.filter(|node| crc32c::crc32c(node.as_str().as_bytes()) == found.stamp().node_hash);
            if let (Some(node), true) = (node, found.start().position == segment.start.advance(at as u64)) {
                return Ok(Some(JournalId { node, incarnation: found.stamp().incarnation }));
            }
        }
    }
    Ok(None)
}
