//! The journal's synchronous core on a disk that fails in every way a disk may, against a small model of what it owes.
//!
//! `SEED=7 cargo test --test journal_simulation` runs one seed; without it, a fixed list. The same seed gives the same
//! trace, to the last byte.

#![allow(clippy::unwrap_used)]

mod seeds;
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use twinlog::journal::cursors::{self, Saved};
use twinlog::journal::index::Index;
use twinlog::journal::recovery::{self, Recovered, Segment};
use twinlog::journal::writer::{AppendError, Limits, Writer};
use twinlog::proto::batch::Batch;
use twinlog::proto::position::{Mark, Position};
use world::storage::{ENOSPC, Faults, SimStorage};

const STEPS: usize = 150;
const SEGMENT_SIZE: u64 = 4096;

/// What the journal owes, kept as simply as possible.
#[derive(Default)]
struct Model {
    /// Every batch that was ever handed to the disk, by position: more than one where an unpromised one was forgotten.
    appended: BTreeMap<Position, Vec<Bytes>>,
    /// What must be read back: promised, and neither trimmed nor dropped.
    owed: BTreeMap<Position, Bytes>,
    /// Written in this life and not yet promised.
    written: VecDeque<Batch>,
    /// Where what was ever promised ends.
    promised: Position,
}

impl Model {
    fn promise(&mut self, durable: Mark) {
        while self.written.front().is_some_and(|batch| batch.end().position <= durable.position) {
            let batch = self.written.pop_front().unwrap();
            self.promised = batch.end().position;
            self.owed.insert(batch.start().position, batch.bytes().clone());
        }
    }

    fn forget(&mut self, segment: Segment) {
        self.owed.retain(|position, _| *position < segment.start.position || *position >= segment.end);
    }

    fn check(&self, read: &[Batch]) {
        let mut at = Position::ZERO;
        for batch in read {
            let start = batch.start().position;
            assert!(start >= at, "batches overlap at {start}");
            at = batch.end().position;
            let versions = self.appended.get(&start).unwrap_or_else(|| panic!("nothing was appended at {start}"));
            assert!(versions.contains(batch.bytes()), "the batch at {start} is not what was appended");
        }
        let read: BTreeMap<_, _> = read.iter().map(|batch| (batch.start().position, batch.bytes())).collect();
        for (position, bytes) in &self.owed {
            assert_eq!(read.get(position), Some(&bytes), "the batch at {position} was promised");
        }
        let envelope_ids = read.values().map(|bytes| Batch::decode(bytes).unwrap());
        for batch in envelope_ids {
            let (start, end) = (batch.start().position, batch.end().position);
            assert!(batch.envelopes().all(|envelope| start < envelope.position && envelope.position < end));
        }
    }
}

