//! Takes values out of toml's spanned tree and goes on after an error, so that all of them are reported at once.
//!
//! A [`Table`] may have parts in several files: scalars must be in one of them, arrays of tables add up. A section takes
//! the keys it knows and then calls [`Table::finish`]: what nobody took is unknown. This file knows TOML and places, not
//! what the keys mean; except for the list of keys that other versions have, which deserve more than "unknown".

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Source;
use super::choice::Choice;
use super::diagnostic::{self, Diagnostic, Place, Severity};
use super::units::{self, Invalid};

/// Keys that this version does not have, and why: the table, the key, what is said.
const NOT_HERE: [(&str, &str, &str); 1] = [("", "node", "the name is no key: give it with --node or TWINLOG_NODE")];

/// Errors kept at most, and warnings: nobody reads more, and a hostile text must not take all memory.
const FINDINGS_MAX: usize = 1_000;

/// The texts and what was found in them so far.
pub(super) struct Findings<'a> {
    sources: &'a [Source],
    /// Whether all texts are there and are TOML. If not, what seems to be missing may be in the part not understood.
    complete: bool,
    errors: Cell<usize>,
    found: RefCell<Vec<Finding>>,
}

struct Finding {
    spot: Option<Spot>,
    syntax: bool,
    diagnostic: Diagnostic,
}

/// A stretch of one of the files.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    file: usize,
    range: Range<usize>,
}

impl<'a> Findings<'a> {
    /// Parses the texts; what is no TOML is noted, the rest is in the table, one part for each text.
    pub(super) fn parse(sources: &'a [Source], complete: bool) -> (Findings<'a>, Vec<Spanned<DeTable<'a>>>) {
        let mut findings = Findings { sources, complete, errors: Cell::new(0), found: RefCell::default() };
        let mut documents = Vec::new();
        for (file, source) in sources.iter().enumerate() {
            let (document, mut errors) = DeTable::parse_recoverable(&source.text);
            documents.push(document);
            errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
            // One for each line: the others are mostly toml's attempt to go on.
            let mut line_end = 0;
            for error in errors {
                let spot = Spot { file, range: error.span().unwrap_or(0..0) };
                if spot.range.start >= line_end {
                    let rest = source.text.get(spot.range.start..).unwrap_or("");
                    line_end = spot.range.start + rest.find('\n').unwrap_or(rest.len()) + 1;
                    findings.note_syntax(spot, error.message());
                }
            }
        }
        findings.complete = complete && findings.found.borrow().is_empty();
        (findings, documents)
    }

    fn note_syntax(&self, spot: Spot, message: &str) {
        let place = self.place(&spot);
        // What is starred out in the line must not come back in the fix.
        let text = self.sources[spot.file].text.get(spot.range.clone());
        let text = text.filter(|text| place.source.contains(text)).unwrap_or("…");
        let (message, fix) = syntax(message, text);
        self.push(Some(spot), true, Diagnostic::at(Severity::Error, place, message, fix));
    }

    /// Notes what is wrong at a place.
    pub(super) fn note(&self, severity: Severity, spot: &Spot, message: impl Into<String>, fix: impl Into<String>) {
        // Asked before the line is copied.
        if self.has_room(severity) {
            self.push(Some(spot.clone()), false, Diagnostic::at(severity, self.place(spot), message, fix));
        }
    }

    fn push(&self, spot: Option<Spot>, syntax: bool, diagnostic: Diagnostic) {
        if self.has_room(diagnostic.severity) {
            self.errors.set(self.errors.get() + usize::from(diagnostic.severity == Severity::Error));
            self.found.borrow_mut().push(Finding { spot, syntax, diagnostic });
        }
    }

    /// Counted apart, so that no number of warnings can hide an error.
    fn has_room(&self, severity: Severity) -> bool {
        let (errors, all) = (self.errors.get(), self.found.borrow().len());
        FINDINGS_MAX > if severity == Severity::Error { errors } else { all - errors }
    }

    /// Notes that something is missing: at a place, or in the configuration as a whole.
    pub(super) fn note_missing(&self, spot: Option<&Spot>, message: impl Into<String>, fix: impl Into<String>) {
        if !self.complete {
            return;
        }
        if let Some(spot) = spot {
            return self.note(Severity::Error, spot, message, fix);
        }
        let main = self.sources.first().map_or("", |source| &source.name);
        let diagnostic = Diagnostic::of_file(Severity::Error, main, message, fix);
        self.push(None, false, diagnostic);
    }

    /// The place as diagnostics carry it.
    pub(super) fn place(&self, spot: &Spot) -> Place {
        let source = &self.sources[spot.file];
        Place::new(&source.name, &source.text, spot.range.clone())
    }

