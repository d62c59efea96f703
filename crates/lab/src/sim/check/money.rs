//! Money: quotes that were kept, charges that are exact and receipted, bills that add up, and a chain that agrees.

use std::collections::BTreeMap;

use ionet_chain::{Chain, MemChain};
use ionet_domain::ledger::{Owner, Step, Transfer};
use ionet_domain::market::Quote;
use ionet_domain::meter::{Charge, Receipt};
use ionet_domain::order::size::GrowReason;
use ionet_domain::order::{Lease, Order};
use ionet_domain::{Event, OrderId, PayoutId, PublicBody, State, id::QuoteId};

use super::Boxes;
use crate::Result;
use crate::sim::promise::{Promise, must};

/// What was promised and what was paid.
#[derive(Debug, Default)]
pub(in crate::sim) struct Money {
    /// Quotes as they were given.
    pub(in crate::sim) quotes: BTreeMap<QuoteId, Quote>,
    /// Payments that are in the books.
    pub(in crate::sim) paid: BTreeMap<PayoutId, u64>,
}

impl Money {
    /// An order is taken in, and grows, at the quoted price, in time.
    pub(super) fn accepted(&self, event: &Event) -> Result<()> {
        let (PublicBody::OrderAccepted { order, quote, .. }
        | PublicBody::OrderGrown { order, quote, reason: GrowReason::Renter, .. }) = &event.public
        else {
            return Ok(());
        };
        let given = self.quotes.get(&quote.id);
        must(given.is_none_or(|given| event.at_ms < given.expires_ms), Promise::QuoteKept, || {
            format!("{order} was taken in under a quote that had expired")
        })?;
        must(given.is_none_or(|given| given == quote), Promise::QuoteKept, || {
            format!("{order} was taken in at {} and quoted {given:?}", quote.total_micro_usd)
        })
    }

    pub(super) fn note_paid(&mut self, event: &PublicBody) {
        match event {
            PublicBody::PayoutPaid { payout, transfer, .. } => _ = self.paid.insert(*payout, transfer.amount),
            PublicBody::PayoutAdopted { payout, transfers, .. } => {
                let out = transfers.iter().filter(|transfer| transfer.step == Step::Post);
                self.paid.insert(*payout, out.map(|transfer| transfer.amount).sum());
            }
            _ => {}
        }
    }
}

/// What came in is what the chain says.
pub(super) fn came_in(event: &PublicBody, chain: &MemChain) -> Result<()> {
    let PublicBody::Deposited { reference, transfer } = event else { return Ok(()) };
    let seen = chain.clone().deposits_after(transfer.id.n.saturating_sub(1)).unwrap_or_default();
    let seen = seen.first();
    let same = |it: &ionet_chain::Deposit| {
        let credit = (it.asset, Owner::Wallet(it.account));
        (&it.reference, it.amount, credit)
            == (reference, transfer.amount, (transfer.credit.asset, transfer.credit.owner))
    };
    must(seen.is_some_and(same), Promise::ChainOnce, || {
        format!("{} came in by {reference} and the chain says {seen:?}", transfer.amount)
    })
}

/// A charge is signed for, and exact.
pub(super) fn charged(state: &State, event: &Event, boxes: &Boxes) -> Result<()> {
    let PublicBody::LeaseMetered { receipt, charge, .. } = &event.public else { return Ok(()) };
    let receipted_ms = boxes.receipts.get(&receipt.lease).copied().unwrap_or_default();
    let (id, elapsed_ms) = (receipt.lease, charge.elapsed_ms);
    must(elapsed_ms <= receipted_ms, Promise::ChargeReceipted, || {
        format!("{id} was charged for {elapsed_ms} ms and receipted {receipted_ms}")
    })?;
    let Ok((order, lease)) = state.lease(id) else { return Ok(()) };
    let since_ms = lease.charging_since_ms.unwrap_or(event.at_ms);
    let was_ms = event.at_ms.saturating_sub(since_ms);
    must(elapsed_ms <= was_ms.max(lease.elapsed_ms), Promise::ChargeReceipted, || {
        format!("{id} was charged for {elapsed_ms} ms when only {was_ms} had passed")
    })?;
    let wrong = inexact(order, lease, receipt, charge);
    must(wrong.is_none(), Promise::ChargeExact, || format!("{id}: {wrong:?}"))
}

