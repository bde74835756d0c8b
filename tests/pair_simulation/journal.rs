//! A journal or a mirror as its thread has it, without the thread: the queue in which positions are given out, the writer,
//! the promise and the cursors, moved by steps.
//!
//! The writer, recovery, the cursors' file, the promise and the segments are the program's own. What stands here instead of
//! `journal::{appender, thread}` is the queue, and when something is written, synced, saved and trimmed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use twinlog::journal::Cursor;
use twinlog::journal::cursors::{self, Saved};
use twinlog::journal::index::Place;
use twinlog::journal::recovery::{self, OpenError};
use twinlog::journal::writer::{AppendError, Limits, Poisoned, Writer};
use twinlog::proto::batch::{Batch, BatchBuilder, Stamp};
use twinlog::proto::pair::message::Held;
use twinlog::proto::pair::promise::{Acknowledge, Promise};
use twinlog::proto::position::{JournalId, Mark, Position};

use crate::OUTPUTS;
use crate::surroundings::Surroundings;
use crate::world::{self, storage::SimStorage};

/// As in `journal::thread`.
const TICK: Duration = Duration::from_millis(100);
/// Batches that may wait for the disk; beyond, whoever brings more waits.
const QUEUE_MAX: usize = 64;

/// Whether it takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Writing,
    /// Since then, for want of room.
    Waiting(Duration),
    Poisoned,
}

enum Waiting {
    Batch(Batch),
    /// Nothing comes before this.
    Hole(Mark),
}

/// See the module.
pub struct Journal {
    host: usize,
    pub id: JournalId,
    is_own: bool,
    storage: Arc<SimStorage>,
    writer: Writer,
    waiting: VecDeque<Waiting>,
    /// Where the next batch will stand.
    end: Mark,
    /// Written and not yet safe.
    written: VecDeque<Batch>,
    /// Safe, as far as is published.
    durable: Mark,
    pub promise: Promise,
    cursors: BTreeMap<String, Cursor>,
    saved: Saved,
    pub state: State,
    next_turn: Duration,
    next_tick: Duration,
    /// What was seen at the last check: it only grows.
    seen: [Mark; 3],
    seen_delivered: Vec<Mark>,
}

impl Journal {
    /// Recovers what is in `storage`; `fresh` names the incarnation if that is nothing.
    pub fn open(
        around: &mut Surroundings,
        host: usize,
        storage: &Arc<SimStorage>,
        journal: (&JournalId, bool),
        limits: Limits,
        acknowledge: Acknowledge,
    ) -> Result<Journal, OpenError> {
        let (JournalId { node, incarnation: fresh }, is_own) = journal;
        let recovered = match is_own {
            true => recovery::recover(&**storage, node, *fresh)?,
            false => recovery::recover_mirror(&**storage, journal.0)?,
        };
        let writer = Writer::new(storage.clone(), &recovered, limits)?;
        let oldest = writer.index().first().map_or(recovered.end, |segment| segment.start);
        let start = |name: &str| recovered.saved.marks.get(name).copied().unwrap_or_default().max(oldest);
        let moved = tokio::sync::watch::Sender::default();
        let cursors: BTreeMap<String, Cursor> =
            OUTPUTS.iter().map(|name| ((*name).to_owned(), Cursor::new(start(name), moved.clone()))).collect();
        let end = recovered.end;
        let journal = Journal {
            host,
            id: recovered.journal,
            is_own,
            storage: storage.clone(),
            writer,
            waiting: VecDeque::new(),
            end,
            written: VecDeque::new(),
            durable: end,
            promise: Promise::new(acknowledge, end),
            cursors,
            saved: recovered.saved,
            state: State::Writing,
            next_turn: around.now,
            next_tick: around.now + TICK,
            seen: [end; 3],
            seen_delivered: vec![Mark::default(); OUTPUTS.len()],
        };
        if !is_own {
            around.note(format_args!("host {host} has a mirror {} at {end:?}, {:?}", journal.id, journal.delivered()));
        }
        // By another pair of eyes, which no fault of the disk can blind.
        let quiet = SimStorage::with_files(&storage.files());
        let index = journal.writer.index().clone();
        let there = world::read_of(&quiet, &index, Stamp::from(&journal.id), Position::ZERO, end.position).unwrap();
        around.ledger.found(host, &journal.id, &there, journal.oldest().position);
        Ok(journal)
    }

