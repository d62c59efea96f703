//! Reading the chain: record by record, from any place, while another thread or process writes.
//!
//! What always holds: every record handed out was checked against its frame's checksum and the hash chain
//! from the place where reading began, private parts against their digests; memory is bounded by one frame
//! and two windows. A reader sees complete frames only. The newest of them may not be durable
//! yet: whoever acts on a record outside this process asks the writer's head, not a reader. Not here: writing.

use std::collections::VecDeque;

use crate::disk::{Disk, read_all};
use crate::error::{Error, IoContext, Result, damaged};
use crate::frame::{
    self, Cursor, FrameHeader, HEADER_BYTES, MAX_FRAME_BYTES, PrivateEntry, SegmentHeader, Side,
    is_torn_frame,
};
use crate::hash::{Hash, private_digest};
use crate::place::{Marks, Place, Window, segments};
use crate::record::{Head, Private, PrivatePart, Record};

/// Names the record being erased, so that an interrupted erasure is finished at the next start.
pub(crate) const ERASING_FILE: &str = "erasing";

/// Which of a journal's files to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Both files; private parts are checked and handed out.
    Full,
    /// The public files alone, as a mirror has them; private parts are [`PrivatePart::Withheld`].
    Public,
}

/// What an interrupted, never acknowledged write left at the end of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The file it is in.
    pub file: String,
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// What stands at a place where a frame is expected.
enum Found {
    Frame(FrameHeader),
    /// The file ends here.
    End,
    /// Something broken.
    Broken,
}

/// The records from some place on, in order. After `None` it may be asked again: a writer may have
/// added some. After an error it gives `None` for ever.
#[derive(Debug)]
pub struct Records<'a, D> {
    disk: &'a D,
    marks: &'a Marks,
    scope: Scope,
    from_seq: u64,
    open: Option<Open<'a, D>>,
    /// After the last frame read.
    place: Place,
    /// Before the last frame read.
    last_frame: Option<Place>,
    queue: VecDeque<Record>,
    failed: bool,
    torn: Option<TornTail>,
}

/// The segment being read.
struct Open<'a, D> {
    public: Window<'a, D>,
    private: Window<'a, D>,
    private_checked: bool,
}

impl<D> std::fmt::Debug for Open<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Open({})", self.public.name)
    }
}

impl<'a, D: Disk> Records<'a, D> {
    /// Begins at record `from_seq` (0 and 1 are the same).
    pub(crate) fn new(disk: &'a D, marks: &'a Marks, scope: Scope, from_seq: u64) -> Result<Self> {
        let from_seq = from_seq.max(1);
        let segments = segments(disk, Side::Public)?;
        let segment = segments.iter().rev().find(|first| **first <= from_seq);
        let segment = match (segment, segments.first()) {
            (Some(segment), _) => *segment,
            (None, None) => 1,
            (None, Some(first)) => {
                return Err(damaged(
                    &Side::Public.file(*first),
                    0,
                    from_seq,
                    "the segment before it is missing",
                ));
            }
        };
        let place = Place { segment, public_offset: 0, private_offset: 0, head: Head::GENESIS };
        let mut records = Records {
            disk,
            marks,
            scope,
            from_seq,
            open: None,
            place,
            last_frame: None,
            queue: VecDeque::new(),
            failed: false,
            torn: None,
        };
        if let Some(place) = marks.before(from_seq, segment) {
            records.place = place;
            records.open = Some(records.windows(segment));
        }
        Ok(records)
    }

    /// Reads everything left and gives the last record read.
    pub(crate) fn run(&mut self, mut visit: impl FnMut(Record)) -> Result<Head> {
        for record in self.by_ref() {
            visit(record?);
        }
        Ok(self.place.head)
    }

    /// The first record, if it is number `seq`.
    pub(crate) fn only(&mut self, seq: u64) -> Result<Option<Record>> {
        self.next().transpose().map(|found| found.filter(|record| record.seq == seq))
    }

