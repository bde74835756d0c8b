//! The journal as the daemon uses it, on real files, while the disk fails, fills up and heals.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::time::timeout;
use twinlog::journal::appender::{DATAGRAMS_BYTES, QUEUE_BYTES};
use twinlog::journal::recovery::Finding;
use twinlog::journal::segment::{self, HEADER_LEN};
use twinlog::journal::{
    Appender, FileStorage, Journal, Limits, Read, Reader, Refused, Settings, SkipCause, State, Storage, WhenFull,
};
use twinlog::proto::batch::{Batch, BatchBuilder};
use twinlog::proto::envelope::Transport;
use twinlog::proto::pair::promise::Acknowledge;
use twinlog::proto::position::{Mark, Position};
use world::storage::{EIO, ENOSPC};

/// Bound of every wait: nothing here takes a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(30);

const SETTINGS: Settings = Settings {
    limits: Limits { segment_size: 64 * 1024, max_size: 1 << 30 },
    commit_interval: Duration::from_millis(1),
    when_full: WhenFull::Block,
    acknowledge: Acknowledge::Durable,
};

/// Real files, with calls that fail while they are told to.
struct FaultStorage {
    files: FileStorage,
    create: AtomicI32,
    write: AtomicI32,
    sync: AtomicI32,
    /// Offset of a page that cannot be read, in every segment.
    unreadable: AtomicI32,
    /// How many reads fail because there is no file descriptor.
    exhausted_reads: AtomicI32,
    /// Whether the next read begins now and gets its bytes when its file is another segment.
    late_read: AtomicBool,
}

impl FaultStorage {
    fn open(directory: &Path) -> Arc<FaultStorage> {
        Arc::new(FaultStorage {
            files: FileStorage::open(directory).unwrap(),
            create: AtomicI32::new(0),
            write: AtomicI32::new(0),
            sync: AtomicI32::new(0),
            unreadable: AtomicI32::new(-1),
            exhausted_reads: AtomicI32::new(0),
            late_read: AtomicBool::new(false),
        })
    }

    fn set_full(&self, full: bool) {
        let errno = if full { ENOSPC } else { 0 };
        self.create.store(errno, Ordering::SeqCst);
        self.write.store(errno, Ordering::SeqCst);
    }
}