/// What is wrong with a charge, if anything.
fn inexact(order: &Order, lease: &Lease, receipt: &Receipt, charge: &Charge) -> Option<String> {
    let (before, after) = (lease.charged_micro_usd, lease.worth(charge.elapsed_ms));
    let part = |bp: u32| {
        let share = |amount: u64| u128::from(amount) * u128::from(bp) / 10_000;
        u64::try_from(share(after) - share(before)).unwrap_or(u64::MAX)
    };
    let (renter_fee, supplier_fee) = (part(order.quote.renter_fee.0), part(order.quote.supplier_fee.0));
    let expected = [
        (Owner::Earned(lease.supplier), after - before - supplier_fee),
        (Owner::Fees, renter_fee + supplier_fee),
    ];
    let said = (charge.charge_micro_usd, charge.renter_fee_micro_usd);
    if said != (after - before, renter_fee) || charge.elapsed_ms > receipt.elapsed_ms {
        return Some(format!("{said:?} instead of {:?}", (after - before, renter_fee)));
    }
    let moved = |owner: Owner| -> u64 {
        let mine = |transfer: &&Transfer| transfer.credit.owner == owner && transfer.debit == order.purse();
        charge.transfers.iter().filter(mine).map(|transfer| transfer.amount).sum()
    };
    let wrong = expected.iter().find(|(owner, amount)| moved(*owner) != *amount);
    let all: u64 = charge.transfers.iter().map(|transfer| transfer.amount).sum();
    let strange = all != after - before + renter_fee;
    (wrong.is_some() || strange).then(|| format!("{:?} instead of {expected:?}", charge.transfers))
}

/// A member that is let go is charged for nothing after that; what was charged before the clock was put back stays.
pub(super) fn released(state: &State, event: &Event) -> Result<()> {
    let (order, charged_until_ms) = match &event.public {
        PublicBody::OrderShrunk { order, charged_until_ms, .. }
        | PublicBody::OrderPaused { order, charged_until_ms, .. } => (order, charged_until_ms),
        PublicBody::MemberReleased { lease, charged_until_ms } => (&lease.order, charged_until_ms),
        _ => return Ok(()),
    };
    let leases = state.orders.get(order).into_iter().flat_map(|order| order.leases.values());
    let charged = leases.filter_map(|lease| Some(lease.charging_since_ms? + lease.elapsed_ms));
    let most_ms = charged.fold(event.at_ms, u64::max);
    must(*charged_until_ms <= most_ms, Promise::LeaversFree, || {
        format!("members of {order} go at {} and are charged until {charged_until_ms}", event.at_ms)
    })
}

/// What was set aside and did not come back is exactly the quoted price, extensions and added members included.
pub(super) fn set_aside(state: &State, id: OrderId) -> Result<()> {
    let Ok(order) = state.order(id) else { return Ok(()) };
    let (escrow, quoted) = (order.escrow_micro_usd - order.refund_micro_usd, order.quote.total_micro_usd);
    must(escrow == quoted, Promise::WithinQuote, || {
        format!("{id} has {escrow} set aside and is quoted {quoted}")
    })
}

/// No member costs more than its item of the quote, which is its share of a bid or a cap; asked when its rate was set.
pub(super) fn within_item(state: &State, id: OrderId) -> Result<()> {
    let Ok(order) = state.order(id) else { return Ok(()) };
    let most = |lease: &Lease| order.quote.items.get(lease.slot as usize).map(|item| item.rate);
    let mut live = order.leases.iter().filter(|(_, lease)| lease.live());
    let over = live.find(|(_, lease)| most(lease).is_none_or(|most| lease.rate > most));
    must(over.is_none(), Promise::WithinQuote, || format!("{id} costs more than was quoted: {over:?}"))
}

/// What must hold of an order that has just settled.
pub(super) fn settled(state: &State, id: OrderId) -> Result<()> {
    let Ok(order) = state.order(id) else { return Ok(()) };
    let bill = order.bill();
    must(bill.total_micro_usd <= order.quote.total_micro_usd, Promise::WithinQuote, || {
        format!("{id} was billed {} and quoted {}", bill.total_micro_usd, order.quote.total_micro_usd)
    })?;
    must(
        bill.total_micro_usd + bill.refund_micro_usd == order.escrow_micro_usd,
        Promise::BillAddsUp,
        || format!("{id}: bill {bill:?} and refund are not the escrow"),
    )?;
    let left = state.ledger.balance(Owner::Order(id), order.quote.request.asset);
    must(left.available() == 0 && left.debits_held == 0, Promise::BillAddsUp, || {
        format!("{id} is settled and its account still holds {left:?}")
    })?;
    for (n, lease) in &order.leases {
        let worth = lease.worth(lease.elapsed_ms);
        let charged = lease.charged_micro_usd;
        must(
            charged == worth && lease.elapsed_ms <= order.quote.request.duration_ms,
            Promise::WithinQuote,
            || format!("{id}.{n}: charged {charged} for {} ms, worth {worth}", lease.elapsed_ms),
        )?;
        must(lease.ended(), Promise::UnitsOnce, || {
            format!("{id} settled and {id}.{n} still holds its units")
        })?;
    }
    Ok(())
}
