//! The price of a device for a request, from factors that are each visible.
//!
//! ```text
//! market = reference x performance x connectivity x region x reliability x load x count x commitment x advance x spot   (a unit, an hour)
//! rate   = the largest of: market, the ask x its duration factor, the floor of other use; plus disk
//! ```
//! The reference is the model's rate in our own table (`hardware`). The load is set once an hour from how much of that
//! hardware was hired and what it costs elsewhere, and never moves further than the table allows; the hours asked for move
//! it a little more. A class without a reference, and a network without a table of prices, go by the asks.
//!
//! Always holds: integers only; a factor is in ppm and the product is rounded down to a millionth of a micro-USD after each
//! factor and to a micro-USD once at the end; no supplier gets less than what he asked for (times the duration factor that
//! he agreed to) nor less than his floor. Not here: who gets the order (`place`), the promise (`quote`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::competitors;
use super::hardware::{self, GpuModel};
use super::price_params::{PPM, PriceParams, step_ppm};
use super::record::{ClassRecord, MarketRecord, units_millis};
use super::request::Request;
use super::spot;
use super::standing::WORDS_MOST_PPM;
use crate::connectivity::claimed_region;
use crate::device::{Alternative, Device, HardwareClass, Resources, Tier};
use crate::id::DeviceId;
use crate::money::{Asset, HOUR_MS, Rate};
use crate::refusal::Refusal;
use crate::state::State;

pub use super::quote::{QUOTE_LIFE_MS, quote};

/// Hours of a month as disk is priced by.
const MONTH_HOURS: u128 = 730;
const GIB: u128 = 1 << 30;

/// The factor on the ask of a longer commitment, in percent.
pub fn duration_factor_percent(duration_ms: u64) -> u32 {
    const DAY_MS: u64 = 24 * HOUR_MS;
    match duration_ms {
        0..DAY_MS => 100,
        DAY_MS..604_800_000 => 90,
        _ => 80,
    }
}

/// What the supplier of a device takes at least for `wanted` of it: its ask for each GPU, or on a CPU device for each CPU
/// thread, times the duration factor, rounded down once; but never less than the floor of its other use.
pub fn member_rate(device: &Device, wanted: Resources, duration_ms: u64) -> Rate {
    let floor = device.alternative.map_or(Rate(0), |other| floor_per_unit(&device.class, other));
    unit_rate(&device.class, (device.enrolment.ask_per_unit, floor), wanted, duration_ms)
}

/// The same from ask and floor of one unit.
pub(super) fn unit_rate(
    class: &HardwareClass,
    (ask, floor): (Rate, Rate),
    wanted: Resources,
    duration_ms: u64,
) -> Rate {
    let units = units(class, wanted);
    asked(ask, units, duration_factor_percent(duration_ms)).max(least(floor, units))
}

/// A request for a GPU device is for one at least; on a CPU device the threads count.
fn units(class: &HardwareClass, wanted: Resources) -> u64 {
    let units = units_millis(class, wanted);
    if *class == HardwareClass::Cpu || wanted.is_share() { units } else { units.max(1000) }
}

fn asked(ask: Rate, units_millis: u64, percent: u32) -> Rate {
    saturated(u128::from(ask.0) * u128::from(units_millis) * u128::from(percent) / 100_000)
}

fn least(floor: Rate, units_millis: u64) -> Rate {
    saturated((u128::from(floor.0) * u128::from(units_millis)).div_ceil(1000))
}

/// What a unit is worth to its owner otherwise: the revenue that he names, and the power that hiring it out costs (board
/// power by the model's data sheet), rounded up.
pub fn floor_per_unit(class: &HardwareClass, other: Alternative) -> Rate {
    let watts = match class {
        HardwareClass::Cpu => 0,
        HardwareClass::Gpu(model) => hardware::find(model).map_or(0, |known| known.power_watts),
    };
    let power = (u128::from(watts) * u128::from(other.power_micro_usd_per_kwh)).div_ceil(1000);
    saturated(u128::from(other.revenue_per_unit.0) + power)
}

fn saturated(rate: u128) -> Rate {
    Rate(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// One factor of a market rate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factor {
    /// Which: performance, connectivity, region, reliability, renters' words, load, hours, count, commitment, advance, spot.
    pub name: String,
    /// In ppm; 1,000,000 changes nothing.
    pub ppm: u32,
    /// What it follows from, with the numbers.
    pub because: String,
}

/// What decided a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// The supplier's ask, times the duration factor.
    Ask,
    /// The floor of the hardware's other use.
    Floor,
    /// The market rate.
    Market,
}