fn fault(errno: &AtomicI32) -> io::Result<()> {
    match errno.load(Ordering::SeqCst) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl Storage for FaultStorage {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.files.list()
    }

    fn create(&self, name: &str, reserve: u64) -> io::Result<()> {
        fault(&self.create)?;
        self.files.create(name, reserve)
    }

    fn write_at(&self, name: &str, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if let Err(error) = fault(&self.write) {
            // A part of it stands there afterwards.
            let first = &parts[0][..parts[0].len() / 2];
            self.files.write_at(name, offset, &[IoSlice::new(first)])?;
            return Err(error);
        }
        self.files.write_at(name, offset, parts)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        const EMFILE: i32 = 24;
        let exhausted = self.exhausted_reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if exhausted.is_ok_and(|before| before > 0) {
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        self.exhausted_reads.store(0, Ordering::SeqCst);
        if self.late_read.swap(false, Ordering::SeqCst) {
            let patience = Instant::now() + PATIENCE;
            while self.files.list()?.iter().any(|(file, _)| file == name || file.ends_with(".spare")) {
                assert!(Instant::now() < patience, "{name} goes");
                std::thread::sleep(Duration::from_millis(1));
            }
            // What a read gets that was on its way into the file when another segment was written there.
            buffer.fill(0xa5);
            return Ok(buffer.len());
        }
        if let Ok(page) = u64::try_from(self.unreadable.load(Ordering::SeqCst))
            && offset < page + 4096
            && page < offset + buffer.len() as u64
        {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.files.read_at(name, offset, buffer)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        fault(&self.sync)?;
        self.files.sync(name)
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        self.files.truncate(name, length)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.files.sync_directory()
    }
}

fn open(storage: &Arc<FaultStorage>, settings: Settings, outputs: &[&str]) -> Journal {
    Journal::open(storage.clone(), &world::node(), settings, outputs, world::INCARNATION).unwrap()
}

fn message(number: usize, size: usize) -> Vec<u8> {
    let mut text = format!("<34>{number} ").into_bytes();
    text.resize(text.len().max(size), b'.');
    text
}

fn number_of(payload: &[u8]) -> Option<usize> {
    let text = payload.strip_prefix(b"<34>")?;
    std::str::from_utf8(text.split(|b| *b == b' ').next()?).ok()?.parse().ok()
}

fn one(number: usize, size: usize) -> BatchBuilder {
    world::builder(&[&message(number, size)])
}

/// Appends messages of a kilobyte with these numbers, one in a batch; returns where the last ends.
async fn append(appender: &Appender, numbers: std::ops::Range<usize>) -> Mark {
    let mut end = Mark::default();
    for number in numbers {
        end = timeout(PATIENCE, appender.append(one(number, 1000))).await.unwrap().unwrap();
    }
    end
}

async fn until_durable(appender: &Appender, mark: Mark) {
    timeout(PATIENCE, appender.durable().wait_for(|durable| *durable >= mark)).await.unwrap().unwrap();
}

async fn until_state(journal: &Journal, is: impl FnMut(&State) -> bool) -> State {
    timeout(PATIENCE, journal.state().wait_for(is)).await.unwrap().unwrap().clone()
}

async fn until_queue_is_full(journal: &Journal) {
    let filled = async {
        while journal.progress().waiting_bytes < QUEUE_BYTES - 2 * 1024 * 1024 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, filled).await.unwrap();
}

fn waits(state: &State) -> bool {
    matches!(state, State::Waiting(_))
}

fn is_poisoned(state: &State) -> bool {
    matches!(state, State::Poisoned(_))
}

/// What a reader gets up to `end`: batches, and the skipped stretches.
#[derive(Default)]
struct Got {
    batches: Vec<Batch>,
    skipped: Vec<(Position, Position, SkipCause)>,
}

impl Got {
    fn numbers(&self) -> Vec<usize> {
        let envelopes = self.batches.iter().flat_map(Batch::envelopes);
        envelopes.filter_map(|envelope| number_of(envelope.payload)).collect()
    }
}

async fn read_until(reader: &mut Reader, end: Position) -> Got {
    let mut got = Got::default();
    while reader.position() < end {
        let before = reader.position();
        match timeout(PATIENCE, reader.next()).await.expect("a reader goes on") {
            Read::Batches(batches) => {
                assert_eq!(batches[0].start().position, before);
                got.batches.extend(batches);
            }
            Read::Skipped { from, to, cause } => {
                assert_eq!((from, to), (before, reader.position()));
                got.skipped.push((from, to, cause));
            }
        }
        assert!(reader.position() > before, "a reader goes forward");
    }
    assert_eq!(reader.position(), end);
    got
}

fn segments(directory: &TempDir) -> Vec<String> {
    let names = std::fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| segment::position_of(name).is_some());
    names.sort();
    names
}

#[tokio::test]
async fn what_is_appended_is_read_in_order_across_segments() {
    let directory = TempDir::new().unwrap();
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    let appender = journal.appender();
    let mut reader = journal.reader(Position::ZERO);
    let end = append(&appender, 0..300).await;
    let got = read_until(&mut reader, end.position).await;
    assert_eq!(got.numbers(), (0..300).collect::<Vec<_>>());
    assert!(got.skipped.is_empty());
    assert!(segments(&directory).len() > 3);
    assert_eq!(journal.progress().durable, end);
}

#[tokio::test]
async fn a_reader_at_the_durable_end_wakes_for_the_next_batch() {
    let directory = TempDir::new().unwrap();
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    let mut reader = journal.reader(Position::ZERO);
    for number in 0..20 {
        let waiting = tokio::spawn(async move {
            let read = timeout(PATIENCE, reader.next()).await.unwrap();
            (reader, read)
        });
        tokio::task::yield_now().await;
        append(&journal.appender(), number..number + 1).await;
        let read;
        (reader, read) = waiting.await.unwrap();
        let Read::Batches(batches) = read else { panic!("{read:?}") };
        assert_eq!(Got { batches, skipped: vec![] }.numbers(), [number]);
    }
}

#[tokio::test]
async fn a_cancelled_read_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    let end = append(&journal.appender(), 0..200).await;
    let mut reader = journal.reader(Position::ZERO);
    let mut numbers = Vec::new();
    for _ in 0..50 {
        tokio::select! {
            biased;
            // Now and then the file was read before the first look.
            read = reader.next(), if reader.position() < end.position => {
                let Read::Batches(batches) = read else { panic!("{read:?}") };
                numbers.extend(Got { batches, skipped: vec![] }.numbers());
            }
            () = tokio::task::yield_now() => {}
        }
    }
    numbers.extend(read_until(&mut reader, end.position).await.numbers());
    assert_eq!(numbers, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_failed_write_poisons_and_nothing_more_is_promised() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = open(&storage, SETTINGS, &["siem"]);
    let appender = journal.appender();
    let safe = append(&appender, 0..3).await;
    until_durable(&appender, safe).await;
    storage.write.store(EIO, Ordering::SeqCst);
    append(&appender, 3..4).await;
    until_state(&journal, is_poisoned).await;
    storage.write.store(0, Ordering::SeqCst);
    assert!(matches!(appender.append(one(4, 10)).await, Err(Refused::Poisoned(_))));
    journal.close(Instant::now() + PATIENCE);
    assert_eq!(journal.progress().durable, safe);
    let counters = journal.counters();
    assert_eq!((counters.write_errors.get(), counters.sync_errors.get()), (1, 0));
    assert_eq!(counters.abandoned_messages.get(), 1);
    assert_eq!(read_until(&mut journal.reader(Position::ZERO), safe.position).await.numbers(), [0, 1, 2]);
}

#[tokio::test]
async fn a_failed_sync_poisons_and_nothing_more_is_promised() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = open(&storage, SETTINGS, &["siem"]);
    let appender = journal.appender();
    let safe = append(&appender, 0..3).await;
    until_durable(&appender, safe).await;
    storage.sync.store(EIO, Ordering::SeqCst);
    append(&appender, 3..4).await;
    until_state(&journal, is_poisoned).await;
    storage.sync.store(0, Ordering::SeqCst);
    assert!(matches!(appender.append(one(4, 10)).await, Err(Refused::Poisoned(_))));
    journal.close(Instant::now() + PATIENCE);
    assert_eq!(journal.progress().durable, safe);
    let counters = journal.counters();
    assert_eq!((counters.write_errors.get(), counters.sync_errors.get()), (0, 1));
    // The fourth is in the file, but no reader gets to see it.
    assert_eq!(read_until(&mut journal.reader(Position::ZERO), safe.position).await.numbers(), [0, 1, 2]);
    drop((journal, appender));
    // The next start reads what is really there: here, the kernel had it all.
    drop(storage);
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    assert_eq!(journal.progress().durable.ordinal, 4);
}

