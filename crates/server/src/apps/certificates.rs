//! TLS of exposed services: from files that are read again when they change, or from an authority.
//!
//! Always holds: a handshake is answered for a host name that is exposed (with an authority), or with the certificate given
//! (with files); files that cannot be read leave the last good certificate in place, and say so. Not here: HTTP.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::acme::Authority;
use super::{AppsTls, Gateway, open};
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
    /// How the files were when they were last read.
    seen: Mutex<Stamps>,
}

/// When two files were last changed, and how long they are. Not only whether they are newer: a renewed certificate that was
/// copied here keeps the time of its making, perhaps.
type Stamps = [Option<(SystemTime, u64)>; 2];

fn stamps(cert: &Path, key: &Path) -> Stamps {
    let stamp = |path| std::fs::metadata(path).and_then(|file| Ok((file.modified()?, file.len()))).ok();
    [stamp(cert), stamp(key)]
}

impl Certificates {
    pub(super) fn new(tls: &AppsTls, dir: &Path) -> Result<Option<Self>, ServerError> {
        Ok(match tls {
            AppsTls::None => None,
            AppsTls::Files { cert, key } => {
                let seen = Mutex::new(stamps(cert, key));
                let now = read(cert, key)
                    .map_err(ServerError::io(format!("use {} as a certificate", cert.display())))?;
                Some(Self::Files(Files { cert: cert.clone(), key: key.clone(), now: RwLock::new(now), seen }))
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

    /// Why there is none for a host name, if it was tried.
    pub(super) fn trouble(&self, name: &str, now_ms: u64) -> Option<String> {
        match self {
            Self::Files(_) => None,
            Self::Authority(authority) => authority.trouble(name, now_ms),
        }
    }

    /// Reads changed files, renews certificates, for ever.
    pub(super) async fn upkeep(self: Arc<Self>, gateway: Gateway) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            match &*self {
                Self::Files(files) => files.look(),
                Self::Authority(authority) => authority.renew(&gateway).await,
            }
        }
    }
}

impl Files {
    /// Reads the files again if they changed since.
    fn look(&self) {
        // Taken before they are read: what changes meanwhile is seen the next time.
        let fresh = stamps(&self.cert, &self.key);
        let mut seen = open(&self.seen);
        if *seen == fresh {
            return;
        }
        match read(&self.cert, &self.key) {
            Ok(config) => {
                *self.now.write().unwrap_or_else(std::sync::PoisonError::into_inner) = config;
                *seen = fresh;
                tracing::info!(cert = %self.cert.display(), "the certificate of exposed services was read again");
            }
            // Half written, perhaps: the last good one goes on, and this is tried again.
            Err(error) => {
                tracing::warn!(%error, cert = %self.cert.display(), "the new certificate cannot be used");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn write(cert: &Path, key: &Path) {
        let made = rcgen::generate_simple_self_signed(["a.example.org".to_owned()]).unwrap();
        std::fs::write(cert, made.cert.pem()).unwrap();
        std::fs::write(key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn files_are_read_again_when_they_differ_and_the_last_good_ones_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        write(&cert, &key);
        let tls = AppsTls::Files { cert: cert.clone(), key: key.clone() };
        let Some(Certificates::Files(files)) = Certificates::new(&tls, dir.path()).unwrap() else {
            panic!("not from files");
        };
        let looked = || {
            files.look();
            files.now.read().unwrap().clone()
        };
        let first = looked();
        assert!(Arc::ptr_eq(&first, &looked()), "nothing changed");
        std::fs::write(&cert, "half of one").unwrap();
        assert!(Arc::ptr_eq(&first, &looked()), "the last good one goes on");
        write(&cert, &key);
        // As files that were copied from where they were made: older than those they replace.
        let hour_ago = SystemTime::now() - Duration::from_hours(1);
        for path in [&cert, &key] {
            std::fs::File::options().write(true).open(path).unwrap().set_modified(hour_ago).unwrap();
        }
        assert!(!Arc::ptr_eq(&first, &looked()), "another one");
    }
}
