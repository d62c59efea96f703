//! How a device stands with its renters: leases kept and lost, and what renters said of it.
//!
//! Always holds: everything follows from the journal (`record`), within fixed bounds; nobody is ranked above a device of which
//! nothing is known yet; renters' words only take away. A rating weighs what was paid in fees for the rented time, and
//! weights are halved every 30 days, so that who rents from himself to be praised pays fees for it: with the bound below the
//! fees' own share of the price (50 basis points), the words of as much rent as his honest renters pay cost him as much as
//! they can bring him in price. Not here: the price (`price`), the order of devices (`book`).

use super::record::Served;
use crate::money::HOUR_MS;

/// The steps in which reliability is asked for and compared, in percent.
pub const STEPS_PERCENT: [u8; 7] = [100, 99, 98, 95, 90, 80, 50];
/// Leases without a loss that a device is credited with where no table of prices says another number.
pub const USUAL_PRIOR_LEASES: u32 = 20;
/// The most that renters' words take off the price, in ppm: less than all fees together.
pub const WORDS_MOST_PPM: u64 = 5_000;
/// The most that they take off the reliability that devices of one price are ordered by, in ppm.
const WORDS_MOST_RANK_PPM: u64 = 50_000;
/// Fees of this much have half of the say, so that one small order is no verdict. In micro-USD.
const PRIOR_FEES_MICRO_USD: u64 = 50_000;
/// Weights are halved after so long.
const HALVED_EVERY_MS: u64 = 30 * 24 * HOUR_MS;
const PPM: u64 = 1_000_000;

impl Served {
    /// The part of leases that was kept, in ppm, with some credited.
    pub fn kept_ppm(&self, prior_leases: u32) -> u64 {
        let good = u64::from(self.kept) + u64::from(prior_leases.max(1));
        good * PPM / (good + u64::from(self.lost))
    }

    /// How dissatisfied renters were, in ppm: 0 of those who gave five stars and of nobody, a million of one star from
    /// renters whose fees outweigh the credit by far.
    pub fn dissatisfied_ppm(&self) -> u64 {
        let weight = u128::from(self.rated_fees_micro_usd);
        let missing = weight * 4 - u128::from(self.rated_stars_micro_usd).min(weight * 4);
        let ppm = missing * u128::from(PPM) / (4 * (weight + u128::from(PRIOR_FEES_MICRO_USD)));
        u64::try_from(ppm).unwrap_or(PPM).min(PPM)
    }

    /// The mean of the stars, in hundredths; `None` before there are any.
    pub fn stars_hundredths(&self) -> Option<u64> {
        (self.rated_fees_micro_usd > 0)
            .then(|| 100 + self.rated_stars_micro_usd.saturating_mul(100) / self.rated_fees_micro_usd)
    }

    /// Reliability as it is asked for and compared: kept leases and renters' words, rounded down to a step.
    pub fn reliability_percent(&self, prior_leases: u32) -> u8 {
        let words = PPM - WORDS_MOST_RANK_PPM * self.dissatisfied_ppm() / PPM;
        let percent = self.kept_ppm(prior_leases) * words / PPM / 10_000;
        STEPS_PERCENT.into_iter().find(|step| u64::from(*step) <= percent).unwrap_or(0)
    }

    /// A renter gives one to five stars for time that cost so much in fees.
    pub(super) fn rate(&mut self, stars: u8, fees_micro_usd: u64, at_ms: u64) {
        let halvings = at_ms.saturating_sub(self.rated_ms) / HALVED_EVERY_MS;
        let halved = |value: u64| value.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0);
        let more = u64::from(stars.clamp(1, 5) - 1);
        self.rated_fees_micro_usd = halved(self.rated_fees_micro_usd).saturating_add(fees_micro_usd);
        self.rated_stars_micro_usd =
            halved(self.rated_stars_micro_usd).saturating_add(fees_micro_usd.saturating_mul(more));
        if halvings > 0 || self.rated_ms == 0 {
            self.rated_ms = at_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_new_device_stands_with_the_best_and_losses_and_words_take_away() {
        let new = Served::default();
        assert_eq!(
            (new.reliability_percent(20), new.dissatisfied_ppm(), new.stars_hundredths()),
            (100, 0, None)
        );
        let of = |kept, lost| Served { kept, lost, ..new }.reliability_percent(20);
        assert_eq!([of(0, 1), of(80, 1), of(1000, 1), of(0, 20)], [95, 99, 99, 50]);
        let mut rated = new;
        rated.rate(5, 1_000_000, 1);
        assert_eq!((rated.reliability_percent(20), rated.stars_hundredths()), (100, Some(500)));
        rated.rate(1, 1_000_000, 2);
        assert_eq!(rated.stars_hundredths(), Some(300));
        assert!(rated.reliability_percent(20) < 100);
        let before = rated;
        rated.rate(5, 0, 2 + 30 * 24 * HOUR_MS);
        assert_eq!(rated.rated_fees_micro_usd, before.rated_fees_micro_usd / 2, "older words weigh less");
    }

    proptest! {
        /// Who rents from himself for as much as his honest renters will pay him next pays more in fees than his own words
        /// can lift his price for them.
        #[test]
        fn words_cannot_be_bought_at_a_gain(honest in 1u64..1_000_000_000, own in 1u64..1_000_000_000, stars in 1u8..5) {
            let fees = |rent: u64| rent / 200;
            let mut truth = Served::default();
            truth.rate(stars, fees(honest), 1);
            let mut praised = truth;
            praised.rate(5, fees(own), 1);
            let off = |served: Served| WORDS_MOST_PPM * served.dissatisfied_ppm() / PPM;
            let gain_micro_usd = (off(truth) - off(praised)) * honest / PPM;
            prop_assert!(gain_micro_usd <= fees(own) + 1 + honest / PPM, "{gain_micro_usd} for {}", fees(own));
        }

        #[test]
        fn the_bounds_hold_whatever_is_said(ratings in prop::collection::vec((0u8..9, 0u64..u64::MAX, 0u64..u64::MAX), 0..20)) {
            let mut served = Served::default();
            for (stars, fees, at_ms) in ratings {
                served.rate(stars, fees, at_ms);
                prop_assert!(served.dissatisfied_ppm() <= PPM);
                prop_assert!(served.reliability_percent(20) >= 90);
            }
        }
    }
}
