//! Services of clusters under the server's own name: the listeners, and what they share with the API.
//!
//! A visitor's connection ends here (TLS too) and goes on through a tunnel to the member, under leave that the server signs
//! for itself, for this service only. So the server sees what passes. Always holds: nothing reaches a service before its
//! exposure admits whoever comes; what is not admitted any more is cut; connections, their rate, and every wait are bounded;
//! a host name of this listener never answers for the API, nor the API's for a service. Not here: what is exposed to whom
//! (`ionet_domain::order::expose`), tunnels (`ionet_net::tunnel`).

mod access;
mod acme;
mod answer;
mod certificates;
mod enter;
mod headers;
mod listen;
mod live;
mod proxy;
mod raw;
mod stall;
mod udp;
mod upstream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ionet_domain::account::ActivityKind;
use ionet_domain::order::expose::{Exposure, Kind, Ports, host_label, order_of};
use ionet_domain::{Address, OrderId};

pub(crate) use self::access::{TICKET_LIFE_MS, Tickets, Visitor, admitted};
pub(crate) use self::listen::{Bound, run};
use self::live::Live;
use crate::handle::Handle;

/// How services of clusters are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppsConfig {
    /// Where visitors come in; port 0 takes a free one. Public TCP and UDP ports are opened at the same address.
    pub listen: SocketAddr,
    /// Cluster `clu_X` is `x.DOMAIN`.
    pub domain: String,
    /// Public TCP and UDP ports to give.
    pub ports: Option<Ports>,
    /// Where certificates come from.
    pub tls: AppsTls,
    /// Plain HTTP beside TLS: it answers ACME's challenges and sends everybody else to TLS.
    pub http_listen: Option<SocketAddr>,
    /// How much at a time.
    pub limits: AppsLimits,
}

impl AppsConfig {
    /// Plain HTTP on a free port of the loopback, and 100 ports.
    pub fn local() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            domain: "apps.localhost".into(),
            ports: Some(Ports { first: 20_000, last: 20_099 }),
            tls: AppsTls::None,
            http_listen: None,
            limits: AppsLimits::default(),
        }
    }
}

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppsTls {
    /// Nowhere: plain HTTP, as on a loopback or behind a proxy.
    None,
    /// From two PEM files, read again when they change.
    Files {
        /// The chain, the host's certificate first.
        cert: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// From an authority that speaks RFC 8555, for each host name at its first use.
    Acme(AcmeConfig),
}

/// An authority that speaks RFC 8555.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// The URL of its directory.
    pub directory: String,
    /// Whom it may write to: `mailto:...`.
    pub contact: Option<String>,
    /// A PEM file with the root that its own HTTPS is checked against, if the system's roots will not do.
    pub root: Option<PathBuf>,
}

/// How much at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppsLimits {
    /// Connections of visitors in all.
    pub connections: usize,
    /// Requests and connections that go on at a time, for each cluster.
    pub each_cluster: usize,
    /// New ones in a second, for each cluster.
    pub new_each_second: u32,
    /// Senders of datagrams at a time, for each UDP port.
    pub udp_sources: usize,
}

impl Default for AppsLimits {
    fn default() -> Self {
        Self { connections: 10_000, each_cluster: 500, new_each_second: 500, udp_sources: 256 }
    }
}

/// What the listeners and the API share.
#[derive(Debug)]
pub(crate) struct Apps {
    pub(crate) config: AppsConfig,
    /// Where visitors come in, the port known.
    address: SocketAddr,
    certificates: Option<Arc<certificates::Certificates>>,
    seal: access::Seal,
    pub(crate) tickets: Tickets,
    live: Arc<Live>,
    /// Public ports that could not be opened, and why.
    troubles: Mutex<BTreeMap<(Kind, u16), String>>,
    /// Who came to what in this hour.
    noted: Mutex<BTreeMap<String, u64>>,
}

