//! Where durable outputs go: to waiting callers, links, the chain, the index, subscribers and snapshot files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use ionet_journal::FileDisk;
use tokio::sync::{broadcast, mpsc};

use super::background::{IndexOrder, PayOrder};
use super::hub::HubOrder;
use crate::commit::Durable;
use crate::core::Output;
use crate::engine::{PendingSnapshot, write_snapshot};
use crate::handle::PublishedEvent;
use crate::view::SharedView;
use crate::writer::Waiting;

/// Runs on the journal's thread.
pub(super) struct Outlet {
    pub(super) hub: mpsc::Sender<HubOrder>,
    pub(super) chain: SyncSender<PayOrder>,
    pub(super) index: SyncSender<IndexOrder>,
    pub(super) events: broadcast::Sender<Arc<PublishedEvent>>,
    pub(super) disk: FileDisk,
    pub(super) snapshot: Option<JoinHandle<()>>,
}

impl Outlet {
    pub(super) fn release(&mut self, durable: Durable, mut waiting: Waiting) {
        for output in durable.outputs {
            self.let_go(output, &mut waiting);
        }
        if let Some(pending) = durable.snapshot {
            self.write(pending);
        }
    }

    fn let_go(&mut self, output: Output, waiting: &mut Waiting) {
        match output {
            Output::Answer(ticket, answer) => waiting.answer(ticket, answer),
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

    /// A snapshot that comes while another is written is left out: the next one is as good.
    fn write(&mut self, pending: PendingSnapshot) {
        if self.snapshot.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let disk = self.disk.clone();
        let write = move || {
            if let Err(error) = write_snapshot(&disk, &pending) {
                tracing::warn!(%error, "a snapshot could not be written; the next start folds from the one before");
            }
        };
        self.snapshot = std::thread::Builder::new().name("ionet-snapshot".into()).spawn(write).ok();
    }
}

impl Drop for Outlet {
    /// The data directory is free only when nothing is written there any more.
    fn drop(&mut self) {
        self.snapshot.take().map(JoinHandle::join);
    }
}

/// How supervisors are reached, kept for the next start.
pub(super) struct Endpoints {
    path: PathBuf,
    view: SharedView,
}

impl Endpoints {
    pub(super) fn new(path: &Path, view: SharedView) -> Self {
        Self { path: path.to_owned(), view }
    }

    /// Writes them if they changed; a cache, so a failure is only worth a warning.
    pub(super) fn save(&self) {
        let bytes = {
            let mut view = self.view.write();
            if !std::mem::take(&mut view.fleet.endpoints_changed) {
                return;
            }
            serde_json::to_vec(view.fleet.endpoints()).unwrap_or_default()
        };
        let temporary = self.path.with_extension("new");
        let written =
            std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &self.path));
        if let Err(error) = written {
            tracing::warn!(%error, "how members are reached could not be kept for the next start");
        }
    }
}
