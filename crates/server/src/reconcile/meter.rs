//! Receipts become charges: one a period while a lease runs, and one before it ends.
//!
//! The second witness is the server's own hearing, if it heard the device without a silence since the last charge,
//! or another member's fresh receipt. After a silence the newest receipt is charged at once, so that the time that
//! nobody witnessed is held apart from the time after it.

use ionet_domain::command::CommandBody;
use ionet_domain::meter::{Receipt, Witness};
use ionet_domain::order::Lease;
use ionet_domain::{LeaseId, Order, Stage};

use super::{Todo, command, lease_id};
use crate::view::View;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let mut todos = Vec::new();
    let metered = |order: &&Order| (Stage::Funded..=Stage::Closing).contains(&order.stage);
    for order in view.state.orders.values().filter(metered) {
        for (n, lease) in &order.leases {
            let id = lease_id(order, *n);
            if order.stage < Stage::Closing && lease.charging_since_ms.is_some() && !lease.ended() {
                todos.extend(charge(view, order, id, lease, now_ms));
            }
            todos.extend(prove(view, order, id, lease, now_ms));
        }
    }
    todos
}

fn charge(view: &View, order: &Order, id: LeaseId, lease: &Lease, now_ms: u64) -> Option<Todo> {
    let receipt = newest(view, id, lease)?;
    let memory = view.fleet.meters.get(&id);
    let tried_ms = memory.map_or(0, |memory| memory.tried_ms);
    if receipt.elapsed_ms <= lease.elapsed_ms || receipt.elapsed_ms <= tried_ms {
        return None;
    }
    let due = match (since(view, id, lease), view.fleet.device(lease.device)) {
        (Some(since_ms), Some(now)) => {
            now_ms >= since_ms + view.state.params.meter_period_ms || now.heard_since_ms > since_ms
        }
        _ => true,
    };
    due.then(|| meter(view, order, id, lease, receipt))
}

/// The last charge of a lease, from its newest receipt.
pub(super) fn final_charge(view: &View, order: &Order, id: LeaseId, lease: &Lease) -> Option<Todo> {
    let metered = order.stage <= Stage::Closing && lease.charging_since_ms.is_some();
    let receipt =
        newest(view, id, lease).filter(|receipt| metered && receipt.elapsed_ms > lease.elapsed_ms)?;
    Some(meter(view, order, id, lease, receipt))
}

fn meter(view: &View, order: &Order, id: LeaseId, lease: &Lease, receipt: &Receipt) -> Todo {
    let witness = witness(view, order, id, lease);
    command(CommandBody::Meter { receipt: receipt.clone(), witness })
}

fn newest<'a>(view: &'a View, id: LeaseId, lease: &Lease) -> Option<&'a Receipt> {
    view.fleet.observed(lease.device, id)?.receipt.as_ref()
}

/// When the lease was charged last, or charging began; `None` if that was before this server started to remember.
fn since(view: &View, id: LeaseId, lease: &Lease) -> Option<u64> {
    let memory = view.fleet.meters.get(&id).and_then(|memory| memory.at_ms);
    memory.or(lease.charging_since_ms.filter(|_| lease.periods == 0))
}

/// A receipt arrived while its device was heard; so without a silence since the last charge all of it was heard.
fn witness(view: &View, order: &Order, id: LeaseId, lease: &Lease) -> Witness {
    let since_ms = since(view, id, lease);
    let heard_since_ms = view.fleet.device(lease.device).map(|now| now.heard_since_ms);
    match (since_ms, heard_since_ms) {
        (Some(since_ms), Some(heard_since_ms)) if heard_since_ms <= since_ms => Witness::Heartbeats,
        _ => member(view, order, id, lease, since_ms.unwrap_or(0)).unwrap_or(Witness::Nobody),
    }
}

/// A member of another supplier that heard the lease after `since_ms`.
fn member(view: &View, order: &Order, id: LeaseId, lease: &Lease, since_ms: u64) -> Option<Witness> {
    let heard_by = &view.fleet.meters.get(&id)?.heard_by;
    let other = |n: &u32| order.leases.get(n).is_some_and(|other| other.supplier != lease.supplier);
    let (n, _) = heard_by.iter().find(|(n, at_ms)| **at_ms > since_ms && other(n))?;
    Some(Witness::Member(lease_id(order, *n)))
}

/// Held charges are proven by a member that was heard from since, or by the end of their window.
fn prove(view: &View, order: &Order, id: LeaseId, lease: &Lease, now_ms: u64) -> Option<Todo> {
    let oldest = lease.held.first()?;
    let charged_ms = lease.held.last()?.due_ms.saturating_sub(view.state.params.dispute_window_ms);
    let witness = member(view, order, id, lease, charged_ms);
    let due = witness.is_some() || oldest.due_ms <= now_ms;
    due.then(|| command(CommandBody::Prove { lease: id, witness: witness.unwrap_or(Witness::Nobody) }))
}
