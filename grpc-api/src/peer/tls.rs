//! TLS as the peers use it: version 1.3, X25519MLKEM768 or X25519, no resumption.

use std::fmt;
use std::sync::Arc;

use keymgr::identity::Fingerprint;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use super::trust::{FarEnd, Partners, Trust, fingerprint};

/// What HTTP/2 is called in the handshake (RFC 9113 §3.2).
pub(crate) const HTTP2: &[u8] = b"h2";

/// Our certificate with its private key.
#[derive(Clone)]
pub struct PeerIdentity {
    key: Arc<CertifiedKey>,
    fingerprint: Fingerprint,
}

/// Why certificate and key are of no use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no certificate, or the first one cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// The private key cannot be read, or is of a kind that TLS 1.3 has no use for.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// The key is another certificate's.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
}

impl PeerIdentity {
    /// From a chain of DER certificates, our own first, and the private key as DER (PKCS #8,
    /// SEC1 or PKCS #1). Wiping `key` is the caller's.
    ///
    /// # Errors
    /// When either cannot be read, or they do not belong together.
    pub fn new(chain: Vec<Vec<u8>>, key: &[u8]) -> Result<Self, IdentityError> {
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let own = chain
            .first()
            .ok_or_else(|| IdentityError::Certificate("none given".into()))?;
        let fingerprint =
            fingerprint(own).map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let key = PrivateKeyDer::try_from(key).map_err(|error| IdentityError::Key(error.into()))?;
        let key = provider()
            .key_provider
            .load_private_key(key.clone_key())
            .map_err(|error| IdentityError::Key(error.to_string()))?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| IdentityError::Mismatch)?;
        let key = Arc::new(key);
        Ok(Self { key, fingerprint })
    }

    /// What peers pin.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.key)))
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerIdentity")
            .field(&self.fingerprint)
            .finish()
    }
}

/// Ciphers and groups. The hybrid group comes first: whoever records the exchange today cannot
/// read the contributions with a quantum computer later.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
        ],
        ..aws_lc_rs::default_provider()
    }
}

pub(super) fn server_config(
    identity: &PeerIdentity,
    partners: Arc<Partners>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(partners)
        .with_cert_resolver(identity.resolver());
    config.alpn_protocols = vec![HTTP2.to_vec()];
    // A connection carries one call: nothing would ever resume.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

pub(super) fn client_config(
    identity: &PeerIdentity,
    trust: &Trust,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(FarEnd::new(trust.clone())))
        .with_client_cert_resolver(identity.resolver());
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    // The peer has one certificate, and its name is nobody else's business.
    config.enable_sni = false;
    Ok(config)
}
