//! What has arrived of a plan, counted to the message.
//!
//! A bitmap over all messages of the load tells lost from repeated. The cost is kept at some 20 ns a message, because it
//! is paid on the relay's cores: `memchr` for the line, 16 digits of the stamp, one bit; the clock is read once a read.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};

use crate::chunks::{CHUNK_EVENTS, Compressed};
use crate::generator::Plan;
use crate::measure::Histogram;
use crate::message::{MESSAGE_BYTES, Stamp, read_sent_ns, read_stamp, until_stamp};

/// What has arrived of a plan.
#[derive(Clone)]
pub struct Tally {
    plan: Plan,
    /// One bit for each message.
    seen: Vec<u64>,
    /// Different messages of the plan.
    pub unique: u64,
    /// Messages that had come before.
    pub repeated: u64,
    /// Lines that are no message of the plan: cut, garbled, or the relay's own.
    pub foreign: u64,
    /// When the first and the last unique message came; 0 before.
    pub first_ns: u64,
    pub last_ns: u64,
    /// From sending to the sink's read, of every 16th message of a stream, of all if the load is paced.
    pub latency: Histogram,
}

impl Tally {
    pub fn new(plan: Plan) -> Tally {
        let seen = vec![0; plan.total().div_ceil(64) as usize];
        Tally { plan, seen, unique: 0, repeated: 0, foreign: 0, first_ns: 0, last_ns: 0, latency: Histogram::new() }
    }

    pub fn total(&self) -> u64 {
        self.plan.total()
    }

    pub fn lost(&self) -> u64 {
        self.total() - self.unique
    }

    /// Counts the lines of a file, text or JSON, in whose messages other fields may follow the stamp. Latencies would be
    /// those of reading and are not recorded.
    pub fn of_file(plan: Plan, path: &Path) -> Result<Tally> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut tally = Tally::new(plan);
        for line in BufReader::with_capacity(1 << 20, file).split(b'\n') {
            let line = line.with_context(|| format!("reading {}", path.display()))?;
            match read_stamp(until_stamp(&line)) {
                Some(stamp) => drop(tally.take_stamp(stamp, 0)),
                None => tally.foreign += 1,
            }
        }
        Ok(tally)
    }

    /// Counts the lines in `bytes`; returns the length of what follows the last line end.
    pub fn take_lines(&mut self, bytes: &[u8], now_ns: u64) -> usize {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            self.take_line(&bytes[start..end], now_ns);
            start = end + 1;
        }
        bytes.len() - start
    }

    /// Counts the events of a chunk. One that is compressed is told by its checksum alone.
    pub fn take_chunk(&mut self, entries: &[u8], compressed: Option<&Compressed>, now_ns: u64) {
        match compressed {
            None => entries.chunks(MESSAGE_BYTES).for_each(|entry| self.take_line(entry, now_ns)),
            Some(compressed) => match compressed.find(entries) {
                Some((stream, first)) => {
                    for sequence in first..first + CHUNK_EVENTS {
                        self.take_stamp(Stamp { stream, sequence }, now_ns);
                    }
                }
                None => self.foreign += 1,
            },
        }
    }

    fn take_line(&mut self, line: &[u8], now_ns: u64) {
        let Some(stamp) = read_stamp(line) else {
            self.foreign += 1;
            return;
        };
        let is_sample = self.plan.rate.is_some() || stamp.sequence.is_multiple_of(16);
        if self.take_stamp(stamp, now_ns)
            && is_sample
            && let Some(sent_ns) = read_sent_ns(line)
        {
            self.latency.record(now_ns.saturating_sub(sent_ns));
        }
    }

    /// Whether it is one of the plan and came for the first time.
    fn take_stamp(&mut self, stamp: Stamp, now_ns: u64) -> bool {
        if stamp.stream >= self.plan.streams || stamp.sequence >= self.plan.per_stream {
            self.foreign += 1;
            return false;
        }
        let index = u64::from(stamp.stream) * u64::from(self.plan.per_stream) + u64::from(stamp.sequence);
        let (word, bit) = (&mut self.seen[(index / 64) as usize], 1 << (index % 64));
        if *word & bit != 0 {
            self.repeated += 1;
            return false;
        }
        *word |= bit;
        self.unique += 1;
        self.last_ns = now_ns;
        if self.first_ns == 0 {
            self.first_ns = now_ns;
        }
        true
    }
}
