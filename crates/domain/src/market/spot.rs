//! Spot: cheaper, within a bid, and to be ended with a notice when somebody who is no spot has no place otherwise, or when the
//! market rises above the bid.
//!
//! Always holds: only spot orders are ever given notice; none ends by it before its notice is over; a lease never costs more
//! than its share of the bid; an ask or a floor that is raised while a lease runs does not raise its rate. Not here: the price
//! (`price`), who is tried first (`queue`).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::buy::Buy;
use super::place::{self, Limits, Seat, Sieve, Taken};
use super::price::Pricer;
use super::request::Request;
use super::waiting;
use crate::event::PublicBody;
use crate::id::{DeviceId, OrderId};
use crate::money::Rate;
use crate::order::{Order, Stage};
use crate::refusal::Refusal;
use crate::state::State;

/// The notice unless the renter asks for another.
pub const NOTICE_MS: u64 = 120_000;
/// Most orders that are looked at to make room for one: those with the lowest bids.
const CANDIDATES: usize = 64;
/// Whose room does not come within so long after the notice and the devices' grace gets none.
const ROOM_SLACK_MS: u64 = 30_000;

/// Why a spot order is given notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case", deny_unknown_fields)]
pub enum NoticeReason {
    /// An order that is no spot has no place without it.
    Room {
        /// Which.
        order: OrderId,
    },
    /// The market is above the bid.
    Price {
        /// What all members would cost now.
        rate: Rate,
    },
}

/// The notice of a spot order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notice {
    /// When it is ended, in milliseconds since 1970.
    pub ends_ms: u64,
    /// Why.
    pub reason: NoticeReason,
}

impl Notice {
    /// The orders whose history it is part of.
    pub(crate) fn subjects(&self, order: OrderId) -> Vec<String> {
        let whom = match self.reason {
            NoticeReason::Room { order } => Some(order.to_string()),
            NoticeReason::Price { .. } => None,
        };
        std::iter::once(order.to_string()).chain(whom).collect()
    }
}

/// A lease's rate from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRate {
    /// Which lease of the order.
    pub n: u32,
    /// What it costs from now on.
    pub rate: Rate,
}

/// What makes room for an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The spot orders that go.
    pub orders: Vec<OrderId>,
    /// Where the members go then.
    pub seats: Vec<Seat>,
    /// The longest notice among them.
    pub notice_ms: u64,
}

/// Whether this way can be given notice; the notice.
pub fn notice_ms(buy: Buy) -> Option<u64> {
    match buy {
        Buy::Spot { notice_ms, .. } => Some(notice_ms),
        _ => None,
    }
}

/// A spot order that could be given notice.
fn may_go(order: &Order) -> bool {
    let live = (Stage::Placed..=Stage::Running).contains(&order.stage);
    live && order.ways.notice.is_none() && notice_ms(order.quote.request.buy).is_some()
}

/// What leases of these orders take that is theirs still.
pub(crate) fn held<'a>(orders: impl Iterator<Item = &'a Order>) -> BTreeMap<DeviceId, Vec<Taken>> {
    let mut held: BTreeMap<DeviceId, Vec<Taken>> = BTreeMap::new();
    for order in orders {
        let wanted = order.quote.request.per_member;
        for lease in order.leases.values().filter(|lease| !lease.ended()) {
            held.entry(lease.device).or_default().push(Taken { wanted, gpus: lease.gpus.clone() });
        }
    }
    held
}

/// What comes free for an order that notice was given for.
pub(crate) fn coming_free(state: &State, order: OrderId) -> BTreeMap<DeviceId, Vec<Taken>> {
    let mine = |victim: &&Order| {
        let notice = victim.ways.notice.map(|notice| notice.reason);
        matches!(notice, Some(NoticeReason::Room { order: whom }) if whom == order)
    };
    held(state.book().desk().noticed(state).filter(mine))
}

