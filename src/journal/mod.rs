//! The journal: one endless stream of batches in segments, written by one node for as long as its disk lives.
//!
//! - `storage`: nine calls on files; the only thing that is different in a simulation.
//! - `segment`: one file; finding the next sound batch in it.
//! - `recovery`: opening after a crash, as a decision table.
//! - `writer`: append, commit, trim; synchronous.
//! - `spares`: files that become the next segments.
//! - `appender`: the bounded queue in which positions are given out.
//! - `thread`: the thread around the writer; group commit.
//! - `memory`: of batches that were written, for those that come.
//! - `reader`: from a position up to what is durable.
//! - `recent`: what was written last, for the readers.
//! - `cursors`: how far each output has delivered; a hint.
//!
//! Rules, of which everything else follows: the segments are the only truth. Nothing is given out, forwarded or
//! acknowledged before it is durable. Whole segments are removed when every output has delivered all of them. No space
//! means waiting; a failed write or sync poisons for good, because the kernel may already have dropped what it could
//! not write, and a second `fdatasync` would then claim success.

pub mod appender;
pub mod cursors;
pub mod index;
pub mod memory;
pub mod reader;
mod recent;
pub mod recovery;
pub mod segment;
mod spares;
pub mod storage;
mod thread;
pub mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

pub use appender::{Appender, Refused};
pub use cursors::Cursor;
pub use reader::{Read, Reader, SkipCause};
pub use recovery::{Finding, OpenError};
pub use storage::{FileStorage, Storage};
pub use writer::{Limits, Poisoned};

use crate::proto::batch::{Batch, Stamp};
use crate::proto::pair::promise::{Acknowledge, Promise};
use crate::proto::position::{Incarnation, JournalId, Mark, NodeName, Position};
use appender::{Inbox, Waiting};
use index::Index;
use recent::Recent;
use recovery::Recovered;
use segment::{Found, Scan};
use thread::{Heartbeat, Thread};
use writer::Writer;

/// Name of the own journal's directory below `data_dir`.
pub const OWN_DIRECTORY: &str = "own";

/// What happens when the journal has its largest size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Senders wait; datagrams are dropped by the kernel and counted.
    Block,
    /// The oldest undelivered messages are dropped, counted, and a gap message says so.
    DropOldest,
}

/// How a journal behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Sizes.
    pub limits: Limits,
    /// Longest wait before `fdatasync`.
    pub commit_interval: Duration,
    /// What happens at the largest size.
    pub when_full: WhenFull,
    /// What an acknowledgement to a sender means.
    pub acknowledge: Acknowledge,
}

/// Whether the journal takes messages.
#[derive(Clone, Debug, Default)]
pub enum State {
    /// Yes.
    #[default]
    Writing,
    /// Not now: full, or no space; the reason. It goes on by itself.
    Waiting(String),
    /// Never again before a restart.
    Poisoned(Poisoned),
}

/// What the journal counts since the start.
#[derive(Debug)]
pub struct Counters {
    /// Messages written.
    pub appended_messages: Counter,
    /// Bytes of batches written.
    pub appended_bytes: Counter,
    /// Seconds that `fdatasync` took.
    pub sync_seconds: Histogram,
    /// Failed writes.
    pub write_errors: Counter,
    /// Failed syncs.
    pub sync_errors: Counter,
    /// Failed reads.
    pub read_errors: Counter,
    /// Damaged stretches that a reader met.
    pub checksum_errors: Counter,
    /// Undelivered messages dropped because the journal was full.
    pub dropped_messages: Counter,
    /// Messages in memory that could not be written before a stop.
    pub abandoned_messages: Counter,
}

impl Default for Counters {
    fn default() -> Counters {
        // 0.1 ms to 2 s: an idle disk syncs in 0.1 ms, a busy one in a few ms (measured).
        let buckets = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0];
        Counters {
            appended_messages: Counter::default(),
            appended_bytes: Counter::default(),
            sync_seconds: Histogram::new(buckets),
            write_errors: Counter::default(),
            sync_errors: Counter::default(),
            read_errors: Counter::default(),
            checksum_errors: Counter::default(),
            dropped_messages: Counter::default(),
            abandoned_messages: Counter::default(),
        }
    }
}

