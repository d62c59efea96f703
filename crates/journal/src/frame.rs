//! The bytes of segments and frames: what one batch looks like in the public and the private file.
//!
//! A journal is a row of segments, each two files named by their first record: `<seq>.public` may be
//! published as it is, `<seq>.private` stays with the operator. All numbers are little-endian.
//!
//! ```text
//! file    = header frame*
//! header  = magic 8 | first seq 8 | hash before it 32 | zero 12 | CRC-32 of the 60 bytes before 4
//! frame   = magic 4 | payload bytes 4 | records 4 | of them with a private part 4 | first seq 8 |
//!           last record's hash 32 | payload CRC-32 4 | CRC-32 of the 60 bytes before 4 |
//!           payload | end mark 4
//! public payload  = for each record: at_ms 8 | subjects 2 | each: length 2, text |
//!                   length 4, public body | 0, or 1 and the private digest 32
//! private payload = for each record with a private part: state 1 | length 4 | salt 16 | body
//! ```
//!
//! One batch is one frame in the public file and, if a record of it has a private part, one frame in
//! the private file. The private frame has no CRC over its payload, because erasing changes it; the
//! digests in the public frame check every byte of it. Frame magics start with a byte that no UTF-8 text
//! contains, so no body in JSON can be taken for a frame.
//!
//! # Torn or damaged
//!
//! The writer syncs each batch before it writes the next, so a loss of power can hurt one frame only,
//! the last of the last segment, and nobody was told that it is durable. Such a frame is *torn*: it is
//! reported and cut. Everything else is *damage*: it is refused and never cut. A broken frame is torn only if
//! nothing follows it, and it is either shorter than its header says or some disk sector (512 bytes) of
//! it is all zero, which is what a file system shows of a block that never reached the disk. A frame of full
//! length without such a hole was written whole and changed later: damage.
//!
//! Limits: a last frame that later loses its end, or a whole sector, looks torn although it was
//! acknowledged; the snapshots' check catches it only if a snapshot was taken after it. A file system that
//! shows old data instead of zeros in blocks never written is refused as damaged.

use std::ops::Range;

use crate::hash::{Hash, Preimage, count32, private_digest};
use crate::record::{
    Entry, Head, MAX_BATCH_BYTES, MAX_BODY_BYTES, MAX_SUBJECT_BYTES, MAX_SUBJECTS, PrivatePart, Record,
};

/// Bytes of a segment's header and of a frame's header.
pub(crate) const HEADER_BYTES: usize = 64;
const CRC_AT: usize = HEADER_BYTES - 4;
const END_BYTES: usize = END.len();
const END: &[u8] = b"\xffend";
/// What a loss of power takes or leaves as a whole.
const SECTOR_BYTES: u64 = 512;
/// The longest frame.
pub(crate) const MAX_FRAME_BYTES: u64 = (MAX_BATCH_BYTES + HEADER_BYTES + END_BYTES) as u64;

/// Which of a segment's two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Public,
    Private,
}

impl Side {
    pub(crate) fn file(self, first_seq: u64) -> String {
        format!("{first_seq:020}.{}", self.extension())
    }

    pub(crate) fn extension(self) -> &'static str {
        match self {
            Side::Public => "public",
            Side::Private => "private",
        }
    }

    fn segment_magic(self) -> &'static [u8; 8] {
        match self {
            Side::Public => b"IONETJP1",
            Side::Private => b"IONETJS1",
        }
    }

    fn frame_magic(self) -> &'static [u8; 4] {
        match self {
            Side::Public => b"\xfeJP1",
            Side::Private => b"\xfeJS1",
        }
    }
}

/// What a segment's file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) first_seq: u64,
    pub(crate) prev: Hash,
}

impl SegmentHeader {
    pub(crate) fn encode(self, side: Side) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(side.segment_magic());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.prev.0);
        out.extend_from_slice(&[0; 12]);
        seal(&mut out);
        out
    }

    pub(crate) fn parse(bytes: &[u8], side: Side) -> Option<SegmentHeader> {
        let mut cursor = Cursor::new(sealed(bytes, side.segment_magic())?);
        Some(SegmentHeader { first_seq: cursor.u64()?, prev: cursor.hash()? })
    }
}

