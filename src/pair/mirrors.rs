//! Mirrors: the other node's journals on this node's disk, byte for byte, each in a directory of its own.
//!
//! `DATA_DIR/mirror/NODE@INCARNATION`. There is one, or more when the other node's disk was lost: the mirror of its last
//! life stays until it is delivered. A mirror is a journal like the own one, but for where its batches come from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::watch;

use crate::journal::{FileStorage, Journal, Limits, OpenError, Settings, WhenFull};
use crate::proto::pair::delivery::is_spent;
use crate::proto::pair::message::Held;
use crate::proto::pair::promise::Acknowledge;
use crate::proto::position::{Incarnation, JournalId, Mark};

/// Name of the mirrors' directory below `data_dir`.
pub const DIRECTORY: &str = "mirror";

/// Why a mirror cannot be written.
#[derive(Debug, Error)]
#[error("cannot open the mirror of {journal}: {cause}")]
pub struct MirrorError {
    /// Of which journal.
    pub journal: JournalId,
    /// What is wrong.
    pub cause: OpenError,
}

/// All mirrors of a node.
#[derive(Debug)]
pub struct Mirrors {
    directory: PathBuf,
    limits: Limits,
    outputs: Mutex<Vec<String>>,
    open: Mutex<BTreeMap<JournalId, Arc<Journal>>>,
    /// Raised whenever a mirror comes or goes.
    changed: watch::Sender<u64>,
}

impl Mirrors {
    /// Opens what is there. A mirror may be as large as the journal it is one of, and a little more, so that it never
    /// is what fills up first. `outputs` is whose deliveries each waits for.
    ///
    /// # Errors
    /// The first that cannot be opened.
    pub fn open(data_dir: &Path, journal: Limits, outputs: Vec<String>) -> Result<Mirrors, MirrorError> {
        let limits = Limits { max_size: journal.max_size + 2 * journal.segment_size, ..journal };
        let directory = data_dir.join(DIRECTORY);
        let mirrors = Mirrors {
            directory,
            limits,
            outputs: Mutex::new(outputs),
            open: Mutex::default(),
            changed: watch::Sender::default(),
        };
        let entries = fs::read_dir(&mirrors.directory).map_or_else(|_| Vec::new(), Iterator::collect);
        for entry in entries.into_iter().flatten() {
            // Whatever else is there is not ours.
            if let Some(journal) = entry.file_name().to_str().and_then(journal_of) {
                mirrors.of(&journal, Mark::default())?;
            }
        }
        Ok(mirrors)
    }

    /// The mirror of a journal, made if there is none: then `at` is where it begins, and what was before is nobody's
    /// business here.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn of(&self, journal: &JournalId, at: Mark) -> Result<Arc<Journal>, MirrorError> {
        let mut open = self.lock();
        if let Some(mirror) = open.get(journal) {
            return Ok(mirror.clone());
        }
        let mirror = self.open_one(journal).map_err(|cause| MirrorError { journal: journal.clone(), cause })?;
        if mirror.progress().durable == Mark::default() {
            mirror.skip_to(at);
            mirror.delivered().keys().for_each(|output| mirror.cursor(output).advance(at));
        }
        let mirror = Arc::new(mirror);
        open.insert(journal.clone(), mirror.clone());
        self.changed.send_modify(|count| *count += 1);
        Ok(mirror)
    }

    fn open_one(&self, journal: &JournalId) -> Result<Journal, OpenError> {
        let directory = self.directory.join(directory_of(journal));
        let storage = FileStorage::open(&directory).map_err(|source| OpenError::Io {
            action: "open",
            file: directory.display().to_string(),
            source,
        })?;
        // What comes over the link is already what the other node committed at once: it is made safe at once, too.
        let (commit_interval, when_full) = (Duration::ZERO, WhenFull::Block);
        let settings = Settings { limits: self.limits, commit_interval, when_full, acknowledge: Acknowledge::Durable };
        let outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let mirror = Journal::open_mirror(Arc::new(storage), journal, settings, &outputs)?;
        for finding in mirror.findings() {
            tracing::warn!(mirror = %journal, "{finding}");
        }
        Ok(mirror)
    }

    /// The mirror of a journal, if there is one.
    #[must_use]
    pub fn get(&self, journal: &JournalId) -> Option<Arc<Journal>> {
        self.lock().get(journal).cloned()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Journal>> {
        self.lock().values().cloned().collect()
    }

    /// Tells when a mirror comes or goes.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Forgets mirrors that are delivered and that nobody writes any more: all but those of `living`. Their directories
    /// go.
    pub fn forget_delivered(&self, living: impl Fn(&JournalId) -> bool) {
        let mut open = self.lock();
        let gone: Vec<JournalId> =
            open.iter().filter(|(id, mirror)| !living(id) && is_delivered(mirror)).map(|(id, _)| id.clone()).collect();
        for journal in gone {
            if let Some(mirror) = open.remove(&journal) {
                mirror.close(Instant::now());
            }
            let directory = self.directory.join(directory_of(&journal));
            match fs::remove_dir_all(&directory) {
                Ok(()) => tracing::info!(%journal, "its last message is delivered: this mirror is gone"),
                Err(error) => tracing::warn!(%error, %journal, "cannot remove a delivered mirror"),
            }
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Changes whose deliveries every mirror waits for.
    pub fn set_outputs(&self, outputs: Vec<String>) {
        for mirror in self.all() {
            for name in mirror.delivered().into_keys().filter(|name| !outputs.contains(name)) {
                mirror.retire_cursor(&name);
            }
            outputs.iter().for_each(|name| drop(mirror.cursor(name)));
        }
        *self.outputs.lock().unwrap_or_else(PoisonError::into_inner) = outputs;
    }

    /// Writes and syncs what was taken. Blocks.
    pub fn close(&self) {
        for mirror in self.all() {
            mirror.close(Instant::now());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<JournalId, Arc<Journal>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether every output has delivered all that is here.
pub(super) fn is_delivered(mirror: &Journal) -> bool {
    is_spent(false, &mirror.delivered(), mirror.progress().durable)
}

/// What a node says of a journal that it has.
#[must_use]
pub fn held(journal: &Journal, is_own: bool) -> Held {
    let progress = journal.progress();
    Held {
        journal: journal.id().clone(),
        is_own,
        oldest: progress.oldest,
        durable: progress.durable,
        delivered: journal.delivered(),
    }
}

/// Of what outputs are said to have delivered, what is before `end`: a mark beyond it cannot be.
#[must_use]
pub fn within(outputs: BTreeMap<String, Mark>, end: Mark) -> BTreeMap<String, Mark> {
    outputs.into_iter().filter(|(_, mark)| mark.position <= end.position).collect()
}

fn directory_of(journal: &JournalId) -> String {
    format!("{}@{}", journal.node, journal.incarnation)
}

fn journal_of(directory: &str) -> Option<JournalId> {
    let (node, incarnation) = directory.split_once('@')?;
    let incarnation = Incarnation(u64::from_str_radix(incarnation, 16).ok()?);
    Some(JournalId { node: node.parse().ok()?, incarnation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_names_its_journal() {
        let journal = JournalId { node: "agg-a.example".parse().unwrap(), incarnation: Incarnation(0x19a) };
        assert_eq!(directory_of(&journal), "agg-a.example@19a");
        assert_eq!(journal_of("agg-a.example@19a"), Some(journal));
        for other in ["lost+found", "agg-a", "agg-a@", "@19a", "agg-a@xyz"] {
            assert_eq!(journal_of(other), None, "{other}");
        }
    }
}
