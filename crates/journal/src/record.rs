//! What goes into the journal and what comes out.

use crate::hash::Hash;

/// The longest public or private body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 << 20;
/// The most that one batch may take in either file, in bytes.
pub const MAX_BATCH_BYTES: usize = 64 << 20;
/// The most subjects of one record.
pub const MAX_SUBJECTS: usize = 4096;
/// The longest subject, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 512;

/// One thing to append.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// When it happened, milliseconds of Unix time; the journal neither checks nor changes it.
    pub at_ms: u64,
    /// What everyone may read, usually one JSON object.
    pub public: Vec<u8>,
    /// What only the operator reads, and may erase later.
    pub private: Option<Private>,
    /// Which things this is about; the keys of [`crate::Index`]. Public.
    pub subjects: Vec<String>,
}

/// A private body and the salt that hides it behind its digest.
#[derive(Clone, PartialEq, Eq)]
pub struct Private {
    /// 16 fresh random bytes for every entry: without them a short body could be guessed from its digest.
    pub salt: [u8; 16],
    /// The body, usually one JSON object.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Private {
    /// Prints the size only, so that logs never show a private body.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Private({} bytes)", self.body.len())
    }
}

/// One record of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place, from 1 without gaps.
    pub seq: u64,
    /// When it happened, milliseconds of Unix time.
    pub at_ms: u64,
    /// The hash of the record before.
    pub prev: Hash,
    /// This record's hash; `src/hash.rs` lists the bytes it covers.
    pub hash: Hash,
    /// What everyone may read.
    pub public: Vec<u8>,
    /// What only the operator reads.
    pub private: PrivatePart,
    /// Which things this is about.
    pub subjects: Vec<String>,
}

/// What is known of a record's private part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivatePart {
    /// There never was one.
    None,
    /// It is here and matches its digest.
    Present(Private),
    /// It was erased; the digest stays so that the chain verifies.
    Erased {
        /// The digest that the chain holds.
        digest: Hash,
    },
    /// It was not read, because only the public files were asked for.
    Withheld {
        /// The digest that the chain holds.
        digest: Hash,
    },
}

/// The last record: where the next append goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last record's place; 0 in an empty journal.
    pub seq: u64,
    /// The last record's hash; [`Hash::GENESIS`] in an empty journal.
    pub hash: Hash,
}

impl Head {
    /// The head of an empty journal.
    pub const GENESIS: Head = Head { seq: 0, hash: Hash::GENESIS };
}
