//! TLS on the operator's side: version 1.3, a certificate of one authority at either end.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use zeroize::{Zeroize, Zeroizing};

use crate::peer::{HTTP2, PeerIdentity, explain, provider};

/// Octets of a file that are read at most.
const MAX_FILE: u64 = 1 << 20;

/// The files that TLS needs, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Our certificate, followed by those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key. Nobody but its owner may have a permission on the file.
    pub key: PathBuf,
    /// The authorities whose certificates the far end may have.
    pub ca: PathBuf,
}

/// Why the files that TLS needs cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{} {reason}", file.display())]
pub struct TlsError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it. Never has a part of it.
    pub reason: String,
}

/// A certificate with its key, and whom it trusts.
struct Material {
    identity: PeerIdentity,
    authorities: Arc<RootCertStore>,
}

impl TlsFiles {
    fn load(&self) -> Result<Material, TlsError> {
        let chain = certificates(&self.certificate)?;
        let mut key = private_key(&self.key)?;
        let identity = PeerIdentity::new(chain, key.secret_der());
        key.zeroize();
        let identity = identity.map_err(|error| TlsError {
            file: self.certificate.clone(),
            reason: format!(
                "with the key {} cannot be used: {error}",
                self.key.display()
            ),
        })?;
        let mut authorities = RootCertStore::empty();
        for authority in certificates(&self.ca)? {
            authorities
                .add(CertificateDer::from(authority))
                .map_err(|error| unusable(&self.ca, &explain(&error)))?;
        }
        Ok(Material {
            identity,
            authorities: Arc::new(authorities),
        })
    }

    /// For a server that asks its clients for certificates.
    pub(crate) fn server(&self) -> Result<ServerConfig, TlsError> {
        let material = self.load()?;
        let provider = Arc::new(provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(material.authorities, provider.clone())
                .build()
                .map_err(|error| unusable(&self.ca, &error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(&self.certificate, &error.to_string()))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(material.identity.resolver());
        config.alpn_protocols = vec![HTTP2.to_vec()];
        // Every connection shows its certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For a client with a certificate.
    pub(crate) fn client(&self) -> Result<ClientConfig, TlsError> {
        let material = self.load()?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(&self.certificate, &error.to_string()))?
            .with_root_certificates(material.authorities)
            .with_client_cert_resolver(material.identity.resolver());
        config.alpn_protocols = vec![HTTP2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// The names of a certificate: dNSName of the subject's alternative names.
pub(crate) fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect()
}

fn certificates(file: &Path) -> Result<Vec<Vec<u8>>, TlsError> {
    let text = read(file, false)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text)
        .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
        .collect();
    let certificates = certificates
        .map_err(|_| refused(file, "is not PEM: write certificates as openssl x509 does"))?;
    if certificates.is_empty() {
        return Err(refused(file, "has no certificate in it"));
    }
    Ok(certificates)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(file, true)?;
    // The error may have a part of the file.
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| refused(file, "has no private key in it that can be read"))
}

/// Reads a whole file; with `private` one that nobody but its owner may read.
fn read(file: &Path, private: bool) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let cannot = |error: io::Error| refused(file, &format!("cannot be read: {error}"));
    // Without O_NONBLOCK a pipe would hang the start for ever.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(file)
        .map_err(cannot)?;
    let metadata = opened.metadata().map_err(cannot)?;
    if !metadata.is_file() {
        return Err(refused(file, "is not a regular file"));
    }
    let mode = metadata.mode() & 0o7777;
    if private && mode & 0o077 != 0 {
        let reason = format!("may be read by others (mode {mode:04o}): chmod 600 it");
        return Err(refused(file, &reason));
    }
    if metadata.len() > MAX_FILE {
        return Err(refused(file, "is too large"));
    }
    // Room for all of it from the start: a vector that grows leaves copies behind.
    let length = usize::try_from(metadata.len()).unwrap_or(0);
    let mut text = Zeroizing::new(Vec::with_capacity(length + 1));
    let read = opened.take(MAX_FILE).read_to_end(&mut text);
    read.map_err(cannot)?;
    Ok(text)
}

fn refused(file: &Path, reason: &str) -> TlsError {
    TlsError {
        file: file.to_owned(),
        reason: reason.to_owned(),
    }
}

fn unusable(file: &Path, reason: &str) -> TlsError {
    refused(file, &format!("cannot be used: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::test_support::Pki;

    #[test]
    fn good_files_make_both_ends() {
        let pki = Pki::new();
        let files = pki.issue(&["api.example"]);
        files.server().unwrap();
        files.client().unwrap();
    }

    #[test]
    fn bad_files_are_refused_with_their_names() {
        let pki = Pki::new();
        let good = pki.issue(&["api.example"]);
        let other = pki.issue(&["other.example"]);
        let bad = pki.folder().join("bad.pem");
        let refusal = |files: &TlsFiles| {
            let error = files.server().unwrap_err().to_string();
            let folder = format!("{}/", pki.folder().display());
            error.replace(&folder, "")
        };
        let with = |change: &dyn Fn(&mut TlsFiles)| {
            let mut files = good.clone();
            change(&mut files);
            refusal(&files)
        };
        assert_eq!(
            with(&|files| files.ca = bad.clone()),
            "bad.pem cannot be read: No such file or directory (os error 2)"
        );
        fs::write(&bad, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
        fs::set_permissions(&bad, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(
            with(&|files| files.ca = bad.clone()),
            "bad.pem is not PEM: write certificates as openssl x509 does"
        );
        assert_eq!(
            with(&|files| files.key = bad.clone()),
            "bad.pem has no private key in it that can be read"
        );
        assert_eq!(
            with(&|files| files.key = good.certificate.clone()),
            "api.example.crt may be read by others (mode 0644): chmod 600 it"
        );
        fs::write(&bad, "").unwrap();
        assert_eq!(
            with(&|files| files.certificate = bad.clone()),
            "bad.pem has no certificate in it"
        );
        assert_eq!(
            with(&|files| files.key = other.key.clone()),
            "api.example.crt with the key other.example.key cannot be used: the private key does \
             not belong to the certificate"
        );
        assert_eq!(
            with(&|files| files.ca = "/dev/null".into()),
            "/dev/null is not a regular file"
        );
    }

    #[test]
    fn names_are_read_from_certificates() {
        let pki = Pki::new();
        let files = pki.issue(&["ann.example", "spare.example"]);
        let certificate = certificates(&files.certificate).unwrap().swap_remove(0);
        let names = dns_names(&CertificateDer::from(certificate));
        assert_eq!(names, ["ann.example", "spare.example"]);
        assert!(dns_names(&CertificateDer::from(vec![1, 2, 3])).is_empty());
    }
}
