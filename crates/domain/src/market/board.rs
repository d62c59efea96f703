//! What each kind of hardware costs and did cost: `ionet prices`.
//!
//! Always holds: everything here follows from the journal and from dated prices elsewhere; history is bounded. Not here: the
//! price of a certain request (`quote`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::book::Alike;
use super::competitors::{self, Competitor, Elsewhere};
use super::hardware;
use super::price::Pricer;
use super::record::{ClassRecord, Hour, Trade};
use crate::device::HardwareClass;
use crate::money::{HOUR_MS, Rate};
use crate::state::State;

/// One kind of hardware. Rates are for one unit (a GPU; of a CPU device a thread) an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassPrices {
    /// Which: a GPU model, or CPU.
    pub class: HardwareClass,
    /// Whether these are the simulated devices of the class, which are for show and count nowhere else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// Devices in the pool.
    pub devices: u32,
    /// Those that could take something now.
    pub open_devices: u32,
    /// Units in the pool, in thousandths.
    pub units_millis: u64,
    /// Units that are free on devices that could take something now, in thousandths.
    pub free_millis: u64,
    /// How much is hired now, in ppm of the pool.
    pub hired_ppm: u64,
    /// The lowest ask among devices that could take something now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_ask: Option<Rate>,
    /// The reference rate and where it is from, for hardware that our table has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Rate>,
    /// The market rate: the reference times the load; asks above it count all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub market: Option<Rate>,
    /// The last leases that began, newest last.
    pub trades: Vec<Trade>,
    /// The last hours, newest last, the hour under way included.
    pub hours: Vec<Hour>,
    /// What it costs elsewhere: the median of what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
    /// Every price elsewhere that is known, with its date, the cheapest first.
    pub competitors: Vec<Competitor>,
}

/// The prices of every kind of hardware in the pool, or of those whose name contains `model` (in any case).
pub fn prices(state: &State, model: Option<&str>, now_ms: u64) -> Vec<ClassPrices> {
    let wanted = model.map(str::to_ascii_lowercase);
    let is_wanted = |class: &HardwareClass| {
        wanted.as_ref().is_none_or(|wanted| class.to_string().to_ascii_lowercase().contains(wanted))
    };
    let book = state.book();
    let open = book.hours(now_ms);
    let mut counts: BTreeMap<(&HardwareClass, bool), Counts> = BTreeMap::new();
    for (class, _) in book.kinds().filter(|(class, _)| is_wanted(class)) {
        for crowd in book.crowds_of(class).filter(|crowd| crowd.standing.unpooled.is_none()) {
            let all_open = crowd.traits().all(|(traits, _)| is_open(&open, traits));
            let counts = counts.entry((class, crowd.standing.simulated)).or_default();
            crowd.alike().for_each(|alike| counts.add(&alike, (!all_open).then_some(&open)));
        }
    }
    counts.into_iter().map(|(of, counts)| entry(state, of, &counts, now_ms)).collect()
}

#[derive(Default)]
struct Counts {
    devices: u32,
    open_devices: u32,
    units_millis: u64,
    hired_millis: u64,
    free_millis: u64,
    lowest_ask: Option<Rate>,
}

impl Counts {
    /// Adds devices; `open` says by the number of their traits whether their schedule lets a lease begin now, if of some it
    /// does not.
    fn add(&mut self, alike: &Alike<'_>, open: Option<&Vec<bool>>) {
        let (units, free) = (alike.offered_millis(), alike.free_millis());
        let devices = alike.spots.len() as u64;
        self.devices += narrow(devices);
        self.units_millis += devices * units;
        self.hired_millis += devices * units.saturating_sub(free);
        if !alike.has_room() {
            return;
        }
        let devices = match open {
            None => devices,
            Some(open) => alike.spots.iter().filter(|(_, spot)| is_open(open, spot.traits)).count() as u64,
        };
        if devices > 0 {
            let ask = alike.ask.per_unit;
            self.open_devices += narrow(devices);
            self.free_millis += devices * free;
            self.lowest_ask = Some(self.lowest_ask.map_or(ask, |lowest| lowest.min(ask)));
        }
    }
}

/// Whether the schedule among these traits lets a lease begin now.
fn is_open(open: &[bool], traits: u32) -> bool {
    open.get(traits as usize).is_some_and(|open| *open)
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn entry(
    state: &State,
    (class, simulated): (&HardwareClass, bool),
    counts: &Counts,
    now_ms: u64,
) -> ClassPrices {
    // What was traded and hired is of real devices.
    let record = state.market.as_ref().and_then(|market| market.class(class)).filter(|_| !simulated);
    let limits = state.params.price.as_ref().map(|table| table.feed_limits).unwrap_or_default();
    let none = BTreeMap::new();
    let feeds = state.market.as_ref().map_or(&none, |market| &market.feeds);
    let name = class.to_string();
    let competitors = competitors::prices(&name, feeds, limits, now_ms);
    let hired = u128::from(counts.hired_millis) * 1_000_000 / u128::from(counts.units_millis.max(1));
    ClassPrices {
        class: class.clone(),
        simulated,
        devices: counts.devices,
        open_devices: counts.open_devices,
        units_millis: counts.units_millis,
        free_millis: counts.free_millis,
        hired_ppm: u64::try_from(hired).unwrap_or(0),
        lowest_ask: counts.lowest_ask,
        reference: hardware::find(&name).map(hardware::GpuModel::reference),
        market: Pricer::new(state, now_ms).class_rate(class),
        trades: record.map(|known| known.trades.iter().copied().collect()).unwrap_or_default(),
        hours: record.map(|known| known.hours_until(now_ms)).unwrap_or_default(),
        elsewhere: competitors::elsewhere(&competitors),
        competitors,
    }
}

impl ClassRecord {
    /// The kept hours as they are at `now_ms`, the time since the last change included.
    pub fn hours_until(&self, now_ms: u64) -> Vec<Hour> {
        let mut now = self.clone();
        now.advance(now_ms.max(self.since_ms));
        let oldest = (now_ms / HOUR_MS).saturating_sub(super::record::KEPT_HOURS as u64);
        now.hours.into_iter().filter(|hour| hour.hour >= oldest).collect()
    }
}
