//! More members, fewer members, less time, another cap: what a renter can change of an order, and what it costs or gives back.
//!
//! Growing sets aside what the added members cost for the rest of the time; shrinking gives back what the highest members will
//! not use, at once. Always holds: the head (slot 0) stays; all added members or none. Not here: finding their devices (`super`).

use serde::{Deserialize, Serialize};

use super::course::give_back;
use super::{Move, Order, beside_own, cheapest_first, escrow, leases, limits, promised};
use crate::ledger::Transfer;
use crate::market::place;
use crate::market::quote::QUOTE_LIFE_MS;
use crate::market::request::MIN_DURATION_MS;
use crate::market::{Buy, Priority, Quote, Request, Upkeep, Wants, queue, waiting};
use crate::money::Rate;
use crate::refusal::Refusal;
use crate::state::State;

/// Why an order has more members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum GrowReason {
    /// The renter asked.
    Renter,
    /// Its members were this busy, in percent.
    Scaled {
        /// All of them together.
        busy_percent: u32,
    },
}

/// Why an order has fewer members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum ShrinkReason {
    /// The renter asked.
    Renter,
    /// The members that were to be added found no devices.
    NoPlace,
    /// Its members were this busy, in percent.
    Scaled {
        /// All of them together.
        busy_percent: u32,
    },
}

/// What is changed of an order; what is not named stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OrderChange {
    /// Its whole duration, shorter than it was, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// The most that all members together may cost an hour; 0 for no cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<Rate>,
    /// The most that it may cost in all, fee included, in micro-USD; 0 for no cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_total_micro_usd: Option<u64>,
    /// What is done for it while it lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upkeep: Option<Upkeep>,
    /// How urgent it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// What its devices must be, all of it anew: for those that it gets from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wants: Option<Box<Wants>>,
}

/// A growth as it was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// How much of the order's time is over.
    pub from_ms: u64,
    /// What is set aside for the rest.
    pub transfer: Transfer,
}

/// The request that a quote for `members` more of this order is for: on demand, whichever way the order was bought, as they are
/// to come now. Where the order's price floats, its cap is the sum of what its members may cost, and grows with them.
///
/// # Errors
/// `WrongStage` unless it runs; `OutOfRange` where too little time is left or there would be too many members.
pub fn more_of(order: &Order, members: u32, now_ms: u64) -> Result<Request, Refusal> {
    order.may(Move::Grow)?;
    let left_ms = order.left_ms(now_ms);
    if left_ms < MIN_DURATION_MS {
        let limit = format!("at least {MIN_DURATION_MS} ms to add members; extend it first");
        return Err(Refusal::out_of_range("the time left", format!("{left_ms} ms"), limit));
    }
    if members == 0 {
        return Err(Refusal::out_of_range("members", members, "1 or more to add"));
    }
    let request = &order.quote.request;
    let grown = Request { members: request.members.saturating_add(members), ..request.clone() };
    grown.check()?;
    let max_rate = request.max_rate.filter(|_| !request.buy.floats());
    let (buy, open_ended) = (Buy::default(), false);
    let more = Request { members, duration_ms: left_ms, max_rate, buy, open_ended, mega: false, ..grown };
    Ok(more.completed())
}

