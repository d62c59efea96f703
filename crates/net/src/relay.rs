//! Our own relay: forwards sealed packets between endpoints that find no direct path, and tells an endpoint the
//! address it is seen from. Beside the QUIC library's relay runs the overlays' own forwarder (`ionet-overlay`).
//!
//! It sees ciphertext only. Its certificate comes from an authority it makes itself and keeps in a folder; clients pin
//! that authority from [`RelayInfo`], so neither a public name nor the internet is needed. It knows no accounts: who
//! may use it is one closure over endpoint ids.

mod metrics;
pub(crate) mod splice;

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ionet_overlay::{
    RelayAt,
    relay::{
        Limits,
        forwarder::{Forwarder, ForwarderConfig},
    },
};
use iroh_relay::server::{
    self, Access, AccessControl, CertConfig, ClientRequest, QuicConfig, Server, TlsConfig,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use self::splice::Splicer;

pub use metrics::Monitor;

use crate::{EndpointId, NetError, NodeAddr, key::create_private};

/// Which endpoints may do something.
pub type Admit = Arc<dyn Fn(EndpointId) -> bool + Send + Sync>;

/// A rule that admits everyone.
pub fn admit_all() -> Admit {
    Arc::new(|_| true)
}

/// How to run a relay.
#[derive(Clone)]
pub struct RelayConfig {
    /// Address to bind to.
    pub bind: IpAddr,
    /// Name or address clients dial, if it is not the bound one (behind a NAT, or bound to `0.0.0.0`).
    pub host: Option<String>,
    /// TCP port for sealed traffic; 0 takes a free one.
    pub https_port: u16,
    /// TCP port for the captive-portal probe; 0 takes a free one.
    pub http_port: u16,
    /// UDP port for address discovery; 0 takes a free one.
    pub quic_port: u16,
    /// Ports of the overlays' forwarder; 0 takes a free one.
    pub forwarder: ForwarderPorts,
    /// Folder of the relay's own certificate authority; made if missing.
    pub dir: PathBuf,
    /// Who may use the relay; asked at every connect.
    pub admit: Admit,
}

/// Where the overlays' forwarder of a relay listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ForwarderPorts {
    /// UDP port for packets.
    pub udp: u16,
    /// Another UDP port, by which members learn what NAT they are behind.
    pub second_udp: u16,
    /// TCP port, for whom UDP is blocked.
    pub tcp: u16,
    /// TCP port on which long tunnels are spliced; a relay of an older version has none, 0.
    #[serde(default)]
    pub splice: u16,
}

/// What a client needs to use a relay: travels in joining tokens and lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelayInfo {
    /// Where it is: `https://host:port`.
    pub url: String,
    /// Its certificate authority (DER), pinned by clients. Text form: base64.
    #[serde(with = "base64")]
    pub ca_der: Vec<u8>,
    /// UDP port for address discovery.
    pub quic_port: u16,
    /// Ports of its forwarder for overlays; a relay of an older version has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarder: Option<ForwarderPorts>,
    /// Where it is, by its operator's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The node beside it that measures links, if there is one; its key signs what it measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<NodeAddr>,
}

impl RelayInfo {
    /// Its forwarder, as an overlay uses it; looks the host up if it is a name. Of several addresses one is taken that
    /// we have a way to: an IPv4 one if there is any, as what a relay sees of a NAT before us is of use there only.
    /// `None` without a forwarder, or where the name is not found.
    pub async fn forwarder_at(&self) -> Option<RelayAt> {
        let ports = self.forwarder?;
        let udp = self.at(ports.udp).await?;
        let at = |port| SocketAddr::new(udp.ip(), port);
        let (second, tcp) = (Some(at(ports.second_udp)), Some(at(ports.tcp)));
        Some(RelayAt { id: forwarder_id(&self.ca_der), udp, second, tcp })
    }

    /// Where it splices tunnels; `None` where it does not, or its name is not found.
    pub(crate) async fn splicer_at(&self) -> Option<SocketAddr> {
        let port = self.forwarder.map(|ports| ports.splice).filter(|port| *port != 0)?;
        self.at(port).await
    }

    async fn at(&self, port: u16) -> Option<SocketAddr> {
        let authority = self.url.strip_prefix("https://")?.trim_end_matches('/');
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::net::lookup_host((bare, port)).await.ok()?;
        choose(found.collect(), is_routed)
    }
}

/// The address to reach a relay at.
fn choose(mut found: Vec<SocketAddr>, is_routed: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
    found.sort_by_key(SocketAddr::is_ipv6);
    found.iter().copied().find(|at| is_routed(*at)).or(found.first().copied())
}

/// Whether this machine has a way to an address, as its routes say; nothing is sent.
fn is_routed(at: SocketAddr) -> bool {
    let any: IpAddr = match at {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(at).is_ok())
}

