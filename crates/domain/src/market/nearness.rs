//! How far two devices are from each other, estimated from what relays measured of each: nobody measured the pair.
//!
//! Round trips `a` and `b` of two devices to the same relay bound the round trip between them: at least `|a - b|` and, by way
//! of the relay, at most `a + b` (the triangle inequality; as an estimate of distance the "triangulated heuristic", Hotz 1994,
//! compared in Ng and Zhang, "Predicting Internet Network Distance with Coordinates-Based Approaches", INFOCOM 2002). With one
//! relay the lower bound says little, as the two may stand on opposite sides of it; with several it is nearly the distance. So
//! the estimate lies between the two, the nearer to the lower one the more relays (`k`) measured both:
//!
//! ```text
//! L = max |a - b|,  U = min (a + b),  estimate = L + (U - L) / (2 k)
//! ```
//!
//! Always holds: the estimate is symmetric and within its bounds; who makes himself look near to one relay looks far from
//! others. Not here: measuring (`connectivity`), choosing (`choice`).

use crate::connectivity::{RelayMeasure, bandwidth};
use crate::device::Device;
use crate::market::wishes::region_within;

/// What a pair is taken for of which no relay measured both, and the most that counts.
pub const FAR_US: u32 = 200_000;
/// What is sent in a step of a training run, for weighing bandwidth against round trips: 1 MB, in Mbit.
const STEP_MBIT: u64 = 8;

/// A device's round trips by relay, the shortest of each, and its bandwidth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach<'a> {
    /// By relay, sorted by its name.
    rtts_us: Vec<(&'a str, u32)>,
    /// The lesser of both directions that counts, in Mbit/s.
    pub mbit_s: u32,
}

impl<'a> Reach<'a> {
    /// What is known of a device.
    pub fn of(device: &'a Device) -> Self {
        let tier = device.tier.map_or(0, |tier| tier.least().1);
        let counted = bandwidth(&device.links).map(|found| found.down_mbit_s.min(found.up_mbit_s));
        Self { mbit_s: counted.unwrap_or(tier), ..Self::measured(&device.links) }
    }

    fn measured(links: &'a [RelayMeasure]) -> Self {
        let mut rtts_us: Vec<_> = links.iter().map(|one| (one.relay.as_str(), one.rtt_us)).collect();
        rtts_us.sort_unstable();
        rtts_us.dedup_by_key(|(relay, _)| *relay);
        Self { rtts_us, mbit_s: 0 }
    }

    /// The relay that answers it soonest, if one was measured.
    pub(crate) fn nearest(&self) -> Option<&'a str> {
        self.rtts_us.iter().min_by_key(|(relay, rtt_us)| (*rtt_us, *relay)).map(|(relay, _)| *relay)
    }

    /// The estimated round trip between two; `None` where no relay measured both.
    pub fn between_us(&self, other: &Self) -> Option<u32> {
        let (mut mine, mut theirs) = (self.rtts_us.iter().peekable(), other.rtts_us.iter().peekable());
        let (mut least, mut most, mut relays) = (0, u32::MAX, 0);
        while let (Some((relay, a)), Some((known, b))) = (mine.peek(), theirs.peek()) {
            match relay.cmp(known) {
                std::cmp::Ordering::Less => drop(mine.next()),
                std::cmp::Ordering::Greater => drop(theirs.next()),
                std::cmp::Ordering::Equal => {
                    least = least.max(a.abs_diff(*b));
                    most = most.min(a.saturating_add(*b));
                    relays += 1;
                    mine.next();
                    theirs.next();
                }
            }
        }
        // Measurements of different hours may contradict each other.
        (relays > 0).then(|| least + most.saturating_sub(least) / (2 * relays))
    }

    /// How long a step between two takes: the round trip, and a megabyte at the slower one's bandwidth; in microseconds.
    pub fn step_us(&self, other: &Self) -> u64 {
        let round_trip = self.between_us(other).unwrap_or(FAR_US).min(FAR_US);
        let mbit_s = u64::from(self.mbit_s.min(other.mbit_s).max(1));
        u64::from(round_trip) + (STEP_MBIT * 1_000_000 / mbit_s).min(u64::from(FAR_US))
    }
}

/// The shortest round trip of a device to a relay in a region, or without one to any relay.
pub fn latency_us(links: &[RelayMeasure], near: Option<&str>) -> Option<u32> {
    let there = |one: &&RelayMeasure| match (near, &one.region) {
        (Some(near), Some(region)) => region_within(region, near),
        (Some(_), None) => false,
        (None, _) => true,
    };
    links.iter().filter(there).map(|one| one.rtt_us).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reach<'a>(rtts_us: &[(&'a str, u32)]) -> Reach<'a> {
        Reach { rtts_us: rtts_us.to_vec(), mbit_s: 1000 }
    }

    #[test]
    fn what_several_relays_saw_alike_is_near() {
        let here = reach(&[("eu", 80_000), ("us", 9_000)]);
        let beside = reach(&[("eu", 80_400), ("us", 9_100)]);
        let nearer_to_the_relay = reach(&[("eu", 85_000), ("us", 2_000)]);
        let across = reach(&[("eu", 6_000), ("us", 82_000)]);
        let of = |other: &Reach<'_>| here.between_us(other).unwrap();
        assert_eq!([of(&beside), of(&nearer_to_the_relay), of(&across)], [4_825, 8_000, 77_000]);
        assert_eq!(here.between_us(&reach(&[("asia", 1)])), None);
        assert_eq!(here.step_us(&reach(&[("asia", 1)])), 208_000);
        let slow = Reach { mbit_s: 100, ..beside.clone() };
        assert_eq!(
            here.step_us(&slow) - here.step_us(&beside),
            72_000,
            "a megabyte at a tenth of the bandwidth"
        );
    }

    #[test]
    fn callers_are_as_far_as_the_relays_of_their_region() {
        let link = |region: &str, rtt_us| RelayMeasure {
            relay: region.into(),
            region: Some(region.into()),
            at_ms: 1,
            rtt_us,
            bandwidth: None,
        };
        let links = [link("eu-west", 12_000), link("us", 90_000), link("eu", 15_000)];
        assert_eq!(latency_us(&links, Some("eu")), Some(12_000));
        assert_eq!(latency_us(&links, Some("asia")), None);
        assert_eq!(latency_us(&links, None), Some(12_000));
    }

    proptest! {
        /// Points on a line with relays on it: the estimate is within the bounds and the same both ways.
        #[test]
        fn the_estimate_is_symmetric_and_within_its_bounds(a in 0u32..100_000, b in 0u32..100_000, relays in prop::collection::vec(0u32..100_000, 1..6)) {
            let names: Vec<_> = (0..relays.len()).map(|n| n.to_string()).collect();
            let of = |at: u32| {
                let each = names.iter().zip(&relays).map(|(name, relay)| (name.as_str(), at.abs_diff(*relay)));
                Reach { rtts_us: each.collect(), mbit_s: 1 }
            };
            let (one, other) = (of(a), of(b));
            let found = one.between_us(&other).unwrap();
            prop_assert_eq!(Some(found), other.between_us(&one));
            let lower = relays.iter().map(|r| a.abs_diff(*r).abs_diff(b.abs_diff(*r))).max().unwrap();
            let upper = relays.iter().map(|r| a.abs_diff(*r) + b.abs_diff(*r)).min().unwrap();
            prop_assert!(lower <= found && found <= upper);
        }
    }
}
