//! Deciding what changes an order that lives: its size, its time, its pauses.

use super::{Decision, Happened, only};
use crate::command::{Actor, CommandBody};
use crate::event::{PrivateBody, PublicBody};
use crate::id::{LeaseId, OrderId, QuoteId};
use crate::market::quote;
use crate::order::expose::{self, Wanted};
use crate::order::pause::{self, PauseReason, Paused};
use crate::order::size::{self, GrowReason, OrderChange, ShrinkReason};
use crate::order::{self, CloseReason, Order, ReplaceReason, health, scale};
use crate::refusal::Refusal;

impl Decision<'_> {
    pub(super) fn course(&self, body: &CommandBody) -> Result<Vec<Happened>, Refusal> {
        use CommandBody as C;
        match body {
            C::Grow { order, quote } => {
                let found = self.renter_of(*order, "add members to a cluster")?;
                let size::Growth { from_ms, transfer } = size::grow(self.state, found, quote, self.now_ms)?;
                let (order, quote, reason) = (*order, quote.clone(), GrowReason::Renter);
                only(PublicBody::OrderGrown { order, quote, from_ms, transfer, reason })
            }
            C::Shrink { order, members } => {
                let found = self.renter_of(*order, "take members from a cluster")?;
                self.shrunk(found, *members, ShrinkReason::Renter)
            }
            C::Pause { order } => {
                let found = self.renter_of(*order, "pause a cluster")?;
                paused(*order, pause::pause(found, self.now_ms)?, PauseReason::Renter)
            }
            C::Resume { order } => {
                let found = self.renter_of(*order, "resume a cluster")?;
                pause::resume(self.state, found, self.now_ms)?;
                only(PublicBody::OrderResumed { order: *order })
            }
            C::ChangeOrder { order, change } => self.change(*order, change),
            C::ReplaceMember { order, slot } => self.replace_member(*order, *slot),
            C::ReportAiling { lease, ailment } => {
                self.by_server()?;
                health::report(self.state.order(lease.order)?, lease.n, ailment.as_ref())?;
                only(PublicBody::MemberAiling { lease: *lease, ailment: ailment.clone() })
            }
            C::Expose { order, wanted } => self.expose(*order, wanted),
            C::Unexpose { order, kind, port } => {
                expose::unexpose(self.renter_of(*order, "take back a service")?, *kind, *port)?;
                only(PublicBody::OrderUnexposed { order: *order, kind: *kind, port: *port })
            }
            C::Scale { order, busy_percent } => self.scale(*order, *busy_percent),
            _ => self.server_steps(body),
        }
    }

    fn expose(&self, order: OrderId, wanted: &Wanted) -> Result<Vec<Happened>, Refusal> {
        let exposure = expose::expose(self.state, self.renter_of(order, "expose a service")?, wanted)?;
        let guests = (!wanted.guests.is_empty()).then(|| PrivateBody::Guests(wanted.guests.clone()));
        Ok(vec![(PublicBody::OrderExposed { order, exposure }, guests)])
    }

    fn change(&self, order: OrderId, change: &OrderChange) -> Result<Vec<Happened>, Refusal> {
        let found = self.renter_of(order, "change a cluster")?;
        let size::Moved { refund, escrow } = size::change(self.state, found, change, self.now_ms)?;
        only(PublicBody::OrderChanged { order, change: change.clone(), refund, escrow })
    }

    /// By its renter at any time, and by the server where it is due.
    fn replace_member(&self, id: OrderId, slot: u32) -> Result<Vec<Happened>, Refusal> {
        let order = if self.actor == Actor::Server {
            let order = self.state.order(id)?;
            if health::due(order, self.now_ms) != Some(slot) {
                return Err(Refusal::NoChange { what: id.to_string() });
            }
            order
        } else {
            self.renter_of(id, "replace a member")?
        };
        let exchange = health::exchange(self.state, order, slot, self.now_ms)?;
        let health::Exchange { n, charged_until_ms, lease } = exchange;
        let released = PublicBody::MemberReleased { lease: LeaseId { order: id, n }, charged_until_ms };
        let reason = Some(ReplaceReason::Ailing);
        let placed = PublicBody::OrderPlaced { order: id, leases: vec![lease], reason };
        Ok(vec![(released, None), (placed, None)])
    }

    /// As many members as are wanted, or as many as money, cap and devices allow on the way there.
    fn scale(&self, id: OrderId, busy_percent: u32) -> Result<Vec<Happened>, Refusal> {
        self.by_server()?;
        let order = self.state.order(id)?;
        let members = order.quote.request.members;
        let wanted = scale::due(order, busy_percent, self.now_ms);
        let wanted = wanted.ok_or_else(|| Refusal::NoChange { what: id.to_string() })?;
        if wanted < members {
            return self.shrunk(order, wanted, ShrinkReason::Scaled { busy_percent });
        }
        let mut more = wanted - members;
        loop {
            match self.scaled_up(order, more, busy_percent) {
                Err(refusal) if more == 1 => return Err(refusal),
                Err(_) => more /= 2,
                grown => return grown,
            }
        }
    }

    fn scaled_up(&self, order: &Order, more: u32, busy_percent: u32) -> Result<Vec<Happened>, Refusal> {
        let request = size::more_of(order, more, self.now_ms)?;
        // One growth a millisecond and order at most: the name is its own.
        let id = QuoteId::from_parts(self.now_ms, order.id.bits() & u128::from(u64::MAX));
        let quote = quote::quote(self.state, id, order.account, &request, self.now_ms)?;
        let scale = order.quote.request.upkeep.scale.as_ref();
        let cap = scale.and_then(|scale| scale.max_rate).or(order.quote.request.max_rate);
        let rate = order.quote.rate.0.saturating_add(quote.rate.0);
        if let Some(cap) = cap.filter(|cap| rate > cap.0) {
            let (rate_micro_usd_per_hour, cap_micro_usd_per_hour) = (rate, cap.0);
            return Err(Refusal::OverPriceCap { rate_micro_usd_per_hour, cap_micro_usd_per_hour });
        }
        let size::Growth { from_ms, transfer } = size::grow(self.state, order, &quote, self.now_ms)?;
        let (order, reason) = (order.id, GrowReason::Scaled { busy_percent });
        only(PublicBody::OrderGrown { order, quote, from_ms, transfer, reason })
    }

    pub(super) fn shrunk(
        &self,
        order: &Order,
        members: u32,
        reason: ShrinkReason,
    ) -> Result<Vec<Happened>, Refusal> {
        let size::Less { until_ms, charged_until_ms, refund } =
            size::shrink(self.state, order, members, self.now_ms)?;
        let order = order.id;
        only(PublicBody::OrderShrunk { order, members, until_ms, charged_until_ms, refund, reason })
    }

    /// A funded order without devices ends, or goes back to the pause that it was to come out of.
    pub(super) fn no_place(&self, order: &Order) -> Result<Vec<Happened>, Refusal> {
        match pause::again(order, self.now_ms) {
            Some(again) => paused(order.id, again, PauseReason::NoPlace),
            None => Self::closing(order, CloseReason::NoCapacity),
        }
    }

    /// What becomes of an order that grows and whose added members lack devices: all members without one get one, or those
    /// that were added are given up. `None` if it does not grow, or lacks none of those.
    pub(super) fn grown(&self, order: &Order) -> Option<Result<Vec<Happened>, Refusal>> {
        let base = order.course.growth?;
        let vacant = order.vacant();
        if !vacant.iter().any(|slot| *slot >= base) {
            return None;
        }
        Some(match order::replace(self.state, order, self.now_ms) {
            Ok(leases) => {
                let reason = Some(order::replace_reason(order, &leases));
                only(PublicBody::OrderPlaced { order: order.id, leases, reason })
            }
            Err(Refusal::NoCapacity(_) | Refusal::OverPriceCap { .. }) => {
                self.shrunk(order, base, ShrinkReason::NoPlace)
            }
            Err(other) => Err(other),
        })
    }
}

fn paused(order: OrderId, pause: Paused, reason: PauseReason) -> Result<Vec<Happened>, Refusal> {
    let Paused { ran_ms, charged_until_ms, until_ms } = pause;
    only(PublicBody::OrderPaused { order, ran_ms, charged_until_ms, until_ms, reason })
}
