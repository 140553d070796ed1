//! Why the store cannot be used, and the way back.

use std::io;
use std::path::{Path, PathBuf};

use super::CHANGES_FILE_NAME;
use crate::secret_file::SecretFileError;

/// What moving a store away leads to.
pub(super) fn afresh(store: &Path) -> &'static str {
    match of_changes(store) {
        true => "what was made by API is lost then, and its peers are not protected any more",
        false => {
            "automatic peers then agree on new keys, and are blocked until their far ends are \
             reached"
        }
    }
}

fn of_changes(store: &Path) -> bool {
    store.ends_with(CHANGES_FILE_NAME)
}

/// What stands still while there is no room.
fn until_there_is_room(store: &Path) -> &'static str {
    match of_changes(store) {
        true => "until then nothing can be changed by API",
        false => "until then no rollover goes on",
    }
}

/// Why the store cannot be used. The text is one line, names the files and ends with the way back.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its contents contradict each other, or somebody has edited them.
    #[error(
        "{} is damaged ({what}): put a backup in its place, or move it away and start again; {}",
        path.display(), afresh(path)
    )]
    Corrupt {
        /// The store.
        path: PathBuf,
        /// What was noticed.
        what: String,
    },
    /// It is something else.
    #[error(
        "{} is not a key store of ao-sidecar and stays as it is: move it away, or use another \
         state folder", path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Another version of ao-sidecar wrote it.
    #[error(
        "{} has format {found}, of {} ao-sidecar (this one reads {supported}): start that version, \
         or move the file away and start again; {}",
        path.display(), if found > supported { "a newer" } else { "an older" }, afresh(path)
    )]
    Version {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The only one that can be read.
        supported: u32,
    },
    /// It was sealed with another key.
    #[error(
        "{} was sealed with another key than the one in {}: put that key back, or move {} away and \
         start again; {}", path.display(), key.display(), path.display(), afresh(path)
    )]
    WrongKey {
        /// The store.
        path: PathBuf,
        /// Where the sealing key is from.
        key: PathBuf,
    },
    /// Others may access it.
    #[error(
        "{} can be accessed by others (mode {mode:04o}): chmod 600 {}", path.display(),
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "{} is owned by user {owner}, not by root or the user of this sidecar: chown it, or use \
         another state folder", path.display()
    )]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It is a symbolic link, a folder, a pipe or a device.
    #[error("{} is not a regular file: move it away, or use another state folder", path.display())]
    NotRegular {
        /// What is in its place.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error(
        "{} is in use by another ao-sidecar: stop that one, or use another state folder",
        path.display()
    )]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// The file system, or a quota, is full.
    #[error(
        "no room for {}, which stays as it was: make room on its file system; {}",
        path.display(), until_there_is_room(path)
    )]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Nothing can be written there.
    #[error(
        "{} cannot be written, its file system is read-only: mount it writable, or use another \
         state folder", path.display()
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{} cannot be used: {source}; start again when that is repaired", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            _ => Self::Io { path, source },
        }
    }

    pub(super) fn access(path: &Path, refusal: SecretFileError) -> Self {
        let path = path.to_owned();
        match refusal {
            SecretFileError::Exposed { mode } => Self::Exposed { path, mode },
            SecretFileError::ForeignOwner { owner } => Self::ForeignOwner { path, owner },
            SecretFileError::Io(source) => Self::io(&path, source),
            // Only contents can be empty or too long, and those were not asked for.
            SecretFileError::NotRegular | SecretFileError::Empty | SecretFileError::TooLong => {
                Self::NotRegular { path }
            }
        }
    }

    pub(super) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    pub(super) fn database(path: &Path, error: redb::Error) -> Self {
        match error {
            redb::Error::Io(source) => Self::io(path, source),
            redb::Error::PreviousIo => Self::io(path, io::Error::other("an earlier write failed")),
            redb::Error::DatabaseAlreadyOpen => Self::InUse {
                path: path.to_owned(),
            },
            other => Self::corrupt(path, other.to_string()),
        }
    }
}
