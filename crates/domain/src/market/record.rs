//! What the market did: supply and hire of each class of hardware by the hour, the last trades, how devices kept their
//! leases, the feeds that came in. A fold of the journal like the rest of the state.
//!
//! Always holds: what is kept of a class is bounded; folding reads no parameter and no clock; a clock that was put back adds
//! no time. Not here: what a price is made of that (`price`).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::competitors::Feed;
use super::price_params::PPM;
use crate::device::{Device, DeviceStage, HardwareClass, Resources};
use crate::id::{Address, DeviceId};
use crate::money::{HOUR_MS, Rate};

/// Hours of history that are kept: a week.
pub const KEPT_HOURS: usize = 7 * 24;
/// Trades that are kept of each class.
pub const KEPT_TRADES: usize = 32;
/// Most signers whose last feed is kept.
pub const KEPT_FEEDS: usize = 64;

/// Thousandths of what is counted and priced: a GPU, or on a CPU device a CPU thread.
pub fn units_millis(class: &HardwareClass, resources: Resources) -> u64 {
    match class {
        HardwareClass::Cpu => resources.cpu_millis.into(),
        HardwareClass::Gpu(_) => resources.total_gpu_millis(),
    }
}

/// What a device adds to its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    class: HardwareClass,
    supply_millis: u64,
    hired_millis: u64,
}

impl Share {
    /// A pooled device's part; others have none.
    pub fn of(device: &Device) -> Option<Self> {
        if device.stage != DeviceStage::Pooled || device.enrolment.simulated {
            return None;
        }
        let class = device.class.clone();
        let supply_millis = units_millis(&class, device.enrolment.offered);
        let hired_millis = match class {
            HardwareClass::Cpu => units_millis(&class, device.committed),
            // Shares of GPUs are counted on the GPUs.
            HardwareClass::Gpu(_) => {
                let free: u64 = device.free_gpu_millis().iter().map(|free| u64::from(*free)).sum();
                supply_millis.saturating_sub(free)
            }
        };
        Some(Self { class, supply_millis, hired_millis })
    }
}

/// An hour of a class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hour {
    /// Hours since 1970.
    pub hour: u64,
    /// Supply, in thousandths of a unit times milliseconds.
    pub supply: u64,
    /// Hired, likewise.
    pub hired: u64,
    /// Leases that began.
    pub trades: u32,
    /// The lowest rate of a unit among them.
    pub low: Rate,
    /// The highest.
    pub high: Rate,
}

impl Hour {
    /// How much was hired, in ppm of the supply.
    pub fn hired_ppm(&self) -> u64 {
        share_ppm(self.hired, self.supply)
    }
}

fn share_ppm(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * u128::from(PPM) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(PPM).min(PPM)
}

/// A lease that began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trade {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// For one unit.
    pub per_unit: Rate,
    /// Of so many thousandths of a unit.
    pub units_millis: u64,
}

/// A class of hardware.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassRecord {
    /// Offered by pooled devices now, in thousandths of a unit.
    pub supply_millis: u64,
    /// Hired of that.
    pub hired_millis: u64,
    /// When that began to hold.
    pub since_ms: u64,
    /// The last hours, oldest first; the last one may be under way.
    pub hours: VecDeque<Hour>,
    /// The last trades, oldest first.
    pub trades: VecDeque<Trade>,
    /// The load's part of the price as it was last set, in ppm of the reference rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ppm: Option<u32>,
}

impl ClassRecord {
    /// Counts the time since the last change.
    pub(super) fn advance(&mut self, now_ms: u64) {
        let oldest_ms = now_ms.saturating_sub(KEPT_HOURS as u64 * HOUR_MS);
        let mut from_ms = self.since_ms.max(oldest_ms);
        while from_ms < now_ms {
            let hour = from_ms / HOUR_MS;
            let until_ms = now_ms.min((hour + 1) * HOUR_MS);
            let span_ms = until_ms - from_ms;
            let (supply, hired) = (self.supply_millis, self.hired_millis);
            let now = self.hour(hour);
            now.supply = now.supply.saturating_add(supply.saturating_mul(span_ms));
            now.hired = now.hired.saturating_add(hired.saturating_mul(span_ms));
            from_ms = until_ms;
        }
        self.since_ms = self.since_ms.max(now_ms);
    }

