//! `twinlog journal verify`: is everything there that was promised?

use std::io::{self, Write};

use serde_json::json;

use super::super::{Exit, Shared};
use super::directory::Directory;
use crate::journal::segment::Found;
use crate::proto::position::{Mark, Position};
use crate::status::format;

/// Something that is not as it should be.
struct Problem {
    file: String,
    from: Position,
    to: Position,
    what: String,
    /// Messages that are gone by it; `None` if that cannot be told, but some may be.
    messages: Option<u64>,
}

/// What a whole reading found.
#[derive(Default)]
struct Verdict {
    segments: usize,
    messages: u64,
    bytes: u64,
    problems: Vec<Problem>,
    /// Bytes after the last sound batch that were never promised.
    unfinished: u64,
}

impl Verdict {
    fn lost(&self) -> u64 {
        self.problems.iter().filter_map(|problem| problem.messages).sum()
    }

    fn exit(&self) -> Exit {
        let lost = self.problems.iter().any(|problem| problem.messages != Some(0));
        match (lost, self.problems.is_empty()) {
            (true, _) => Exit::Loss,
            (false, false) => Exit::Failed,
            (false, true) => Exit::Done,
        }
    }
}

pub(super) fn execute(directory: &Directory, shared: &Shared) -> anyhow::Result<Exit> {
    let verdict = verify(directory)?;
    let mut out = io::stdout().lock();
    if shared.json {
        let problems = verdict.problems.iter().map(|problem| {
            json!({
                "file": problem.file, "from": problem.from.0, "to": problem.to.0, "what": problem.what,
                "messages": problem.messages,
            })
        });
        let problems = problems.collect::<Vec<_>>();
        let answer = json!({
            "v": 1, "ok": verdict.problems.is_empty(), "segments": verdict.segments, "messages": verdict.messages,
            "bytes": verdict.bytes, "lost": verdict.lost(), "unfinished_bytes": verdict.unfinished,
            "problems": problems,
        });
        writeln!(out, "{answer:#}")?;
        return Ok(verdict.exit());
    }
    for problem in &verdict.problems {
        let lost = match problem.messages {
            Some(0) => "no message is lost by it".to_owned(),
            Some(messages) => format!("{} lost", format::messages(messages)),
            None => "messages may be lost".to_owned(),
        };
        writeln!(out, "! {}: position {} to {}: {}; {lost}", problem.file, problem.from, problem.to, problem.what)?;
    }
    if shared.quiet {
        return Ok(verdict.exit());
    }
    if verdict.unfinished > 0 {
        writeln!(out, "the last {} are no message yet, or never became one", format::bytes(verdict.unfinished))?;
    }
    let read = format!(
        "{} in {} ({}) are sound",
        format::messages(verdict.messages),
        format::of(verdict.segments as u64, "segment"),
        format::bytes(verdict.bytes),
    );
    match verdict.problems.len() {
        0 => writeln!(out, "{read}; nothing is damaged")?,
        1 => writeln!(out, "{read}; 1 problem")?,
        problems => writeln!(out, "{read}; {problems} problems")?,
    }
    Ok(verdict.exit())
}

fn verify(directory: &Directory) -> anyhow::Result<Verdict> {
    let cursors = directory.cursors()?.marks;
    let segments = directory.segments()?;
    let mut verdict = Verdict::default();
    // Where the next message must stand; unknown before the first.
    let mut expected: Option<Mark> = None;
    for (index, segment) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        verdict.segments += 1;
        let mut problem = |from: Position, to: Position, what: String, messages: Option<u64>| {
            verdict.problems.push(Problem { file: segment.file.clone(), from, to, what, messages });
        };
        if segment.header.is_none() {
            problem(segment.start, segment.start, "the segment's header is damaged".to_owned(), Some(0));
        }
        let (mut messages, mut bytes, mut unfinished) = (0, 0, 0);
        for found in directory.walk(segment, segment.start) {
            match found {
                Ok(Found::Batch(batch)) => {
                    let (start, before) = (batch.start(), expected.replace(batch.end()));
                    messages += u64::from(batch.messages());
                    bytes += batch.bytes().len() as u64;
                    let Some(before) = before.filter(|before| *before != start) else { continue };
                    let missing = start.messages_since(before);
                    if start.position > before.position {
                        problem(
                            before.position,
                            start.position,
                            "bytes are damaged or missing".to_owned(),
                            Some(missing),
                        );
                    }
                }
                // Counted when the next sound batch says how many messages are missing before it.
                Ok(Found::Damage { from, to, cause }) if expected.is_none() => {
                    problem(from, to, cause.to_string(), None);
                }
                Ok(Found::Damage { .. }) => {}
                Ok(Found::Tail { torn, .. }) if last => unfinished = torn,
                Ok(Found::Tail { from, cause, .. }) if expected.is_none() => {
                    problem(from, segment.end, cause.to_string(), None);
                }
                Ok(Found::Tail { .. }) => {}
                // A daemon at work removed it: everyone has its messages, and the next one is the oldest.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    expected = None;
                    break;
                }
                Err(error) => problem(segment.start, segment.end, format!("cannot be read: {error}"), None),
            }
        }
        verdict.messages += messages;
        verdict.bytes += bytes;
        verdict.unfinished += unfinished;
    }
    let oldest = segments.first().and_then(|segment| segment.header.as_ref()).map(|header| header.start);
    for (name, mark) in cursors {
        let Some(oldest) = oldest.filter(|oldest| mark.position < oldest.position) else { continue };
        verdict.problems.push(Problem {
            file: "cursors".to_owned(),
            from: mark.position,
            to: oldest.position,
            what: format!("output {name} had not delivered them and no segment holds them"),
            messages: Some(oldest.messages_since(mark)),
        });
    }
    Ok(verdict)
}