/// The fewest spot orders, those with the lowest bids first, without which a request that is no spot has its places; `None` if
/// not even all of them would do. No one of them could stay.
pub(crate) fn room(state: &State, request: &Request, limits: &Limits, now_ms: u64) -> Option<Room> {
    if notice_ms(request.buy).is_some() {
        return None;
    }
    let mut goers: Vec<&Order> = state.book().desk().spot(state).filter(|order| may_go(order)).collect();
    if goers.is_empty() {
        return None;
    }
    let with = |orders: &[&Order]| {
        let freed = held(orders.iter().copied());
        let limits = Limits { freed, ..limits.clone() };
        let caps = limits.rates.clone().unwrap_or_else(|| vec![Rate(u64::MAX); request.members as usize]);
        if request.buy.floats() {
            let seats = waiting::seats(state, request, &caps, &limits, now_ms)?;
            return Some(seats.into_iter().map(|(seat, _)| seat).collect());
        }
        place::find(state, request, &limits, now_ms)
    };
    {
        let all = Limits { freed: held(goers.iter().copied()), ..limits.clone() };
        let sieve = Sieve::new(state, request, &all, now_ms);
        let of_use = |order: &&Order| {
            let mut leases = order.leases.values().filter(|lease| !lease.ended());
            leases.any(|lease| state.devices.get(&lease.device).is_some_and(|d| sieve.suits(lease.device, d)))
        };
        goers.retain(of_use);
    }
    goers.sort_by_key(|order| (bid(order), Reverse(order.accepted_ms), order.id));
    goers.truncate(CANDIDATES);
    let made = |orders: Vec<&Order>, seats: Vec<Seat>| {
        let notices = orders.iter().filter_map(|order| notice_ms(order.quote.request.buy));
        let notice_ms = notices.max().unwrap_or(0);
        Room { orders: orders.iter().map(|order| order.id).collect(), seats, notice_ms }
    };
    let alone = goers.iter().find_map(|order| Some(made(vec![*order], with(&[*order])?)));
    if alone.is_some() {
        return alone;
    }
    let mut seats = with(&goers)?;
    // Whoever bids most may stay first.
    for at in (0..goers.len()).rev() {
        let mut fewer = goers.clone();
        fewer.remove(at);
        if let Some(enough) = with(&fewer) {
            (goers, seats) = (fewer, enough);
        }
    }
    Some(made(goers, seats))
}

/// The bid for a member.
fn bid(order: &Order) -> u64 {
    order.quote.rate.0 / u64::from(order.quote.request.members.max(1))
}

/// Notices that make room for an order which has no place otherwise; none if it was made room for before or nothing would help.
pub(crate) fn make_room(
    state: &State,
    order: &Order,
    limits: &Limits,
    now_ms: u64,
) -> Option<Vec<PublicBody>> {
    let room = room(state, &order.quote.request, limits, now_ms)?;
    let reason = NoticeReason::Room { order: order.id };
    let notice = |victim: &OrderId| {
        let notice_ms = state.orders.get(victim).and_then(|found| notice_ms(found.quote.request.buy))?;
        let notice = Notice { ends_ms: now_ms.saturating_add(notice_ms), reason };
        Some(PublicBody::OrderNoticed { order: *victim, notice })
    };
    Some(room.orders.iter().filter_map(notice).collect())
}

/// Until when an order waits for the room that a notice makes.
pub(crate) fn room_until_ms(state: &State, notice: &Notice) -> u64 {
    notice.ends_ms.saturating_add(state.params.removal_grace_ms).saturating_add(ROOM_SLACK_MS)
}

/// Whether an order waits for room that others make.
pub(crate) fn waits_for_room(order: &Order, now_ms: u64) -> bool {
    order.stage == Stage::Funded && order.ways.room_until_ms.is_some_and(|until_ms| now_ms < until_ms)
}

/// Spot orders whose notice is over.
pub fn over(state: &State, now_ms: u64) -> Vec<OrderId> {
    let due = |order: &&Order| order.ways.notice.is_some_and(|notice| notice.ends_ms <= now_ms);
    let noticed = state.book().desk().noticed(state);
    noticed.filter(|order| order.stage <= Stage::Running).filter(due).map(|order| order.id).collect()
}

/// Whether a spot order may be ended now because its notice is over.
pub(crate) fn check_over(order: &Order, now_ms: u64) -> Result<(), Refusal> {
    let what = || format!("ending {} for others", order.id);
    let Some(notice) = order.ways.notice else { return Err(Refusal::NoChange { what: what() }) };
    match notice.ends_ms.saturating_sub(now_ms) {
        0 => Ok(()),
        in_ms => Err(Refusal::NotYet { what: what(), in_ms }),
    }
}

/// Most orders that are repriced at a time.
const REPRICED: usize = 200;

/// Spot orders that were not repriced since the loads were set last.
pub fn reprice_due(state: &State) -> Vec<OrderId> {
    let Some(set_ms) = state.market.as_ref().map(|market| market.loads_set_ms) else { return Vec::new() };
    let due = |order: &&Order| may_go(order) && order.ways.repriced_ms.unwrap_or(order.accepted_ms) < set_ms;
    state.book().desk().spot(state).filter(due).map(|order| order.id).take(REPRICED).collect()
}