    /// The record of an hour, the newest one or a new one after it.
    fn hour(&mut self, hour: u64) -> &mut Hour {
        if self.hours.back().is_none_or(|last| last.hour < hour) {
            if self.hours.len() >= KEPT_HOURS {
                self.hours.pop_front();
            }
            self.hours.push_back(Hour { hour, ..Hour::default() });
        }
        let last = self.hours.len() - 1;
        &mut self.hours[last]
    }

    /// How much was hired in the last full hour before `now_ms`, in ppm of the supply; `None` before there was one.
    pub fn hired_last_hour_ppm(&self, now_ms: u64) -> Option<u64> {
        let hour = (now_ms / HOUR_MS).checked_sub(1)?;
        if self.since_ms <= hour * HOUR_MS {
            return (self.supply_millis > 0).then(|| self.hired_now_ppm());
        }
        let mut copy = Hour::default();
        let known = self.hours.iter().rev().find(|known| known.hour <= hour);
        if let Some(known) = known.filter(|known| known.hour == hour) {
            copy = *known;
        }
        // What was not written down yet of that hour.
        let until_ms = (hour + 1) * HOUR_MS;
        let rest_ms = until_ms.saturating_sub(self.since_ms.max(hour * HOUR_MS));
        copy.supply = copy.supply.saturating_add(self.supply_millis.saturating_mul(rest_ms));
        copy.hired = copy.hired.saturating_add(self.hired_millis.saturating_mul(rest_ms));
        (copy.supply > 0).then(|| copy.hired_ppm())
    }

    /// How much is hired now, in ppm of the supply.
    pub fn hired_now_ppm(&self) -> u64 {
        share_ppm(self.hired_millis, self.supply_millis)
    }

    /// By how much more than on average is hired in the hours of the day that begin at `now_ms`, in ppm of the supply, as
    /// the kept days had it. Zero before a whole day is known.
    pub fn peak_ppm(&self, now_ms: u64, duration_ms: u64) -> i64 {
        self.day().map_or(0, |day| day.peak_ppm(now_ms, duration_ms))
    }

    /// The hours of a day as the kept days had them; `None` before a whole day is known.
    pub fn day(&self) -> Option<Day> {
        if self.hours.len() <= 24 {
            return None;
        }
        let mut day = Day::default();
        for hour in self.hours.iter().take(self.hours.len() - 1) {
            let slot = &mut day.0[usize::try_from(hour.hour % 24).unwrap_or(0)];
            slot.0 += u128::from(hour.hired);
            slot.1 += u128::from(hour.supply);
        }
        Some(day)
    }
}

/// What was hired and what there was in each hour of the day.
#[derive(Debug, Clone, Copy, Default)]
pub struct Day([(u128, u128); 24]);

impl Day {
    /// By how much more than on average is hired in the hours that begin at `now_ms`, in ppm of the supply.
    pub fn peak_ppm(&self, now_ms: u64, duration_ms: u64) -> i64 {
        let average = |slots: &mut dyn Iterator<Item = &(u128, u128)>| {
            let (hired, supply) = slots.fold((0, 0), |sum, slot| (sum.0 + slot.0, sum.1 + slot.1));
            i64::try_from(hired * u128::from(PPM) / supply.max(1)).unwrap_or(0)
        };
        let hours = usize::try_from(duration_ms.div_ceil(HOUR_MS).clamp(1, 24)).unwrap_or(24);
        let first = usize::try_from(now_ms / HOUR_MS % 24).unwrap_or(0);
        let mut asked = self.0.iter().cycle().skip(first).take(hours);
        average(&mut asked) - average(&mut self.0.iter())
    }
}

