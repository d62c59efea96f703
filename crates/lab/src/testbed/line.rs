//! One direction of a line: what it does to each packet, as a function of time and a seed.
//!
//! Always holds: packets leave in the order in which they came unless reordering was asked for; a packet is never early;
//! what waits for its turn is bounded. Time is in nanoseconds since any moment. Not here: devices and threads (`wire`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::random::Random;

const NS_PER_S: u64 = 1_000_000_000;
/// What may be under way on a line at most, whatever its delay.
const MOST_UNDER_WAY_BYTES: u64 = 64 << 20;

/// How a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quality {
    /// From end to end, without waiting.
    pub delay_us: u64,
    /// Added to or taken from the delay, evenly.
    pub jitter_us: u64,
    /// Packets lost, in a million.
    pub loss_ppm: u64,
    /// Bits a second; 0 is without a limit.
    pub rate_bits_per_s: u64,
    /// What may wait for its turn; what comes on top is dropped.
    pub queue_bytes: u64,
    /// Whether jitter may change the order.
    pub reorder: bool,
    /// What is longer gets lost, and nobody is told; 0 is without a limit.
    pub most_bytes: u64,
    /// Nothing gets through.
    pub cut: bool,
}

impl Default for Quality {
    fn default() -> Self {
        Self {
            delay_us: 0,
            jitter_us: 0,
            loss_ppm: 0,
            rate_bits_per_s: 0,
            queue_bytes: 256 << 10,
            reorder: false,
            most_bytes: 0,
            cut: false,
        }
    }
}

/// What became of a packet that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It will come out.
    Taken,
    /// Lost by chance or for its length, or the line is cut.
    Lost,
    /// Too much was waiting.
    Dropped,
}

/// Packets so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Came in and will come out, or have.
    pub taken: u64,
    /// Lost.
    pub lost: u64,
    /// Dropped from a full queue.
    pub dropped: u64,
}

/// A packet under way: when it comes out, its number, its bytes.
type UnderWay = Reverse<(u64, u64, Vec<u8>)>;

/// One direction.
#[derive(Debug)]
pub struct Line {
    quality: Quality,
    random: Random,
    /// When the last packet's last bit is on the line.
    busy_until_ns: u64,
    last_out_ns: u64,
    under_way: BinaryHeap<UnderWay>,
    under_way_bytes: u64,
    counts: Counts,
}

impl Line {
    /// An idle line.
    pub fn new(quality: Quality, seed: u64) -> Self {
        Self {
            quality,
            random: Random::new(seed),
            busy_until_ns: 0,
            last_out_ns: 0,
            under_way: BinaryHeap::new(),
            under_way_bytes: 0,
            counts: Counts::default(),
        }
    }

    /// From now on the line is so; what is under way is not touched.
    pub fn set(&mut self, quality: Quality) {
        self.quality = quality;
    }

    /// How it is.
    pub fn quality(&self) -> Quality {
        self.quality
    }

    /// What it did so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A packet comes in.
    pub fn push(&mut self, now_ns: u64, packet: Vec<u8>) -> Fate {
        let fate = self.judge(now_ns, packet.len() as u64);
        match fate {
            Fate::Taken => {
                self.counts.taken += 1;
                self.take(now_ns, packet);
            }
            Fate::Lost => self.counts.lost += 1,
            Fate::Dropped => self.counts.dropped += 1,
        }
        fate
    }

    fn judge(&mut self, now_ns: u64, bytes: u64) -> Fate {
        let too_long = self.quality.most_bytes > 0 && bytes > self.quality.most_bytes;
        if self.quality.cut || too_long || self.random.chance(self.quality.loss_ppm) {
            return Fate::Lost;
        }
        let waiting = self.waiting_bytes(now_ns) + bytes;
        let full = waiting > self.quality.queue_bytes && self.quality.rate_bits_per_s > 0;
        if full || self.under_way_bytes + bytes > MOST_UNDER_WAY_BYTES { Fate::Dropped } else { Fate::Taken }
    }

    /// What is not on the line yet.
    fn waiting_bytes(&self, now_ns: u64) -> u64 {
        let ns = u128::from(self.busy_until_ns.saturating_sub(now_ns));
        let bits = ns * u128::from(self.quality.rate_bits_per_s) / u128::from(NS_PER_S);
        u64::try_from(bits / 8).unwrap_or(u64::MAX)
    }

    fn take(&mut self, now_ns: u64, packet: Vec<u8>) {
        let bytes = packet.len() as u64;
        let sending_ns = match self.quality.rate_bits_per_s {
            0 => 0,
            rate => bytes * 8 * NS_PER_S / rate,
        };
        self.busy_until_ns = self.busy_until_ns.max(now_ns) + sending_ns;
        let jitter_us = self.quality.jitter_us.min(self.quality.delay_us);
        let delay_us = self.quality.delay_us - jitter_us + self.random.below(2 * jitter_us + 1);
        let mut out_ns = self.busy_until_ns + delay_us * 1000;
        if !self.quality.reorder {
            out_ns = out_ns.max(self.last_out_ns);
        }
        self.last_out_ns = out_ns;
        self.under_way_bytes += bytes;
        self.under_way.push(Reverse((out_ns, self.counts.taken, packet)));
    }

