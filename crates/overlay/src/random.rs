//! Randomness that a seed decides: simulations repeat, and with a seed from the system nobody can guess it.

use std::fmt;

use ring::hmac;

/// A source of randomness: a keyed hash of a counter.
pub struct Random {
    key: hmac::Key,
    next: u64,
}

impl Random {
    /// The source of this seed.
    pub fn new(seed: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, seed), next: 0 }
    }

    /// 32 random bytes.
    pub fn seed(&mut self) -> [u8; 32] {
        self.next += 1;
        let mut bytes = [0; 32];
        bytes.copy_from_slice(hmac::sign(&self.key, &self.next.to_be_bytes()).as_ref());
        bytes
    }

    /// 8 random bytes.
    pub fn token(&mut self) -> [u8; 8] {
        let mut token = [0; 8];
        token.copy_from_slice(&self.seed()[..8]);
        token
    }

    /// A number below `end`, or 0 if that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        u64::from_be_bytes(self.token()).checked_rem(end).unwrap_or(0)
    }

    /// A time between three quarters and five quarters of `ms`, so that many do not act in step.
    pub fn around(&mut self, ms: u64) -> u64 {
        ms - ms / 4 + self.below(ms / 2 + 1)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}
