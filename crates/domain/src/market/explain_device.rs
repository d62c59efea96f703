//! "Why does my device get no work?": whether it could, what it missed lately and why, and how its price compares.
//!
//! Always holds: what is said of orders is judged by the device as it is now, and says so; other renters' orders show no
//! more than the public journal does. Not here: what a renter could change (`explain`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::book::{Alike, Crowd};
use super::conditions::Known;
use super::explain::{Judge, in_words, misses};
use super::price::{Pricer, member_rate};
use super::record::{ClassRecord, Served};
use crate::device::{Contact, Device, DeviceStage, HardwareClass};
use crate::id::{DeviceId, OrderId};
use crate::money::Rate;
use crate::order::{Order, Stage};
use crate::refusal::Refusal;
use crate::state::State;

/// Most orders that are looked at, the newest first.
const ORDERS: usize = 32;

/// One order and what it had to do with the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passed {
    /// Which order.
    pub order: OrderId,
    /// When it was accepted, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whether it still waits for devices.
    pub waiting: bool,
    /// Whether the device got a lease of it.
    pub got: bool,
    /// Why not, with the numbers: what the device misses as it is now, or who was cheaper.
    pub why: Vec<String>,
}

/// How a device stands in the market.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceExplanation {
    /// Which.
    pub device: DeviceId,
    /// What it is.
    pub class: HardwareClass,
    /// Why it can take nothing at all now; empty if it can.
    pub closed: Vec<String>,
    /// Live leases.
    pub leases: u32,
    /// Its ask for one unit.
    pub ask_per_unit: Rate,
    /// The lowest ask among devices of its class that could take work now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_ask_per_unit: Option<Rate>,
    /// What the market makes of one unit of its class, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub market_per_unit: Option<Rate>,
    /// Devices of its class that could take work now.
    pub rivals: u32,
    /// Those of them that ask less and so come first.
    pub cheaper: u32,
    /// How much of its class is hired now, in ppm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hired_ppm: Option<u64>,
    /// How it kept its leases.
    pub served: Served,
    /// The newest orders and what they had to do with it.
    pub orders: Vec<Passed>,
    /// What would help, the most useful first.
    pub advice: Vec<String>,
}

/// Explains a device.
///
/// # Errors
/// If there is none.
pub fn device(state: &State, id: DeviceId, now_ms: u64) -> Result<DeviceExplanation, Refusal> {
    let found = state.device(id)?;
    let known = Known::of(state);
    let asks = rivals(state, id, found, now_ms);
    let ask = found.enrolment.ask_per_unit;
    let record = state.market.as_ref();
    let mut orders: Vec<&Order> = state.orders.values().collect();
    orders.sort_by_key(|order| std::cmp::Reverse((order.accepted_ms, order.id)));
    let mut explained = DeviceExplanation {
        device: id,
        class: found.class.clone(),
        closed: closed(known, id, found, now_ms),
        leases: found.leases,
        ask_per_unit: ask,
        lowest_ask_per_unit: asks.keys().next().copied(),
        market_per_unit: Pricer::new(state, now_ms).class_rate(&found.class),
        rivals: asks.values().sum(),
        cheaper: asks.range(..ask).map(|(_, devices)| devices).sum(),
        hired_ppm: record.and_then(|market| market.class(&found.class)).map(ClassRecord::hired_now_ppm),
        served: record.and_then(|market| market.served.get(&id)).copied().unwrap_or_default(),
        orders: orders.iter().take(ORDERS).map(|order| passed(state, id, found, order, now_ms)).collect(),
        advice: Vec::new(),
    };
    explained.advice = advice(found, &explained);
    Ok(explained)
}

/// The other devices of a class that could take work now, by ask.
fn rivals(state: &State, id: DeviceId, device: &Device, now_ms: u64) -> BTreeMap<Rate, u32> {
    let (book, mut asks) = (state.book(), BTreeMap::new());
    let open = book.hours(now_ms);
    let simulated = device.enrolment.simulated;
    let alike = book.crowds_of(&device.class).filter(|crowd| crowd.standing.simulated == simulated);
    for alike in alike.flat_map(Crowd::alike).filter(Alike::has_room) {
        let others = alike.spots.iter().filter(|(rival, _)| *rival != id);
        let count =
            others.filter(|(_, spot)| open.get(spot.traits as usize).is_some_and(|open| *open)).count();
        if count > 0 {
            *asks.entry(alike.ask.per_unit).or_default() += u32::try_from(count).unwrap_or(u32::MAX);
        }
    }
    asks
}