    /// The next packet that is out by now.
    pub fn pop(&mut self, now_ns: u64) -> Option<Vec<u8>> {
        if self.next_ns()? > now_ns {
            return None;
        }
        let Reverse((_, _, packet)) = self.under_way.pop()?;
        self.under_way_bytes -= packet.len() as u64;
        Some(packet)
    }

    /// When the next packet comes out.
    pub fn next_ns(&self) -> Option<u64> {
        self.under_way.peek().map(|Reverse((out_ns, ..))| *out_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn packet(n: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1000];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        bytes
    }

    fn number(packet: &[u8]) -> u64 {
        u64::from_le_bytes(packet[..8].try_into().unwrap())
    }

    /// Pushes `count` packets `every_ns` apart; when each of those that came out came out.
    fn run(line: &mut Line, count: u64, every_ns: u64) -> Vec<(u64, u64)> {
        for n in 0..count {
            line.push(n * every_ns, packet(n));
        }
        let mut out = Vec::new();
        while let Some(at_ns) = line.next_ns() {
            assert!(at_ns == 0 || line.pop(at_ns - 1).is_none(), "early");
            out.push((at_ns, number(&line.pop(at_ns).unwrap())));
        }
        out
    }

    #[test]
    fn a_perfect_line_gives_each_packet_at_once() {
        let out = run(&mut Line::new(Quality::default(), 1), 5, MS);
        assert_eq!(out, (0..5).map(|n| (n * MS, n)).collect::<Vec<_>>().as_slice());
    }

    #[test]
    fn delay_comes_after_the_time_that_sending_takes() {
        // 1000 bytes at 8 Mbit/s take a millisecond.
        let quality = Quality { delay_us: 20_000, rate_bits_per_s: 8_000_000, ..Quality::default() };
        let out = run(&mut Line::new(quality, 1), 4, 0);
        let times: Vec<_> = out.iter().map(|(at_ns, _)| at_ns / MS).collect();
        assert_eq!(times, [21, 22, 23, 24]);
    }

    #[test]
    fn a_rate_is_kept_and_a_full_queue_drops_what_comes_last() {
        let quality = Quality { rate_bits_per_s: 8_000_000, queue_bytes: 10_000, ..Quality::default() };
        let mut line = Line::new(quality, 1);
        // Twice as much as it can carry, for a second.
        let out = run(&mut line, 2000, MS / 2);
        assert_eq!(line.counts().dropped, 2000 - out.len() as u64);
        assert!((1000..=1011).contains(&out.len()), "{}", out.len());
        let waits = out.iter().map(|(at_ns, n)| at_ns - n * MS / 2);
        assert!(waits.max().unwrap() <= 11 * MS, "the queue is longer than it may be");
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_keeps_the_order_unless_told_otherwise() {
        for reorder in [false, true] {
            let quality = Quality { delay_us: 10_000, jitter_us: 4_000, reorder, ..Quality::default() };
            let out = run(&mut Line::new(quality, 7), 1000, MS);
            assert_eq!(out.len(), 1000);
            let delays: Vec<_> = out.iter().map(|(at_ns, n)| at_ns - n * MS).collect();
            assert!(delays.iter().all(|ns| (6 * MS..=14 * MS).contains(ns)));
            assert!(delays.iter().any(|ns| *ns < 8 * MS) && delays.iter().any(|ns| *ns > 12 * MS));
            assert_eq!(out.is_sorted_by_key(|(_, n)| *n), !reorder);
        }
    }

    #[test]
    fn loss_is_by_the_seed_and_about_what_was_asked_for() {
        let quality = Quality { loss_ppm: 100_000, ..Quality::default() };
        let of = |seed| run(&mut Line::new(quality, seed), 10_000, MS);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
        assert!((8_800..9_200).contains(&of(3).len()), "{}", of(3).len());
    }

    #[test]
    fn what_is_too_long_is_lost_and_nothing_else() {
        let mut line = Line::new(Quality { most_bytes: 1000, ..Quality::default() }, 1);
        assert_eq!(line.push(0, vec![0; 1000]), Fate::Taken);
        assert_eq!(line.push(0, vec![0; 1001]), Fate::Lost);
    }

    #[test]
    fn a_cut_line_carries_nothing_but_what_was_under_way() {
        let mut line = Line::new(Quality { delay_us: 5_000, ..Quality::default() }, 1);
        assert_eq!(line.push(0, packet(0)), Fate::Taken);
        line.set(Quality { cut: true, ..line.quality() });
        assert_eq!(line.push(MS, packet(1)), Fate::Lost);
        assert_eq!(line.pop(5 * MS).as_deref().map(number), Some(0));
        line.set(Quality { cut: false, ..line.quality() });
        assert_eq!(line.push(6 * MS, packet(2)), Fate::Taken);
        assert_eq!(line.next_ns(), Some(11 * MS));
    }
}
