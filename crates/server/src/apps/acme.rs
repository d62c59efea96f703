//! Certificates from an authority by RFC 8555: one for each host name, at its first use, proven over plain HTTP.
//!
//! Always holds: a certificate is asked for only while the host's cluster exposes HTTP, by one order at a time for each
//! name, a few in all, and so many an hour; after a failure it is not tried again for a while that doubles; keys and
//! certificates are files that only their owner can read; one is renewed when a third of its life is left. Not here: TLS.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder,
    OrderStatus, RetryPolicy,
};
use rustls::ServerConfig;
use tokio::sync::{Semaphore, watch};

use super::certificates::server_config;
use super::{AcmeConfig, Gateway, HOUR_MS, open};
use crate::error::ServerError;

/// Orders at a time, and begun in an hour.
const ORDERS_AT_ONCE: usize = 3;
const ORDERS_AN_HOUR: u32 = 30;
/// How long one order may take.
const ORDER_LIMIT: Duration = Duration::from_secs(50);
/// After a first failure; doubled with each, up to the most.
const AGAIN_MS: u64 = 60_000;
const AGAIN_MS_MOST: u64 = 12 * HOUR_MS;
/// Names whose failures are remembered.
const FAILED_MOST: usize = 10_000;

/// A certificate in use.
#[derive(Debug, Clone)]
struct Kept {
    config: Arc<ServerConfig>,
    renew_ms: u64,
    over_ms: u64,
}

#[derive(Debug, Default)]
struct Names {
    kept: BTreeMap<String, Kept>,
    /// Orders that go on; what waits for one is told when it ends.
    going: BTreeMap<String, watch::Receiver<bool>>,
    /// Until when it is not tried again, and how long that was.
    failed: BTreeMap<String, (u64, u64)>,
    /// The hour that orders are counted in.
    hour: (u64, u32),
}

/// The authority and what came from it.
pub(super) struct Authority {
    config: AcmeConfig,
    dir: PathBuf,
    account: tokio::sync::Mutex<Option<Account>>,
    names: Mutex<Names>,
    /// What the authority is to find, by token.
    challenges: Mutex<BTreeMap<String, String>>,
    places: Semaphore,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.config.directory)
    }
}

/// Why there is no certificate.
type Wrong = Box<dyn std::error::Error + Send + Sync>;

impl Authority {
    pub(super) fn new(config: AcmeConfig, dir: &Path) -> Result<Self, ServerError> {
        std::fs::create_dir_all(dir).map_err(ServerError::io(format!("create {}", dir.display())))?;
        Ok(Self {
            config,
            dir: dir.to_owned(),
            account: tokio::sync::Mutex::default(),
            names: Mutex::default(),
            challenges: Mutex::default(),
            places: Semaphore::new(ORDERS_AT_ONCE),
        })
    }

    pub(super) fn challenge(&self, token: &str) -> Option<String> {
        open(&self.challenges).get(token).cloned()
    }

    /// The certificate of a host name: the one there is, or a new one if the name is exposed now.
    pub(super) async fn certificate(
        self: Arc<Self>,
        gateway: &Gateway,
        name: &str,
    ) -> Result<Arc<ServerConfig>, Wrong> {
        let name = name.to_ascii_lowercase();
        if !is_exposed(gateway, &name) {
            return Err(format!("{name} is no host of an exposed service").into());
        }
        let now_ms = gateway.now_ms();
        if let Some(kept) = self.known(&name, now_ms) {
            return Ok(kept.config);
        }
        let mut ended = self.order_once(&name, now_ms)?;
        // Bounded: an order ends in time, and its sender with it.
        let _ = ended.wait_for(|ended| *ended).await;
        self.known(&name, now_ms)
            .map(|kept| kept.config)
            .ok_or_else(|| format!("no certificate for {name} yet").into())
    }

    /// What is in use or in a file, if it is still good.
    fn known(&self, name: &str, now_ms: u64) -> Option<Kept> {
        let mut names = open(&self.names);
        if !names.kept.contains_key(name) {
            let kept = std::fs::read(self.path(name)).ok().and_then(|pem| read(&pem).ok())?;
            names.kept.insert(name.to_owned(), kept);
        }
        names.kept.get(name).filter(|kept| kept.over_ms > now_ms).cloned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }

