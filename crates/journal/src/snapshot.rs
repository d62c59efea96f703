//! Snapshots: the folded state at a record, so that a start need not fold from record 1.
//!
//! A snapshot is a cache of the journal, never the truth: a damaged one is passed over for the one before it, or
//! for none. What always holds: a snapshot file is written whole or not at all, and the last two are kept.
//!
//! ```text
//! file = magic 8 | seq 8 | record's hash 32 | body bytes 8 | CRC-32 of the 56 bytes before 4 |
//!        SHA-256 of these 60 bytes and the body 32 | body
//! ```

use crate::disk::{Disk, read_all};
use crate::error::{Damage, Error, IoContext, Result};
use crate::frame::Cursor;
use crate::hash::sha256;
use crate::place::Marks;
use crate::reader::{Records, Scope};
use crate::record::Head;

const MAGIC: &[u8; 8] = b"IONETJN1";
const SUFFIX: &str = ".snapshot";
const CRC_AT: usize = 56;
const SUM_AT: usize = 60;
const BODY_AT: usize = 92;
const KEPT: usize = 2;

/// The folded state at a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last record folded into it.
    pub at: Head,
    /// The state, as it was given.
    pub body: Vec<u8>,
}

/// The newest snapshot that can be used, and those that could not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LatestSnapshot {
    /// `None`: fold from record 1.
    pub snapshot: Option<Snapshot>,
    /// Newer ones that were passed over, newest first.
    pub damaged: Vec<Damage>,
}

/// Writes a snapshot of the state after record `at`, durably, and removes all but the last two.
///
/// `at` must be a head that the journal returned. May run on another thread than the journal's.
pub fn write_snapshot<D: Disk>(disk: &D, at: Head, body: &[u8]) -> Result<()> {
    let name = file(at.seq);
    let mut bytes = header(at, body);
    bytes.extend_from_slice(body);
    disk.replace(&name, &bytes).doing("write", &name)?;
    let seqs = seqs(disk)?;
    for seq in seqs.iter().rev().skip(KEPT) {
        let name = file(*seq);
        disk.remove(&name).doing("remove", &name)?;
    }
    Ok(())
}

fn header(at: Head, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(BODY_AT + body.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&at.seq.to_le_bytes());
    out.extend_from_slice(&at.hash.0);
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    let sum = sha256(&out, body);
    out.extend_from_slice(&sum.0);
    out
}

fn file(seq: u64) -> String {
    format!("{seq:020}{SUFFIX}")
}

fn seqs<D: Disk>(disk: &D) -> Result<Vec<u64>> {
    let names = disk.list().doing("list", "the journal's directory")?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok()).collect())
}

/// Where the newest snapshot with a readable header was taken; its body is not looked at.
pub(crate) fn newest_at<D: Disk>(disk: &D) -> Result<Option<Head>> {
    for seq in seqs(disk)?.into_iter().rev() {
        let name = file(seq);
        let mut bytes = [0; BODY_AT];
        disk.read_at(&name, 0, &mut bytes).doing("read", &name)?;
        if let Some((at, _)) = parse_header(&bytes) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn parse_header(bytes: &[u8]) -> Option<(Head, u64)> {
    let crc = u32::from_le_bytes(bytes.get(CRC_AT..SUM_AT)?.try_into().ok()?);
    let fields = bytes[..CRC_AT].strip_prefix(MAGIC)?;
    let mut cursor = Cursor::new(fields);
    let at = Head { seq: cursor.u64()?, hash: cursor.hash()? };
    let body_bytes = cursor.u64()?;
    (crc32fast::hash(&bytes[..CRC_AT]) == crc).then_some((at, body_bytes))
}

/// The newest snapshot that is whole and of this disk's chain, and the newer ones that are not.
pub fn latest_snapshot<D: Disk>(disk: &D) -> Result<LatestSnapshot> {
    let marks = Marks::default();
    let hash_at = |seq| Records::new(disk, &marks, Scope::Full, seq)?.hash_of(seq);
    let mut found = LatestSnapshot::default();
    for seq in seqs(disk)?.into_iter().rev() {
        let what = match read(disk, seq)? {
            None => "it is not what was written",
            Some(snapshot) if hash_at(seq)? == Some(snapshot.at.hash) => {
                found.snapshot = Some(snapshot);
                return Ok(found);
            }
            Some(_) => "it is of another journal",
        };
        found.damaged.push(Damage { file: file(seq), offset: 0, seq, what });
    }
    Ok(found)
}

fn read<D: Disk>(disk: &D, seq: u64) -> Result<Option<Snapshot>> {
    let name = file(seq);
    let bytes = read_all(disk, &name).doing("read", &name)?;
    Ok(parse(&bytes).filter(|snapshot| snapshot.at.seq == seq))
}

fn parse(bytes: &[u8]) -> Option<Snapshot> {
    let (at, body_bytes) = parse_header(bytes)?;
    let body = bytes.get(BODY_AT..)?;
    let whole = body.len() as u64 == body_bytes && sha256(&bytes[..SUM_AT], body).0 == bytes[SUM_AT..BODY_AT];
    whole.then(|| Snapshot { at, body: body.to_vec() })
}

/// Refuses a journal that ends before its newest snapshot.
pub(crate) fn check_head<D: Disk>(disk: &D, head: Head) -> Result<()> {
    match newest_at(disk)? {
        Some(at) if at.seq > head.seq => {
            Err(Error::BehindSnapshot { head_seq: head.seq, snapshot_seq: at.seq })
        }
        _ => Ok(()),
    }
}
