//! Writing what `init` has made: all of it or nothing, never over a file that was there unless that was asked for.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{Group, Uid};

/// Who may read secrets beside root.
const GROUP: &str = "twinlog";

/// A file to be, complete beside its place and not yet in it. Dropped before it is put there, it is gone.
#[derive(Debug)]
pub(super) struct Draft {
    place: PathBuf,
    draft: PathBuf,
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrecy {
    Open,
    Secret,
}

/// What is in the place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Present {
    Nothing,
    Same,
    Other,
}

/// Compares a file with what it should hold.
///
/// # Errors
/// What the system says, except that it is not there.
pub(super) fn present(place: &Path, content: &[u8]) -> io::Result<Present> {
    match fs::read(place) {
        Ok(old) if old == content => Ok(Present::Same),
        Ok(_) => Ok(Present::Other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Present::Nothing),
        Err(error) => Err(error),
    }
}

impl Draft {
    /// Writes a file beside its place: everybody may read it, or, if it is secret, only root and the group `twinlog`, if
    /// there is one and we may give it files, else this user alone.
    ///
    /// # Errors
    /// What the system says; then nothing is left.
    pub(super) fn write(place: &Path, content: &[u8], secrecy: Secrecy) -> io::Result<Draft> {
        let mut name = std::ffi::OsString::from(".");
        name.push(place.file_name().unwrap_or_default());
        name.push(format!(".{}", std::process::id()));
        let draft = Draft { place: place.to_owned(), draft: place.with_file_name(name) };
        let _ = fs::remove_file(&draft.draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft.draft)?;
        let group = Group::from_name(GROUP).ok().flatten().filter(|_| Uid::effective().is_root());
        if let Some(group) = &group {
            chown(&draft.draft, None, Some(group.gid.as_raw()))?;
        }
        let mode = match (secrecy, group) {
            (Secrecy::Open, _) => 0o644,
            (Secrecy::Secret, Some(_)) => 0o640,
            (Secrecy::Secret, None) => 0o600,
        };
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(draft)
    }

    /// Puts it into its place. What is there is kept as `.bak` with `replace`; without, it stays and this is an error.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] without `replace`; else what the system says.
    pub(super) fn put(self, replace: bool) -> io::Result<()> {
        if replace {
            let mut backup = self.place.clone().into_os_string();
            backup.push(".bak");
            let _ = fs::remove_file(&backup);
            match fs::hard_link(&self.place, &backup) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::rename(&self.draft, &self.place)?,
            }
        } else {
            // A link, unlike a rename, fails if there is something.
            fs::hard_link(&self.draft, &self.place)?;
        }
        let directory = self.place.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.draft);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_put_in_its_place_whole_and_never_over_another() {
        let directory = tempfile::TempDir::new().unwrap();
        let place = directory.path().join("pair.key");
        assert_eq!(present(&place, b"one").unwrap(), Present::Nothing);
        Draft::write(&place, b"one", Secrecy::Secret).unwrap().put(false).unwrap();
        assert_eq!(place.metadata().unwrap().mode() & 0o137, 0, "not for others");
        assert_eq!(present(&place, b"one").unwrap(), Present::Same);
        let refused = Draft::write(&place, b"two", Secrecy::Secret).unwrap().put(false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(present(&place, b"two").unwrap(), Present::Other);
        Draft::write(&place, b"two", Secrecy::Secret).unwrap().put(true).unwrap();
        drop(Draft::write(&place, b"three", Secrecy::Secret).unwrap());
        assert_eq!(fs::read(&place).unwrap(), b"two");
        assert_eq!(fs::read(directory.path().join("pair.key.bak")).unwrap(), b"one");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no draft is left");
    }
}
