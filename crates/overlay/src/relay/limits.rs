//! Token buckets: how much of something may pass in a second. Integers and a given time only.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
};

/// A rate and how much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Refilled in a second.
    pub per_s: u64,
    /// Room of the bucket.
    pub burst: u64,
}

/// What is left of a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    level: u64,
    at_ms: u64,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(rate: Rate, now_ms: u64) -> Self {
        Self { level: rate.burst, at_ms: now_ms }
    }

    /// Takes `n` out, or nothing and says no.
    pub(crate) fn take(&mut self, rate: Rate, now_ms: u64, n: u64) -> bool {
        let elapsed_ms = now_ms.saturating_sub(self.at_ms);
        let refill = elapsed_ms.saturating_mul(rate.per_s) / 1000;
        if refill > 0 {
            self.level = self.level.saturating_add(refill).min(rate.burst);
            self.at_ms = now_ms;
        }
        let is_enough = self.level >= n;
        if is_enough {
            self.level -= n;
        }
        is_enough
    }
}

/// A rate for each source address, in constant memory: some addresses share a bucket, and nobody can know which.
#[derive(Debug)]
pub(crate) struct PerAddress {
    buckets: Vec<Bucket>,
    hash: RandomState,
    rate: Rate,
}

impl PerAddress {
    pub(crate) fn new(rate: Rate, buckets: usize) -> Self {
        Self { buckets: vec![Bucket::new(rate, 0); buckets.max(1)], hash: RandomState::new(), rate }
    }

    pub(crate) fn take(&mut self, ip: IpAddr, now_ms: u64) -> bool {
        let len = self.buckets.len() as u64;
        let at = usize::try_from(self.hash.hash_one(network(ip)) % len).unwrap_or(0);
        self.buckets[at].take(self.rate, now_ms, 1)
    }
}

/// Who is counted as one: an IPv4 address, the first half of an IPv6 address.
fn network(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits() >> 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_s: 10, burst: 5 };
        let mut bucket = Bucket::new(rate, 0);
        let passed = |bucket: &mut Bucket, now_ms| (0..100).filter(|_| bucket.take(rate, now_ms, 1)).count();
        assert_eq!(passed(&mut bucket, 0), 5);
        assert_eq!(passed(&mut bucket, 99), 0, "a tenth of a second is one");
        assert_eq!(passed(&mut bucket, 100), 1);
        assert_eq!((101..1100).map(|ms| passed(&mut bucket, ms)).sum::<usize>(), 9, "fractions are kept");
        assert_eq!(passed(&mut bucket, 60_000), 5, "no more than the burst");
        assert!(!bucket.take(rate, 60_100, 2) && bucket.take(rate, 60_100, 1), "all or nothing");
    }

    #[test]
    fn one_address_cannot_use_up_anothers() {
        let mut gate = PerAddress::new(Rate { per_s: 1, burst: 3 }, 4096);
        let noisy = IpAddr::from([10, 0, 0, 1]);
        assert_eq!((0..1000).filter(|_| gate.take(noisy, 0)).count(), 3);
        let others = (0..100u8).filter(|n| gate.take(IpAddr::from([10, 0, 1, *n]), 0)).count();
        assert!(others > 90, "{others}");
        // A gate of its own: buckets are shared by chance, and those taken above may be this network's.
        let mut gate = PerAddress::new(Rate { per_s: 1, burst: 3 }, 4096);
        let near = |n| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, n]);
        assert_eq!((0..1000).filter(|n| gate.take(near(*n), 0)).count(), 3, "a /64 is one");
    }
}
