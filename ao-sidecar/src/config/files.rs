//! The files that a configuration names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use ao_engine::crypto::MasterKey;
use keymgr::secret_file::{self, SecretFileError};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::section::Section;

/// Certificates in DER.
pub(crate) type Certificates = Arc<Vec<Vec<u8>>>;

/// Looks at files, once at each: what was found is remembered with the configuration. A change by
/// API does not look again, so it takes over nothing that was edited since, and needs no file.
pub(crate) struct Files {
    /// What names are relative to.
    folder: PathBuf,
    /// If set, no other file is looked at.
    only: Option<BTreeSet<PathBuf>>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Default)]
struct Seen {
    secrets: BTreeMap<PathBuf, Arc<MasterKey>>,
    regular: BTreeSet<PathBuf>,
    certificates: BTreeMap<PathBuf, Certificates>,
}

impl Files {
    /// Those that the configuration in `file` names; none is looked at yet.
    pub(super) fn of(file: &Path) -> Self {
        Self {
            folder: file.parent().unwrap_or(Path::new("")).to_owned(),
            only: None,
            seen: Mutex::default(),
        }
    }

    /// The same, with what is known of them.
    pub(super) fn remembered(&self) -> Self {
        Self {
            folder: self.folder.clone(),
            only: self.only.clone(),
            seen: Mutex::new(self.seen().clone()),
        }
    }

    /// The same, to be looked at again, and no others: whoever writes a text may not ask about
    /// any file of the system by naming it.
    pub(super) fn no_others(&self) -> Self {
        let seen = self.seen();
        let named = seen.secrets.keys().chain(&seen.regular);
        Self {
            folder: self.folder.clone(),
            only: Some(named.cloned().collect()),
            seen: Mutex::default(),
        }
    }

    /// The file with this name.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether `path`, the value of `key`, may be looked at. A warning tells if not.
    pub(super) fn may_look(&self, path: &Path, section: &Section<'_, '_>, key: &str) -> bool {
        let may = self.only.as_ref().is_none_or(|only| only.contains(path));
        if !may {
            section.place_of(key).warn(format!(
                "`{key}`: {} is not looked at, for the running configuration does not name it",
                path.display()
            ));
        }
        may
    }

    /// The secret in a file.
    pub(super) fn secret(&self, path: &Path) -> Result<Arc<MasterKey>, SecretFileError> {
        if let Some(secret) = self.seen().secrets.get(path) {
            return Ok(Arc::clone(secret));
        }
        let secret = Arc::new(secret_file::read(path)?);
        let kept = Arc::clone(&secret);
        self.seen().secrets.insert(path.to_owned(), kept);
        Ok(secret)
    }

    /// Whether there is a regular file.
    pub(super) fn is_regular(&self, path: &Path) -> io::Result<bool> {
        if self.seen().regular.contains(path) {
            return Ok(true);
        }
        let regular = path.metadata()?.is_file();
        if regular {
            self.seen().regular.insert(path.to_owned());
        }
        Ok(regular)
    }

    /// The certificates in a PEM file.
    pub(crate) fn certificates(&self, path: &Path) -> io::Result<Certificates> {
        if let Some(certificates) = self.seen().certificates.get(path) {
            return Ok(Arc::clone(certificates));
        }
        let text = fs::read(path)?;
        let certificates: io::Result<Vec<_>> = CertificateDer::pem_slice_iter(&text)
            .map(|certificate| {
                let certificate = certificate.map_err(|e| io::Error::other(e.to_string()))?;
                Ok(certificate.to_vec())
            })
            .collect();
        let certificates = Arc::new(certificates?);
        let kept = Arc::clone(&certificates);
        self.seen().certificates.insert(path.to_owned(), kept);
        Ok(certificates)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Files in {}", self.folder.display())
    }
}
