//! What each kind of hardware costs and did cost: `ionet prices`.
//!
//! Always holds: everything here follows from the journal and from dated prices elsewhere; history is bounded. Not here: the
//! price of a certain request (`quote`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::competitors::{self, Competitor, Elsewhere};
use super::hardware;
use super::price::Pricer;
use super::record::{ClassRecord, Hour, Trade, units_millis};
use crate::device::{Contact, Device, DeviceStage, HardwareClass};
use crate::money::{HOUR_MS, Rate};
use crate::state::State;

/// One kind of hardware. Rates are for one unit (a GPU; of a CPU device a thread) an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassPrices {
    /// Which: a GPU model, or CPU.
    pub class: HardwareClass,
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
    let mut counts: BTreeMap<&HardwareClass, Counts> = BTreeMap::new();
    for device in state.devices.values().filter(|device| device.stage == DeviceStage::Pooled) {
        if is_wanted(&device.class) {
            counts.entry(&device.class).or_default().add(device, now_ms);
        }
    }
    counts.into_iter().map(|(class, counts)| entry(state, class, &counts, now_ms)).collect()
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
    fn add(&mut self, device: &Device, now_ms: u64) {
        let units = units_millis(&device.class, device.enrolment.offered);
        let free = match device.class {
            HardwareClass::Cpu => device.free().cpu_millis.into(),
            HardwareClass::Gpu(_) => device.free_gpu_millis().iter().map(|free| u64::from(*free)).sum(),
        };
        self.devices += 1;
        self.units_millis += units;
        self.hired_millis += units.saturating_sub(free);
        if device.contact == Contact::Connected && device.rules.closed(now_ms).is_none() && free > 0 {
            let ask = device.enrolment.ask_per_unit;
            self.open_devices += 1;
            self.free_millis += free;
            self.lowest_ask = Some(self.lowest_ask.map_or(ask, |lowest| lowest.min(ask)));
        }
    }
}

fn entry(state: &State, class: &HardwareClass, counts: &Counts, now_ms: u64) -> ClassPrices {
    let record = state.market.as_ref().and_then(|market| market.class(class));
    let limits = state.params.price.as_ref().map(|table| table.feed_limits).unwrap_or_default();
    let none = BTreeMap::new();
    let feeds = state.market.as_ref().map_or(&none, |market| &market.feeds);
    let name = class.to_string();
    let competitors = competitors::prices(&name, feeds, limits, now_ms);
    let hired = u128::from(counts.hired_millis) * 1_000_000 / u128::from(counts.units_millis.max(1));
    ClassPrices {
        class: class.clone(),
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
