//! The server's process: the real core over the disk that tears, and what its shell would do around it.
//!
//! Every input, seal, commit and output is an act of its own, so that a crash can come between any two, and inputs come
//! while a sealed batch is not durable yet.

use std::collections::{BTreeMap, VecDeque};

use ionet_api::worker::MemberEndpoint;
use ionet_domain::{LeaseId, Params};
use ionet_journal::Options;
use ionet_net::link::Link;
use ionet_net::mem_link::MemLink;
use ionet_server::engine::{PendingSnapshot, write_snapshot};
use ionet_server::{Batch, Committer, Core, CoreOptions, EngineOptions, Input, Keys, Output, ServerError};

use super::disk::LabDisk;
use super::promise::Promise;
use crate::error::with_causes;
use crate::{LabError, Result};

/// The server, up or down.
pub(super) struct ServerNode {
    pub(super) disk: LabDisk,
    pub(super) keys: Keys,
    pub(super) core: Option<Core>,
    committer: Option<Committer<LabDisk>>,
    /// Sealed and not yet committed.
    in_flight: Option<Batch>,
    pub(super) link: MemLink,
    pub(super) inbox: VecDeque<Input>,
    pub(super) outbox: VecDeque<Output>,
    /// Inputs taken since the last seal, and one for a batch in flight: zero where all is durable.
    pub(super) staged: u64,
    pub(super) snapshot: Option<PendingSnapshot>,
    pub(super) tick_due_ms: u64,
    pub(super) watch_due_ms: u64,
    pub(super) start_due_ms: u64,
    /// What its shell keeps of [`ionet_server::Fleet::endpoints`].
    pub(super) endpoints: BTreeMap<LeaseId, MemberEndpoint>,
    /// What the network is founded with.
    params: Params,
    starts: u8,
}

impl ServerNode {
    pub(super) fn new(disk: LabDisk, keys: Keys, link: MemLink, params: Params) -> Self {
        Self {
            params,
            disk,
            keys,
            core: None,
            committer: None,
            in_flight: None,
            link,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            staged: 0,
            snapshot: None,
            tick_due_ms: 0,
            watch_due_ms: 0,
            start_due_ms: 0,
            endpoints: BTreeMap::new(),
            starts: 0,
        }
    }

    pub(super) fn up(&self) -> bool {
        self.core.is_some()
    }

    /// Opens the journal again and goes on.
    pub(super) fn start(&mut self, now_ms: u64) -> Result<()> {
        self.starts = self.starts.wrapping_add(1);
        let engine = EngineOptions {
            journal: Options { segment_bytes: 60_000, check_from_snapshot: self.starts.is_multiple_of(2) },
            params: self.params.clone(),
            snapshot_every: 150,
            salt_seed: [self.starts; 32],
        };
        let options = CoreOptions { engine, keys: self.keys.clone(), endpoints: self.endpoints.clone() };
        let (core, committer, _) = Core::open(self.disk.clone(), options, now_ms)
            .map_err(|error| LabError::Promise { promise: Promise::Restarts, what: with_causes(&error) })?;
        (self.core, self.committer) = (Some(core), Some(committer));
        Ok(())
    }

    /// The process ends without a word; what was only in its memory is gone.
    pub(super) fn stop(&mut self) {
        (self.core, self.committer, self.in_flight) = (None, None, None);
        self.inbox.clear();
        self.outbox.clear();
        self.snapshot = None;
        self.staged = 0;
    }

    pub(super) fn poll_link(&mut self) {
        while let Some(event) = self.link.poll() {
            if self.core.is_some() {
                self.inbox.push_back(Input::Link(event));
            }
        }
    }

    pub(super) fn step(&mut self, now_ms: u64, input: Input) {
        if let Some(core) = &mut self.core {
            core.step(now_ms, input);
            self.staged += 1;
        }
    }

    /// One step towards durability: commits the batch in flight, or seals what is staged. An error is the end of the
    /// process.
    pub(super) fn commit(&mut self) -> Result<Vec<Output>, ServerError> {
        let (Some(core), Some(committer)) = (&mut self.core, &mut self.committer) else {
            return Ok(Vec::new());
        };
        let Some(batch) = self.in_flight.take() else {
            let batch = core.seal()?;
            self.in_flight = (!batch.is_empty()).then_some(batch);
            self.staged = u64::from(self.in_flight.is_some());
            return Ok(Vec::new());
        };
        let durable = committer.commit(batch)?;
        self.staged -= 1;
        self.snapshot = durable.snapshot.or(self.snapshot.take());
        self.endpoints.clone_from(core.view().read().fleet.endpoints());
        Ok(durable.outputs)
    }

    /// Events that are not durable yet.
    pub(super) fn staged_events(&mut self) -> u64 {
        self.core.as_mut().map_or(0, |core| core.engine().staged())
    }

    /// The place of the next event.
    pub(super) fn next_seq(&mut self) -> u64 {
        self.core.as_mut().map_or(0, |core| core.engine().head().seq + core.engine().staged() + 1)
    }

    /// The planted fault: a snapshot of what is not durable.
    pub(super) fn snapshot_ahead(&mut self) {
        if let Some(core) = &mut self.core {
            self.snapshot = Some(core.engine().snapshot());
        }
    }

    pub(super) fn write_snapshot(&mut self) -> Result<(), ServerError> {
        match self.snapshot.take() {
            Some(snapshot) => write_snapshot(&self.disk, &snapshot),
            None => Ok(()),
        }
    }
}
