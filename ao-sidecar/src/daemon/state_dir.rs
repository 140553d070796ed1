//! The state folder: private, and used by one daemon at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Holds the process id of the daemon that has it locked.
const LOCK_FILE: &str = "lock";

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another daemon has it.
    #[error("another ao-sidecar ({holder}) uses {}: stop it, or give this one a --state-dir of \
             its own", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// What the lock file says about the other one.
        holder: String,
    },
    /// Others could plant state in it.
    #[error("state folder {} is writable by others: chmod 700 {}", path.display(), path.display())]
    Exposed {
        /// The folder.
        path: PathBuf,
    },
    /// The system refused.
    #[error("state folder {} cannot be used: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A state folder that is ours as long as this value lives, and no longer than the process.
#[derive(Debug)]
pub(super) struct StateDir {
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the folder with mode 0700 if it is missing, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, StateDirError> {
        make_state_dir(path)?;
        let failed = |source| StateDirError::Io {
            path: path.to_owned(),
            source,
        };
        // The file stays for ever: removing it would let two daemons lock different files.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                write_pid(&mut lock).map_err(failed)?;
                Ok(Self { _lock: lock })
            }
            Err((file, Errno::EWOULDBLOCK)) => Err(StateDirError::InUse {
                path: path.to_owned(),
                holder: holder(file),
            }),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

/// Makes the folder with mode 0700 if it is missing.
///
/// # Errors
/// When it cannot be made, or others may write to it.
pub fn make_state_dir(path: &Path) -> Result<(), StateDirError> {
    let failed = |source| StateDirError::Io {
        path: path.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    if fs::metadata(path).map_err(failed)?.mode() & 0o022 != 0 {
        return Err(StateDirError::Exposed {
            path: path.to_owned(),
        });
    }
    Ok(())
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: File) -> String {
    let mut text = String::new();
    match file
        .take(16)
        .read_to_string(&mut text)
        .map(|_| text.trim().parse::<u32>())
    {
        Ok(Ok(pid)) => format!("process {pid}"),
        _ => "process unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_is_made_private_and_locked_once() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let held = StateDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        let error = StateDir::open(&path).unwrap_err().to_string();
        let holder = format!("another ao-sidecar (process {}) uses ", std::process::id());
        assert!(error.starts_with(&holder), "{error}");
        drop(held);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_folder_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let error = StateDir::open(folder.path()).unwrap_err();
        assert!(matches!(error, StateDirError::Exposed { .. }), "{error}");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        StateDir::open(folder.path()).unwrap();
    }

    #[test]
    fn a_file_in_the_folders_place_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(&path, "").unwrap();
        assert!(matches!(
            StateDir::open(&path),
            Err(StateDirError::Io { .. })
        ));
    }
}
