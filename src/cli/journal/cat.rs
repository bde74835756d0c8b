//! `twinlog journal cat`.

use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::{Exit, Shared};
use super::directory::{Directory, Segment};
use super::place::Place;
use crate::journal::segment::Found;
use crate::proto::batch::Batch;
use crate::proto::position::Position;
use crate::proto::render::JsonLines;
use crate::proto::syslog::shared_text::SharedText;

/// How often `--follow` looks for more.
const POLL: Duration = Duration::from_millis(200);

/// Flags of `journal cat`.
#[derive(Debug, Args)]
pub struct Cat {
    /// First message; default: the oldest
    #[arg(long, value_name = "PLACE")]
    from: Option<Place>,
    /// Stop before this place; default: the newest
    #[arg(long, value_name = "PLACE")]
    to: Option<Place>,
    /// Begin with what this output has not delivered
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    output: Option<String>,
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Add the bytes as received, as `raw_b64`
    #[arg(long)]
    raw: bool,
}

impl Cat {
    pub(super) fn execute(&self, directory: Directory, shared: &Shared) -> anyhow::Result<Exit> {
        for place in [&self.from, &self.to].into_iter().flatten() {
            place.must_be_in(&directory.journal)?;
        }
        let from = match &self.output {
            None => self.from.clone(),
            Some(name) => {
                let cursors = directory.cursors()?.marks;
                let mark =
                    cursors.get(name).with_context(|| format!("no output {name:?} has a cursor in this journal"))?;
                Some(Place::Position(mark.position))
            }
        };
        let out = BufWriter::with_capacity(256 * 1024, io::stdout());
        let directory = &directory;
        let mut printer = Printer { directory, cat: self, from, quiet: shared.quiet, out, exit: Exit::Done };
        printer.run()?;
        Ok(printer.exit)
    }
}

/// Waits for so long, or until whoever read our output has left: with nothing to write, nothing else would tell.
fn reader_left(wait: Duration) -> bool {
    let stdout = io::stdout();
    // Errors are always asked for: of a pipe without a reader that is one.
    let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let limit = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
    match poll(&mut watched, limit) {
        Ok(_) => watched[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL)),
        Err(_) => {
            sleep(wait);
            false
        }
    }
}

struct Printer<'a> {
    directory: &'a Directory,
    cat: &'a Cat,
    from: Option<Place>,
    quiet: bool,
    out: BufWriter<io::Stdout>,
    exit: Exit,
}

impl Printer<'_> {
    fn run(&mut self) -> anyhow::Result<()> {
        let mut at = self.begin()?;
        let mut followed = false;
        loop {
            let segments = self.directory.segments()?;
            for (index, segment) in segments.iter().enumerate() {
                let last = index + 1 == segments.len();
                // What is behind the journal's end may be as long as a segment: it is not searched at every look.
                let is_end = || Ok::<_, anyhow::Error>(last && followed && !self.directory.begins_at(segment, at)?);
                if segment.end <= at || (segment.start <= at && is_end()?) {
                    continue;
                }
                if segment.start > at && at > Position::ZERO {
                    self.missing(at, segment.start, "no segment holds them");
                }
                match self.print_segment(segment, at, last)? {
                    Some(next) => at = next,
                    None => return Ok(self.out.flush()?),
                }
            }
            self.out.flush()?;
            if !self.cat.follow || reader_left(POLL) {
                return Ok(());
            }
            followed = true;
        }
    }

    /// Where the last segment begins that begins before the first message wanted.
    fn begin(&self) -> anyhow::Result<Position> {
        let Some(from) = &self.from else { return Ok(Position::ZERO) };
        let segments = self.directory.segments()?;
        let begins_before = |segment: &&Segment| {
            let mut batches = self.directory.walk(segment, segment.start).filter_map(Result::ok);
            let first = batches.find_map(|found| if let Found::Batch(batch) = found { Some(batch) } else { None });
            first.is_some_and(|batch| batch.envelopes().next().is_some_and(|first| from.is_after(&first)))
        };
        Ok(segments.iter().rev().find(begins_before).map_or(Position::ZERO, |segment| segment.start))
    }

    /// Prints a segment from `at` on; returns where to go on, or `None` when everything wanted was printed.
    fn print_segment(&mut self, segment: &Segment, at: Position, last: bool) -> anyhow::Result<Option<Position>> {
        let directory = self.directory;
        let mut at = at.max(segment.start);
        for found in directory.walk(segment, at) {
            match found {
                Ok(Found::Batch(batch)) => {
                    if !self.print_batch(&batch)? {
                        return Ok(None);
                    }
                    at = batch.end().position;
                }
                Ok(Found::Damage { from, to, cause }) => {
                    self.missing(from, to, &cause.to_string());
                    at = to;
                }
                // Being written, or never finished.
                Ok(Found::Tail { .. }) if last => return Ok(Some(at)),
                Ok(Found::Tail { from, cause, .. }) => self.missing(from, segment.end, &cause.to_string()),
                // A daemon at work removed it: everyone has its messages.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", segment.file)),
            }
        }
        Ok(Some(segment.end))
    }

    /// False when the end of what is wanted is reached. A time is no end: clocks are set back.
    fn print_batch(&mut self, batch: &Batch) -> io::Result<bool> {
        if self.from.as_ref().is_some_and(|from| from.is_after_all_of(batch)) {
            return Ok(true);
        }
        let mut line = Vec::with_capacity(1024);
        let mut text = SharedText::new(&self.directory.journal);
        for envelope in batch.envelopes() {
            let before_from = self.from.as_ref().is_some_and(|from| from.is_after(&envelope));
            let to = self.cat.to.as_ref().filter(|to| !to.is_after(&envelope));
            if to.is_some_and(|to| to.position().is_some()) {
                return Ok(false);
            }
            if before_from || to.is_some() {
                continue;
            }
            line.clear();
            let zone = self.directory.zones.get(envelope.origin.input);
            if let Err(error) =
                (JsonLines { text: &mut text, zone, raw: self.cat.raw }).write(&mut line, &envelope, || true)
            {
                eprintln!("twinlog: the chunk at {} cannot be read: {error}", envelope.position);
                self.exit = Exit::Loss;
            }
            self.out.write_all(&line)?;
        }
        Ok(true)
    }

    fn missing(&mut self, from: Position, to: Position, why: &str) {
        let wanted = self.from.as_ref().and_then(Place::position).is_none_or(|begin| to > begin);
        if !wanted {
            return;
        }
        self.exit = Exit::Loss;
        if !self.quiet {
            eprintln!("twinlog: positions {from} to {to} cannot be read: {why}");
        }
    }
}