/// What a frame says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) payload_bytes: usize,
    pub(crate) records: u32,
    pub(crate) privates: u32,
    pub(crate) first_seq: u64,
    pub(crate) last_hash: Hash,
    payload_crc: u32,
}

impl FrameHeader {
    fn encode(self, side: Side) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(side.frame_magic());
        out.extend_from_slice(&count32(self.payload_bytes).to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.privates.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.last_hash.0);
        out.extend_from_slice(&self.payload_crc.to_le_bytes());
        seal(&mut out);
        out
    }

    pub(crate) fn parse(bytes: &[u8], side: Side) -> Option<FrameHeader> {
        let mut cursor = Cursor::new(sealed(bytes, side.frame_magic())?);
        Some(FrameHeader {
            payload_bytes: cursor.u32()? as usize,
            records: cursor.u32()?,
            privates: cursor.u32()?,
            first_seq: cursor.u64()?,
            last_hash: cursor.hash()?,
            payload_crc: cursor.u32()?,
        })
    }

    /// Bytes of the whole frame: header, payload and end mark.
    pub(crate) fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.payload_bytes + END_BYTES
    }

    /// The payload of a complete and intact frame.
    pub(crate) fn payload<'a>(&self, frame: &'a [u8], side: Side) -> Option<&'a [u8]> {
        let payload = frame.get(HEADER_BYTES..HEADER_BYTES + self.payload_bytes)?;
        let ends = frame.get(HEADER_BYTES + self.payload_bytes..self.frame_bytes())? == END;
        let intact = side == Side::Private || crc32fast::hash(payload) == self.payload_crc;
        (ends && intact).then_some(payload)
    }
}

fn seal(header: &mut Vec<u8>) {
    let crc = crc32fast::hash(header);
    header.extend_from_slice(&crc.to_le_bytes());
}

/// The fields after the magic, if magic and CRC are right.
fn sealed<'a>(bytes: &'a [u8], magic: &[u8]) -> Option<&'a [u8]> {
    let header = bytes.get(..HEADER_BYTES)?;
    let crc = u32::from_le_bytes(header[CRC_AT..].try_into().ok()?);
    let right = header.starts_with(magic) && crc32fast::hash(&header[..CRC_AT]) == crc;
    right.then(|| &header[magic.len()..CRC_AT])
}

/// Whether `tail`, everything from `offset` to the end of the last segment, is one torn frame.
pub(crate) fn is_torn_frame(tail: &[u8], offset: u64, side: Side) -> bool {
    if tail.len() as u64 > MAX_FRAME_BYTES {
        return false;
    }
    match FrameHeader::parse(tail, side) {
        Some(header) if tail.len() < header.frame_bytes() => true,
        Some(header) => tail.len() == header.frame_bytes() && has_hole(tail, offset, tail.len()),
        None if tail.len() < HEADER_BYTES => true,
        None => has_hole(tail, offset, HEADER_BYTES) && !has_frame_after(tail, side),
    }
}

/// Whether a sector that holds some of the first `within` bytes of `tail` is all zero.
fn has_hole(tail: &[u8], offset: u64, within: usize) -> bool {
    let mut at = 0;
    while at < within {
        let left_in_sector = SECTOR_BYTES - (offset + at as u64) % SECTOR_BYTES;
        let end = tail.len().min(at + usize::try_from(left_in_sector).unwrap_or(usize::MAX));
        if tail[at..end].iter().all(|byte| *byte == 0) {
            return true;
        }
        at = end;
    }
    false
}

fn has_frame_after(tail: &[u8], side: Side) -> bool {
    (1..tail.len()).any(|at| {
        tail[at..].starts_with(side.frame_magic()) && FrameHeader::parse(&tail[at..], side).is_some()
    })
}

/// A batch ready to be written.
pub(crate) struct Batch {
    pub(crate) public: Vec<u8>,
    /// Empty if no entry has a private part.
    pub(crate) private: Vec<u8>,
    pub(crate) head: Head,
    /// The chain after each entry.
    pub(crate) hashes: Vec<Hash>,
}