#[tokio::test]
async fn appenders_that_wait_for_room_hear_of_the_poisoning() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = open(&storage, SETTINGS, &["siem"]);
    storage.set_full(true);
    let appender = journal.appender();
    append(&appender, 0..1).await;
    until_state(&journal, waits).await;
    let all = tokio::spawn({
        let appender = appender.clone();
        async move {
            loop {
                if let Err(refused) = appender.append(one(1, 1024 * 1024)).await {
                    return refused;
                }
            }
        }
    });
    until_queue_is_full(&journal).await;
    storage.create.store(EIO, Ordering::SeqCst);
    storage.write.store(EIO, Ordering::SeqCst);
    assert!(matches!(timeout(PATIENCE, all).await.unwrap().unwrap(), Refused::Poisoned(_)));
}

#[tokio::test]
async fn a_full_disk_pushes_back_and_goes_on_by_itself() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = Arc::new(open(&storage, SETTINGS, &["siem"]));
    let appender = journal.appender();
    let safe = append(&appender, 0..3).await;
    until_durable(&appender, safe).await;
    storage.set_full(true);
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            let appender = appender.clone();
            tokio::spawn(async move {
                for number in 0..24 {
                    appender.append(one(1000 * (sender + 1) + number, 1024 * 1024)).await.unwrap();
                }
            })
        })
        .collect();
    let State::Waiting(why) = until_state(&journal, waits).await else { unreachable!() };
    assert!(why.contains("No space left"), "{why}");
    // 96 MiB want in, 32 MiB is the bound: the senders wait.
    until_queue_is_full(&journal).await;
    assert!(journal.progress().waiting_bytes <= QUEUE_BYTES);
    assert!(senders.iter().any(|sender| !sender.is_finished()));
    assert_eq!(journal.progress().durable, safe);
    storage.set_full(false);
    for sender in senders {
        timeout(PATIENCE, sender).await.unwrap().unwrap();
    }
    let end = journal.progress().appended;
    assert_eq!(end.ordinal, 99);
    until_durable(&appender, end).await;
    assert!(matches!(*journal.state().borrow(), State::Writing));
    let got = read_until(&mut journal.reader(Position::ZERO), end.position).await;
    assert_eq!((got.numbers().len(), got.skipped.len()), (99, 0));
    assert_eq!(journal.progress().waiting_bytes, 0);
}

