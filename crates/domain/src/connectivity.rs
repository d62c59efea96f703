//! How well a device is connected, by measurement and not by claim: bandwidth, round trips, the tier that they earn, and
//! whether the region that it claims can be true.
//!
//! Always holds: every figure here was counted by a relay too, and the smaller one stands; one lucky or unlucky
//! measurement changes no tier, the median of the last few does. Pure. Not here: measuring (`ionet-net`), who believes
//! whom (`ionet-server`).

use serde::{Deserialize, Serialize};

use crate::device::Tier;

/// Measurements of one relay that are kept, and so many relays.
const KEPT_PER_RELAY: usize = 5;
const KEPT_RELAYS: usize = 16;
/// Tags of this form claim a region: `region.eu-west`.
pub const REGION_TAG: &str = "region.";
/// A relay of the claimed region that answers slower than this is not in the same region, whatever others do.
const FAR_US: u32 = 60_000;
/// Round trips this near to each other tell nothing apart.
const ALIKE_US: u32 = 5_000;

/// Bandwidth in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// To the device, in Mbit/s.
    pub down_mbit_s: u32,
    /// From the device, in Mbit/s.
    pub up_mbit_s: u32,
}

/// One measurement of a device's link to a relay, as that relay attests it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayMeasure {
    /// Which relay.
    pub relay: String,
    /// Where the relay is, by its operator's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Shortest round trip in microseconds.
    pub rtt_us: u32,
    /// Bandwidth, if it was measured with this relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

/// Adds newer measurements to those kept; what is too old to matter falls out.
pub fn keep(kept: &mut Vec<RelayMeasure>, newer: &[RelayMeasure]) {
    kept.extend(newer.iter().filter(|measure| measure.relay.len() <= 200).cloned());
    kept.sort_by(|a, b| (a.at_ms, &a.relay).cmp(&(b.at_ms, &b.relay)));
    // A round trip alone must not push out a bandwidth, which is measured more rarely.
    let mut relays: Vec<(String, [usize; 2])> = Vec::new();
    let mut newest_first = std::mem::take(kept).into_iter().rev().collect::<Vec<_>>();
    newest_first.retain(|measure| {
        let kind = usize::from(measure.bandwidth.is_some());
        let known = match relays.iter().position(|(relay, _)| *relay == measure.relay) {
            Some(at) => at,
            None if relays.len() < KEPT_RELAYS => {
                relays.push((measure.relay.clone(), [0; 2]));
                relays.len() - 1
            }
            None => return false,
        };
        let count = &mut relays[known].1[kind];
        *count += 1;
        *count <= if kind == 1 { KEPT_PER_RELAY } else { 1 }
    });
    newest_first.reverse();
    *kept = newest_first;
}

/// The bandwidth that counts: with each relay the median of the last few in each direction, and of the relays the best.
pub fn bandwidth(measures: &[RelayMeasure]) -> Option<Bandwidth> {
    let mut relays: Vec<&str> = measures.iter().map(|measure| measure.relay.as_str()).collect();
    relays.sort_unstable();
    relays.dedup();
    let of = |relay: &str| {
        let own = measures.iter().filter(|measure| measure.relay == relay);
        let all: Vec<_> = own.filter_map(|measure| measure.bandwidth).collect();
        let down_mbit_s = median(all.iter().map(|one| one.down_mbit_s).collect())?;
        Some(Bandwidth { down_mbit_s, up_mbit_s: median(all.iter().map(|one| one.up_mbit_s).collect())? })
    };
    relays
        .into_iter()
        .filter_map(of)
        .max_by_key(|one| (Tier::of(one.down_mbit_s, one.up_mbit_s), one.down_mbit_s))
}

/// The tier that measurements earn; none without any.
pub fn earned_tier(measures: &[RelayMeasure]) -> Option<Tier> {
    bandwidth(measures).map(|found| Tier::of(found.down_mbit_s, found.up_mbit_s))
}

/// The middle one; of an even number the lower of the two in the middle.
fn median(mut values: Vec<u32>) -> Option<u32> {
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// The region that a device's tags claim.
pub fn claimed_region<'a>(tags: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
    tags.into_iter().find_map(|tag| tag.strip_prefix(REGION_TAG))
}

