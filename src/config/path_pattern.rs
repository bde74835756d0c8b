//! Paths with the date in them: `/var/log/remote/%Y-%m-%d.log`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use chrono::format::{Item, StrftimeItems};
use thiserror::Error;

/// A file path with strftime fields, as chrono writes them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPattern(String);

/// A text that is no path pattern.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidPathPattern {
    /// Nothing, or a directory.
    #[error("must name a file")]
    NoFile,
    /// A NUL, which no path can hold.
    #[error("cannot hold a NUL")]
    Nul,
    /// A `%` with something unknown behind it.
    #[error("has a `%` field that is not known")]
    Field,
}

impl PathPattern {
    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file for a time. Fields that would make two directories of one (`%D` is `07/08/01`) are kept as they come.
    #[must_use]
    pub fn at(&self, time: &chrono::DateTime<chrono::Local>) -> PathBuf {
        PathBuf::from(time.format(&self.0).to_string())
    }

    /// The directory that the file is in at all times; empty for the working directory.
    #[must_use]
    pub fn fixed_directory(&self) -> &Path {
        let fixed = self.0.find('%').map_or(self.0.as_str(), |field| &self.0[..field]);
        let end = fixed.rfind('/').map_or(0, |slash| slash.max(1));
        Path::new(&fixed[..end])
    }
}

impl FromStr for PathPattern {
    type Err = InvalidPathPattern;

    fn from_str(text: &str) -> Result<PathPattern, InvalidPathPattern> {
        if text.is_empty() || text.ends_with('/') || text.ends_with("/.") || text.ends_with("/..") || text == "." {
            return Err(InvalidPathPattern::NoFile);
        }
        if text.contains('\0') {
            return Err(InvalidPathPattern::Nul);
        }
        if StrftimeItems::new(text).any(|item| item == Item::Error) {
            return Err(InvalidPathPattern::Field);
        }
        Ok(PathPattern(text.to_owned()))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    #[test]
    fn fields_become_the_date() {
        let pattern: PathPattern = "/var/log/remote/%Y/%m-%d.log".parse().unwrap();
        let time = chrono::Local.with_ymd_and_hms(2026, 11, 21, 8, 0, 0).unwrap();
        assert_eq!(pattern.at(&time), Path::new("/var/log/remote/2026/11-21.log"));
    }

    #[test]
    fn the_fixed_directory_ends_before_the_first_field() {
        for (pattern, directory) in [
            ("/var/log/all.log", "/var/log"),
            ("/var/log/%Y/all.log", "/var/log"),
            ("/var/log/x%Y.log", "/var/log"),
            ("/all.log", "/"),
            ("out/%Y.log", "out"),
            ("all.log", ""),
        ] {
            assert_eq!(pattern.parse::<PathPattern>().unwrap().fixed_directory(), Path::new(directory), "{pattern}");
        }
    }

    #[test]
    fn what_names_no_file_is_refused() {
        for bad in ["", "/var/log/", "/var/log/..", "a\0b", "/var/log/%Q.log", "/var/log/100%"] {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad:?}");
        }
    }
}
