//! `twinlog journal ls`.

use std::io::{self, Write};

use serde_json::json;

use super::super::{Exit, Shared};
use super::directory::{Directory, Segment};
use super::{rfc3339, to_the_second};
use crate::journal::segment::Found;
use crate::proto::envelope::Timestamp;
use crate::proto::position::Position;
use crate::status::format;

/// What is said about a segment.
struct Summary {
    /// Where its bytes end.
    end: Position,
    messages: u64,
    received: Option<(Timestamp, Timestamp)>,
    damaged: bool,
}

pub(super) fn execute(directory: &Directory, shared: &Shared) -> anyhow::Result<Exit> {
    let segments = directory.segments()?;
    let mut out = io::stdout().lock();
    if !shared.json && !shared.quiet {
        let title = ["SEGMENT", "FROM", "TO", "SIZE", "MESSAGES", "FIRST", "LAST"];
        let [segment, from, to, size, messages, first, last] = title;
        writeln!(out, "{segment:<20}  {from:>14}  {to:>14}  {size:>9}  {messages:>11}  {first:<20}  {last:<20}")?;
    }
    for segment in &segments {
        let summary = summarise(directory, segment)?;
        let (first, last) = summary.received.unzip();
        if shared.json {
            let line = json!({
                "v": 1, "file": segment.file, "from": segment.start.0, "to": summary.end.0, "bytes": segment.length,
                "messages": summary.messages, "first_received": first.map(rfc3339), "last_received": last.map(rfc3339),
                "damaged": summary.damaged,
            });
            writeln!(out, "{line}")?;
            continue;
        }
        let time = |time: Option<Timestamp>| time.map_or_else(|| "–".to_owned(), to_the_second);
        writeln!(
            out,
            "{:<20}  {:>14}  {:>14}  {:>9}  {:>11}  {:<20}  {:<20}{}",
            segment.file,
            segment.start.0,
            summary.end.0,
            format::bytes(segment.length),
            format::count(summary.messages),
            time(first),
            time(last),
            if summary.damaged { "  ! damaged" } else { "" },
        )?;
    }
    Ok(Exit::Done)
}

fn summarise(directory: &Directory, segment: &Segment) -> io::Result<Summary> {
    let mut summary = Summary { end: segment.end, messages: 0, received: None, damaged: segment.header.is_none() };
    for found in directory.walk(segment, segment.start) {
        match found {
            Ok(Found::Batch(batch)) => {
                summary.messages += u64::from(batch.messages());
                let first = summary.received.map_or(batch.first_received(), |(first, _)| first);
                summary.received = Some((first, batch.last_received()));
            }
            Ok(Found::Damage { .. }) => summary.damaged = true,
            // The end of a segment that is being written; `verify` tells it from damage.
            Ok(Found::Tail { from, torn, .. }) => summary.end = from.advance(torn),
            // Removed by the daemon meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(summary)
}
