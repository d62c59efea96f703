//! What must hold of the cloud, checked against the journal's own events and against what really happened.
//!
//! The checker folds every durable event into a state of its own, reads the whole journal again after every start, and
//! knows which boxes really ran and which receipts were really made.

use std::collections::{BTreeMap, BTreeSet};

use ionet_domain::ledger::Owner;
use ionet_domain::order::{LeasePhase, Order};
use ionet_domain::{CommandId, Event, LeaseId, OrderId, PayoutId, PublicBody, Stage, State};
use ionet_journal::{Hash, Record, Scope};
use ionet_server::PublishedEvent;

use super::fold;
use super::server::params;
use super::world::World;
use crate::{LabError, Result};

/// How long a device that is linked may be without a box that is paid for, or with one that is not.
const BOUND_MS: u64 = 60_000;

/// What really became of a box.
#[derive(Debug, Clone, Copy)]
struct Truth {
    ended_ms: Option<u64>,
}

/// What is known so far.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// The fold of everything durable.
    pub(super) shadow: State,
    /// Whether the server was put back to an old backup.
    pub(super) restored: bool,
    /// Which wish of which renter each order belongs to.
    pub(super) intents: BTreeMap<OrderId, u64>,
    hashes: Vec<Hash>,
    promised: BTreeMap<u64, Vec<u8>>,
    commands: BTreeSet<CommandId>,
    accepted: BTreeMap<u64, OrderId>,
    paid: BTreeMap<PayoutId, u64>,
    boxes: BTreeMap<LeaseId, Truth>,
    receipts: BTreeMap<LeaseId, u64>,
    /// Leases that were ended in the books, in any timeline.
    ended: BTreeSet<LeaseId>,
    wrong_since_ms: BTreeMap<LeaseId, u64>,
}

fn broken<T>(what: String) -> Result<T> {
    Err(LabError::Broken(what))
}

impl Checker {
    /// The journal is about to be read from its first record.
    pub(super) fn begin_again(&mut self) {
        self.shadow = State::default();
        self.commands.clear();
        self.accepted.clear();
        self.paid.clear();
    }

    /// The journal was put back to record `seq`.
    pub(super) fn forget_after(&mut self, seq: u64) {
        self.hashes.truncate(usize::try_from(seq).unwrap_or(usize::MAX));
        self.promised.retain(|at, _| *at <= seq);
        self.restored = true;
    }

    /// A record read again must be the one that was published and answered.
    pub(super) fn reread(&mut self, record: &Record) -> Result<()> {
        let at = usize::try_from(record.seq - 1).unwrap_or(usize::MAX);
        match self.hashes.get(at) {
            Some(hash) if *hash != record.hash => {
                return broken(format!("record {} changed after it was published", record.seq));
            }
            Some(_) => {}
            None => self.hashes.push(record.hash),
        }
        if self.promised.get(&record.seq).is_some_and(|public| *public != record.public) {
            return broken(format!("record {} is not the event that was answered", record.seq));
        }
        Ok(())
    }

    /// All was read again.
    pub(super) fn reread_all(&mut self, last_seq: u64) -> Result<()> {
        if last_seq < self.hashes.len() as u64 {
            return broken(format!("{} records were published and {last_seq} are left", self.hashes.len()));
        }
        match self.promised.keys().next_back() {
            Some(seq) if *seq > last_seq => {
                broken(format!("the event of record {seq} was answered and the journal ends at {last_seq}"))
            }
            _ => Ok(()),
        }
    }

    /// An event became durable.
    pub(super) fn published(&mut self, published: &PublishedEvent) -> Result<()> {
        if published.seq != self.hashes.len() as u64 + 1 {
            return broken(format!("record {} was published after {}", published.seq, self.hashes.len()));
        }
        self.hashes.push(published.hash);
        Ok(())
    }

    /// A renter was told that these happened.
    pub(super) fn promise(&mut self, events: Vec<(u64, Event)>) {
        self.promised.extend(events.into_iter().map(|(seq, event)| (seq, event.public_json())));
    }

