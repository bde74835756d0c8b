//! The thread around the writer: group commit, and the published marks behind it.
//!
//! `fdatasync` blocks, so the journal has a plain thread of its own. It seals and writes what waits in the queue in one
//! call, syncs when the oldest unsynced byte is `commit_interval` old, and only then publishes `durable`. Ten times a
//! second it saves the cursors and trims, once a second when everything is delivered and saved; after a minute without a
//! new segment it gives back the space kept for the next. That segment's file is made beside it, if no removed one is there.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::appender::{WRITE_BYTES, Waiting, permits};
use super::cursors::{self, Saved};
use super::writer::{AppendError, Poisoned, Writer};
use super::{Shared, State, WhenFull};
use crate::proto::batch::{Batch, BatchBuilder};
use crate::proto::envelope::{Flags, Origin, Timestamp, Transport};
use crate::proto::position::{Mark, Position};

/// Bytes written before the thread looks at the clock again, so that a flood does not delay the sync.
const GATHER_BYTES: usize = 8 * 1024 * 1024;
/// How often cursors are saved, segments trimmed and a full disk tried again.
const TICK: Duration = Duration::from_millis(100);
/// The same while nothing can change before more is taken in: a sign of life is all that is left to give.
const REST: Duration = Duration::from_secs(1);
/// How long the space of removed segments is kept for the next one.
const SPARES_IDLE: Duration = Duration::from_secs(60);

/// The journal's thread.
pub(super) struct Thread {
    shared: Arc<Shared>,
    writer: Writer,
    saved: Saved,
    batches: VecDeque<Batch>,
    /// When the oldest byte that was written and is not yet safe was taken in.
    uncommitted_since: Option<Instant>,
    /// When the oldest of `batches` was taken in.
    gathered_since: Instant,
    /// Where the journal goes on behind a hole, once what was gathered before is written.
    hole: Option<Mark>,
    next_tick: Instant,
    /// Makes the file of the next segment.
    maker: Option<JoinHandle<io::Result<bool>>>,
    /// Where the segment starts that is written, and since when, as seen by the ticks.
    segment: (Option<Mark>, Instant),
    started: Instant,
    tick_failed: bool,
    /// Bytes in the queue that took no room of its bound: gap messages.
    unpaid: usize,
    /// The gap messages that may still be undelivered, oldest first. A restart forgets them.
    gaps: VecDeque<Gap>,
}

/// A gap message in the journal.
struct Gap {
    at: Position,
    /// What it tells.
    dropped: u64,
    from: Position,
}

impl Thread {
    pub(super) fn new(shared: Arc<Shared>, writer: Writer, saved: Saved) -> Thread {
        let now = Instant::now();
        Thread {
            shared,
            writer,
            saved,
            batches: VecDeque::new(),
            uncommitted_since: None,
            gathered_since: now,
            hole: None,
            next_tick: now,
            maker: None,
            segment: (None, now),
            started: now,
            tick_failed: false,
            unpaid: 0,
            gaps: VecDeque::new(),
        }
    }

    /// Runs until the inbox is closed and empty, or poisoned.
    pub(super) fn run(mut self) {
        let _guard = PoisonOnPanic(self.shared.clone());
        while self.step() {}
        self.finish();
    }

    /// Writes what waits, commits if it is time; false when there is nothing left to do.
    fn step(&mut self) -> bool {
        let open = self.gather();
        let written = self.write();
        let committed = written.and_then(|all| self.commit_if_due().map(|()| all));
        let prepared = committed.and_then(|all| self.prepare().map(|()| all));
        let all = match prepared {
            Ok(all) => all,
            Err(poisoned) => {
                self.poison(poisoned);
                return false;
            }
        };
        self.tick_if_due();
        self.shared.heartbeat.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        open && all
    }

    fn poison(&mut self, poisoned: Poisoned) {
        let counters = &self.shared.counters;
        let errors = if poisoned.is_sync() { &counters.sync_errors } else { &counters.write_errors };
        errors.inc();
        self.uncommitted_since = None;
        self.shared.inbox.refuse(poisoned.clone().into());
        self.shared.set_state(State::Poisoned(poisoned));
    }