struct Simulation {
    rng: Rng,
    storage: Arc<SimStorage>,
    limits: Limits,
    model: Model,
    writer: Writer,
    saved: Saved,
    /// Sealed and not yet written: what the appender's thread holds.
    queue: VecDeque<Batch>,
    cursor: Mark,
    poisoned: bool,
    marks: (Mark, Mark),
    trace: u32,
    /// Spares that were made, and segments that were begun before anything had to be written to them.
    ahead: (u64, u64),
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let storage = Arc::new(SimStorage::new(seed));
        let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
        let mut rng = Rng::with_seed(!seed);
        let limits = Limits { segment_size: SEGMENT_SIZE, max_size: [6000, 20_000, 40_000][rng.usize(..3)] };
        let writer = Writer::new(storage.clone(), &recovered, limits).unwrap();
        Simulation {
            rng,
            storage,
            limits,
            model: Model::default(),
            marks: (writer.appended(), writer.durable()),
            writer,
            saved: recovered.saved,
            queue: VecDeque::new(),
            cursor: Mark::default(),
            poisoned: false,
            trace: 0,
            ahead: (0, 0),
        }
    }

    fn run(&mut self) -> u32 {
        for step in 0..STEPS {
            match self.rng.u8(..100) {
                0..45 => self.append(),
                45..65 => {
                    self.commit();
                    self.prepare();
                }
                65..73 => self.advance_cursor(),
                73..78 => self.save_cursor(),
                78..84 => self.trim(),
                84..87 => self.drop_oldest(),
                87..90 => self.change_capacity(),
                90..93 => self.arm_faults(),
                93..96 => self.restart(true),
                96..98 => self.restart(false),
                _ => self.storage.heal(),
            }
            if self.poisoned && self.rng.u8(..3) == 0 {
                self.restart(self.rng.clone().bool());
            }
            self.check(step % 8 == 0);
        }
        self.storage.heal();
        self.restart(true);
        self.check(true);
        self.trace
    }

    fn append(&mut self) {
        let mut at = self.queue.back().map_or(self.writer.appended(), Batch::end);
        for _ in 0..self.rng.usize(0..6) {
            let size = match self.rng.u8(..10) {
                0 => self.rng.usize(4000..12_000),
                1 => 0,
                2..5 => self.rng.usize(1..20),
                _ => self.rng.usize(20..900),
            };
            let message: Vec<u8> = (0..size).map(|_| self.rng.u8(..)).collect();
            let more = b"and one more".as_slice();
            let messages = [message.as_slice(), more, more];
            let batch = world::batch(at, &messages[..self.rng.usize(1..=3)]);
            at = batch.end();
            self.queue.push_back(batch);
        }
        for batch in &self.queue {
            let versions = self.model.appended.entry(batch.start().position).or_default();
            if !versions.contains(batch.bytes()) {
                versions.push(batch.bytes().clone());
            }
        }
        let before = self.queue.clone();
        let result = self.writer.append(&mut self.queue);
        let written = before.len() - self.queue.len();
        self.model.written.extend(before.into_iter().take(written));
        match result {
            Ok(()) => assert!(self.queue.is_empty() && (!self.poisoned || written == 0)),
            Err(AppendError::Full { bytes, .. }) => {
                assert!(bytes + self.limits.segment_size > self.limits.max_size || self.queue[0].bytes().len() > 4000);
                assert!(self.writer.index().totals().0 > 1, "there is something to trim or to drop");
            }
            Err(AppendError::NoSpace(_)) => {}
            Err(AppendError::Poisoned(_)) => self.poisoned = true,
        }
    }

    fn commit(&mut self) {
        match self.writer.commit() {
            Ok(durable) => {
                assert!(!self.poisoned, "a poisoned writer promises nothing");
                assert_eq!((durable, durable), (self.writer.appended(), self.writer.durable()));
            }
            Err(_) => self.poisoned = true,
        }
    }

    /// What the journal's thread does when nobody waits.
    fn prepare(&mut self) {
        if let Some(spare) = self.writer.order_spare() {
            // Beside it the journal goes on.
            if self.rng.bool() {
                self.append();
            }
            let made = spare.make();
            if self.rng.bool() {
                self.trim();
                self.append();
            }
            self.ahead.0 += u64::from(matches!(made, Ok(true)));
            self.poisoned |= self.writer.spare_came(made).is_err();
        }
        let before = self.writer.index().totals().0;
        self.poisoned |= self.writer.begin_ahead().is_err();
        self.ahead.1 += (self.writer.index().totals().0 - before) as u64;
    }

    fn advance_cursor(&mut self) {
        let ends: Vec<Mark> = self.model.owed.values().map(|bytes| Batch::decode(bytes).unwrap().end()).collect();
        if self.rng.u8(..4) == 0 {
            self.cursor = self.cursor.max(self.writer.durable());
        } else if !ends.is_empty() {
            self.cursor = self.cursor.max(ends[self.rng.usize(..ends.len())]);
        }
    }

    fn save_cursor(&mut self) {
        let marks = [("siem".to_owned(), self.cursor)].into();
        // A hint: that it could not be saved changes nothing.
        let _ = cursors::save(&*self.storage, world::INCARNATION, &mut self.saved, marks);
        if self.rng.bool() {
            let _ = cursors::sync(&*self.storage);
        }
    }

    fn trim(&mut self) {
        let before = self.writer.index().segments();
        // A failed removal is tried again the next time.
        let _ = self.writer.trim(self.cursor.position);
        let last_written = before.iter().rfind(|segment| segment.end > segment.start.position);
        for gone in gone(&before, self.writer.index()) {
            assert!(gone.end <= self.cursor.position, "only what was delivered is trimmed");
            assert_ne!(Some(&gone), last_written, "a mirror may want its end");
            self.model.forget(gone);
        }
        if self.rng.u8(..8) == 0 {
            // Space that holds nothing of the journal: only space.
            let _ = if self.rng.bool() { self.writer.give_back() } else { self.writer.tidy() };
        }
    }

    fn drop_oldest(&mut self) {
        let before = self.writer.index().segments();
        if let Ok(Some(begin)) = self.writer.drop_oldest() {
            assert_eq!(begin, before[1].start);
            let gone = gone(&before, self.writer.index());
            assert_eq!(gone, before[..1]);
            self.model.forget(gone[0]);
        }
    }

    fn change_capacity(&mut self) {
        let used = self.storage.used();
        self.storage.set_capacity(used + self.rng.u64(..10_000));
    }

    fn arm_faults(&mut self) {
        let likely = [0.0, 0.02, 0.2][self.rng.usize(..3)];
        match self.rng.u8(..4) {
            0 => self.storage.die_at_call(self.rng.u64(..20)),
            1 => self.storage.set_faults(Faults { write: likely, create: likely, ..Faults::default() }),
            2 => self.storage.set_faults(Faults { sync: likely, ..Faults::default() }),
            _ => self.storage.set_faults(Faults { read: likely, list: likely, remove: likely, ..Faults::default() }),
        }
    }

    /// The daemon ends, with the machine or without it, and starts anew.
    fn restart(&mut self, power_cut: bool) {
        self.model.written.clear();
        self.queue.clear();
        if power_cut {
            self.storage.power_cut();
        }
        if self.rng.bool() {
            self.storage.set_faults(Faults::default());
        }
        // The first start may die on the way, at any call; what it left is what the next one finds.
        if self.rng.u8(..3) == 0 {
            self.storage.die_at_call(self.rng.u64(..12));
            drop(self.open());
            if self.rng.bool() {
                self.storage.power_cut();
            }
        }
        self.storage.heal();
        let (recovered, writer) = self.open().unwrap();
        let again = recovery::recover(&*self.storage, &world::node(), world::INCARNATION).unwrap();
        assert_same(&recovered, &again);
        assert!(recovered.end.position >= self.model.promised, "the end went below what was promised");
        for mark in recovered.saved.marks.values() {
            assert!(recovered.end.position >= mark.position, "the end went below a cursor");
            assert!(mark.position <= self.cursor.position, "a cursor was invented");
        }
        let visible = SimStorage::with_files(&self.storage.files());
        self.model.check(&world::read(&visible, writer.index(), Position::ZERO, recovered.end.position));
        // What was found counts as promised, except what is only in memory because a sync had failed.
        let lasting = SimStorage::with_files(&self.storage.lasting_files());
        for batch in world::read(&lasting, writer.index(), Position::ZERO, recovered.end.position) {
            self.model.promised = self.model.promised.max(batch.end().position);
            self.model.owed.insert(batch.start().position, batch.bytes().clone());
        }
        self.cursor = recovered.saved.marks.get("siem").copied().unwrap_or_default();
        self.saved = recovered.saved;
        self.writer = writer;
        self.poisoned = false;
        self.marks = (self.writer.appended(), self.writer.durable());
    }

    fn open(&self) -> Option<(Recovered, Writer)> {
        let recovered = recovery::recover(&*self.storage, &world::node(), world::INCARNATION).ok()?;
        let writer = Writer::new(self.storage.clone(), &recovered, self.limits).ok()?;
        Some((recovered, writer))
    }

    fn check(&mut self, read: bool) {
        let (appended, durable) = (self.writer.appended(), self.writer.durable());
        assert!(appended >= durable, "durable overtook appended");
        assert!(appended >= self.marks.0 && durable >= self.marks.1, "a mark went back");
        assert!(appended.ordinal >= self.marks.0.ordinal && durable.ordinal >= self.marks.1.ordinal);
        self.marks = (appended, durable);
        self.model.promise(durable);
        let segments = self.writer.index().segments();
        for pair in segments.windows(2) {
            assert!(pair[0].end <= pair[1].start.position && pair[0].start.position < pair[1].start.position);
            assert!(pair[0].start.ordinal <= pair[1].start.ordinal, "ordinals grow");
        }
        let state = format!("{appended:?} {durable:?} {segments:?} {:?} {}", self.cursor, self.poisoned);
        self.trace = crc32c::crc32c_append(self.trace, state.as_bytes());
        if read {
            let quiet = SimStorage::with_files(&self.storage.files());
            let read = world::read(&quiet, self.writer.index(), Position::ZERO, durable.position);
            self.model.check(&read);
        }
    }
}