/// What follows for a spot order from the loads as they are now: new rates, or its notice where they are above the bid.
pub(crate) fn reprice(state: &State, order: &Order, now_ms: u64) -> Result<PublicBody, Refusal> {
    if !reprice_due(state).contains(&order.id) {
        return Err(Refusal::NoChange { what: format!("the price of {}", order.id) });
    }
    let pricer = Pricer::new(state, now_ms);
    let (mut rates, mut sum, mut above) = (Vec::new(), 0_u64, false);
    for (n, lease) in order.leases.iter().filter(|(_, lease)| lease.live()) {
        let Ok(device) = state.device(lease.device) else { continue };
        let rate = pricer.running(lease.device, device, &order.quote.request, lease.rate);
        let most = order.quote.items.get(lease.slot as usize).map(|item| item.rate);
        sum = sum.saturating_add(rate.0);
        above |= most.is_none_or(|most| rate > most);
        if rate != lease.rate {
            rates.push(NewRate { n: *n, rate });
        }
    }
    let order_id = order.id;
    if above {
        let notice_ms = notice_ms(order.quote.request.buy).unwrap_or(0);
        let (ends_ms, reason) = (now_ms.saturating_add(notice_ms), NoticeReason::Price { rate: Rate(sum) });
        return Ok(PublicBody::OrderNoticed { order: order_id, notice: Notice { ends_ms, reason } });
    }
    Ok(PublicBody::OrderRepriced { order: order_id, rates })
}

/// What a lease cost before its present rate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Earlier {
    /// Up to this much run time it is charged.
    pub charged_ms: u64,
    /// With this much.
    pub charged_micro_usd: u64,
    /// And from there on at these rates, oldest first, each up to so much run time.
    pub rates: Vec<EarlierRate>,
}

/// A rate that held once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlierRate {
    /// Up to this much run time in all.
    pub until_ms: u64,
    /// What an hour cost.
    pub rate: Rate,
}

impl Earlier {
    /// What `elapsed_ms` in all cost, the present `rate` included; each stretch rounded down.
    pub(crate) fn worth(&self, rate: Rate, elapsed_ms: u64) -> u64 {
        let (mut sum, mut from_ms) = (self.charged_micro_usd, self.charged_ms);
        for earlier in &self.rates {
            let until_ms = earlier.until_ms.min(elapsed_ms).max(from_ms);
            sum = sum.saturating_add(earlier.rate.total_for(until_ms - from_ms));
            from_ms = until_ms;
        }
        sum.saturating_add(rate.total_for(elapsed_ms.saturating_sub(from_ms)))
    }

    /// The present rate ends at so much run time; what is charged so far needs no rates any more.
    pub(crate) fn end(&mut self, rate: Rate, until_ms: u64, charged: (u64, u64)) {
        (self.charged_ms, self.charged_micro_usd) = charged;
        self.rates.retain(|earlier| earlier.until_ms > self.charged_ms);
        let last_ms = self.rates.last().map_or(self.charged_ms, |earlier| earlier.until_ms);
        if until_ms > last_ms {
            self.rates.push(EarlierRate { until_ms, rate });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::HOUR_MS;
    use proptest::prelude::*;

    proptest! {
        /// Whatever rates follow each other and whenever receipts come: a charge never falls, is what a plain sum of the
        /// stretches gives but for roundings, and never more than the highest rate for all of it.
        #[test]
        fn charges_follow_the_rates(steps in prop::collection::vec((0u64..5_000_000, 1u64..3 * HOUR_MS, prop::bool::ANY), 1..40)) {
            let (mut earlier, mut rate) = (Earlier::default(), Rate(1_000_000));
            let (mut now_ms, mut charged, mut exact, mut stretches) = (0_u64, (0, 0), 0_u128, 0_u128);
            for (next, ms, metered) in steps {
                exact += u128::from(rate.0) * u128::from(ms);
                stretches += 1;
                now_ms += ms;
                if metered {
                    let worth = earlier.worth(rate, now_ms);
                    prop_assert!(worth >= charged.1);
                    charged = (now_ms, worth);
                }
                earlier.end(rate, now_ms, charged);
                rate = Rate(next);
            }
            let worth = u128::from(earlier.worth(rate, now_ms));
            let hour = u128::from(HOUR_MS);
            prop_assert!(worth <= exact / hour && exact / hour <= worth + 2 * stretches);
            prop_assert!(u64::try_from(worth).unwrap() <= Rate(5_000_000).total_for(now_ms));
        }
    }
}