/// Whether an order may get the members of this quote, whose signature was checked.
///
/// # Errors
/// `QuoteNotYours`, `QuoteExpired`, `OutOfRange` if the quote is not for more of this order, `NoChange` while it still grows,
/// `OverPriceCap`, `NoCapacity`, and those of the money.
pub fn grow(state: &State, order: &Order, quote: &Quote, now_ms: u64) -> Result<Growth, Refusal> {
    let request = more_of(order, quote.request.members, now_ms)?;
    if quote.account != order.account {
        return Err(Refusal::QuoteNotYours);
    }
    if now_ms >= quote.expires_ms {
        return Err(Refusal::QuoteExpired { ago_ms: now_ms - quote.expires_ms });
    }
    let left_ms = request.duration_ms;
    let quoted_ms = quote.request.duration_ms;
    let same = quote.request == Request { duration_ms: quoted_ms, ..request };
    if !same || !(left_ms..=left_ms.saturating_add(QUOTE_LIFE_MS)).contains(&quoted_ms) {
        let what = format!("{} for {} members and {quoted_ms} ms", quote.id, quote.request.members);
        let limit = format!("one for more members of {} and the {left_ms} ms that are left of it", order.id);
        return Err(Refusal::out_of_range("the quote", what, limit));
    }
    if order.course.growth.is_some() {
        return Err(Refusal::NoChange { what: format!("{} is still getting members", order.id) });
    }
    let from_ms = order.over_ms(now_ms);
    let grown = order.quote.grown(quote, from_ms);
    grown.within_caps()?;
    let more = grown.total_micro_usd.saturating_sub(order.quote.total_micro_usd);
    let transfer = escrow(order.id, order.escrows, order.account, grown.request.asset, more);
    state.ledger.check(&[transfer])?;
    if let Some(key) = order.key {
        state.key(order.account, key)?.affords(more)?;
    }
    room(state, order, quote, now_ms)?;
    Ok(Growth { from_ms, transfer })
}

/// Whether the added members have a place beside what is promised to others and held for them.
fn room(state: &State, order: &Order, quote: &Quote, now_ms: u64) -> Result<(), Refusal> {
    let mut rates: Vec<Rate> = quote.items.iter().map(|item| item.rate).collect();
    rates.sort_unstable();
    let mut limits = beside_own(order, rates);
    queue::hold_back(state, &queue::Asker::new(&quote.request, now_ms), &mut limits, now_ms);
    for (device, taken) in promised(state, now_ms) {
        limits.promised.entry(device).or_default().extend(taken);
    }
    place::seats(state, &quote.request, &limits, now_ms).map(|_| ())
}

/// Whether an order that was paused has a place now, at its own rates.
pub(super) fn has_place(state: &State, order: &Order, now_ms: u64) -> Result<(), Refusal> {
    let slots = cheapest_first(order, (0..order.quote.request.members).collect());
    let mut limits = limits(state, order, now_ms);
    for (device, taken) in promised(state, now_ms) {
        limits.promised.entry(device).or_default().extend(taken);
    }
    leases(state, order, &order.quote.request, &slots, limits, now_ms).map(|_| ())
}

/// A smaller order as it was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Less {
    /// How much of the order's time counts for those who go.
    pub until_ms: u64,
    /// They are not charged for any time after this, in milliseconds since 1970.
    pub charged_until_ms: u64,
    /// What comes back now.
    pub refund: Option<Transfer>,
}

/// What it means to keep the first `members` only.
///
/// # Errors
/// `WrongStage` unless it runs, `OutOfRange` unless 1 to one less than there are stay, and those of the money.
pub fn shrink(state: &State, order: &Order, members: u32, now_ms: u64) -> Result<Less, Refusal> {
    order.may(Move::Shrink)?;
    let most = order.quote.request.members.saturating_sub(1);
    if !(1..=most).contains(&members) {
        let limit = format!("1 to {most}: the head stays; 'ionet cluster rm' ends all");
        return Err(Refusal::out_of_range("the members that stay", members, limit));
    }
    let mut going = order.leases.range(order.course.run_first..).filter(|(_, lease)| lease.slot >= members);
    let item_from_ms = order.quote.items.get(members as usize).map_or(0, |item| item.from_ms);
    // Members that never got a device cost nothing.
    let until_ms = if going.next().is_none() { item_from_ms } else { order.over_ms(now_ms) };
    let charged_until_ms = order.moment_ms(until_ms).unwrap_or(now_ms);
    let smaller = order.quote.shrunk(members, until_ms);
    let refund = give_back(order, order.quote.total_micro_usd.saturating_sub(smaller.total_micro_usd));
    state.ledger.check(refund.as_slice())?;
    Ok(Less { until_ms, charged_until_ms, refund })
}

