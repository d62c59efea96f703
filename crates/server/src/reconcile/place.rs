//! Funded orders get their devices, all or none.

use ionet_domain::Stage;
use ionet_domain::command::CommandBody;

use super::{Todo, command, in_stage};
use crate::view::View;

pub(super) fn step(view: &View, _now_ms: u64) -> Vec<Todo> {
    in_stage(view, Stage::Funded).map(|order| command(CommandBody::Place { order: order.id })).collect()
}
