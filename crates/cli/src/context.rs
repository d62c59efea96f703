//! What a command works with: the data directory, the server's URL, the wallet key and the session kept from the
//! last command.
//!
//! Always holds: every file with a secret has mode 0600 and appears whole or not at all; a session is used only
//! with the server, term and account that it was made for.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ionet_api::rest::NetworkInfo;
use ionet_api::{Client, Secret, WalletKey};
use ionet_domain::Address;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::error::{CliError, Result, io};
use crate::out::Out;

/// A session within this of its end is not used any more.
const SESSION_SPARE_MS: u64 = 60_000;

/// Everything a command needs to know of where it runs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) data_dir: PathBuf,
    pub(crate) out: Out,
    url: Option<String>,
}

/// What is remembered of the network used last.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    url: String,
    /// Where other machines find the server, if it is served from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_url: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptSession {
    url: String,
    term: u64,
    account: Address,
    token: Secret,
    expires_ms: u64,
}

/// A client of the server, signed in.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) network: NetworkInfo,
    /// Whose wallet; `None` when an API key acts.
    pub(crate) wallet: Option<Address>,
}

impl Session {
    /// Whose account this is.
    pub(crate) async fn account(&self) -> Result<Address> {
        match self.wallet {
            Some(address) => Ok(address),
            None => Ok(self.client.wallet().await?.account),
        }
    }
}

impl Context {
    pub(crate) fn new(global: &Global) -> Result<Self> {
        let data_dir = match &global.data_dir {
            Some(dir) => dir.clone(),
            None => default_data_dir()?,
        };
        let data_dir = std::path::absolute(&data_dir).map_err(io("find the data directory"))?;
        Ok(Self { data_dir, out: Out { json: global.json }, url: global.url.clone() })
    }

    /// Whether nothing but the default says where the data directory is.
    pub(crate) fn is_default_dir(&self) -> bool {
        default_data_dir().is_ok_and(|dir| dir == self.data_dir)
    }

    /// Whether a server was named on the command line.
    pub(crate) fn has_url(&self) -> bool {
        self.url.is_some()
    }

