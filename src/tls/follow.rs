//! Following files without a watcher: whoever needs what is in them looks whether they are still the same.

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::TlsError;

/// Something made from files, made again when they have changed.
#[derive(Debug)]
pub(super) struct Followed<T> {
    files: Vec<PathBuf>,
    /// Within this time of the last look they are not looked at again.
    every: Duration,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    made: Option<T>,
    stamps: Vec<Stamp>,
    looked: Option<Instant>,
}

/// What tells a file from another of the same name; `None` for no file. Modification time in seconds and nanoseconds,
/// size, inode: a file that was moved into place has another inode though time and size may be the same.
type Stamp = Option<(i64, i64, u64, u64)>;

impl<T: Clone> Followed<T> {
    /// Nothing is made yet.
    pub(super) fn new(files: Vec<PathBuf>, every: Duration) -> Followed<T> {
        Followed { files, every, state: Mutex::new(State { made: None, stamps: Vec::new(), looked: None }) }
    }

    /// What the files make, from `make` if they have changed. If that fails, what was made before stays, and the error
    /// is logged once, until the files change again.
    ///
    /// # Errors
    /// What `make` says, if it never succeeded.
    pub(super) fn get(
        &self,
        now: Instant,
        what: &dyn Display,
        make: impl FnOnce() -> Result<T, TlsError>,
    ) -> Result<T, TlsError> {
        // A panic in `make` leaves what was made before.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(made), Some(looked)) = (&state.made, state.looked)
            && now.saturating_duration_since(looked) < self.every
        {
            return Ok(made.clone());
        }
        state.looked = Some(now);
        // Before they are read: what changes meanwhile is seen at the next look.
        let stamps = self.files.iter().map(stamp).collect();
        if let Some(made) = state.made.as_ref().filter(|_| state.stamps == stamps) {
            return Ok(made.clone());
        }
        match (make(), &state.made) {
            (Ok(made), before) => {
                if before.is_some() {
                    tracing::info!(%what, "renewed TLS files are in use");
                }
                state.made = Some(made.clone());
                state.stamps = stamps;
                Ok(made)
            }
            (Err(error), Some(before)) => {
                tracing::error!(%what, %error, fix = error.fix(), "renewed TLS files cannot be used, the old ones stay");
                let before = before.clone();
                state.stamps = stamps;
                Ok(before)
            }
            (Err(error), None) => Err(error),
        }
    }
}

fn stamp(file: &PathBuf) -> Stamp {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.size(), metadata.ino()))
}
