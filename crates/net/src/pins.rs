//! Which relay certificates a node believes: those signed by an authority it was told of, and no others.
//!
//! The set may change while the node runs. An empty set refuses everything. Endpoint-to-endpoint traffic does not
//! depend on it: that is proven by endpoint keys.

use std::sync::{Arc, RwLock};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{NetError, RelayInfo};

#[derive(Debug)]
pub(crate) struct Pins {
    provider: Arc<CryptoProvider>,
    current: RwLock<Option<Arc<WebPkiServerVerifier>>>,
}

impl Pins {
    pub(crate) fn new(relays: &[RelayInfo]) -> Result<Arc<Self>, NetError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pins = Self { provider, current: RwLock::new(None) };
        pins.replace(relays)?;
        Ok(Arc::new(pins))
    }

    /// Believes the authorities of these relays from now on, and only those.
    pub(crate) fn replace(&self, relays: &[RelayInfo]) -> Result<(), NetError> {
        let mut roots = RootCertStore::empty();
        for relay in relays {
            roots.add(CertificateDer::from(relay.ca_der.clone())).map_err(|_| NetError::Malformed {
                what: format!("the certificate of relay {}", relay.url),
            })?;
        }
        let verifier = if roots.is_empty() {
            None
        } else {
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone());
            Some(builder.build().map_err(|e| NetError::Bind { reason: e.to_string() })?)
        };
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = verifier;
        Ok(())
    }
}

impl ServerCertVerifier for Pins {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let current = self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        current.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