/// How the rate of a member came about. Rates are for an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pricing {
    /// Priced units of the member in thousandths: GPUs, or CPU threads.
    pub units_millis: u64,
    /// The supplier's ask for one unit.
    pub ask_per_unit: Rate,
    /// The floor of other use for one unit, if the supplier named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_per_unit: Option<Rate>,
    /// The reference for one unit and where it is from; none for hardware that the table does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<(Rate, String)>,
    /// What the reference is multiplied with, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub factors: Vec<Factor>,
    /// The market rate of one unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub market_per_unit: Option<Rate>,
    /// What decided the rate.
    pub decided_by: DecidedBy,
    /// The part of the member's rate that is for disk.
    pub disk_rate: Rate,
    /// The member's rate without the discounts for time and count.
    pub list_rate: Rate,
    /// The member's rate.
    pub rate: Rate,
}

/// Prices devices at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Pricer<'a> {
    table: Option<&'a PriceParams>,
    record: Option<&'a MarketRecord>,
    now_ms: u64,
}

impl<'a> Pricer<'a> {
    /// As things stand.
    pub fn new(state: &'a State, now_ms: u64) -> Self {
        Self { table: state.params.price.as_ref(), record: state.market.as_ref(), now_ms }
    }

    /// What a member of the request costs on a device.
    pub fn price(&self, id: DeviceId, device: &Device, request: &Request) -> Pricing {
        let wanted = request.per_member;
        let percent = duration_factor_percent(request.duration_ms);
        let units = units(&device.class, wanted);
        let per_unit = device.alternative.map(|other| floor_per_unit(&device.class, other));
        let asked = |percent| asked(device.enrolment.ask_per_unit, units, percent);
        let (ask, floor) = (asked(percent), per_unit.map_or(Rate(0), |floor| least(floor, units)));
        // Who wants no GPU does not pay the market's rate for one: the ask alone counts.
        let known = self.table.zip(reference(&device.class)).filter(|_| wanted.gpus > 0);
        let factors = known.map(|(table, _)| self.factors(table, id, device, request)).unwrap_or_default();
        let reference = known.map(|(_, known)| (known.reference(), known));
        let discounts = ["count", "commitment", "advance", "spot"];
        let market = |with: bool| {
            let (rate, _) = reference?;
            let used = factors.iter().filter(|factor| with || !discounts.contains(&factor.name.as_str()));
            Some(product(rate, used.map(|factor| factor.ppm), units))
        };
        let market_rate = market(true).unwrap_or_default();
        let disk_rate = self.disk(wanted);
        let best = ask.max(floor).max(market_rate);
        let decided_by = match () {
            () if best == ask => DecidedBy::Ask,
            () if best == floor => DecidedBy::Floor,
            () => DecidedBy::Market,
        };
        let list = asked(100).max(floor).max(market(false).unwrap_or_default());
        let plus_disk = |rate: Rate| Rate(rate.0.saturating_add(disk_rate.0));
        Pricing {
            units_millis: units,
            ask_per_unit: device.enrolment.ask_per_unit,
            floor_per_unit: per_unit,
            reference: reference.map(|(rate, known)| (rate, source(known))),
            market_per_unit: reference
                .map(|(rate, _)| product(rate, factors.iter().map(|factor| factor.ppm), 1000)),
            factors,
            decided_by,
            disk_rate,
            list_rate: plus_disk(list),
            rate: plus_disk(best),
        }
    }

    /// What a member that runs on a device at `rate` costs from now on: as the market moves. An ask or a floor keeps it where it
    /// is at most and never raises it.
    pub fn running(&self, id: DeviceId, device: &Device, request: &Request, rate: Rate) -> Rate {
        let now = self.price(id, device, request);
        match now.decided_by {
            DecidedBy::Market => now.rate,
            DecidedBy::Ask | DecidedBy::Floor => {
                let market = now.market_per_unit.unwrap_or_default().0;
                let market = saturated(u128::from(market) * u128::from(now.units_millis) / 1000);
                now.rate.min(rate).max(Rate(market.0.saturating_add(now.disk_rate.0).min(now.rate.0)))
            }
        }
    }

    /// The market rate of one unit of a class before anything of a device counts: reference and load.
    pub fn class_rate(&self, class: &HardwareClass) -> Option<Rate> {
        self.table?;
        let known = reference(class)?;
        Some(product(known.reference(), [self.load_ppm(class)].into_iter(), 1000))
    }

    fn disk(&self, wanted: Resources) -> Rate {
        let price = self.table.map_or(0, |table| table.disk_micro_usd_per_gib_month);
        saturated(u128::from(price) * u128::from(wanted.disk_bytes) / GIB / MONTH_HOURS)
    }

