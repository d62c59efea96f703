//! Our own relay: forwards sealed packets between endpoints that find no direct path, and tells an endpoint the
//! address it is seen from.
//!
//! It sees ciphertext only. Its certificate comes from an authority it makes itself and keeps in a folder; clients pin
//! that authority from [`RelayInfo`], so neither a public name nor the internet is needed. It knows no accounts: who
//! may use it is one closure over endpoint ids.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use iroh_relay::server::{
    self, Access, AccessControl, CertConfig, ClientRequest, QuicConfig, Server, TlsConfig,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::{EndpointId, NetError, key::create_private};

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
    /// Folder of the relay's own certificate authority; made if missing.
    pub dir: PathBuf,
    /// Who may use the relay; asked at every connect.
    pub admit: Admit,
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
}

/// A running relay; stops when dropped.
#[derive(Debug)]
pub struct Relay {
    server: Server,
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
        relay.access = Arc::new(Gate(config.admit));
        let mut all = server::ServerConfig::default();
        all.relay = Some(relay);
        all.quic = Some(QuicConfig::new(at(config.quic_port)));
        let server = Server::spawn(all).await.map_err(|e| failed(format!("{e:#}")))?;
        let https = server.https_addr().ok_or_else(|| failed("no TLS port"))?;
        let quic = server.quic_addr().ok_or_else(|| failed("no address discovery port"))?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let info =
            RelayInfo { url: format!("https://{host}:{}", https.port()), ca_der, quic_port: quic.port() };
        Ok(Self { server, info })
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
        }
    }

    /// Stops it and waits until its ports are free.
    pub async fn shutdown(self) {
        if let Err(error) = self.server.shutdown().await {
            tracing::debug!(%error, "relay ended with an error");
        }
    }
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
