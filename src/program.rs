//! The file this process runs, and whether another has been put in its place since: an upgrade changes the file and leaves
//! the process alone, until somebody restarts it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file that was started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    /// Device and inode: a package puts a new file there and never writes into the old one.
    file: (u64, u64),
}

impl Program {
    /// That of this process.
    ///
    /// # Errors
    /// What the system says, mostly that `/proc` is not there.
    pub fn running() -> io::Result<Program> {
        // The link leads to the file itself, even when its name has gone to another one meanwhile.
        let file = identity(Path::new("/proc/self/exe"))?;
        Ok(Program { path: std::env::current_exe()?, file })
    }

    /// Whether its place has another file now. One that is gone asks for no restart.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        identity(&self.path).is_ok_and(|there| there != self.file)
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_here_is_in_its_place() {
        assert!(!Program::running().unwrap().is_replaced());
    }

    #[test]
    fn another_file_in_its_place_is_noticed_and_none_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("twinlog");
        fs::write(&path, "old").unwrap();
        let program = Program { file: identity(&path).unwrap(), path: path.clone() };
        assert!(!program.is_replaced());
        fs::write(directory.path().join("new"), "new").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert!(program.is_replaced());
        fs::remove_file(&path).unwrap();
        assert!(!program.is_replaced());
    }
}