/// Why a claimed region is not believed, with the numbers; `None` where round trips bear it out.
pub fn region_doubt(claimed: &str, measures: &[RelayMeasure]) -> Option<String> {
    let shortest = |own: bool| {
        let of = measures.iter().filter(|measure| match &measure.region {
            Some(region) => (region == claimed) == own,
            None => false,
        });
        of.min_by_key(|measure| (measure.rtt_us, &measure.relay))
    };
    let Some(there) = shortest(true) else {
        return Some(format!("no relay in {claimed} has measured it"));
    };
    let ms = |us: u32| format!("{}.{} ms", us / 1000, us % 1000 / 100);
    let far = format!("a relay in {claimed} answers in {}", ms(there.rtt_us));
    if let Some(other) = shortest(false)
        && there.rtt_us > other.rtt_us.saturating_mul(2).saturating_add(ALIKE_US)
    {
        let nearer = other.region.as_deref().unwrap_or_default();
        return Some(format!("{far}, one in {nearer} in {}", ms(other.rtt_us)));
    }
    (there.rtt_us > FAR_US).then(|| format!("{far}, which is too far for the same region"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(relay: &str, at_ms: u64, rtt_us: u32, bandwidth: Option<(u32, u32)>) -> RelayMeasure {
        let bandwidth = bandwidth.map(|(down_mbit_s, up_mbit_s)| Bandwidth { down_mbit_s, up_mbit_s });
        RelayMeasure { relay: relay.into(), region: Some(relay.into()), at_ms, rtt_us, bandwidth }
    }

    #[test]
    fn a_tier_is_the_median_of_the_last_few_with_the_best_relay() {
        assert_eq!(earned_tier(&[]), None);
        assert_eq!(earned_tier(&[measure("a", 1, 10, None)]), None, "a round trip alone earns nothing");
        let mut kept = Vec::new();
        for (at_ms, down) in [(1, 5_000), (2, 120), (3, 110), (4, 9_000), (5, 130), (6, 125)] {
            keep(&mut kept, &[measure("a", at_ms, 10, Some((down, down)))]);
        }
        assert_eq!(kept.len(), 5, "the first fell out");
        assert_eq!(earned_tier(&kept), Some(Tier::Low), "one lucky figure lifts nobody");
        keep(&mut kept, &[measure("b", 7, 10, Some((1700, 1300)))]);
        assert_eq!(earned_tier(&kept), Some(Tier::Ultra), "the nearer relay shows what the machine can do");
        for at_ms in 8..30 {
            keep(&mut kept, &[measure("b", at_ms, 10, None)]);
        }
        assert_eq!(
            (kept.len(), earned_tier(&kept)),
            (7, Some(Tier::Ultra)),
            "round trips push out round trips"
        );
        let many: Vec<_> = (0..100).map(|n| measure(&format!("relay{n}"), 40 + n, 10, None)).collect();
        keep(&mut kept, &many);
        assert!(kept.len() <= 2 * KEPT_RELAYS);
    }

    #[test]
    fn a_region_is_believed_only_where_its_relay_is_near() {
        let near = measure("eu", 1, 8_000, None);
        let far = measure("us", 1, 90_000, None);
        let both = [near.clone(), far.clone()];
        assert_eq!(region_doubt("eu", &both), None);
        let doubt = region_doubt("us", &both).unwrap();
        assert!(doubt.contains("90.0 ms") && doubt.contains("8.0 ms"), "{doubt}");
        assert!(region_doubt("asia", &both).unwrap().contains("no relay in asia"));
        let delayed = [measure("us", 1, 90_000, None), measure("eu", 1, 91_000, None)];
        assert!(region_doubt("us", &delayed).is_some(), "who holds back answers is far from everywhere");
        let between = [measure("us", 1, 14_000, None), measure("eu", 1, 9_000, None)];
        assert_eq!(region_doubt("us", &between), None, "too near to tell apart");
        assert_eq!(claimed_region(&["a".to_owned(), "region.eu".to_owned()]), Some("eu"));
    }
}
