//! The one writer: drains what waits, steps the core through all of it, commits once, then releases.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ionet_journal::FileDisk;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::Message;
use super::background::{IndexOrder, PayOrder};
use super::hub::HubOrder;
use crate::core::{Core, Input, Output, Ticket};
use crate::engine::write_snapshot;
use crate::error::ServerError;
use crate::handle::{PublishedEvent, Submitted, now_ms};

/// What one batch takes at most, so that answers do not wait for ever.
const BATCH_MESSAGES: usize = 4096;
const BATCH_BYTES: usize = 8 << 20;
const ENDPOINTS_EVERY: Duration = Duration::from_secs(1);

type Waiting = BTreeMap<Ticket, oneshot::Sender<Result<Submitted, ServerError>>>;

pub(super) struct Writer {
    pub(super) core: Core<FileDisk>,
    pub(super) inbox: mpsc::Receiver<Message>,
    pub(super) hub: mpsc::Sender<HubOrder>,
    pub(super) chain: SyncSender<PayOrder>,
    pub(super) index: SyncSender<IndexOrder>,
    pub(super) events: broadcast::Sender<Arc<PublishedEvent>>,
    pub(super) disk: FileDisk,
    pub(super) endpoints_path: PathBuf,
}

struct Batch {
    waiting: Waiting,
    next: Ticket,
    tick: bool,
    stop: bool,
}

impl Writer {
    /// Runs until it is stopped.
    ///
    /// # Errors
    /// A failed commit: whoever waits is told that the server is stopping, and nothing more is written.
    pub(super) fn run(mut self) -> Result<(), ServerError> {
        let mut batch = Batch { waiting: Waiting::new(), next: 0, tick: true, stop: false };
        let (mut snapshot, mut endpoints_at): (Option<JoinHandle<()>>, _) = (None, Instant::now());
        let mut first = Some(Message::Tick);
        while let Some(message) = first.take().or_else(|| self.inbox.blocking_recv()) {
            self.take(message, &mut batch);
            self.drain(&mut batch);
            if std::mem::take(&mut batch.tick) || self.core.dirty() {
                self.core.step(now_ms(), Input::Tick);
            }
            for output in self.core.commit()? {
                self.release(output, &mut batch.waiting);
            }
            if batch.stop {
                break;
            }
            self.snapshot(&mut snapshot);
            if endpoints_at.elapsed() >= ENDPOINTS_EVERY {
                endpoints_at = Instant::now();
                self.save_endpoints();
            }
        }
        self.save_endpoints();
        snapshot.map(JoinHandle::join);
        Ok(())
    }

    fn drain(&mut self, batch: &mut Batch) {
        for _ in 0..BATCH_MESSAGES {
            if batch.stop || self.core.engine().staged_bytes() > BATCH_BYTES {
                return;
            }
            match self.inbox.try_recv() {
                Ok(message) => self.take(message, batch),
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, message: Message, batch: &mut Batch) {
        match message {
            Message::Submit(command, answer) => {
                let ticket = answer.map(|answer| {
                    batch.next += 1;
                    batch.waiting.insert(batch.next, answer);
                    batch.next
                });
                self.core.step(now_ms(), Input::Submit(ticket, *command));
            }
            Message::Input(input) => self.core.step(now_ms(), *input),
            Message::Tick => batch.tick = true,
            Message::Stop => batch.stop = true,
        }
    }

    fn release(&mut self, output: Output, waiting: &mut Waiting) {
        match output {
            Output::Answer(ticket, answer) => {
                if let Some(waiter) = waiting.remove(&ticket) {
                    let answer = answer.map(|events| Submitted { events }).map_err(ServerError::from);
                    let _ = waiter.send(answer);
                }
            }
            Output::Tell(to, message) => match serde_json::to_vec(&message) {
                Ok(frame) => _ = self.hub.blocking_send(HubOrder::Send(to, frame)),
                Err(error) => tracing::error!(%error, "a message could not be written"),
            },
            Output::Probe(to) => _ = self.hub.blocking_send(HubOrder::Probe(to)),
            // What does not fit is asked for again later.
            Output::Pay { payout, account, asset, amount } => {
                let _ = self.chain.try_send(PayOrder { payout, account, asset, amount });
            }
            Output::Find(lease) => _ = self.index.try_send(IndexOrder::Find(lease)),
            Output::Published(events) => {
                for event in events {
                    let _ = self.events.send(Arc::new(event));
                }
                let _ = self.index.try_send(IndexOrder::Follow);
            }
        }
    }

    fn snapshot(&mut self, running: &mut Option<JoinHandle<()>>) {
        if running.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let Some(pending) = self.core.engine().due_snapshot() else { return };
        let disk = self.disk.clone();
        let write = move || {
            if let Err(error) = write_snapshot(&disk, &pending) {
                tracing::warn!(%error, "a snapshot could not be written; the next start folds from the one before");
            }
        };
        *running = std::thread::Builder::new().name("ionet-snapshot".into()).spawn(write).ok();
    }

    /// Keeps how supervisors are reached for the next start; a cache, so a failure is only worth a warning.
    fn save_endpoints(&mut self) {
        let bytes = {
            let mut view = self.core.view().write();
            if !std::mem::take(&mut view.fleet.endpoints_changed) {
                return;
            }
            serde_json::to_vec(view.fleet.endpoints()).unwrap_or_default()
        };
        let temporary = self.endpoints_path.with_extension("new");
        let written = std::fs::write(&temporary, bytes)
            .and_then(|()| std::fs::rename(&temporary, &self.endpoints_path));
        if let Err(error) = written {
            tracing::warn!(%error, "how members are reached could not be kept for the next start");
        }
    }
}