#[tokio::test]
async fn streams_leave_room_for_datagrams() {
    const MIB: usize = 1024 * 1024;
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = Arc::new(open(&storage, SETTINGS, &["siem"]));
    let appender = journal.appender();
    // Twice: what was written has given the room back to whom it was.
    for round in 1..=2 {
        storage.set_full(true);
        let streams = tokio::spawn({
            let appender = appender.clone();
            async move {
                for number in 0..40 {
                    appender.append(one(number, MIB)).await.unwrap();
                }
            }
        });
        let filled = async {
            while journal.progress().waiting_bytes < QUEUE_BYTES - MIB {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, filled).await.unwrap();
        let fitting = DATAGRAMS_BYTES / (MIB + 1000);
        for number in 0..fitting {
            timeout(PATIENCE, appender.append_datagrams(one(number, MIB))).await.unwrap().unwrap();
        }
        assert!(!streams.is_finished());
        let mut one_more = pin!(appender.append_datagrams(one(0, MIB)));
        assert!(timeout(Duration::from_millis(50), &mut one_more).await.is_err(), "they are bounded too");
        assert!(journal.progress().waiting_bytes <= QUEUE_BYTES + DATAGRAMS_BYTES);
        storage.set_full(false);
        timeout(PATIENCE, one_more).await.unwrap().unwrap();
        timeout(PATIENCE, streams).await.unwrap().unwrap();
        let end = journal.progress().appended;
        assert_eq!(end.ordinal, round * (40 + fitting as u64 + 1));
        until_durable(&appender, end).await;
    }
}

#[tokio::test]
async fn a_full_journal_blocks_until_the_slowest_output_has_delivered() {
    let directory = TempDir::new().unwrap();
    let limits = Limits { max_size: 4 * SETTINGS.limits.segment_size, ..SETTINGS.limits };
    let journal = Arc::new(open(&FaultStorage::open(directory.path()), Settings { limits, ..SETTINGS }, &["a", "b"]));
    let appender = journal.appender();
    let end = append(&appender, 0..600).await;
    until_state(&journal, waits).await;
    assert!(journal.progress().durable < end);
    let mut reader = journal.reader(Position::ZERO);
    let mut numbers = Vec::new();
    while reader.position() < end.position {
        let Read::Batches(batches) = timeout(PATIENCE, reader.next()).await.unwrap() else { panic!("nothing is lost") };
        let delivered = batches.last().unwrap().end();
        numbers.extend(Got { batches, skipped: vec![] }.numbers());
        journal.cursor("a").advance(delivered);
        assert!(journal.progress().oldest <= journal.cursor("b").mark());
        journal.cursor("b").advance(delivered);
    }
    assert_eq!(numbers, (0..600).collect::<Vec<_>>());
    assert_eq!(journal.counters().dropped_messages.get(), 0);
}

#[tokio::test]
async fn the_smallest_journal_neither_blocks_for_ever_nor_spins() {
    for when_full in [WhenFull::Block, WhenFull::DropOldest] {
        let directory = TempDir::new().unwrap();
        let limits = Limits { max_size: SETTINGS.limits.segment_size, ..SETTINGS.limits };
        let settings = Settings { limits, when_full, ..SETTINGS };
        let journal = open(&FaultStorage::open(directory.path()), settings, &["siem"]);
        let appender = journal.appender();
        for number in 0..300 {
            let end = append(&appender, number..number + 1).await;
            until_durable(&appender, end).await;
            if when_full == WhenFull::Block {
                journal.cursor("siem").advance(end);
            }
        }
        assert!(journal.progress().segments <= 2);
    }
}

#[tokio::test]
async fn a_full_journal_drops_the_oldest_and_says_exactly_what() {
    let directory = TempDir::new().unwrap();
    let limits = Limits { max_size: 4 * SETTINGS.limits.segment_size, ..SETTINGS.limits };
    let settings = Settings { limits, when_full: WhenFull::DropOldest, ..SETTINGS };
    let journal = open(&FaultStorage::open(directory.path()), settings, &["siem"]);
    let appender = journal.appender();
    let mut reader = journal.reader(Position::ZERO);
    append(&appender, 0..1000).await;
    let quiet = async {
        while journal.progress().durable != journal.progress().appended || journal.progress().durable.ordinal < 1000 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, quiet).await.unwrap();
    let progress = journal.progress();
    let got = read_until(&mut reader, progress.durable.position).await;
    assert_eq!(got.skipped, [(Position::ZERO, progress.oldest.position, SkipCause::Gone)]);
    let numbers = got.numbers();
    assert_eq!(numbers, (1000 - numbers.len()..1000).collect::<Vec<_>>());
    assert!(numbers.len() > 100, "only the oldest go");
    // The cursor stands at the begin: every message that is gone was undelivered, and was counted once. Gap messages that
    // are gone as well, as some are when the disk is faster than the sender, count as none.
    let dropped = journal.counters().dropped_messages.get();
    assert_eq!(dropped, 1000 - numbers.len() as u64);
    let gaps: Vec<String> = got
        .batches
        .iter()
        .flat_map(Batch::envelopes)
        .filter(|envelope| envelope.origin.transport == Transport::Internal)
        .map(|envelope| String::from_utf8(envelope.payload.to_vec()).unwrap())
        .collect();
    let last = gaps.last().expect("the last drop left its message");
    assert!(last.starts_with("<44>1 - agg-a twinlog - gap [twinlog@32473 dropped=\""), "{last}");
    assert_eq!(numbers.len() as u64 + gaps.len() as u64, progress.durable.messages_since(progress.oldest));
}

/// Appends and delivers so many messages of a kilobyte, in order.
async fn pass_through(journal: &Journal, numbers: std::ops::Range<usize>) -> Mark {
    let mut end = Mark::default();
    for number in numbers {
        end = append(&journal.appender(), number..number + 1).await;
        until_durable(&journal.appender(), end).await;
        journal.cursor("siem").advance(end);
    }
    end
}

/// Looks until there is something.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let patience = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < patience, "it comes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn spares(directory: &TempDir) -> usize {
    let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|extension| extension == "spare")).count()
}