    fn class(&self, class: &HardwareClass) -> Option<&'a ClassRecord> {
        self.record?.class(class)
    }

    fn load_ppm(&self, class: &HardwareClass) -> u32 {
        self.class(class).and_then(|known| known.load_ppm).unwrap_or(1_000_000)
    }

    fn factors(&self, table: &PriceParams, id: DeviceId, device: &Device, request: &Request) -> Vec<Factor> {
        let factor = |name: &str, (ppm, because): (u32, String)| Factor { name: name.into(), ppm, because };
        let units = u64::from(request.members) * units(&device.class, request.per_member) / 1000;
        let count = (step_ppm(&table.count, units), format!("{units} units in all"));
        let hours = request.duration_ms.div_ceil(HOUR_MS);
        let commitment = (step_ppm(&table.commitment, request.duration_ms), format!("for {hours} hours"));
        let mut factors = vec![
            factor("performance", performance(device)),
            factor("connectivity", connectivity(table, device)),
            factor("region", region(table, device)),
            factor("reliability", self.reliability(table, id)),
        ];
        factors.extend(self.words(id).map(|words| factor("renters' words", words)));
        factors.extend([
            factor("load", self.load(&device.class)),
            factor("hours", self.hours(table, &device.class, request)),
            factor("count", count),
            factor("commitment", commitment),
        ]);
        if let Some(begins_ms) = request.buy.begins_ms() {
            let ahead_ms = begins_ms.saturating_sub(self.now_ms);
            let because = format!("reserved {} hours ahead", ahead_ms / HOUR_MS);
            factors.push(factor("advance", (step_ppm(&table.advance, ahead_ms), because)));
        }
        if let Some(notice_ms) = spot::notice_ms(request.buy) {
            let because = format!("may be ended with {} s of notice", notice_ms / 1000);
            factors.push(factor("spot", (table.spot_ppm, because)));
        }
        factors
    }

    /// What renters said, once somebody said something: it only takes away, and less than all fees.
    fn words(&self, id: DeviceId) -> Option<(u32, String)> {
        let served = self.record.and_then(|record| record.served.get(&id))?;
        let stars = served.stars_hundredths()?;
        let off = WORDS_MOST_PPM * served.dissatisfied_ppm() / PPM;
        let because = format!(
            "{}.{:02} of 5 stars, weighed by {} in fees",
            stars / 100,
            stars % 100,
            Asset::Iosd.show(served.rated_fees_micro_usd)
        );
        Some((u32::try_from(PPM - off).unwrap_or(1_000_000), because))
    }

    fn reliability(&self, table: &PriceParams, id: DeviceId) -> (u32, String) {
        let served = self.record.and_then(|record| record.served.get(&id)).copied().unwrap_or_default();
        let ppm = served.kept_ppm(table.reliability_prior_leases);
        let ppm = u32::try_from(ppm).unwrap_or(1_000_000).max(table.reliability_least_ppm);
        (ppm, format!("{} leases kept, {} lost", served.kept, served.lost))
    }

    fn load(&self, class: &HardwareClass) -> (u32, String) {
        let now = self.class(class).map_or(0, ClassRecord::hired_now_ppm);
        let last = self.class(class).and_then(|known| known.hired_last_hour_ppm(self.now_ms));
        let last = last.map(|ppm| format!(", {} % in the last full hour", ppm / 10_000));
        (self.load_ppm(class), format!("{} % hired now{}", now / 10_000, last.unwrap_or_default()))
    }

    /// The hours asked for against the average of the day: half of the load's slope, within the table's bound.
    fn hours(&self, table: &PriceParams, class: &HardwareClass, request: &Request) -> (u32, String) {
        let at_ms = request.buy.begins_ms().unwrap_or(self.now_ms);
        let above = self.class(class).map_or(0, |known| known.peak_ppm(at_ms, request.duration_ms));
        let slope = i64::from(table.load_high_ppm.saturating_sub(table.load_low_ppm)) / 2;
        let most = i64::from(table.peak_ppm);
        let moved = (above * slope / 1_000_000).clamp(-most, most);
        // Relative to the load, so that load and hours together move by no more than their sum allows.
        let load = i64::from(self.load_ppm(class).max(1));
        let ppm = (load + moved) * 1_000_000 / load;
        let because = match above {
            0 => "no daily pattern is known or wanted".to_owned(),
            above => format!("{:+} % hired in these hours of the day", above / 10_000),
        };
        (u32::try_from(ppm).unwrap_or(1_000_000), because)
    }
}

fn reference(class: &HardwareClass) -> Option<&'static GpuModel> {
    match class {
        HardwareClass::Cpu => None,
        HardwareClass::Gpu(model) => hardware::find(model),
    }
}

