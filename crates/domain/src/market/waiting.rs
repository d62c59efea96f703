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

const UNCAPPED: Rate = Rate(u64::MAX);

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
    quote.within_total_cap()?;
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
        let needed = uncapped(state, request, limits, now_ms).and_then(|seats| cap_needed(&seats, caps));
        if let Some(Rate(rate_micro_usd_per_hour)) = needed {
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
    seats(state, request, &vec![UNCAPPED; request.members as usize], limits, now_ms)
}

fn together(seats: &[(Seat, Rate)]) -> Rate {
    together_of(seats.iter().map(|(_, rate)| *rate))
}

fn together_of(rates: impl Iterator<Item = Rate>) -> Rate {
    Rate(rates.map(|rate| rate.0).fold(0, u64::saturating_add))
}

/// The higher cap of which each member's share would be enough for these seats, the cheapest first: what is added is shared
/// evenly ([`recap`]). `None` if they are within the caps (ascending).
pub(super) fn cap_needed(seats: &[(Seat, Rate)], caps: &[Rate]) -> Option<Rate> {
    let lacks = seats.iter().zip(caps).map(|((_, rate), cap)| rate.0.saturating_sub(cap.0));
    let most = lacks.max().filter(|lack| *lack > 0)?;
    let dearest = seats.last()?.1;
    let (before, each) =
        if is_even(caps) { (0, dearest.0) } else { (together_of(caps.iter().copied()).0, most) };
    Some(Rate(before.saturating_add(each.saturating_mul(seats.len() as u64))))
}

/// Whether each member's cap is its share of the whole.
fn is_even(caps: &[Rate]) -> bool {
    let least = caps.iter().min().map_or(0, |cap| cap.0);
    caps.iter().all(|cap| cap.0 - least <= 1)
}

/// The cap shared among the members, the cheapest first: equal parts, and what does not divide goes to the last.
fn shared(request: &Request) -> Vec<Rate> {
    let cap = request.max_rate.unwrap_or_default().0;
    let members = u64::from(request.members.max(1));
    let (each, more) = (cap / members, cap % members);
    (0..members).map(|member| Rate(each + u64::from(member >= members - more))).collect()
}

/// Sets the items of a quote whose price floats by its request: the cap is shared anew, but where members have caps of their own
/// and it is raised, each gets as much more.
pub(crate) fn recap(quote: &mut Quote) {
    let (before, cap) = (quote.rate.0, quote.request.max_rate.unwrap_or_default().0);
    let class = only_class(&quote.request);
    let of = |cap| shared(&Request { max_rate: Some(Rate(cap)), ..quote.request.clone() });
    let anew = cap < before || quote.items.iter().map(|item| item.rate).eq(of(before));
    let shares = of(if anew { cap } else { cap - before });
    for (item, share) in quote.items.iter_mut().zip(shares) {
        item.class.clone_from(&class);
        item.rate = if anew { share } else { Rate(item.rate.0.saturating_add(share.0)) };
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
    let of_class = other_classes(state, request, now_ms).into_iter().find_map(|class| {
        let only = Request { gpu_model: Some(class), ..request.clone() };
        of_request(state, &only, caps, limits, now_ms)
    });
    // With a cap for each, devices are chosen one way where asks matter and another where they do not.
    of_class.or_else(|| {
        let found = (!is_even(caps)).then(|| uncapped(state, request, limits, now_ms)).flatten()?;
        cap_needed(&found, caps).is_none().then_some(found)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::DeviceId;
    use proptest::prelude::*;

    fn quote(rates: &[u64]) -> Quote {
        let item = |rate: &u64| QuoteItem {
            device: None,
            class: None,
            rate: Rate(*rate),
            compute_micro_usd: 0,
            from_ms: 0,
            pricing: None,
        };
        let members = u32::try_from(rates.len()).unwrap();
        let request = Request { members, max_rate: Some(Rate(rates.iter().sum())), ..Request::default() };
        let items = (rates.iter().map(item).collect(), Vec::new());
        of_items(&State::default(), (QuoteId::from_parts(1, 1), Address([1; 32])), &request, items, 0)
    }

    proptest! {
        /// The members' caps are the whole cap; raised, none falls; raised to what is said to be needed, the seats fit.
        #[test]
        fn caps_are_shared_and_rise_together(
            mut rates in prop::collection::vec(1u64..1000, 1..6),
            wanted in prop::collection::vec(1u64..1000, 6),
            other in 6u64..6000,
        ) {
            rates.sort_unstable();
            let before = quote(&rates);
            let caps = |quote: &Quote| quote.items.iter().map(|item| item.rate).collect::<Vec<_>>();
            let capped = |cap| {
                let mut changed = before.clone();
                changed.request.max_rate = Some(Rate(cap));
                recap(&mut changed);
                changed
            };
            let changed = capped(other);
            prop_assert_eq!((changed.rate.0, caps(&changed).iter().map(|rate| rate.0).sum::<u64>()), (other, other));
            if Rate(other) >= before.rate {
                prop_assert!(caps(&changed).iter().zip(&caps(&before)).all(|(after, before)| after >= before));
            }
            let mut wanted: Vec<_> = wanted.into_iter().take(rates.len()).map(Rate).collect();
            wanted.sort_unstable();
            let seat = |rate: &Rate| (Seat { device: DeviceId::from_parts(1, 1), gpus: Vec::new(), cost: 0, rate: *rate }, *rate);
            let seats: Vec<_> = wanted.iter().map(seat).collect();
            match cap_needed(&seats, &caps(&before)) {
                None => prop_assert!(wanted.iter().zip(caps(&before)).all(|(rate, cap)| *rate <= cap)),
                Some(needed) => {
                    prop_assert!(needed > before.rate);
                    let caps = caps(&capped(needed.0));
                    prop_assert!(wanted.iter().zip(caps).all(|(rate, cap)| *rate <= cap));
                }
            }
        }
    }
}
