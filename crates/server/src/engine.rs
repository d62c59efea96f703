//! The engine: the one writer between the rules and the journal.
//!
//! [`Engine::submit`] decides and folds at once and stages the events; [`Engine::commit`] makes everything staged
//! durable with one append and one sync. Opening folds the journal again from the newest snapshot.
//!
//! Always holds: what is staged is told to nobody before `commit` returned; after a failed commit the engine
//! refuses everything and its process must end. Not here: who acts on what was committed (`core`).

use ionet_domain::command::CommandBody;
use ionet_domain::{Actor, Command, Event, LeaseId, OrderId, Params, PublicBody, State, decide};
use ionet_journal::{
    Disk, Entry, Head, Journal, MAX_SUBJECTS, Options, Private, PrivatePart, Record, Recovery,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::ServerError;
use crate::fleet::Fleet;
use crate::handle::PublishedEvent;
use crate::view::{SharedView, View};

/// How to open an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// How to open the journal.
    pub journal: Options,
    /// What a new network is founded with; an old one keeps its own.
    pub params: Params,
    /// A snapshot is due after this many events; 0 means never.
    pub snapshot_every: u64,
    /// 32 fresh random bytes: the salts of private parts come from it.
    pub salt_seed: [u8; 32],
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            journal: Options::default(),
            params: Params::default(),
            snapshot_every: 50_000,
            salt_seed: [0; 32],
        }
    }
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// What the journal found; torn ends that were cut are in it.
    pub journal: Recovery,
    /// The snapshot that the fold began at; 0 if it began at record 1.
    pub snapshot_seq: u64,
    /// Snapshots that could not be used, with the reason.
    pub unusable_snapshots: Vec<String>,
    /// Records folded.
    pub folded: u64,
}

/// What a snapshot holds.
#[derive(Serialize, Deserialize)]
struct SnapshotBody<S> {
    deposits_seen: u64,
    state: S,
}

/// The one writer.
#[derive(Debug)]
pub struct Engine<D> {
    journal: Journal<D>,
    view: SharedView,
    staged: Vec<Event>,
    entries: Vec<Entry>,
    staged_bytes: usize,
    failed: bool,
    broken: Option<ionet_domain::Broken>,
    salts: Salts,
    snapshot_every: u64,
    snapshot_seq: u64,
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

impl<D: Disk> Engine<D> {
    /// Opens the journal on `disk`, folds it, founds the network if there is none and begins a term. All of it is
    /// durable afterwards.
    ///
    /// # Errors
    /// If the journal is damaged or does not fold: nothing was changed but a torn end, which was cut.
    pub fn open(
        disk: D,
        options: EngineOptions,
        fleet: Fleet,
        now_ms: u64,
    ) -> Result<(Self, Opened), ServerError> {
        let (journal, recovery) = Journal::open(disk, options.journal)?;
        let mut opened =
            Opened { journal: recovery, snapshot_seq: 0, unusable_snapshots: Vec::new(), folded: 0 };
        let mut folded = from_snapshot(&journal, &mut opened)?;
        for record in journal.read_from(opened.snapshot_seq + 1)? {
            folded.take(&record?)?;
            opened.folded += 1;
        }
        let head = journal.head();
        let view = View { state: folded.state, fleet, head, deposits_seen: folded.deposits_seen };
        let mut engine = Self {
            journal,
            view: SharedView::new(view),
            staged: Vec::new(),
            entries: Vec::new(),
            staged_bytes: 0,
            failed: false,
            broken: None,
            salts: Salts { seed: options.salt_seed, count: 0 },
            snapshot_every: options.snapshot_every,
            snapshot_seq: opened.snapshot_seq,
        };
        engine.begin(options.params, now_ms)?;
        Ok((engine, opened))
    }

    fn begin(&mut self, params: Params, now_ms: u64) -> Result<(), ServerError> {
        if !self.view.read().state.founded {
            self.submit(&Command::by_server(CommandBody::Found { params }), now_ms)?;
        }
        self.submit(&Command::by_server(CommandBody::BeginTerm), now_ms)?;
        self.commit()?;
        Ok(())
    }

    /// The view that this engine folds into.
    pub fn view(&self) -> &SharedView {
        &self.view
    }

    /// The durable head.
    pub fn head(&self) -> Head {
        self.journal.head()
    }

    /// The journal, for looking things up.
    pub fn journal(&self) -> &Journal<D> {
        &self.journal
    }

    /// Bytes waiting for [`Engine::commit`].
    pub fn staged_bytes(&self) -> usize {
        self.staged_bytes
    }

    /// Events waiting for [`Engine::commit`].
    pub fn staged(&self) -> usize {
        self.staged.len()
    }

    /// Decides, folds and stages. The events' places follow the head and what was staged before.
    ///
    /// # Errors
    /// [`ServerError::Refused`]: nothing happened. Any other: the engine has failed for good.
    pub fn submit(&mut self, command: &Command, now_ms: u64) -> Result<Vec<(u64, Event)>, ServerError> {
        self.check_usable()?;
        let first = self.head().seq + 1 + self.staged.len() as u64;
        let events = {
            let mut view = self.view.write();
            let events = decide(&view.state, command, now_ms)?;
            for event in &events {
                if let Err(broken) = view.state.apply(event) {
                    self.failed = true;
                    self.broken = Some(broken.clone());
                    return Err(broken.into());
                }
                view.deposits_seen = view.deposits_seen.max(deposit_number(event));
            }
            events
        };
        for event in &events {
            self.stage(event.clone());
        }
        Ok((first..).zip(events).collect())
    }