/// How a device kept its leases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Served {
    /// Leases that ended as they should.
    pub kept: u32,
    /// Leases whose box was lost.
    pub lost: u32,
    /// When it was last freed of all leases, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub free_since_ms: u64,
    /// What renters who rated it had paid in fees for the time on it, halved from time to time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rated_fees_micro_usd: u64,
    /// The same times the stars beyond the first that they gave.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rated_stars_micro_usd: u64,
    /// When the two were last halved, or began.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rated_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks it")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The market's own record, kept since the network was founded with a table of prices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarketRecord {
    /// By class: a GPU model, or `cpu`.
    pub classes: BTreeMap<String, ClassRecord>,
    /// By device.
    pub served: BTreeMap<DeviceId, Served>,
    /// The last feed of each signer.
    pub feeds: BTreeMap<Address, Feed>,
    /// When loads were last set.
    pub loads_set_ms: u64,
}

impl MarketRecord {
    /// A class, if anything is known of it.
    pub fn class(&self, class: &HardwareClass) -> Option<&ClassRecord> {
        match class {
            HardwareClass::Cpu => self.classes.get("cpu"),
            HardwareClass::Gpu(model) => self.classes.get(model),
        }
    }

    /// A device's part of its class changed.
    pub fn moved(&mut self, before: Option<Share>, after: Option<Share>, at_ms: u64) {
        if before == after {
            return;
        }
        if let Some(share) = before {
            let class = self.class_at(&share.class, at_ms);
            class.supply_millis = class.supply_millis.saturating_sub(share.supply_millis);
            class.hired_millis = class.hired_millis.saturating_sub(share.hired_millis);
        }
        if let Some(share) = after {
            let class = self.class_at(&share.class, at_ms);
            class.supply_millis = class.supply_millis.saturating_add(share.supply_millis);
            class.hired_millis = class.hired_millis.saturating_add(share.hired_millis);
        }
    }

    /// A lease began.
    pub fn traded(&mut self, class: &HardwareClass, wanted: Resources, rate: Rate, at_ms: u64) {
        let units_millis = units_millis(class, wanted).max(1);
        let per_unit = u128::from(rate.0) * 1000 / u128::from(units_millis);
        let per_unit = Rate(u64::try_from(per_unit).unwrap_or(u64::MAX));
        let record = self.class_at(class, at_ms);
        if record.trades.len() >= KEPT_TRADES {
            record.trades.pop_front();
        }
        record.trades.push_back(Trade { at_ms, per_unit, units_millis });
        let hour = record.hour(at_ms / HOUR_MS);
        hour.low = if hour.trades == 0 { per_unit } else { hour.low.min(per_unit) };
        hour.high = hour.high.max(per_unit);
        hour.trades += 1;
    }

    /// A lease ended, as it should or by a loss.
    pub fn served(&mut self, device: DeviceId, lost: bool) {
        let served = self.served.entry(device).or_default();
        let count = if lost { &mut served.lost } else { &mut served.kept };
        *count = count.saturating_add(1);
    }

    /// A device has no lease left.
    pub fn freed(&mut self, device: DeviceId, at_ms: u64) {
        self.served.entry(device).or_default().free_since_ms = at_ms;
    }

    /// A renter gave one to five stars for time on a device that cost so much in fees.
    pub fn rated(&mut self, device: DeviceId, stars: u8, fees_micro_usd: u64, at_ms: u64) {
        self.served.entry(device).or_default().rate(stars, fees_micro_usd, at_ms);
    }

    /// A feed came in; the newest of each signer is kept.
    pub fn fed(&mut self, feed: &Feed) {
        if self.feeds.len() < KEPT_FEEDS || self.feeds.contains_key(&feed.signer) {
            self.feeds.insert(feed.signer, feed.clone());
        }
    }

