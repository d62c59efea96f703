//! The lab's disk: in memory, with the faults a real one has.
//!
//! It keeps two contents of each file, what programs see and what would survive a loss of power, and knows
//! sector by sector which was written since the last sync. What always holds: the same calls with the same
//! plan and seeds give the same bytes. Clones share the disk, like two processes on one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::Disk;

const SECTOR_BYTES: usize = 512;

/// What goes wrong at a chosen operation. Operations are the calls that change something, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power goes while the operation is under way: it and all later calls fail until [`MemDisk::restart`].
    PowerLoss,
    /// The operation fails and changes nothing.
    Fail(ErrorKind),
    /// Only the first `bytes` of a write arrive, and it fails.
    ShortWrite {
        /// How many bytes arrive.
        bytes: usize,
    },
    /// A sync fails, and the system drops what was not on disk yet while it still shows it to readers.
    FailedSync,
}

/// What a loss of power leaves of writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// Everything, as if only the process had died after its writes.
    Everything,
    /// Each file's length, each sector and each new or removed name at random from this seed: prefixes,
    /// holes and reordered writes.
    Some(u64),
}

/// A disk in memory.
#[derive(Debug, Clone)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
    /// A handle from before a restart is of no use, like a process from before a loss of power.
    boot: u64,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, MemFile>,
    next_file: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    capacity_bytes: Option<u64>,
    boot: u64,
    powered: bool,
}

#[derive(Debug, Default)]
struct MemFile {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that differ and would be written by the next sync.
    dirty: BTreeSet<usize>,
}

impl Default for MemDisk {
    fn default() -> Self {
        MemDisk::new()
    }
}

impl MemDisk {
    /// An empty disk without faults.
    pub fn new() -> MemDisk {
        let state = State { powered: true, ..State::default() };
        MemDisk { state: Arc::new(Mutex::new(state)), boot: 0 }
    }

    /// How many operations that change something there were.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Plans a fault at an operation; see [`MemDisk::operations`] for those that have passed.
    pub fn plan(&self, operation: u64, fault: Fault) {
        self.state().faults.insert(operation, fault);
    }

    /// Sets how many bytes the files may take together; `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// The power goes, now if it has not yet, and comes back. Only the handle returned works afterwards.
    #[must_use]
    pub fn restart(&self, keep: Keep) -> MemDisk {
        let mut state = self.state();
        state.lose_power(keep);
        state.faults.clear();
        state.powered = true;
        state.boot += 1;
        MemDisk { state: self.state.clone(), boot: state.boot }
    }

    /// Flips bits of one byte, on disk and in view; false if the file has no such byte.
    pub fn corrupt(&self, name: &str, offset: u64, flip: u8) -> bool {
        let mut state = self.state();
        let Some(file) = state.names.get(name).copied() else { return false };
        let Some(file) = state.files.get_mut(&file) else { return false };
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut hit = false;
        for content in [&mut file.seen, &mut file.durable] {
            if let Some(byte) = content.get_mut(at) {
                *byte ^= flip;
                hit = true;
            }
        }
        hit
    }

    /// A copy with the same content, all of it durable, and without faults.
    #[must_use]
    pub fn copy(&self) -> MemDisk {
        let copy = MemDisk::new();
        let state = self.state();
        let mut new = copy.state();
        for (name, file) in &state.names {
            let seen = state.files.get(file).map(|file| file.seen.clone()).unwrap_or_default();
            let file = new.create(name);
            new.durable_names.insert(name.clone(), file);
            new.files.insert(file, MemFile { durable: seen.clone(), seen, dirty: BTreeSet::new() });
        }
        drop(new);
        copy
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn powered(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.powered && state.boot == self.boot { Ok(state) } else { Err(no_power()) }
    }

    /// One operation that changes something: `act` gets the fault planned for it, if it is one to act on.
    fn change<T>(&self, act: impl FnOnce(&mut State, Option<Fault>) -> Result<T>) -> Result<T> {
        let mut state = self.powered()?;
        let operation = state.operations;
        state.operations += 1;
        match state.faults.remove(&operation) {
            Some(Fault::Fail(kind)) => Err(kind.into()),
            Some(Fault::PowerLoss) => {
                let _ = act(&mut state, Some(Fault::PowerLoss));
                state.powered = false;
                Err(no_power())
            }
            fault => act(&mut state, fault),
        }
    }
}

fn no_power() -> Error {
    Error::other("the power is off")
}

fn not_found() -> Error {
    ErrorKind::NotFound.into()
}

impl State {
    fn file(&self, name: &str) -> Result<&MemFile> {
        self.names.get(name).and_then(|file| self.files.get(file)).ok_or_else(not_found)
    }