    /// What this node says of it in its greeting.
    pub fn held(&self) -> Held {
        Held {
            journal: self.id.clone(),
            is_own: self.is_own,
            oldest: self.oldest(),
            durable: self.durable,
            delivered: self.delivered(),
        }
    }

    pub fn oldest(&self) -> Mark {
        self.writer.index().first().map_or(self.durable, |segment| segment.start)
    }

    pub fn appended(&self) -> Mark {
        self.end
    }

    pub fn durable(&self) -> Mark {
        self.durable
    }

    pub fn cursor(&self, output: &str) -> Cursor {
        self.cursors[output].clone()
    }

    /// What every output has delivered, by name.
    pub fn delivered(&self) -> BTreeMap<String, Mark> {
        self.cursors.iter().map(|(name, cursor)| (name.clone(), cursor.mark())).collect()
    }

    /// What all of them have delivered.
    pub fn delivered_by_all(&self) -> Mark {
        self.cursors.values().map(Cursor::mark).min().unwrap_or_default()
    }

    pub fn delivered_elsewhere(&self, outputs: &BTreeMap<String, Mark>) {
        for (name, mark) in outputs {
            if let Some(cursor) = self.cursors.get(name) {
                cursor.advance(*mark);
            }
        }
    }

    pub fn has_room(&self) -> bool {
        self.waiting.len() < QUEUE_MAX
    }

    /// Takes what this node received; `None` if nothing is taken any more.
    pub fn append(&mut self, builder: BatchBuilder) -> Option<Batch> {
        if self.state == State::Poisoned || !self.has_room() {
            return None;
        }
        let batch = builder.seal(Stamp::from(&self.id), self.end);
        self.push(batch.clone());
        Some(batch)
    }

    /// Takes batches of another node's journal, as `Journal::take`; false if they are refused.
    pub fn take(&mut self, batches: Vec<Batch>) -> bool {
        for batch in batches {
            if batch.end().position <= self.end.position {
                continue;
            }
            if batch.start() != self.end || self.state == State::Poisoned {
                return false;
            }
            self.push(batch);
        }
        true
    }

    /// Says that nothing before `to` will come.
    pub fn skip_to(&mut self, to: Mark) {
        if to.position > self.end.position && self.state != State::Poisoned {
            self.end = to;
            self.waiting.push_back(Waiting::Hole(to));
        }
    }

    fn push(&mut self, batch: Batch) {
        self.end = batch.end();
        self.waiting.push_back(Waiting::Batch(batch));
    }

    /// The next batches from `at` on, and where to read on; `None` if there is nothing more yet.
    pub fn read(&self, at: Position) -> io::Result<Option<(Vec<Batch>, Position)>> {
        let durable = self.durable.position;
        let end = match self.writer.index().find(at) {
            _ if durable <= at => return Ok(None),
            Place::End => durable,
            Place::GapUntil(to) => return Ok(Some((Vec::new(), to.min(durable)))),
            Place::In(segment) => segment.end.min(durable),
        };
        let batches = world::read_of(&*self.storage, self.writer.index(), Stamp::from(&self.id), at, end)?;
        Ok(Some((batches, end)))
    }

    /// Does some of what its thread does.
    pub fn step(&mut self, around: &mut Surroundings, is_slow: bool) {
        if self.state == State::Poisoned || around.now < self.next_turn {
            return;
        }
        if is_slow {
            self.next_turn = around.now + around.some(Duration::from_millis(400));
        }
        let written = self.write(around);
        // What is written may be synced later: whatever falls between the two is what a crash takes.
        let due = !self.written.is_empty() && around.rng.u8(..4) > 0;
        let committed = written.and_then(|()| if due { self.commit(around) } else { Ok(()) });
        if committed.is_err() {
            self.state = State::Poisoned;
            self.waiting.clear();
        } else if around.now >= self.next_tick {
            self.tick(around);
        }
    }

