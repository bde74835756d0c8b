//! Cursors: how far each output has delivered, remembered across restarts.
//!
//! A hint, never a truth: losing the file costs repeats, not messages. So it is overwritten in place, in two slots by
//! turns, and not synced except at the end: a torn slot leaves the other one, and space for it was set aside when the
//! journal was made.
//!
//! ```text
//! slot, 64 KiB, little endian: CRC-32C, u32 · length of the rest, u32 · sequence, u64 · incarnation, u64 ·
//!                              then for each output: name length, u8 · name · position, u64 · ordinal, u64
//! ```

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::storage::Storage;
use crate::proto::position::{Incarnation, Mark, Position};

const FILE: &str = "cursors";
const SLOT_BYTES: usize = 64 * 1024;
const SLOT_HEADER_LEN: usize = 24;

/// One output's place in the journal: everything before it was delivered.
#[derive(Clone, Debug)]
pub struct Cursor {
    mark: Arc<Mutex<Mark>>,
    /// Raised when it moves.
    moved: watch::Sender<()>,
}

impl Cursor {
    /// A cursor at `mark`, which raises `moved` when it moves.
    #[must_use]
    pub fn new(mark: Mark, moved: watch::Sender<()>) -> Cursor {
        Cursor { mark: Arc::new(Mutex::new(mark)), moved }
    }

    /// Everything before this was delivered.
    #[must_use]
    pub fn mark(&self) -> Mark {
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the cursor forward; a mark behind it changes nothing.
    pub fn advance(&self, to: Mark) {
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        if to > *mark {
            *mark = to;
            drop(mark);
            self.moved.send_replace(());
        }
    }
}

/// The delivered marks by output, as they stand in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    sequence: u64,
    /// Last saved mark of each output.
    pub marks: BTreeMap<String, Mark>,
}

/// Sets the file's space aside, once for the life of a journal.
///
/// # Errors
/// What the storage says.
pub fn create(storage: &dyn Storage) -> io::Result<()> {
    storage.create(FILE, 2 * SLOT_BYTES as u64)?;
    storage.write_at(FILE, 0, &[IoSlice::new(&[0; 2 * SLOT_BYTES])])?;
    storage.sync(FILE)
}

/// Reads the newest sound slot of this incarnation; nothing if there is none.
///
/// # Errors
/// What the storage says, except that there is no file.
pub fn load(storage: &dyn Storage, incarnation: Incarnation) -> io::Result<Saved> {
    let mut file = vec![0; 2 * SLOT_BYTES];
    let length = match storage.read_at(FILE, 0, &mut file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
        length => length?,
    };
    let slots = file[..length].chunks(SLOT_BYTES).filter_map(|slot| decode(slot, incarnation));
    Ok(slots.max_by_key(|saved| saved.sequence).unwrap_or_default())
}

/// Writes `marks` into the slot that does not hold `saved`, and then holds them in `saved`; an output beyond the slot's
/// space (about 800) is left out, which costs it repeats.
///
/// # Errors
/// What the storage says; the older slot still stands then.
pub fn save(
    storage: &dyn Storage,
    incarnation: Incarnation,
    saved: &mut Saved,
    marks: BTreeMap<String, Mark>,
) -> io::Result<()> {
    let next = Saved { sequence: saved.sequence + 1, marks };
    let offset = (next.sequence % 2) * SLOT_BYTES as u64;
    storage.write_at(FILE, offset, &[IoSlice::new(&encode(&next, incarnation))])?;
    // Only now: after a failure the same slot is tried again, because the other one is the only one that is sound.
    *saved = next;
    Ok(())
}

/// Makes the saved cursors safe against loss of power; for an orderly end.
///
/// # Errors
/// What the storage says.
pub fn sync(storage: &dyn Storage) -> io::Result<()> {
    storage.sync(FILE)
}

fn encode(saved: &Saved, incarnation: Incarnation) -> Vec<u8> {
    let mut slot = vec![0; 8];
    slot.extend_from_slice(&saved.sequence.to_le_bytes());
    slot.extend_from_slice(&incarnation.0.to_le_bytes());
    for (name, mark) in &saved.marks {
        let Ok(length) = u8::try_from(name.len()) else { continue };
        if slot.len() + name.len() + 17 > SLOT_BYTES {
            break;
        }
        slot.push(length);
        slot.extend_from_slice(name.as_bytes());
        slot.extend_from_slice(&mark.position.0.to_le_bytes());
        slot.extend_from_slice(&mark.ordinal.to_le_bytes());
    }
    let length = (slot.len() - 8) as u32;
    slot[4..8].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8], incarnation: Incarnation) -> Option<Saved> {
    let u32_at = |at: usize| slot.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")));
    let u64_of = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
    let slot_end = 8usize.checked_add(u32_at(4)? as usize)?;
    let slot = slot.get(..slot_end).filter(|slot| slot.len() >= SLOT_HEADER_LEN)?;
    if crc32c::crc32c(&slot[4..]) != u32_at(0)? || u64_of(&slot[16..24]) != incarnation.0 {
        return None;
    }
    let mut saved = Saved { sequence: u64_of(&slot[8..16]), marks: BTreeMap::new() };
    let mut rest = &slot[SLOT_HEADER_LEN..];
    while let Some((length, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(*length))?;
        let (mark, after) = after.split_at_checked(16)?;
        let mark = Mark { position: Position(u64_of(&mark[..8])), ordinal: u64_of(&mark[8..]) };
        saved.marks.insert(std::str::from_utf8(name).ok()?.to_owned(), mark);
        rest = after;
    }
    Some(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(sequence: u64) -> Saved {
        let mark = |n| Mark { position: Position(n), ordinal: n / 10 };
        Saved { sequence, marks: [("a".into(), mark(100 * sequence)), ("siem".into(), mark(7))].into() }
    }

    #[test]
    fn a_slot_comes_back_and_no_flipped_bit_passes() {
        let slot = encode(&saved(3), Incarnation(5));
        assert_eq!(decode(&slot, Incarnation(5)), Some(saved(3)));
        assert_eq!(decode(&slot, Incarnation(6)), None);
        for bit in 0..slot.len() * 8 {
            let mut slot = slot.clone();
            slot[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&slot, Incarnation(5)), None, "bit {bit}");
        }
        for length in 0..slot.len() {
            assert_eq!(decode(&slot[..length], Incarnation(5)), None, "cut at {length}");
        }
    }

    #[test]
    fn a_cursor_never_goes_back() {
        let moved = watch::Sender::default();
        let seen = moved.subscribe();
        let cursor = Cursor::new(Mark { position: Position(10), ordinal: 1 }, moved);
        cursor.advance(Mark { position: Position(5), ordinal: 0 });
        assert_eq!(cursor.mark().position, Position(10));
        assert!(!seen.has_changed().unwrap());
        cursor.advance(Mark { position: Position(11), ordinal: 2 });
        assert!(seen.has_changed().unwrap());
    }
}
