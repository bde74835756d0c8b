//! Lines in a file, by the time of reception: `path` may hold strftime fields, and the file may be rotated.
//!
//! A batch counts as delivered after `fdatasync`. A line half written before a crash is cut when the file is opened
//! again; the message comes once more. After an error the file is cut back to what was safe, so that the second try
//! leaves no repeat. A file moved away by another program (logrotate) is noticed and a new one begun.

use std::fs::{File as Handle, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Local};

use super::encode::Encoder;
use super::filter::Filter;
use super::sink::Delivered;
use crate::config::{FileOutput, PathPattern, Rotate};
use crate::proto::batch::Batch;
use crate::proto::envelope::Timestamp;

/// How much is written at once; a file becomes larger than `rotate.size` by so much at most, and one message.
const WRITE_BYTES: usize = 1 << 20;
/// How much is looked at in one step while searching the last line end.
const LOOK_BACK_BYTES: u64 = 64 * 1024;

/// The file output: what to write where, and the thread-bound side that does it.
#[derive(Debug)]
pub struct File {
    pattern: PathPattern,
    writer: Option<Writer>,
    path: PathBuf,
    /// An empty one at most: its memory is used again.
    parts: Parts,
}

/// Lines for one file after the other.
type Parts = Vec<(PathBuf, Vec<u8>)>;

impl File {
    /// Writes to `settings.path`.
    #[must_use]
    pub fn new(settings: FileOutput) -> File {
        let path = PathBuf::from(settings.path.as_str());
        File {
            pattern: settings.path,
            writer: Some(Writer { rotate: settings.rotate, open: None }),
            path,
            parts: Vec::new(),
        }
    }

    /// The file in use, or the pattern before the first message.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the lines of all batches, and syncs them.
    pub(super) async fn deliver(
        &mut self,
        batches: &[Batch],
        encoder: &mut Encoder,
        filter: &Filter,
    ) -> io::Result<Delivered> {
        let mut delivered = Delivered::default();
        let mut parts = std::mem::take(&mut self.parts);
        let (mut second, mut waiting) = (None, 0);
        let envelopes = batches.iter().flat_map(Batch::envelopes);
        for envelope in envelopes.filter(|envelope| filter.takes(envelope)) {
            let now = envelope.origin.received_at.0 / 1_000_000_000;
            if second != Some(now) {
                second = Some(now);
                let path = self.path_at(envelope.origin.received_at);
                match parts.last_mut() {
                    Some((last, _)) if *last == path => {}
                    Some((last, lines)) if lines.is_empty() => *last = path,
                    _ => parts.push((path, Vec::new())),
                }
            }
            let (mut left, mut more) = (encoder.begin(envelope), true);
            while more {
                let (_, lines) = parts.last_mut().expect("the first message made one");
                let before = lines.len();
                more = encoder.encode_some(&mut left, lines, |_| delivered.messages += 1);
                waiting += lines.len() - before;
                if waiting >= WRITE_BYTES {
                    delivered.bytes += std::mem::take(&mut waiting) as u64;
                    parts = self.write(parts, false).await?;
                }
            }
        }
        delivered.bytes += waiting as u64;
        self.parts = self.write(parts, true).await?;
        Ok(delivered)
    }

    /// Writes what the parts hold, and syncs all of it; gives the last part, empty.
    async fn write(&mut self, mut parts: Parts, sync: bool) -> io::Result<Parts> {
        let Some((path, _)) = parts.last() else { return Ok(parts) };
        self.path.clone_from(path);
        let work = move |writer: &mut Writer| {
            parts.iter().try_for_each(|(path, lines)| writer.write(path, lines))?;
            if sync {
                writer.commit()?;
            }
            parts.drain(..parts.len() - 1);
            parts[0].1.clear();
            parts[0].1.shrink_to(2 * WRITE_BYTES);
            Ok(parts)
        };
        self.on_thread(work).await
    }

    /// Runs blocking work where it holds up nobody; after an error, cuts back to what was safe.
    async fn on_thread<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Writer) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut writer = self.writer.take().ok_or_else(|| io::Error::other("an earlier write did not return"))?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut writer).inspect_err(|_| writer.cut_back());
            (writer, result)
        });
        let (writer, result) = done.await.map_err(io::Error::other)?;
        self.writer = Some(writer);
        result
    }

    fn path_at(&self, time: Timestamp) -> PathBuf {
        let time: DateTime<Local> = DateTime::from_timestamp_nanos(time.0.cast_signed()).into();
        self.pattern.at(&time)
    }
}

/// The blocking side.
#[derive(Debug)]
struct Writer {
    rotate: Rotate,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: Handle,
    length: u64,
    /// Up to here a crash changes nothing.
    safe: u64,
    since: SystemTime,
}