    /// `file:line:col` of a place.
    pub(super) fn name_of(&self, spot: &Spot) -> String {
        let place = self.place(spot);
        format!("{}:{}:{}", place.file, place.line, place.column)
    }

    /// Everything found, in the order of the files and their lines; what concerns no line comes last.
    ///
    /// On a line that is no TOML only that is kept: what was understood of the rest is a guess.
    pub(super) fn take(&self) -> Vec<Diagnostic> {
        let mut found = self.found.take();
        found
            .sort_by_key(|finding| finding.spot.as_ref().map_or((usize::MAX, 0), |spot| (spot.file, spot.range.start)));
        let line = |finding: &Finding| {
            let line = finding.diagnostic.place.as_ref().map(|place| place.line);
            finding.spot.as_ref().zip(line).map(|(spot, line)| (spot.file, line))
        };
        let broken: BTreeSet<_> = found.iter().filter(|finding| finding.syntax).map(line).collect();
        found.retain(|finding| finding.syntax || !broken.contains(&line(finding)));
        found.into_iter().map(|finding| finding.diagnostic).collect()
    }
}

/// What toml says, in our words: "what is wrong, expected what would be right".
fn syntax(message: &str, text: &str) -> (String, String) {
    let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let fix = match what {
        "duplicate key" => return (format!("`{text}` is here a second time"), "keep one of them".to_owned()),
        "string values must be quoted" if text.is_empty() => "write a value".to_owned(),
        "string values must be quoted" => format!("write \"{text}\""),
        _ if expected.is_empty() => "see https://toml.io for the syntax".to_owned(),
        _ => format!("expected {expected}"),
    };
    (what.to_owned(), fix)
}

/// A table of the configuration, perhaps with parts in several files.
pub(super) struct Table<'a> {
    findings: &'a Findings<'a>,
    /// `input.syslog`; empty for the top level.
    path: String,
    parts: Vec<Part<'a>>,
    known: RefCell<Vec<&'static str>>,
}

struct Part<'a> {
    spot: Spot,
    table: &'a DeTable<'a>,
}