impl Batch {
    /// Entries must have passed [`check_entry`].
    pub(crate) fn encode(entries: &[Entry], after: Head) -> Batch {
        let mut head = after;
        let mut hashes = Vec::with_capacity(entries.len());
        let (mut public, mut private, mut privates) = (Vec::new(), Vec::new(), 0);
        for entry in entries {
            let digest = entry.private.as_ref().map(|part| private_digest(&part.salt, &part.body));
            head = next_head(entry, digest, head);
            hashes.push(head.hash);
            put_public(&mut public, entry, digest);
            if let Some(part) = &entry.private {
                privates += 1;
                put_private(&mut private, &part.salt, &part.body);
            }
        }
        let header = FrameHeader {
            payload_bytes: 0,
            records: count32(entries.len()),
            privates,
            first_seq: after.seq + 1,
            last_hash: head.hash,
            payload_crc: 0,
        };
        let private = if privates == 0 { private } else { frame(header, &private, Side::Private) };
        Batch { public: frame(header, &public, Side::Public), private, head, hashes }
    }
}

fn next_head(entry: &Entry, private: Option<Hash>, after: Head) -> Head {
    let seq = after.seq + 1;
    let Entry { at_ms, public, subjects, .. } = entry;
    let hash = Preimage { prev: after.hash, seq, at_ms: *at_ms, subjects, public, private }.hash();
    Head { seq, hash }
}

fn frame(header: FrameHeader, payload: &[u8], side: Side) -> Vec<u8> {
    let payload_crc = if side == Side::Public { crc32fast::hash(payload) } else { 0 };
    let mut out = FrameHeader { payload_bytes: payload.len(), payload_crc, ..header }.encode(side);
    out.extend_from_slice(payload);
    out.extend_from_slice(END);
    out
}

/// The first limit that `entry` breaks, and the bytes it takes in the public and private file.
pub(crate) fn check_entry(entry: &Entry) -> Result<(usize, usize), &'static str> {
    let private = entry.private.as_ref().map_or(0, |part| part.body.len());
    if entry.public.len() > MAX_BODY_BYTES || private > MAX_BODY_BYTES {
        return Err("a body is longer than 16 MiB; store it outside and write its hash");
    }
    if entry.subjects.len() > MAX_SUBJECTS {
        return Err("it has more than 4096 subjects; split it");
    }
    if entry.subjects.iter().any(|subject| subject.is_empty() || subject.len() > MAX_SUBJECT_BYTES) {
        return Err("a subject is empty or longer than 512 bytes");
    }
    let subjects: usize = entry.subjects.iter().map(|subject| 2 + subject.len()).sum();
    Ok((47 + subjects + entry.public.len(), PRIVATE_HEAD_BYTES + private))
}

fn put_public(out: &mut Vec<u8>, entry: &Entry, digest: Option<Hash>) {
    out.extend_from_slice(&entry.at_ms.to_le_bytes());
    out.extend_from_slice(&count16(entry.subjects.len()).to_le_bytes());
    for subject in &entry.subjects {
        out.extend_from_slice(&count16(subject.len()).to_le_bytes());
        out.extend_from_slice(subject.as_bytes());
    }
    out.extend_from_slice(&count32(entry.public.len()).to_le_bytes());
    out.extend_from_slice(&entry.public);
    out.push(u8::from(digest.is_some()));
    if let Some(digest) = digest {
        out.extend_from_slice(&digest.0);
    }
}

fn count16(len: usize) -> u16 {
    u16::try_from(len).expect("lengths are bounded when an entry is checked")
}

/// The records of a public payload that follow `prev`; `None` if the bytes or the chain are wrong.
pub(crate) fn parse_records(header: &FrameHeader, payload: &[u8], prev: Hash) -> Option<Vec<Record>> {
    let mut cursor = Cursor::new(payload);
    let mut head = Head { seq: header.first_seq - 1, hash: prev };
    let mut records = Vec::with_capacity(header.records.min(1 << 16) as usize);
    for _ in 0..header.records {
        let record = parse_record(&mut cursor, head)?;
        head = Head { seq: record.seq, hash: record.hash };
        records.push(record);
    }
    (cursor.left.is_empty() && head.hash == header.last_hash).then_some(records)
}

