//! Committing: what the engine sealed becomes durable, and only then leaves.
//!
//! A [`Batch`] holds decided events and the outputs that wait for them. [`Committer::commit`] encodes, hashes, writes and
//! syncs the events and gives back the outputs. It needs nothing of the engine, so it may run on a thread of its own
//! while the engine decides the next batch.
//!
//! Always holds: no output of a batch leaves before all its events are durable; after a failed append nothing more is
//! committed and the process must end. Not here: what is decided (`engine`), threads (`writer`).

use ionet_domain::{Event, OrderId};
use ionet_journal::{Disk, Entry, Journal, Private};
use sha2::{Digest, Sha256};

use crate::core::Output;
use crate::engine::{Folded, PendingSnapshot, Staged};
use crate::error::ServerError;
use crate::handle::PublishedEvent;
use crate::view::SharedView;

/// A batch with more bytes than this is written as several frames, each with a sync of its own.
const FRAME_BYTES: usize = 8 << 20;

/// What was sealed together: it becomes durable together, and nothing of it leaves before.
#[derive(Debug)]
pub struct Batch {
    pub(crate) staged: Staged,
    pub(crate) outputs: Vec<Output>,
    pub(crate) snapshot: Option<Folded>,
}

impl Batch {
    /// Whether there is nothing to write and nothing to release.
    pub fn is_empty(&self) -> bool {
        self.staged.events.is_empty() && self.outputs.is_empty()
    }
}

/// What may leave, now that it is durable.
#[derive(Debug, Default)]
pub struct Durable {
    /// In their order; the last are the published events, if there are any.
    pub outputs: Vec<Output>,
    /// A copy of the state to be written with [`crate::engine::write_snapshot`], when one is due.
    pub snapshot: Option<PendingSnapshot>,
}

/// The journal's side of the one writer.
#[derive(Debug)]
pub struct Committer<D> {
    journal: Journal<D>,
    view: SharedView,
    salts: Salts,
}

#[derive(Debug)]
struct Salts {
    seed: [u8; 32],
    count: u64,
}

impl Salts {
    fn next(&mut self) -> [u8; 16] {
        self.count += 1;
        let digest = Sha256::digest([self.seed.as_slice(), &self.count.to_le_bytes()].concat());
        std::array::from_fn(|at| digest[at])
    }
}

impl<D: Disk> Committer<D> {
    pub(crate) fn new(journal: Journal<D>, view: SharedView, salt_seed: [u8; 32]) -> Self {
        Self { journal, view, salts: Salts { seed: salt_seed, count: 0 } }
    }

    /// The journal, for looking things up.
    pub fn journal(&self) -> &Journal<D> {
        &self.journal
    }

    /// Makes a batch durable and gives what was waiting for that. Batches come in the order in which they were sealed.
    ///
    /// # Errors
    /// Fatal: it is on disk or not, a command's events never in part. End the process and open again.
    pub fn commit(&mut self, batch: Batch) -> Result<Durable, ServerError> {
        let Batch { staged, mut outputs, snapshot } = batch;
        let first = self.journal.head().seq + 1;
        let hashes = self.append(&staged)?;
        let head = self.journal.head();
        if !staged.events.is_empty() {
            self.view.write().head = head;
            let numbered = (first..).zip(hashes).zip(staged.events);
            let published = numbered.map(|((seq, hash), event)| PublishedEvent { seq, hash, event });
            outputs.push(Output::Published(published.collect()));
        }
        Ok(Durable { outputs, snapshot: snapshot.map(|folded| PendingSnapshot { at: head, folded }) })
    }

    /// One frame and one sync, unless the batch is very long; parted only between commands.
    fn append(&mut self, staged: &Staged) -> Result<Vec<ionet_journal::Hash>, ServerError> {
        let (mut hashes, mut entries, mut bytes, mut from) = (Vec::new(), Vec::new(), 0, 0);
        for end in &staged.ends {
            for event in &staged.events[from..*end] {
                let entry = self.entry(event);
                bytes += entry.public.len() + entry.private.as_ref().map_or(0, |part| part.body.len());
                entries.push(entry);
            }
            from = *end;
            if bytes >= FRAME_BYTES {
                hashes.extend(self.journal.append_hashed(&entries)?);
                entries.clear();
                bytes = 0;
            }
        }
        hashes.extend(self.journal.append_hashed(&entries)?);
        Ok(hashes)
    }

    fn entry(&mut self, event: &Event) -> Entry {
        let private = event.private_json().map(|body| Private { salt: self.salts.next(), body });
        Entry { at_ms: event.at_ms, public: event.public_json(), private, subjects: event.public.subjects() }
    }

    /// Whether the journal has an order, by reading all of it: for the lab, the shell asks the subject index.
    pub fn has_order(&self, order: OrderId) -> Result<bool, ServerError> {
        for record in self.journal.read_from(1)? {
            if record?.subjects.contains(&order.to_string()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
