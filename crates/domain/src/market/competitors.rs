//! What the same hardware costs elsewhere: dated price points of our own table, newer ones from signed feeds, and the
//! median of those that are neither too old nor too far off.
//!
//! Always holds: every figure carries its source and its date; a feed counts only if its signer is trusted by the
//! network's own table. The signature itself is checked where the feed comes in (`ionet-server`), over the statement
//! [`Feed`] (`ionet-api::sign`). Not here: fetching prices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::hardware;
use crate::id::Address;
use crate::money::Rate;
use crate::refusal::Refusal;

/// One published price of one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricePoint {
    /// The GPU model by our name for it (`hardware`).
    pub model: String,
    /// Who asks it.
    pub provider: String,
    /// For one GPU, on demand.
    pub rate: Rate,
}

/// What somebody saw of other providers' prices. Signed as a statement of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feed {
    /// Who says so.
    pub signer: Address,
    /// When it was seen, in milliseconds since 1970.
    pub at_ms: u64,
    /// Where, in words.
    pub source: String,
    /// What.
    pub points: Vec<PricePoint>,
}

/// Most points that one feed may have.
pub const MAX_POINTS: usize = 256;

impl Feed {
    /// Whether the feed is within limits; the signature and the signer are checked elsewhere.
    pub fn check(&self, now_ms: u64) -> Result<(), Refusal> {
        if self.points.is_empty() || self.points.len() > MAX_POINTS {
            let limit = format!("1 to {MAX_POINTS} price points");
            return Err(Refusal::out_of_range("points", self.points.len(), limit));
        }
        if self.at_ms > now_ms.saturating_add(10 * 60_000) {
            return Err(Refusal::out_of_range("at_ms", self.at_ms, "not in the future"));
        }
        let short = |text: &str| !text.is_empty() && text.len() <= 80;
        let named = self.points.iter().all(|p| short(&p.model) && short(&p.provider) && p.rate.0 > 0);
        if !named || !short(&self.source) {
            return Err(Refusal::out_of_range("feed", "a name or a price", "1 to 80 letters and above zero"));
        }
        Ok(())
    }
}

/// A price elsewhere with what it is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Competitor {
    /// Who asks it.
    pub provider: String,
    /// For one GPU an hour.
    pub rate: Rate,
    /// The date that it is of, such as `2026-03`, or that it was read.
    pub date: String,
    /// Where it was seen.
    pub source: String,
    /// Whether it counts in the median: neither too old nor too far off.
    pub counted: bool,
}

/// The price of the same elsewhere: the median of what counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elsewhere {
    /// For one GPU an hour: the median, of an even number the lower of the two in the middle.
    pub median: Rate,
    /// How many prices it is the median of.
    pub prices: u32,
    /// The cheapest and the dearest of them.
    pub range: (Rate, Rate),
    /// The newest date among them.
    pub date: String,
    /// Where they were seen.
    pub source: String,
}

/// Limits on which prices elsewhere count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FeedLimits {
    /// A feed's prices count for this long.
    pub feed_age_ms: u64,
    /// The built-in table's dated prices count for this long.
    pub table_age_ms: u64,
    /// A price more than this many times the median of all, or less than one such part of it, does not count.
    pub deviation_times: u32,
}

const DAY_MS: u64 = 24 * crate::money::HOUR_MS;

impl Default for FeedLimits {
    fn default() -> Self {
        Self { feed_age_ms: 30 * DAY_MS, table_age_ms: 400 * DAY_MS, deviation_times: 3 }
    }
}

/// On-demand prices as of March 2026, from deploybase.ai/articles/runpod-gpu-pricing (third party), read 2026-11-22.
const RUNPOD: &str = "deploybase.ai/articles/runpod-gpu-pricing";
/// 2026-03-01, the date of those.
const MARCH_2026_MS: u64 = 1_772_323_200_000;
/// Not dated where they were published: shown with the day when they were read, and never counted.
const UNDATED: u64 = 0;
const FSDL: &str = "the-full-stack/website cloud-gpus table";
const SKYPILOT: &str = "skypilot-org/skypilot-catalog v7";

