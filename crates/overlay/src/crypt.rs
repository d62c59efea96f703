//! The keys of a session: sealing, opening, and that each packet opens once.
//!
//! What always holds: a counter is given out once for a key, so no nonce repeats; a packet that does not open changes
//! nothing; one that opened never opens again. Packet: receiver's index, counter, sealed bytes, tag.

mod window;

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use ring::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::Way;
pub use window::{WINDOW, Window};

/// Bytes before the sealed ones: receiver's index and counter.
pub const PREFIX_BYTES: usize = 12;
/// Bytes after the sealed ones.
pub const TAG_BYTES: usize = 16;
/// What a key opens or seals at most.
const MOST_PACKETS: u64 = 1 << 60;
/// Ways remembered of a session.
const MOST_WAYS: usize = 16;

/// What data is sealed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM, where both sides have the hardware.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

impl Cipher {
    /// Its bit in a handshake's list of ciphers.
    pub const fn bit(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    /// The cipher of a single bit.
    pub const fn of_bit(bit: u8) -> Option<Self> {
        match bit {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// The ciphers that this machine runs fast enough to offer, as bits.
    pub fn offered() -> u8 {
        let aes = if has_aes() { Self::Aes256Gcm.bit() } else { 0 };
        aes | Self::ChaCha20Poly1305.bit()
    }

    /// The best that both lists have.
    pub const fn choose(ours: u8, theirs: u8) -> Option<Self> {
        let both = ours & theirs;
        if both & Self::Aes256Gcm.bit() != 0 {
            return Some(Self::Aes256Gcm);
        }
        Self::of_bit(both & Self::ChaCha20Poly1305.bit())
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    fn key(self, bytes: &[u8; 32]) -> LessSafeKey {
        let key = UnboundKey::new(self.algorithm(), bytes).expect("both ciphers have keys of 32 bytes");
        LessSafeKey::new(key)
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// What seals packets for the other side.
#[derive(Debug)]
pub struct SendKey {
    key: LessSafeKey,
    remote_index: u32,
    next: AtomicU64,
    sealed_bytes: AtomicU64,
}

impl SendKey {
    /// A key whose packets the other side finds under `remote_index`.
    pub fn new(cipher: Cipher, bytes: &[u8; 32], remote_index: u32) -> Self {
        let (next, sealed_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { key: cipher.key(bytes), remote_index, next, sealed_bytes }
    }

    /// The receiver's index, which stands first in every packet.
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }

    /// The first of `packets` counters that nobody else gets; `None` when the key is used up.
    pub fn reserve(&self, packets: usize, bytes: usize) -> Option<u64> {
        let first = self.next.fetch_add(packets as u64, Ordering::Relaxed);
        self.sealed_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        (first < MOST_PACKETS).then_some(first)
    }

    /// Packets and bytes that counters were given out for.
    pub fn used(&self) -> [u64; 2] {
        [self.next.load(Ordering::Relaxed), self.sealed_bytes.load(Ordering::Relaxed)]
    }

    /// Seals a packet in place: `packet` has room for the prefix, then the plain bytes, then room for the tag.
    ///
    /// # Panics
    /// If the packet is shorter than prefix and tag.
    pub fn seal(&self, counter: u64, packet: &mut [u8]) {
        packet[..4].copy_from_slice(&self.remote_index.to_be_bytes());
        packet[4..PREFIX_BYTES].copy_from_slice(&counter.to_be_bytes());
        let end = packet.len() - TAG_BYTES;
        let (plain, tag) = packet[PREFIX_BYTES..].split_at_mut(end - PREFIX_BYTES);
        let made = self.key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), plain);
        tag.copy_from_slice(made.expect("packets are far shorter than the cipher's limit").as_ref());
    }

    /// Seals `plain` into a packet of its own; `None` when the key is used up.
    pub fn seal_alone(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let bytes = PREFIX_BYTES + plain.len() + TAG_BYTES;
        let counter = self.reserve(1, bytes)?;
        let mut packet = vec![0; bytes];
        packet[PREFIX_BYTES..PREFIX_BYTES + plain.len()].copy_from_slice(plain);
        self.seal(counter, &mut packet);
        Some(packet)
    }
}

/// Why a packet did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// Seen before, or too old to tell.
    Replayed,
    /// Not of this key, or changed on the way.
    Forged,
}

/// What opens the packets of the other side.
#[derive(Debug)]
pub struct ReceiveKey {
    key: LessSafeKey,
    index: u32,
    used: AtomicBool,
    state: Mutex<ReceiveState>,
}

#[derive(Debug)]
struct ReceiveState {
    window: Window,
    ways: Vec<Way>,
}

impl ReceiveKey {
    /// A key whose packets come under our `index`.
    pub fn new(cipher: Cipher, bytes: &[u8; 32], index: u32) -> Self {
        let state = ReceiveState { window: Window::default(), ways: Vec::with_capacity(MOST_WAYS) };
        Self { key: cipher.key(bytes), index, used: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Our index, under which its packets come.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether anything was opened.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes the window for a few packets in a row.
    pub fn opener(&self) -> Opener<'_> {
        Opener { key: self, state: self.state.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// A receive key in the hands of one thread.
#[derive(Debug)]
pub struct Opener<'a> {
    key: &'a ReceiveKey,
    state: std::sync::MutexGuard<'a, ReceiveState>,
}

impl Opener<'_> {
    /// Opens a whole packet in place, prefix included; the plain bytes.
    ///
    /// # Errors
    /// If it was seen before, is too old, or does not verify.
    pub fn open<'p>(&mut self, packet: &'p mut [u8]) -> Result<&'p mut [u8], NotOpened> {
        let (prefix, sealed) = packet.split_first_chunk_mut::<PREFIX_BYTES>().ok_or(NotOpened::Forged)?;
        let mut counter = [0; 8];
        counter.copy_from_slice(&prefix[4..]);
        let counter = u64::from_be_bytes(counter);
        if counter >= MOST_PACKETS {
            return Err(NotOpened::Forged);
        }
        if !self.state.window.is_fresh(counter) {
            return Err(NotOpened::Replayed);
        }
        let opened = self.key.key.open_in_place(nonce(counter), Aad::empty(), sealed);
        let plain = opened.map_err(|_| NotOpened::Forged)?;
        self.state.window.mark(counter);
        Ok(plain)
    }

    /// Notes that a packet opened that came this way; whether that is news: the first packet, or a new way.
    pub fn came(&mut self, way: Way) -> bool {
        self.key.used.store(true, Ordering::Relaxed);
        let ways = &mut self.state.ways;
        if ways.contains(&way) {
            return false;
        }
        if ways.len() == MOST_WAYS {
            ways.remove(0);
        }
        ways.push(way);
        true
    }
}

#[cfg(test)]
mod tests;
