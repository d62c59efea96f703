//! Signed statements: who signs what, over which exact bytes.
//!
//! Every statement is signed as `ionet/<purpose>/1\n<network>\n<canonical JSON>` with Ed25519 (RFC 8032). Purpose and
//! network come first, so no signature can be used for another purpose or on another network.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use ionet_domain::connectivity::Bandwidth;
use ionet_domain::market::{Feed, Quote};
use ionet_domain::tunnel::Services;
use ionet_domain::{Address, EndpointId, KeyId, OrderId};
use serde::{Deserialize, Serialize};

/// Why a statement is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not 64 bytes in hex.
    #[error("the signature is not 64 bytes in hex")]
    Malformed,
    /// The key is no Ed25519 public key.
    #[error("the signer's address is not an Ed25519 public key")]
    BadKey,
    /// Signed by another key, for another purpose or network, or over other words.
    #[error("the signature does not fit the statement; was it made for another network or account?")]
    Wrong,
}

impl SignatureError {
    /// The stable name, for programs.
    pub fn code(self) -> &'static str {
        "bad_signature"
    }
}

/// Something that can be signed.
pub trait Statement: Serialize {
    /// What it is for; part of the signed bytes.
    const PURPOSE: &'static str;
}

fn bytes_of<S: Statement>(network: &str, statement: &S) -> Vec<u8> {
    let mut bytes = format!("ionet/{}/1\n{network}\n", S::PURPOSE).into_bytes();
    // Statements are plain data with text keys: writing them to memory has no way to fail.
    serde_json::to_writer(&mut bytes, statement).unwrap_or_default();
    bytes
}

/// An Ed25519 key that signs statements: a wallet, a server or a device. Prints mask it.
#[derive(Clone)]
pub struct WalletKey(SigningKey);

impl WalletKey {
    /// The key of this 32-byte seed (the first half of a Solana keypair file).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, to be written to a file only its owner can read.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public key as an account address.
    pub fn address(&self) -> Address {
        Address(self.0.verifying_key().to_bytes())
    }

    /// Signs a statement for a network; hex.
    pub fn sign<S: Statement>(&self, network: &str, statement: &S) -> String {
        hex(&self.0.sign(&bytes_of(network, statement)).to_bytes())
    }
}

impl fmt::Debug for WalletKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WalletKey({})", self.address())
    }
}

/// Checks that `signer` signed `statement` for `network`.
pub fn verify<S: Statement>(
    signer: Address,
    network: &str,
    statement: &S,
    signature: &str,
) -> Result<(), SignatureError> {
    let raw =
        unhex(signature).and_then(|raw| <[u8; 64]>::try_from(raw).ok()).ok_or(SignatureError::Malformed)?;
    let key = VerifyingKey::from_bytes(&signer.0).map_err(|_| SignatureError::BadKey)?;
    key.verify(&bytes_of(network, statement), &Signature::from_bytes(&raw)).map_err(|_| SignatureError::Wrong)
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Reads hex; `None` if it is not.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::try_from(digit(*pair.first()?)? * 16 + digit(*pair.get(1)?)?).ok()).collect()
}

/// "I, the account, sign in": the server's nonce makes it good once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    /// Whose session.
    pub account: Address,
    /// From the challenge.
    pub nonce: String,
    /// From the challenge, in milliseconds since 1970.
    pub expires_ms: u64,
}

impl Statement for SignIn {
    const PURPOSE: &'static str = "sign-in";
}

/// "This endpoint key acts for me until then."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Who says so.
    pub account: Address,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Until when, in milliseconds since 1970.
    pub not_after_ms: u64,
}

impl Statement for Binding {
    const PURPOSE: &'static str = "binding";
}

impl Statement for Quote {
    const PURPOSE: &'static str = "quote";
}

impl Statement for crate::rest::DenyOrder {
    const PURPOSE: &'static str = "deny-list";
}

impl Statement for Feed {
    const PURPOSE: &'static str = "prices";
}

/// The server's leave to open tunnels into a cluster, for one client's endpoint key. Checked by the lease's own
/// supervisor, so it works while the server is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Into which cluster.
    pub cluster: OrderId,
    /// For which client.
    pub endpoint: EndpointId,
    /// On whose word.
    pub account: Address,
    /// By which of the account's keys, if by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// To what.
    pub services: Services,
    /// When it was given, in milliseconds since 1970: leave that was taken back later is void.
    pub issued_ms: u64,
    /// Until when it opens tunnels, in milliseconds since 1970.
    pub not_after_ms: u64,
    /// When what it opened ends too, in milliseconds since 1970, where that is not the cluster's own end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_ms: Option<u64>,
}

impl Statement for Grant {
    const PURPOSE: &'static str = "grant";
}

/// A worker's usage receipt, without its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Which lease.
    pub lease: ionet_domain::LeaseId,
    /// Milliseconds of run time in all.
    pub elapsed_ms: u64,
    /// Lease numbers of members heard over the overlay since the last receipt.
    pub heard: Vec<u32>,
}

impl Statement for Usage {
    const PURPOSE: &'static str = "usage";
}

/// What a relay measured of the way to an endpoint. Relays know no network: it is signed for the network without a
/// name, and the server knows its relays' keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkMeasured {
    /// The relay's measuring key.
    pub relay: EndpointId,
    /// Whose link.
    pub endpoint: EndpointId,
    /// When, by the relay's clock.
    pub at_ms: u64,
    /// Shortest round trip in microseconds, as the relay saw it.
    pub rtt_us: u32,
    /// The smaller of both sides' counts, if bandwidth was measured.
    pub bandwidth: Option<Bandwidth>,
}

impl Statement for LinkMeasured {
    const PURPOSE: &'static str = "link";
}

impl Statement for crate::worker::MemberList {
    const PURPOSE: &'static str = "members";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_one_statement_purpose_and_network() {
        let key = WalletKey::from_seed(&[7; 32]);
        let other = WalletKey::from_seed(&[8; 32]);
        let said = SignIn { account: key.address(), nonce: "n".into(), expires_ms: 5 };
        let signature = key.sign("net", &said);
        assert_eq!(verify(key.address(), "net", &said, &signature), Ok(()));
        assert_eq!(verify(key.address(), "net2", &said, &signature), Err(SignatureError::Wrong));
        assert_eq!(verify(other.address(), "net", &said, &signature), Err(SignatureError::Wrong));
        let later = SignIn { expires_ms: 6, ..said.clone() };
        assert_eq!(verify(key.address(), "net", &later, &signature), Err(SignatureError::Wrong));
        for bad in ["", "zz", "00", &signature[2..], "é"] {
            assert_eq!(verify(key.address(), "net", &said, bad), Err(SignatureError::Malformed), "{bad}");
        }
        assert!(!format!("{key:?}").contains(&hex(&[7; 32])));
    }
}