impl Writer {
    fn write(&mut self, path: &Path, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|open| open.path != path || !open.is_in_place()) {
            self.commit()?;
            self.open = None;
        }
        if self.open.as_ref().is_some_and(|open| self.is_due(open, lines.len() as u64)) {
            self.commit()?;
            self.open = None;
            shift(path, self.rotate.keep)?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open::at(path)?),
        };
        open.file.write_all(lines)?;
        open.length += lines.len() as u64;
        Ok(())
    }

    fn is_due(&self, open: &Open, more: u64) -> bool {
        let Rotate { size, age, .. } = self.rotate.clone();
        let age_now = || open.since.elapsed().unwrap_or(Duration::ZERO);
        open.length > 0
            && (size.is_some_and(|size| open.length + more > size) || age.is_some_and(|age| age_now() >= age))
    }

    fn commit(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.as_mut().filter(|open| open.safe < open.length) {
            open.file.sync_data()?;
            open.safe = open.length;
        }
        Ok(())
    }

    fn cut_back(&mut self) {
        if let Some(open) = self.open.take()
            && let Err(error) = open.file.set_len(open.safe)
        {
            tracing::warn!(path = %open.path.display(), %error, "cannot take back a failed write: lines may be repeated");
        }
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
        let metadata = file.metadata()?;
        let length = whole_lines(&file, metadata.len())?;
        if length < metadata.len() {
            tracing::info!(path = %path.display(), bytes = metadata.len() - length, "cut a line that a crash left half written");
            file.set_len(length)?;
        }
        let since = metadata.created().or_else(|_| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
        Ok(Open { path: path.into(), file, length, safe: length, since })
    }

    /// Whether the path still names this file.
    fn is_in_place(&self) -> bool {
        let (Ok(there), Ok(here)) = (std::fs::metadata(&self.path), self.file.metadata()) else { return false };
        there.ino() == here.ino() && there.dev() == here.dev()
    }
}

/// Bytes up to and with the last line end.
fn whole_lines(file: &Handle, length: u64) -> io::Result<u64> {
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(LOOK_BACK_BYTES);
        let mut part = vec![0; (end - start) as usize];
        file.read_exact_at(&mut part, start)?;
        if let Some(at) = memchr::memrchr(b'\n', &part) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Renames `path` to `path.1`, `path.1` to `path.2` and so on; with `keep`, what comes after goes.
fn shift(path: &Path, keep: Option<u32>) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let ignore_missing = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    let first_free = || (1..).find(|number| !numbered(*number).exists()).expect("numbers do not end");
    let last = keep.unwrap_or_else(first_free);
    for number in (1..last).rev() {
        ignore_missing(std::fs::rename(numbered(number), numbered(number + 1)))?;
    }
    ignore_missing(std::fs::rename(path, numbered(1)))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A file's path, and what removes its directory afterwards.
    fn file() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        (directory, path)
    }

    fn writer(size: Option<u64>, keep: Option<u32>) -> Writer {
        Writer { rotate: Rotate { size, age: None, keep }, open: None }
    }

    #[test]
    fn a_line_half_written_before_a_crash_is_cut() {
        let (_directory, path) = file();
        std::fs::write(&path, b"one\ntwo\nthr").unwrap();
        let mut writer = writer(None, None);
        writer.write(&path, b"four\n").unwrap();
        writer.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nfour\n");
    }

    #[test]
    fn files_rotate_by_size_and_only_so_many_are_kept() {
        let (_directory, path) = file();
        let mut writer = writer(Some(8), Some(2));
        for line in [b"aaaaaa\n", b"bbbbbb\n", b"cccccc\n", b"dddddd\n"] {
            writer.write(&path, line).unwrap();
        }
        let read = |name: &str| std::fs::read(path.with_file_name(name)).ok();
        assert_eq!(read("log").unwrap(), b"dddddd\n");
        assert_eq!(read("log.1").unwrap(), b"cccccc\n");
        assert_eq!(read("log.2").unwrap(), b"bbbbbb\n");
        assert_eq!(read("log.3"), None);
    }

    #[test]
    fn a_failed_write_is_taken_back_to_what_was_safe() {
        let (_directory, path) = file();
        let mut writer = writer(None, None);
        writer.write(&path, b"safe\n").unwrap();
        writer.commit().unwrap();
        writer.write(&path, b"not safe\n").unwrap();
        writer.cut_back();
        assert_eq!(std::fs::read(&path).unwrap(), b"safe\n");
    }

    #[test]
    fn a_file_moved_away_is_begun_anew() {
        let (_directory, path) = file();
        let mut writer = writer(None, None);
        writer.write(&path, b"old\n").unwrap();
        std::fs::rename(&path, path.with_file_name("log.moved")).unwrap();
        writer.write(&path, b"new\n").unwrap();
        writer.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new\n");
        assert_eq!(std::fs::read(path.with_file_name("log.moved")).unwrap(), b"old\n");
    }
}
