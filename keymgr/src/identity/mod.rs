//! Who this sidecar is towards the sidecars at the far ends: a certificate and its key.
//!
//! Made once per state folder and self-signed, or the operator's own. Far ends know it by the
//! [`Fingerprint`] of its key, or trust the operator's authority.

mod fingerprint;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, date_time_ymd};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::{Zeroize, Zeroizing};

pub use self::fingerprint::{Fingerprint, FingerprintError, spki_fingerprint};
use crate::private_file;
use crate::secret_file::SecretFileError;

const KEY_FILE: &str = "identity.key";
const CERTIFICATE_FILE: &str = "identity.crt";

/// More than any key or chain of certificates has.
const MAX_FILE: u64 = 1 << 20;

/// Name in certificates that are made here. Nobody checks it: far ends pin the key.
const COMMON_NAME: &str = "ao-sidecar";

/// A certificate, those up to its authority, and the private key.
pub struct Identity {
    chain: Vec<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    fingerprint: Fingerprint,
    not_after: SystemTime,
}

/// Why there is no identity. The text is one line, names the file and ends with the way back.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is refused.
    #[error("{} {refusal}: it must be a file with mode 0600 of root or the sidecar's user", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        refusal: SecretFileError,
    },
    /// A file of the operator's is missing.
    #[error("{} is missing: put it there, or configure no certificate and have one made", path.display())]
    NotThere {
        /// The file.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{} holds no {what} in PEM form: {}", path.display(), WAY_BACK)]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The certificate is there without its key.
    #[error("{} is missing beside {}: {}", key.display(), certificate.display(), WAY_BACK)]
    KeyMissing {
        /// Where the key was expected.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// Key and certificate do not belong together.
    #[error("{} is not the key of {}: {}", key.display(), certificate.display(), WAY_BACK)]
    Mismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// A file cannot be made.
    #[error("{} cannot be made: {source}", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

const WAY_BACK: &str = "put the right file in its place, or move both files away to get a new \
                        identity, whose fingerprint all far ends must be given";

impl Identity {
    /// The identity in `identity.key` and `identity.crt` of the state folder, which must exist. An
    /// ECDSA P-256 key is made when there is none, and a certificate valid until 2130. A
    /// certificate that is missing beside a key is made again, with the same fingerprint.
    ///
    /// # Errors
    /// When a file may be accessed by others, cannot be read or made, or does not fit the other.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, IdentityError> {
        let files = Files {
            key: state_dir.join(KEY_FILE),
            certificate: state_dir.join(CERTIFICATE_FILE),
        };
        // Another process may be at making one.
        let _lock = private_file::lock_folder(state_dir).map_err(making(state_dir))?;
        let key = match (read(&files.key)?, read(&files.certificate)?) {
            (Some(key), Some(certificate)) => return files.identity(&key, &certificate),
            (Some(key), None) => files.parse_key(&key)?,
            (None, None) => files.make_key()?,
            (None, Some(_)) => return Err(files.key_missing()),
        };
        files.make_certificate(&key)?;
        files.load()
    }

    /// The operator's own identity: a chain of certificates, the sidecar's own first, and its key,
    /// both in PEM form. The certificates may be readable by others, the key may not.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, holds something else, or does not fit the other.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let files = Files {
            key: key.to_owned(),
            certificate: certificate.to_owned(),
        };
        files.load()
    }

    /// The sidecar's own certificate, and those that lead to its authority, in DER form.
    #[must_use]
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The private key in DER form: PKCS #8, PKCS #1 (RSA) or SEC 1 (elliptic curves).
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// What far ends know this sidecar by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// When the sidecar's own certificate expires.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.fingerprint)
    }
}

struct Files {
    key: PathBuf,
    certificate: PathBuf,
}

impl Files {
    fn load(&self) -> Result<Identity, IdentityError> {
        let not_there = |path: &Path| IdentityError::NotThere {
            path: path.to_owned(),
        };
        let certificate = read_public(&self.certificate)?;
        let certificate = certificate.ok_or_else(|| not_there(&self.certificate))?;
        let key = read(&self.key)?.ok_or_else(|| not_there(&self.key))?;
        self.identity(&key, &certificate)
    }