impl<'a> Table<'a> {
    /// The top level of all texts.
    pub(super) fn root(findings: &'a Findings<'a>, documents: &'a [Spanned<DeTable<'a>>]) -> Table<'a> {
        let part = |(file, document): (usize, &'a Spanned<DeTable<'a>>)| Part {
            spot: Spot { file, range: document.span() },
            table: document.get_ref(),
        };
        Table::new(findings, "", documents.iter().enumerate().map(part).collect())
    }

    fn new(findings: &'a Findings<'a>, path: &str, parts: Vec<Part<'a>>) -> Table<'a> {
        Table { findings, path: path.to_owned(), parts, known: RefCell::default() }
    }

    /// Where it begins, if it is anywhere.
    pub(super) fn spot(&self) -> Option<&Spot> {
        self.parts.first().map(|part| &part.spot)
    }

    /// Where the value of a key is, if it is anywhere.
    pub(super) fn spot_of(&self, key: &'static str) -> Option<Spot> {
        self.values(key).into_iter().next().map(|value| value.spot)
    }

    /// Whether the key is anywhere.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.spot_of(key).is_some()
    }

    /// Whether there is nothing in it, known or not.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.table.is_empty())
    }

    /// The value of a key, from the first file that has it; a second one is an error.
    pub(super) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        let mut values = self.values(key).into_iter();
        let first = values.next()?;
        for second in values {
            let message = format!("`{}` is already set at {}", self.path_of(key), self.findings.name_of(&first.spot));
            self.findings.note(Severity::Error, &second.spot, message, "keep one of them");
        }
        Some(first)
    }

    /// Reads a key into `target`, which holds the default.
    pub(super) fn set<T>(&self, key: &'static str, target: &mut T, read: impl FnOnce(&Value<'a>) -> Option<T>) {
        if let Some(value) = self.get(key).and_then(|value| read(&value)) {
            *target = value;
        }
    }

    /// The table under a key, empty if it is nowhere; its parts add up.
    pub(super) fn table(&self, key: &'static str) -> Table<'a> {
        let parts = self.values(key).into_iter().filter_map(|value| match value.item {
            DeValue::Table(table) => Some(Part { spot: value.spot, table }),
            _ => {
                let fix = match key {
                    "input" | "output" => format!("name its kind: [[{key}.syslog]]"),
                    _ => format!("write [{}]", self.path_of(key)),
                };
                value.error("must be a table", fix);
                None
            }
        });
        let parts = parts.collect();
        Table::new(self.findings, &self.path_of(key), parts)
    }

    /// The tables of an array of tables, file by file.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Table<'a>> {
        let path = self.path_of(key);
        let mut tables = Vec::new();
        for value in self.values(key) {
            for item in if let DeValue::Array(_) = value.item { value.items() } else { vec![value.clone()] } {
                match item.item {
                    DeValue::Table(table) => {
                        if !matches!(value.item, DeValue::Array(_)) {
                            item.error("is a list of tables", format!("write [[{path}]]"));
                        }
                        tables.push(Table::new(self.findings, &path, vec![Part { spot: item.spot, table }]));
                    }
                    _ => item.error("must be a table", format!("write [[{path}]]")),
                }
            }
        }
        tables
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.take();
        for part in &self.parts {
            for (key, _) in part.table {
                if !known.contains(&&**key.get_ref()) {
                    let spot = Spot { file: part.spot.file, range: key.span() };
                    let (message, fix) = self.unknown(key.get_ref(), &known);
                    self.findings.note(Severity::Error, &spot, message, fix);
                }
            }
        }
    }

    fn unknown(&self, key: &str, known: &[&'static str]) -> (String, String) {
        let place = match self.path.as_str() {
            "" => "at the top level".to_owned(),
            path @ ("input.syslog" | "input.forward" | "input.relp" | "output.syslog" | "output.forward"
            | "output.file" | "output.stdout" | "hook") => {
                format!("in [[{path}]]")
            }
            path => format!("in [{path}]"),
        };
        let not_here = NOT_HERE.iter().find(|(path, name, _)| *path == self.path && *name == key);
        if let Some((_, _, note)) = not_here {
            return (format!("unknown key `{key}` {place}"), (*note).to_owned());
        }
        if diagnostic::is_secret(key) {
            let fix = match self.path.as_str() {
                "input.forward" => "remove it and name a file: shared_key_file, users_file",
                "output.forward" => "remove it and name a file: shared_key_file, password_file",
                _ => "remove it: secrets are read from files only, and none is needed here",
            };
            return (format!("`{key}` {place} holds a secret"), fix.to_owned());
        }
        let fix = match nearest(key, known) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        (format!("unknown key `{key}` {place}"), fix)
    }

    fn values(&self, key: &'static str) -> Vec<Value<'a>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        let found = self.parts.iter().filter_map(|part| {
            let item = part.table.get(key)?;
            let spot = Spot { file: part.spot.file, range: item.span() };
            Some(Value { findings: self.findings, key, spot, item: item.get_ref() })
        });
        found.collect()
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// A value and its place.
#[derive(Clone)]
pub(super) struct Value<'a> {
    findings: &'a Findings<'a>,
    key: &'static str,
    /// Where it is.
    pub(super) spot: Spot,
    item: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// Notes what is wrong with it; `what` goes on after the key's name.
    pub(super) fn error(&self, what: impl Display, fix: impl Into<String>) {
        self.findings.note(Severity::Error, &self.spot, format!("`{}` {what}", self.key), fix);
    }

    /// Notes what should be known about it.
    pub(super) fn warning(&self, what: impl Display, fix: impl Into<String>) {
        self.findings.note(Severity::Warning, &self.spot, format!("`{}` {what}", self.key), fix);
    }

    /// Text in quotes, read by `read`.
    pub(super) fn parse<T>(&self, read: impl FnOnce(&'a str) -> Result<T, Invalid>) -> Option<T> {
        let (text, quoted) = match self.item {
            DeValue::String(text) => (&**text, true),
            // Quotes forgotten: what the reader says of the number itself is worth more than "not a string".
            DeValue::Integer(number) => (number.as_str(), false),
            DeValue::Float(number) => (number.as_str(), false),
            other => {
                let kind = if other.is_array() { "one text" } else { "a text" };
                self.error(format!("must be {kind}, not {}", with_article(other)), "write it in quotes");
                return None;
            }
        };
        match read(text) {
            Ok(value) if quoted => Some(value),
            Ok(_) => {
                self.error(format!("must be a text, not {}", with_article(self.item)), format!("write \"{text}\""));
                None
            }
            Err(Invalid { what, fix }) => {
                self.error(what, fix);
                None
            }
        }
    }

    /// Text in quotes.
    pub(super) fn text(&self) -> Option<String> {
        self.parse(|text| Ok(text.to_owned()))
    }

    /// One word of a closed set.
    pub(super) fn choice<T: Choice>(&self) -> Option<T> {
        self.parse(T::from_word)
    }

    /// True or false, without quotes.
    pub(super) fn flag(&self) -> Option<bool> {
        let flag = self.item.as_bool();
        if flag.is_none() {
            self.error(format!("must be true or false, not {}", with_article(self.item)), "write true or false");
        }
        flag
    }

    /// A duration within limits.
    pub(super) fn duration(&self, limits: RangeInclusive<Duration>) -> Option<Duration> {
        self.parse(|text| {
            within(units::duration(text)?, &limits, |limit| format!("\"{}\"", units::show_duration(limit)))
        })
    }

    /// A size in bytes within limits.
    pub(super) fn size(&self, limits: RangeInclusive<u64>) -> Option<u64> {
        self.parse(|text| within(units::size(text)?, &limits, |limit| format!("\"{}\"", units::show_size(limit))))
    }

    /// A number without a unit, at least 1.
    pub(super) fn count(&self) -> Option<u32> {
        let number = match self.item {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            other => {
                self.error(
                    format!("must be a number, not {}", with_article(other)),
                    "write a number without quotes, or \"off\"",
                );
                return None;
            }
        };
        let number = number.filter(|number| *number > 0);
        if number.is_none() {
            self.error(format!("must lie between 1 and {}", u32::MAX), "write a number in that range, or \"off\"");
        }
        number
    }

    /// A number without a unit, within limits.
    pub(super) fn number(&self, limits: RangeInclusive<u32>) -> Option<u32> {
        let DeValue::Integer(number) = self.item else {
            self.error(format!("must be a number, not {}", with_article(self.item)), "write a number without quotes");
            return None;
        };
        let number = u32::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| limits.contains(number));
        if number.is_none() {
            self.error(format!("must lie between {} and {}", limits.start(), limits.end()), "write one in that range");
        }
        number
    }

    /// `"off"` as `None`, everything else by `read`.
    pub(super) fn unless_off<T>(&self, read: impl FnOnce(&Self) -> Option<T>) -> Option<Option<T>> {
        if self.item.as_str() == Some("off") { Some(None) } else { read(self).map(Some) }
    }

    /// The items of a list; a value that is no list is the only item.
    pub(super) fn items(&self) -> Vec<Value<'a>> {
        let DeValue::Array(array) = self.item else { return vec![self.clone()] };
        let item = |item: &'a Spanned<DeValue<'a>>| {
            let spot = Spot { file: self.spot.file, range: item.span() };
            Value { findings: self.findings, key: self.key, spot, item: item.get_ref() }
        };
        array.iter().map(item).collect()
    }

    /// One or a list, each by `read`; items with errors are left out.
    pub(super) fn list<T>(&self, read: impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        Some(self.items().iter().filter_map(read).collect())
    }
}

