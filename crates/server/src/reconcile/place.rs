//! Funded orders get their devices, all or none. Not here: those that wait (`queue`).

use ionet_domain::command::CommandBody;
use ionet_domain::{Order, Stage};

use super::{Todo, command, in_stage};
use crate::view::View;

pub(super) fn step(view: &View, _now_ms: u64) -> Vec<Todo> {
    let now = |order: &&Order| order.resumes() || order.quote.request.waits_until_ms().is_none();
    in_stage(view, Stage::Funded)
        .filter(now)
        .map(|order| command(CommandBody::Place { order: order.id }))
        .collect()
}
