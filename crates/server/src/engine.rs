//! The engine: the one writer between the rules and the journal.
//!
//! [`Engine::submit`] decides and folds at once and stages the events; [`Engine::seal`] hands over everything staged
//! as one [`Batch`], which a [`Committer`] makes durable while the engine goes on with the next. Opening folds the
//! journal again from the newest snapshot.
//!
//! Always holds: the state may run ahead of what is durable, the view's head does not; after an event that does not
//! fold nothing more is sealed and the process must end. Not here: files and syncs (`commit`), who acts on what was
//! committed (`core`).

use std::sync::mpsc::{Receiver, sync_channel};

use ionet_domain::command::CommandBody;
use ionet_domain::{Actor, Command, Event, LeaseId, Params, PublicBody, State, decide};
use ionet_journal::{Disk, Head, Journal, Options, PrivatePart, Record, Recovery, latest_snapshot};
use serde::{Deserialize, Serialize};

use crate::commit::{Batch, Committer};
use crate::core::Output;
use crate::error::ServerError;
use crate::fleet::Fleet;
use crate::view::{SharedView, View};

/// Records that go from the reading to the folding thread together, and how many such lots may wait.
const FOLD_RECORDS: usize = 256;
const FOLD_LOTS: usize = 16;

/// A longer journal has a bigger state, and copying that stops the writer: a snapshot is due when the journal has grown by
/// this share, but after this many events at most, so that a start stays short.
const SNAPSHOT_SHARE: u64 = 8;
const SNAPSHOT_EVERY_MOST: u64 = 500_000;

/// How to open an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// How to open the journal.
    pub journal: Options,
    /// What a new network is founded with; an old one keeps its own.
    pub params: Params,
    /// A snapshot is due after this many events, or later where the journal is long; 0 means never.
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
#[derive(Debug, Serialize, Deserialize)]
struct SnapshotBody<S> {
    deposits_seen: u64,
    state: S,
}

/// The one writer's state and what it has staged.
#[derive(Debug)]
pub struct Engine {
    view: SharedView,
    staged: Staged,
    /// The place of the next event: it follows what is staged and what was sealed, durable or not.
    next_seq: u64,
    broken: Option<ionet_domain::Broken>,
    snapshot_every: u64,
    snapshot_seq: u64,
}

/// Events that wait to be sealed.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) events: Vec<Event>,
    /// How many events there were after each command: a batch is only ever parted between commands.
    pub(crate) ends: Vec<usize>,
}

/// What a command did: its events and the place of the first.
#[derive(Debug, Clone, Copy)]
pub struct Decided<'a> {
    /// Place of the first event.
    pub first_seq: u64,
    /// In their order.
    pub events: &'a [Event],
}

impl Decided<'_> {
    /// A copy of the events, each with its place.
    pub fn numbered(&self) -> Vec<(u64, Event)> {
        (self.first_seq..).zip(self.events.iter().cloned()).collect()
    }
}

impl Engine {
    /// Opens the journal on `disk`, folds it, founds the network if there is none and begins a term. All of it is
    /// durable afterwards.
    ///
    /// # Errors
    /// If the journal is damaged or does not fold: nothing was changed but a torn end, which was cut.
    pub fn open<D: Disk>(
        disk: D,
        options: EngineOptions,
        fleet: Fleet,
        now_ms: u64,
    ) -> Result<(Self, Committer<D>, Opened), ServerError> {
        let (journal, folded, opened) = open_and_fold(disk, options.journal)?;
        let head = journal.head();
        let view = View { state: folded.state, fleet, head, deposits_seen: folded.deposits_seen };
        let view = SharedView::new(view);
        let mut committer = Committer::new(journal, view.clone(), options.salt_seed);
        let mut engine = Self {
            view,
            staged: Staged::default(),
            next_seq: head.seq + 1,
            broken: None,
            // Nobody takes one here.
            snapshot_every: 0,
            snapshot_seq: opened.snapshot_seq,
        };
        engine.begin(options.params, now_ms)?;
        committer.commit(engine.seal(Vec::new())?)?;
        engine.snapshot_every = options.snapshot_every;
        Ok((engine, committer, opened))
    }

    fn begin(&mut self, params: Params, now_ms: u64) -> Result<(), ServerError> {
        if !self.view.read().state.founded {
            self.submit(&Command::by_server(CommandBody::Found { params }), now_ms)?;
        }
        self.submit(&Command::by_server(CommandBody::BeginTerm { above: 0 }), now_ms)?;
        Ok(())
    }

    /// The view that this engine folds into.
    pub fn view(&self) -> &SharedView {
        &self.view
    }

    /// The durable head.
    pub fn head(&self) -> Head {
        self.view.read().head
    }

    /// Events that were decided and are not durable yet: staged, or sealed and on their way.
    pub fn staged(&self) -> u64 {
        self.next_seq - 1 - self.head().seq
    }

