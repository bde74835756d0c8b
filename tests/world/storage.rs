//! A disk in memory that is as bad as a disk may be.
//!
//! What was written is visible at once and safe only after `sync`; names are safe only after `sync_directory`.
//! [`SimStorage::power_cut`] keeps any part of what was not safe, in any order and in pieces smaller than a page; the
//! length of a file may run ahead of its content. A failed sync leaves what it could not write visible and never writes
//! it again, as Linux does. Everything follows from the seed.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use twinlog::journal::storage::Storage;

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

/// How likely a call fails with EIO.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub list: f64,
    pub create: f64,
    pub write: f64,
    pub read: f64,
    pub sync: f64,
    pub remove: f64,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Clone, Debug, Default)]
struct File {
    synced: Vec<u8>,
    visible: Vec<u8>,
    pending: Vec<Change>,
    reserved: u64,
}

#[derive(Debug)]
enum Name {
    Created(String, u64),
    Removed(String),
    /// From one name to the other, in one step.
    Renamed(String, String, u64),
}

impl Name {
    fn all(&self) -> Vec<&String> {
        match self {
            Name::Created(name, _) | Name::Removed(name) => vec![name],
            Name::Renamed(from, to, _) => vec![from, to],
        }
    }
}

#[derive(Debug)]
struct Disk {
    rng: Rng,
    files: BTreeMap<u64, File>,
    next_file: u64,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    pending_names: Vec<Name>,
    capacity: u64,
    faults: Faults,
    calls: u64,
    renames: u64,
    /// The call with this number fails with this error; so do all after it if `fails_on`.
    fails_at: Option<(u64, i32)>,
    fails_on: bool,
}

#[derive(Debug)]
pub struct SimStorage {
    disk: Mutex<Disk>,
}

impl SimStorage {
    pub fn new(seed: u64) -> SimStorage {
        let disk = Disk {
            rng: Rng::with_seed(seed),
            files: BTreeMap::new(),
            next_file: 0,
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            pending_names: Vec::new(),
            capacity: u64::MAX,
            faults: Faults::default(),
            calls: 0,
            renames: 0,
            fails_at: None,
            fails_on: false,
        };
        SimStorage { disk: Mutex::new(disk) }
    }

    /// A disk on which these files are safe.
    pub fn with_files(files: &BTreeMap<String, Vec<u8>>) -> SimStorage {
        let storage = SimStorage::new(0);
        {
            let mut disk = storage.disk();
            for (name, bytes) in files {
                let id = disk.next_file;
                disk.next_file += 1;
                let file = File { synced: bytes.clone(), visible: bytes.clone(), ..File::default() };
                disk.files.insert(id, file);
                disk.names.insert(name.clone(), id);
            }
            disk.synced_names = disk.names.clone();
        }
        storage
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every file as it is seen now.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let disk = self.disk();
        disk.names.iter().map(|(name, id)| (name.clone(), disk.files[id].visible.clone())).collect()
    }

