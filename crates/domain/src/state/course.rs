//! Folding what changes an order that lives: its size, its time, its pauses.

use super::State;
use crate::event::{Event, PrivateBody, PublicBody};
use crate::id::OrderId;
use crate::ledger::Transfer;
use crate::market::Quote;
use crate::order::course::{Pause, ReleaseReason, Released};
use crate::order::expose::Kind;
use crate::order::health::Ailing;
use crate::order::pause::PauseReason;
use crate::order::{Lease, LeasePhase, Move};
use crate::refusal::Refusal;

impl State {
    pub(super) fn fold_course(&mut self, event: &Event) -> Result<(), Refusal> {
        use PublicBody as B;
        match &event.public {
            B::OrderGrown { order, quote, from_ms, transfer, .. } => {
                self.fold_grown(*order, quote, *from_ms, transfer)?;
                self.note_size(*order, event.at_ms)?;
            }
            B::OrderShrunk { order, members, until_ms, charged_until_ms, refund, .. } => {
                self.step(*order, Move::Shrink)?;
                self.fold_given_back(*order, refund.as_ref())?;
                self.note_size(*order, event.at_ms)?;
                let why = ReleaseReason::Shrunk;
                let released = Released { at_ms: event.at_ms, charged_until_ms: *charged_until_ms, why };
                self.release(*order, released, |lease| lease.slot >= *members)?;
                let order = self.order_mut(*order)?;
                order.quote = order.quote.shrunk(*members, *until_ms);
                order.course.growth.take_if(|base| *base >= *members);
            }
            B::OrderPaused { order, ran_ms, charged_until_ms, until_ms, reason } => {
                let wanted = if *reason == PauseReason::NoPlace { Move::PutOff } else { Move::Pause };
                self.step(*order, wanted)?;
                let why = ReleaseReason::Paused;
                let released = Released { at_ms: event.at_ms, charged_until_ms: *charged_until_ms, why };
                self.release(*order, released, |_| true)?;
                let order = self.order_mut(*order)?;
                order.running_since_ms = None;
                let course = &mut order.course;
                course.ran_ms = *ran_ms;
                course.run_first = order.leases.keys().next_back().map_or(0, |n| n + 1);
                course.pause = Some(Pause { since_ms: event.at_ms, until_ms: *until_ms });
                course.pauses += u32::from(wanted == Move::Pause);
                course.growth = None;
            }
            B::OrderExposed { .. } | B::OrderUnexposed { .. } => self.fold_shown(event)?,
            B::MemberAiling { lease, ailment } => {
                let since_ms = event.at_ms;
                let ailing = ailment.clone().map(|ailment| Box::new(Ailing { since_ms, ailment }));
                self.lease_mut(*lease)?.ailing = ailing;
            }
            B::MemberReleased { lease, charged_until_ms } => {
                let slot = self.lease(*lease)?.1.slot;
                let why = ReleaseReason::Ailing;
                let released = Released { at_ms: event.at_ms, charged_until_ms: *charged_until_ms, why };
                self.release(lease.order, released, |lease| lease.slot == slot)?;
            }
            B::OrderResumed { order } => {
                self.step(*order, Move::Resume)?;
                // Who was given notice made room by his pause.
                self.order_mut(*order)?.ways.notice = None;
            }
            B::OrderChanged { order, change, refund, escrow } => {
                match escrow {
                    Some(transfer) => self.fold_escrow(*order, Move::Change, transfer)?,
                    None => self.step(*order, Move::Change)?,
                }
                self.fold_given_back(*order, refund.as_ref())?;
                let order = self.order_mut(*order)?;
                order.quote = change.applied(&order.quote);
            }
            _ => {}
        }
        Ok(())
    }

    /// What an order shows to the world. Where the names were erased it is for its owner alone, not for everybody.
    fn fold_shown(&mut self, event: &Event) -> Result<(), Refusal> {
        let (order, kind) = match &event.public {
            PublicBody::OrderExposed { order, exposure } => {
                self.order_mut(*order)?.fold_exposed(*exposure, event.at_ms);
                (*order, exposure.kind)
            }
            PublicBody::OrderUnexposed { order, kind, port } => {
                self.order_mut(*order)?.fold_unexposed(*kind, *port);
                (*order, *kind)
            }
            _ => return Ok(()),
        };
        match &event.private {
            Some(PrivateBody::Guests(guests)) => _ = self.private.guests.insert(order, guests.clone()),
            _ if kind == Kind::Http => _ = self.private.guests.remove(&order),
            _ => {}
        }
        Ok(())
    }

    fn fold_grown(
        &mut self,
        id: OrderId,
        quote: &Quote,
        from_ms: u64,
        transfer: &Transfer,
    ) -> Result<(), Refusal> {
        self.fold_escrow(id, Move::Grow, transfer)?;
        let order = self.order_mut(id)?;
        order.course.accepted_members = Some(order.accepted_members());
        order.course.growth = Some(order.quote.request.members);
        order.quote = order.quote.grown(quote, from_ms);
        Ok(())
    }

    /// Remembers when an order's size changed, and with how many members it was accepted.
    fn note_size(&mut self, id: OrderId, at_ms: u64) -> Result<(), Refusal> {
        let order = self.order_mut(id)?;
        order.course.sized_ms = at_ms;
        order.course.accepted_members = Some(order.accepted_members());
        Ok(())
    }

    /// Money went back to the renter before the end.
    fn fold_given_back(&mut self, id: OrderId, refund: Option<&Transfer>) -> Result<(), Refusal> {
        let Some(refund) = refund else { return Ok(()) };
        self.ledger.post(&[*refund])?;
        let order = self.order_mut(id)?;
        order.refund_micro_usd += refund.amount;
        order.course.refunds += 1;
        let (account, key) = (order.account, order.key);
        if let Some(key) = self.key_mut(account, key) {
            key.spent_micro_usd = key.spent_micro_usd.saturating_sub(refund.amount);
        }
        Ok(())
    }

    /// Lets go of the live leases that `which` chooses: their boxes are to be removed.
    fn release(
        &mut self,
        id: OrderId,
        released: Released,
        which: impl Fn(&Lease) -> bool,
    ) -> Result<(), Refusal> {
        let order = self.order_mut(id)?;
        order.generation += 1;
        for lease in order.leases.values_mut().filter(|lease| lease.live() && which(lease)) {
            lease.released = Some(released);
        }
        Ok(())
    }

    /// A growth is over when every member is up.
    pub(super) fn fold_all_up(&mut self, id: OrderId) -> Result<(), Refusal> {
        let order = self.order_mut(id)?;
        if order.course.growth.is_some() {
            let up = order.members().values().filter(|(_, lease)| lease.phase != LeasePhase::Placed).count();
            if up == order.quote.request.members as usize {
                order.course.growth = None;
            }
        }
        Ok(())
    }
}