    /// Decides, folds and stages. The events' places follow everything decided before.
    ///
    /// # Errors
    /// [`ServerError::Refused`]: nothing happened. [`ServerError::Broken`]: the engine has failed for good.
    pub fn submit(&mut self, command: &Command, now_ms: u64) -> Result<Decided<'_>, ServerError> {
        self.check_usable()?;
        let (first_seq, from) = (self.next_seq, self.staged.events.len());
        let mut view = self.view.write();
        for event in decide(&view.state, command, now_ms)? {
            if let Err(broken) = view.state.apply(&event) {
                self.broken = Some(broken.clone());
                return Err(broken.into());
            }
            view.deposits_seen = view.deposits_seen.max(deposit_number(&event));
            self.staged.events.push(event);
        }
        self.staged.ends.push(self.staged.events.len());
        let events = &self.staged.events[from..];
        self.next_seq += events.len() as u64;
        Ok(Decided { first_seq, events })
    }

    fn check_usable(&self) -> Result<(), ServerError> {
        self.broken.as_ref().map_or(Ok(()), |broken| Err(broken.clone().into()))
    }

    /// Everything staged, to be committed in this order; `outputs` wait for it.
    ///
    /// # Errors
    /// Fatal: a decided event did not fold, so nothing of what is staged may become durable.
    pub fn seal(&mut self, outputs: Vec<Output>) -> Result<Batch, ServerError> {
        self.check_usable()?;
        let staged = std::mem::take(&mut self.staged);
        let snapshot = if staged.events.is_empty() { None } else { self.due_snapshot() };
        Ok(Batch { staged, outputs, snapshot })
    }

    /// A copy of the state when a snapshot is due. It is one of everything decided so far, so it belongs to the end
    /// of the batch that is being sealed and is of use once that is durable.
    fn due_snapshot(&mut self) -> Option<Folded> {
        let seq = self.next_seq - 1;
        let every = self.snapshot_every.max((seq / SNAPSHOT_SHARE).min(SNAPSHOT_EVERY_MOST));
        let due = self.snapshot_every > 0 && seq >= self.snapshot_seq + every;
        due.then(|| {
            self.snapshot_seq = seq;
            self.folded()
        })
    }

    fn folded(&self) -> Folded {
        let view = self.view.read();
        Folded { deposits_seen: view.deposits_seen, state: view.state.clone() }
    }

    /// A copy of the state; only where everything decided is durable.
    pub fn snapshot(&self) -> PendingSnapshot {
        PendingSnapshot { at: self.head(), folded: self.folded() }
    }
}

/// A state on its way to a snapshot file.
#[derive(Debug)]
pub struct PendingSnapshot {
    pub(crate) at: Head,
    pub(crate) folded: Folded,
}

/// Writes a snapshot; may run on any thread while the journal goes on.
pub fn write_snapshot<D: Disk>(disk: &D, pending: &PendingSnapshot) -> Result<(), ServerError> {
    let Folded { deposits_seen, state } = &pending.folded;
    let body = SnapshotBody { deposits_seen: *deposits_seen, state };
    // The state is plain data with text keys: writing it to memory has no way to fail.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    Ok(ionet_journal::write_snapshot(disk, pending.at, &body)?)
}

/// What the journal folds to.
#[derive(Debug, Default)]
pub(crate) struct Folded {
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

/// Opens the journal and folds it in one pass: one thread reads and checks, another parses and folds.
fn open_and_fold<D: Disk>(disk: D, options: Options) -> Result<(Journal<D>, Folded, Opened), ServerError> {
    let mut unusable_snapshots = Vec::new();
    let (snapshot_seq, folded) = from_snapshot(&disk, &mut unusable_snapshots)?;
    let (lots, waiting) = sync_channel(FOLD_LOTS);
    let (journal, folded) = std::thread::scope(|scope| {
        let fold = scope.spawn(move || fold(folded, &waiting));
        let mut lot = Vec::new();
        let journal = Journal::open_with(disk, options, snapshot_seq, |record| {
            lot.push(record);
            if lot.len() >= FOLD_RECORDS {
                // Nobody takes it where an earlier record did not fold, which is told below.
                let _ = lots.send(std::mem::take(&mut lot));
            }
        });
        let _ = lots.send(lot);
        drop(lots);
        (journal, fold.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let ((journal, recovery), folded) = (journal?, folded?);
    let folded_records = recovery.head.seq - snapshot_seq;
    let opened = Opened { journal: recovery, snapshot_seq, unusable_snapshots, folded: folded_records };
    Ok((journal, folded, opened))
}

fn fold(mut folded: Folded, lots: &Receiver<Vec<Record>>) -> Result<Folded, ServerError> {
    for lot in lots {
        lot.iter().try_for_each(|record| folded.take(record))?;
    }
    Ok(folded)
}

/// The fold as far as the newest usable snapshot has it, and where that is.
fn from_snapshot<D: Disk>(disk: &D, unusable: &mut Vec<String>) -> Result<(u64, Folded), ServerError> {
    let latest = latest_snapshot(disk)?;
    unusable.extend(latest.damaged.iter().map(ToString::to_string));
    let Some(snapshot) = latest.snapshot else { return Ok((0, Folded::default())) };
    match serde_json::from_slice::<SnapshotBody<State>>(&snapshot.body) {
        Ok(SnapshotBody { deposits_seen, state }) if state.events == snapshot.at.seq => {
            return Ok((snapshot.at.seq, Folded { state, deposits_seen }));
        }
        Ok(_) => unusable.push("a snapshot counts other events than the journal".into()),
        Err(error) => unusable.push(format!("a snapshot of another release: {error}")),
    }
    Ok((0, Folded::default()))
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
    state.lease(lease).is_ok_and(|(order, found)| closing(order) || found.ended() || found.released.is_some())
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