    /// Every file as a sync would leave it: without what an earlier, failed sync has given up.
    pub fn lasting_files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut disk = self.disk();
        let disk = &mut *disk;
        let mut lasting = |id: &u64| {
            let mut file = disk.files[id].clone();
            file.persist(&mut disk.rng, 1.0);
            file.synced
        };
        disk.names.iter().map(|(name, id)| (name.clone(), id)).map(|(name, id)| (name, lasting(id))).collect()
    }

    pub fn set_faults(&self, faults: Faults) {
        self.disk().faults = faults;
    }

    /// Bytes that fit on the disk.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk().capacity = bytes;
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.disk().calls
    }

    /// Files that got another name so far.
    pub fn renames(&self) -> u64 {
        self.disk().renames
    }

    /// Lets the call with this number (from now on, 0 is the next) fail with this error once.
    pub fn fail_call(&self, in_calls: u64, errno: i32) {
        let mut disk = self.disk();
        disk.fails_at = Some((disk.calls + in_calls, errno));
        disk.fails_on = false;
    }

    /// Lets every call from that number on fail: the machine dies there. `power_cut` or `heal` ends it.
    pub fn die_at_call(&self, in_calls: u64) {
        let mut disk = self.disk();
        disk.fails_at = Some((disk.calls + in_calls, EIO));
        disk.fails_on = true;
    }

    /// Whether the call has come at which the machine dies.
    pub fn has_died(&self) -> bool {
        let disk = self.disk();
        disk.fails_on && disk.fails_at.is_some_and(|(at, _)| disk.calls > at)
    }

    /// No more faults, and space enough.
    pub fn heal(&self) {
        let mut disk = self.disk();
        disk.faults = Faults::default();
        disk.fails_at = None;
        disk.fails_on = false;
        disk.capacity = u64::MAX;
    }

    /// The power goes and comes again: of what was not safe, any part is left.
    pub fn power_cut(&self) {
        let mut disk = self.disk();
        let disk = &mut *disk;
        disk.fails_at = None;
        disk.fails_on = false;
        let keep = [0.0, 0.1, 0.5, 0.9, 1.0][disk.rng.usize(..5)];
        for file in disk.files.values_mut() {
            let visible = file.visible.len();
            file.persist(&mut disk.rng, keep);
            if file.synced.len() < visible && disk.rng.u8(..4) == 0 {
                file.synced.resize(visible, 0);
            }
            file.visible = file.synced.clone();
        }
        let mut lost = Vec::new();
        for change in std::mem::take(&mut disk.pending_names) {
            // The changes of one name are lost from some point on; those of different names in any order.
            if change.all().iter().any(|name| lost.contains(*name)) || disk.rng.f64() >= keep {
                lost.extend(change.all().into_iter().cloned());
                continue;
            }
            match change {
                Name::Renamed(from, to, id) => {
                    disk.synced_names.remove(&from);
                    disk.synced_names.insert(to, id);
                }
                Name::Created(name, id) => drop(disk.synced_names.insert(name, id)),
                Name::Removed(name) => drop(disk.synced_names.remove(&name)),
            }
        }
        disk.names = disk.synced_names.clone();
        let named: Vec<u64> = disk.names.values().copied().collect();
        disk.files.retain(|id, _| named.contains(id));
    }
}

impl File {
    /// Makes a part of the pending changes safe and forgets the rest of them.
    fn persist(&mut self, rng: &mut Rng, keep: f64) {
        let mut pieces: Vec<(usize, Vec<u8>)> = Vec::new();
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Write { offset, bytes } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let length = rng.usize(1..=700).min(bytes.len() - at);
                        if rng.f64() < keep {
                            pieces.push((offset + at, bytes[at..at + length].to_vec()));
                        }
                        at += length;
                    }
                }
                // A file system's journal keeps the order of lengths, though not of contents.
                Change::Truncate(length) => {
                    self.place(&mut pieces, rng, keep);
                    if rng.f64() < keep {
                        self.synced.resize(length, 0);
                    }
                }
            }
        }
        self.place(&mut pieces, rng, keep);
    }

    fn place(&mut self, pieces: &mut Vec<(usize, Vec<u8>)>, rng: &mut Rng, keep: f64) {
        // Of two writes to one place the older may be what is left, but not after a sync.
        if keep < 1.0 {
            rng.shuffle(pieces);
        }
        for (offset, bytes) in pieces.drain(..) {
            overwrite(&mut self.synced, offset, &bytes);
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        overwrite(&mut self.visible, offset, bytes);
        self.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
    }
}