/// The inodes of what is called a segment.
fn inodes(directory: &TempDir) -> BTreeSet<u64> {
    let metadata = |name: &String| std::fs::metadata(directory.path().join(name)).unwrap();
    segments(directory).iter().map(|name| metadata(name).ino()).collect()
}

#[tokio::test]
async fn segments_stand_in_the_files_of_removed_ones_and_an_orderly_end_leaves_nothing_behind() {
    let directory = TempDir::new().unwrap();
    let limits = Limits { max_size: 4 * SETTINGS.limits.segment_size, ..SETTINGS.limits };
    let journal = open(&FaultStorage::open(directory.path()), Settings { limits, ..SETTINGS }, &["siem"]);
    let (mut seen, mut next) = (BTreeSet::new(), 0);
    for _ in 0..12 {
        pass_through(&journal, next..next + 60).await;
        next += 60;
        seen.extend(inodes(&directory));
        assert!(spares(&directory) + segments(&directory).len() <= 4, "no more than is allowed");
    }
    assert!(seen.len() <= 6, "twelve segments stood in {} files", seen.len());
    let undelivered = append(&journal.appender(), next..next + 30).await;
    until_durable(&journal.appender(), undelivered).await;
    let mark = journal.cursor("siem").mark();
    // What a daemon would leave that is killed now.
    let killed = TempDir::new().unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, killed.path().join(path.file_name().unwrap())).unwrap();
    }
    journal.close(Instant::now() + PATIENCE);
    assert_eq!(spares(&directory), 0);
    let last = segments(&directory).pop().unwrap();
    let length = std::fs::metadata(directory.path().join(&last)).unwrap().len();
    let written = undelivered.position.bytes_since(segment::position_of(&last).unwrap());
    assert_eq!(length, HEADER_LEN as u64 + written);
    drop(journal);

    for left in [directory, killed] {
        let journal = open(&FaultStorage::open(left.path()), SETTINGS, &["siem"]);
        assert_eq!(journal.findings(), []);
        assert_eq!((journal.progress().durable, spares(&left)), (undelivered, 0));
        let mut reader = journal.reader(journal.progress().oldest.position);
        let numbers = read_until(&mut reader, undelivered.position).await.numbers();
        assert!(numbers.ends_with(&(next..next + 30).collect::<Vec<_>>()) && mark < undelivered);
    }
}

#[tokio::test]
async fn a_growing_journal_has_its_next_segment_before_there_is_anything_to_write_to_it() {
    let directory = TempDir::new().unwrap();
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    let size = SETTINGS.limits.segment_size;
    let spare = directory.path().join("next.spare");
    let (mut before, mut end) = (Mark::default(), Mark::default());
    let mut inode = None;
    for number in 0.. {
        let used = HEADER_LEN as u64 + end.position.bytes_since(Position::ZERO);
        if size - used < end.position.bytes_since(before.position) {
            break;
        }
        assert!(used > size / 2 || !spare.exists(), "not before it is needed");
        if used >= size / 2 && inode.is_none() {
            inode = Some(until(|| std::fs::metadata(&spare).ok().map(|metadata| metadata.ino())));
        }
        before = end;
        end = append(&journal.appender(), number..number + 1).await;
        until_durable(&journal.appender(), end).await;
    }
    let next = until(|| segments(&directory).get(1).cloned());
    assert_eq!(segment::position_of(&next), Some(end.position), "another message would not have had room");
    assert_eq!(std::fs::metadata(directory.path().join(next)).unwrap().ino(), inode.unwrap());
    let end = append(&journal.appender(), 100..140).await;
    until_durable(&journal.appender(), end).await;
    until(|| spare.exists().then_some(()));
    journal.close(Instant::now() + PATIENCE);
    assert_eq!((segments(&directory).len(), spares(&directory)), (2, 0));
}