fn parse_record(cursor: &mut Cursor<'_>, after: Head) -> Option<Record> {
    let at_ms = cursor.u64()?;
    let subjects = (0..cursor.u16()?).map(|_| cursor.subject()).collect::<Option<Vec<_>>>()?;
    let public_bytes = cursor.u32()? as usize;
    let public = cursor.take(public_bytes)?.to_vec();
    let digest = match cursor.u8()? {
        0 => None,
        1 => Some(cursor.hash()?),
        _ => return None,
    };
    let seq = after.seq.checked_add(1)?;
    let hash =
        Preimage { prev: after.hash, seq, at_ms, subjects: &subjects, public: &public, private: digest }
            .hash();
    let private = digest.map_or(PrivatePart::None, |digest| PrivatePart::Withheld { digest });
    Some(Record { seq, at_ms, prev: after.hash, hash, public, private, subjects })
}

const PRESENT: u8 = b'P';
const ERASED: u8 = b'E';
const SALT_BYTES: usize = 16;
/// State, length and salt.
const PRIVATE_HEAD_BYTES: usize = 1 + 4 + SALT_BYTES;

fn put_private(out: &mut Vec<u8>, salt: &[u8; SALT_BYTES], body: &[u8]) {
    out.push(PRESENT);
    out.extend_from_slice(&count32(body.len()).to_le_bytes());
    out.extend_from_slice(salt);
    out.extend_from_slice(body);
}

/// A private part as it lies in a private payload.
pub(crate) struct PrivateEntry<'a> {
    pub(crate) erased: bool,
    pub(crate) salt: [u8; SALT_BYTES],
    pub(crate) body: &'a [u8],
    /// Where it lies in the payload.
    pub(crate) place: Range<usize>,
}

impl PrivateEntry<'_> {
    /// Whether this is what `digest` stands for: the body itself, or its erased and zeroed place.
    pub(crate) fn fits(&self, digest: &Hash) -> bool {
        if self.erased {
            return self.salt.iter().chain(self.body).all(|byte| *byte == 0);
        }
        private_digest(&self.salt, self.body) == *digest
    }
}

/// The parts of a private payload; `None` if the bytes do not add up.
pub(crate) fn parse_privates<'a>(header: &FrameHeader, payload: &'a [u8]) -> Option<Vec<PrivateEntry<'a>>> {
    let mut cursor = Cursor::new(payload);
    let mut entries = Vec::new();
    for _ in 0..header.privates {
        let start = payload.len() - cursor.left.len();
        let erased = match cursor.u8()? {
            PRESENT => false,
            ERASED => true,
            _ => return None,
        };
        let body_bytes = cursor.u32()? as usize;
        let salt = cursor.take(SALT_BYTES)?.try_into().ok()?;
        let body = cursor.take(body_bytes)?;
        let place = start..payload.len() - cursor.left.len();
        entries.push(PrivateEntry { erased, salt, body, place });
    }
    cursor.left.is_empty().then_some(entries)
}

/// What an erased private part of `place_bytes` looks like.
pub(crate) fn erased_entry(place_bytes: usize) -> Vec<u8> {
    let mut out = vec![0; place_bytes];
    out[0] = ERASED;
    out[1..5].copy_from_slice(&count32(place_bytes - PRIVATE_HEAD_BYTES).to_le_bytes());
    out
}

/// Takes fields off the front of bytes; `None` where they end too soon.
pub(crate) struct Cursor<'a> {
    pub(crate) left: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(left: &'a [u8]) -> Self {
        Cursor { left }
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.left.split_at_checked(count)?;
        self.left = left;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn hash(&mut self) -> Option<Hash> {
        self.array().map(Hash)
    }

    fn subject(&mut self) -> Option<String> {
        let bytes = self.u16()? as usize;
        String::from_utf8(self.take(bytes)?.to_vec()).ok()
    }
}