/// What a forwarder is known by: its relay's certificate authority.
fn forwarder_id(ca_der: &[u8]) -> [u8; 32] {
    let hash = ring::digest::digest(&ring::digest::SHA256, ca_der);
    let mut id = [0; 32];
    id.copy_from_slice(hash.as_ref());
    id
}

pub(crate) mod base64 {
    use data_encoding::BASE64URL_NOPAD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64URL_NOPAD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        BASE64URL_NOPAD.decode(String::deserialize(d)?.as_bytes()).map_err(D::Error::custom)
    }
}

/// Counters of a relay since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayMetrics {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections ended.
    pub ended: u64,
    /// Bytes of sealed packets received from clients.
    pub received_bytes: u64,
    /// Bytes of sealed packets sent to clients.
    pub sent_bytes: u64,
    /// Packets dropped, since their receiver was away.
    pub dropped_packets: u64,
    /// What the overlays' forwarder did.
    pub forwarder: ForwarderMetrics,
    /// What was spliced of tunnels.
    pub splicer: SplicerMetrics,
}

/// Counters of an overlays' forwarder since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwarderMetrics {
    /// Channels that stand now.
    pub channels: u64,
    /// TCP connections that stand now.
    pub connections: u64,
    /// Ends bound to channels, again and again.
    pub bound: u64,
    /// Questions for a channel refused.
    pub refused: u64,
    /// Packets passed on.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Packets dropped: over the channel's rate, of no channel, or not taken by the network.
    pub dropped_packets: u64,
}

impl ForwarderMetrics {
    fn of(counters: &ionet_overlay::relay::Counters) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            channels: get(&counters.channels),
            connections: get(&counters.connections),
            bound: get(&counters.bound),
            refused: counters.refused.iter().map(get).sum(),
            packets: get(&counters.packets),
            bytes: get(&counters.bytes),
            dropped_packets: get(&counters.over_rate) + get(&counters.unknown) + get(&counters.unsent),
        }
    }
}

/// Counters of what splices a relay's tunnels since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplicerMetrics {
    /// Pairs of connections that stand now.
    pub pairs: u64,
    /// Connections that wait for their other end now.
    pub waiting: u64,
    /// Bytes passed on.
    pub bytes: u64,
    /// Connections refused.
    pub refused: u64,
}

impl SplicerMetrics {
    fn of(counters: &splice::Counters) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            pairs: get(&counters.pairs),
            waiting: get(&counters.waiting),
            bytes: get(&counters.bytes),
            refused: get(&counters.refused),
        }
    }
}

/// A running relay; stops when dropped.
#[derive(Debug)]
pub struct Relay {
    server: Server,
    forwarder: Forwarder,
    splicer: Splicer,
    info: RelayInfo,
}

impl Relay {
    /// Starts a relay.
    ///
    /// # Errors
    /// If a port is taken or the folder cannot be used.
    pub async fn spawn(config: RelayConfig) -> Result<Self, NetError> {
        let host = match &config.host {
            Some(host) => host.clone(),
            None if config.bind.is_unspecified() => {
                return Err(failed("it listens on every interface, so say which host clients dial"));
            }
            None => config.bind.to_string(),
        };
        let (tls, ca_der) = tls_identity(&config.dir, &host)?;
        let at = |port| SocketAddr::new(config.bind, port);
        let mut relay = server::RelayConfig::new(at(config.http_port));
        relay.tls = Some(TlsConfig::new(at(config.https_port), CertConfig::Manual { server_config: tls }));
        relay.access = Arc::new(Gate(config.admit.clone()));
        let mut all = server::ServerConfig::default();
        all.relay = Some(relay);
        all.quic = Some(QuicConfig::new(at(config.quic_port)));
        let forwarder = start_forwarder(&config, &ca_der)?;
        let at = (config.bind, config.forwarder.splice);
        let splicer = Splicer::start(at, forwarder_id(&ca_der), config.admit.clone()).await?;
        let server = Server::spawn(all).await.map_err(|e| failed(format!("{e:#}")))?;
        let https = server.https_addr().ok_or_else(|| failed("no TLS port"))?;
        let quic = server.quic_addr().ok_or_else(|| failed("no address discovery port"))?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let url = format!("https://{host}:{}", https.port());
        let [udp, second_udp] = forwarder.udp_ports();
        let ports = ForwarderPorts { udp, second_udp, tcp: forwarder.tcp_port(), splice: splicer.port() };
        let info = RelayInfo {
            url,
            ca_der,
            quic_port: quic.port(),
            forwarder: Some(ports),
            region: None,
            measure: None,
        };
        Ok(Self { server, forwarder, splicer, info })
    }

    /// What clients need to use it.
    pub fn info(&self) -> RelayInfo {
        self.info.clone()
    }

