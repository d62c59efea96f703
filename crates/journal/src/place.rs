//! Finding one's way in the files: which segments there are, places between frames, and a window on a file.
//!
//! What always holds: a place that is remembered is between two frames for ever. Not here: what frames say.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::disk::Disk;
use crate::error::{IoContext, Result};
use crate::frame::Side;
use crate::record::Head;

const WINDOW_BYTES: usize = 256 << 10;
const MARK_EVERY_BYTES: u64 = 1 << 20;

/// The first records of all segments, sorted.
pub(crate) fn segments<D: Disk>(disk: &D, side: Side) -> Result<Vec<u64>> {
    let names = disk.list().doing("list", "the journal's directory")?;
    let seqs = names.iter().filter_map(|name| {
        let seq = name.strip_suffix(side.extension())?.strip_suffix('.')?;
        if seq.len() == 20 { seq.parse().ok() } else { None }
    });
    Ok(seqs.collect())
}

/// A place between two frames from which reading can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// First record of the segment.
    pub(crate) segment: u64,
    pub(crate) public_offset: u64,
    pub(crate) private_offset: u64,
    /// The record before this place.
    pub(crate) head: Head,
}

/// Places learned while reading, a megabyte apart, so that a later read need not walk a whole segment.
///
/// A place is kept once the frame after it is complete: then the frame before it was synced and stays.
#[derive(Debug, Default)]
pub(crate) struct Marks(Mutex<BTreeMap<u64, Place>>);

impl Marks {
    pub(crate) fn keep(&self, place: Place) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let near = marks.range(..=place.head.seq).next_back().is_some_and(|(_, before)| {
            before.segment == place.segment
                && place.public_offset - before.public_offset < MARK_EVERY_BYTES
                && place.private_offset - before.private_offset < MARK_EVERY_BYTES
        });
        if !near {
            marks.insert(place.head.seq, place);
        }
    }

    pub(crate) fn before(&self, seq: u64, segment: u64) -> Option<Place> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, place) = marks.range(..seq).next_back()?;
        (place.segment == segment).then_some(*place)
    }
}

/// A sliding view of one file.
pub(crate) struct Window<'a, D> {
    pub(crate) disk: &'a D,
    pub(crate) name: String,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a, D: Disk> Window<'a, D> {
    pub(crate) fn new(disk: &'a D, name: String) -> Self {
        Window { disk, name, start: 0, bytes: Vec::new() }
    }

    /// `count` bytes at `offset`, fewer if the file ends before.
    pub(crate) fn get(&mut self, offset: u64, count: usize) -> Result<&[u8]> {
        let inside = offset >= self.start && offset + count as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            self.load(offset, count)?;
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        let to = self.bytes.len().min(from + count);
        Ok(&self.bytes[from..to])
    }

    fn load(&mut self, offset: u64, count: usize) -> Result<()> {
        let left = self.disk.size(&self.name).doing("read", &self.name)?.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(count.max(WINDOW_BYTES));
        self.bytes.clear();
        self.bytes.resize(count, 0);
        self.start = offset;
        let read = self.disk.read_at(&self.name, offset, &mut self.bytes).doing("read", &self.name)?;
        self.bytes.truncate(read);
        Ok(())
    }

    pub(crate) fn reload(&mut self) {
        self.bytes.clear();
    }
}