    /// Loads were set.
    pub fn loads_set(&mut self, loads: &BTreeMap<String, u32>, at_ms: u64) {
        for (class, load_ppm) in loads {
            if let Some(record) = self.classes.get_mut(class) {
                record.load_ppm = Some(*load_ppm);
            }
        }
        self.loads_set_ms = at_ms;
    }

    fn class_at(&mut self, class: &HardwareClass, at_ms: u64) -> &mut ClassRecord {
        let name = class.to_string();
        let new = || ClassRecord { since_ms: at_ms, ..ClassRecord::default() };
        let record = self.classes.entry(name).or_insert_with(new);
        record.advance(at_ms);
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::unnecessary_wraps, reason = "as a device's share is asked for")]
    fn share(supply: u64, hired: u64) -> Option<Share> {
        let class = HardwareClass::Gpu("NVIDIA L4".into());
        Some(Share { class, supply_millis: supply * 1000, hired_millis: hired * 1000 })
    }

    fn class(record: &MarketRecord) -> &ClassRecord {
        record.class(&HardwareClass::Gpu("NVIDIA L4".into())).unwrap()
    }

    #[test]
    fn hours_are_averages_and_the_week_is_bounded() {
        let mut record = MarketRecord::default();
        record.moved(None, share(4, 0), 0);
        record.moved(share(4, 0), share(4, 2), HOUR_MS / 2);
        assert_eq!(class(&record).hired_last_hour_ppm(HOUR_MS), Some(250_000), "half of the hour half of it");
        assert_eq!(class(&record).hired_last_hour_ppm(2 * HOUR_MS), Some(500_000), "nothing changed since");
        record.moved(share(4, 2), share(4, 4), 400 * HOUR_MS);
        assert_eq!(class(&record).hours.len(), KEPT_HOURS);
        assert_eq!(class(&record).hired_last_hour_ppm(400 * HOUR_MS), Some(500_000));
        let before = record.clone();
        record.moved(share(4, 4), share(4, 3), 300 * HOUR_MS);
        assert_eq!(class(&record).hours, class(&before).hours, "a clock that was put back adds nothing");
    }

    #[test]
    fn the_hours_of_a_day_tell_peaks_apart() {
        let mut record = MarketRecord::default();
        record.moved(None, share(10, 0), 0);
        for day in 0..4 {
            record.moved(share(10, 0), share(10, 10), (day * 24 + 12) * HOUR_MS);
            record.moved(share(10, 10), share(10, 0), (day * 24 + 18) * HOUR_MS);
        }
        let known = class(&record);
        let at = |hour: u64, hours: u64| known.peak_ppm((96 + hour) * HOUR_MS, hours * HOUR_MS);
        assert!(at(13, 1) > 500_000 && at(3, 1) < -200_000, "{} {}", at(13, 1), at(3, 1));
        assert_eq!(at(5, 24), at(5, 48), "a whole day has no peak");
        assert!(at(5, 24).abs() < 10_000);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_bounded_whatever_comes(steps in prop::collection::vec((0u64..900_000_000, 0u64..9, 0u64..9), 1..120)) {
            let mut record = MarketRecord::default();
            let mut now = share(1, 0);
            for (at_ms, supply, hired) in steps {
                let next = share(supply, hired.min(supply));
                record.moved(now.clone(), next.clone(), at_ms);
                let class = HardwareClass::Gpu("NVIDIA L4".into());
                record.traded(&class, Resources { gpus: 1, ..Resources::default() }, Rate(at_ms), at_ms);
                now = next;
            }
            let known = class(&record);
            prop_assert!(known.hours.len() <= KEPT_HOURS && known.trades.len() <= KEPT_TRADES);
            prop_assert!(known.hours.iter().all(|hour| hour.hired <= hour.supply));
            prop_assert!(known.hours.iter().zip(known.hours.iter().skip(1)).all(|(a, b)| a.hour < b.hour));
        }
    }
}
