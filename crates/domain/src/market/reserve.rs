//! Reserved: a window in the future, with its devices kept for it; and flexible: so many hours of work by a deadline, begun in
//! the hours that are usually least in demand.
//!
//! Always holds: no order is placed on what is kept if the two would overlap, and none is extended into it; what is kept was
//! free for that window when it was promised. Not here: the discount (`price_params`), whom the rest goes to (`queue`).

use serde::{Deserialize, Serialize};

use super::buy::Buy;
use super::place::{self, Limits, Seat, Sieve, Taken};
use super::quote::Quote;
use super::request::Request;
use super::spot;
use crate::device::HardwareClass;
use crate::id::{DeviceId, OrderId};
use crate::money::{HOUR_MS, Rate};
use crate::order::{self, Order};
use crate::refusal::Refusal;
use crate::state::State;

/// What ends so long before a window may end late by so much.
pub const SLACK_MS: u64 = 15 * 60_000;
/// How long after the beginning of its window an order is tried before it is given up.
pub const LATE_MS: u64 = 15 * 60_000;

/// A seat that is kept for a window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptSeat {
    /// The device.
    pub device: DeviceId,
    /// Its GPUs, by their place in the device's offer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<u32>,
}

/// A stretch of time, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from_ms: u64,
    pub(crate) until_ms: u64,
}

impl Window {
    /// When a request would run that is placed at the earliest now.
    pub(crate) fn of(request: &Request, now_ms: u64) -> Self {
        let from_ms = request.buy.begins_ms().map_or(now_ms, |begins_ms| begins_ms.max(now_ms));
        Self { from_ms, until_ms: from_ms.saturating_add(request.duration_ms) }
    }

    fn overlaps(self, other: Self) -> bool {
        self.from_ms < other.until_ms && other.from_ms.saturating_sub(SLACK_MS) < self.until_ms
    }
}

/// Adds to what is promised what is kept for other orders whose windows overlap.
pub(crate) fn hold(state: &State, own: Option<OrderId>, window: Window, limits: &mut Limits, now_ms: u64) {
    for order in state.book().desk().kept(state).filter(|order| own != Some(order.id)) {
        let request = &order.quote.request;
        if !window.overlaps(Window::of(request, now_ms)) {
            continue;
        }
        for seat in &order.ways.kept {
            let taken = Taken { wanted: request.per_member, gpus: seat.gpus.clone() };
            limits.promised.entry(seat.device).or_default().push(taken);
        }
    }
}

/// Seats for a window in the future: on what is free now and on what will be, as paid times stand and spot gives way.
pub(crate) fn seats(
    state: &State,
    request: &Request,
    limits: &Limits,
    now_ms: u64,
) -> Result<Vec<Seat>, Refusal> {
    let window = Window::of(request, now_ms);
    let mut limits = limits.clone();
    hold(state, None, window, &mut limits, now_ms);
    // Owners' schedules are asked for the moment when it begins.
    if let Some(seats) = place::find(state, request, &limits, window.from_ms) {
        return Ok(seats);
    }
    let over = |order: &&Order| {
        let ends_ms = order.ends_ms().map(|ends_ms| ends_ms.saturating_add(SLACK_MS));
        ends_ms.is_some_and(|ends_ms| ends_ms <= window.from_ms)
            || spot::notice_ms(order.quote.request.buy).is_some()
    };
    limits.freed = spot::held(state.orders.values().filter(over));
    place::seats(state, request, &limits, window.from_ms)
}

/// What is kept for an order under a quote; nothing for those that are not reserved.
pub(crate) fn kept(state: &State, quote: &Quote, now_ms: u64) -> Result<Vec<KeptSeat>, Refusal> {
    if !matches!(quote.request.buy, Buy::Reserved { .. }) {
        return Ok(Vec::new());
    }
    let seats = seats(state, &quote.request, &order::promise(quote), now_ms)?;
    Ok(seats.into_iter().map(|Seat { device, gpus, .. }| KeptSeat { device, gpus }).collect())
}