/// What the journal's thread, its appenders and its readers share.
pub(crate) struct Shared {
    journal: JournalId,
    stamp: Stamp,
    settings: Settings,
    storage: Arc<dyn Storage>,
    index: Arc<Index>,
    inbox: Inbox,
    durable: watch::Sender<Mark>,
    promise: Mutex<Promise>,
    promised: watch::Sender<Mark>,
    replicated: watch::Sender<Mark>,
    state: watch::Sender<State>,
    cursors: Mutex<BTreeMap<String, Cursor>>,
    /// Raised when a cursor moves, comes or goes.
    moved: watch::Sender<()>,
    recent: Arc<Recent>,
    counters: Counters,
    heartbeat: Heartbeat,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Shared {
    fn set_state(&self, state: State) {
        self.state.send_if_modified(|current| {
            let changed = match (&*current, &state) {
                (State::Writing, State::Writing) | (State::Poisoned(_), _) => false,
                (State::Waiting(a), State::Waiting(b)) => a != b,
                _ => true,
            };
            if changed {
                match &state {
                    State::Writing => tracing::info!("the journal takes messages again"),
                    State::Waiting(why) => tracing::error!("the journal waits: {why}"),
                    State::Poisoned(why) => tracing::error!("{why}"),
                }
                *current = state;
            }
            changed
        });
    }

    fn publish_durable(&self, mark: Mark) {
        self.durable.send_if_modified(|durable| {
            let moved = mark > *durable;
            *durable = mark.max(*durable);
            moved
        });
        self.promise(|promise| promise.set_durable(mark));
    }

    /// Changes what the promise depends on, and publishes what it is then.
    fn promise(&self, change: impl FnOnce(&mut Promise)) {
        let mut promise = self.promise.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut promise);
        let (promised, replicated) = (promise.promised(), promise.replicated());
        self.replicated.send_if_modified(|mark| std::mem::replace(mark, replicated) != replicated);
        self.promised.send_if_modified(|mark| std::mem::replace(mark, promised) != promised);
    }

    fn marks(&self) -> BTreeMap<String, Mark> {
        let cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.iter().map(|(name, cursor)| (name.clone(), cursor.mark())).collect()
    }

    /// What every output has delivered; `None` without outputs.
    fn delivered(&self) -> Option<Mark> {
        let cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.values().map(Cursor::mark).min()
    }

    /// Where the oldest kept batch stands.
    fn oldest(&self) -> Mark {
        self.index.first().map_or_else(|| *self.durable.borrow(), |segment| segment.start)
    }
}

/// How far a journal is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Where the oldest kept batch stands.
    pub oldest: Mark,
    /// Everything before this was taken in.
    pub appended: Mark,
    /// Everything before this is safe on this node's disk.
    pub durable: Mark,
    /// Everything before this was delivered by every output.
    pub delivered: Mark,
    /// Bytes that the segments occupy.
    pub bytes: u64,
    /// Number of segments.
    pub segments: usize,
    /// Bytes taken in and not yet written.
    pub waiting_bytes: usize,
}

/// The own journal of this node, open for writing.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    findings: Vec<Finding>,
}

