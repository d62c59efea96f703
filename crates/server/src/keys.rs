//! The server's own keys: files in the data directory that only their owner can read.
//!
//! Always holds: a key file appears whole or not at all, with mode 0600; a malformed one is an error, never replaced.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ionet_api::sign::hex;
use ionet_api::{Secret, WalletKey};
use ionet_domain::OrderId;
use ionet_net::EndpointKey;
use sha2::{Digest, Sha256};

use crate::error::ServerError;

/// The keys of one server.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Signs quotes, member lists and grants.
    pub signing: WalletKey,
    /// Its key on the network.
    pub endpoint: EndpointKey,
}

impl Keys {
    /// Reads both keys, or makes and writes them.
    pub fn load_or_create(dir: &Path) -> Result<Self, ServerError> {
        fs::create_dir_all(dir).map_err(ServerError::io(format!("create {}", dir.display())))?;
        let endpoint = EndpointKey::load_or_create(&dir.join("endpoint.key"))?;
        let signing = load_or_create_seed(&dir.join("signing.key"))?;
        Ok(Self { signing: WalletKey::from_seed(&signing), endpoint })
    }

    /// Keys from two seeds, for the lab.
    pub fn from_seeds(signing: [u8; 32], endpoint: [u8; 32]) -> Self {
        Self { signing: WalletKey::from_seed(&signing), endpoint: EndpointKey::from_seed(endpoint) }
    }

    /// What the cookies of exposed services are sealed with: always the same.
    pub(crate) fn apps_secret(&self) -> [u8; 32] {
        Sha256::digest([b"ionet/apps-secret/1\n".as_slice(), &self.signing.seed()].concat()).into()
    }

    /// The secret of one cluster's services: always the same for the same order.
    pub fn cluster_token(&self, order: OrderId) -> Secret {
        let secret = Sha256::digest([b"ionet/cluster-secret/1\n".as_slice(), &self.signing.seed()].concat());
        let named = [secret.as_slice(), b"cluster-token", order.to_string().as_bytes()].concat();
        Secret::new(hex(&Sha256::digest(named)))
    }
}

fn load_or_create_seed(path: &Path) -> Result<[u8; 32], ServerError> {
    match fs::read(path) {
        Ok(bytes) => {
            bytes.try_into().map_err(|_| ServerError::BadKeyFile { path: path.display().to_string() })
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => create_seed(path),
        Err(e) => Err(ServerError::io(format!("read {}", path.display()))(e)),
    }
}

fn create_seed(path: &Path) -> Result<[u8; 32], ServerError> {
    let mut seed = [0; 32];
    random(&mut seed)?;
    let temporary = path.with_extension("new");
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&seed)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(ServerError::io(format!("write {}", path.display())))?;
    Ok(seed)
}

/// Fills a buffer with randomness from the system.
pub(crate) fn random(into: &mut [u8]) -> Result<(), ServerError> {
    let failed = |e: getrandom::Error| std::io::Error::other(e.to_string());
    getrandom::fill(into).map_err(|e| ServerError::io("read randomness from the system")(failed(e)))
}
