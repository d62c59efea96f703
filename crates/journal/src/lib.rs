//! The journal: the durable, hash-chained truth.
//!
//! [`Journal`] appends batches of [`Entry`]s, one sync a batch, to segment files on a [`Disk`]; [`Reader`] and
//! [`verify`] read them, also from another process; [`Index`] finds the records about one subject.
//!
//! What always holds:
//! - a record is durable before anyone is told of it, and never changes afterwards, except that its private
//!   part can be erased, which the chain survives;
//! - the public files alone prove the chain, and no private byte is in them;
//! - a torn end, which nobody was told of, is cut and reported; any other damage is refused with its place.
//!
//! Bodies are bytes here. Not here: what they mean, the clock, randomness (salts come with the entries).

mod disk;
mod error;
mod frame;
mod hash;
mod index;
mod journal;
mod mem_disk;
mod place;
mod reader;
mod record;
mod snapshot;

pub use disk::{Disk, FileDisk};
pub use error::{Damage, Error, Result};
pub use hash::{Hash, private_digest};
pub use index::{CaughtUp, Index};
pub use journal::{Journal, Options, Recovery};
pub use mem_disk::{Fault, Keep, MemDisk};
pub use reader::{Reader, Records, Scope, TornTail, Verified, verify};
pub use record::{
    Entry, Head, MAX_BATCH_BYTES, MAX_BODY_BYTES, MAX_SUBJECT_BYTES, MAX_SUBJECTS, Private, PrivatePart,
    Record,
};
pub use snapshot::{LatestSnapshot, Snapshot, latest_snapshot, write_snapshot};
