//! Closed orders whose boxes are all gone and whose charges are all proven give back the rest.

use ionet_domain::command::CommandBody;
use ionet_domain::{Order, Stage};

use super::{Todo, command, in_stage};
use crate::view::View;

pub(super) fn step(view: &View, _now_ms: u64) -> Vec<Todo> {
    let done = |order: &&Order| order.leases.values().all(|lease| lease.ended() && lease.held.is_empty());
    let closing = in_stage(view, Stage::Closing).filter(done);
    closing.map(|order| command(CommandBody::Settle { order: order.id })).collect()
}
