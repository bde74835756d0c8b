//! `twinlog journal stat`.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::super::{Exit, Shared};
use super::directory::{Directory, Segment};
use super::{rfc3339, to_the_second};
use crate::journal::segment::Found;
use crate::proto::batch::Batch;
use crate::proto::envelope::Timestamp;
use crate::proto::position::Mark;
use crate::status::format;

/// Where a journal begins or ends.
#[derive(Clone, Copy, Default)]
struct Edge {
    mark: Mark,
    received: Option<Timestamp>,
}

pub(super) fn execute(directory: &Directory, shared: &Shared) -> anyhow::Result<Exit> {
    // The cursors first: what is delivered in between then makes a backlog too large, never too small.
    let cursors = directory.cursors()?.marks;
    let segments = directory.segments()?;
    let oldest = oldest(directory, &segments)?;
    let newest = newest(directory, &segments)?;
    let bytes: u64 = segments.iter().map(|segment| segment.length).sum();
    let messages = newest.mark.messages_since(oldest.mark);
    let mut out = io::stdout().lock();
    if shared.json {
        let edge = |edge: Edge| json!({ "position": edge.mark.position.0, "ordinal": edge.mark.ordinal, "received": edge.received.map(rfc3339) });
        let output = |(name, mark): (&String, &Mark)| {
            let backlog = json!({
                "delivered": mark.position.0, "backlog_messages": newest.mark.messages_since(*mark),
                "backlog_bytes": newest.mark.position.bytes_since(mark.position),
            });
            (name.clone(), backlog)
        };
        let outputs: Map<String, Value> = cursors.iter().map(output).collect();
        let answer = json!({
            "v": 1, "journal": if directory.is_own() { "own" } else { "mirror" }, "id": directory.journal.to_string(), "directory": directory.path(),
            "segments": segments.len(), "bytes": bytes, "messages": messages,
            "oldest": edge(oldest), "newest": edge(newest), "outputs": outputs,
        });
        writeln!(out, "{answer:#}")?;
        return Ok(Exit::Done);
    }
    let edge = |edge: Edge| {
        let received = edge.received.map(|at| format!(", received {}", to_the_second(at))).unwrap_or_default();
        format!("position {}{received}", edge.mark.position)
    };
    writeln!(out, "journal   {} in {}", directory.journal, directory.path().display())?;
    writeln!(out, "size      {} in {}", format::bytes(bytes), format::of(segments.len() as u64, "segment"))?;
    writeln!(
        out,
        "messages  {} kept, {} since it was made",
        format::count(messages),
        format::count(newest.mark.ordinal)
    )?;
    writeln!(out, "oldest    {}", edge(oldest))?;
    writeln!(out, "newest    {}", edge(newest))?;
    for (name, mark) in &cursors {
        let behind = newest.mark.messages_since(*mark);
        let bytes = format::bytes(newest.mark.position.bytes_since(mark.position));
        let behind = if behind == 0 {
            "everything delivered".to_owned()
        } else {
            format!("{} ({bytes}) not delivered", format::messages(behind))
        };
        writeln!(out, "output    {name}: {behind}")?;
    }
    Ok(Exit::Done)
}

fn oldest(directory: &Directory, segments: &[Segment]) -> io::Result<Edge> {
    for segment in segments {
        if let Some(batch) = first_batch(directory, segment)? {
            return Ok(Edge { mark: batch.start(), received: Some(batch.first_received()) });
        }
    }
    Ok(at_start(segments.first()))
}

fn first_batch(directory: &Directory, segment: &Segment) -> io::Result<Option<Batch>> {
    batches(directory, segment).next().transpose()
}

fn newest(directory: &Directory, segments: &[Segment]) -> io::Result<Edge> {
    for segment in segments.iter().rev() {
        let mut last = None;
        for batch in batches(directory, segment) {
            last = Some(batch?);
        }
        if let Some(batch) = last {
            return Ok(Edge { mark: batch.end(), received: Some(batch.last_received()) });
        }
    }
    Ok(at_start(segments.last()))
}

/// Of segments without a batch: what their header says.
fn at_start(segment: Option<&Segment>) -> Edge {
    let mark = segment.and_then(|segment| segment.header.as_ref()).map(|header| header.start);
    Edge { mark: mark.unwrap_or_default(), received: None }
}

fn batches<'a>(directory: &'a Directory, segment: &Segment) -> impl Iterator<Item = io::Result<Batch>> + 'a {
    directory.walk(segment, segment.start).filter_map(|found| match found {
        Ok(Found::Batch(batch)) => Some(Ok(batch)),
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error)),
    })
}
