//! What must hold of the cloud, checked against the journal's own events and against what really happened.
//!
//! The checker folds every durable event into a state of its own and knows which boxes really ran, which receipts were
//! really made, what was quoted, answered and told. One file for each kind of promise; every finding names its
//! [`Promise`](super::Promise).

mod boxes;
mod end;
mod journal;
mod look;
mod money;
mod reasons;

use std::collections::BTreeSet;

use ionet_chain::MemChain;
use ionet_domain::device::Contact;
use ionet_domain::order::CloseReason;
use ionet_domain::{DeviceId, Event, LeaseId, PublicBody, State};

pub(super) use boxes::Boxes;
pub(super) use journal::Book;
pub(super) use money::Money;
pub(super) use reasons::{quote_is_refused_in_truth, refusal_is_true};

use super::promise::{Promise, broken, must};
use crate::Result;

/// Without faults nothing is lost, and nothing takes longer than this.
const CALM_START_MS: u64 = 30_000;
const CALM_END_MS: u64 = 30_000;
/// Time that an order ran and that may stay uncharged: reports come every five seconds.
const CALM_UNCHARGED_MS: u64 = 12_000;

/// What is true in the world when an event became durable.
pub(super) struct Facts<'a> {
    /// Whether a box of this lease runs on this device.
    pub(super) running: &'a dyn Fn(DeviceId, LeaseId) -> bool,
    pub(super) chain: &'a MemChain,
    /// Devices that are not what they claim.
    pub(super) false_hardware: &'a BTreeSet<DeviceId>,
    /// Nothing goes wrong in this run.
    pub(super) calm: bool,
}

/// What is known so far.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// The fold of everything durable.
    pub(super) shadow: State,
    /// Whether the server was put back to an old backup.
    pub(super) restored: bool,
    /// Records, answers, wishes.
    pub(super) book: Book,
    /// Quotes and payments.
    pub(super) money: Money,
    /// What really became of boxes.
    pub(super) boxes: Boxes,
}

impl Checker {
    /// The journal is about to be read from its first record, after it was put back to record `seq`.
    pub(super) fn put_back(&mut self, seq: u64) {
        self.restored = true;
        self.shadow = State::default();
        self.book.put_back(seq);
        self.money.paid.clear();
    }

    /// Folds an event without looking at the world, as after a restore.
    pub(super) fn fold(&mut self, event: &Event) -> Result<()> {
        self.book.note(event)?;
        self.boxes.note_ended(&self.shadow, &event.public);
        self.apply(event)?;
        self.money.note_paid(&event.public);
        Ok(())
    }

    /// Folds a durable event and checks what it claims.
    pub(super) fn take(&mut self, event: &Event, facts: &Facts<'_>) -> Result<()> {
        self.book.note(event)?;
        reasons::closing(&self.shadow, event)?;
        boxes::given_up(&self.shadow, &event.public, facts)?;
        money::charged(&self.shadow, event, &self.boxes)?;
        self.money.accepted(event)?;
        money::released(&self.shadow, event)?;
        money::came_in(&event.public, facts.chain)?;
        if facts.calm {
            self.calm(event)?;
        }
        if let PublicBody::DevicePooled { device, .. } = &event.public {
            let honest = !facts.false_hardware.contains(device);
            must(honest, Promise::PoolHonest, || {
                format!("{device} is not what it claims and is in the pool")
            })?;
        }
        self.boxes.note_ended(&self.shadow, &event.public);
        self.apply(event)?;
        self.money.note_paid(&event.public);
        match &event.public {
            PublicBody::OrderPlaced { leases, order, .. } => {
                boxes::units_once(&self.shadow, leases)?;
                money::within_item(&self.shadow, *order)
            }
            PublicBody::OrderRepriced { order, .. } => money::within_item(&self.shadow, *order),
            PublicBody::OrderSettled { order, .. } => money::settled(&self.shadow, *order),
            PublicBody::OrderFunded { order, .. }
            | PublicBody::OrderExtended { order, .. }
            | PublicBody::OrderGrown { order, .. }
            | PublicBody::OrderShrunk { order, .. }
            | PublicBody::OrderChanged { order, .. } => money::set_aside(&self.shadow, *order),
            _ => Ok(()),
        }
    }

    fn apply(&mut self, event: &Event) -> Result<()> {
        self.shadow.apply(event).or_else(|wrong| broken(Promise::JournalFolds, wrong.to_string()))
    }

    fn calm(&self, event: &Event) -> Result<()> {
        let state = &self.shadow;
        let late = |what: String| broken(Promise::Calm, what);
        match &event.public {
            PublicBody::LeaseLost { lease, reason } => late(format!("{lease} was lost: {reason}")),
            PublicBody::DeviceContact { device, contact: Contact::Unknown { .. } } => {
                late(format!("contact to {device} was lost"))
            }
            PublicBody::OrderRunning { order } => {
                let first = state.order(*order).ok().filter(|order| order.course.pauses == 0);
                let took_ms = first.map_or(0, |order| event.at_ms - order.accepted_ms);
                must(took_ms <= CALM_START_MS, Promise::Calm, || format!("{order} took {took_ms} ms to run"))
            }
            PublicBody::OrderSettled { order: id, .. } => {
                let Ok(order) = state.order(*id) else { return Ok(()) };
                let closed_ms = order.closed_ms.unwrap_or(event.at_ms);
                let took_ms = event.at_ms - closed_ms;
                must(took_ms <= CALM_END_MS, Promise::Calm, || format!("{id} took {took_ms} ms to settle"))?;
                let by_time = order.reason == Some(CloseReason::Time);
                let ran_on = |n: &u32| by_time && !self.boxes.exited.contains(&LeaseId { order: *id, n: *n });
                let short = order.leases.iter().filter(|(n, _)| ran_on(n)).find(|(_, lease)| {
                    let until_ms = lease.released.map_or(closed_ms, |released| released.charged_until_ms);
                    let ran_ms =
                        lease.charging_since_ms.map_or(0, |since_ms| until_ms.saturating_sub(since_ms));
                    lease.elapsed_ms + CALM_UNCHARGED_MS < ran_ms
                });
                must(short.is_none(), Promise::Calm, || format!("{id} was charged too little: {short:?}"))
            }
            _ => Ok(()),
        }
    }
}
