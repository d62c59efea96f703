//! How much cover may leave, whatever machines ask for: a rate, and a share of all packets.

use super::CoverLimits;

/// Cover that may leave before its share is looked at.
const FREE_PACKETS: u64 = 50;

/// What is left of what is allowed.
#[derive(Debug)]
pub(super) struct Budget {
    limits: CoverLimits,
    /// In millionths of a packet.
    level: u64,
    at_us: u64,
    packets: u64,
    cover: u64,
}

impl Budget {
    pub(super) fn new(limits: CoverLimits, now_us: u64) -> Self {
        Self { level: most(limits), limits, at_us: now_us, packets: 0, cover: 0 }
    }

    /// Something left that was no cover.
    pub(super) fn left(&mut self) {
        self.packets += 1;
    }

    /// Whether a packet of cover may leave; then it has.
    pub(super) fn take(&mut self, now_us: u64) -> bool {
        let elapsed_us = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        let refill = elapsed_us.saturating_mul(self.limits.cover_per_s.into());
        self.level = self.level.saturating_add(refill).min(most(self.limits));
        let percent = u64::from(self.limits.cover_percent);
        let all = self.packets + self.cover + 1;
        let is_small = percent == 0 || self.cover < FREE_PACKETS || (self.cover + 1) * 100 <= all * percent;
        let is_allowed = self.limits.cover_per_s > 0 && self.level >= 1_000_000 && is_small;
        if is_allowed {
            self.level -= 1_000_000;
            self.cover += 1;
        }
        is_allowed
    }
}

/// A quarter of a second's cover at once.
fn most(limits: CoverLimits) -> u64 {
    (u64::from(limits.cover_per_s) * 250_000).max(1_000_000)
}