#[tokio::test]
async fn a_reader_in_a_segment_that_becomes_another_is_told_that_it_is_gone() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let limits = Limits { max_size: 3 * SETTINGS.limits.segment_size, ..SETTINGS.limits };
    let settings = Settings { limits, when_full: WhenFull::DropOldest, ..SETTINGS };
    let journal = open(&storage, settings, &["siem"]);
    let end = append(&journal.appender(), 0..10).await;
    until_durable(&journal.appender(), end).await;
    let mut reader = journal.reader(Position::ZERO);
    storage.late_read.store(true, Ordering::SeqCst);
    let waiting = tokio::spawn(async move { timeout(PATIENCE, reader.next()).await.unwrap() });
    while storage.late_read.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    append(&journal.appender(), 10..400).await;
    let read = waiting.await.unwrap();
    assert!(matches!(read, Read::Skipped { from: Position::ZERO, cause: SkipCause::Gone, .. }), "{read:?}");
    assert_eq!(journal.counters().checksum_errors.get(), 0);
}

#[tokio::test]
async fn gap_messages_do_not_widen_the_queue() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let limits = Limits { segment_size: 8 * 1024, max_size: 32 * 1024 };
    let journal = open(&storage, Settings { limits, when_full: WhenFull::DropOldest, ..SETTINGS }, &["siem"]);
    let appender = journal.appender();
    let end = append(&appender, 0..800).await;
    until_durable(&appender, end).await;
    assert!(journal.counters().dropped_messages.get() > 600);
    storage.set_full(true);
    loop {
        tokio::select! {
            biased;
            taken = appender.append(one(0, 1000)) => drop(taken.unwrap()),
            () = tokio::task::yield_now() => break,
        }
    }
    // The last gap message may still wait there, beyond the bound.
    let waiting = journal.progress().waiting_bytes;
    assert!(waiting <= QUEUE_BYTES + 1024, "{} bytes more than the bound", waiting - QUEUE_BYTES);
    assert!(waiting > QUEUE_BYTES - 4096);
    journal.close(Instant::now());
}