fn overwrite(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl Disk {
    fn used(&self) -> u64 {
        self.names.values().map(|id| self.files[id].reserved.max(self.files[id].visible.len() as u64)).sum()
    }

    /// Counts the call; an error if it is to fail.
    fn call(&mut self, likely: f64) -> io::Result<()> {
        let number = self.calls;
        self.calls += 1;
        if let Some((at, errno)) = self.fails_at
            && (number == at || (self.fails_on && number > at))
        {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if likely > 0.0 && self.rng.f64() < likely {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for SimStorage {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut disk = self.disk();
        let likely = disk.faults.list;
        disk.call(likely)?;
        Ok(disk.names.iter().map(|(name, id)| (name.clone(), disk.files[id].visible.len() as u64)).collect())
    }

    fn create(&self, name: &str, reserve: u64) -> io::Result<()> {
        let mut disk = self.disk();
        let likely = disk.faults.create;
        disk.call(likely)?;
        let id = match disk.id(name) {
            Ok(id) => {
                let file = disk.files.get_mut(&id).unwrap();
                file.visible.clear();
                file.reserved = 0;
                file.pending.push(Change::Truncate(0));
                id
            }
            Err(_) => {
                let id = disk.next_file;
                disk.next_file += 1;
                disk.files.insert(id, File::default());
                disk.names.insert(name.to_owned(), id);
                disk.pending_names.push(Name::Created(name.to_owned(), id));
                id
            }
        };
        if disk.used() + reserve > disk.capacity {
            disk.names.remove(name);
            disk.pending_names.push(Name::Removed(name.to_owned()));
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        disk.files.get_mut(&id).unwrap().reserved = reserve;
        Ok(())
    }

    fn write_at(&self, name: &str, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let mut disk = self.disk();
        let disk = &mut *disk;
        let likely = disk.faults.write;
        let failed = disk.call(likely);
        let id = disk.id(name)?;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let offset = offset as usize;
        if let Err(error) = failed {
            bytes.truncate(disk.rng.usize(..=bytes.len()));
            disk.files.get_mut(&id).unwrap().write(offset, &bytes);
            return Err(error);
        }
        let used = disk.used();
        let file = disk.files.get_mut(&id).unwrap();
        let has = file.reserved.max(file.visible.len() as u64);
        let fits = (has + disk.capacity.saturating_sub(used)).saturating_sub(offset as u64);
        if (bytes.len() as u64) > fits {
            bytes.truncate(fits as usize);
            file.write(offset, &bytes);
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        file.write(offset, &bytes);
        Ok(())
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk();
        let likely = disk.faults.read;
        disk.call(likely)?;
        let id = disk.id(name)?;
        let content = &disk.files[&id].visible;
        let content = content.get(offset as usize..).unwrap_or_default();
        let length = content.len().min(buffer.len());
        buffer[..length].copy_from_slice(&content[..length]);
        Ok(length)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let disk = &mut *disk;
        let likely = disk.faults.sync;
        let failed = disk.call(likely);
        let id = disk.id(name)?;
        let keep = if failed.is_ok() { 1.0 } else { disk.rng.f64() };
        disk.files.get_mut(&id).unwrap().persist(&mut disk.rng, keep);
        failed
    }

    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        let mut disk = self.disk();
        let likely = disk.faults.write;
        disk.call(likely)?;
        let id = disk.id(name)?;
        let file = disk.files.get_mut(&id).unwrap();
        file.visible.resize(length as usize, 0);
        file.pending.push(Change::Truncate(length as usize));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let likely = disk.faults.remove;
        disk.call(likely)?;
        disk.id(name)?;
        disk.names.remove(name);
        disk.pending_names.push(Name::Removed(name.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let likely = disk.faults.create;
        disk.call(likely)?;
        let id = disk.id(from)?;
        disk.renames += 1;
        disk.names.remove(from);
        disk.names.insert(to.to_owned(), id);
        disk.pending_names.push(Name::Renamed(from.to_owned(), to.to_owned(), id));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = self.disk();
        let likely = disk.faults.sync;
        disk.call(likely)?;
        disk.synced_names = disk.names.clone();
        disk.pending_names.clear();
        Ok(())
    }
}
