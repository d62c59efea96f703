//! Waiting orders are placed when price and hardware are there, and closed when their waiting is over; spot orders are repriced
//! after the loads were set, and ended when their notice is over. A bounded number is tried each time.

use ionet_domain::command::CommandBody;
use ionet_domain::market::{queue, spot};
use ionet_domain::order::CloseReason;

use super::{Todo, command};
use crate::view::View;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let state = &view.state;
    let hold = (queue::holder_due(state, now_ms) != state.holder).then_some(CommandBody::Hold);
    let reprice = spot::reprice_due(state).into_iter().map(|order| CommandBody::Reprice { order });
    let reason = CloseReason::Preempted;
    let over = spot::over(state, now_ms).into_iter();
    let over = over.map(|order| CommandBody::Close { order, reason: reason.clone() });
    let due = queue::over(state, now_ms).into_iter().chain(queue::placeable(state, now_ms));
    let due = due.map(|order| CommandBody::Place { order });
    hold.into_iter().chain(reprice).chain(over).chain(due).map(command).collect()
}
