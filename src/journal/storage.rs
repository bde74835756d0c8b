//! The disk as the journal sees it: nine calls on files in one directory.
//!
//! The only trait in the house with two worlds behind it: [`FileStorage`] for real files, and a simulated disk in the
//! tests that forgets what was not synced, tears the last write and fails at any call.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::uio::pwritev;

/// Bytes of a removed file that are given back to the file system at once. Removing 64 MiB in one call held up every
/// `fdatasync` beside it for 70 to 110 ms on ext4 (measured); in steps of this size with the pause, for 3 to 6 ms.
const FREE_BYTES: u64 = 4 * 1024 * 1024;
/// Between two steps.
const FREE_PAUSE: Duration = Duration::from_millis(2);
/// From the removal of a file to the first step: readers that are in it finish.
const FREE_AFTER: Duration = Duration::from_millis(500);
/// Removed files that may wait to be freed; one more is freed where it is removed.
const REMOVED_MAX: usize = 1024;

/// Files in one directory, by name. Calls block; what a call returned `Ok` for holds as its text says, also after a
/// crash where it says so.
pub trait Storage: Send + Sync {
    /// Every file and its length in bytes, in no order.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Makes an empty file and sets `reserve` bytes of space aside for it, so that later writes do not run out of it.
    fn create(&self, name: &str, reserve: u64) -> io::Result<()>;
    /// Writes all `parts` one after the other from `offset` on. After an error any part of them may stand there.
    fn write_at(&self, name: &str, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;
    /// Fills `buffer` from `offset` on as far as the file goes; returns how far.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Makes the file's content safe against loss of power. After an error nobody knows what is safe.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Cuts the file to `length` bytes.
    fn truncate(&self, name: &str, length: u64) -> io::Result<()>;
    /// Removes the file; readers that are in it finish.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives the file another name; readers that are in it finish, and see what is written to it from now on. Of a crash
    /// either name is left.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, removals and new names safe against loss of power.
    fn sync_directory(&self) -> io::Result<()>;
}

/// Real files. Holds a lock on the directory for as long as it lives if opened for writing.
#[derive(Debug)]
pub struct FileStorage {
    directory: PathBuf,
    /// The directory itself, held open: to sync it must not need a file descriptor that a flood of senders took.
    handle: File,
    open: Mutex<HashMap<String, Arc<File>>>,
    /// To the thread that frees what was removed; `None` for looking only.
    removed: Option<SyncSender<Removed>>,
    _lock: Option<Flock<File>>,
}

/// A file without a name whose space is still in use.
type Removed = (Arc<File>, Instant);

impl FileStorage {
    /// Opens `directory` for the one process that writes to it, and makes it if it is missing.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process holds the directory; else what the system says.
    pub fn open(directory: &Path) -> io::Result<FileStorage> {
        if !directory.is_dir() {
            std::fs::create_dir_all(directory)?;
            // A new directory is safe once its parent knows it.
            File::open(directory.join(".."))?.sync_all()?;
        }
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o640).open(directory.join("lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| io::Error::from(errno))?;
        let handle = File::open(directory)?;
        let (removed, to_free) = sync_channel(REMOVED_MAX);
        // It ends when the sender is dropped. What it has not freed then is freed with the process, at once.
        std::thread::Builder::new().name("free".into()).spawn(move || free(&to_free))?;
        Ok(FileStorage {
            directory: directory.into(),
            handle,
            open: Mutex::default(),
            removed: Some(removed),
            _lock: Some(lock),
        })
    }

    /// Opens `directory` for looking only, also while a daemon writes to it.
    ///
    /// # Errors
    /// What the system says, foremost that there is no such directory.
    pub fn open_read_only(directory: &Path) -> io::Result<FileStorage> {
        let handle = File::open(directory)?;
        Ok(FileStorage { directory: directory.into(), handle, open: Mutex::default(), removed: None, _lock: None })
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(name) {
            return Ok(file.clone());
        }
        let file = OpenOptions::new().read(true).write(self.removed.is_some()).open(self.directory.join(name))?;
        let file = Arc::new(file);
        open.insert(name.to_owned(), file.clone());
        Ok(file)
    }
}

impl Storage for FileStorage {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn create(&self, name: &str, reserve: u64) -> io::Result<()> {
        let path = self.directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o640).open(&path)?;
        // Blocks now, length later: running out of space happens here, where nothing has been taken in yet, and the
        // file's length still says how far it was written.
        let reserved = uninterrupted(|| fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, reserve as i64));
        match reserved {
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => {
                drop(file);
                // The caller hears of the reservation's failure; a second error here would add nothing.
                let _ = std::fs::remove_file(&path);
                return Err(errno.into());
            }
        }
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::new(file));
        Ok(())
    }

    fn write_at(&self, name: &str, mut offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        const PARTS_MAX: usize = 1024; // IOV_MAX
        let file = self.file(name)?;
        for parts in parts.chunks(PARTS_MAX) {
            let length: usize = parts.iter().map(|part| part.len()).sum();
            let mut written = uninterrupted(|| pwritev(file.as_fd(), parts, offset as i64))?;
            // A short write is rare (the disk fills up); the rest goes piece by piece, and shows the error if any.
            let mut skip = written;
            for part in parts {
                let rest = &part[skip.min(part.len())..];
                skip -= part.len() - rest.len();
                if written < length && !rest.is_empty() {
                    file.write_all_at(rest, offset + written as u64)?;
                    written += rest.len();
                }
            }
            offset += length as u64;
        }
        Ok(())
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file(name)?;
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        self.file(name)?.set_len(length)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        // Without a file descriptor to be had, the space is freed by the removal itself.
        let file = self.file(name).ok();
        std::fs::remove_file(self.directory.join(name))?;
        // Afterwards: a reader that opened the file in between would keep its space for ever.
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let (Some(removed), Some(file)) = (&self.removed, file) {
            // With too many waiting, or no thread any more, the last owner of the file frees it whole.
            let _ = removed.try_send((file, Instant::now()));
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        // Under the lock: a name that is opened meanwhile would keep the other file for ever.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::rename(self.directory.join(from), self.directory.join(to))?;
        if let Some(file) = open.remove(from) {
            open.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

/// Frees removed files, a little at a time.
fn free(to_free: &Receiver<Removed>) {
    for (file, since) in to_free {
        std::thread::sleep(FREE_AFTER.saturating_sub(since.elapsed()));
        // The space that was set aside may be longer than what was written: cutting there frees that first.
        let mut length = file.metadata().map_or(0, |metadata| metadata.len());
        // An error leaves the rest to the drop of the file.
        while length > 0 && file.set_len(length.saturating_sub(FREE_BYTES)).is_ok() {
            length = length.saturating_sub(FREE_BYTES);
            std::thread::sleep(FREE_PAUSE);
        }
    }
}

/// Repeats a call that a signal interrupted.
fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Whether an error means that something ran out which may come back (space, quota, file descriptors): wait for it,
/// nothing is broken.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EMFILE | Errno::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_file_is_read_to_its_end_by_those_who_have_it_and_then_freed() {
        let directory = tempfile::tempdir().unwrap();
        let storage = FileStorage::open(directory.path()).unwrap();
        storage.create("a", 3 * FREE_BYTES).unwrap();
        storage.write_at("a", 2 * FREE_BYTES, &[IoSlice::new(b"end")]).unwrap();
        let reader = storage.file("a").unwrap();
        storage.remove("a").unwrap();
        assert_eq!(storage.list().unwrap().iter().find(|(name, _)| name == "a"), None);
        let mut end = [0; 3];
        reader.read_exact_at(&mut end, 2 * FREE_BYTES).unwrap();
        assert_eq!(&end, b"end");
        let patience = Instant::now() + Duration::from_secs(30);
        while reader.metadata().unwrap().len() > 0 {
            assert!(Instant::now() < patience, "the space is given back");
            std::thread::sleep(FREE_PAUSE);
        }
    }
}
