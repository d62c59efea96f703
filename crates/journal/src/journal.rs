//! The one writer: opening with recovery, durable appends, erasure.
//!
//! What always holds: a head that [`Journal::append`] returned is on disk, with its private parts; after a
//! failed write or sync nothing more is written by this journal; opening changes nothing but the torn
//! end of the last segment. Not here: what entries mean.

use crate::disk::Disk;
use crate::error::{Error, IoContext, Result, damaged};
use crate::frame::{
    self, Batch, FrameHeader, HEADER_BYTES, MAX_FRAME_BYTES, SegmentHeader, Side, is_torn_frame,
};
use crate::hash::Hash;
use crate::place::{Marks, Place, segments};
use crate::reader::{ERASING_FILE, Records, Scope, TornTail, erasing_bytes, read_erasing};
use crate::record::{Entry, Head, MAX_BATCH_BYTES, PrivatePart, Record};
use crate::snapshot::{self, LatestSnapshot};

/// How to open a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A segment ends before the batch that would make one of its files longer than this, in bytes.
    pub segment_bytes: u64,
    /// Check the chain only from the newest snapshot on, not from record 1: a quick start for long journals.
    /// Older damage is then found by [`crate::verify`] or when it is read.
    pub check_from_snapshot: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { segment_bytes: 64 << 20, check_from_snapshot: false }
    }
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The last record.
    pub head: Head,
    /// Ends of files that an interrupted, never acknowledged write left; they were cut.
    pub torn: Vec<TornTail>,
    /// The record whose erasure had been interrupted; it is finished now.
    pub erased_seq: Option<u64>,
}

/// A journal open for writing.
#[derive(Debug)]
pub struct Journal<D> {
    disk: D,
    options: Options,
    /// Where the next batch goes.
    place: Place,
    marks: Marks,
    stopped: bool,
}

impl<D: Disk> Journal<D> {
    /// Opens the journal on `disk`, or begins one if there is none. Whole frames found are durable afterwards.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::BehindSnapshot`]: nothing was changed; `src/frame.rs` says what counts
    /// as torn and what as damaged.
    pub fn open(disk: D, options: Options) -> Result<(Journal<D>, Recovery)> {
        let newest = if options.check_from_snapshot { snapshot::newest_at(&disk)? } else { None };
        Self::open_from(disk, options, newest.map_or(1, |at| at.seq), drop)
    }

    /// As [`Journal::open`], and shows every record after `after_seq` to `visit` while it checks them, so that a
    /// start reads the files once. `after_seq` is the place of the snapshot that [`crate::latest_snapshot`] gave, or 0;
    /// with [`Options::check_from_snapshot`] that is where the check begins.
    ///
    /// # Errors
    /// Those of [`Journal::open`]; what was visited before then is of no use.
    pub fn open_with(
        disk: D,
        options: Options,
        after_seq: u64,
        mut visit: impl FnMut(Record),
    ) -> Result<(Journal<D>, Recovery)> {
        let from = if options.check_from_snapshot { after_seq } else { 1 };
        Self::open_from(disk, options, from, |record| {
            if record.seq > after_seq {
                visit(record);
            }
        })
    }

    fn open_from(
        disk: D,
        options: Options,
        from: u64,
        visit: impl FnMut(Record),
    ) -> Result<(Journal<D>, Recovery)> {
        let marks = Marks::default();
        let found = find_end(&disk, &marks, from, visit)?;
        let mut journal = Journal { disk, options, place: found.place, marks, stopped: false };
        let erased_seq = journal.interrupted_erasure()?;
        journal.cut(&found.torn)?;
        journal.remove_strays(&found.strays)?;
        journal.make_durable(found.last_frame)?;
        if let Some(seq) = erased_seq {
            journal.finish_erasing(seq)?;
        }
        let recovery = Recovery { head: journal.head(), torn: found.torn, erased_seq };
        Ok((journal, recovery))
    }

    /// The last record; durable.
    pub fn head(&self) -> Head {
        self.place.head
    }