    /// Folds a durable event and checks what it claims.
    pub(super) fn take(
        &mut self,
        event: &Event,
        at_ms: u64,
        running: &dyn Fn(LeaseId) -> bool,
    ) -> Result<()> {
        if let Some(command) = event.command
            && !self.commands.insert(command)
        {
            return broken(format!("command {command} had its effect twice"));
        }
        self.check_claim(event, at_ms, running)?;
        self.note_ended(&event.public);
        self.shadow.apply(event).map_err(|broken| LabError::Broken(broken.to_string()))?;
        match &event.public {
            PublicBody::OrderSettled { order, .. } => match self.shadow.order(*order) {
                Ok(settled) => check_bill(settled, self),
                Err(refusal) => broken(refusal.to_string()),
            },
            PublicBody::PayoutPaid { payout, transfer, .. } => {
                self.paid.insert(*payout, transfer.amount);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_claim(&mut self, event: &Event, at_ms: u64, running: &dyn Fn(LeaseId) -> bool) -> Result<()> {
        match &event.public {
            PublicBody::OrderAccepted { order, .. } => {
                let Some(tag) = self.intents.get(order) else { return Ok(()) };
                match self.accepted.insert(*tag, *order) {
                    Some(first) => broken(format!("one wish became two orders: {first} and {order}")),
                    None => Ok(()),
                }
            }
            PublicBody::LeaseLost { lease, reason } => {
                let ready = self.shadow.lease(*lease).is_ok_and(|(_, l)| l.phase == LeasePhase::Ready);
                if ready && running(*lease) {
                    return broken(format!("paid work of {lease} was given up while it ran: {reason}"));
                }
                Ok(())
            }
            PublicBody::LeaseMetered { receipt, charge, .. } => {
                let receipted_ms = self.receipts.get(&receipt.lease).copied().unwrap_or_default();
                if charge.elapsed_ms > receipted_ms {
                    let (id, ms) = (receipt.lease, charge.elapsed_ms);
                    return broken(format!(
                        "{id} was charged for {ms} ms and receipted {receipted_ms} at {at_ms}"
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn note_ended(&mut self, event: &PublicBody) {
        match event {
            PublicBody::OrderClosing { order, .. } => {
                let leases = self.shadow.orders.get(order).into_iter().flat_map(|o| o.leases.keys());
                self.ended.extend(leases.map(|n| LeaseId { order: *order, n: *n }));
            }
            PublicBody::LeaseLost { lease, .. } | PublicBody::LeaseRemoved { lease, .. } => {
                self.ended.insert(*lease);
            }
            _ => {}
        }
    }

    pub(super) fn box_started(&mut self, lease: LeaseId, _at_ms: u64) -> Result<()> {
        let before = self.boxes.insert(lease, Truth { ended_ms: None });
        if before.is_some() && !self.restored {
            return broken(format!("a second box was started for {lease}"));
        }
        Ok(())
    }

    /// A box was ended by its supervisor: because its paid time was over, or because the books say so.
    pub(super) fn box_ended(&mut self, lease: LeaseId, reason: &str, at_ms: u64) -> Result<()> {
        self.box_died(lease, at_ms);
        let time_over = reason == ionet_worker::supervision::PAID_TIME_OVER;
        if time_over || self.ended.contains(&lease) {
            return Ok(());
        }
        broken(format!("the box of {lease} was ended and nobody had closed it: {reason}"))
    }

    pub(super) fn box_died(&mut self, lease: LeaseId, at_ms: u64) {
        if let Some(truth) = self.boxes.get_mut(&lease) {
            truth.ended_ms.get_or_insert(at_ms);
        }
    }

    pub(super) fn receipted(&mut self, lease: LeaseId, elapsed_ms: u64) {
        let most = self.receipts.entry(lease).or_default();
        *most = elapsed_ms.max(*most);
    }

    /// Whether something has been wrong with a lease for too long.
    fn wrong(&mut self, lease: LeaseId, is: bool, at_ms: u64) -> bool {
        if !is {
            self.wrong_since_ms.remove(&lease);
            return false;
        }
        at_ms - *self.wrong_since_ms.entry(lease).or_insert(at_ms) > BOUND_MS
    }
}

fn check_bill(order: &Order, checker: &Checker) -> Result<()> {
    let bill = order.bill();
    let id = order.id;
    if bill.total_micro_usd > order.quote.total_micro_usd {
        return broken(format!(
            "{id} was billed {} and quoted {}",
            bill.total_micro_usd, order.quote.total_micro_usd
        ));
    }
    if bill.total_micro_usd + bill.refund_micro_usd != order.escrow_micro_usd {
        return broken(format!("{id}: bill {bill:?} and refund are not the escrow"));
    }
    let left = checker.shadow.ledger.balance(Owner::Order(id), order.quote.request.asset);
    if left.available() != 0 || left.debits_held != 0 {
        return broken(format!("{id} is settled and its account still holds {left:?}"));
    }
    for (n, lease) in &order.leases {
        let worth = lease.rate.total_for(lease.elapsed_ms);
        if lease.charged_micro_usd != worth || lease.elapsed_ms > order.quote.request.duration_ms {
            let charged = lease.charged_micro_usd;
            return broken(format!("{id}.{n}: charged {charged} for {} ms, worth {worth}", lease.elapsed_ms));
        }
    }
    Ok(())
}

impl World {
    /// What must hold between any two acts.
    pub(super) fn look(&mut self) -> Result<()> {
        self.check.shadow.audit().map_err(LabError::Broken)?;
        if let Some(core) = self.server.core.as_mut().filter(|_| self.server.staged == 0)
            && core.view().read().state != self.check.shadow
        {
            return broken("the server's state is not the fold of its journal".into());
        }
        self.look_at_boxes()
    }

    fn look_at_boxes(&mut self) -> Result<()> {
        let at_ms = self.at_ms;
        let reachable = |n: usize| {
            let since_ms = self.devices[n].linked_since_ms;
            let long = since_ms.is_some_and(|since_ms| at_ms - since_ms > BOUND_MS);
            long && self.server.up() && !self.bad_net && !self.cut[n]
        };
        let mut found = Vec::new();
        for (n, device) in self.devices.iter().enumerate() {
            let shadow = &self.check.shadow;
            let held = device.folders.keys().filter(|lease| device.running(**lease));
            for lease in held {
                // After a restore the books may not know a lease at all: it is left alone until its paid time is over.
                let unknown = !self.check.restored && self.check.ended.contains(lease);
                let over = shadow
                    .lease(*lease)
                    .map_or(unknown, |(order, lease)| order.stage >= Stage::Closing || lease.ended());
                found.push((*lease, over && reachable(n), "a box runs that nobody pays for"));
            }
            for order in shadow.orders.values().filter(|order| order.stage == Stage::Running) {
                let mine = order.leases.iter().filter(|(_, lease)| lease.device == device.id());
                for (lease_n, _) in mine.filter(|(_, lease)| lease.phase == LeasePhase::Ready) {
                    let lease = LeaseId { order: order.id, n: *lease_n };
                    if !device.running(lease) {
                        found.push((lease, reachable(n), "a box is paid for and not there"));
                    }
                }
            }
        }
        for (lease, is, what) in found {
            if self.check.wrong(lease, is, at_ms) {
                return broken(format!("{what}: {lease}, for more than {} s", BOUND_MS / 1000));
            }
        }
        Ok(())
    }

    /// What must hold at the end.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.look()?;
        let left = self.devices.iter().filter(|device| !device.left).flat_map(|device| device.host.running());
        if let Some(name) = left.into_iter().next() {
            return broken(format!("box {name} still runs after everything ended"));
        }
        self.check_chain()?;
        self.check_folds()
    }

    /// Everything that was paid outside is in the books, once.
    fn check_chain(&self) -> Result<()> {
        if self.check.restored {
            return Ok(());
        }
        let made = self.chain.payouts();
        for (payout, (_, _, amount)) in &made {
            let open = self.check.shadow.payouts.contains_key(payout);
            if !open && self.check.paid.get(payout) != Some(amount) {
                return broken(format!("{amount} went out as {payout} and the books do not know it"));
            }
        }
        match self.check.paid.keys().find(|payout| !made.contains_key(*payout)) {
            Some(payout) => broken(format!("{payout} is in the books and was never paid")),
            None => Ok(()),
        }
    }

    /// The journal from its first record, from a snapshot, and its public part alone all give the same state.
    fn check_folds(&mut self) -> Result<()> {
        let disk = self.server.disk.copy();
        let whole = fold::fold(&disk, Scope::Full, |_, _, _| Ok(()))?;
        if whole != self.check.shadow || whole.params != params() {
            return broken("the journal does not fold to the state".into());
        }
        let mut public = fold::fold(&disk, Scope::Public, |_, _, _| Ok(()))?;
        public.private.clone_from(&whole.private);
        if public != whole {
            return broken("the public part alone folds to another state".into());
        }
        self.summary.records = whole.events;
        let now_ms = self.now_ms();
        self.server.stop();
        self.server.disk = disk;
        self.server.start(now_ms)?;
        let again = fold::fold(&self.server.disk, Scope::Full, |_, _, _| Ok(()))?;
        match &self.server.core {
            Some(core) if core.view().read().state == again => Ok(()),
            _ => broken("a start from the newest snapshot gives another state than the journal".into()),
        }
    }
}