    fn identity(&self, key: &[u8], certificates: &[u8]) -> Result<Identity, IdentityError> {
        let malformed = || IdentityError::Malformed {
            path: self.certificate.clone(),
            what: "certificate",
        };
        let chain: Result<Vec<Vec<u8>>, _> = CertificateDer::pem_slice_iter(certificates)
            .map(|certificate| certificate.map(|der| der.to_vec()))
            .collect();
        let chain = chain.map_err(|_| malformed())?;
        let own = chain.first().ok_or_else(malformed)?;
        let (_, own) = X509Certificate::from_der(own).map_err(|_| malformed())?;
        let fingerprint = Fingerprint::of_public_key(own.public_key().raw);
        let not_after = system_time(own.validity().not_after.timestamp());
        if chain.iter().any(|der| spki_fingerprint(der).is_none()) {
            return Err(malformed());
        }
        let key = self.parse_key(key)?;
        if Fingerprint::of_public_key(&key.subject_public_key_info()) != fingerprint {
            return Err(IdentityError::Mismatch {
                key: self.key.clone(),
                certificate: self.certificate.clone(),
            });
        }
        Ok(Identity {
            key: Zeroizing::new(key.serialized_der().to_vec()),
            chain,
            fingerprint,
            not_after,
        })
    }

    fn parse_key(&self, pem: &[u8]) -> Result<Key, IdentityError> {
        let malformed = || IdentityError::Malformed {
            path: self.key.clone(),
            what: "private key that is supported (ECDSA, Ed25519, RSA)",
        };
        let mut der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| malformed())?;
        let key = KeyPair::try_from(&der).map(Key);
        der.zeroize();
        key.map_err(|_| malformed())
    }

    fn make_key(&self) -> Result<Key, IdentityError> {
        let key = KeyPair::generate().map(Key).map_err(failed(&self.key))?;
        let pem = Zeroizing::new(key.serialize_pem());
        private_file::make(&self.key, pem.as_bytes()).map_err(making(&self.key))?;
        Ok(key)
    }

    fn make_certificate(&self, key: &Key) -> Result<(), IdentityError> {
        let mut parameters = CertificateParams::default();
        // From the beginning of time: a host without a battery for its clock starts there.
        parameters.not_before = date_time_ymd(1970, 1, 1);
        parameters.not_after = date_time_ymd(2130, 1, 1);
        parameters.distinguished_name = DistinguishedName::new();
        parameters
            .distinguished_name
            .push(DnType::CommonName, COMMON_NAME);
        let certificate = parameters.self_signed(&key.0);
        let pem = certificate.map_err(failed(&self.certificate))?.pem();
        private_file::make(&self.certificate, pem.as_bytes()).map_err(making(&self.certificate))
    }

    fn key_missing(&self) -> IdentityError {
        IdentityError::KeyMissing {
            key: self.key.clone(),
            certificate: self.certificate.clone(),
        }
    }
}

/// A key pair whose private key is wiped when it goes.
struct Key(KeyPair);

impl std::ops::Deref for Key {
    type Target = KeyPair;

    fn deref(&self) -> &KeyPair {
        &self.0
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    private_file::read(path, MAX_FILE).map_err(refused(path))
}

/// A file that others may read.
fn read_public(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    let octets = private_file::open(path).and_then(|file| {
        file.map(|f| private_file::read_all(f, MAX_FILE))
            .transpose()
    });
    octets.map_err(SecretFileError::from).map_err(refused(path))
}

fn refused(path: &Path) -> impl FnOnce(SecretFileError) -> IdentityError {
    let path = path.to_owned();
    move |refusal| IdentityError::Refused { path, refusal }
}

fn making(path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Make { path, source }
}

fn failed(path: &Path) -> impl FnOnce(rcgen::Error) -> IdentityError {
    let making = making(path);
    move |error| making(io::Error::other(error))
}

/// The time that is so many seconds after 1970, or the nearest one that exists.
fn system_time(seconds: i64) -> SystemTime {
    let after = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    SystemTime::UNIX_EPOCH
        .checked_add(after)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