    fn stage(&mut self, event: Event) {
        let salt = &mut self.salts;
        let private = event.private_json().map(|body| Private { salt: salt.next(), body });
        let mut subjects = event.public.subjects();
        // Only a retirement can have more; each of its orders has other events to be found by.
        subjects.truncate(MAX_SUBJECTS);
        let entry = Entry { at_ms: event.at_ms, public: event.public_json(), private, subjects };
        let private_bytes = entry.private.as_ref().map_or(0, |private| private.body.len());
        self.staged_bytes += entry.public.len() + private_bytes + 256;
        self.entries.push(entry);
        self.staged.push(event);
    }

    fn check_usable(&self) -> Result<(), ServerError> {
        match &self.broken {
            Some(broken) => Err(broken.clone().into()),
            None if self.failed => Err(ionet_journal::Error::Stopped.into()),
            None => Ok(()),
        }
    }

    /// Makes everything staged durable: one append, one sync. What it returns may be published.
    ///
    /// # Errors
    /// Fatal: it is on disk or not, never in part. End the process and open again.
    pub fn commit(&mut self) -> Result<Vec<PublishedEvent>, ServerError> {
        self.check_usable()?;
        if self.staged.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.head().seq + 1;
        let hashes = match self.journal.append_hashed(&self.entries) {
            Ok(hashes) => hashes,
            Err(error) => {
                self.failed = true;
                return Err(error.into());
            }
        };
        self.entries.clear();
        self.staged_bytes = 0;
        self.view.write().head = self.journal.head();
        let numbered = (first..).zip(hashes).zip(self.staged.drain(..));
        Ok(numbered.map(|((seq, hash), event)| PublishedEvent { seq, hash, event }).collect())
    }

    /// A copy of the state to be written as a snapshot with [`write_snapshot`], when one is due and nothing is staged.
    pub fn due_snapshot(&mut self) -> Option<PendingSnapshot> {
        let head = self.head();
        let due = self.snapshot_every > 0 && head.seq >= self.snapshot_seq + self.snapshot_every;
        if !due || !self.staged.is_empty() {
            return None;
        }
        self.snapshot_seq = head.seq;
        Some(self.snapshot())
    }

    /// A copy of the state at the durable head; only where nothing is staged.
    pub fn snapshot(&self) -> PendingSnapshot {
        let view = self.view.read();
        PendingSnapshot { at: self.head(), deposits_seen: view.deposits_seen, state: view.state.clone() }
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

/// A state on its way to a snapshot file.
#[derive(Debug)]
pub struct PendingSnapshot {
    at: Head,
    deposits_seen: u64,
    state: State,
}

/// Writes a snapshot; may run on any thread while the journal goes on.
pub fn write_snapshot<D: Disk>(disk: &D, pending: &PendingSnapshot) -> Result<(), ServerError> {
    let body = SnapshotBody { deposits_seen: pending.deposits_seen, state: &pending.state };
    // The state is plain data with text keys: writing it to memory has no way to fail.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    Ok(ionet_journal::write_snapshot(disk, pending.at, &body)?)
}

#[derive(Default)]
struct Folded {
    state: State,
    deposits_seen: u64,
}

impl Folded {
    fn take(&mut self, record: &Record) -> Result<(), ServerError> {
        let private = match &record.private {
            PrivatePart::Present(private) => Some(private.body.as_slice()),
            _ => None,
        };
        let seq = record.seq;
        let event = Event::read(record.at_ms, &record.public, private)
            .map_err(|e| ServerError::Unfoldable { seq, source: Box::new(e) })?;
        self.state.apply(&event).map_err(|e| ServerError::Unfoldable { seq, source: Box::new(e) })?;
        self.deposits_seen = self.deposits_seen.max(deposit_number(&event));
        Ok(())
    }
}

/// The fold as far as the newest usable snapshot has it. The journal has checked that the snapshot is of its chain.
fn from_snapshot<D: Disk>(journal: &Journal<D>, opened: &mut Opened) -> Result<Folded, ServerError> {
    let latest = journal.latest_snapshot()?;
    opened.unusable_snapshots.extend(latest.damaged.iter().map(ToString::to_string));
    let Some(snapshot) = latest.snapshot else { return Ok(Folded::default()) };
    match serde_json::from_slice::<SnapshotBody<State>>(&snapshot.body) {
        Ok(body) if body.state.events == snapshot.at.seq => {
            opened.snapshot_seq = snapshot.at.seq;
            Ok(Folded { state: body.state, deposits_seen: body.deposits_seen })
        }
        Ok(_) => {
            opened.unusable_snapshots.push("a snapshot counts other events than the journal".into());
            Ok(Folded::default())
        }
        Err(error) => {
            opened.unusable_snapshots.push(format!("a snapshot of another release: {error}"));
            Ok(Folded::default())
        }
    }
}

fn deposit_number(event: &Event) -> u64 {
    match &event.public {
        PublicBody::Deposited { transfer, .. } => transfer.id.n,
        _ => 0,
    }
}

/// Whether a lease is known to have ended, by the live state alone.
pub(crate) fn known_ended(state: &State, lease: LeaseId) -> bool {
    let closing = |order: &ionet_domain::Order| order.stage >= ionet_domain::Stage::Closing;
    state.lease(lease).is_ok_and(|(order, found)| closing(order) || found.ended())
}

/// A command of the server's own.
pub(crate) trait ByServer {
    fn by_server(body: CommandBody) -> Self;
}

impl ByServer for Command {
    fn by_server(body: CommandBody) -> Self {
        Command { id: None, actor: Actor::Server, body }
    }
}