impl Journal {
    /// Recovers the journal in `storage` and starts its thread.
    ///
    /// `outputs` names everyone whose deliveries are waited for before a segment goes; an output that has no saved
    /// cursor starts at the oldest kept message. `fresh` names the incarnation if there is no journal yet.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        storage: Arc<dyn Storage>,
        node: &NodeName,
        settings: Settings,
        outputs: &[&str],
        fresh: Incarnation,
    ) -> Result<Journal, OpenError> {
        let recovered = recovery::recover(&*storage, node, fresh)?;
        Journal::start(storage, recovered, settings, outputs)
    }

    /// The same for the mirror of `journal`, which another node writes.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_mirror(
        storage: Arc<dyn Storage>,
        journal: &JournalId,
        settings: Settings,
        outputs: &[&str],
    ) -> Result<Journal, OpenError> {
        let recovered = recovery::recover_mirror(&*storage, journal)?;
        Journal::start(storage, recovered, settings, outputs)
    }

    fn start(
        storage: Arc<dyn Storage>,
        recovered: Recovered,
        settings: Settings,
        outputs: &[&str],
    ) -> Result<Journal, OpenError> {
        let writer = Writer::new(storage.clone(), &recovered, settings.limits)?;
        let shared = Arc::new(Shared {
            stamp: Stamp::from(&recovered.journal),
            journal: recovered.journal,
            settings,
            storage,
            index: writer.index().clone(),
            inbox: Inbox::new(recovered.end, writer.recent().memory().clone()),
            durable: watch::Sender::new(recovered.end),
            promise: Mutex::new(Promise::new(settings.acknowledge, recovered.end)),
            promised: watch::Sender::new(recovered.end),
            replicated: watch::Sender::default(),
            state: watch::Sender::default(),
            cursors: Mutex::default(),
            moved: watch::Sender::default(),
            recent: writer.recent().clone(),
            counters: Counters::default(),
            heartbeat: Heartbeat::default(),
        });
        let oldest = shared.oldest();
        let start = |name: &str| recovered.saved.marks.get(name).copied().unwrap_or_default().max(oldest);
        let cursors =
            outputs.iter().map(|name| ((*name).to_owned(), Cursor::new(start(name), shared.moved.clone()))).collect();
        *shared.cursors.lock().unwrap_or_else(PoisonError::into_inner) = cursors;
        for name in recovered.saved.marks.keys().filter(|name| !outputs.contains(&name.as_str())) {
            tracing::warn!(
                output = name,
                "this output is no longer configured; what it had not delivered is not kept for it"
            );
        }
        let thread = Thread::new(shared.clone(), writer, recovered.saved);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || thread.run())
            .map_err(OpenError::io("start the thread of", "the journal"))?;
        Ok(Journal { shared, thread: Mutex::new(Some(thread)), findings: recovered.findings })
    }

    /// Whose journal, and which life of its disk.
    #[must_use]
    pub fn id(&self) -> &JournalId {
        &self.shared.journal
    }

    /// What recovery found.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// A handle to append with.
    #[must_use]
    pub fn appender(&self) -> Appender {
        Appender { shared: self.shared.clone() }
    }

    /// Takes batches of the node that writes this journal, as they come over the pair link. They follow each other and
    /// what is here; of a hole before the first one the journal knows by [`skip_to`](Journal::skip_to). What is here
    /// already, on its way to the disk when a new connection asked how far it is, is not taken twice.
    ///
    /// # Errors
    /// [`Refused`]; the batches before it are kept.
    pub async fn take(&self, batches: Vec<Batch>) -> Result<(), Refused> {
        let inbox = &self.shared.inbox;
        for batch in batches {
            if let Ok(room) = inbox.room.acquire_many(appender::permits(batch.bytes().len())).await {
                let mut queue = inbox.lock();
                if batch.end().position <= queue.end.position {
                    continue;
                }
                if batch.start() != queue.end {
                    return Err(Refused::OutOfPlace { at: batch.start().position, expected: queue.end.position });
                }
                if queue.refused.is_none() {
                    room.forget();
                    inbox.push(&mut queue, Waiting::Sealed(batch));
                    continue;
                }
            }
            return Err(inbox.lock().refused.clone().unwrap_or(Refused::Closed));
        }
        Ok(())
    }

    /// Says that nothing before `to` will come. Positions behind the end of what is here stay empty for ever.
    pub fn skip_to(&self, to: Mark) {
        let mut queue = self.shared.inbox.lock();
        if to.position > queue.end.position && queue.refused.is_none() {
            queue.end = to;
            self.shared.inbox.push(&mut queue, Waiting::Hole);
        }
    }

    /// How far the journal is safe on this node's disk.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<Mark> {
        self.shared.durable.subscribe()
    }

    /// How far the journal is safe on the other node's disk, as far as is known. A peer with a new disk has less of it.
    #[must_use]
    pub fn replicated(&self) -> watch::Receiver<Mark> {
        self.shared.replicated.subscribe()
    }

    /// The other node is there, and its copy of this journal ends at `mark`.
    pub fn peer_came(&self, mark: Mark) {
        self.shared.promise(|promise| promise.peer_came(mark));
    }

    /// Its copy ends at `mark` now.
    pub fn set_replicated(&self, mark: Mark) {
        self.shared.promise(|promise| promise.set_replicated(mark));
    }

    /// The other node is away.
    pub fn peer_left(&self) {
        self.shared.promise(Promise::peer_left);
    }

    /// What was promised to senders, and what of it depends on the other node.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.shared.promise.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A reader from `at` on, which must be where a batch starts: a cursor, or [`Progress::durable`].
    #[must_use]
    pub fn reader(&self, at: Position) -> Reader {
        Reader::new(self.shared.clone(), at)
    }

    /// Shows `look` the newest sound batches, in order: those in the last `bytes_max` bytes of what is durable. Blocks,
    /// and reads one segment's part at a time. What cannot be read is passed over: this is for hints, not for delivery.
    pub fn recent(&self, bytes_max: u64, mut look: impl FnMut(&Batch)) {
        let end = self.shared.durable.borrow().position;
        let from = Position(end.0.saturating_sub(bytes_max));
        for segment in self.shared.index.segments() {
            let (begin, end) = (segment.start.position.max(from), segment.end.min(end));
            if begin >= end {
                continue;
            }
            let mut bytes = vec![0; end.bytes_since(begin) as usize];
            let offset = segment::HEADER_LEN as u64 + begin.bytes_since(segment.start.position);
            match self.shared.storage.read_at(&segment::file_name(segment.start.position), offset, &mut bytes) {
                Ok(filled) => bytes.truncate(filled),
                Err(error) => {
                    tracing::warn!(%error, position = %begin, "cannot read the journal's newest part");
                    continue;
                }
            }
            for found in Scan::new(bytes.into(), begin, self.shared.stamp) {
                if let Found::Batch(batch) = found {
                    look(&batch);
                }
            }
        }
    }

    /// The cursor of an output; a new output's starts at the oldest kept message.
    #[must_use]
    pub fn cursor(&self, output: &str) -> Cursor {
        let oldest = self.shared.oldest();
        let mut cursors = self.shared.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            self.shared.moved.send_replace(());
            Cursor::new(oldest, self.shared.moved.clone())
        };
        cursors.entry(output.to_owned()).or_insert_with(fresh).clone()
    }

    /// Forgets an output: nothing is kept for it any more.
    pub fn retire_cursor(&self, output: &str) {
        self.shared.cursors.lock().unwrap_or_else(PoisonError::into_inner).remove(output);
        self.shared.moved.send_replace(());
    }

    /// Takes note of what the other node's outputs have delivered of this journal. Outputs that this node does not have
    /// count for nothing here.
    pub fn delivered_elsewhere(&self, outputs: &BTreeMap<String, Mark>) {
        // A mark beyond what is here is about batches that are still on their way here: they need not be delivered again.
        let cursors = self.shared.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, mark) in outputs {
            if let Some(cursor) = cursors.get(name) {
                cursor.advance(*mark);
            }
        }
    }

    /// What every output has delivered, by name. Unlike [`cursor`](Journal::cursor) it makes none: for looking on.
    #[must_use]
    pub fn delivered(&self) -> BTreeMap<String, Mark> {
        self.shared.marks()
    }

    /// Tells when [`delivered`](Journal::delivered) has changed.
    #[must_use]
    pub fn deliveries(&self) -> watch::Receiver<()> {
        self.shared.moved.subscribe()
    }

    /// How far the journal is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let shared = &self.shared;
        let delivered = shared.delivered().unwrap_or_else(|| shared.oldest());
        let durable = *shared.durable.borrow();
        let (segments, bytes) = shared.index.totals();
        let appended = shared.inbox.end();
        let waiting_bytes = shared.inbox.waiting_bytes();
        Progress { oldest: shared.oldest(), appended, durable, delivered, bytes, segments, waiting_bytes }
    }

    /// Whether it takes messages, and changes of that.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// What it counts.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Milliseconds between the thread's start and its last sign of life: it stands still while the disk hangs.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        self.shared.heartbeat.load(Ordering::Relaxed)
    }

    /// Takes nothing more, writes and syncs what was taken, saves the cursors. Blocks; gives up what has no room on the
    /// disk at `give_up_at`.
    pub fn close(&self, give_up_at: Instant) {
        self.shared.inbox.close(give_up_at);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the journal's thread panicked");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close(Instant::now());
    }
}