/// The seats of an order whose window has begun: those that were kept, or others where one of them is not to be had.
pub(crate) fn begin(
    state: &State,
    order: &Order,
    limits: &Limits,
    now_ms: u64,
) -> Result<Vec<Seat>, Refusal> {
    let request = &order.quote.request;
    let begins_ms = request.buy.begins_ms().unwrap_or(now_ms);
    if now_ms < begins_ms {
        let what = format!("the window of {}", order.id);
        return Err(Refusal::NotYet { what, in_ms: begins_ms - now_ms });
    }
    let waits = || Refusal::NoChange { what: format!("{} waits for its devices", order.id) };
    let kept = as_kept(state, order, limits, now_ms);
    kept.or_else(|| place::find(state, request, limits, now_ms)).ok_or_else(waits)
}

fn as_kept(state: &State, order: &Order, limits: &Limits, now_ms: u64) -> Option<Vec<Seat>> {
    let request = &order.quote.request;
    let wanted = request.per_member;
    let mut limits = limits.clone();
    let mut seats = Vec::with_capacity(order.ways.kept.len());
    for KeptSeat { device, gpus } in &order.ways.kept {
        let found = state.devices.get(device)?;
        let (_, free) = limits.room(*device, found);
        let millis = wanted.millis_per_gpu();
        let its_gpus = |gpu: &u32| free.get(*gpu as usize).is_some_and(|free| u32::from(*free) >= millis);
        if !gpus.iter().all(its_gpus) || !Sieve::new(state, request, &limits, now_ms).suits(*device, found) {
            return None;
        }
        let taken = Taken { wanted, gpus: gpus.clone() };
        limits.promised.entry(*device).or_default().push(taken);
        seats.push(Seat { device: *device, gpus: gpus.clone(), rate: Rate(0), cost: 0 });
    }
    (seats.len() == request.members as usize).then_some(seats)
}

/// Whether an order may go on until then: not into what is kept for others on its devices.
pub(crate) fn check_until(state: &State, order: &Order, until_ms: u64, now_ms: u64) -> Result<(), Refusal> {
    let ends_ms = order.ends_ms().unwrap_or(now_ms);
    let later = Window { from_ms: ends_ms, until_ms };
    for other in state.book().desk().kept(state).filter(|other| other.id != order.id) {
        let its = Window::of(&other.quote.request, now_ms);
        let mine = |device: DeviceId| order.leases.values().any(|l| l.live() && l.device == device);
        if its.from_ms < later.from_ms || !later.overlaps(its) {
            continue;
        }
        if let Some(seat) = other.ways.kept.iter().find(|seat| mine(seat.device)) {
            let most_ms = its.from_ms.saturating_sub(SLACK_MS).saturating_sub(ends_ms);
            let limit = format!("at most {most_ms}: {} is reserved from then on", seat.device);
            return Err(Refusal::out_of_range("added_ms", until_ms.saturating_sub(ends_ms), limit));
        }
    }
    Ok(())
}

/// When a flexible order begins as things stand: at the hour from which on the classes that would do are usually least in
/// demand for its whole time, the earliest of equal ones, and at the latest when the deadline demands it.
pub fn flexible_start_ms(state: &State, request: &Request, deadline_ms: u64, now_ms: u64) -> u64 {
    let latest_ms = deadline_ms.saturating_sub(request.duration_ms).saturating_sub(SLACK_MS);
    if latest_ms <= now_ms {
        return now_ms;
    }
    let classes = state.market.iter().flat_map(|market| market.classes.iter());
    let of_use = |name: &str| {
        let class = if name == "cpu" { HardwareClass::Cpu } else { HardwareClass::Gpu(name.to_owned()) };
        request.allows(&class) && (request.per_member.gpus == 0 || class != HardwareClass::Cpu)
    };
    let days = classes.filter(|(name, _)| of_use(name)).filter_map(|(_, record)| record.day());
    let days: Vec<_> = days.collect();
    let demand =
        |at_ms: u64| days.iter().map(|day| day.peak_ppm(at_ms, request.duration_ms)).min().unwrap_or(0);
    // Days repeat, so no hour after the next 24 is better.
    let first = now_ms / HOUR_MS + 1;
    let later = (first..first + 24).map(|hour| hour * HOUR_MS).take_while(|at_ms| *at_ms <= latest_ms);
    let best = std::iter::once(now_ms).chain(later).min_by_key(|at_ms| (demand(*at_ms), *at_ms));
    best.unwrap_or(now_ms)
}