/// Who came to what in an hour is remembered for so many.
const NOTED_MOST: usize = 10_000;
const HOUR_MS: u64 = 3_600_000;

fn open<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Apps {
    fn secure(&self) -> bool {
        self.config.tls != AppsTls::None
    }

    /// The host name of a cluster.
    pub(crate) fn host(&self, order: OrderId) -> String {
        format!("{}.{}", host_label(order), self.config.domain)
    }

    /// The cluster of a host name, which may have a port.
    fn order_of(&self, host: &str) -> Option<OrderId> {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_end_matches('.');
        let (label, domain) = name.split_once('.')?;
        domain.eq_ignore_ascii_case(&self.config.domain).then(|| order_of(label))?
    }

    fn origin(&self, order: OrderId) -> String {
        let (scheme, usual) = if self.secure() { ("https", 443) } else { ("http", 80) };
        let host = self.host(order);
        match self.address.port() {
            port if port == usual => format!("{scheme}://{host}"),
            port => format!("{scheme}://{host}:{port}"),
        }
    }

    /// Where an exposed service is found.
    pub(crate) fn url(&self, order: OrderId, exposure: &Exposure) -> Option<String> {
        match (exposure.kind, exposure.public_port) {
            (Kind::Http, _) => Some(format!("{}/", self.origin(order))),
            (kind, Some(port)) => Some(format!("{kind}://{}:{port}", self.host(order))),
            _ => None,
        }
    }

    /// The link that a ticket is good for.
    pub(crate) fn entry_url(&self, order: OrderId, ticket: &str) -> String {
        format!("{}{}?ticket={ticket}", self.origin(order), enter::PATH)
    }

    /// Connections and requests that go on through an exposed service.
    pub(crate) fn live(&self, order: OrderId, exposure: &Exposure) -> u64 {
        self.live.count(order, (exposure.kind, exposure.port))
    }

    /// Why a service cannot be reached here, if so.
    pub(crate) fn trouble(&self, order: OrderId, exposure: &Exposure, now_ms: u64) -> Option<String> {
        if exposure.kind == Kind::Http {
            return self.certificates.as_ref()?.trouble(&self.host(order), now_ms);
        }
        let port = exposure.public_port?;
        open(&self.troubles).get(&(exposure.kind, port)).cloned()
    }

    /// Whether somebody comes to a service for the first time in this hour. When too many came, nobody else is told of.
    fn first_in_hour(&self, what: String, now_ms: u64) -> bool {
        let hour = now_ms / HOUR_MS;
        let mut noted = open(&self.noted);
        if noted.get(&what) == Some(&hour) {
            return false;
        }
        if noted.len() >= NOTED_MOST {
            noted.retain(|_, last| *last == hour);
        }
        let room = noted.len() < NOTED_MOST;
        if room {
            noted.insert(what, hour);
        }
        room
    }
}

/// What every connection of a visitor has.
#[derive(Debug, Clone)]
struct Gateway {
    handle: Handle,
    apps: Arc<Apps>,
}

/// Who came, as far as he said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Coming {
    from: SocketAddr,
    account: Option<Address>,
}

impl Gateway {
    fn now_ms(&self) -> u64 {
        self.handle.now_ms()
    }

    /// A line in the activity log of the cluster's account, once an hour for each visitor and service.
    fn note(&self, kind: ActivityKind, owner: Address, order: OrderId, service: &str, who: Coming) {
        let (ip, account) = (who.from.ip(), who.account);
        let name = account.map_or_else(|| ip.to_string(), |account| account.to_string());
        if !self.apps.first_in_hour(format!("{kind:?} {order} {service} {name}"), self.now_ms()) {
            return;
        }
        let by = account.map_or_else(String::new, |account| format!(" by {account}"));
        let particulars = format!("{service} of {order} from {ip}{by}");
        self.handle.note_activity(owner, kind, None, particulars);
    }
}