    /// Waits for work and seals it. Nothing is promised before it is synced, so nothing is written long before that: at a
    /// few messages a second or a hundred thousand, there is one write and one sync in a commit interval. False when the
    /// inbox is closed and everything is written.
    fn gather(&mut self) -> bool {
        let interval = self.shared.settings.commit_interval;
        let inbox = &self.shared.inbox;
        let mut queue = inbox.lock();
        let since = loop {
            let waits = !queue.waiting.is_empty() || !self.batches.is_empty();
            let since = Some(queue.waiting_since).filter(|_| waits);
            let due = since.into_iter().chain(self.uncommitted_since).map(|since| since + interval).min();
            let until = due.map_or(self.next_tick, |due| due.min(self.next_tick));
            let now = Instant::now();
            if let Some(since) = since
                && (queue.waiting_bytes >= WRITE_BYTES || queue.refused.is_some() || now >= since + interval)
            {
                break since;
            }
            if queue.refused.is_some() {
                return false;
            }
            if now >= until {
                return true;
            }
            queue = inbox.bell.wait_timeout(queue, until - now).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.gathered_since = since;
        let mut bytes = 0;
        let mut taken = Vec::new();
        while bytes < GATHER_BYTES
            && let Some((waiting, at)) = queue.waiting.pop_front()
        {
            if matches!(waiting, Waiting::Hole) {
                // Alone, so that everything before it is written by then.
                if taken.is_empty() {
                    self.hole = Some(at);
                } else {
                    queue.waiting.push_front((waiting, at));
                }
                break;
            }
            bytes += waiting.len();
            taken.push((waiting, at));
        }
        drop(queue);
        self.next_tick = self.next_tick.min(Instant::now() + TICK);
        let stamp = self.shared.stamp;
        self.batches.extend(taken.into_iter().filter_map(|(waiting, at)| waiting.seal(stamp, at)));
        true
    }

    /// Writes what was gathered, waiting as long as there is no room for it; false if it was given up.
    fn write(&mut self) -> Result<bool, Poisoned> {
        if let Some(end) = self.hole.take() {
            self.commit()?;
            self.shared.publish_durable(self.writer.skip_to(end)?);
        }
        while !self.batches.is_empty() {
            let before = self.writer.appended();
            let sizes: Vec<usize> = self.batches.iter().map(|batch| batch.bytes().len()).collect();
            let result = self.writer.append(&mut self.batches);
            self.make_room(&sizes[..sizes.len() - self.batches.len()]);
            self.publish_written(before);
            match result {
                Ok(()) => self.shared.set_state(State::Writing),
                Err(AppendError::Poisoned(poisoned)) => return Err(poisoned),
                Err(error @ AppendError::Full { .. }) if self.shared.settings.when_full == WhenFull::DropOldest => {
                    if !self.drop_oldest(&error)? {
                        return Ok(false);
                    }
                }
                Err(error) => {
                    self.shared.set_state(State::Waiting(error.to_string()));
                    if !self.wait_for_room()? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Gives the room of written batches of these sizes back to the queue.
    fn make_room(&mut self, sizes: &[usize]) {
        let room: usize = sizes.iter().map(|bytes| permits(*bytes) as usize).sum();
        let unpaid = room.min(self.unpaid);
        self.unpaid -= unpaid;
        let room = room - unpaid;
        let inbox = &self.shared.inbox;
        let mut queue = inbox.lock();
        queue.waiting_bytes -= sizes.iter().sum::<usize>();
        let of_datagrams = room.min(queue.datagrams_bytes);
        queue.datagrams_bytes -= of_datagrams;
        drop(queue);
        inbox.datagrams_room.add_permits(of_datagrams);
        inbox.room.add_permits(room - of_datagrams);
    }

    fn publish_written(&mut self, before: Mark) {
        let after = self.writer.appended();
        if after == before {
            return;
        }
        self.uncommitted_since.get_or_insert(self.gathered_since);
        self.shared.counters.appended_messages.inc_by(after.messages_since(before));
        self.shared.counters.appended_bytes.inc_by(after.position.bytes_since(before.position));
        // A new segment syncs the old one: that may have made bytes safe outside of `commit`.
        self.shared.publish_durable(self.writer.durable());
    }

    /// One tick of waiting with a full journal or disk; false if it is time to give up.
    fn wait_for_room(&mut self) -> Result<bool, Poisoned> {
        self.commit()?;
        self.tick();
        let inbox = &self.shared.inbox;
        let queue = inbox.lock();
        if queue.give_up_at.is_some_and(|at| Instant::now() >= at) {
            return Ok(false);
        }
        drop(inbox.bell.wait_timeout(queue, TICK).unwrap_or_else(PoisonError::into_inner));
        self.shared.heartbeat.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        Ok(true)
    }

    /// Makes room at the cost of the oldest messages, and leaves a message that says so; false if it is time to give up.
    fn drop_oldest(&mut self, full: &AppendError) -> Result<bool, Poisoned> {
        if self.trim() > 0 {
            return Ok(true);
        }
        let oldest = self.shared.oldest();
        let begin = match self.writer.drop_oldest() {
            Ok(Some(begin)) => begin,
            Ok(None) => oldest,
            Err(error) => {
                self.shared.set_state(State::Waiting(format!("{full}; cannot drop the oldest segment: {error}")));
                return self.wait_for_room();
            }
        };
        // An output that is further behind than the segment has been told of what was before it.
        let from = self.shared.delivered().map_or(begin, |delivered| delivered.max(oldest));
        let gone = begin.messages_since(from);
        if gone > 0 {
            let told = self.take_gaps(from.position, begin.position);
            let fresh = gone - told.len() as u64;
            // A gap message that goes as well hands on what it told, or nobody would ever hear of it.
            let dropped = fresh + told.iter().map(|gap| gap.dropped).sum::<u64>();
            let from = told.first().map_or(from.position, |gap| gap.from);
            self.shared.counters.dropped_messages.inc_by(fresh);
            tracing::warn!(dropped = fresh, "the journal is full: the oldest undelivered messages were dropped");
            let builder = gap_message(self.shared.journal.node.as_str(), dropped, from);
            // Past the bound, by the few bytes of one message: the thread must not wait for itself.
            self.unpaid += builder.len();
            let inbox = &self.shared.inbox;
            let mut queue = inbox.lock();
            self.gaps.push_back(Gap { at: queue.end.position, dropped, from });
            inbox.push(&mut queue, Waiting::Fresh(builder));
        }
        Ok(true)
    }

    /// Takes out the gap messages before `end`; returns those from `from` on, which were not delivered.
    fn take_gaps(&mut self, from: Position, end: Position) -> Vec<Gap> {
        let count = self.gaps.partition_point(|gap| gap.at < end);
        self.gaps.drain(..count).filter(|gap| gap.at >= from).collect()
    }

    fn commit_if_due(&mut self) -> Result<(), Poisoned> {
        match self.uncommitted_since {
            Some(since) if since.elapsed() >= self.shared.settings.commit_interval => {
                self.commit()?;
                self.writer.begin_ahead()
            }
            _ => Ok(()),
        }
    }

    /// Has the next segment's file made in time, beside this thread.
    fn prepare(&mut self) -> Result<(), Poisoned> {
        if self.maker.as_ref().is_some_and(JoinHandle::is_finished) {
            self.take_spare()?;
        }
        // None while one is being made.
        if let Some(spare) = self.writer.order_spare() {
            match std::thread::Builder::new().name("spare".into()).spawn(move || spare.make()) {
                Ok(maker) => self.maker = Some(maker),
                // Without a thread to be had, the segment is made when it is needed.
                Err(_) => self.writer.spare_came(Ok(false))?,
            }
        }
        Ok(())
    }

    /// Waits for the spare that is being made.
    fn take_spare(&mut self) -> Result<(), Poisoned> {
        let Some(maker) = self.maker.take() else { return Ok(()) };
        self.writer.spare_came(maker.join().unwrap_or(Ok(false)))
    }

    fn commit(&mut self) -> Result<(), Poisoned> {
        if self.uncommitted_since.take().is_none() {
            return Ok(());
        }
        let before = Instant::now();
        let durable = self.writer.commit()?;
        self.shared.counters.sync_seconds.observe(before.elapsed().as_secs_f64());
        self.shared.publish_durable(durable);
        Ok(())
    }

    fn tick_if_due(&mut self) {
        if Instant::now() >= self.next_tick {
            self.tick();
        }
    }

    /// Saves the cursors if they moved, and trims what every output has delivered.
    fn tick(&mut self) {
        let marks = self.shared.marks();
        // Cursors move behind what is taken in, which wakes the thread up.
        let is_idle = marks == self.saved.marks && marks.values().all(|mark| *mark >= self.writer.appended());
        self.next_tick = Instant::now() + if is_idle { REST } else { TICK };
        if marks != self.saved.marks {
            let saved = cursors::save(&*self.shared.storage, self.shared.journal.incarnation, &mut self.saved, marks);
            self.note("save the cursors", saved.map_err(|error| error.to_string()));
        }
        self.trim();
        self.shared.recent.rest();
        self.give_back_if_idle();
    }

    fn give_back_if_idle(&mut self) {
        let last = self.shared.index.last().map(|segment| segment.start);
        if last != self.segment.0 {
            self.segment = (last, Instant::now());
        } else if self.segment.1.elapsed() >= SPARES_IDLE {
            let given = self.writer.give_back();
            self.note("give back the space of removed segments", given.map_err(|error| error.to_string()));
        }
    }

    /// Removes what every output has delivered; returns how many segments went.
    fn trim(&mut self) -> usize {
        let Some(delivered) = self.shared.delivered() else { return 0 };
        let before = self.shared.index.totals().0;
        let trimmed = self.writer.trim(delivered.position).map(|_| ());
        self.note("trim the journal", trimmed.map_err(|error| error.to_string()));
        before - self.shared.index.totals().0
    }

    /// Says once that housekeeping fails: it costs repeats or space, never messages.
    fn note(&mut self, action: &str, result: Result<(), String>) {
        match result {
            Ok(()) => {}
            Err(error) if !self.tick_failed => {
                self.tick_failed = true;
                tracing::warn!(error, "cannot {action}");
            }
            Err(_) => {}
        }
    }

    fn finish(&mut self) {
        if let Err(poisoned) = self.take_spare().and_then(|()| self.commit()) {
            self.poison(poisoned);
        }
        self.abandon();
        self.tick();
        let tidied = self.writer.tidy();
        self.note("give back what the journal does not need", tidied.map_err(|error| error.to_string()));
        if let Err(error) = cursors::sync(&*self.shared.storage) {
            tracing::warn!(%error, "cannot sync the cursors: some messages may be delivered again");
        }
    }

    /// Lets go of what was taken and could not be written.
    fn abandon(&mut self) {
        let mut queue = self.shared.inbox.lock();
        let waiting = std::mem::take(&mut queue.waiting);
        queue.waiting_bytes = 0;
        drop(queue);
        let gathered: u32 = self.batches.drain(..).map(|batch| batch.messages()).sum();
        let messages = waiting.iter().map(|(waiting, _)| waiting.messages()).sum::<u32>() + gathered;
        if messages > 0 {
            tracing::error!(messages, "received messages could not be written before the stop");
            self.shared.counters.abandoned_messages.inc_by(messages.into());
        }
    }
}

/// Turns a panic of the journal's thread into a poisoned journal, so that nobody waits for it for ever.
struct PoisonOnPanic(Arc<Shared>);

impl Drop for PoisonOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let poisoned = Poisoned { action: "go on", cause: "the journal's thread panicked".into() };
        self.0.inbox.refuse(poisoned.clone().into());
        self.0.set_state(State::Poisoned(poisoned));
    }
}

/// What stands in the stream where messages were given up: an RFC 5424 message from twinlog itself.
fn gap_message(node: &str, dropped: u64, from: Position) -> BatchBuilder {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let received_at = Timestamp(now.as_nanos() as u64);
    let mut builder = BatchBuilder::new();
    builder.set_origin(&Origin {
        received_at,
        source: None,
        transport: Transport::Internal,
        input: "twinlog",
        tag: b"",
    });
    // 44 = facility syslog, severity warning. 32473 is the enterprise number set aside for examples (RFC 5612).
    let text = format!(
        "<44>1 - {node} twinlog - gap [twinlog@32473 dropped=\"{dropped}\" from=\"{from}\"] \
         {dropped} undelivered messages were dropped: the journal was full and when_full is drop_oldest"
    );
    builder.push(Flags::NONE, text.as_bytes());
    builder
}

/// The heartbeat of the journal's thread, in milliseconds since it started.
pub(super) type Heartbeat = AtomicU64;
