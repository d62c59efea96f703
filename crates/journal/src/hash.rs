//! The chain's hashes and the exact bytes they are taken over.
//!
//! Everything is little-endian, and every part of varying size is preceded by its length, so two
//! different records never give the same bytes.
//!
//! ```text
//! record hash = SHA-256(
//!     "ionet-journal/record/1\0"      23 bytes, the domain tag
//!     previous record's hash          32 bytes, all zero for record 1
//!     seq                              8 bytes, from 1
//!     at_ms                            8 bytes
//!     number of subjects               4 bytes
//!     each subject: length             4 bytes, then its UTF-8 text
//!     public body: length              8 bytes, then the body
//!     private part                     1 byte 0 and 32 zero bytes if there is none, or
//!                                      1 byte 1 and the 32 bytes of its digest
//! )
//! private digest = SHA-256(
//!     "ionet-journal/private/1\0"     24 bytes, the domain tag
//!     salt                            16 bytes
//!     private body: length             8 bytes, then the body
//! )
//! ```
//!
//! The salt lies with the private body, never in the public file: with both erased, the digest says
//! nothing about the body, and the chain still verifies.

use std::fmt;

use sha2::{Digest, Sha256};

const RECORD_TAG: &[u8] = b"ionet-journal/record/1\0";
const PRIVATE_TAG: &[u8] = b"ionet-journal/private/1\0";

/// A SHA-256 hash; prints as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What stands before record 1.
    pub const GENESIS: Hash = Hash([0; 32]);

    /// Reads the 64 hexadecimal digits that `Display` prints; `None` if `text` is anything else.
    pub fn from_hex(text: &str) -> Option<Hash> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Hash(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// What a record's hash is taken over, borrowed.
pub(crate) struct Preimage<'a> {
    pub(crate) prev: Hash,
    pub(crate) seq: u64,
    pub(crate) at_ms: u64,
    pub(crate) subjects: &'a [String],
    pub(crate) public: &'a [u8],
    pub(crate) private: Option<Hash>,
}

impl Preimage<'_> {
    pub(crate) fn hash(&self) -> Hash {
        let mut sha = Sha256::new();
        sha.update(RECORD_TAG);
        sha.update(self.prev.0);
        sha.update(self.seq.to_le_bytes());
        sha.update(self.at_ms.to_le_bytes());
        sha.update(count32(self.subjects.len()).to_le_bytes());
        for subject in self.subjects {
            sha.update(count32(subject.len()).to_le_bytes());
            sha.update(subject);
        }
        sha.update((self.public.len() as u64).to_le_bytes());
        sha.update(self.public);
        sha.update([u8::from(self.private.is_some())]);
        sha.update(self.private.unwrap_or_default().0);
        Hash(sha.finalize().into())
    }
}

/// The digest that stands in the public record for a private part.
pub fn private_digest(salt: &[u8; 16], body: &[u8]) -> Hash {
    let mut sha = Sha256::new();
    sha.update(PRIVATE_TAG);
    sha.update(salt);
    sha.update((body.len() as u64).to_le_bytes());
    sha.update(body);
    Hash(sha.finalize().into())
}

/// SHA-256 of two byte strings one after the other; the snapshot's checksum.
pub(crate) fn sha256(head: &[u8], body: &[u8]) -> Hash {
    let mut sha = Sha256::new();
    sha.update(head);
    sha.update(body);
    Hash(sha.finalize().into())
}

/// A length that entry checks have already bounded.
pub(crate) fn count32(len: usize) -> u32 {
    u32::try_from(len).expect("lengths are bounded when an entry is checked")
}