    /// The first record's hash, if it is number `seq`; what stands before the chain for 0.
    pub(crate) fn hash_of(&mut self, seq: u64) -> Result<Option<Hash>> {
        match seq {
            0 => Ok(Some(Hash::GENESIS)),
            _ => Ok(self.only(seq)?.map(|record| record.hash)),
        }
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn last_frame(&self) -> Option<Place> {
        self.last_frame
    }

    /// What the last `None` stopped at, if it was not a clean end.
    pub(crate) fn torn(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// Fills the queue with the next frame at or after `from_seq`; false at the end of the journal.
    fn advance(&mut self) -> Result<bool> {
        self.torn = None;
        loop {
            if self.open.is_none() && !self.enter_segment()? {
                return Ok(false);
            }
            match self.find()? {
                Found::Frame(header) if header.first_seq + u64::from(header.records) <= self.from_seq => {
                    self.skip(&header)?;
                }
                Found::Frame(header) => return self.read(&header).map(|()| true),
                Found::End => {
                    if !self.leave_segment()? {
                        return Ok(false);
                    }
                }
                Found::Broken => {
                    if !self.finished_meanwhile()? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn windows(&self, segment: u64) -> Open<'a, D> {
        Open {
            public: Window::new(self.disk, Side::Public.file(segment)),
            private: Window::new(self.disk, Side::Private.file(segment)),
            private_checked: self.scope == Scope::Public,
        }
    }

    /// Opens the segment at `place`; false if it is not there (yet).
    fn enter_segment(&mut self) -> Result<bool> {
        let (segment, expected) = (self.place.segment, self.place.head);
        let all = segments(self.disk, Side::Public)?;
        if !all.contains(&segment) {
            return match all.last() {
                Some(last) if *last > segment => {
                    Err(damaged(&Side::Public.file(segment), 0, segment, "the file is missing"))
                }
                _ => Ok(false),
            };
        }
        let mut open = self.windows(segment);
        let name = open.public.name.clone();
        let Some(header) = SegmentHeader::parse(open.public.get(0, HEADER_BYTES)?, Side::Public) else {
            return Err(damaged(&name, 0, segment, "its header is not one of a segment"));
        };
        let first_read = expected == Head::GENESIS;
        let follows = header.first_seq == segment
            && (first_read || header.prev == expected.hash)
            && (segment > 1 || header.prev == Hash::GENESIS);
        if !follows {
            return Err(damaged(&name, 0, segment, "its header does not follow the segment before"));
        }
        let offset = HEADER_BYTES as u64;
        let head = Head { seq: segment - 1, hash: header.prev };
        self.place = Place { segment, public_offset: offset, private_offset: offset, head };
        self.open = Some(open);
        Ok(true)
    }

    /// Goes to the next segment, if the writer has begun it.
    fn leave_segment(&mut self) -> Result<bool> {
        let later = segments(self.disk, Side::Public)?.into_iter().find(|first| *first > self.place.segment);
        let Some(later) = later else { return Ok(false) };
        // The writer finished this segment before it made the next one, but perhaps after we looked.
        if self.bytes_after(Side::Public, self.place.public_offset)? > 0 {
            return Ok(true);
        }
        if later != self.place.head.seq + 1 {
            return Err(self.damage("records are missing between this segment and the next"));
        }
        if self.scope == Scope::Full && self.bytes_after(Side::Private, self.place.private_offset)? > 0 {
            let offset = self.place.private_offset;
            return Err(self.private_damage(offset, "it goes on after the segment's last record"));
        }
        self.place = Place { segment: later, public_offset: 0, private_offset: 0, ..self.place };
        self.open = None;
        Ok(true)
    }

    fn bytes_after(&self, side: Side, offset: u64) -> Result<u64> {
        let name = side.file(self.place.segment);
        Ok(self.disk.size(&name).doing("read", &name)?.saturating_sub(offset))
    }

    fn window(&mut self) -> &mut Open<'a, D> {
        let segment = self.place.segment;
        if self.open.is_none() {
            self.open = Some(self.windows(segment));
        }
        self.open.as_mut().expect("opened above")
    }

    /// Looks at the frame at `place`. In a frame that is to be skipped only the header is checked.
    fn find(&mut self) -> Result<Found> {
        let (offset, from_seq, expected) = (self.place.public_offset, self.from_seq, self.place.head.seq + 1);
        let window = &mut self.window().public;
        let bytes = window.get(offset, HEADER_BYTES)?;
        if bytes.is_empty() {
            return Ok(Found::End);
        }
        let Some(header) = FrameHeader::parse(bytes, Side::Public) else { return Ok(Found::Broken) };
        if header.frame_bytes() as u64 > MAX_FRAME_BYTES {
            return Ok(Found::Broken);
        }
        if header.first_seq != expected || header.records == 0 {
            return Err(self.damage("the frame's records do not follow those before"));
        }
        let skipped = header.first_seq + u64::from(header.records) <= from_seq;
        let whole = if skipped {
            let end = offset + header.frame_bytes() as u64;
            window.disk.size(&window.name).doing("read", &window.name)? >= end
        } else {
            header.payload(window.get(offset, header.frame_bytes())?, Side::Public).is_some()
        };
        Ok(if whole { Found::Frame(header) } else { Found::Broken })
    }

    fn skip(&mut self, header: &FrameHeader) -> Result<()> {
        let private_bytes = match self.scope {
            Scope::Full => self.private_frame(header)?.map_or(0, |private| private.frame_bytes()),
            Scope::Public => 0,
        };
        self.step_over(header, private_bytes);
        Ok(())
    }

    fn step_over(&mut self, header: &FrameHeader, private_bytes: usize) {
        self.marks.keep(self.place);
        self.last_frame = Some(self.place);
        self.place.public_offset += header.frame_bytes() as u64;
        self.place.private_offset += private_bytes as u64;
        self.place.head =
            Head { seq: header.first_seq + u64::from(header.records) - 1, hash: header.last_hash };
    }

    fn read(&mut self, header: &FrameHeader) -> Result<()> {
        let (offset, prev) = (self.place.public_offset, self.place.head.hash);
        let frame = self.window().public.get(offset, header.frame_bytes())?;
        let records = header
            .payload(frame, Side::Public)
            .and_then(|payload| frame::parse_records(header, payload, prev));
        let Some(mut records) = records else {
            return Err(self.damage("the records do not give the hash that the frame names"));
        };
        let private_bytes = match self.scope {
            Scope::Full => self.read_privates(header, &mut records)?,
            Scope::Public => 0,
        };
        self.step_over(header, private_bytes);
        let from_seq = self.from_seq;
        self.queue.extend(records.into_iter().filter(|record| record.seq >= from_seq));
        Ok(())
    }

    /// The header of the private frame that belongs to a public one; `None` if that has no private part.
    pub(crate) fn private_frame(&mut self, header: &FrameHeader) -> Result<Option<FrameHeader>> {
        self.check_private_header()?;
        if header.privates == 0 {
            return Ok(None);
        }
        let offset = self.place.private_offset;
        let found = FrameHeader::parse(self.window().private.get(offset, HEADER_BYTES)?, Side::Private);
        let fits = |private: &FrameHeader| {
            private.first_seq == header.first_seq
                && private.last_hash == header.last_hash
                && private.privates == header.privates
                && private.frame_bytes() as u64 <= MAX_FRAME_BYTES
        };
        match found.filter(fits) {
            Some(private) => Ok(Some(private)),
            None => {
                Err(self.private_damage(offset, "the private frame is missing or not that of the public one"))
            }
        }
    }

    fn check_private_header(&mut self) -> Result<()> {
        let place = self.place;
        let open = self.window();
        if open.private_checked {
            return Ok(());
        }
        let name = open.private.name.clone();
        let header = match open.private.get(0, HEADER_BYTES) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged(&name, 0, place.head.seq + 1, "the file is missing"));
            }
            other => SegmentHeader::parse(other?, Side::Private),
        };
        match header {
            Some(header) if header.first_seq == place.segment => {
                open.private_checked = true;
                Ok(())
            }
            _ => Err(damaged(&name, 0, place.head.seq + 1, "its header is not one of this segment")),
        }
    }

    /// Puts the private parts into `records`; the bytes of the private frame.
    fn read_privates(&mut self, header: &FrameHeader, records: &mut [Record]) -> Result<usize> {
        let Some(private) = self.private_frame(header)? else { return Ok(0) };
        if !self.fill_privates(&private, records, None)? {
            // An erasure may be going on under our eyes, or was interrupted: what we saw was half of it.
            let erasing = read_erasing(self.disk)?;
            self.window().private.reload();
            if !self.fill_privates(&private, records, erasing)? {
                let offset = self.place.private_offset;
                return Err(self.private_damage(offset, "a private body does not match its digest"));
            }
        }
        Ok(private.frame_bytes())
    }

    fn fill_privates(
        &mut self,
        private: &FrameHeader,
        records: &mut [Record],
        erasing: Option<Head>,
    ) -> Result<bool> {
        let offset = self.place.private_offset;
        let frame = self.window().private.get(offset, private.frame_bytes())?;
        let parts =
            private.payload(frame, Side::Private).and_then(|payload| frame::parse_privates(private, payload));
        let Some(parts) = parts else { return Ok(false) };
        let mut parts = parts.iter();
        for record in records.iter_mut() {
            let digest = match &record.private {
                PrivatePart::None => continue,
                PrivatePart::Withheld { digest } | PrivatePart::Erased { digest } => *digest,
                PrivatePart::Present(part) => private_digest(&part.salt, &part.body),
            };
            let Some(part) = parts.next() else { return Ok(false) };
            let being_erased = erasing == Some(Head { seq: record.seq, hash: record.hash });
            record.private = match part_of(part, digest, being_erased) {
                Some(part) => part,
                None => return Ok(false),
            };
        }
        Ok(parts.next().is_none())
    }

    /// Looks once more at broken bytes at `place`: true if the writer finished the frame meanwhile, false
    /// if it is torn, as only an interrupted (or unfinished) write leaves it.
    ///
    /// # Errors
    /// Any other breakage is damage.
    fn finished_meanwhile(&mut self) -> Result<bool> {
        let (place, disk) = (self.place, self.disk);
        let name = Side::Public.file(place.segment);
        let is_last = segments(disk, Side::Public)?.last() == Some(&place.segment);
        let window = &mut self.window().public;
        window.reload();
        let limit = usize::try_from(MAX_FRAME_BYTES + 1).unwrap_or(usize::MAX);
        let tail = window.get(place.public_offset, limit)?;
        let bytes = tail.len() as u64;
        let whole = FrameHeader::parse(tail, Side::Public)
            .is_some_and(|header| header.payload(tail, Side::Public).is_some());
        let torn = is_last && is_torn_frame(tail, place.public_offset, Side::Public);
        window.reload();
        if whole {
            return Ok(true);
        }
        if !torn {
            return Err(self.damage("the frame is broken, and not as an interrupted write would leave it"));
        }
        self.torn = Some(TornTail { file: name, offset: place.public_offset, bytes });
        Ok(false)
    }

    fn damage(&self, what: &'static str) -> Error {
        let Place { segment, public_offset, head, .. } = self.place;
        damaged(&Side::Public.file(segment), public_offset, head.seq + 1, what)
    }

    fn private_damage(&self, offset: u64, what: &'static str) -> Error {
        damaged(&Side::Private.file(self.place.segment), offset, self.place.head.seq + 1, what)
    }
}

fn part_of(part: &PrivateEntry<'_>, digest: Hash, being_erased: bool) -> Option<PrivatePart> {
    if being_erased || (part.erased && part.fits(&digest)) {
        return Some(PrivatePart::Erased { digest });
    }
    let present = || PrivatePart::Present(Private { salt: part.salt, body: part.body.to_vec() });
    (!part.erased && part.fits(&digest)).then(present)
}

/// The record whose erasure was begun and not finished, if any.
pub(crate) fn read_erasing<D: Disk>(disk: &D) -> Result<Option<Head>> {
    let bytes = match read_all(disk, ERASING_FILE) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.doing("read", ERASING_FILE)?,
    };
    let mut cursor = Cursor::new(&bytes);
    match (cursor.u64(), cursor.hash()) {
        (Some(seq), Some(hash)) => Ok(Some(Head { seq, hash })),
        _ => Err(damaged(ERASING_FILE, 0, 0, "it names no record")),
    }
}