/// model, provider, micro-USD an hour, date, source.
#[rustfmt::skip]
static TABLE: &[(&str, &str, u64, u64, &str)] = &[
    ("RTX 3090", "RunPod", 390_000, MARCH_2026_MS, RUNPOD),
    ("RTX 4090", "RunPod", 600_000, MARCH_2026_MS, RUNPOD),
    ("L4", "RunPod", 780_000, MARCH_2026_MS, RUNPOD),
    ("L40", "RunPod", 1_220_000, MARCH_2026_MS, RUNPOD),
    ("RTX 5090", "RunPod", 1_220_000, MARCH_2026_MS, RUNPOD),
    ("L40S", "RunPod", 1_400_000, MARCH_2026_MS, RUNPOD),
    ("RTX PRO 6000", "RunPod", 1_570_000, MARCH_2026_MS, RUNPOD),
    ("A100 80GB PCIe", "RunPod", 2_100_000, MARCH_2026_MS, RUNPOD),
    ("A100 80GB SXM", "RunPod", 2_450_000, MARCH_2026_MS, RUNPOD),
    ("H100 PCIe", "RunPod", 3_510_000, MARCH_2026_MS, RUNPOD),
    ("H100 SXM", "RunPod", 4_760_000, MARCH_2026_MS, RUNPOD),
    ("H200", "RunPod", 6_350_000, MARCH_2026_MS, RUNPOD),
    ("A100 80GB SXM", "RunPod (catalogue)", 1_890_000, UNDATED, SKYPILOT),
    ("A100 80GB PCIe", "RunPod (catalogue)", 1_640_000, UNDATED, SKYPILOT),
    ("A100 40GB", "Lambda", 1_290_000, UNDATED, SKYPILOT),
    ("RTX A6000", "Lambda", 800_000, UNDATED, SKYPILOT),
    ("V100 16GB", "Lambda", 550_000, UNDATED, SKYPILOT),
    ("A100 80GB SXM", "Lambda", 1_500_000, UNDATED, FSDL),
    ("A100 80GB SXM", "Datacrunch", 1_850_000, UNDATED, FSDL),
    ("A100 80GB SXM", "FluidStack", 2_210_000, UNDATED, FSDL),
    ("A100 80GB SXM", "Azure", 3_670_000, UNDATED, FSDL),
    ("A100 80GB SXM", "AWS", 5_120_000, UNDATED, FSDL),
    ("A100 40GB", "GCP", 3_670_000, UNDATED, FSDL),
    ("H100 SXM", "Lambda", 1_990_000, UNDATED, FSDL),
    ("H100 SXM", "OVHcloud", 2_990_000, UNDATED, FSDL),
    ("RTX A6000", "RunPod", 790_000, UNDATED, FSDL),
    ("RTX A6000", "Datacrunch", 1_250_000, UNDATED, FSDL),
    ("RTX A5000", "RunPod", 440_000, UNDATED, FSDL),
    ("RTX A5000", "Jarvislabs", 590_000, UNDATED, FSDL),
    ("RTX A4000", "Cudo Compute", 290_000, UNDATED, FSDL),
    ("RTX A4000", "RunPod", 340_000, UNDATED, FSDL),
    ("A40", "RunPod", 790_000, UNDATED, FSDL),
    ("A10", "Lambda", 600_000, UNDATED, FSDL),
    ("L4", "OVHcloud", 1_000_000, UNDATED, FSDL),
    ("T4", "GCP", 820_000, UNDATED, FSDL),
    ("T4", "AWS", 530_000, UNDATED, FSDL),
    ("V100 16GB", "OVHcloud", 770_000, UNDATED, FSDL),
    ("V100 32GB", "OVHcloud", 880_000, UNDATED, FSDL),
    ("P100", "GCP", 1_930_000, UNDATED, FSDL),
];

/// Every price elsewhere for a driver's model name, cheapest first, and which of them count now.
pub fn prices(
    model: &str,
    feeds: &BTreeMap<Address, Feed>,
    limits: FeedLimits,
    now_ms: u64,
) -> Vec<Competitor> {
    let Some(known) = hardware::find(model) else { return Vec::new() };
    let young = |at_ms: u64, age_ms: u64| at_ms.saturating_add(age_ms) >= now_ms;
    let row = |(_, provider, rate, at_ms, source): &(&str, &str, u64, u64, &str)| Competitor {
        provider: (*provider).into(),
        rate: Rate(*rate),
        date: if *at_ms == UNDATED { "undated, read 2026-11-22".into() } else { "2026-03".into() },
        source: (*source).into(),
        counted: *at_ms != UNDATED && young(*at_ms, limits.table_age_ms),
    };
    let mut all: Vec<_> = TABLE.iter().filter(|(name, ..)| *name == known.name).map(row).collect();
    for feed in feeds.values() {
        let own = feed.points.iter().filter(|point| point.model == known.name);
        all.extend(own.map(|point| Competitor {
            provider: point.provider.clone(),
            rate: point.rate,
            date: date(feed.at_ms),
            source: format!("{} (signed by {})", feed.source, feed.signer),
            counted: young(feed.at_ms, limits.feed_age_ms),
        }));
    }
    all.sort_by(|a, b| (a.rate, &a.provider, &a.date).cmp(&(b.rate, &b.provider, &b.date)));
    if let Some(middle) = median(&all) {
        let times = u64::from(limits.deviation_times.max(1));
        let near = |rate: Rate| rate.0.saturating_mul(times) >= middle.0 && rate.0 / times <= middle.0;
        for price in &mut all {
            price.counted &= near(price.rate);
        }
    }
    all
}