    /// A file or folder in the data directory.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.data_dir.join(name)
    }

    /// The server's URL: given, or the one used last.
    pub(crate) fn url(&self) -> Result<String> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let remembered: Option<Remembered> = read_json(&self.path("context.json"))?;
        remembered.map(|remembered| remembered.url).ok_or_else(|| {
            let dir = self.data_dir.display();
            CliError::unreachable("no_network", format!("{dir} remembers no network"))
        })
    }

    /// Uses this server from now on.
    pub(crate) fn remember(&self, url: &str) -> Result {
        let known: Option<Remembered> = read_json(&self.path("context.json"))?;
        let public_url = known.filter(|known| known.url == url).and_then(|known| known.public_url);
        write_json(&self.path("context.json"), &Remembered { url: url.to_owned(), public_url })
    }

    /// Uses this server, which is served from here, from now on.
    pub(crate) fn remember_served(&self, url: &str, public_url: Option<String>) -> Result {
        write_json(&self.path("context.json"), &Remembered { url: url.to_owned(), public_url })
    }

    /// Where other machines find the server at `url`, if that is known to be somewhere else.
    pub(crate) fn public_url_of(&self, url: &str) -> Result<Option<String>> {
        let known: Option<Remembered> = read_json(&self.path("context.json"))?;
        Ok(known.filter(|known| known.url == url).and_then(|known| known.public_url))
    }

    /// A client that is nobody, and what the network is.
    pub(crate) async fn visitor(&self) -> Result<(Client, NetworkInfo)> {
        let client = Client::new(&self.url()?)?;
        let network = client.network().await?;
        Ok((client, network))
    }

    /// A client signed in: with the API key in `IONET_API_KEY`, else by the wallet, with the kept session if it is
    /// still good.
    pub(crate) async fn session(&self) -> Result<Session> {
        let (client, network) = self.visitor().await?;
        if let Some(key) = std::env::var("IONET_API_KEY").ok().filter(|key| !key.is_empty()) {
            return Ok(Session { client: client.with_token(Secret::new(key)), network, wallet: None });
        }
        let wallet = self.wallet()?.ok_or_else(|| {
            CliError::refused("no_wallet", format!("{} has no wallet key", self.data_dir.display()))
        })?;
        self.signed_in(client, network, &wallet).await
    }

    async fn signed_in(&self, client: Client, network: NetworkInfo, wallet: &WalletKey) -> Result<Session> {
        let account = wallet.address();
        let kept: Option<KeptSession> = read_json(&self.path("session.json")).unwrap_or_default();
        let good = kept.filter(|kept| {
            kept.url == client.base()
                && kept.term == network.term
                && kept.account == account
                && kept.expires_ms > now_ms() + SESSION_SPARE_MS
        });
        if let Some(kept) = good {
            return Ok(Session { client: client.with_token(kept.token), network, wallet: Some(account) });
        }
        self.sign_in(client, network, wallet).await
    }

    /// Signs in by the wallet and keeps the session.
    pub(crate) async fn sign_in(
        &self,
        mut client: Client,
        network: NetworkInfo,
        wallet: &WalletKey,
    ) -> Result<Session> {
        let account = wallet.address();
        let session = client.sign_in(&network.name, wallet).await?;
        let kept = KeptSession {
            url: client.base().to_owned(),
            term: network.term,
            account,
            token: session.token,
            expires_ms: session.expires_ms,
        };
        write_json(&self.path("session.json"), &kept)?;
        Ok(Session { client, network, wallet: Some(account) })
    }

    /// The wallet key, if there is one: a Solana keypair file.
    pub(crate) fn wallet(&self) -> Result<Option<WalletKey>> {
        let path = self.path("wallet.json");
        let Some(keypair) = read_json::<Vec<u8>>(&path)? else { return Ok(None) };
        let seed = keypair.get(..32).and_then(|seed| <&[u8; 32]>::try_from(seed).ok());
        let key =
            seed.map(WalletKey::from_seed).filter(|key| keypair.get(32..) == Some(&key.address().0[..]));
        let wrong = || {
            let message = format!("{} is not a Solana keypair file", path.display());
            CliError::internal("bad_wallet", message)
                .help("restore it from your copy, or move it away and run 'ionet login' for a new key")
        };
        key.map(Some).ok_or_else(wrong)
    }

    /// The wallet key; made if there is none. The flag says whether it is new.
    pub(crate) fn wallet_or_new(&self) -> Result<(WalletKey, bool)> {
        if let Some(key) = self.wallet()? {
            return Ok((key, false));
        }
        let mut seed = [0; 32];
        fill_random(&mut seed)?;
        let key = WalletKey::from_seed(&seed);
        let keypair: Vec<u8> = seed.into_iter().chain(key.address().0).collect();
        write_json(&self.path("wallet.json"), &keypair)?;
        Ok((key, true))
    }
}

fn default_data_dir() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    let none = || CliError::usage("neither HOME nor XDG_DATA_HOME is set").help("say --data-dir DIR");
    base.map(|base| base.join("ionet")).ok_or_else(none)
}

/// Milliseconds since 1970 by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn fill_random(bytes: &mut [u8]) -> Result {
    let none = |error: getrandom::Error| CliError::internal("no_randomness", error.to_string());
    getrandom::fill(bytes).map_err(none)
}

/// Random bits for an id.
pub(crate) fn random() -> Result<u128> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

/// Reads a JSON file; `None` if there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(io(format!("read {}", path.display())))?,
    };
    let wrong = |error| {
        CliError::internal("bad_file", format!("{} is not what it should be: {error}", path.display()))
            .help("restore it from a copy, or move it away")
    };
    serde_json::from_slice(&text).map(Some).map_err(wrong)
}

/// Writes a JSON file of mode 0600, whole or not at all.
pub(crate) fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result {
    let text = serde_json::to_vec(value).map_err(|error| CliError::internal("io", error.to_string()))?;
    write_private(path, &text)
}

/// Writes a file of mode 0600, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result {
    let write = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io(format!("write {}", path.display())))
}
