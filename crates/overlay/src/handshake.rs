//! The handshake between two members: Noise IK between their own keys, and the session that comes of it.
//!
//! What always holds: who does not know the cluster's name and the receiver's key gets no answer and costs no
//! Diffie-Hellman; who does not hold a key makes no session with it; session indexes, ciphers and the caller's payload are
//! authenticated. Pure: randomness and time come in. Not here: who is a member, how often to answer, and what to send
//! again.

mod noise;

use std::sync::Arc;

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{KeyInit, Mac, consts::U16},
};
use curve25519_dalek::{EdwardsPoint, MontgomeryPoint, edwards::CompressedEdwardsY};
use snow::HandshakeState;
use zeroize::Zeroizing;

use crate::{
    OverlayError, PeerKey, Result,
    crypt::{Cipher, ReceiveKey, SendKey},
    session::{Role, Session},
};

/// The first bytes of an initiation.
pub const INITIATION: [u8; 4] = [0, 0, 0, 1];
/// The first bytes of a response.
pub const RESPONSE: [u8; 4] = [0, 0, 0, 2];
/// The caller's payload is at most this long, so that every handshake message fits any path.
pub const MOST_PAYLOAD_BYTES: usize = 1000;

const PROLOGUE: &str = "ionet overlay 1";
const STAMP_BYTES: usize = 16;
/// Index and ciphers before the caller's payload.
const TERMS_BYTES: usize = 5;
/// Ephemeral key, sealed static key, tag of the payload: the most that Noise adds.
const NOISE_BYTES: usize = 32 + 48 + 16;
const MOST_NOISE_BYTES: usize = NOISE_BYTES + TERMS_BYTES + MOST_PAYLOAD_BYTES;

/// The X25519 public key that a member proves; [`noise_key`] makes it of the listed one.
pub type NoiseKey = [u8; 32];

/// The X25519 form of a member's key.
///
/// # Errors
/// If it is no Ed25519 public key, or one that everybody can compute secrets for.
pub fn noise_key(key: &PeerKey) -> Result<NoiseKey> {
    let point = CompressedEdwardsY(key.0).decompress().filter(|point| !point.is_small_order());
    point.map(|point| point.to_montgomery().to_bytes()).ok_or(OverlayError::BadKey { key: *key })
}

/// Our own key in one cluster.
pub struct Identity {
    cluster: String,
    key: PeerKey,
    private: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({:?} in {})", self.key, self.cluster)
    }
}

/// An initiation of ours that waits for its response.
#[derive(Debug)]
pub struct Initiation {
    state: HandshakeState,
    own_index: u32,
    ciphers: u8,
}

/// Somebody else's initiation, read and verified.
#[derive(Debug)]
pub struct Asked {
    /// The key that the initiator holds.
    pub from: NoiseKey,
    /// What its caller had to say.
    pub payload: Vec<u8>,
    state: HandshakeState,
    remote_index: u32,
    ciphers: u8,
}

impl Identity {
    /// The identity of an Ed25519 seed in a cluster.
    pub fn new(cluster: &str, seed: &[u8; 32]) -> Self {
        let hash = ring::digest::digest(&ring::digest::SHA512, seed);
        let mut private = Zeroizing::new([0; 32]);
        private.copy_from_slice(&hash.as_ref()[..32]);
        let key = PeerKey(EdwardsPoint::mul_base_clamped(*private).compress().to_bytes());
        Self { cluster: cluster.into(), key, private }
    }

    /// Our public key.
    pub fn key(&self) -> PeerKey {
        self.key
    }

    /// Begins a handshake with a member: what waits for the response, and the message to send.
    ///
    /// # Errors
    /// If its key is no key, or the payload too long.
    pub fn initiate(
        &self,
        to: &PeerKey,
        own_index: u32,
        ciphers: u8,
        payload: &[u8],
        entropy: [u8; 32],
    ) -> Result<(Initiation, Vec<u8>)> {
        let mut state = noise::initiator(&self.private, &noise_key(to)?, &self.prologue(), entropy)?;
        let sealed = write(&mut state, own_index, ciphers, payload)?;
        let message = self.stamp(to, &INITIATION, &sealed);
        Ok((Initiation { state, own_index, ciphers }, message))
    }

    /// Whether a message of a handshake comes from somebody who knows cluster and key. Cheap.
    pub fn is_for_us(&self, message: &[u8]) -> bool {
        let head_bytes = match message.first_chunk::<4>() {
            Some(&INITIATION) => 4,
            Some(&RESPONSE) => 8,
            _ => return false,
        };
        let Some((head, rest)) = message.split_at_checked(head_bytes) else { return false };
        let Some((stamp, sealed)) = rest.split_at_checked(STAMP_BYTES) else { return false };
        sealed.len() <= MOST_NOISE_BYTES && self.mac(&self.key, head, sealed).verify_slice(stamp).is_ok()
    }

    /// Reads an initiation. Ask [`Self::is_for_us`] first, and limit how often this is called.
    ///
    /// # Errors
    /// If it is not for us or does not verify.
    pub fn read(&self, message: &[u8], entropy: [u8; 32]) -> Result<Asked> {
        if !message.starts_with(&INITIATION) || !self.is_for_us(message) {
            return Err(OverlayError::Handshake);
        }
        let mut state = noise::responder(&self.private, &self.prologue(), entropy)?;
        let (remote_index, ciphers, payload) = read(&mut state, &message[4 + STAMP_BYTES..])?;
        let from = state.get_remote_static().and_then(|key| key.try_into().ok());
        let from = from.ok_or(OverlayError::Handshake)?;
        Ok(Asked { from, payload, state, remote_index, ciphers })
    }

