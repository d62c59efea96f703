//! What is done for clusters that run: members that ail are told of and, where the renter allowed it, replaced; sizes follow how
//! busy members are.

use ionet_domain::command::CommandBody;
use ionet_domain::order::health::{self, Ailment, LASTS_MS};
use ionet_domain::order::scale;
use ionet_domain::{LeaseId, Order, Stage};

use super::{Todo, command, in_stage};
use crate::view::View;
use crate::vitals::busy_percent;

/// What could not be carried out is tried again after this long.
const TRY_AGAIN_MS: u64 = 60_000;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    in_stage(view, Stage::Running).flat_map(|order| of_order(view, order, now_ms)).collect()
}

fn of_order(view: &View, order: &Order, now_ms: u64) -> Vec<Todo> {
    let mut todos = Vec::new();
    for (n, lease) in order.members().into_values() {
        let id = LeaseId { order: order.id, n };
        let Some(found) = view.fleet.found.get(&id) else { continue };
        let known = lease.ailing.as_ref().map(|ailing| ailing.ailment.code());
        let lasts = now_ms.saturating_sub(found.since_ms) >= LASTS_MS;
        if lasts && known != found.ailment.as_ref().map(Ailment::code) {
            todos.push(command(CommandBody::ReportAiling { lease: id, ailment: found.ailment.clone() }));
        }
    }
    let tried_ms = view.fleet.tried.get(&order.id).copied();
    if tried_ms.is_some_and(|tried_ms| now_ms < tried_ms.saturating_add(TRY_AGAIN_MS)) {
        return todos;
    }
    if let Some(slot) = health::due(order, now_ms) {
        todos.push(command(CommandBody::ReplaceMember { order: order.id, slot }));
    } else if let Some(busy_percent) = scaled(view, order, now_ms) {
        todos.push(command(CommandBody::Scale { order: order.id, busy_percent }));
    }
    todos
}

/// How busy an order's members are, if that asks for another size now.
fn scaled(view: &View, order: &Order, now_ms: u64) -> Option<u32> {
    let metric = order.quote.request.upkeep.scale.as_ref()?.metric;
    let busy = busy_percent(&view.state, &view.fleet, order, metric)?;
    scale::due(order, busy, now_ms).map(|_| busy)
}
