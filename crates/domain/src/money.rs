//! Money as integers in minor units, and the one place where a rate becomes an amount.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Milliseconds in an hour.
pub const HOUR_MS: u64 = 3_600_000;

/// What can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Asset {
    /// The network's coin, 8 decimals.
    Io,
    /// The stable unit that everything is priced in, 1:1 to the US dollar, 6 decimals.
    Iosd,
    /// The reserve behind IOSD, 6 decimals.
    Usdc,
}

impl Asset {
    /// Digits after the point.
    pub fn decimals(self) -> u32 {
        match self {
            Self::Io => 8,
            Self::Iosd | Self::Usdc => 6,
        }
    }

    /// The ticker.
    pub fn name(self) -> &'static str {
        match self {
            Self::Io => "IO",
            Self::Iosd => "IOSD",
            Self::Usdc => "USDC",
        }
    }

    /// `amount` in minor units as text, exact, without trailing noise: `1.25 IOSD`.
    pub fn show(self, amount: u64) -> String {
        format!("{} {}", decimal(amount, self.decimals()), self.name())
    }

    /// Reads a decimal text such as `12.5` into minor units; more digits than the asset has are refused.
    pub fn parse(self, text: &str) -> Result<u64, Refusal> {
        let wrong =
            || Refusal::NotAnAmount { text: text.chars().take(40).collect(), decimals: self.decimals() };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty()
            || !digits(whole)
            || !digits(fraction)
            || fraction.len() > self.decimals() as usize
        {
            return Err(wrong());
        }
        let padded = format!("{whole}{fraction:0<width$}", width = self.decimals() as usize);
        padded.parse().map_err(|_| wrong())
    }
}

impl fmt::Display for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Asset {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        [Self::Io, Self::Iosd, Self::Usdc]
            .into_iter()
            .find(|asset| asset.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| Refusal::NotAnAsset { text: text.chars().take(40).collect() })
    }
}

/// An integer with `decimals` digits after the point as text; at least two are shown.
pub fn decimal(amount: u64, decimals: u32) -> String {
    let unit = 10u64.pow(decimals);
    let mut text = format!("{}.{:0width$}", amount / unit, amount % unit, width = decimals as usize);
    let shortest = text.find('.').map_or(text.len(), |point| point + 3);
    while text.len() > shortest && text.ends_with('0') {
        text.pop();
    }
    text
}

/// A price in micro-USD (so minor units of IOSD) an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(pub u64);

impl Rate {
    /// What `elapsed_ms` in all costs: `floor(rate x elapsed / 1 h)`. Always called with the total, never with a
    /// part, so rounding (down, for the payer) never adds up.
    pub fn total_for(self, elapsed_ms: u64) -> u64 {
        let total = u128::from(self.0) * u128::from(elapsed_ms) / u128::from(HOUR_MS);
        u64::try_from(total).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}/h", decimal(self.0, 6))
    }
}

/// A share in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BasisPoints(pub u32);

impl BasisPoints {
    /// `floor(amount x share)`; like [`Rate::total_for`] only ever asked for totals.
    pub fn of(self, amount: u64) -> u64 {
        let share = u128::from(amount) * u128::from(self.0) / 10_000;
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_read_and_show_exactly() {
        for (text, minor) in
            [("0", 0), ("1", 1_000_000), ("0.000001", 1), ("12.5", 12_500_000), ("3.10", 3_100_000)]
        {
            assert_eq!(Asset::Iosd.parse(text).unwrap(), minor, "{text}");
        }
        for text in ["", ".", ".5", "-1", "1e3", "0.0000001", "99999999999999999999", "1,5", " 1"] {
            assert!(Asset::Iosd.parse(text).is_err(), "{text}");
        }
        assert_eq!(Asset::Iosd.show(12_500_000), "12.50 IOSD");
        assert_eq!(Asset::Iosd.show(1), "0.000001 IOSD");
        assert_eq!(Asset::Io.show(100_000_000), "1.00 IO");
    }

    proptest! {
        #[test]
        fn shown_amounts_read_back(amount in 0u64..1_000_000_000_000_000) {
            let text = Asset::Usdc.show(amount);
            prop_assert_eq!(Asset::Usdc.parse(text.split(' ').next().unwrap()).unwrap(), amount);
        }

        #[test]
        fn cumulative_charges_never_exceed_the_whole(rate in 0u64..100_000_000, cuts in prop::collection::vec(0u64..7_200_000, 1..20)) {
            let (mut elapsed, mut charged) = (0, 0);
            for cut in cuts {
                elapsed += cut;
                charged += Rate(rate).total_for(elapsed) - charged;
                prop_assert_eq!(charged, Rate(rate).total_for(elapsed));
            }
        }
    }
}