#[tokio::test]
async fn damage_in_a_living_segment_is_skipped_and_the_rest_is_read() {
    let directory = TempDir::new().unwrap();
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    let appender = journal.appender();
    let end = append(&appender, 0..200).await;
    until_durable(&appender, end).await;
    let mut ends = Vec::new();
    for batch in read_until(&mut journal.reader(Position::ZERO), end.position).await.batches {
        ends.push(batch.end().position);
    }
    // In the first, in the middle of the third, and in the last batch of the first segment; and in the live one.
    let names = segments(&directory);
    let second = segment::position_of(&names[1]).unwrap();
    let last = ends.iter().position(|end| *end == second).unwrap();
    let live = segment::position_of(names.last().unwrap()).unwrap();
    for (name, offset) in [
        (&names[0], HEADER_LEN as u64 + 3),
        (&names[0], HEADER_LEN as u64 + ends[2].0 - 500),
        (&names[0], HEADER_LEN as u64 + ends[last].0 - 1),
        (names.last().unwrap(), HEADER_LEN as u64 + end.position.bytes_since(live) - 10),
    ] {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(directory.path().join(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
    }
    let end = append(&appender, 200..210).await;
    let got = read_until(&mut journal.reader(Position::ZERO), end.position).await;
    let gone = [0, 2, last, 199];
    assert_eq!(got.numbers(), (0..210).filter(|number| !gone.contains(number)).collect::<Vec<_>>());
    let skipped: Vec<_> = got.skipped.iter().map(|(from, to, _)| (*from, *to)).collect();
    let expected =
        gone.map(|number| (number.checked_sub(1).map_or(Position::ZERO, |before| ends[before]), ends[number]));
    assert_eq!(skipped, expected);
    assert!(got.skipped.iter().all(|(_, _, cause)| matches!(cause, SkipCause::Damaged(_))));
    assert_eq!(journal.counters().checksum_errors.get(), 4);
}

#[tokio::test]
async fn damage_larger_than_one_read_is_skipped_too() {
    let directory = TempDir::new().unwrap();
    let limits = Limits { segment_size: 16 * 1024 * 1024, ..SETTINGS.limits };
    let journal = open(&FaultStorage::open(directory.path()), Settings { limits, ..SETTINGS }, &["siem"]);
    journal.appender().append(one(0, 3 * 1024 * 1024)).await.unwrap();
    let end = append(&journal.appender(), 1..10).await;
    until_durable(&journal.appender(), end).await;
    let file = directory.path().join(&segments(&directory)[0]);
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    // First the payload, then the header as well.
    for offset in [2 * 1024 * 1024, HEADER_LEN as u64] {
        file.write_all_at(b"!", offset).unwrap();
        let got = read_until(&mut journal.reader(Position::ZERO), end.position).await;
        assert_eq!(got.numbers(), (1..10).collect::<Vec<_>>());
        assert_eq!(got.skipped.len(), 1);
    }
}

#[tokio::test]
async fn nothing_is_dropped_where_trimming_makes_room() {
    let directory = TempDir::new().unwrap();
    let limits = Limits { max_size: 4 * SETTINGS.limits.segment_size, ..SETTINGS.limits };
    let settings = Settings { limits, when_full: WhenFull::DropOldest, ..SETTINGS };
    let journal = open(&FaultStorage::open(directory.path()), settings, &["siem"]);
    // The output is always two segments behind, and the journal always about to be full.
    let mut ends = Vec::new();
    for number in 0..1000 {
        let end = append(&journal.appender(), number..number + 1).await;
        until_durable(&journal.appender(), end).await;
        ends.push(end);
        journal.cursor("siem").advance(ends[number.saturating_sub(110)]);
    }
    assert_eq!(journal.counters().dropped_messages.get(), 0);
    assert!(journal.progress().oldest.ordinal > 500);
}

#[tokio::test]
async fn an_unreadable_page_costs_what_is_in_it_and_not_the_segment() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = open(&storage, SETTINGS, &["siem"]);
    let end = append(&journal.appender(), 0..40).await;
    until_durable(&journal.appender(), end).await;
    storage.unreadable.store(8192, Ordering::SeqCst);
    let got = read_until(&mut journal.reader(Position::ZERO), end.position).await;
    // A page of 4 KiB touches five batches of a kilobyte.
    assert!(got.numbers().len() >= 35, "{:?}", got.numbers());
    let [(from, to, SkipCause::Unreadable)] = got.skipped[..] else { panic!("{:?}", got.skipped) };
    assert!(from.0 <= 8192 && to.0 >= 8192 + 4096 - HEADER_LEN as u64);
    assert!(journal.counters().read_errors.get() > 0);
}

#[tokio::test]
async fn a_read_without_a_file_descriptor_is_tried_again() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = open(&storage, SETTINGS, &["siem"]);
    let end = append(&journal.appender(), 0..10).await;
    until_durable(&journal.appender(), end).await;
    storage.exhausted_reads.store(2, Ordering::SeqCst);
    let got = read_until(&mut journal.reader(Position::ZERO), end.position).await;
    assert_eq!((got.numbers().len(), got.skipped.len()), (10, 0));
}

#[tokio::test]
async fn only_what_the_slowest_output_has_delivered_is_trimmed() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = open(&storage, SETTINGS, &["fast", "slow"]);
    let end = append(&journal.appender(), 0..300).await;
    until_durable(&journal.appender(), end).await;
    let names = segments(&directory);
    let slow = segment::position_of(&names[2]).unwrap().advance(10);
    journal.cursor("fast").advance(end);
    journal.cursor("slow").advance(Mark { position: slow, ordinal: 100 });
    journal.close(Instant::now() + PATIENCE);
    assert_eq!(segments(&directory), names[2..]);
    let got = read_until(&mut journal.reader(Position::ZERO), end.position).await;
    assert_eq!(got.skipped, [(Position::ZERO, segment::position_of(&names[2]).unwrap(), SkipCause::Gone)]);
}

