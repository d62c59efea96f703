//! Orders that wait: their quote, which names no device and the most that may be paid, and their placement at the true price
//! of the moment.
//!
//! Always holds: a lease of such an order costs what the market says when it is made and never more than its item of the
//! quote; all members are placed or none. Not here: who is tried when (`queue`).

use super::place::{self, Limits, Seat};
use super::price::Pricer;
use super::quote::{Outlook, Quote, QuoteItem, beside_waiting, of_items, other_classes};
use super::request::Request;
use crate::device::HardwareClass;
use crate::id::{Address, QuoteId};
use crate::money::Rate;
use crate::refusal::Refusal;
use crate::state::State;

/// How often a search is repeated without the devices that turned out too dear: the market rate of a device is known only once
/// it is looked at, and devices are found by their asks.
const ROUNDS: usize = 8;

/// The quote of an order that waits.
///
/// # Errors
/// If it does not wait and would not be placed now.
pub(super) fn quote(
    state: &State,
    id: QuoteId,
    account: Address,
    request: &Request,
    now_ms: u64,
) -> Result<Quote, Refusal> {
    let caps = shared(request);
    let class = only_class(request);
    let item = |rate: &Rate| QuoteItem {
        device: None,
        class: class.clone(),
        rate: *rate,
        compute_micro_usd: 0,
        from_ms: 0,
        pricing: None,
    };
    let items = caps.iter().map(item).collect();
    let mut quote = of_items(state, (id, account), request, (items, Vec::new()), now_ms);
    let limits = beside_waiting(state, account, request, now_ms);
    let now = uncapped(state, request, &limits, now_ms);
    let now_rate = now.as_deref().map(together);
    quote.outlook = Some(Box::new(Outlook { now_rate, room_in_ms: None }));
    if request.waits_until_ms().is_none() {
        now_or_never(state, request, &caps, &limits, now_ms)?;
    }
    Ok(quote)
}

/// Seats for an order whose price floats and which does not wait.
pub(crate) fn now_or_never(
    state: &State,
    request: &Request,
    caps: &[Rate],
    limits: &Limits,
    now_ms: u64,
) -> Result<Vec<(Seat, Rate)>, Refusal> {
    let why_not = || {
        if let Some(seats) = uncapped(state, request, limits, now_ms) {
            let rate_micro_usd_per_hour = cap_needed(&seats).0;
            let cap_micro_usd_per_hour = together_of(caps.iter().copied()).0;
            return Refusal::OverPriceCap { rate_micro_usd_per_hour, cap_micro_usd_per_hour };
        }
        let limits = Limits { rates: None, ..limits.clone() };
        Refusal::NoCapacity(place::shortfall(state, request, &limits, now_ms))
    };
    seats(state, request, caps, limits, now_ms).ok_or_else(why_not)
}

/// Seats at whatever price.
pub(super) fn uncapped(
    state: &State,
    request: &Request,
    limits: &Limits,
    now_ms: u64,
) -> Option<Vec<(Seat, Rate)>> {
    seats(state, request, &vec![Rate(u64::MAX); request.members as usize], limits, now_ms)
}

fn together(seats: &[(Seat, Rate)]) -> Rate {
    together_of(seats.iter().map(|(_, rate)| *rate))
}

fn together_of(rates: impl Iterator<Item = Rate>) -> Rate {
    Rate(rates.map(|rate| rate.0).fold(0, u64::saturating_add))
}

/// The cap of which each member's share would be enough.
pub(super) fn cap_needed(seats: &[(Seat, Rate)]) -> Rate {
    let dearest = seats.iter().map(|(_, rate)| rate.0).max().unwrap_or(0);
    Rate(dearest.saturating_mul(seats.len() as u64))
}

/// The cap shared among the members, the cheapest first: equal parts, and what does not divide goes to the last.
fn shared(request: &Request) -> Vec<Rate> {
    let cap = request.max_rate.unwrap_or_default().0;
    let members = u64::from(request.members.max(1));
    let (each, more) = (cap / members, cap % members);
    (0..members).map(|member| Rate(each + u64::from(member >= members - more))).collect()
}

/// Sets the items of a quote whose price floats by its request: a higher cap gives each more, a lower one is shared anew.
pub(crate) fn recap(quote: &mut Quote) {
    let (before, cap) = (quote.rate.0, quote.request.max_rate.unwrap_or_default().0);
    let class = only_class(&quote.request);
    let raise = Request { max_rate: Some(Rate(cap.saturating_sub(before))), ..quote.request.clone() };
    let (lower, shares) = (cap < before, shared(if cap < before { &quote.request } else { &raise }));
    for (item, share) in quote.items.iter_mut().zip(shares) {
        item.class.clone_from(&class);
        item.rate = if lower { share } else { Rate(item.rate.0.saturating_add(share.0)) };
    }
    quote.rate = together_of(quote.items.iter().map(|item| item.rate));
}

fn only_class(request: &Request) -> Option<HardwareClass> {
    match &request.gpu_model {
        Some(model) if !model.contains('|') => Some(HardwareClass::Gpu(model.clone())),
        _ => None,
    }
}

/// Seats for all members at the true price of this moment, the cheapest first and the i-th within the i-th cap (ascending);
/// `None` if they cannot be had.
pub(crate) fn seats(
    state: &State,
    request: &Request,
    caps: &[Rate],
    limits: &Limits,
    now_ms: u64,
) -> Option<Vec<(Seat, Rate)>> {
    let found = of_request(state, request, caps, limits, now_ms);
    if found.is_some() {
        return found;
    }
    // The supplier who asks least is not always of the class that costs least.
    other_classes(state, request, now_ms).into_iter().find_map(|class| {
        let only = Request { gpu_model: Some(class), ..request.clone() };
        of_request(state, &only, caps, limits, now_ms)
    })
}

fn of_request(
    state: &State,
    request: &Request,
    caps: &[Rate],
    limits: &Limits,
    now_ms: u64,
) -> Option<Vec<(Seat, Rate)>> {
    let mut limits = Limits { rates: Some(caps.to_vec()), ..limits.clone() };
    let pricer = Pricer::new(state, now_ms);
    let most = caps.last().copied().unwrap_or_default();
    for _ in 0..ROUNDS {
        let seats = place::find(state, request, &limits, now_ms)?;
        let price = |seat: Seat| {
            let rate = state.devices.get(&seat.device).map(|d| pricer.price(seat.device, d, request).rate);
            (seat, rate.unwrap_or(Rate(u64::MAX)))
        };
        let mut found: Vec<_> = seats.into_iter().map(price).collect();
        found.sort_by_key(|(_, rate)| *rate);
        if found.iter().zip(caps).all(|((_, rate), cap)| rate <= cap) {
            return Some(found);
        }
        let before = limits.avoid.len();
        limits.avoid.extend(found.iter().filter(|(_, rate)| *rate > most).map(|(seat, _)| seat.device));
        if limits.avoid.len() == before {
            return None;
        }
    }
    None
}