    /// Answers a member, whose [`noise_key`] is [`Asked::from`]: the session, which waits for its first packet, and the
    /// message to send.
    ///
    /// # Errors
    /// If it is another member, no cipher suits both, or the payload is too long.
    pub fn answer(
        &self,
        mut asked: Asked,
        to: &PeerKey,
        own_index: u32,
        ciphers: u8,
        payload: &[u8],
        now_ms: u64,
    ) -> Result<(Session, Vec<u8>)> {
        let cipher = Cipher::choose(ciphers, asked.ciphers).ok_or(OverlayError::Handshake)?;
        if noise_key(to)? != asked.from {
            return Err(OverlayError::Handshake);
        }
        let sealed = write(&mut asked.state, own_index, cipher.bit(), payload)?;
        let mut head = RESPONSE.to_vec();
        head.extend(asked.remote_index.to_be_bytes());
        let (theirs, ours) = split(&mut asked.state);
        let session = Session {
            role: Role::Responder,
            send: Arc::new(SendKey::new(cipher, &ours, asked.remote_index)),
            receive: Arc::new(ReceiveKey::new(cipher, &theirs, own_index)),
            begun_ms: now_ms,
        };
        Ok((session, self.stamp(to, &head, &sealed)))
    }

    /// Reads the response to an initiation of ours: the session, and what the other side's caller had to say. A
    /// response that does not verify leaves the initiation as it was.
    ///
    /// # Errors
    /// If it is not for us, not for this initiation, or does not verify.
    pub fn finish(
        &self,
        initiation: &mut Initiation,
        message: &[u8],
        now_ms: u64,
    ) -> Result<(Session, Vec<u8>)> {
        if response_index(message) != Some(initiation.own_index) || !self.is_for_us(message) {
            return Err(OverlayError::Handshake);
        }
        let (remote_index, bit, payload) = read(&mut initiation.state, &message[8 + STAMP_BYTES..])?;
        let cipher = Cipher::of_bit(bit & initiation.ciphers).ok_or(OverlayError::Handshake)?;
        let (ours, theirs) = split(&mut initiation.state);
        let session = Session {
            role: Role::Initiator,
            send: Arc::new(SendKey::new(cipher, &ours, remote_index)),
            receive: Arc::new(ReceiveKey::new(cipher, &theirs, initiation.own_index)),
            begun_ms: now_ms,
        };
        Ok((session, payload))
    }

    /// What only we and that member can compute, in this cluster and for this use.
    ///
    /// # Errors
    /// If its key is no key.
    pub fn pair_name(&self, peer: &PeerKey, used_for: &str) -> Result<[u8; 16]> {
        let shared = MontgomeryPoint(noise_key(peer)?).mul_clamped(*self.private).to_bytes();
        let mac =
            <Blake2sMac<U16> as KeyInit>::new_from_slice(&shared).expect("BLAKE2s takes keys of 32 bytes");
        let mac = mac.chain_update(used_for).chain_update(self.prologue());
        Ok(mac.finalize().into_bytes().into())
    }

    fn prologue(&self) -> Vec<u8> {
        [PROLOGUE.as_bytes(), self.cluster.as_bytes()].concat()
    }

    fn stamp(&self, to: &PeerKey, head: &[u8], sealed: &[u8]) -> Vec<u8> {
        let stamp = self.mac(to, head, sealed).finalize().into_bytes();
        [head, stamp.as_slice(), sealed].concat()
    }

    fn mac(&self, receiver: &PeerKey, head: &[u8], sealed: &[u8]) -> Blake2sMac<U16> {
        let key = Blake2s256::new().chain_update(self.prologue()).chain_update(receiver.0).finalize();
        let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).expect("BLAKE2s takes keys of 32 bytes");
        mac.chain_update(head).chain_update(sealed)
    }
}

/// Our index of the initiation that a message answers; `None` if it is no response.
pub fn response_index(message: &[u8]) -> Option<u32> {
    let index = message.strip_prefix(&RESPONSE)?.first_chunk()?;
    Some(u32::from_be_bytes(*index))
}

fn write(state: &mut HandshakeState, own_index: u32, ciphers: u8, payload: &[u8]) -> Result<Vec<u8>> {
    if payload.len() > MOST_PAYLOAD_BYTES {
        let reason = format!("its payload has {} bytes, {MOST_PAYLOAD_BYTES} is the most", payload.len());
        return Err(OverlayError::Noise { reason });
    }
    let plain = [&own_index.to_be_bytes()[..], &[ciphers], payload].concat();
    let mut sealed = vec![0; NOISE_BYTES + plain.len()];
    let length = state.write_message(&plain, &mut sealed).map_err(noise::error)?;
    sealed.truncate(length);
    Ok(sealed)
}

/// The other side's index, its ciphers, and its caller's payload.
fn read(state: &mut HandshakeState, sealed: &[u8]) -> Result<(u32, u8, Vec<u8>)> {
    let mut plain = vec![0; sealed.len()];
    let length = state.read_message(sealed, &mut plain).map_err(|_| OverlayError::Handshake)?;
    let terms = plain[..length].split_first_chunk::<4>();
    let (index, rest) = terms.ok_or(OverlayError::Handshake)?;
    let (ciphers, payload) = rest.split_first().ok_or(OverlayError::Handshake)?;
    Ok((u32::from_be_bytes(*index), *ciphers, payload.to_vec()))
}

/// The initiator's key and the responder's.
fn split(state: &mut HandshakeState) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let (initiator, responder) = state.dangerously_get_raw_split();
    (Zeroizing::new(initiator), Zeroizing::new(responder))
}

/// The X25519 public key of a private one.
fn public(private: &[u8; 32]) -> [u8; 32] {
    MontgomeryPoint::mul_base_clamped(*private).to_bytes()
}

#[cfg(test)]
mod tests;