    fn file_mut(&mut self, name: &str) -> Result<&mut MemFile> {
        self.names.get(name).and_then(|file| self.files.get_mut(file)).ok_or_else(not_found)
    }

    fn create(&mut self, name: &str) -> u64 {
        let file = self.next_file;
        self.next_file += 1;
        self.files.insert(file, MemFile::default());
        self.names.insert(name.to_owned(), file);
        file
    }

    /// How many of `wanted` more bytes there is room for.
    fn room(&self, wanted: usize) -> usize {
        let Some(capacity) = self.capacity_bytes else { return wanted };
        let used: usize =
            self.names.values().filter_map(|file| self.files.get(file)).map(|f| f.seen.len()).sum();
        usize::try_from(capacity).unwrap_or(usize::MAX).saturating_sub(used).min(wanted)
    }

    fn append(&mut self, name: &str, bytes: &[u8], fault: Option<Fault>) -> Result<()> {
        if !self.names.contains_key(name) {
            self.create(name);
        }
        let (arrives, error) = match fault {
            Some(Fault::ShortWrite { bytes: short }) => (short.min(bytes.len()), ErrorKind::WriteZero),
            _ => (self.room(bytes.len()), ErrorKind::StorageFull),
        };
        let file = self.file_mut(name)?;
        let offset = file.seen.len();
        file.write(offset, &bytes[..arrives]);
        if arrives < bytes.len() { Err(error.into()) } else { Ok(()) }
    }

    /// Names as seen are durable now; files without a name are gone.
    fn settle_names(&mut self) {
        self.durable_names = self.names.clone();
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
    }

    fn lose_power(&mut self, keep: Keep) {
        if keep != Keep::Everything {
            let mut random = SplitMix(if let Keep::Some(seed) = keep { seed } else { 0 });
            let random = matches!(keep, Keep::Some(_)).then_some(&mut random);
            self.lose_unsynced(random);
        }
        self.settle_names();
        for file in self.files.values_mut() {
            file.durable.clone_from(&file.seen);
            file.dirty.clear();
        }
    }

    fn lose_unsynced(&mut self, mut random: Option<&mut SplitMix>) {
        let all: BTreeSet<String> = self.names.keys().chain(self.durable_names.keys()).cloned().collect();
        for name in all {
            let (seen, durable) = (self.names.get(&name), self.durable_names.get(&name));
            let keeps_new = random.as_mut().is_some_and(|random| random.below(2) == 0);
            let kept = if keeps_new { seen } else { durable };
            match kept.copied() {
                Some(file) => self.names.insert(name, file),
                None => self.names.remove(&name),
            };
        }
        for file in self.files.values_mut() {
            file.lose_unsynced(random.as_deref_mut());
        }
    }
}

impl MemFile {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.seen.resize(self.seen.len().max(end), 0);
        self.seen[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES);
        }
    }

    fn truncate(&mut self, bytes: usize) {
        self.seen.truncate(bytes);
        self.dirty.retain(|sector| sector * SECTOR_BYTES < bytes);
    }

    fn sync(&mut self) {
        self.durable.resize(self.seen.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let (from, to) = sector_range(sector, self.seen.len());
            self.durable[from..to].copy_from_slice(&self.seen[from..to]);
        }
    }

    /// Leaves in view what is on disk, and with `random` some of what was under way.
    fn lose_unsynced(&mut self, random: Option<&mut SplitMix>) {
        let seen = std::mem::replace(&mut self.seen, self.durable.clone());
        let dirty = std::mem::take(&mut self.dirty);
        let Some(random) = random else { return };
        let length = random.between(self.durable.len(), seen.len());
        self.seen.resize(length, 0);
        for sector in dirty {
            let (from, to) = sector_range(sector, length.min(seen.len()));
            if from < to && random.below(2) == 0 {
                self.seen[from..to].copy_from_slice(&seen[from..to]);
            }
        }
    }
}

