//! The key of one process on the network, and the id others know it by.
//!
//! The seed is 32 bytes and never printed. The id is the Ed25519 public key, written in base58, so it is also a valid
//! Solana address. That an endpoint belongs to an account is stated and checked elsewhere (`ionet-api`).

use std::{fmt, fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::NetError;

/// The secret key of an endpoint. `Debug` shows the public id only.
#[derive(Clone)]
pub struct EndpointKey(iroh::SecretKey);

impl EndpointKey {
    /// A new random key.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn generate() -> Result<Self, NetError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| NetError::Io {
            action: "read randomness from the system".into(),
            source: std::io::Error::other(e.to_string()),
        })?;
        Ok(Self::from_seed(seed))
    }

    /// The key of a 32-byte seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(iroh::SecretKey::from_bytes(&seed))
    }

    /// Reads the key file, or makes a new key and writes it, readable by its owner only.
    ///
    /// Two processes that start at once agree on one key: the file appears whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is not 32 bytes long.
    pub fn load_or_create(path: &Path) -> Result<Self, NetError> {
        match fs::read(path) {
            Ok(bytes) => Self::parse(&bytes, path),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::create(path),
            Err(e) => Err(NetError::io(format!("read the endpoint key {}", path.display()))(e)),
        }
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, NetError> {
        let seed = bytes
            .try_into()
            .map_err(|_| NetError::Malformed { what: format!("the endpoint key {}", path.display()) })?;
        Ok(Self::from_seed(seed))
    }

    fn create(path: &Path) -> Result<Self, NetError> {
        let key = Self::generate()?;
        let write = || {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            create_private(path, &key.0.to_bytes())
        };
        match write() {
            Ok(()) => Ok(key),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Self::load_or_create(path),
            Err(e) => Err(NetError::io(format!("write the endpoint key {}", path.display()))(e)),
        }
    }

    /// The public id of this key.
    pub fn id(&self) -> EndpointId {
        EndpointId(*self.0.public().as_bytes())
    }

    /// The 32-byte seed, for storing it elsewhere. Keep it secret.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub(crate) fn secret(&self) -> iroh::SecretKey {
        self.0.clone()
    }
}

impl fmt::Debug for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointKey(secret of {})", self.id())
    }
}

/// Writes a new file with mode 0600, atomically; fails with `AlreadyExists` if somebody was faster.
pub(crate) fn create_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    linked
}

/// Who an endpoint is: its Ed25519 public key. Text form: base58.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct EndpointId(pub [u8; 32]);

impl EndpointId {
    pub(crate) fn public(self) -> Result<iroh::PublicKey, NetError> {
        iroh::PublicKey::from_bytes(&self.0)
            .map_err(|_| NetError::Malformed { what: format!("the endpoint id {self}") })
    }
}

impl From<iroh::PublicKey> for EndpointId {
    fn from(key: iroh::PublicKey) -> Self {
        Self(*key.as_bytes())
    }
}

impl From<EndpointId> for String {
    fn from(id: EndpointId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for EndpointId {
    type Error = NetError;
    fn try_from(text: String) -> Result<Self, NetError> {
        text.parse()
    }
}

impl FromStr for EndpointId {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self, NetError> {
        let mut id = [0; 32];
        five8::decode_32(text, &mut id)
            .map_err(|_| NetError::Malformed { what: format!("the endpoint id {text:?}") })?;
        Ok(Self(id))
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 44];
        let used = usize::from(five8::encode_32(&self.0, &mut text));
        f.pad(str::from_utf8(&text[..used]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