fn source(known: &GpuModel) -> String {
    if known.published() {
        return format!("published reference rate of {}", known.name);
    }
    let percent = known.performance_ppm() / 10_000;
    format!("{percent} % of an A100 80GB by compute, memory and bandwidth ({})", hardware::SOURCE)
}

/// The reference times all factors times the units: see the head for how it is rounded.
fn product(reference: Rate, factors: impl Iterator<Item = u32>, units_millis: u64) -> Rate {
    let whole = u128::from(PPM);
    let one = factors
        .fold(u128::from(reference.0) * whole, |value, ppm| value.saturating_mul(u128::from(ppm)) / whole);
    saturated(one.saturating_mul(u128::from(units_millis)) / 1000 / whole)
}

/// What the driver sees of the card's memory against the data sheet; up to a twentieth less is the driver's own use.
fn performance(device: &Device) -> (u32, String) {
    let sheet = reference(&device.class).map_or(0, |known| u64::from(known.memory_mib));
    let checks = device.measured.iter().flat_map(|measured| &measured.gpus);
    let least = checks.filter_map(|check| check.driver_memory_bytes).min().map(|bytes| bytes >> 20);
    match least {
        Some(mib) if sheet > 0 && mib < sheet / 20 * 19 => {
            let ppm = u32::try_from(mib * PPM / sheet).unwrap_or(1_000_000).max(500_000);
            (ppm, format!("{mib} MiB of memory measured, {sheet} by the data sheet"))
        }
        Some(mib) => (1_000_000, format!("{mib} MiB of memory measured, as the data sheet says")),
        None => (1_000_000, "as the data sheet says".into()),
    }
}

fn connectivity(table: &PriceParams, device: &Device) -> (u32, String) {
    let tier = device.tier.unwrap_or(Tier::Basic);
    (table.tier_ppm.get(&tier).copied().unwrap_or(1_000_000), format!("{tier} as measured"))
}

/// A claimed region counts only where round trips bear it out.
fn region(table: &PriceParams, device: &Device) -> (u32, String) {
    match claimed_region(&device.enrolment.tags) {
        None => (1_000_000, "no region claimed".into()),
        Some(claimed) if device.region_doubt().is_some() => {
            (1_000_000, format!("{claimed} is claimed and not borne out"))
        }
        Some(region) => (table.region_ppm.get(region).copied().unwrap_or(1_000_000), region.into()),
    }
}

/// Loads that are due to be set: once an hour, for the classes with a reference, each at most a step from the last. Empty
/// when nothing is due or nothing changes.
pub fn due_loads(state: &State, now_ms: u64) -> BTreeMap<String, u32> {
    let (Some(table), Some(record)) = (&state.params.price, &state.market) else { return BTreeMap::new() };
    if now_ms < record.loads_set_ms.saturating_add(HOUR_MS) {
        return BTreeMap::new();
    }
    let due = |(name, class): (&String, &ClassRecord)| {
        let known = hardware::find(name)?;
        let hired_ppm = class.hired_last_hour_ppm(now_ms)?;
        let prices = competitors::prices(name, &record.feeds, table.feed_limits, now_ms);
        let goal = goal_ppm(table, known.reference(), hired_ppm, competitors::median(&prices));
        let last = u64::from(class.load_ppm.unwrap_or(1_000_000));
        let step = u64::from(table.load_step_ppm());
        let next = goal.clamp(last.saturating_sub(step), last + step);
        (next != last).then(|| (name.clone(), u32::try_from(next).unwrap_or(u32::MAX)))
    };
    record.classes.iter().filter_map(due).collect()
}

/// Where the load goes: by what is hired, and part of the way to what it costs elsewhere.
fn goal_ppm(table: &PriceParams, reference: Rate, hired_ppm: u64, elsewhere: Option<Rate>) -> u64 {
    let load = table.load_goal_ppm(hired_ppm);
    let Some(elsewhere) = elsewhere else { return load };
    let most = i128::from(table.competitors_gap_ppm);
    let gap = i128::from(elsewhere.0) * 1_000_000 / i128::from(reference.0.max(1)) - 1_000_000;
    let moved = gap.clamp(-most, most) * i128::from(table.competitors_weight_ppm) / 1_000_000;
    let goal = i128::from(load) * (1_000_000 + moved) / 1_000_000;
    u64::try_from(goal).unwrap_or(load)
}

/// Whether loads may be set to these: exactly those that are due.
pub fn check_loads(state: &State, now_ms: u64) -> Result<BTreeMap<String, u32>, Refusal> {
    let due = due_loads(state, now_ms);
    if due.is_empty() {
        return Err(Refusal::NoChange { what: "the loads of the market".into() });
    }
    Ok(due)
}
