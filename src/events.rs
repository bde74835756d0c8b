//! The events file: what changed about the node and why, a JSON object a line, the newest last.
//!
//! `DATA_DIR/events`. When there are a tenth more than [`EVENTS_MAX`], the oldest go. It is read by `twinlog events`, with
//! or without a daemon. A line that is none, as a crash may leave one, is left out.
//!
//! Whoever knows that something happened tells a [`Recorder`], which neither waits nor fails: one task writes, and the disk
//! may take its time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Events that are kept.
pub const EVENTS_MAX: usize = 10_000;
/// How many more there may be before the oldest go, so that this is rare.
const SLACK: usize = EVENTS_MAX / 10;
/// Events that wait for the disk; more are logged and lost.
const QUEUE_EVENTS: usize = 256;
/// The file's name in the data directory.
const FILE: &str = "events";

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Version of the shape: 1.
    pub v: u32,
    /// When, RFC 3339 in UTC, to the microsecond.
    pub at: String,
    /// To which node.
    pub node: String,
    /// What, from a closed set: `started`, `became_master`, `fault_began`, …
    pub event: String,
    /// Why, or which.
    pub cause: Option<String>,
}

/// Where to tell events. Clones tell the same file; when the last one is gone, what waits is still written.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Event>,
    node: String,
}

impl Recorder {
    /// Starts the task that writes, on the runtime at hand. Its end comes after that of the last clone.
    #[must_use]
    pub fn start(data_dir: &Path, node: String) -> (Recorder, JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(QUEUE_EVENTS);
        (Recorder { queue, node }, tokio::spawn(write(Events::of(data_dir), waiting)))
    }

    /// Tells that something happened. Never waits.
    pub fn tell(&self, at: SystemTime, event: &str, cause: Option<String>) {
        let at = DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Micros, true);
        let told = Event { v: 1, at, node: self.node.clone(), event: event.to_owned(), cause };
        if self.queue.try_send(told).is_err() {
            tracing::warn!(event, "not in the events file: {QUEUE_EVENTS} wait for the disk");
        }
    }
}

async fn write(mut events: Events, mut waiting: mpsc::Receiver<Event>) {
    while let Some(event) = waiting.recv().await {
        let written = tokio::task::spawn_blocking(move || {
            let outcome = events.append(&event);
            (events, outcome)
        });
        let Ok((back, outcome)) = written.await else { return };
        events = back;
        if let Err(error) = outcome {
            tracing::warn!(%error, "cannot write to the events file");
        }
    }
}

/// How the run before this one ended, by its events: the cause of a start.
#[must_use]
pub fn how_the_last_run_ended(data_dir: &Path) -> &'static str {
    let events = read(data_dir).unwrap_or_default();
    match events.iter().rev().find(|event| ["started", "stopped"].contains(&event.event.as_str())) {
        None => "for the first time",
        Some(event) if event.event == "stopped" => "after a stop",
        Some(_) => "after a run that did not stop in order",
    }
}

/// The file, for its one writer.
#[derive(Debug)]
struct Events {
    path: PathBuf,
    lines: usize,
}

impl Events {
    /// The events of a data directory; the file comes with the first of them.
    fn of(data_dir: &Path) -> Events {
        let path = data_dir.join(FILE);
        let lines = fs::read(&path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count());
        Events { path, lines }
    }

    /// Appends one. Blocks for the disk.
    ///
    /// # Errors
    /// What the system says; the event is lost then.
    fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        OpenOptions::new().create(true).append(true).open(&self.path)?.write_all(&line)?;
        self.lines += 1;
        if self.lines > EVENTS_MAX + SLACK { self.forget_the_oldest() } else { Ok(()) }
    }

    fn forget_the_oldest(&mut self) -> io::Result<()> {
        let text = fs::read_to_string(&self.path)?;
        let skipped = text.lines().count().saturating_sub(EVENTS_MAX);
        let kept: Vec<&str> = text.lines().skip(skipped).collect();
        let draft = self.path.with_extension("new");
        let mut file = File::create(&draft)?;
        for line in &kept {
            writeln!(file, "{line}")?;
        }
        fs::rename(&draft, &self.path)?;
        self.lines = kept.len();
        Ok(())
    }
}

/// The events of a data directory, the oldest first; none if there is no file.
///
/// # Errors
/// What the system says.
pub fn read(data_dir: &Path) -> io::Result<Vec<Event>> {
    match fs::read(data_dir.join(FILE)) {
        Ok(bytes) => {
            Ok(bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_told_is_written_and_tells_the_next_start_how_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(how_the_last_run_ended(directory.path()), "for the first time");
        for (last, ended) in [("reloaded", "after a run that did not stop in order"), ("stopped", "after a stop")] {
            let (recorder, writer) = Recorder::start(directory.path(), "agg-a".to_owned());
            recorder.tell(SystemTime::UNIX_EPOCH, "started", None);
            recorder.tell(SystemTime::UNIX_EPOCH, last, Some("cause".to_owned()));
            drop(recorder);
            writer.await.unwrap();
            assert_eq!(how_the_last_run_ended(directory.path()), ended);
        }
        let events = read(directory.path()).unwrap();
        assert_eq!((events.len(), events[3].at.as_str()), (4, "1970-01-01T00:00:00.000000Z"));
    }

    #[test]
    fn the_newest_are_kept_and_a_torn_line_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let event = |number: usize| Event {
            v: 1,
            at: "2026-03-10T11:00:00.000000Z".to_owned(),
            node: "agg-a".to_owned(),
            event: "became_master".to_owned(),
            cause: Some(number.to_string()),
        };
        assert_eq!(read(directory.path()).unwrap(), []);
        let lines: String = (0..EVENTS_MAX + SLACK).map(|n| serde_json::to_string(&event(n)).unwrap() + "\n").collect();
        fs::write(directory.path().join(FILE), lines).unwrap();
        let mut events = Events::of(directory.path());
        events.append(&event(EVENTS_MAX + SLACK)).unwrap();
        let kept = read(directory.path()).unwrap();
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!((&kept[0], kept.last().unwrap()), (&event(SLACK + 1), &event(EVENTS_MAX + SLACK)));
        let torn = OpenOptions::new().append(true).open(directory.path().join(FILE)).unwrap().write_all(b"{\"v\":1,");
        torn.unwrap();
        assert_eq!(read(directory.path()).unwrap().len(), EVENTS_MAX);
    }
}
