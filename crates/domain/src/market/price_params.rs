//! Every number that the price depends on, in one table. A network is founded with it; governance changes it.
//!
//! Shares are parts per million (ppm). Always holds: a table that passes [`PriceParams::check`] cannot make a price of zero
//! or one that overflows. Not here: the formula (`price`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::competitors::FeedLimits;
use super::wishes::Preference;
use crate::device::Tier;
use crate::id::Address;
use crate::money::HOUR_MS;
use crate::refusal::Refusal;

/// One whole in parts per million.
pub const PPM: u64 = 1_000_000;

/// From this many units (or milliseconds) on, this share of the price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// From here on.
    pub from: u64,
    /// The share in ppm.
    pub ppm: u32,
}

/// The parameters of the market's price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriceParams {
    /// Of the reference rate while nothing is hired.
    pub load_low_ppm: u32,
    /// Of the reference rate while everything is hired.
    pub load_high_ppm: u32,
    /// The most that load and time of day together move the market rate in an hour, in ppm of the reference rate.
    pub max_change_ppm_per_hour: u32,
    /// The most that the hours asked for move it up or down; part of the change above.
    pub peak_ppm: u32,
    /// By connectivity as measured; what is not listed counts in full.
    pub tier_ppm: BTreeMap<Tier, u32>,
    /// By region, where measurements bear it out; what is not listed counts in full.
    pub region_ppm: BTreeMap<String, u32>,
    /// The least that reliability brings it down to.
    pub reliability_least_ppm: u32,
    /// Leases without a loss that a new device is credited with, so that one accident is no verdict.
    pub reliability_prior_leases: u32,
    /// How much of the gap to the median of competitors the load's goal takes over.
    pub competitors_weight_ppm: u32,
    /// The most of that gap that counts, up or down.
    pub competitors_gap_ppm: u32,
    /// By the units (GPUs, CPU threads) of the whole request.
    pub count: Vec<Step>,
    /// By the time asked for, in milliseconds; for the market's part of the price (the ask has its own factor).
    pub commitment: Vec<Step>,
    /// The most that a preference other than the cheapest may cost above the cheapest.
    pub premium_ppm: BTreeMap<Preference, u32>,
    /// By how long ahead a window is reserved, in milliseconds; for the market's part of the price.
    pub advance: Vec<Step>,
    /// Of the market's part for a spot order, which may be ended with a notice.
    pub spot_ppm: u32,
    /// For a GiB of disk in a month of 730 hours, in micro-USD.
    pub disk_micro_usd_per_gib_month: u64,
    /// Which prices elsewhere count.
    pub feed_limits: FeedLimits,
    /// Whose feeds are taken in.
    pub feed_signers: BTreeSet<Address>,
}

impl Default for PriceParams {
    fn default() -> Self {
        let tier = [
            (Tier::Basic, 900_000),
            (Tier::Low, 950_000),
            (Tier::Medium, 1_000_000),
            (Tier::High, 1_050_000),
            (Tier::Ultra, 1_100_000),
        ];
        let premium = [
            (Preference::Fastest, 200_000),
            (Preference::Together, 100_000),
            (Preference::Apart, 100_000),
            (Preference::Near, 100_000),
        ];
        Self {
            load_low_ppm: 850_000,
            load_high_ppm: 1_350_000,
            max_change_ppm_per_hour: 100_000,
            peak_ppm: 20_000,
            tier_ppm: tier.into(),
            region_ppm: BTreeMap::new(),
            reliability_least_ppm: 800_000,
            reliability_prior_leases: 20,
            competitors_weight_ppm: 100_000,
            competitors_gap_ppm: 500_000,
            count: vec![Step { from: 8, ppm: 980_000 }, Step { from: 64, ppm: 960_000 }],
            commitment: vec![
                Step { from: 24 * HOUR_MS, ppm: 900_000 },
                Step { from: 7 * 24 * HOUR_MS, ppm: 800_000 },
            ],
            premium_ppm: premium.into(),
            advance: vec![
                Step { from: 24 * HOUR_MS, ppm: 970_000 },
                Step { from: 7 * 24 * HOUR_MS, ppm: 940_000 },
            ],
            spot_ppm: 600_000,
            disk_micro_usd_per_gib_month: 0,
            feed_limits: FeedLimits::default(),
            feed_signers: BTreeSet::new(),
        }
    }
}

