//! What the Noise library needs of us: X25519, ChaCha20-Poly1305 and BLAKE2s from the libraries that this crate
//! has anyway, and randomness that comes in from outside.

use blake2::{Blake2s256, Digest};
use curve25519_dalek::MontgomeryPoint;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use snow::{
    Builder, Error, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice, NoiseParams},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::Zeroizing;

use super::public;
use crate::{OverlayError, Result};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const TAG_BYTES: usize = 16;

pub(super) fn initiator(
    private: &[u8; 32],
    remote: &[u8; 32],
    prologue: &[u8],
    entropy: [u8; 32],
) -> Result<HandshakeState> {
    let builder = builder(entropy)?.local_private_key(private).and_then(|b| b.prologue(prologue));
    builder.and_then(|b| b.remote_public_key(remote)?.build_initiator()).map_err(error)
}

pub(super) fn responder(private: &[u8; 32], prologue: &[u8], entropy: [u8; 32]) -> Result<HandshakeState> {
    let builder = builder(entropy)?.local_private_key(private).and_then(|b| b.prologue(prologue));
    builder.and_then(Builder::build_responder).map_err(error)
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
pub(super) fn error(error: Error) -> OverlayError {
    OverlayError::Noise { reason: error.to_string() }
}

fn builder<'a>(entropy: [u8; 32]) -> Result<Builder<'a>> {
    let pattern: NoiseParams = PATTERN.parse().map_err(error)?;
    Ok(Builder::with_resolver(pattern, Box::new(Resolver(Zeroizing::new(entropy)))))
}

struct Resolver(Zeroizing<[u8; 32]>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.0.clone()))))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(X25519 { private: Zeroizing::default(), public: [0; 32] }))
    }

    fn resolve_hash(&self, _: &HashChoice) -> Option<Box<dyn Hash>> {
        Some(Box::new(Blake(Blake2s256::new())))
    }

    fn resolve_cipher(&self, _: &CipherChoice) -> Option<Box<dyn Cipher>> {
        Some(Box::new(ChaCha(chacha(&[0; 32]))))
    }
}

/// Randomness for the one ephemeral key of a handshake.
struct Once(Option<Zeroizing<[u8; 32]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let entropy = self.0.take().filter(|entropy| entropy.len() == out.len()).ok_or(Error::Rng)?;
        out.copy_from_slice(&*entropy);
        Ok(())
    }
}

struct X25519 {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        self.public = public(&self.private);
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        random.try_fill_bytes(&mut *self.private)?;
        self.public = public(&self.private);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.private
    }

    /// Refuses the points whose secret everybody knows.
    fn dh(&self, remote: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let remote = remote.first_chunk().ok_or(Error::Dh)?;
        let secret = Zeroizing::new(MontgomeryPoint(*remote).mul_clamped(*self.private).to_bytes());
        if *secret == [0; 32] {
            return Err(Error::Dh);
        }
        out[..32].copy_from_slice(&*secret);
        Ok(())
    }
}

struct Blake(Blake2s256);

impl Hash for Blake {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let done = std::mem::replace(&mut self.0, Blake2s256::new());
        out[..32].copy_from_slice(&done.finalize());
    }
}

struct ChaCha(LessSafeKey);

fn chacha(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("ChaCha20 has keys of 32 bytes"))
}

/// The nonce as Noise has it for this cipher: little-endian after four zero bytes.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher for ChaCha {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = chacha(key);
    }

    fn encrypt(&self, counter: u64, authtext: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (sealed, rest) = out.split_at_mut(plain.len());
        sealed.copy_from_slice(plain);
        let tag = self.0.seal_in_place_separate_tag(nonce(counter), Aad::from(authtext), sealed);
        let tag = tag.expect("handshake messages are far shorter than the cipher's limit");
        rest[..TAG_BYTES].copy_from_slice(tag.as_ref());
        plain.len() + TAG_BYTES
    }

    fn decrypt(&self, counter: u64, authtext: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let (sealed, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(Error::Decrypt)?;
        let plain = out.get_mut(..sealed.len()).ok_or(Error::Decrypt)?;
        plain.copy_from_slice(sealed);
        let opened = self.0.open_in_place_separate_tag(
            nonce(counter),
            Aad::from(authtext),
            Tag::from(*tag),
            plain,
            0..,
        );
        opened.map(|_| sealed.len()).map_err(|_| Error::Decrypt)
    }
}
