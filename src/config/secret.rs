//! Secrets: what stands in the files that `*_file` keys name. Read when they are needed, shown to nobody.
//!
//! A file that others may read is refused: a key that everybody has proves nothing.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use thiserror::Error;

use crate::proto::forward::handshake::User;

/// Largest file that is read, in bytes: a mistyped path must not take all memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a file of secrets is not used, without a byte of what is in it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{what}: {fix}")]
pub struct SecretError {
    /// What is wrong; names the file.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl SecretError {
    fn new(what: impl Into<String>, fix: impl Into<String>) -> SecretError {
        SecretError { what: what.into(), fix: fix.into() }
    }
}

/// The key in `file`: all of it but the line end at its end.
///
/// # Errors
/// If it cannot be read, others may read it, or there is no key in it.
pub fn read_key(file: &Path) -> Result<Vec<u8>, SecretError> {
    let mut key = read(file)?;
    let line_end = if key.ends_with(b"\r\n") { 2 } else { usize::from(key.ends_with(b"\n")) };
    key.truncate(key.len() - line_end);
    if key.is_empty() {
        let fix = format!("write the key: head -c 32 /dev/urandom | base64 > {}", file.display());
        return Err(SecretError::new(format!("{} is empty", file.display()), fix));
    }
    Ok(key)
}

/// The users in `file`: `user:password` a line, the password up to the line's end. Empty lines and lines that begin with
/// `#` say nothing.
///
/// # Errors
/// As [`read_key`]; or a line is no user, or a user comes twice.
pub fn read_users(file: &Path) -> Result<Vec<User>, SecretError> {
    let text = read(file)?;
    let mut users: Vec<User> = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let place = format!("{}:{}", file.display(), number + 1);
        let colon = line.iter().position(|byte| *byte == b':').filter(|colon| *colon > 0);
        let user = colon.and_then(|colon| {
            let name = String::from_utf8(line[..colon].to_vec()).ok()?;
            Some(User { name, password: line[colon + 1..].to_vec() })
        });
        let Some(user) = user else {
            return Err(SecretError::new(format!("{place} is no user"), "write it as user:password"));
        };
        if users.iter().any(|other| other.name == user.name) {
            return Err(SecretError::new(format!("{place} names a user again"), "keep one of them"));
        }
        users.push(user);
    }
    if users.is_empty() {
        let fix = "write user:password, or remove users_file";
        return Err(SecretError::new(format!("{} has no user", file.display()), fix));
    }
    Ok(users)
}

fn read(file: &Path) -> Result<Vec<u8>, SecretError> {
    let shown = file.display();
    let unreadable = |error: std::io::Error| {
        SecretError::new(format!("cannot read {shown}: {error}"), format!("let this user read {shown}"))
    };
    let mut opened = File::open(file).map_err(unreadable)?;
    // Of the file that is open, not of the one that may have its name a moment later.
    let metadata = opened.metadata().map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(SecretError::new(format!("{shown} is no file of a secret"), "name a file of at most 1 MiB"));
    }
    if metadata.mode() & 0o007 != 0 {
        let what = format!("others may read {shown} (mode {:04o})", metadata.mode() & 0o7777);
        return Err(SecretError::new(what, format!("chmod 0640 {shown}")));
    }
    let mut bytes = Vec::new();
    (&mut opened).take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_key_is_the_file_without_its_line_end() {
        for (content, key) in [(&b"secret\n"[..], &b"secret"[..]), (b"secret", b"secret"), (b" a\nb\r\n", b" a\nb")] {
            assert_eq!(read_key(file(content, 0o640).path()).unwrap(), key);
        }
        assert!(read_key(file(b"\n", 0o600).path()).unwrap_err().what.ends_with("is empty"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_and_nothing_of_it_is_shown() {
        let error = read_key(file(b"hunter2", 0o644).path()).unwrap_err();
        assert!(error.what.contains("(mode 0644)") && error.fix.starts_with("chmod 0640 "), "{error}");
        assert!(!error.to_string().contains("hunter2"));
        assert!(read_key(Path::new("/")).is_err());
        assert!(read_key(Path::new("/none")).unwrap_err().what.starts_with("cannot read /none"));
    }

    #[test]
    fn users_are_lines() {
        let users = read_users(file(b"# who\n\nada:pass:word\r\nbob:\n", 0o600).path()).unwrap();
        let seen: Vec<_> = users.iter().map(|user| (user.name.as_str(), user.password.as_slice())).collect();
        assert_eq!(seen, [("ada", &b"pass:word"[..]), ("bob", b"")]);
        for (wrong, what) in [(&b"ada\n"[..], ":1 is no user"), (b"a:1\n:x", ":2 is no user"), (b"#", "has no user")] {
            let error = read_users(file(wrong, 0o600).path()).err().expect("an error");
            assert!(error.what.contains(what), "{error}");
        }
        assert!(read_users(file(b"a:1\na:2", 0o600).path()).is_err());
    }
}
