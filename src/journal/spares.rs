//! Spares: files that become the next segments.
//!
//! To write and sync a mebibyte into blocks that were written before costs 107 µs of CPU instead of 260 and half the time
//! (measured, ext4): nothing of the file system's own has to change. So a few removed segments keep their files. While a
//! journal grows there are none, and a spare is made before it is needed, beside the journal's thread: to make a file and
//! set its space aside takes tens of milliseconds on a busy disk, in which nothing would be written.
//!
//! Three rules make that safe. A batch proves its journal and position, so old bytes are never taken for new ones. A spare
//! is written to only when its new name is safe: else a crash could leave new bytes under the name of an old segment. And
//! it gets the name of a segment only with that segment's header in it, synced: under such a name there is never a header
//! of another place. A spare has no other meaning; those that a crash left behind are removed at the start.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::segment;
use super::storage::Storage;
use crate::proto::position::Position;

/// Files that are kept at most. Segments go ten times a second (`thread`), so at a gigabyte a second two are needed.
const SPARES_MAX: usize = 4;

const SUFFIX: &str = ".spare";

/// The spare that never was a segment. There is one at most: it is made when there is no other.
const NEW: &str = "next.spare";

/// The spares at hand, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Spares {
    names: VecDeque<String>,
    /// Of how many of the oldest the name is safe.
    safe: usize,
    /// Whether one is being made.
    is_coming: bool,
}

/// A spare that is to be made, by whoever has the time.
pub struct NewSpare {
    storage: Arc<dyn Storage>,
    reserve: u64,
}

impl NewSpare {
    /// Makes it, in as long as the disk takes; false if that cannot be done, of which the next segment will say why.
    ///
    /// # Errors
    /// If its name cannot be synced, which nobody may ever try again.
    pub fn make(&self) -> io::Result<bool> {
        if self.storage.create(NEW, self.reserve).is_err() {
            return Ok(false);
        }
        self.storage.sync_directory().map(|()| true)
    }
}

impl Spares {
    /// Removes what an earlier life left among these files. What cannot be removed only costs space.
    pub(super) fn clear(storage: &dyn Storage, files: &[(String, u64)]) {
        for (name, _) in files.iter().filter(|(name, _)| is_spare(name)) {
            if let Err(error) = storage.remove(name) {
                tracing::warn!(name, %error, "cannot remove a spare file of the journal");
            }
        }
    }

    /// Keeps the file of the segment at `start`, which is a segment no more then; false if it is to be removed instead.
    pub(super) fn keep(&mut self, storage: &dyn Storage, start: Position) -> bool {
        let name = format!("{:016x}{SUFFIX}", start.0);
        let count = self.names.len() + usize::from(self.is_coming);
        let kept = count < SPARES_MAX && storage.rename(&segment::file_name(start), &name).is_ok();
        if kept {
            self.names.push_back(name);
        }
        kept
    }

    /// A spare of `reserve` bytes for whoever makes it, if none is at hand or on its way.
    pub(super) fn order(&mut self, storage: &Arc<dyn Storage>, reserve: u64) -> Option<NewSpare> {
        if self.is_coming || !self.names.is_empty() {
            return None;
        }
        self.is_coming = true;
        Some(NewSpare { storage: storage.clone(), reserve })
    }

    /// What was ordered is there, under a safe name, or will not come.
    pub(super) fn came(&mut self, is_there: bool) {
        self.is_coming = false;
        if is_there {
            self.names.push_front(NEW.to_owned());
            self.safe += 1;
        }
    }

    /// The spare that is used next, and whether its name is safe.
    pub(super) fn next(&self) -> Option<(&str, bool)> {
        Some((self.names.front()?, self.safe > 0))
    }

    /// The directory was synced.
    pub(super) fn synced(&mut self) {
        self.safe = self.names.len();
    }

    /// Forgets the next spare: it is a segment now, or gone.
    pub(super) fn used(&mut self) {
        self.names.pop_front();
        self.safe = self.safe.saturating_sub(1);
    }

    /// Removes all.
    ///
    /// # Errors
    /// What the storage says; what was not removed is still at hand.
    pub(super) fn give_back(&mut self, storage: &dyn Storage) -> io::Result<()> {
        while let Some(name) = self.names.front() {
            match storage.remove(name) {
                // Somebody removed it by hand.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.used(),
            }
        }
        Ok(())
    }
}

/// Whether a file of this name is one of ours.
fn is_spare(name: &str) -> bool {
    let start = name.strip_suffix(SUFFIX);
    name == NEW || start.is_some_and(|start| segment::position_of(&format!("{start}.seg")).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_we_named_are_spares() {
        assert!(is_spare("0000000000000abc.spare") && is_spare(NEW));
        for other in ["0000000000000abc.seg", "notes.spare", "cursors", ".spare", "0000000000000ABC.spare"] {
            assert!(!is_spare(other), "{other}");
        }
    }
}
