//! What can go wrong with a journal, and what to do about it.

use std::{fmt, io};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a journal could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk refused something.
    #[error("could not {action} {name}")]
    Io {
        /// What was tried, as a verb: `read`, `write`.
        action: &'static str,
        /// The file, relative to the journal's directory.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// No room for the batch: nothing of it counts. Free space and start again.
    #[error(
        "the disk is full: {name} could not grow; nothing of this batch counts. Free some space and start again"
    )]
    DiskFull {
        /// The file, relative to the journal's directory.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The disk did not confirm a batch. Whether it is on disk is unknown until the journal is opened again.
    #[error("the disk did not confirm {name}; check the disk, then start again: opening finds what was kept")]
    SyncFailed {
        /// The file, relative to the journal's directory.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A write or sync failed before, so this journal takes nothing more. End the process and open again.
    #[error("the journal stopped at an earlier failed write or sync; end this process and start it again")]
    Stopped,
    /// A file is not what was written. Nothing was changed or cut.
    #[error("{0}")]
    Damaged(Box<Damage>),
    /// A snapshot is of a later state than the journal's head: acknowledged records are missing.
    #[error(
        "the journal ends at record {head_seq} but a snapshot was taken at record {snapshot_seq}: acknowledged \
         records are missing; restore the newest segment from a copy or the public mirror"
    )]
    BehindSnapshot {
        /// The last record found.
        head_seq: u64,
        /// The record the snapshot was taken at.
        snapshot_seq: u64,
    },
    /// Another process has this journal open for writing.
    #[error("{path} is in use by another process; stop that one first, or only read")]
    Locked {
        /// The journal's directory.
        path: String,
    },
    /// An entry breaks a limit of the format. Nothing was written and the journal goes on.
    #[error("entry {position} of the batch cannot be written: {reason}")]
    EntryRefused {
        /// Place in the batch, from 0.
        position: usize,
        /// Which limit.
        reason: &'static str,
    },
    /// There is no such record.
    #[error("there is no record {seq}; the journal ends at {head_seq}")]
    NoSuchRecord {
        /// The record asked for.
        seq: u64,
        /// The last record there is.
        head_seq: u64,
    },
    /// The record never had a private part.
    #[error("record {seq} has no private part")]
    NoPrivatePart {
        /// The record asked for.
        seq: u64,
    },
    /// The subject index's database failed. It can be deleted; it is rebuilt from the journal.
    #[error("the subject index failed; its file may be deleted, it is rebuilt from the journal")]
    Index(#[from] rusqlite::Error),
}

impl Error {
    /// A short name that stays the same over releases.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { .. } => "io_failed",
            Error::DiskFull { .. } => "disk_full",
            Error::SyncFailed { .. } => "sync_failed",
            Error::Stopped => "journal_stopped",
            Error::Damaged(_) => "journal_damaged",
            Error::BehindSnapshot { .. } => "journal_behind_snapshot",
            Error::Locked { .. } => "journal_locked",
            Error::EntryRefused { .. } => "entry_refused",
            Error::NoSuchRecord { .. } => "no_such_record",
            Error::NoPrivatePart { .. } => "no_private_part",
            Error::Index(_) => "index_failed",
        }
    }

    /// The place of the damage, if that is what this is.
    pub fn damage(&self) -> Option<&Damage> {
        match self {
            Error::Damaged(damage) => Some(damage),
            _ => None,
        }
    }
}

/// Where a file is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file, relative to the journal's directory.
    pub file: String,
    /// The first byte of the frame (or header, or entry) that is wrong.
    pub offset: u64,
    /// The first record that cannot be trusted.
    pub seq: u64,
    /// What is wrong there.
    pub what: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { file, offset, seq, what } = self;
        write!(f, "{file} is damaged at byte {offset}, from record {seq} on: {what}. ")?;
        write!(f, "Restore this file from a copy or the public mirror; nothing was cut")
    }
}

pub(crate) fn damaged(file: &str, offset: u64, seq: u64, what: &'static str) -> Error {
    Error::Damaged(Box::new(Damage { file: file.to_owned(), offset, seq, what }))
}

/// Adds what was tried, on which file, to an error of the disk.
pub(crate) trait IoContext<T> {
    fn doing(self, action: &'static str, name: &str) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn doing(self, action: &'static str, name: &str) -> Result<T> {
        self.map_err(|source| {
            let name = name.to_owned();
            match (action, source.kind()) {
                ("sync", _) => Error::SyncFailed { name, source },
                (_, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    Error::DiskFull { name, source }
                }
                _ => Error::Io { action, name, source },
            }
        })
    }
}