fn gone(before: &[Segment], index: &Index) -> Vec<Segment> {
    let now = index.segments();
    before.iter().filter(|old| !now.iter().any(|new| new.start == old.start)).copied().collect()
}

fn assert_same(first: &Recovered, second: &Recovered) {
    assert_eq!(first.journal, second.journal);
    assert_eq!(first.segments, second.segments);
    assert_eq!((first.end, first.continues), (second.end, second.continues));
    assert_eq!(first.saved, second.saved);
}

#[test]
fn what_was_promised_survives_whatever_the_disk_does() {
    let (mut renames, mut spares, mut ahead) = (0, 0, 0);
    let ran = seeds::each(200, &[296, 7600], |seed| {
        let mut simulation = Simulation::new(seed);
        simulation.run();
        renames += simulation.storage.renames();
        spares += simulation.ahead.0;
        ahead += simulation.ahead.1;
    });
    // A rename is one half of a segment's way into the next one.
    let is_covered = renames > 200 && spares > 200 && ahead > 20;
    assert!(ran < 200 || is_covered, "{renames} {spares} {ahead}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_eq!(Simulation::new(3).run(), Simulation::new(3).run());
    assert_ne!(Simulation::new(3).run(), Simulation::new(4).run());
}

#[test]
fn a_machine_that_dies_at_any_call_keeps_what_was_promised() {
    for dies_at in 0.. {
        let mut simulation = Simulation::new(dies_at);
        simulation.storage.die_at_call(dies_at);
        let mut rng = Rng::with_seed(5);
        let before = simulation.storage.calls();
        for _ in 0..12 {
            simulation.rng = rng.fork();
            simulation.append();
            simulation.commit();
            simulation.prepare();
            simulation.check(false);
            simulation.advance_cursor();
            simulation.save_cursor();
            simulation.trim();
        }
        let died = simulation.storage.calls() > before + dies_at;
        simulation.restart(true);
        simulation.check(true);
        if !died {
            break;
        }
    }
}

#[test]
fn no_space_at_any_call_delays_and_loses_nothing() {
    for call in 0.. {
        let storage = Arc::new(SimStorage::new(call));
        let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
        let limits = Limits { segment_size: SEGMENT_SIZE, max_size: 1 << 20 };
        let mut writer = Writer::new(storage.clone(), &recovered, limits).unwrap();
        let before = storage.calls();
        storage.fail_call(call, ENOSPC);
        let mut appended = Vec::new();
        let mut at = writer.appended();
        let mut poisoned = false;
        for round in 0..8 {
            // The sixth is larger than a segment.
            let size = if round == 5 { 9000 } else { 700 };
            let batches = [world::batch(at, &[&vec![b'a' + round; size]])];
            let more = world::batch(batches[0].end(), &[b"more"]);
            let mut queue: VecDeque<Batch> = batches.into_iter().chain([more]).collect();
            at = queue[1].end();
            appended.extend(queue.iter().cloned());
            let mut waited = 0;
            while let Err(error) = writer.append(&mut queue) {
                waited += 1;
                assert!(waited <= 1, "the same call succeeds when there is space");
                poisoned = matches!(&error, AppendError::Poisoned(poisoned) if poisoned.is_sync());
                assert!(poisoned || matches!(error, AppendError::NoSpace(_)), "{error}");
                if poisoned {
                    break;
                }
            }
            poisoned = poisoned || writer.commit().is_err();
            if poisoned {
                break;
            }
        }
        let durable = writer.durable();
        let owed: Vec<Batch> = appended.into_iter().filter(|batch| batch.end() <= durable).collect();
        assert!(poisoned || owed.len() == 16);
        let lasted = storage.calls() - before;
        storage.power_cut();
        let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
        let read = world::read_all(&*storage, &Index::new(recovered.segments));
        assert_eq!(read[..owed.len()], owed, "call {call}");
        if lasted <= call {
            break;
        }
    }
}

#[test]
fn segments_that_become_the_next_ones_lose_nothing_whatever_call_fails() {
    // Room for three, so that each further one stands in the file of a removed one.
    let limits = Limits { segment_size: SEGMENT_SIZE, max_size: 3 * SEGMENT_SIZE };
    let faults = |call| [(call, true, 1), (call, true, 2), (call, true, 3), (call, false, 0)];
    for (call, dies, seed) in (0..).flat_map(faults) {
        let storage = Arc::new(SimStorage::new(seed + 10 * call));
        let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
        let mut writer = Writer::new(storage.clone(), &recovered, limits).unwrap();
        let before = storage.calls();
        if dies {
            storage.die_at_call(call);
        } else {
            storage.fail_call(call, ENOSPC);
        }
        let appended = write_delivered(&mut writer);
        let (durable, oldest) = (writer.durable(), writer.index().first().map(|segment| segment.start));
        let (calls, renames) = (storage.calls() - before, storage.renames());
        storage.power_cut();
        let recovered = recovery::recover(&*storage, &world::node(), world::INCARNATION).unwrap();
        let read = world::read_all(&*storage, &Index::new(recovered.segments.clone()));
        assert!(read.iter().all(|batch| appended.contains(batch)), "call {call}, seed {seed}: invented");
        let is_owed = |batch: &&Batch| batch.end() <= durable && oldest.is_some_and(|from| from <= batch.start());
        for batch in appended.iter().filter(is_owed) {
            assert!(read.contains(batch), "call {call}, seed {seed}: {:?} is lost", batch.start());
        }
        Writer::new(storage.clone(), &recovered, limits).unwrap();
        assert!(storage.files().keys().all(|name| !name.ends_with(".spare")), "what was left is cleared away");
        if calls <= call {
            assert!(renames >= 8, "{renames}");
            break;
        }
    }
}

/// Writes, and removes at once what is durable, until that fails; returns all batches that were tried.
fn write_delivered(writer: &mut Writer) -> Vec<Batch> {
    let mut tried = Vec::new();
    for round in 0..36 {
        // One is larger than a segment.
        let size = if round == 20 { 5000 } else { 700 };
        let batch = world::batch(writer.appended(), &[&vec![round; size]]);
        tried.push(batch.clone());
        let mut queue = VecDeque::from([batch]);
        let mut written = writer.append(&mut queue);
        if matches!(written, Err(AppendError::NoSpace(_))) {
            written = writer.append(&mut queue);
        }
        if written.is_err() || writer.commit().is_err() {
            break;
        }
        // A failed removal is tried again the next time.
        let _ = writer.trim(writer.durable().position);
    }
    tried
}