/// The median of the prices that count; of an even number the lower of the two in the middle.
pub fn median(sorted: &[Competitor]) -> Option<Rate> {
    let counted: Vec<_> = sorted.iter().filter(|price| price.counted).collect();
    counted.get(counted.len().checked_sub(1)? / 2).map(|price| price.rate)
}

/// What the same costs elsewhere, if anything that counts is known.
pub fn elsewhere(sorted: &[Competitor]) -> Option<Elsewhere> {
    let counted: Vec<_> = sorted.iter().filter(|price| price.counted).collect();
    let (first, last) = (counted.first()?, counted.last()?);
    let mut sources: Vec<_> = counted.iter().map(|price| price.source.as_str()).collect();
    sources.sort_unstable();
    sources.dedup();
    Some(Elsewhere {
        median: median(sorted)?,
        prices: u32::try_from(counted.len()).unwrap_or(u32::MAX),
        range: (first.rate, last.rate),
        date: counted.iter().map(|price| price.date.clone()).max().unwrap_or_default(),
        source: sources.join("; "),
    })
}

/// A day as `2026-11-22` (the proleptic Gregorian calendar; days are counted in eras of 400 years from 1 March 0000).
pub fn date(at_ms: u64) -> String {
    let days = at_ms / DAY_MS + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22.
    const NOW_MS: u64 = 1_795_305_600_000;

    fn feed(signer: u8, age_days: u64, rates: &[u64]) -> (Address, Feed) {
        let signer = Address([signer; 32]);
        let point = |rate: &u64| PricePoint {
            model: "RTX 4090".into(),
            provider: format!("p{rate}"),
            rate: Rate(*rate),
        };
        let points = rates.iter().map(point).collect();
        let at_ms = NOW_MS - age_days * DAY_MS;
        (signer, Feed { signer, at_ms, source: "a test".into(), points })
    }

    fn counted(feeds: &BTreeMap<Address, Feed>) -> Option<u64> {
        median(&prices("NVIDIA GeForce RTX 4090", feeds, FeedLimits::default(), NOW_MS)).map(|rate| rate.0)
    }

    #[test]
    fn the_median_leaves_out_what_is_old_or_far_off() {
        assert_eq!(counted(&BTreeMap::new()), Some(600_000), "the table's own");
        assert_eq!(counted(&BTreeMap::from([feed(1, 1, &[500_000, 550_000])])), Some(550_000));
        assert_eq!(counted(&BTreeMap::from([feed(1, 31, &[1, 2, 3])])), Some(600_000), "too old");
        let wild = BTreeMap::from([feed(1, 1, &[500_000, 610_000]), feed(2, 1, &[1_000_000_000, 1])]);
        assert_eq!(counted(&wild), Some(600_000), "one liar does not move it");
        assert!(prices("AMD", &wild, FeedLimits::default(), NOW_MS).is_empty());
    }

    #[test]
    fn what_is_undated_is_shown_and_not_counted() {
        let all = prices("NVIDIA RTX A6000", &BTreeMap::new(), FeedLimits::default(), NOW_MS);
        assert_eq!((all.len(), elsewhere(&all)), (3, None));
        let a100 =
            elsewhere(&prices("NVIDIA A100-SXM4-80GB", &BTreeMap::new(), FeedLimits::default(), NOW_MS));
        let a100 = a100.unwrap();
        assert_eq!((a100.median, a100.prices, a100.date.as_str()), (Rate(2_450_000), 1, "2026-03"));
    }

    #[test]
    fn days_are_named_right() {
        for (ms, day) in [(0, "1970-01-01"), (951_782_400_000, "2000-02-29"), (MARCH_2026_MS, "2026-03-01")] {
            assert_eq!(date(ms), day);
        }
        assert_eq!(date(NOW_MS), "2026-11-22");
    }

    #[test]
    fn feeds_are_bounded() {
        let (_, good) = feed(1, 0, &[5]);
        assert_eq!(good.check(NOW_MS), Ok(()));
        assert!(Feed { points: Vec::new(), ..good.clone() }.check(NOW_MS).is_err());
        assert!(Feed { at_ms: NOW_MS + DAY_MS, ..good.clone() }.check(NOW_MS).is_err());
        assert!(feed(1, 0, &[0]).1.check(NOW_MS).is_err());
        assert!(feed(1, 0, &[9; MAX_POINTS + 1]).1.check(NOW_MS).is_err());
    }
}
