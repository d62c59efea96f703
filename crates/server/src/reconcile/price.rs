//! Once an hour the load's part of the market's prices follows what was hired.

use ionet_domain::command::CommandBody;
use ionet_domain::market::price::due_loads;

use super::{Todo, command};
use crate::view::View;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let due = !due_loads(&view.state, now_ms).is_empty();
    due.then(|| command(CommandBody::SetLoads)).into_iter().collect()
}
