//! Whom to believe: certificates pinned by fingerprint, or of an operator's own authority.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use keymgr::identity::Fingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::tls::provider;

/// How a peer's certificate is recognised. Within its validity it must be in either case.
#[derive(Clone, Debug)]
pub enum Trust {
    /// By its key.
    Pinned(Fingerprint),
    /// By the operator's authority, and a name.
    Authority(Authority),
}

/// An operator's authority and the name that a peer has with it.
///
/// Revocation lists are not consulted: a name is taken away by removing the peer.
#[derive(Clone)]
pub struct Authority {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

/// Why an [`Authority`] is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// No certificate of an authority is given, or one cannot be read.
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(String),
    /// The name is not one that a certificate can have.
    #[error("{0:?} is not a DNS name")]
    Name(String),
}

impl Authority {
    /// Certificates that chain to one of `roots` (DER) and have the DNS name `name`
    /// (RFC 9525). With extended key usages, they must be for both servers and clients.
    ///
    /// # Errors
    /// When a root cannot be read, there is none, or the name is not one.
    pub fn new(roots: &[Vec<u8>], name: &str) -> Result<Self, TrustError> {
        let refused = |error: &dyn fmt::Display| TrustError::Authority(error.to_string());
        let mut store = RootCertStore::empty();
        for root in roots {
            let root = CertificateDer::from(root.as_slice());
            store.add(root).map_err(|error| refused(&explain(&error)))?;
        }
        let roots = Arc::new(store);
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::new(provider()));
        let name = match ServerName::try_from(name.to_owned()) {
            Ok(dns @ ServerName::DnsName(_)) => dns,
            Ok(_) | Err(_) => return Err(TrustError::Name(name.to_owned())),
        };
        Ok(Self {
            clients: clients.build().map_err(|error| refused(&error))?,
            roots,
            name,
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A peer that may call.
#[derive(Clone, Debug)]
pub struct Partner {
    /// Its name.
    pub name: Arc<str>,
    /// How its certificate is recognised.
    pub trust: Trust,
    /// Addresses it is expected to call from. They prove nothing, but no stranger can take the
    /// room that is kept for them.
    pub addresses: Vec<IpAddr>,
}

/// Everybody who may call; replaced as a whole when the configuration changes.
pub struct Partners {
    current: RwLock<Arc<Book>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Partners {
    /// These may call.
    #[must_use]
    pub fn new(partners: Vec<Partner>) -> Self {
        Self {
            current: RwLock::new(Arc::new(Book::new(partners, 0))),
            algorithms: provider().signature_verification_algorithms,
        }
    }

    /// From now on these may call. Calls in progress are completed, and so are connections: each
    /// [`Caller`](super::Caller) tells by which edition it was recognised.
    pub fn replace(&self, partners: Vec<Partner>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(Book::new(partners, current.edition + 1));
    }

    /// How often they have been replaced.
    #[must_use]
    pub fn edition(&self) -> u64 {
        self.book().edition
    }

    /// How many partners are expected to call from `address`.
    pub(super) fn at(&self, address: IpAddr) -> usize {
        self.book()
            .at
            .get(&address.to_canonical())
            .copied()
            .unwrap_or(0)
    }

    /// Whose certificate this is.
    pub(super) fn identify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Recognised, Error> {
        let (certificate, intermediates) =
            chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let fingerprint = fingerprint(certificate)?;
        let book = self.book();
        Ok(Recognised {
            fingerprint,
            partners: book.identify(certificate, intermediates, fingerprint, now)?,
            edition: book.edition,
        })
    }

    fn book(&self) -> Arc<Book> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Partners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Partners")
    }
}

/// Whose certificate was shown.
pub(super) struct Recognised {
    pub(super) fingerprint: Fingerprint,
    /// One or more.
    pub(super) partners: Vec<Arc<str>>,
    /// Of the partners that were looked through.
    pub(super) edition: u64,
}

/// The partners, as a handshake looks for them.
struct Book {
    edition: u64,
    pinned: HashMap<Fingerprint, Vec<Arc<str>>>,
    named: Vec<(Arc<str>, Authority)>,
    at: HashMap<IpAddr, usize>,
}

impl Book {
    fn new(partners: Vec<Partner>, edition: u64) -> Self {
        let mut book = Self {
            edition,
            pinned: HashMap::new(),
            named: Vec::new(),
            at: HashMap::new(),
        };
        for partner in partners {
            for address in partner.addresses {
                *book.at.entry(address.to_canonical()).or_default() += 1;
            }
            match partner.trust {
                Trust::Pinned(key) => book.pinned.entry(key).or_default().push(partner.name),
                Trust::Authority(authority) => book.named.push((partner.name, authority)),
            }
        }
        book
    }

    fn identify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        seen: Fingerprint,
        now: UnixTime,
    ) -> Result<Vec<Arc<str>>, Error> {
        if let Some(names) = self.pinned.get(&seen) {
            check_validity(certificate, now)?;
            return Ok(names.clone());
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        let mut names = Vec::new();
        let mut refused = other(Stranger(seen));
        // The name first: it costs no signature.
        for (name, authority) in &self.named {
            if verify_server_name(&parsed, &authority.name).is_err() {
                continue;
            }
            match authority
                .clients
                .verify_client_cert(certificate, intermediates, now)
            {
                Ok(_) => names.push(Arc::clone(name)),
                Err(error) => refused = error,
            }
        }
        if names.is_empty() {
            Err(refused)
        } else {
            Ok(names)
        }
    }
}

impl ClientCertVerifier for Partners {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let seen = fingerprint(end_entity)?;
        self.book().identify(end_entity, intermediates, seen, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::SupportedVersionsExtensionRequired.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The one at the other end of a call that we make.
#[derive(Debug)]
pub(super) struct FarEnd {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl FarEnd {
    pub(super) fn new(trust: Trust) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { trust, algorithms }
    }
}

impl ServerCertVerifier for FarEnd {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            &Trust::Pinned(expected) => {
                let seen = fingerprint(end_entity)?;
                if seen != expected {
                    return Err(other(WrongKey { expected, seen }));
                }
                check_validity(end_entity, now)?;
            }
            Trust::Authority(authority) => {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    &authority.roots,
                    intermediates,
                    now,
                    self.algorithms.all,
                )?;
                verify_server_name(&parsed, &authority.name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::SupportedVersionsExtensionRequired.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A key that is not the pinned one.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the certificate has the fingerprint {seen}, expected is {expected}")]
pub(super) struct WrongKey {
    pub(super) expected: Fingerprint,
    pub(super) seen: Fingerprint,
}

/// A certificate that no partner has.
#[derive(Debug, thiserror::Error)]
#[error("no peer has the certificate with the fingerprint {0}")]
struct Stranger(Fingerprint);

fn other(error: impl StdError + Send + Sync + 'static) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// The error as [`WrongKey`], if it is one.
pub(super) fn wrong_key(error: &Error) -> Option<WrongKey> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref().copied()
        }
        _ => None,
    }
}

/// What is wrong, in words.
pub(crate) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::Other(OtherError(inner)) => inner.to_string(),
            CertificateError::ExpiredContext { not_after, .. } => {
                format!("the certificate expired on {}", day(*not_after))
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                format!("the certificate is not valid before {}", day(*not_before))
            }
            CertificateError::UnknownIssuer => {
                "the certificate is not of the configured authority".to_owned()
            }
            reason => format!("the certificate is refused: {reason}"),
        },
        Error::NoCertificatesPresented => "no certificate was presented".to_owned(),
        error => error.to_string(),
    }
}

/// The day as `2026-11-21`, in UTC.
fn day(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok())
        .map_or_else(
            || format!("second {}", time.as_secs()),
            |time| time.to_datetime().date().to_string(),
        )
}

pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Result<Fingerprint, Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    Ok(Fingerprint::of_public_key(
        &parsed.subject_public_key_info(),
    ))
}

/// A pinned certificate ends when it says so, like any other.
fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let validity = parsed.validity();
    let (not_before, not_after) = (unix(validity.not_before), unix(validity.not_after));
    if now > not_after {
        return Err(CertificateError::ExpiredContext {
            time: now,
            not_after,
        }
        .into());
    }
    if now < not_before {
        return Err(CertificateError::NotValidYetContext {
            time: now,
            not_before,
        }
        .into());
    }
    Ok(())
}

/// Times before 1970 become 1970.
fn unix(time: ASN1Time) -> UnixTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}
