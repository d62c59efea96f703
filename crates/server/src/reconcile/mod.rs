//! Reconcilers: each looks for things in one stage and says what moves them on. The stage is the to-do list.
//!
//! Always holds: a reconciler takes no input but the view and the time, changes nothing itself, and what it says is safe
//! to repeat. Not here: carrying it out (`core`).

mod check;
mod close;
mod contact;
mod lease;
mod meter;
mod payout;
mod place;
mod price;
mod queue;
mod ready;
mod replace;
mod retire;
mod settle;
mod term;
mod upkeep;

use ionet_api::worker::{MemberList, ToWorker};
use ionet_domain::command::CommandBody;
use ionet_domain::money::Asset;
use ionet_domain::{Actor, Address, Command, EndpointId, LeaseId, Order, PayoutId, Stage};

use crate::view::View;

/// Something to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Todo {
    /// Send the next command.
    Command(Box<Command>),
    /// Do one outside act.
    Act(Act),
    /// Sign a member list and keep it.
    Sign(MemberList),
}

/// An outside act; safe to repeat.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Say something to a worker.
    Tell(EndpointId, Box<ToWorker>),
    /// Measure the network to a worker.
    Probe(EndpointId),
    /// Pay a supplier.
    Pay {
        /// The payment's id.
        payout: PayoutId,
        /// Who is paid.
        account: Address,
        /// In what.
        asset: Asset,
        /// In minor units.
        amount: u64,
    },
}

fn command(body: CommandBody) -> Todo {
    Todo::Command(Box::new(Command { id: None, actor: Actor::Server, body }))
}

/// Everything that orders and payouts need now, but for telling the devices.
pub fn orders(view: &View, now_ms: u64) -> Vec<Todo> {
    let steps = [
        place::step,
        ready::step,
        close::step,
        replace::step,
        meter::step,
        settle::step,
        payout::step,
        retire::step,
    ];
    steps.into_iter().flat_map(|step| step(view, now_ms)).collect()
}

/// What devices must be told of their leases now.
pub fn leases(view: &View, now_ms: u64) -> Vec<Todo> {
    lease::step(view, now_ms)
}

/// Everything else that devices, prices and waiting orders need now. Looks at all of them: ask about once a second.
pub fn devices(view: &View, now_ms: u64) -> Vec<Todo> {
    [contact::step, check::step, term::step, price::step, queue::step, upkeep::step]
        .into_iter()
        .flat_map(|step| step(view, now_ms))
        .collect()
}

/// Orders in a stage.
fn in_stage(view: &View, stage: Stage) -> impl Iterator<Item = &Order> {
    view.state.orders.values().filter(move |order| order.stage == stage)
}

/// Orders that have leases and are not closed.
fn under_way(view: &View) -> impl Iterator<Item = &Order> {
    view.state.orders.values().filter(|order| (Stage::Placed..=Stage::Running).contains(&order.stage))
}

fn lease_id(order: &Order, n: u32) -> LeaseId {
    LeaseId { order: order.id, n }
}
