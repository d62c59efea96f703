//! Certificates from an authority by RFC 8555: one for each host name, at its first use, proven over plain HTTP.
//!
//! Always holds: a certificate is asked for only while the host's cluster exposes HTTP, by one order at a time for each
//! name, a few in all, and so many an hour; after a failure it is not tried again for a while that doubles; keys and
//! certificates are files that only their owner can read; one is renewed when a third of its life is left, and kept until it
//! is over, so that hiding a service and showing it again costs no order. Not here: TLS.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, Order,
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
    failed: BTreeMap<String, Failed>,
    /// The hour that orders are counted in.
    hour: (u64, u32),
}

/// The last order of a name, which brought nothing.
#[derive(Debug)]
struct Failed {
    /// Until when it is not tried again, and how long that was.
    until_ms: u64,
    waited_ms: u64,
    why: String,
}

impl Failed {
    fn says(&self, name: &str, now_ms: u64) -> String {
        let in_s = self.until_ms.saturating_sub(now_ms).div_ceil(1000);
        format!(
            "there is no certificate for {name}: {}; it is tried again in {in_s} s at the earliest",
            self.why
        )
    }
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

    /// Why a name has no certificate, if an order for one failed.
    pub(super) fn trouble(&self, name: &str, now_ms: u64) -> Option<String> {
        let names = open(&self.names);
        let usable = names.kept.get(name).is_some_and(|kept| kept.over_ms > now_ms);
        names.failed.get(name).filter(|_| !usable).map(|failed| failed.says(name, now_ms))
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
        // Another's order may have ended since it was looked for.
        if names.kept.get(name).is_some_and(|kept| kept.renew_ms > now_ms) {
            return Ok(watch::channel(true).1);
        }
        if let Some(failed) = names.failed.get(name).filter(|failed| failed.until_ms > now_ms) {
            return Err(failed.says(name, now_ms).into());
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
                names.failed.retain(|_, failed| failed.until_ms + AGAIN_MS_MOST > now_ms);
                let waited_ms = names.failed.get(name).map_or(AGAIN_MS / 2, |failed| failed.waited_ms);
                let waited_ms = (waited_ms * 2).min(AGAIN_MS_MOST);
                let why = in_full(&*error);
                tracing::warn!(name, why, again_in_s = waited_ms / 1000, "no certificate came");
                if names.failed.len() < FAILED_MOST {
                    let failed = Failed { until_ms: now_ms + waited_ms, waited_ms, why };
                    names.failed.insert(name.to_owned(), failed);
                }
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
            _ => return Err(refused(&mut order).await),
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

    /// Renews what is due and still exposed, and forgets what is over and is not.
    pub(super) async fn renew(self: &Arc<Self>, gateway: &Gateway) {
        let now_ms = gateway.now_ms();
        let names: Vec<_> = {
            let names = open(&self.names);
            let due = names.kept.iter().filter(|(_, kept)| kept.renew_ms <= now_ms);
            due.map(|(name, kept)| (name.clone(), kept.over_ms)).collect()
        };
        for (name, over_ms) in names {
            if is_exposed(gateway, &name) {
                // Refused while the last failure is too recent; the old one is good meanwhile.
                let _ = self.order_once(&name, now_ms);
            } else if over_ms <= now_ms {
                open(&self.names).kept.remove(&name);
                let _ = tokio::fs::remove_file(self.path(&name)).await;
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

/// Why an order came to nothing: the authority says it at the proof.
async fn refused(order: &mut Order) -> Wrong {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { break };
        if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            return format!("the authority did not find the proof: {problem}").into();
        }
    }
    "the authority did not find the proof".into()
}

/// An error with all its causes: the first often says only that a request failed.
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(dir: &Path) -> Arc<Authority> {
        let directory = "https://127.0.0.1:1/directory".to_owned();
        Arc::new(Authority::new(AcmeConfig { directory, contact: None, root: None }, dir).unwrap())
    }

    #[test]
    fn a_name_that_fails_is_tried_again_after_waits_that_double_up_to_half_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let mut now_ms = 1_000_000;
        for minutes in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 720, 720] {
            authority.settle("a.example.org", Err("no".into()), now_ms);
            let until_ms = open(&authority.names).failed["a.example.org"].until_ms;
            assert_eq!(until_ms - now_ms, minutes * 60_000);
            let early = authority.order_once("a.example.org", until_ms - 1).unwrap_err().to_string();
            assert!(
                early.ends_with("a.example.org: no; it is tried again in 1 s at the earliest"),
                "{early}"
            );
            assert_eq!(authority.trouble("a.example.org", until_ms - 1), Some(early));
            now_ms = until_ms;
        }
        assert_eq!(authority.trouble("b.example.org", now_ms), None);
    }

    #[tokio::test]
    async fn so_many_orders_are_begun_in_an_hour_and_one_at_a_time_for_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        for n in 0..ORDERS_AN_HOUR {
            for _ in 0..2 {
                authority.order_once(&format!("{n}.example.org"), HOUR_MS).unwrap();
            }
        }
        assert!(authority.order_once("more.example.org", 2 * HOUR_MS - 1).is_err());
        assert!(authority.order_once("more.example.org", 2 * HOUR_MS).is_ok());
    }
}