    /// The disk it is on, for readers and snapshots.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Appends a batch and returns when all of it is durable; all of it is kept or nothing.
    ///
    /// # Errors
    /// [`Error::EntryRefused`]: nothing happened and the journal goes on. Any other: the journal has stopped for
    /// ever; end the process and open again. It is then on disk or not, never in part.
    pub fn append(&mut self, entries: &[Entry]) -> Result<Head> {
        self.append_hashed(entries)?;
        Ok(self.head())
    }

    /// As [`Journal::append`], for a writer that publishes what it wrote: gives the hash of each new record.
    ///
    /// # Errors
    /// Those of [`Journal::append`].
    pub fn append_hashed(&mut self, entries: &[Entry]) -> Result<Vec<Hash>> {
        self.check_usable()?;
        check_batch(entries)?;
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let batch = Batch::encode(entries, self.head());
        self.stopping_on_error(|journal| journal.write(&batch))?;
        Ok(batch.hashes)
    }

    /// The records from `seq` on, streamed.
    pub fn read_from(&self, seq: u64) -> Result<Records<'_, D>> {
        Records::new(&self.disk, &self.marks, Scope::Full, seq)
    }

    /// Overwrites a record's private part with zeros, durably; the chain still verifies. False if it was
    /// erased before.
    ///
    /// The file system or the disk may keep old copies of overwritten blocks, and snapshots may hold what was
    /// folded from it: write a new one twice to be rid of both kept.
    pub fn erase_private(&mut self, seq: u64) -> Result<bool> {
        self.check_usable()?;
        let Some(record) = self.get(seq)? else {
            return Err(Error::NoSuchRecord { seq, head_seq: self.head().seq });
        };
        match record.private {
            PrivatePart::None => Err(Error::NoPrivatePart { seq }),
            PrivatePart::Erased { .. } => Ok(false),
            PrivatePart::Present(_) | PrivatePart::Withheld { .. } => {
                let record = Head { seq, hash: record.hash };
                self.stopping_on_error(|journal| journal.erase(record))?;
                Ok(true)
            }
        }
    }

    /// Writes a snapshot of the state after record `at`; see [`crate::write_snapshot`].
    pub fn write_snapshot(&self, at: Head, body: &[u8]) -> Result<()> {
        snapshot::write_snapshot(&self.disk, at, body)
    }

    /// The newest snapshot that is whole and of this chain, and the newer ones that are not.
    pub fn latest_snapshot(&self) -> Result<LatestSnapshot> {
        snapshot::latest_snapshot(&self.disk)
    }

    /// One record, if there is one of this number.
    pub fn get(&self, seq: u64) -> Result<Option<Record>> {
        self.read_from(seq)?.only(seq)
    }

    /// The hash of record `seq`; [`Hash::GENESIS`] for 0, `None` past the head.
    pub fn hash_at(&self, seq: u64) -> Result<Option<Hash>> {
        self.read_from(seq)?.hash_of(seq)
    }

    fn check_usable(&self) -> Result<()> {
        if self.stopped { Err(Error::Stopped) } else { Ok(()) }
    }

    fn stopping_on_error(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let done = act(self);
        self.stopped = done.is_err();
        done
    }

    fn write(&mut self, batch: &Batch) -> Result<()> {
        if self.is_full_for(batch) {
            self.begin_segment()?;
        }
        // The private frame first: whoever sees the public one can rely on it.
        if !batch.private.is_empty() {
            self.write_durably(Side::Private, &batch.private)?;
        }
        self.write_durably(Side::Public, &batch.public)?;
        self.place.public_offset += batch.public.len() as u64;
        self.place.private_offset += batch.private.len() as u64;
        self.place.head = batch.head;
        Ok(())
    }

    fn is_full_for(&self, batch: &Batch) -> bool {
        let public_bytes = self.place.public_offset + batch.public.len() as u64;
        let private_bytes = self.place.private_offset + batch.private.len() as u64;
        let begun = self.place.public_offset > HEADER_BYTES as u64;
        begun && public_bytes.max(private_bytes) > self.options.segment_bytes
    }

    fn write_durably(&self, side: Side, bytes: &[u8]) -> Result<()> {
        let name = side.file(self.place.segment);
        self.disk.append(&name, bytes).doing("write", &name)?;
        self.disk.sync(&name).doing("sync", &name)
    }

    fn begin_segment(&mut self) -> Result<()> {
        let head = self.place.head;
        let header = SegmentHeader { first_seq: head.seq + 1, prev: head.hash };
        for side in [Side::Private, Side::Public] {
            let name = side.file(header.first_seq);
            self.disk.replace(&name, &header.encode(side)).doing("write", &name)?;
        }
        let offset = HEADER_BYTES as u64;
        self.place = Place { segment: header.first_seq, public_offset: offset, private_offset: offset, head };
        Ok(())
    }

    fn cut(&mut self, torn: &[TornTail]) -> Result<()> {
        for TornTail { file, offset, .. } in torn {
            self.disk.truncate(file, *offset).doing("cut", file)?;
        }
        Ok(())
    }

    /// A segment begun in vain goes, or it would stand for a lost one as soon as the next record is elsewhere.
    fn remove_strays(&self, strays: &[String]) -> Result<()> {
        strays.iter().try_for_each(|name| self.disk.remove(name).doing("remove", name))
    }

    /// Makes what was found durable. The last frame may be in the system's cache only, even marked as
    /// written after a sync that failed in the process before: writing it again puts it back in line.
    fn make_durable(&mut self, last_frame: Option<Place>) -> Result<()> {
        if self.place.public_offset == 0 {
            return self.begin_segment();
        }
        if let Some(from) = last_frame.filter(|from| from.segment == self.place.segment) {
            self.write_again(Side::Private, from.private_offset, self.place.private_offset)?;
            self.write_again(Side::Public, from.public_offset, self.place.public_offset)?;
        }
        for side in [Side::Private, Side::Public] {
            let name = side.file(self.place.segment);
            self.disk.sync(&name).doing("sync", &name)?;
        }
        self.disk.sync_dir().doing("sync", "the journal's directory")
    }

    fn write_again(&self, side: Side, from: u64, to: u64) -> Result<()> {
        let name = side.file(self.place.segment);
        let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(usize::MAX)];
        let read = self.disk.read_at(&name, from, &mut bytes).doing("read", &name)?;
        self.disk.write_at(&name, from, &bytes[..read]).doing("write", &name)
    }

    fn erase(&mut self, record: Head) -> Result<()> {
        let intent = erasing_bytes(record);
        self.disk.replace(ERASING_FILE, &intent).doing("write", ERASING_FILE)?;
        self.finish_erasing(record.seq)
    }

    fn interrupted_erasure(&self) -> Result<Option<u64>> {
        let Some(Head { seq, hash }) = read_erasing(&self.disk)? else { return Ok(None) };
        if seq == 0 || self.hash_at(seq)? != Some(hash) {
            return Err(damaged(ERASING_FILE, 0, seq, "it names a record of another journal"));
        }
        Ok(Some(seq))
    }

    fn finish_erasing(&self, seq: u64) -> Result<()> {
        self.overwrite_private(seq)?;
        self.disk.remove(ERASING_FILE).doing("remove", ERASING_FILE)?;
        self.disk.sync_dir().doing("sync", "the journal's directory")
    }

    fn overwrite_private(&self, seq: u64) -> Result<()> {
        let (place, nth) = self.find_private(seq)?;
        let name = Side::Private.file(place.segment);
        let bytes = read_frame(&self.disk, &name, place.private_offset)?;
        let part = FrameHeader::parse(&bytes, Side::Private).and_then(|header| {
            let payload = header.payload(&bytes, Side::Private)?;
            Some(frame::parse_privates(&header, payload)?.get(nth)?.place.clone())
        });
        let Some(part) = part else {
            return Err(damaged(&name, place.private_offset, seq, "the private frame is broken"));
        };
        let offset = place.private_offset + (HEADER_BYTES + part.start) as u64;
        self.disk.write_at(&name, offset, &frame::erased_entry(part.len())).doing("write", &name)?;
        self.disk.sync(&name).doing("sync", &name)
    }

    /// The frame that holds record `seq`, and which of its private parts is that record's.
    fn find_private(&self, seq: u64) -> Result<(Place, usize)> {
        let mut records = self.read_from(seq)?;
        let found = records.next().transpose()?.and(records.last_frame());
        let Some(place) = found else { return Err(Error::NoSuchRecord { seq, head_seq: self.head().seq }) };
        let mut nth = 0;
        for record in self.read_from(place.head.seq + 1)? {
            let record = record?;
            if record.seq == seq {
                break;
            }
            nth += usize::from(record.private != PrivatePart::None);
        }
        Ok((place, nth))
    }
}