/// What [`read_erasing`] reads: the record's hash too, so that no other record is ever erased by mistake.
pub(crate) fn erasing_bytes(record: Head) -> Vec<u8> {
    [record.seq.to_le_bytes().as_slice(), &record.hash.0].concat()
}

impl<D: Disk> Iterator for Records<'_, D> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        let dry = self.queue.is_empty() && !self.failed;
        if dry && let Err(e) = self.advance() {
            self.failed = true;
            return Some(Err(e));
        }
        self.queue.pop_front().map(Ok)
    }
}

/// Reads a journal that this or another process may be writing.
#[derive(Debug)]
pub struct Reader<D> {
    disk: D,
    scope: Scope,
    marks: Marks,
}

impl<D: Disk> Reader<D> {
    /// Reads `disk`'s journal, both parts or only the public one.
    pub fn new(disk: D, scope: Scope) -> Self {
        Reader { disk, scope, marks: Marks::default() }
    }

    /// The records from `seq` on, streamed.
    pub fn read_from(&self, seq: u64) -> Result<Records<'_, D>> {
        Records::new(&self.disk, &self.marks, self.scope, seq)
    }

    /// One record, if there is one of this number.
    pub fn get(&self, seq: u64) -> Result<Option<Record>> {
        self.read_from(seq)?.only(seq)
    }

    /// The hash of record `seq`; [`Hash::GENESIS`] for 0, `None` past the end.
    pub fn hash_at(&self, seq: u64) -> Result<Option<Hash>> {
        self.read_from(seq)?.hash_of(seq)
    }
}

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The last record; the chain is whole up to it.
    pub head: Head,
    /// How many segments there are.
    pub segments: usize,
    /// Private parts that are here and match.
    pub privates_present: u64,
    /// Private parts that were erased.
    pub privates_erased: u64,
    /// Private parts that were not looked at ([`Scope::Public`]).
    pub privates_withheld: u64,
    /// What an interrupted write left, or a write that is going on.
    pub torn: Option<TornTail>,
}

/// Recomputes the whole chain from record 1 and shows every record to `visit`.
///
/// It may run while another process writes. Therefore it does not look at what only the writer can judge, as
/// [`crate::Journal::open`] does: private frames after the last public one, and snapshots newer than the head.
///
/// # Errors
/// The first damage, with its place.
pub fn verify<D: Disk>(disk: &D, scope: Scope, mut visit: impl FnMut(&Record)) -> Result<Verified> {
    let marks = Marks::default();
    let mut records = Records::new(disk, &marks, scope, 1)?;
    let (mut present, mut erased, mut withheld) = (0, 0, 0);
    let head = records.run(|record| {
        match record.private {
            PrivatePart::None => {}
            PrivatePart::Present(_) => present += 1,
            PrivatePart::Erased { .. } => erased += 1,
            PrivatePart::Withheld { .. } => withheld += 1,
        }
        visit(&record);
    })?;
    Ok(Verified {
        head,
        segments: segments(disk, Side::Public)?.len(),
        privates_present: present,
        privates_erased: erased,
        privates_withheld: withheld,
        torn: records.torn().cloned(),
    })
}