fn with_article(value: &DeValue<'_>) -> String {
    let name = match value {
        DeValue::Boolean(_) => "true or false",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Array(_) => "a list",
        DeValue::Datetime(_) => "a date",
        DeValue::String(_) => "a text",
        DeValue::Table(_) => "a table",
    };
    name.to_owned()
}

fn within<T: PartialOrd + Copy>(
    value: T,
    limits: &RangeInclusive<T>,
    show: impl Fn(T) -> String,
) -> Result<T, Invalid> {
    if limits.contains(&value) {
        return Ok(value);
    }
    let (least, most) = (show(*limits.start()), show(*limits.end()));
    let nearest = if value < *limits.start() { &least } else { &most };
    let what = format!("must lie between {} and {}", least.replace('"', ""), most.replace('"', ""));
    Err(Invalid::new(what, format!("write {nearest}")))
}

/// The name that was probably meant: fewest typing errors, at most one for each three letters.
pub(super) fn nearest<'n>(text: &str, names: &[&'n str]) -> Option<&'n str> {
    // A key may be as long as the file; nobody meant a name of 16 letters with that.
    if text.len() > 40 {
        return None;
    }
    let near = names.iter().map(|name| (typing_errors(text, name), *name));
    let (errors, name) = near.min_by_key(|(errors, _)| *errors)?;
    (errors <= (text.chars().count().max(name.len()) / 3).max(1)).then_some(name)
}

/// Damerau-Levenshtein distance (optimal string alignment): letters inserted, left out, changed, or two swapped.
fn typing_errors(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_counted() {
        for (a, b, errors) in
            [("listn", "listen", 1), ("lisetn", "listen", 1), ("", "to", 2), ("abc", "abc", 0), ("ca", "abc", 3)]
        {
            assert_eq!(typing_errors(a, b), errors, "{a} {b}");
        }
    }

    #[test]
    fn only_a_near_name_is_suggested() {
        let names = ["listen", "max_message", "to"];
        for (text, suggested) in
            [("listn", Some("listen")), ("ot", Some("to")), ("max_mesage", Some("max_message")), ("colour", None)]
        {
            assert_eq!(nearest(text, &names), suggested, "{text}");
        }
    }
}