/// The share of the last step that `value` reaches; the whole below the first.
pub fn step_ppm(steps: &[Step], value: u64) -> u32 {
    let reached = steps.iter().rev().find(|step| step.from <= value);
    reached.map_or(1_000_000, |step| step.ppm)
}

impl PriceParams {
    /// Whether the table makes sense; says which number and what it may be.
    pub fn check(&self) -> Result<(), Refusal> {
        let within = |field: &str, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Refusal::out_of_range(field, value, format!("{least} to {most} ppm")))
        };
        within("load_low_ppm", self.load_low_ppm, 100_000, 1_000_000)?;
        within("load_high_ppm", self.load_high_ppm, 1_000_000, 10_000_000)?;
        within("peak_ppm", self.peak_ppm, 0, 500_000)?;
        let least_change = self.peak_ppm.saturating_mul(2).saturating_add(1);
        within("max_change_ppm_per_hour", self.max_change_ppm_per_hour, least_change, 2_000_000)?;
        within("reliability_least_ppm", self.reliability_least_ppm, 100_000, 1_000_000)?;
        within("reliability_prior_leases", self.reliability_prior_leases, 1, 10_000)?;
        within("competitors_weight_ppm", self.competitors_weight_ppm, 0, 1_000_000)?;
        within("competitors_gap_ppm", self.competitors_gap_ppm, 0, 900_000)?;
        within("spot_ppm", self.spot_ppm, 100_000, 1_000_000)?;
        for share in self.tier_ppm.values().chain(self.region_ppm.values()) {
            within("a tier or region", *share, 100_000, 10_000_000)?;
        }
        for share in self.premium_ppm.values() {
            within("a premium", *share, 0, 1_000_000)?;
        }
        for steps in [&self.count, &self.commitment, &self.advance] {
            if steps.len() > 16 || !steps.is_sorted_by(|a, b| a.from < b.from) {
                return Err(Refusal::out_of_range("steps", steps.len(), "at most 16, each above the last"));
            }
            steps.iter().try_for_each(|step| within("a step", step.ppm, 100_000, 1_000_000))?;
        }
        let most_disk = 1_000_000_000;
        if self.disk_micro_usd_per_gib_month > most_disk {
            let limit = format!("at most {most_disk}");
            let value = self.disk_micro_usd_per_gib_month;
            return Err(Refusal::out_of_range("disk_micro_usd_per_gib_month", value, limit));
        }
        Ok(())
    }

    /// The most that the load alone moves in an hour: what is left after the hours asked for.
    pub fn load_step_ppm(&self) -> u32 {
        self.max_change_ppm_per_hour.saturating_sub(self.peak_ppm.saturating_mul(2))
    }

    /// Where the load drives the market rate to, in ppm of the reference rate, when `hired_ppm` of the supply is hired:
    /// `low + (high - low) x (2u - u^2)`, which is concave; rounded down.
    pub fn load_goal_ppm(&self, hired_ppm: u64) -> u64 {
        let u = hired_ppm.min(PPM);
        let bent = 2 * u - u * u / PPM;
        let (low, high) = (u64::from(self.load_low_ppm), u64::from(self.load_high_ppm));
        low + high.saturating_sub(low) * bent / PPM
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wrong_tables_are_refused() {
        assert_eq!(PriceParams::default().check(), Ok(()));
        let usual = PriceParams::default;
        for wrong in [
            PriceParams { load_low_ppm: 0, ..usual() },
            PriceParams { load_high_ppm: 999_999, ..usual() },
            PriceParams { peak_ppm: 60_000, ..usual() },
            PriceParams { reliability_prior_leases: 0, ..usual() },
            PriceParams { count: vec![Step { from: 8, ppm: 1 }], ..usual() },
            PriceParams { count: vec![Step { from: 8, ppm: 900_000 }; 2], ..usual() },
            PriceParams { region_ppm: BTreeMap::from([("us".into(), 0)]), ..usual() },
            PriceParams { disk_micro_usd_per_gib_month: u64::MAX, ..usual() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn the_load_is_monotone_and_concave(a in 0u64..=PPM, b in 0u64..=PPM) {
            let table = PriceParams::default();
            let (low, high) = (a.min(b), a.max(b));
            let goal = |u| table.load_goal_ppm(u);
            prop_assert!(goal(low) <= goal(high));
            // Two roundings down may cost one each.
            prop_assert!(goal(low.midpoint(high)) + 2 >= goal(low).midpoint(goal(high)));
        }
    }
}