#[tokio::test]
async fn cursors_survive_a_restart_and_a_lost_file_costs_repeats() {
    let directory = TempDir::new().unwrap();
    let delivered;
    {
        let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
        delivered = append(&journal.appender(), 0..10).await;
        append(&journal.appender(), 10..20).await;
        journal.cursor("siem").advance(delivered);
        journal.close(Instant::now() + PATIENCE);
    }
    {
        let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem", "new"]);
        assert_eq!(journal.cursor("siem").mark(), delivered);
        assert_eq!(journal.cursor("new").mark(), Mark::default());
        let end = journal.progress().durable.position;
        let got = read_until(&mut journal.reader(delivered.position), end).await;
        assert_eq!(got.numbers(), (10..20).collect::<Vec<_>>());
    }
    std::fs::remove_file(directory.path().join("cursors")).unwrap();
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    assert_eq!(journal.cursor("siem").mark(), Mark::default());
    let end = journal.progress().durable.position;
    assert_eq!(read_until(&mut journal.reader(Position::ZERO), end).await.numbers(), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_output_gets_over_delivered_messages_that_the_disk_lost() {
    let directory = TempDir::new().unwrap();
    let (from, end);
    {
        let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["fast", "slow"]);
        end = append(&journal.appender(), 0..100).await;
        journal.cursor("fast").advance(end);
        journal.close(Instant::now() + PATIENCE);
        let last = segments(&directory).pop().unwrap();
        from = segment::position_of(&last).unwrap();
        std::fs::remove_file(directory.path().join(last)).unwrap();
    }
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["fast", "slow"]);
    assert_eq!(journal.findings(), [Finding::Missing { from, to: end.position }]);
    assert_eq!(journal.progress().durable, end);
    let got = read_until(&mut journal.reader(Position::ZERO), end.position).await;
    assert_eq!(got.skipped, [(from, end.position, SkipCause::Gone)]);
}

#[tokio::test]
async fn close_writes_everything_that_was_taken() {
    let directory = TempDir::new().unwrap();
    let accepted;
    {
        let settings = Settings { commit_interval: Duration::from_secs(3600), ..SETTINGS };
        let journal = open(&FaultStorage::open(directory.path()), settings, &["siem"]);
        accepted = append(&journal.appender(), 0..500).await;
        journal.close(Instant::now() + PATIENCE);
        assert_eq!(journal.progress().durable, accepted);
        assert!(matches!(journal.appender().append(one(1, 1)).await, Err(Refused::Closed)));
    }
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    assert_eq!(journal.progress().durable, accepted);
    assert_eq!(journal.findings(), []);
}

#[tokio::test]
async fn close_with_a_full_disk_gives_up_and_counts() {
    let directory = TempDir::new().unwrap();
    let storage = FaultStorage::open(directory.path());
    let journal = open(&storage, SETTINGS, &["siem"]);
    let safe = append(&journal.appender(), 0..3).await;
    until_durable(&journal.appender(), safe).await;
    storage.set_full(true);
    // More than the thread takes out of its queue at once.
    for number in 3..33 {
        journal.appender().append(one(number, 1024 * 1024)).await.unwrap();
    }
    until_state(&journal, waits).await;
    journal.close(Instant::now());
    assert!(waits(&journal.state().borrow()), "nothing broke: {:?}", *journal.state().borrow());
    assert_eq!(journal.counters().abandoned_messages.get(), 30);
    assert_eq!(journal.progress().durable, safe);
}

#[test]
fn a_directory_is_opened_by_one_process_only() {
    let directory = TempDir::new().unwrap();
    let first = FileStorage::open(directory.path()).unwrap();
    let second = FileStorage::open(directory.path()).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    assert!(FileStorage::open_read_only(directory.path()).is_ok());
    drop(first);
    assert!(FileStorage::open(directory.path()).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_appenders_each_keep_their_order() {
    const APPENDERS: usize = 50;
    let directory = TempDir::new().unwrap();
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    let tasks: Vec<_> = (0..APPENDERS)
        .map(|sender| {
            let appender = journal.appender();
            tokio::spawn(async move {
                let mut end = Mark::default();
                for number in 0..100 {
                    let mark = appender.append(one(sender * 1000 + number, 20)).await.unwrap();
                    assert!(mark > end);
                    end = mark;
                    if number % 10 == 0 {
                        until_durable(&appender, mark).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        timeout(PATIENCE, task).await.unwrap().unwrap();
    }
    let end = journal.progress().appended;
    let numbers = read_until(&mut journal.reader(Position::ZERO), end.position).await.numbers();
    assert_eq!(numbers.len(), APPENDERS * 100);
    for sender in 0..APPENDERS {
        let own: Vec<_> = numbers.iter().filter(|number| **number / 1000 == sender).collect();
        assert!(own.is_sorted() && own.len() == 100);
    }
}

#[tokio::test]
async fn a_batch_larger_than_the_queue_is_taken() {
    let directory = TempDir::new().unwrap();
    let journal = open(&FaultStorage::open(directory.path()), SETTINGS, &["siem"]);
    let appender = journal.appender();
    append(&appender, 0..2).await;
    timeout(PATIENCE, appender.append(one(2, QUEUE_BYTES + 1024))).await.unwrap().unwrap();
    let end = append(&appender, 3..5).await;
    let got = read_until(&mut journal.reader(Position::ZERO), end.position).await;
    assert_eq!(got.numbers(), [0, 1, 2, 3, 4]);
}
