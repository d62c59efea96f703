//! What ended long enough ago leaves the live state.

use ionet_domain::command::CommandBody;
use ionet_domain::{Order, Stage};

use super::{Todo, command, in_stage};
use crate::view::View;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let kept_until_ms = |order: &Order| Some(order.closed_ms? + view.state.params.retention_ms);
    let old = |order: &Order| kept_until_ms(order).is_some_and(|until_ms| until_ms <= now_ms);
    if in_stage(view, Stage::Paid).any(old) { vec![command(CommandBody::Retire)] } else { Vec::new() }
}
