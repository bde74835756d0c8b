//! Spares: files of removed segments that become the next ones.
//!
//! To write and sync a mebibyte into blocks that were written before costs 107 µs of CPU instead of 260 and half the time
//! (measured, ext4): nothing of the file system's own has to change. So a few removed segments keep their files.
//!
//! Three rules make that safe. A batch proves its journal and position, so old bytes are never taken for new ones. A spare
//! is written to only when its new name is safe: else a crash could leave new bytes under the name of an old segment. And
//! it gets the name of a segment only with that segment's header in it, synced: under such a name there is never a header
//! of another place. A spare has no other meaning; those that a crash left behind are removed at the start.

use std::collections::VecDeque;
use std::io;

use super::segment;
use super::storage::Storage;
use crate::proto::position::Position;

/// Files that are kept at most. Segments go ten times a second (`thread`), so at a gigabyte a second two are needed.
const SPARES_MAX: usize = 4;

const SUFFIX: &str = ".spare";

/// The spares at hand, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Spares {
    names: VecDeque<String>,
    /// Of how many of the oldest the name is safe.
    safe: usize,
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
        let kept = self.names.len() < SPARES_MAX && storage.rename(&segment::file_name(start), &name).is_ok();
        if kept {
            self.names.push_back(name);
        }
        kept
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
    start.is_some_and(|start| segment::position_of(&format!("{start}.seg")).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_we_named_are_spares() {
        assert!(is_spare("0000000000000abc.spare"));
        for other in ["0000000000000abc.seg", "notes.spare", "cursors", ".spare", "0000000000000ABC.spare"] {
            assert!(!is_spare(other), "{other}");
        }
    }
}
