//! The synchronous core of a journal: append, commit, trim.
//!
//! No thread, no clock, no queue: the appender's thread drives it, and so does the simulation. It owns the order in
//! which things become safe: bytes, then `fdatasync`, then `durable`; a new segment only after the old one was synced.
//! What files the next segments stand in, `spares` says.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use thiserror::Error;

use super::cursors;
use super::index::Index;
use super::recent::Recent;
use super::recovery::{OpenError, Recovered, Segment};
use super::segment::{self, HEADER_LEN, Header};
use super::spares::{NewSpare, Spares};
use super::storage::{Storage, is_shortage};
use crate::proto::batch::Batch;
use crate::proto::position::{JournalId, Mark, Position};

/// What a journal may use. All sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size at which a segment is sealed; a batch larger than this makes a segment of its own.
    pub segment_size: u64,
    /// Largest sum of all segments; two are always allowed.
    pub max_size: u64,
}

/// Why nothing more was written. What was written before the error stands.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The journal has its largest size; trimming or dropping makes room.
    #[error("the journal is full: {bytes} bytes of max_size {max_size}")]
    Full {
        /// Bytes in use.
        bytes: u64,
        /// Bytes allowed.
        max_size: u64,
    },
    /// The file system has no space, or the process no file descriptor; the same call succeeds when it has.
    #[error("no space for the journal: {0}")]
    NoSpace(#[source] io::Error),
    /// A write or a sync failed: nothing is promised any more, ever.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// A write or a sync failed. The kernel may have dropped what it could not write, so a second try could lie: this
/// journal takes nothing more until the daemon starts anew and reads what is really there.
#[derive(Clone, Debug, Error)]
#[error("the journal is poisoned: cannot {action}: {cause}")]
pub struct Poisoned {
    /// What was attempted.
    pub action: &'static str,
    /// What the system said.
    pub cause: String,
}

impl Poisoned {
    /// Whether it was a sync that failed.
    #[must_use]
    pub fn is_sync(&self) -> bool {
        self.action == SYNC
    }
}

const SYNC: &str = "sync";

/// Writes one journal.
pub struct Writer {
    storage: Arc<dyn Storage>,
    journal: JournalId,
    limits: Limits,
    index: Arc<Index>,
    recent: Arc<Recent>,
    appended: Mark,
    durable: Mark,
    /// Whether the last segment of the index is the one to write in.
    open: bool,
    spares: Spares,
    /// The segment during which a spare was ordered last.
    ordered_in: Option<Position>,
    /// Bytes that were written at once last; 0 if that failed, and a part of them may stand behind `appended`.
    last_write: u64,
    /// Where the first segment begins that was made in this life: from there on, space was set aside for whole ones.
    made_from: Option<Position>,
    /// Whether the last segment's file may have old bytes behind what was written.
    is_recycled: bool,
    poisoned: Option<Poisoned>,
}

impl Writer {
    /// Goes on where recovery ended.
    ///
    /// # Errors
    /// If the cursors' space cannot be set aside in a new journal.
    pub fn new(storage: Arc<dyn Storage>, recovered: &Recovered, limits: Limits) -> Result<Writer, OpenError> {
        let files = storage.list().map_err(OpenError::io("list", "the journal"))?;
        if !files.iter().any(|(name, _)| name == "cursors") {
            cursors::create(&*storage).map_err(OpenError::io("create", "cursors"))?;
        }
        Spares::clear(&*storage, &files);
        Ok(Writer {
            storage,
            journal: recovered.journal.clone(),
            limits,
            index: Arc::new(Index::new(recovered.segments.clone())),
            recent: Arc::default(),
            appended: recovered.end,
            durable: recovered.end,
            open: recovered.continues,
            spares: Spares::default(),
            ordered_in: None,
            last_write: 0,
            made_from: None,
            is_recycled: false,
            poisoned: None,
        })
    }

    /// The segments, shared with readers.
    #[must_use]
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// What was written last, shared with readers.
    pub(super) fn recent(&self) -> &Arc<Recent> {
        &self.recent
    }

    /// Everything before this was written.
    #[must_use]
    pub fn appended(&self) -> Mark {
        self.appended
    }

    /// Everything before this is safe.
    #[must_use]
    pub fn durable(&self) -> Mark {
        self.durable
    }

    /// Bytes that the journal's segments occupy.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let (segments, bytes) = self.index.totals();
        bytes + (segments * HEADER_LEN) as u64
    }

    /// Writes batches from the front of `batches`, in few calls, and takes away those that were written.
    ///
    /// # Errors
    /// See [`AppendError`]; what is left in `batches` was not written and can be tried again unless poisoned.
    ///
    /// # Panics
    /// If the first batch does not stand where the journal ends: positions are given out in order, by one queue.
    pub fn append(&mut self, batches: &mut VecDeque<Batch>) -> Result<(), AppendError> {
        if let Some(poisoned) = &self.poisoned {
            return Err(poisoned.clone().into());
        }
        self.last_write = 0;
        let bytes = batches.iter().map(|batch| batch.bytes().len() as u64).sum();
        while let Some(first) = batches.front() {
            assert_eq!(first.start(), self.appended, "batches come in the order of their positions");
            if !self.has_room_for(first) {
                self.begin_segment(first.bytes().len() as u64)?;
            }
            let count = self.that_fit(batches);
            self.write(batches.iter().take(count))?;
            self.recent.keep(batches.drain(..count));
        }
        self.last_write = bytes;
        Ok(())
    }

    fn used(&self) -> u64 {
        self.index.last().map_or(0, |segment| segment.end.bytes_since(segment.start.position)) + HEADER_LEN as u64
    }

    fn has_room_for(&self, batch: &Batch) -> bool {
        let used = self.used();
        // An empty segment takes any batch: the next one would start, and be named, where it does.
        let empty = used == HEADER_LEN as u64;
        self.open && (empty || used + batch.bytes().len() as u64 <= self.limits.segment_size)
    }

    /// How many of the batches go into the segment at hand; the first always does.
    fn that_fit(&self, batches: &VecDeque<Batch>) -> usize {
        let mut used = self.used();
        let fits = batches.iter().take_while(|batch| {
            used += batch.bytes().len() as u64;
            used <= self.limits.segment_size
        });
        fits.count().max(1)
    }

    fn write<'a>(&mut self, batches: impl Iterator<Item = &'a Batch>) -> Result<(), AppendError> {
        let mut end = self.appended;
        let parts: Vec<IoSlice<'_>> = batches
            .map(|batch| {
                end = batch.end();
                IoSlice::new(batch.bytes())
            })
            .collect();
        let segment = self.index.last().expect("a segment was begun").start.position;
        let offset = HEADER_LEN as u64 + self.appended.position.bytes_since(segment);
        let written = self.storage.write_at(&segment::file_name(segment), offset, &parts);
        self.judge("write", written)?;
        self.appended = end;
        self.index.extend_last(end.position);
        Ok(())
    }

    /// Begins the next segment if the one at hand has less room than was written at once last, and no more than a
    /// sixteenth of it is left unused by that. To be called when everything is safe and nobody waits: a write that finds
    /// no room has to wait for three syncs, a twentieth of a second on a busy disk.
    ///
    /// # Errors
    /// [`Poisoned`]. Whatever else is in the way is found again, and told, by the write that needs the segment.
    pub fn begin_ahead(&mut self) -> Result<(), Poisoned> {
        let used = self.used();
        let room = self.limits.segment_size.saturating_sub(used);
        let is_short = room < self.last_write.min(self.limits.segment_size / 16) && used > HEADER_LEN as u64;
        if !(self.open && is_short && self.durable == self.appended) {
            return Ok(());
        }
        match self.begin_segment(0) {
            Err(AppendError::Poisoned(poisoned)) => Err(poisoned),
            Ok(()) | Err(AppendError::Full { .. } | AppendError::NoSpace(_)) => Ok(()),
        }
    }

    /// The spare that the next segment will need, once for each segment and when that is half full: if no other is at hand,
    /// and if the journal may have another segment. Whoever makes it says so to [`Writer::spare_came`].
    pub fn order_spare(&mut self) -> Option<NewSpare> {
        let (segment, used) = (self.index.last()?.start.position, self.used());
        let size = self.limits.segment_size;
        let is_allowed = self.bytes() + size.saturating_sub(used) + size <= self.limits.max_size;
        let is_due = self.open && used >= size / 2 && self.ordered_in != Some(segment);
        if !(is_due && is_allowed) {
            return None;
        }
        self.ordered_in = Some(segment);
        self.spares.order(&self.storage, size)
    }

    /// What became of the spare that was ordered.
    ///
    /// # Errors
    /// [`Poisoned`] if its name could not be synced.
    pub fn spare_came(&mut self, made: io::Result<bool>) -> Result<(), Poisoned> {
        self.spares.came(matches!(made, Ok(true)));
        made.map(|_| ()).map_err(|error| self.poison(SYNC, &error))
    }

    /// Seals the segment at hand and makes the next. Its space is set aside first, so that a full disk shows here, with
    /// one segment's worth still unused by what was taken in.
    fn begin_segment(&mut self, first_batch: u64) -> Result<(), AppendError> {
        self.commit()?;
        let reserve = self.limits.segment_size.max(HEADER_LEN as u64 + first_batch);
        let bytes = self.bytes();
        // A journal of one segment is never full: that one is not removed before there is another.
        if bytes + reserve > self.limits.max_size && self.index.second_start().is_some() {
            return Err(AppendError::Full { bytes, max_size: self.limits.max_size });
        }
        let last = self.index.last();
        assert!(
            last.is_none_or(|last| last.start.position < self.appended.position),
            "no two segments start at the same place"
        );
        let name = segment::file_name(self.appended.position);
        // A batch larger than a segment needs more than a spare has.
        let is_recycled = reserve == self.limits.segment_size && self.recycle(&name)?;
        if !is_recycled {
            // Beside what a larger batch needs, spares may be more than is allowed; what is left of them only costs space.
            let _ = self.give_back();
            let created = self.storage.create(&name, reserve);
            self.judge("create a segment", created)?;
            self.write_header(&name)?;
        }
        self.sync_directory()?;
        self.index.push(Segment { start: self.appended, end: self.appended.position });
        self.made_from.get_or_insert(self.appended.position);
        self.is_recycled = is_recycled;
        self.open = true;
        Ok(())
    }

    /// Makes the segment `name` of a spare; false if there is none. For the order of the steps see `spares`.
    fn recycle(&mut self, name: &str) -> Result<bool, AppendError> {
        let Some((spare, is_safe)) = self.spares.next().map(|(spare, is_safe)| (spare.to_owned(), is_safe)) else {
            return Ok(false);
        };
        if !is_safe {
            self.sync_directory()?;
        }
        self.write_header(&spare)?;
        match self.storage.rename(&spare, name) {
            // Somebody removed it by hand.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.spares.used();
                return self.recycle(name);
            }
            renamed => self.judge("name a segment", renamed)?,
        }
        self.spares.used();
        Ok(true)
    }

    fn write_header(&mut self, file: &str) -> Result<(), AppendError> {
        let header = Header { journal: self.journal.clone(), start: self.appended }.encode();
        let written = self.storage.write_at(file, 0, &[IoSlice::new(&header)]);
        self.judge("write a segment's header", written)?;
        Ok(self.sync_or_poison(|storage| storage.sync(file))?)
    }

    fn sync_directory(&mut self) -> Result<(), Poisoned> {
        self.sync_or_poison(|storage| storage.sync_directory())?;
        self.spares.synced();
        Ok(())
    }

    /// Makes everything appended safe and returns how far that is.
    ///
    /// # Errors
    /// [`Poisoned`] if the sync failed now or ever before.
    pub fn commit(&mut self) -> Result<Mark, Poisoned> {
        if let Some(poisoned) = &self.poisoned {
            return Err(poisoned.clone());
        }
        if self.durable < self.appended {
            let segment = self.index.last().expect("what was appended is in a segment").start.position;
            self.sync_or_poison(|storage| storage.sync(&segment::file_name(segment)))?;
            self.durable = self.appended;
        }
        Ok(self.durable)
    }

    /// Goes on at `to`, behind positions that will never be written: the next batch begins a segment there. A place that
    /// is not ahead changes nothing. Returns how far everything is safe.
    ///
    /// # Errors
    /// [`Poisoned`], as [`commit`](Writer::commit).
    pub fn skip_to(&mut self, to: Mark) -> Result<Mark, Poisoned> {
        self.commit()?;
        if to.position > self.appended.position {
            // Or its old bytes would pass for damage of what is not there. Where they stay, readers pass over them.
            let _ = self.end_last();
            self.appended = to;
            self.durable = to;
            self.open = false;
        }
        Ok(self.durable)
    }

    fn sync_or_poison(&mut self, sync: impl FnOnce(&dyn Storage) -> io::Result<()>) -> Result<(), Poisoned> {
        sync(&*self.storage).map_err(|error| self.poison(SYNC, &error))
    }

    fn judge(&mut self, action: &'static str, result: io::Result<()>) -> Result<(), AppendError> {
        match result {
            Ok(()) => Ok(()),
            Err(error) if is_shortage(&error) => {
                // Somebody needs what we keep, maybe we ourselves. If it cannot be had, the next tick tries again.
                let _ = self.give_back();
                Err(AppendError::NoSpace(error))
            }
            Err(error) => Err(self.poison(action, &error).into()),
        }
    }

    fn poison(&mut self, action: &'static str, cause: &io::Error) -> Poisoned {
        self.poisoned.insert(Poisoned { action, cause: cause.to_string() }).clone()
    }

    /// Removes segments that end at or below `floor`; the one that was written to last stays: a mirror may still want what is
    /// in it, and only a batch behind a gap could tell it of one. Returns how many went.
    ///
    /// # Errors
    /// What the storage says; nothing is lost by it, the rest is tried the next time.
    pub fn trim(&mut self, floor: Position) -> io::Result<usize> {
        let mut removed = 0;
        while let Some(next) = self.index.second_start() {
            let is_last_written = next.position == self.appended.position;
            if next.position > floor || is_last_written {
                break;
            }
            self.remove_oldest(next.position)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes the oldest segment whatever is in it; the one being written stays. Returns where the journal now begins.
    ///
    /// # Errors
    /// What the storage says.
    pub fn drop_oldest(&mut self) -> io::Result<Option<Mark>> {
        let Some(next) = self.index.second_start() else { return Ok(None) };
        self.remove_oldest(next.position)?;
        Ok(Some(next))
    }

    /// Removes the oldest segment, behind which the next one starts at `next`, or keeps its file as a spare.
    fn remove_oldest(&mut self, next: Position) -> io::Result<()> {
        let start = self.index.first().expect("there is a next one").start.position;
        let whole = self.made_from.is_some_and(|from| start >= from)
            && HEADER_LEN as u64 + next.bytes_since(start) <= self.limits.segment_size;
        if !(whole && self.spares.keep(&*self.storage, start)) {
            match self.storage.remove(&segment::file_name(start)) {
                // Somebody removed the file by hand: that is where we wanted to be.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.index.remove_first();
        Ok(())
    }

    /// Gives the space of removed segments back that was kept for the next ones.
    ///
    /// # Errors
    /// What the storage says; the rest is tried the next time.
    pub fn give_back(&mut self) -> io::Result<()> {
        self.spares.give_back(&*self.storage)
    }

    /// For an orderly end: gives all space back that holds nothing of the journal. The last segment's file then ends where
    /// the journal does.
    ///
    /// # Errors
    /// What the storage says; the next start finds the journal's end all the same.
    pub fn tidy(&mut self) -> io::Result<()> {
        if self.poisoned.is_none() && self.durable == self.appended {
            self.end_last()?;
        }
        self.give_back()
    }

    /// Has the last segment's file end where its batches do.
    fn end_last(&mut self) -> io::Result<()> {
        if let Some(last) = self.index.last().filter(|_| self.is_recycled) {
            let length = HEADER_LEN as u64 + last.end.bytes_since(last.start.position);
            self.storage.truncate(&segment::file_name(last.start.position), length)?;
            self.is_recycled = false;
        }
        Ok(())
    }
}
