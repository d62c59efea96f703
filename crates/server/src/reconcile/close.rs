//! Orders end when their time is over, their pause was too long or every program ended. Boxes that are to go, of closed orders and
//! of members that were let go, are removed with their last receipt metered first, or given up when the grace for silent
//! devices is over.

use ionet_api::worker::BoxPhase;
use ionet_domain::command::CommandBody;
use ionet_domain::order::{CloseReason, Lease, LeasePhase, WipeReceipt};
use ionet_domain::{LeaseId, Order, Stage};

use super::{Todo, command, in_stage, lease_id, meter};
use crate::view::View;

/// A device that was told that a lease ended has this long to report its box before it is believed to have none.
const NO_BOX_AFTER_MS: u64 = 3_000;
/// Programs that ended leave their output to be read for this long, at no cost, before the boxes are wiped.
const LINGER_MS: u64 = 5_000;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let ends = in_stage(view, Stage::Running).filter_map(|order| {
        let reason = over(order, now_ms)?;
        if matches!(reason, CloseReason::Finished { .. }) && lingers(view, order, now_ms) {
            return None;
        }
        Some(command(CommandBody::Close { order: order.id, reason }))
    });
    let paused = in_stage(view, Stage::Paused).filter(|order| pause_over(order, now_ms));
    let given_up = |order: &Order| CommandBody::Close { order: order.id, reason: CloseReason::PauseOver };
    let paused = paused.map(|order| command(given_up(order)));
    let live = view.state.orders.values().filter(|order| order.stage <= Stage::Closing);
    ends.chain(paused).chain(live.flat_map(|order| removals(view, order, now_ms))).collect()
}

fn pause_over(order: &Order, now_ms: u64) -> bool {
    order.course.pause.is_some_and(|pause| pause.until_ms <= now_ms)
}

/// Why a running order is over, if it is.
fn over(order: &Order, now_ms: u64) -> Option<CloseReason> {
    if order.ends_ms().is_some_and(|ends_ms| ends_ms <= now_ms) {
        return Some(CloseReason::Time);
    }
    let members = order.members();
    let codes = members.values().map_while(|(_, lease)| match lease.phase {
        LeasePhase::Exited { exit_code } => Some(exit_code),
        _ => None,
    });
    let codes: Vec<i32> = codes.collect();
    let all = codes.len() == order.quote.request.members as usize;
    Some(CloseReason::Finished { exit_code: codes.into_iter().max().filter(|_| all)? })
}

fn lingers(view: &View, order: &Order, now_ms: u64) -> bool {
    view.fleet.exits.get(&order.id).is_some_and(|exit_ms| now_ms < exit_ms + LINGER_MS)
}

fn removals(view: &View, order: &Order, now_ms: u64) -> Vec<Todo> {
    let goes = |lease: &Lease| order.stage == Stage::Closing || lease.released.is_some();
    let open = order.leases.iter().filter(|(_, lease)| !lease.ended() && goes(lease));
    open.filter_map(|(n, lease)| {
        let id = lease_id(order, *n);
        let wipe = evidence(view, order, lease, id, now_ms)?;
        let last = meter::final_charge(view, order, id, lease);
        let removed = command(CommandBody::ReportRemoved { lease: id, wipe });
        Some(last.into_iter().chain([removed]))
    })
    .flatten()
    .collect()
}

/// Evidence that a box is gone; `None` while there is a reason to wait.
#[expect(clippy::option_option, reason = "gone without a receipt is something else than not gone")]
fn evidence(
    view: &View,
    order: &Order,
    lease: &Lease,
    id: LeaseId,
    now_ms: u64,
) -> Option<Option<WipeReceipt>> {
    let released_ms = lease.released.as_ref().map(|released| released.at_ms);
    let asked_ms = released_ms.or(order.closed_ms).unwrap_or(now_ms);
    let given_up_ms = asked_ms + view.state.params.removal_grace_ms;
    match view.fleet.observed(lease.device, id).map(|observed| &observed.phase) {
        Some(BoxPhase::Removed { wipe }) => return Some(Some(wipe.clone())),
        None if has_no_box(view, lease, id) => {
            let method = "none: the device reports that it has no such box".into();
            return Some(Some(WipeReceipt { method, ..WipeReceipt::default() }));
        }
        _ => {}
    }
    (given_up_ms <= now_ms).then_some(None)
}

/// Whether the connected device was told that the lease ended and has since reported all its boxes without it.
fn has_no_box(view: &View, lease: &Lease, id: LeaseId) -> bool {
    let Some(now) = view.fleet.device(lease.device).filter(|now| now.connected) else { return false };
    let told = now.told.as_ref().filter(|(desired, _)| desired.ended.contains(&id));
    told.is_some_and(|(_, since_ms)| now.observed_ms >= since_ms + NO_BOX_AFTER_MS)
}