    /// Begins an order, or joins the one that goes on.
    fn order_once(self: &Arc<Self>, name: &str, now_ms: u64) -> Result<watch::Receiver<bool>, Wrong> {
        let mut names = open(&self.names);
        if let Some(going) = names.going.get(name) {
            return Ok(going.clone());
        }
        if let Some((until_ms, _)) = names.failed.get(name).filter(|(until_ms, _)| *until_ms > now_ms) {
            let in_s = (until_ms - now_ms) / 1000;
            return Err(format!("the last order for {name} failed; it is tried again in {in_s} s").into());
        }
        let hour = now_ms / HOUR_MS;
        if names.hour.0 != hour {
            names.hour = (hour, 0);
        }
        if names.hour.1 >= ORDERS_AN_HOUR {
            return Err(
                format!("{ORDERS_AN_HOUR} certificates were asked for in this hour; that is all").into()
            );
        }
        names.hour.1 += 1;
        let (end, ended) = watch::channel(false);
        names.going.insert(name.to_owned(), ended.clone());
        let (authority, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let bounded = tokio::time::timeout(ORDER_LIMIT, authority.order(&name)).await;
            let result = bounded.unwrap_or_else(|_| Err("the authority took too long".into()));
            authority.settle(&name, result, crate::handle::now_ms());
            let _ = end.send(true);
        });
        Ok(ended)
    }

    fn settle(&self, name: &str, result: Result<Kept, Wrong>, now_ms: u64) {
        let mut names = open(&self.names);
        names.going.remove(name);
        match result {
            Ok(kept) => {
                names.failed.remove(name);
                names.kept.insert(name.to_owned(), kept);
                tracing::info!(name, "a certificate came");
            }
            Err(error) => {
                names.failed.retain(|_, (until_ms, _)| *until_ms + AGAIN_MS_MOST > now_ms);
                let waited_ms = names.failed.get(name).map_or(AGAIN_MS / 2, |(_, waited_ms)| *waited_ms);
                let wait_ms = (waited_ms * 2).min(AGAIN_MS_MOST);
                if names.failed.len() < FAILED_MOST {
                    names.failed.insert(name.to_owned(), (now_ms + wait_ms, wait_ms));
                }
                tracing::warn!(name, %error, again_in_s = wait_ms / 1000, "no certificate came");
            }
        }
    }

    async fn order(&self, name: &str) -> Result<Kept, Wrong> {
        let _place = self.places.acquire().await?;
        let account = self.account().await?;
        let names = [Identifier::Dns(name.to_owned())];
        let mut order = account.new_order(&NewOrder::new(&names)).await?;
        let mut tokens = Tokens { authority: self, held: Vec::new() };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                other => return Err(format!("the authority says {other:?}").into()),
            }
            let mut challenge = authorization
                .challenge(ChallengeType::Http01)
                .ok_or("the authority offers no proof over HTTP")?;
            tokens.hold(challenge.token.clone(), challenge.key_authorization().as_str().to_owned());
            challenge.set_ready().await?;
        }
        let patience = RetryPolicy::default();
        match order.poll_ready(&patience).await? {
            OrderStatus::Ready => {}
            other => return Err(format!("the authority did not find the proof ({other:?})").into()),
        }
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&patience).await?;
        let pem = format!("{key}\n{chain}");
        let kept = read(pem.as_bytes())?;
        write_private(&self.path(name), pem.as_bytes())?;
        Ok(kept)
    }

    /// Our account at the authority: the one of before, or a new one.
    async fn account(&self) -> Result<Account, Wrong> {
        let mut known = self.account.lock().await;
        if let Some(account) = &*known {
            return Ok(account.clone());
        }
        let builder = || match &self.config.root {
            Some(root) => Account::builder_with_root(root),
            None => Account::builder(),
        };
        let path = self.dir.join("account.json");
        let kept = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Stored>(&text).ok());
        let account = if let Some(kept) = kept.filter(|kept| kept.directory == self.config.directory) {
            builder()?.from_credentials(kept.credentials).await?
        } else {
            let contact: Vec<_> = self.config.contact.iter().map(String::as_str).collect();
            let new =
                NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
            let directory = self.config.directory.clone();
            let (account, credentials) = builder()?.create(&new, directory.clone(), None).await?;
            write_private(&path, &serde_json::to_vec(&Stored { directory, credentials })?)?;
            account
        };
        *known = Some(account.clone());
        Ok(account)
    }

    /// Renews what is due and still exposed, and forgets the rest.
    pub(super) async fn renew(self: &Arc<Self>, gateway: &Gateway) {
        let now_ms = gateway.now_ms();
        let names: Vec<_> = {
            let names = open(&self.names);
            names.kept.iter().map(|(name, kept)| (name.clone(), kept.renew_ms)).collect()
        };
        for (name, renew_ms) in names {
            if !is_exposed(gateway, &name) {
                open(&self.names).kept.remove(&name);
                let _ = tokio::fs::remove_file(self.path(&name)).await;
            } else if renew_ms <= now_ms {
                // Refused while the last failure is too recent; the old one is good meanwhile.
                let _ = self.order_once(&name, now_ms);
            }
        }
    }
}

/// The account as it is kept.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    directory: String,
    credentials: AccountCredentials,
}

/// Challenges of one order: gone when it ends.
struct Tokens<'a> {
    authority: &'a Authority,
    held: Vec<String>,
}

impl Tokens<'_> {
    fn hold(&mut self, token: String, answer: String) {
        open(&self.authority.challenges).insert(token.clone(), answer);
        self.held.push(token);
    }
}

impl Drop for Tokens<'_> {
    fn drop(&mut self) {
        let mut challenges = open(&self.authority.challenges);
        self.held.iter().for_each(|token| _ = challenges.remove(token));
    }
}

/// Whether it is the host name of a cluster that exposes HTTP now.
fn is_exposed(gateway: &Gateway, name: &str) -> bool {
    let Some(order) = gateway.apps.order_of(name).filter(|order| gateway.apps.host(*order) == name) else {
        return false;
    };
    gateway.handle.read(|view| view.state.orders.get(&order).is_some_and(|order| order.web().is_some()))
}

/// A key and its chain, and when it should be another.
fn read(pem: &[u8]) -> Result<Kept, Wrong> {
    let config = server_config(pem, pem)?;
    let first = x509_parser::pem::Pem::iter_from_buffer(pem).filter_map(Result::ok);
    let first =
        first.into_iter().find(|part| part.label == "CERTIFICATE").ok_or("there is no certificate")?;
    let validity = first.parse_x509()?.validity().clone();
    let ms =
        |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).unwrap_or(0).saturating_mul(1000);
    let (from_ms, over_ms) = (ms(validity.not_before), ms(validity.not_after));
    let renew_ms = from_ms + over_ms.saturating_sub(from_ms) / 3 * 2;
    Ok(Kept { config, renew_ms, over_ms })
}

/// Writes a file whole or not at all, for its owner only.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