/// Why a device can take nothing at all.
fn closed(known: Known<'_>, id: DeviceId, device: &Device, now_ms: u64) -> Vec<String> {
    let mut why = Vec::new();
    if known.denied(id) {
        why.push("the operator keeps it out of the market".into());
    }
    if device.enrolment.simulated {
        why.push("it is simulated: nothing real can be ordered on it".into());
    }
    match &device.stage {
        DeviceStage::Pooled => {}
        DeviceStage::Refused { reason } => why.push(format!("its check refused it: {reason}")),
        other => why.push(format!("it is {other}, not pooled")),
    }
    if device.contact != Contact::Connected {
        why.push("it is not heard from at present".into());
    }
    why.extend(device.rules.closed(now_ms).map(|rule| format!("it is {rule}")));
    why
}

fn passed(state: &State, id: DeviceId, device: &Device, order: &Order, now_ms: u64) -> Passed {
    let request = &order.quote.request;
    let got = order.leases.values().any(|lease| lease.device == id);
    let mut why = Vec::new();
    if !got {
        let judge = Judge::new(state, order.account, request, now_ms);
        let words = |one| in_words(&judge, one, id, device);
        why.extend(misses(&judge, id, device).into_iter().map(words));
        if why.is_empty() {
            why.push(outbid(state, device, order));
        }
    }
    let waiting = order.stage <= Stage::Funded;
    Passed { order: order.id, at_ms: order.accepted_ms, waiting, got, why }
}

/// Who got the order instead, by price.
fn outbid(state: &State, device: &Device, order: &Order) -> String {
    let request = &order.quote.request;
    let own = member_rate(device, request.per_member, request.duration_ms);
    let taken = order.leases.values().filter_map(|lease| state.devices.get(&lease.device));
    let rates = taken.map(|other| member_rate(other, request.per_member, request.duration_ms));
    match rates.max() {
        Some(dearest) if dearest < own => {
            format!("others were cheaper: {dearest} for a member at most, and it takes {own}")
        }
        Some(_) => {
            "others as cheap or cheaper were chosen: what keeps work together comes first, then the more reliable, \
             then who has waited longest"
                .into()
        }
        None => "it has no devices; this one would do".into(),
    }
}

fn advice(device: &Device, known: &DeviceExplanation) -> Vec<String> {
    let mut advice = Vec::new();
    let refused = matches!(device.stage, DeviceStage::Refused { .. });
    if refused {
        advice.push("mend what the check names and have it checked again ('ionet worker doctor')".into());
    }
    if device.stage == DeviceStage::Pooled && device.contact != Contact::Connected {
        advice.push("start its agent ('ionet worker start'), or look at its network".into());
    }
    if device.rules.paused || device.rules.draining {
        advice.push("'ionet worker resume' lets new leases in".into());
    }
    let lowest = known.lowest_ask_per_unit.filter(|lowest| *lowest < known.ask_per_unit);
    if let Some(lowest) = lowest {
        advice.push(format!(
            "{} of {} free devices of its class ask less, the cheapest {lowest}: the cheapest are hired first",
            known.cheaper, known.rivals
        ));
    }
    if let Some(market) = known.market_per_unit.filter(|market| *market > known.ask_per_unit) {
        advice.push(format!(
            "the market pays {market} for a unit now, whatever less you ask: a low ask costs nothing"
        ));
    }
    if let Some(doubt) = device.region_doubt() {
        advice.push(format!("its region is not believed ({doubt}): orders for a region pass it by"));
    }
    if device.rules.no_egress {
        advice.push("it forbids egress, which most orders want ('ionet devices set ... --egress on')".into());
    }
    if advice.is_empty() && known.closed.is_empty() {
        advice.push("nothing is in its way: it waits for demand".into());
    }
    advice
}
