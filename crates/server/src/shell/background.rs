//! What goes on beside the writer: the subject index follows the journal, the chain is paid on and watched, time ticks.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use ionet_chain::Chain;
use ionet_domain::{Address, Asset, LeaseId, PayoutId};
use ionet_journal::{FileDisk, Index, Reader};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::TICK;
use crate::core::Input;
use crate::error::ServerError;
use crate::view::SharedView;
use crate::writer::Message;

/// How often the chain is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How long the index lets records gather before it takes them in. Under load every lot of its own visits the same
/// pages again, so gathering for longer is most of what makes it cheap; what it does not have yet is looked through.
pub const GATHER: Duration = Duration::from_millis(100);

/// What the index's thread is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IndexOrder {
    /// There are new records.
    Follow,
    /// Whether the journal has the order of this lease.
    Find(LeaseId),
}

/// The index's thread.
pub(super) struct Follower {
    pub(super) index_path: PathBuf,
    pub(super) reader: Reader<FileDisk>,
    pub(super) view: SharedView,
    pub(super) writer: mpsc::Sender<Message>,
}

impl Follower {
    /// Runs until the writer is gone.
    pub(super) fn run(self, orders: &Receiver<IndexOrder>) {
        let mut index = None;
        let mut batch = vec![IndexOrder::Follow];
        loop {
            if let Err(error) = self.carry_out(&mut index, &batch) {
                tracing::warn!(%error, "the subject index is behind; it is opened again");
                index = None;
            }
            batch.clear();
            match orders.recv() {
                Ok(order) => batch.push(order),
                Err(_) => return,
            }
            std::thread::sleep(GATHER);
            batch.extend(orders.try_iter());
        }
    }

    fn carry_out(&self, index: &mut Option<Index>, orders: &[IndexOrder]) -> Result<(), ServerError> {
        let open = match index {
            Some(open) => open,
            None => index.insert(Index::open(&self.index_path)?),
        };
        let head = self.view.read().head;
        let caught_up = open.catch_up(&self.reader, head.seq)?;
        if caught_up.rebuilt {
            tracing::info!(seq = caught_up.position.seq, "the subject index was built anew");
        }
        for order in orders {
            if let IndexOrder::Find(lease) = order {
                let found = !open.by_subject(&lease.order.to_string(), 0, 1)?.is_empty();
                let answer = Message::Input(Box::new(Input::Found(*lease, found)));
                let _ = self.writer.blocking_send(answer);
            }
        }
        Ok(())
    }
}

/// One payment to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PayOrder {
    pub(super) payout: PayoutId,
    pub(super) account: Address,
    pub(super) asset: Asset,
    pub(super) amount: u64,
}

/// The chain's thread.
pub(super) struct Watcher {
    pub(super) chain: Box<dyn Chain + Send>,
    pub(super) view: SharedView,
    pub(super) writer: mpsc::Sender<Message>,
}

impl Watcher {
    /// Runs until the writer is gone.
    pub(super) fn run(mut self, orders: &Receiver<PayOrder>) {
        loop {
            self.watch();
            match orders.recv_timeout(WATCH_EVERY) {
                Ok(order) => self.pay(&order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn watch(&mut self) {
        let seen = self.view.read().deposits_seen;
        match self.chain.deposits_after(seen) {
            Ok(deposits) => deposits.into_iter().for_each(|deposit| self.send(Input::ChainDeposit(deposit))),
            Err(error) => tracing::warn!(%error, "the chain cannot be watched"),
        }
    }

    fn pay(&mut self, order: &PayOrder) {
        let PayOrder { payout, account, asset, amount } = *order;
        let paid = self.chain.pay(payout, account, asset, amount).map_err(|error| error.to_string());
        self.send(Input::ChainPaid(payout, paid));
    }

    fn send(&self, input: Input) {
        let _ = self.writer.blocking_send(Message::Input(Box::new(input)));
    }
}

/// Lets the reconcilers look regularly. A tick that finds the queue full is not missed.
pub(super) async fn tick(writer: mpsc::Sender<Message>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !writer.is_closed() {
        ticks.tick().await;
        let _ = writer.try_send(Message::Tick);
    }
}
