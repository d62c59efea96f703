//! How to wait for packets, learnt from those that came: when the answer to what was sent comes so soon that to fall
//! asleep would take longer, and when packets follow each other so closely that it pays to gather some.
//!
//! What always holds: who waits in vain a few times does not wait so again until the same was seen several times
//! more, so a machine with nothing to do does nothing. Pure; time is an argument.

use super::send::Drained;

/// An answer that comes within this was soon, seen by somebody who slept.
const SOON_US: u64 = 400;
/// So long an answer is waited for awake.
const AWAKE_US: u64 = 150;
/// What follows within this follows closely.
const CLOSE_US: u64 = 60;
/// How long packets are gathered. The system adds some 50 us to short waits.
const GATHER_US: u64 = 60;
/// So often in a row something must have been seen to be counted on.
const SURE: u8 = 8;
/// Gathering goes on until it was not worthwhile so often that this is left of it.
const UNSURE: u8 = 4;
/// More bytes at once are a batch already.
const BATCH_BYTES: usize = 4096;
/// Fewer packets were not worth gathering.
const WORTHWHILE: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When something small was sent whose answer has not come.
    asked_us: Option<u64>,
    /// How often in a row the answer came soon.
    soon: u8,
    /// When something small was sent, and nothing has come since.
    sent_us: Option<u64>,
    /// How often in a row packets followed closely.
    close: u8,
    /// Whether packets are gathered where some have begun to come.
    gathers: bool,
    is_gathering: bool,
}

impl Pace {
    /// Packets came from others. A stream's acknowledgements are soon followed by more of it, but nobody waits for that.
    pub(super) fn came(&mut self, now_us: u64, bytes: usize) {
        self.sent_us = None;
        if let Some(asked_us) = self.asked_us.take() {
            let is_soon = now_us < asked_us + SOON_US && bytes < BATCH_BYTES;
            self.soon = if is_soon { (self.soon + 1).min(SURE) } else { 0 };
        }
    }

    /// Packets left.
    pub(super) fn sent(&mut self, now_us: u64, drained: Drained) {
        let is_small = drained.bytes < BATCH_BYTES;
        if std::mem::take(&mut self.is_gathering) {
            self.close = if drained.packets < WORTHWHILE { self.close.saturating_sub(2) } else { SURE };
        } else if self.sent_us.is_some_and(|sent_us| now_us < sent_us + CLOSE_US) && is_small {
            self.close = (self.close + 1).min(SURE);
        }
        self.sent_us = is_small.then_some(now_us);
        if is_small {
            self.asked_us.get_or_insert(now_us);
        } else {
            self.asked_us = None;
        }
    }

    /// For how long to stay awake now, as an answer is expected.
    pub(super) fn awake_us(&self, now_us: u64) -> u64 {
        let until_us = self.asked_us.filter(|_| self.soon == SURE).map_or(0, |asked_us| asked_us + AWAKE_US);
        until_us.saturating_sub(now_us)
    }

    /// It was waited for in vain.
    pub(super) fn in_vain(&mut self) {
        (self.asked_us, self.soon) = (None, 0);
    }

    /// For how long to leave packets alone that have begun to come.
    pub(super) fn gather_us(&mut self) -> u64 {
        self.gathers = self.close == SURE || (self.gathers && self.close > UNSURE);
        self.is_gathering = self.gathers;
        if self.is_gathering { GATHER_US } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(packets: usize) -> Drained {
        Drained { packets, bytes: packets * 100, is_left: false }
    }

    #[test]
    fn answers_are_awaited_awake_only_where_they_come_soon() {
        let mut pace = Pace::default();
        for (at, answer_us) in (1..=SURE).zip([SOON_US - 1, 50].into_iter().cycle()) {
            let now_us = u64::from(at) * 10_000;
            assert_eq!(pace.awake_us(now_us), 0);
            pace.sent(now_us, small(1));
            assert_eq!(pace.awake_us(now_us), 0);
            pace.came(now_us + answer_us, 100);
        }
        assert_eq!(pace.awake_us(200_000), 0, "nothing was asked");
        pace.sent(200_000, small(1));
        assert_eq!(pace.awake_us(200_000), AWAKE_US);
        assert_eq!(pace.awake_us(200_030), AWAKE_US - 30);
        pace.in_vain();
        pace.sent(300_000, small(1));
        assert_eq!(pace.awake_us(300_000), 0);
        // What is answered late, and what is large, is not waited for.
        for late_us in (400_000..=500_000).step_by(10_000) {
            pace.sent(late_us, small(1));
            pace.came(late_us + SOON_US, 100);
            assert_eq!(pace.awake_us(late_us), 0);
        }
        for soon_us in (600_000..700_000).step_by(10_000) {
            pace.sent(soon_us, small(1));
            pace.came(soon_us + 50, 100);
        }
        pace.sent(700_000, Drained { packets: 1, bytes: BATCH_BYTES, is_left: true });
        assert_eq!(pace.awake_us(700_000), 0);
        pace.sent(800_000, small(1));
        assert_eq!(pace.awake_us(800_000), AWAKE_US);
        pace.came(800_050, BATCH_BYTES);
        pace.sent(900_000, small(1));
        assert_eq!(pace.awake_us(900_000), 0);
    }

    #[test]
    fn packets_are_gathered_only_where_others_follow() {
        let mut pace = Pace::default();
        for now_us in (0..=u64::from(SURE)).map(|at| at * CLOSE_US / 2) {
            assert_eq!(pace.gather_us(), 0);
            pace.sent(now_us, small(1));
        }
        assert_eq!(pace.gather_us(), GATHER_US);
        pace.sent(10_000, small(WORTHWHILE));
        for now_us in [20_000, 30_000] {
            assert_eq!(pace.gather_us(), GATHER_US);
            pace.sent(now_us, small(WORTHWHILE - 1));
        }
        assert_eq!(pace.gather_us(), 0);
        // Question and answer are no stream, however fast.
        for now_us in (30_000..40_000).step_by(20) {
            pace.sent(now_us, small(1));
            pace.came(now_us + 10, 100);
            assert_eq!(pace.gather_us(), 0);
        }
        // What comes in batches already needs no gathering.
        for now_us in (50_000..60_000).step_by(20) {
            pace.sent(now_us, Drained { packets: 4, bytes: BATCH_BYTES, is_left: false });
            assert_eq!(pace.gather_us(), 0);
        }
    }
}
