//! A lost member is put on another device, and one that was added on its first; the others keep running.
//!
//! Losing contact is not losing the lease: only a device that says so loses a box, and one that fell silent before
//! anything of it was paid for.

use ionet_api::worker::BoxPhase;
use ionet_domain::command::CommandBody;
use ionet_domain::order::{Lease, LeasePhase};
use ionet_domain::{LeaseId, Order};

use super::{Todo, command, lease_id, meter, under_way};
use crate::view::View;

/// A box that never came up is given up when its device is silent for this long.
const SILENT_START_MS: u64 = 60_000;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let alive = under_way(view).filter(|order| order.ends_ms().is_none_or(|ends_ms| now_ms < ends_ms));
    alive.flat_map(|order| of_order(view, order, now_ms)).collect()
}

fn of_order(view: &View, order: &Order, now_ms: u64) -> Vec<Todo> {
    let mut todos = Vec::new();
    for (n, lease) in order.leases.iter().filter(|(_, lease)| lease.live()) {
        let id = lease_id(order, *n);
        if let Some(reason) = lost(view, lease, id, now_ms) {
            todos.extend(meter::final_charge(view, order, id, lease));
            todos.push(command(CommandBody::ReportLost { lease: id, reason }));
        }
    }
    if !order.vacant().is_empty() {
        todos.push(command(CommandBody::Replace { order: order.id }));
    }
    todos
}

fn lost(view: &View, lease: &Lease, id: LeaseId, now_ms: u64) -> Option<String> {
    match view.fleet.observed(lease.device, id).map(|observed| &observed.phase) {
        Some(BoxPhase::Lost { reason }) => return Some(reason.clone()),
        Some(BoxPhase::Removed { .. }) => return Some("the device removed the box".into()),
        _ => {}
    }
    let silent_ms = now_ms.saturating_sub(view.fleet.heard_ms(lease.device));
    let silent = !view.fleet.connected(lease.device) && silent_ms > SILENT_START_MS;
    (silent && lease.phase == LeasePhase::Placed)
        .then(|| format!("the device has been silent for {} s and its box was not up yet", silent_ms / 1000))
}
