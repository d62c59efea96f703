//! TLS of exposed services: from files that are read again when they change, or from an authority.
//!
//! Always holds: a handshake is answered for a host name that is exposed (with an authority), or with the certificate given
//! (with files); files that cannot be read leave the last good certificate in place, and say so. Not here: HTTP.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::acme::Authority;
use super::{AppsTls, Gateway};
use crate::error::ServerError;

/// How often it is looked whether the files changed, or a certificate should be renewed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where certificates come from.
#[derive(Debug)]
pub(super) enum Certificates {
    Files(Files),
    Authority(Arc<Authority>),
}

/// A certificate and its key in two files.
#[derive(Debug)]
pub(super) struct Files {
    cert: PathBuf,
    key: PathBuf,
    now: RwLock<Arc<ServerConfig>>,
}

impl Certificates {
    pub(super) fn new(tls: &AppsTls, dir: &Path) -> Result<Option<Self>, ServerError> {
        Ok(match tls {
            AppsTls::None => None,
            AppsTls::Files { cert, key } => {
                let now = read(cert, key)
                    .map_err(ServerError::io(format!("use {} as a certificate", cert.display())))?;
                Some(Self::Files(Files { cert: cert.clone(), key: key.clone(), now: RwLock::new(now) }))
            }
            AppsTls::Acme(config) => Some(Self::Authority(Arc::new(Authority::new(config.clone(), dir)?))),
        })
    }

    /// Shakes hands with a visitor.
    pub(super) async fn accept<S>(&self, gateway: &Gateway, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let config = match self {
            Self::Files(files) => files.now.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone(),
            Self::Authority(authority) => {
                let name = hello.client_hello().server_name().map(str::to_owned);
                let name = name.ok_or_else(|| io::Error::other("the visitor names no host"))?;
                authority.clone().certificate(gateway, &name).await.map_err(io::Error::other)?
            }
        };
        hello.into_stream(config).await
    }

    /// What an authority is to find at a challenge's token.
    pub(super) fn challenge(&self, token: &str) -> Option<String> {
        match self {
            Self::Files(_) => None,
            Self::Authority(authority) => authority.challenge(token),
        }
    }

    /// Reads changed files, renews certificates, for ever.
    pub(super) async fn upkeep(self: Arc<Self>, gateway: Gateway) {
        let mut read_at = SystemTime::now();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            match &*self {
                Self::Files(files) => read_at = files.look(read_at),
                Self::Authority(authority) => authority.renew(&gateway).await,
            }
        }
    }
}

impl Files {
    /// Reads the files again if they changed since; when they last changed.
    fn look(&self, read_at: SystemTime) -> SystemTime {
        let changed = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
        let newest = [&self.cert, &self.key].into_iter().filter_map(|path| changed(path)).max();
        let Some(newest) = newest.filter(|newest| *newest > read_at) else { return read_at };
        match read(&self.cert, &self.key) {
            Ok(fresh) => {
                *self.now.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
                tracing::info!(cert = %self.cert.display(), "the certificate of exposed services was read again");
                newest
            }
            // Half written, perhaps: the last good one goes on, and this is tried again.
            Err(error) => {
                tracing::warn!(%error, cert = %self.cert.display(), "the new certificate cannot be used");
                read_at
            }
        }
    }
}

fn read(cert: &Path, key: &Path) -> io::Result<Arc<ServerConfig>> {
    server_config(&std::fs::read(cert)?, &std::fs::read(key)?)
}

/// What handshakes are made with, from PEM.
pub(super) fn server_config(cert: &[u8], key: &[u8]) -> io::Result<Arc<ServerConfig>> {
    let wrong = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>().map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(&error))?;
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(ring).with_safe_default_protocol_versions();
    let config = config.map_err(|error| wrong(&error))?.with_no_client_auth();
    let mut config = config.with_single_cert(chain, key).map_err(|error| wrong(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
