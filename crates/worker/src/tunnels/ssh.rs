//! Keys of SSH: the ones that clients bring, and a lease's own.
//!
//! Always holds: what a client brings is a bare public key of a known kind, never an option or a second line; the host's key
//! is the same for a lease's whole life and says nothing of the key that it was made from. Not here: the server itself
//! (`ionet-runtime`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ionet_api::WalletKey;
use ionet_net::tunnel::Refused;
use sha2::{Digest as _, Sha256};

use super::refused;

/// Most keys that a client brings, and how long they may be in all.
const KEYS: usize = 64;
const KEYS_BYTES: usize = 16 << 10;
const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];
const ED25519: &[u8] = b"ssh-ed25519";

/// The client's keys as lines of an `authorized_keys` file, without comments.
///
/// # Errors
/// With the code `bad_ssh_key`.
pub(super) fn authorized(keys: &[String]) -> Result<Vec<String>, Refused> {
    let bytes: usize = keys.iter().map(String::len).sum();
    if keys.is_empty() || keys.len() > KEYS || bytes > KEYS_BYTES {
        let message = format!(
            "{} public keys of {bytes} bytes came; bring 1 to {KEYS} of {KEYS_BYTES} bytes in all",
            keys.len()
        );
        return Err(refused("bad_ssh_key", message));
    }
    keys.iter().map(|key| bare(key)).collect()
}

fn bare(key: &str) -> Result<String, Refused> {
    let mut words = key.split(' ');
    let (kind, body) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let whole = !key.contains(|c: char| c.is_control()) && KINDS.contains(&kind);
    // The body begins with the kind once more.
    let said = STANDARD.decode(body).ok().filter(|body| body.get(4..4 + kind.len()) == Some(kind.as_bytes()));
    if whole && said.is_some() {
        return Ok(format!("{kind} {body}"));
    }
    let message = format!("a public key is one line 'KIND BASE64', of a kind of {}", KINDS.join(", "));
    Err(refused("bad_ssh_key", message))
}

/// A lease's own key.
pub(crate) struct HostKey {
    /// As OpenSSH reads it from a file.
    pub(super) private: String,
    /// `ssh-ed25519 BASE64`.
    pub(super) public: String,
}

impl HostKey {
    /// The one that goes with the lease's endpoint key.
    pub(crate) fn of(endpoint_seed: &[u8; 32]) -> Self {
        let seed =
            Sha256::new().chain_update(b"ionet/ssh-host-key/1\n").chain_update(endpoint_seed).finalize();
        let seed: [u8; 32] = seed.into();
        let public = WalletKey::from_seed(&seed).address().0;
        let blob = [string(ED25519), string(&public)].concat();
        Self {
            private: pem(&seed, &public, &blob),
            public: format!("ssh-ed25519 {}", STANDARD.encode(&blob)),
        }
    }
}

/// OpenSSH's format of a private key, without a passphrase.
fn pem(seed: &[u8], public: &[u8], blob: &[u8]) -> String {
    // Two equal numbers show that a passphrase was right.
    let mut secret = [&[0; 8][..], &string(ED25519), &string(public)].concat();
    secret.extend(string(&[seed, public].concat()));
    secret.extend(string(b""));
    let padding = secret.len().next_multiple_of(8) - secret.len();
    secret.extend((1..).take(padding));
    let mut whole = b"openssh-key-v1\0".to_vec();
    for part in [&b"none"[..], b"none", b""] {
        whole.extend(string(part));
    }
    whole.extend(1_u32.to_be_bytes());
    whole.extend(string(blob));
    whole.extend(string(&secret));
    let body = STANDARD.encode(whole);
    let lines: Vec<_> = body.as_bytes().chunks(70).map(String::from_utf8_lossy).collect();
    let name = "OPENSSH PRIVATE KEY";
    format!("-----BEGIN {name}-----\n{}\n-----END {name}-----\n", lines.join("\n"))
}

/// Bytes with their length before them.
fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_carry_no_options_and_no_second_line() {
        let good = HostKey::of(&[7; 32]).public;
        assert_eq!(authorized(&[format!("{good} me@home")]).unwrap(), std::slice::from_ref(&good));
        for bad in [
            String::new(),
            format!("command=\"x\" {good}"),
            format!("{good}\ncommand=\"x\" {good}"),
            format!("{good} me\r\n{good}"),
            good.replace("ssh-ed25519 ", "ssh-rsa "),
            good.replace("ssh-ed25519 ", "cert-authority "),
            "ssh-ed25519 !!!".to_owned(),
        ] {
            assert_eq!(authorized(std::slice::from_ref(&bad)).unwrap_err().code, "bad_ssh_key", "{bad}");
        }
        assert!(authorized(&[]).is_err());
        assert!(authorized(&vec![good; KEYS + 1]).is_err());
    }

    #[test]
    fn a_host_key_is_stable_and_well_formed() {
        let key = HostKey::of(&[1; 32]);
        assert_eq!(key.public, HostKey::of(&[1; 32]).public);
        assert_ne!(key.public, HostKey::of(&[2; 32]).public);
        let body: String = key.private.lines().filter(|line| !line.starts_with('-')).collect();
        let whole = STANDARD.decode(body).unwrap();
        assert!(whole.starts_with(b"openssh-key-v1\0"));
        let public = STANDARD.decode(key.public.split_once(' ').unwrap().1).unwrap();
        assert!(whole.windows(public.len()).any(|window| window == public));
    }
}