    fn write(&mut self, around: &mut Surroundings) -> Result<(), Poisoned> {
        while let Some(first) = self.waiting.front() {
            if let Waiting::Hole(to) = first {
                let to = *to;
                self.waiting.pop_front();
                self.commit(around)?;
                let durable = self.writer.skip_to(to)?;
                self.publish(around, durable);
                continue;
            }
            let batches = self.waiting.iter().map_while(|waiting| match waiting {
                Waiting::Batch(batch) => Some(batch.clone()),
                Waiting::Hole(_) => None,
            });
            let mut batches: VecDeque<Batch> = batches.collect();
            let count = batches.len();
            let result = self.writer.append(&mut batches);
            for _ in batches.len()..count {
                if let Some(Waiting::Batch(batch)) = self.waiting.pop_front() {
                    self.written.push_back(batch);
                }
            }
            let durable = self.writer.durable();
            self.publish(around, durable);
            match result {
                Ok(()) => self.state = State::Writing,
                Err(AppendError::Poisoned(poisoned)) => return Err(poisoned),
                Err(AppendError::Full { .. } | AppendError::NoSpace(_)) => {
                    if self.state == State::Writing {
                        self.state = State::Waiting(around.now);
                    }
                    self.commit(around)?;
                    self.tick(around);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self, around: &mut Surroundings) -> Result<(), Poisoned> {
        let durable = self.writer.commit()?;
        self.publish(around, durable);
        if let Some(spare) = self.writer.order_spare() {
            self.writer.spare_came(spare.make())?;
        }
        self.writer.begin_ahead()
    }

    fn publish(&mut self, around: &mut Surroundings, durable: Mark) {
        if durable <= self.durable {
            return;
        }
        while self.written.front().is_some_and(|batch| batch.end() <= durable) {
            let batch = self.written.pop_front().unwrap();
            around.ledger.safe(self.host, &self.id, &batch);
        }
        self.durable = durable;
        self.promise.set_durable(durable);
    }

    fn tick(&mut self, around: &mut Surroundings) {
        self.next_tick = around.now + TICK;
        let marks = self.delivered();
        if marks != self.saved.marks {
            // A hint: that it could not be saved costs repeats.
            let _ = cursors::save(&*self.storage, self.id.incarnation, &mut self.saved, marks);
        }
        // A failed removal is tried again.
        let _ = self.writer.trim(self.delivered_by_all().position);
        around.ledger.trimmed(self.host, &self.id, self.oldest().position);
    }

    /// Writes and syncs what was taken, and the cursors.
    pub fn close(&mut self, around: &mut Surroundings) {
        if self.state != State::Poisoned && self.write(around).is_ok() && self.commit(around).is_ok() {
            self.tick(around);
            let _ = self.writer.tidy();
            let _ = cursors::sync(&*self.storage);
        }
    }

    /// What is true of every journal at every moment.
    pub fn check(&mut self, around: &Surroundings) {
        let (end, durable, promised) = (self.end, self.durable, self.promise.promised());
        assert!(end >= self.writer.appended() && self.writer.appended() >= self.writer.durable(), "appended, durable");
        assert!(self.writer.durable() >= durable, "no more is published than is safe");
        assert!(durable >= promised, "promised {promised:?} is not durable, which ends at {durable:?}");
        if self.is_own {
            assert!(durable >= self.promise.replicated(), "more is replicated than there is");
        }
        let marks = [end, durable, promised];
        assert!(marks.iter().zip(&self.seen).all(|(now, before)| now >= before), "a mark of {} went back", self.id);
        self.seen = marks;
        for ((output, cursor), before) in self.cursors.iter().zip(&mut self.seen_delivered) {
            let mark = cursor.mark();
            assert!(mark >= *before, "a cursor went back");
            assert!(!self.is_own || mark <= durable, "{output} delivered what is not durable");
            if mark != *before {
                around.ledger.check_cursor(output, &self.id, mark);
                *before = mark;
            }
        }
    }
}
