//! What devices report of their boxes becomes events; an order whose members are all up runs.

use ionet_api::worker::BoxPhase;
use ionet_domain::command::CommandBody;
use ionet_domain::order::{self, LeasePhase};
use ionet_domain::{Order, Stage};

use super::{Todo, command, lease_id, under_way};
use crate::view::View;

pub(super) fn step(view: &View, _now_ms: u64) -> Vec<Todo> {
    under_way(view).flat_map(|order| of_order(view, order)).collect()
}

fn of_order(view: &View, order: &Order) -> Vec<Todo> {
    let mut todos: Vec<_> = order
        .leases
        .iter()
        .filter(|(_, lease)| lease.live())
        .filter_map(|(n, lease)| {
            let id = lease_id(order, *n);
            let observed = view.fleet.observed(lease.device, id)?;
            match (&observed.phase, &lease.phase) {
                (BoxPhase::Ready, LeasePhase::Placed) => {
                    Some(CommandBody::ReportReady { lease: id, parts_ms: observed.parts_ms.clone() })
                }
                (BoxPhase::Exited { exit_code }, LeasePhase::Placed | LeasePhase::Ready) => {
                    Some(CommandBody::ReportExit { lease: id, exit_code: *exit_code })
                }
                _ => None,
            }
        })
        .map(command)
        .collect();
    if order.stage == Stage::Starting && order::ready(order).is_ok() {
        todos.push(command(CommandBody::MarkRunning { order: order.id }));
    }
    todos
}