    /// Its counters.
    pub fn metrics(&self) -> RelayMetrics {
        let m = &self.server.metrics().server;
        RelayMetrics {
            accepted: m.accepts.get(),
            ended: m.disconnects.get(),
            received_bytes: m.bytes_recv.get(),
            sent_bytes: m.bytes_sent.get(),
            dropped_packets: m.send_packets_dropped.get(),
            forwarder: ForwarderMetrics::of(&self.forwarder.counters()),
            splicer: SplicerMetrics::of(self.splicer.counters()),
        }
    }

    /// Answers monitors at a local address until what is returned is dropped.
    ///
    /// # Errors
    /// If the address is taken or not ours.
    pub async fn monitor(&self, at: SocketAddr) -> Result<Monitor, NetError> {
        Monitor::start(
            at,
            self.server.metrics().server.clone(),
            self.forwarder.counters(),
            self.splicer.counters().clone(),
        )
        .await
    }

    /// Stops it and waits until its ports are free.
    pub async fn shutdown(self) {
        if let Err(error) = self.server.shutdown().await {
            tracing::debug!(%error, "relay ended with an error");
        }
    }
}

fn start_forwarder(config: &RelayConfig, ca_der: &[u8]) -> Result<Forwarder, NetError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(failed)?;
    let admit = config.admit.clone();
    let forwarder = ForwarderConfig {
        id: forwarder_id(ca_der),
        secret,
        ip: config.bind,
        udp_port: config.forwarder.udp,
        second_udp_port: config.forwarder.second_udp,
        tcp_port: config.forwarder.tcp,
        limits: Limits::default(),
        admit: Box::new(move |key| admit(EndpointId(*key))),
    };
    Forwarder::start(forwarder).map_err(failed)
}

#[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
fn failed(reason: impl ToString) -> NetError {
    NetError::Relay { reason: reason.to_string() }
}

struct Gate(Admit);

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl AccessControl for Gate {
    async fn on_connect(&self, request: &ClientRequest) -> Access {
        if (self.0)(request.endpoint_id().into()) {
            Access::Allow
        } else {
            Access::Deny { reason: Some("not_admitted".into()) }
        }
    }
}

/// A fresh certificate for `host`, signed by the folder's authority, and that authority.
fn tls_identity(dir: &Path, host: &str) -> Result<(rustls::ServerConfig, Vec<u8>), NetError> {
    let key = authority_key(dir)?;
    let params = authority_params();
    let ca_der = authority_certificate(dir, &params, &key)?;
    let issuer = rcgen::Issuer::new(params, key);
    let leaf_key = rcgen::KeyPair::generate().map_err(failed)?;
    let leaf = rcgen::CertificateParams::new(vec![host.to_owned()])
        .and_then(|params| params.signed_by(&leaf_key, &issuer))
        .map_err(failed)?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(vec![CertificateDer::from(leaf)], private)
            })
            .map_err(failed)?;
    Ok((config, ca_der))
}

fn authority_params() -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "ionet relay");
    params
}

fn authority_key(dir: &Path) -> Result<rcgen::KeyPair, NetError> {
    let der = load_or_create(&dir.join("relay-ca.key"), || {
        rcgen::KeyPair::generate().map(|key| key.serialize_der()).map_err(failed)
    })?;
    rcgen::KeyPair::try_from(der)
        .map_err(|_| NetError::Malformed { what: "the key of the relay's certificate authority".into() })
}

/// The authority's certificate is kept, as its signature differs each time it is made and clients hold a copy.
fn authority_certificate(
    dir: &Path,
    params: &rcgen::CertificateParams,
    key: &rcgen::KeyPair,
) -> Result<Vec<u8>, NetError> {
    load_or_create(&dir.join("relay-ca.der"), || {
        params.self_signed(key).map(|certificate| certificate.der().to_vec()).map_err(failed)
    })
}

fn load_or_create(path: &Path, make: impl Fn() -> Result<Vec<u8>, NetError>) -> Result<Vec<u8>, NetError> {
    let named = |e| NetError::io(format!("use the relay's file {}", path.display()))(e);
    match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        read => return read.map_err(named),
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(named)?;
    }
    match create_private(path, &make()?) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(named(e)),
        _ => fs::read(path).map_err(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_reached_at_an_address_of_a_family_that_is_there() {
        let [four, six]: [SocketAddr; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"].map(|at| at.parse().unwrap());
        assert_eq!(choose(vec![six, four], |_| true), Some(four));
        assert_eq!(choose(vec![six, four], |at| at.is_ipv6()), Some(six));
        assert_eq!(choose(vec![six, four], |_| false), Some(four), "it may come");
        assert_eq!(choose(vec![six], |_| false), Some(six));
        assert_eq!(choose(vec![], |_| true), None);
        assert!(is_routed("127.0.0.1:9".parse().unwrap()));
    }
}