fn sector_range(sector: usize, limit: usize) -> (usize, usize) {
    (limit.min(sector * SECTOR_BYTES), limit.min((sector + 1) * SECTOR_BYTES))
}

/// Steele and others' `SplitMix64`: enough to choose faults, and the same everywhere.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One of both ends, or a length between them.
    fn between(&mut self, a: usize, b: usize) -> usize {
        let (low, high) = (a.min(b), a.max(b));
        match self.below(4) {
            0 => a,
            1 => b,
            _ => low + usize::try_from(self.below((high - low + 1) as u64)).unwrap_or(0),
        }
    }
}

impl Disk for MemDisk {
    fn list(&self) -> Result<Vec<String>> {
        Ok(self.powered()?.names.keys().cloned().collect())
    }

    fn size(&self, name: &str) -> Result<u64> {
        Ok(self.powered()?.file(name)?.seen.len() as u64)
    }

    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<usize> {
        let state = self.powered()?;
        let seen = &state.file(name)?.seen;
        let left = &seen[usize::try_from(offset).unwrap_or(usize::MAX).min(seen.len())..];
        let count = left.len().min(into.len());
        into[..count].copy_from_slice(&left[..count]);
        Ok(count)
    }

    fn append(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.change(|state, fault| state.append(name, bytes, fault))
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.change(|state, fault| {
            let file = state.file_mut(name)?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            if offset.saturating_add(bytes.len()) > file.seen.len() {
                return Err(Error::new(ErrorKind::InvalidInput, "would write past the end"));
            }
            let arrives = match fault {
                Some(Fault::ShortWrite { bytes: short }) => short.min(bytes.len()),
                _ => bytes.len(),
            };
            file.write(offset, &bytes[..arrives]);
            if arrives < bytes.len() { Err(ErrorKind::WriteZero.into()) } else { Ok(()) }
        })
    }

    fn truncate(&self, name: &str, bytes: u64) -> Result<()> {
        self.change(|state, _| {
            let file = state.file_mut(name)?;
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            if bytes > file.seen.len() {
                return Err(Error::new(ErrorKind::InvalidInput, "would make the file longer"));
            }
            file.truncate(bytes);
            Ok(())
        })
    }

    fn sync(&self, name: &str) -> Result<()> {
        self.change(|state, fault| {
            let file = state.file_mut(name)?;
            match fault {
                // Some of it may be on disk, which `restart` decides.
                Some(Fault::PowerLoss) => Ok(()),
                Some(Fault::FailedSync) => {
                    file.dirty.clear();
                    Err(Error::other("the disk failed"))
                }
                _ => {
                    file.sync();
                    Ok(())
                }
            }
        })
    }

    fn sync_dir(&self) -> Result<()> {
        self.change(|state, fault| match fault {
            Some(Fault::PowerLoss) => Ok(()),
            Some(Fault::FailedSync) => Err(Error::other("the disk failed")),
            _ => {
                state.settle_names();
                Ok(())
            }
        })
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.change(|state, fault| {
            if state.room(bytes.len()) < bytes.len() {
                return Err(ErrorKind::StorageFull.into());
            }
            if let Some(Fault::ShortWrite { .. } | Fault::FailedSync) = fault {
                return Err(Error::other("the disk failed"));
            }
            let file = state.create(name);
            let content = MemFile { seen: bytes.to_vec(), durable: bytes.to_vec(), dirty: BTreeSet::new() };
            state.files.insert(file, content);
            if fault.is_none() {
                state.settle_names();
            }
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.change(|state, _| state.names.remove(name).map(|_| ()).ok_or_else(not_found))
    }
}