fn check_batch(entries: &[Entry]) -> Result<()> {
    let (mut public, mut private) = (0, 0);
    for (position, entry) in entries.iter().enumerate() {
        let refuse = |reason| Error::EntryRefused { position, reason };
        let (public_bytes, private_bytes) = frame::check_entry(entry).map_err(refuse)?;
        public += public_bytes;
        private += private_bytes;
        if public.max(private) > MAX_BATCH_BYTES {
            return Err(refuse("the batch is longer than 64 MiB here; append in smaller batches"));
        }
    }
    Ok(())
}

fn read_frame<D: Disk>(disk: &D, name: &str, offset: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES];
    disk.read_at(name, offset, &mut bytes).doing("read", name)?;
    let count = FrameHeader::parse(&bytes, Side::Private).map_or(HEADER_BYTES, |header| header.frame_bytes());
    bytes.resize(count, 0);
    disk.read_at(name, offset, &mut bytes).doing("read", name)?;
    Ok(bytes)
}

/// Where a journal ends, and what hangs on after that.
struct End {
    place: Place,
    last_frame: Option<Place>,
    torn: Vec<TornTail>,
    /// Private files of a segment whose creation was interrupted.
    strays: Vec<String>,
}

fn find_end<D: Disk>(disk: &D, marks: &Marks, from: u64, visit: impl FnMut(Record)) -> Result<End> {
    let mut records = Records::new(disk, marks, Scope::Full, from)?;
    let head = records.run(visit)?;
    snapshot::check_head(disk, head)?;
    let place = records.place();
    let mut torn: Vec<TornTail> = records.torn().cloned().into_iter().collect();
    let strays = find_strays(disk, place)?;
    torn.extend(private_tail(disk, place)?);
    Ok(End { place, last_frame: records.last_frame(), torn, strays })
}