/// What moves with a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// What comes back now.
    pub refund: Option<Transfer>,
    /// What is set aside now: for a higher cap of an order whose price floats.
    pub escrow: Option<Transfer>,
}

/// Whether an order may be changed so, and what moves with it.
///
/// # Errors
/// `WrongStage` once it closes, `NoChange` if nothing would change, `OutOfRange` where the result makes no sense, and those of
/// the money.
pub fn change(state: &State, order: &Order, change: &OrderChange, now_ms: u64) -> Result<Moved, Refusal> {
    order.may(Move::Change)?;
    let changed = change.applied(&order.quote);
    if changed.request == order.quote.request {
        return Err(Refusal::NoChange { what: order.id.to_string() });
    }
    changed.request.check()?;
    check_cap(order, changed.request.max_rate)?;
    if change.wants.is_some() && !order.ways.kept.is_empty() {
        return Err(Refusal::Unsupported {
            what: "other requirements for an order whose devices are kept".into(),
            reason: "they were chosen when it was placed".into(),
            available: "ending it and reserving anew; all of it comes back".into(),
        });
    }
    let (before_ms, after_ms) = (order.quote.request.duration_ms, changed.request.duration_ms);
    let over_ms = order.over_ms(now_ms);
    if after_ms > before_ms || after_ms < over_ms {
        let limit = format!(
            "{over_ms} ms, which are over, to {before_ms} ms; 'ionet cluster extend' adds time, 'ionet cluster rm' ends it"
        );
        return Err(Refusal::out_of_range("duration_ms", after_ms, limit));
    }
    changed.within_caps()?;
    let (before, after) = (order.quote.total_micro_usd, changed.total_micro_usd);
    let refund = give_back(order, before.saturating_sub(after));
    let more = after.saturating_sub(before);
    let escrow =
        (more > 0).then(|| escrow(order.id, order.escrows, order.account, changed.request.asset, more));
    state.ledger.check(refund.or(escrow).as_slice())?;
    if let Some(key) = order.key.filter(|_| more > 0) {
        state.key(order.account, key)?.affords(more)?;
    }
    Ok(Moved { refund, escrow })
}

/// Where an order's price floats, what was set aside is its cap: it has one, and a lower one only before it ran.
fn check_cap(order: &Order, cap: Option<Rate>) -> Result<(), Refusal> {
    let before = order.quote.request.max_rate.unwrap_or_default();
    let buy = order.quote.request.buy;
    let least = if order.leases.is_empty() { u64::from(order.quote.request.members) } else { before.0 };
    match cap {
        _ if !buy.floats() => Ok(()),
        Some(cap) if cap.0 >= least => Ok(()),
        cap => {
            let limit = format!(
                "at least {least} micro-USD an hour for an order that is {}, and less only before it runs; it may be ended and what it did not use comes back",
                buy.name()
            );
            Err(Refusal::out_of_range("max_rate", cap.unwrap_or_default().0, limit))
        }
    }
}

impl OrderChange {
    /// An order's quote with this change.
    #[must_use]
    pub fn applied(&self, quote: &Quote) -> Quote {
        let mut changed = quote.clone();
        let request = &mut changed.request;
        request.duration_ms = self.duration_ms.unwrap_or(request.duration_ms);
        if let Some(cap) = self.max_rate {
            request.max_rate = Some(cap).filter(|cap| cap.0 > 0);
        }
        if let Some(cap) = self.max_total_micro_usd {
            request.max_total_micro_usd = Some(cap).filter(|cap| *cap > 0);
        }
        if let Some(upkeep) = &self.upkeep {
            request.upkeep = upkeep.clone();
        }
        request.priority = self.priority.unwrap_or(request.priority);
        if let Some(wants) = &self.wants {
            *request = wants.of(request);
        }
        if request.buy.floats() {
            waiting::recap(&mut changed);
        }
        changed.add_up();
        changed
    }
}
