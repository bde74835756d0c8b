//! What is wrong with a configuration, where, and one fix; and how it is shown.
//!
//! ```text
//! /etc/twinlog/twinlog.toml:4:7: error: `vip` needs a prefix length
//!   4 | vip = "192.0.2.10"
//!     |       ^^^^^^^^^^^^ write "192.0.2.10/24"
//! ```
//!
//! Editors jump to the first line. A source line is shown as people see it (tabs and control characters as spaces), cut
//! to a window around the mark when it is long, and with what looks like a secret starred out: the text ends up in
//! journals and tickets.

use std::fmt::{self, Write};
use std::ops::Range;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is not used.
    Error,
    /// It is used, and someone should know.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file's name as given; empty if it is about no file.
    pub file: String,
    /// Where in the file; `None` for the file as a whole.
    pub place: Option<Place>,
    /// What is wrong, in one line.
    pub message: String,
    /// What to do about it, in one line.
    pub fix: String,
}

/// A stretch of one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file's name as given.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Characters marked, at least 1.
    pub width: usize,
    /// The line without its end, secrets starred out.
    pub source: String,
}

impl Diagnostic {
    /// About a file as a whole.
    #[must_use]
    pub fn of_file(severity: Severity, file: &str, message: impl Into<String>, fix: impl Into<String>) -> Diagnostic {
        Diagnostic { severity, file: file.to_owned(), place: None, message: message.into(), fix: fix.into() }
    }

    /// About a place.
    #[must_use]
    pub fn at(severity: Severity, place: Place, message: impl Into<String>, fix: impl Into<String>) -> Diagnostic {
        let file = place.file.clone();
        Diagnostic { severity, file, place: Some(place), message: message.into(), fix: fix.into() }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, colour: bool) -> fmt::Result {
        let paint = |code: &'static str| if colour { code } else { "" };
        let (bold, blue, reset) = (paint("\x1b[1m"), paint("\x1b[34m"), paint("\x1b[0m"));
        let (level, hue) = match self.severity {
            Severity::Error => ("error", paint("\x1b[1;31m")),
            Severity::Warning => ("warning", paint("\x1b[1;33m")),
        };
        f.write_str(bold)?;
        match &self.place {
            Some(place) => write!(f, "{}:{}:{}: ", place.file, place.line, place.column)?,
            None if self.file.is_empty() => {}
            None => write!(f, "{}: ", self.file)?,
        }
        writeln!(f, "{reset}{hue}{level}{reset}{bold}: {}{reset}", plain(&self.message))?;
        let Some(place) = &self.place else {
            return if self.fix.is_empty() { Ok(()) } else { writeln!(f, "    = fix: {}", plain(&self.fix)) };
        };
        let (source, column) = place.window();
        let gutter = place.line.to_string().len().max(3);
        writeln!(f, "{blue}{:>gutter$} |{reset} {source}", place.line)?;
        let mark = "^".repeat(place.width.min(source.chars().count().saturating_sub(column - 1)).max(1));
        let line = format!(
            "{blue}{:gutter$} |{reset} {:indent$}{hue}{mark} {}{reset}",
            "",
            "",
            plain(&self.fix),
            indent = column - 1
        );
        writeln!(f, "{}", line.trim_end())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

/// Diagnostics one after the other, then how many: `3 errors, 1 warning`. Nothing for none.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// What to show.
    pub diagnostics: &'a [Diagnostic],
    /// Whether with ANSI colours.
    pub colour: bool,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in self.diagnostics {
            diagnostic.write(f, self.colour)?;
        }
        let errors = self.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
        let counts = [(errors, "error"), (self.diagnostics.len() - errors, "warning")];
        let mut separator = "";
        for (count, word) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {word}{}", if count == 1 { "" } else { "s" })?;
            separator = ", ";
        }
        if separator.is_empty() { Ok(()) } else { f.write_char('\n') }
    }
}

/// Characters of a source line that are shown at most.
const WINDOW: usize = 120;
/// How many of them are before the mark.
const WINDOW_BEFORE: usize = 40;

impl Place {
    /// The place of a byte range of a text; the range may be anywhere.
    pub(super) fn new(file: &str, text: &str, range: Range<usize>) -> Place {
        let start = text.floor_char_boundary(range.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let end = text.floor_char_boundary(range.end).clamp(start, line_end);
        let line = text[line_start..line_end].trim_end_matches('\r');
        Place {
            file: file.to_owned(),
            line: text[..line_start].bytes().filter(|byte| *byte == b'\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            source: star_secrets(line),
        }
    }

    /// What is shown of the line, and the column of the mark in it.
    fn window(&self) -> (String, usize) {
        let length = self.source.chars().count();
        let skip = if length > WINDOW { self.column.saturating_sub(WINDOW_BEFORE) } else { 0 };
        let mut window = String::new();
        if skip > 0 {
            window.push('…');
        }
        window.extend(self.source.chars().skip(skip).take(WINDOW).map(without_control));
        if length > skip + WINDOW {
            window.push('…');
        }
        (window, self.column - skip + usize::from(skip > 0))
    }
}

/// Text for a terminal: what it quotes from the file could hold escape sequences.
fn plain(text: &str) -> String {
    text.chars().map(without_control).collect()
}

fn without_control(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

/// Whether the value of a key is a secret. One that names a file is not.
pub(super) fn is_secret(key: &str) -> bool {
    let ends = |end: &&str| {
        let (key, end) = (key.as_bytes(), end.as_bytes());
        key.len() >= end.len() && key[key.len() - end.len()..].eq_ignore_ascii_case(end)
    };
    SECRETS.iter().any(ends)
}

/// Ends of keys whose values are secrets.
const SECRETS: [&str; 10] = [
    "password",
    "passwd",
    "passphrase",
    "auth_pass",
    "secret",
    "token",
    "shared_key",
    "private_key",
    "api_key",
    "pair_key",
];

/// Replaces what follows the `=` of a secret key, and the user part of an address, by as many stars.
fn star_secrets(line: &str) -> String {
    let secret_from = line.match_indices('=').find_map(|(at, _)| {
        let key = line[..at].trim_end_matches([' ', '\t', '"', '\'']);
        is_secret(key).then_some(at + 1)
    });
    let (clear, secret) = line.split_at(secret_from.unwrap_or(line.len()));
    let mut shown = String::with_capacity(line.len());
    if let Some(at) = clear.rfind('@') {
        let token = clear[..at].rfind(['"', '\'', ' ', '=']).map_or(0, |quote| quote + 1);
        let scheme = clear[token..at].find("://").map(|scheme| token + scheme + 3);
        let user = scheme.unwrap_or(token);
        let is_user = scheme.is_some() || clear[token..at].contains(':');
        shown.push_str(&clear[..user]);
        shown.extend(clear[user..at].chars().map(|c| if is_user { '*' } else { c }));
        shown.push_str(&clear[at..]);
    } else {
        shown.push_str(clear);
    }
    shown.extend(secret.chars().map(|c| if c == ' ' { ' ' } else { '*' }));
    shown
}

/// The diagnostic of a file that is not text.
pub(super) fn not_utf8(name: &str, error: &std::string::FromUtf8Error) -> Diagnostic {
    let valid = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(error.as_bytes());
    let place = Place::new(name, &text, valid..valid + 1);
    Diagnostic::at(Severity::Error, place, "the file is not UTF-8 from here on", "save it as UTF-8")
}