/// What the last private file has after its last needed frame: one frame at most, whole or torn, of a batch
/// whose public frame was never finished.
fn private_tail<D: Disk>(disk: &D, place: Place) -> Result<Option<TornTail>> {
    if place.public_offset == 0 {
        return Ok(None);
    }
    let name = Side::Private.file(place.segment);
    let offset = place.private_offset;
    let bytes = disk.size(&name).doing("read", &name)?.saturating_sub(offset);
    let limit = bytes.min(MAX_FRAME_BYTES + 1);
    let mut tail = vec![0; usize::try_from(limit).unwrap_or(usize::MAX)];
    disk.read_at(&name, offset, &mut tail).doing("read", &name)?;
    let whole = FrameHeader::parse(&tail, Side::Private).is_some_and(|h| h.frame_bytes() == tail.len());
    if tail.is_empty() {
        Ok(None)
    } else if whole || is_torn_frame(&tail, offset, Side::Private) {
        Ok(Some(TornTail { file: name, offset, bytes }))
    } else {
        Err(damaged(&name, offset, place.head.seq + 1, "it goes on after the last public record"))
    }
}

/// A private file without its public one may only be that of a segment whose creation was interrupted.
fn find_strays<D: Disk>(disk: &D, place: Place) -> Result<Vec<String>> {
    let public = segments(disk, Side::Public)?;
    let mut strays = Vec::new();
    for first in segments(disk, Side::Private)?.into_iter().filter(|first| !public.contains(first)) {
        let name = Side::Private.file(first);
        let size = disk.size(&name).doing("read", &name)?;
        if first != place.head.seq + 1 || size > HEADER_BYTES as u64 {
            return Err(damaged(&Side::Public.file(first), 0, first, "the file is missing"));
        }
        strays.push(name);
    }
    Ok(strays)
}
