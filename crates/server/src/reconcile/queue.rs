//! Waiting orders are placed when price and hardware are there, and closed when their waiting is over. A bounded number is
//! tried each time.

use ionet_domain::command::CommandBody;
use ionet_domain::market::queue;

use super::{Todo, command};
use crate::view::View;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let holds = queue::holder_due(&view.state, now_ms) != view.state.holder;
    let hold = holds.then(|| command(CommandBody::Hold));
    let due = queue::over(&view.state, now_ms).into_iter().chain(queue::placeable(&view.state, now_ms));
    hold.into_iter().chain(due.map(|order| command(CommandBody::Place { order }))).collect()
}
