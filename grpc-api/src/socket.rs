//! The Unix socket of the API: made with mode 0600, opened to groups that have a role, never stolen
//! from a living sidecar.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::TcpError;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A living process listens there.
    #[error("another ao-sidecar is serving on {}: stop it, or give this one an --api-socket of \
             its own", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something other than a socket has the name.
    #[error("{} exists and is no socket: remove it, or give another --api-socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot serve the API on {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be served over TCP.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// It cannot be described to its callers.
    #[error("the API cannot be described: {0}")]
    Description(#[from] tonic_reflection::server::Error),
}

/// A listening socket, not yet served. Its file goes away with it.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file, so that a successor's is never removed.
    identity: (u64, u64),
}

impl ApiSocket {
    /// Listens on `path` with mode 0600. A missing folder is made with mode 0755; the socket of a
    /// sidecar that died is replaced.
    ///
    /// # Errors
    /// When somebody listens there, when the name is taken by something else, or when the system
    /// refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(failed)?;
        // Two sidecars started at once must not both find the same stale socket.
        let folder = File::open(folder).map_err(failed)?;
        let _lock = Flock::lock(folder, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed(errno.into()))?;
        check_free(path)?;

        // The socket gets its name only after its mode, so that it is never open to others.
        let unnamed = path.with_extension(format!("{}.new", std::process::id()));
        let made = bind_private(&unnamed).and_then(|made| {
            fs::rename(&unnamed, path)?;
            Ok(made)
        });
        match made {
            Ok((listener, identity)) => Ok(Self {
                listener,
                path: path.to_owned(),
                identity,
            }),
            Err(error) => {
                // Nothing may be there to remove; the first error is the one to tell.
                let _ = fs::remove_file(&unnamed);
                Err(failed(error))
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener for the running tokio runtime.
    pub(crate) fn listener(&self) -> Result<tokio::net::UnixListener, SocketError> {
        self.listener
            .try_clone()
            .and_then(tokio::net::UnixListener::from_std)
            .map_err(|source| SocketError::Io {
                path: self.path.clone(),
                source,
            })
    }

    /// Lets members of `groups` connect, besides root and our own user: by the group of the file
    /// when it is one, otherwise by letting everybody connect. Who has a role decides who is
    /// answered, in any case.
    pub(crate) fn open_to(&self, groups: &BTreeSet<u32>) -> io::Result<()> {
        let mut groups = groups.iter();
        let mode = match (groups.next(), groups.next()) {
            (None, _) => 0o600,
            (Some(&group), None) => match std::os::unix::fs::chown(&self.path, None, Some(group)) {
                Ok(()) => 0o660,
                // Neither root nor in the group: a service with few capabilities.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => 0o666,
                Err(error) => return Err(error),
            },
            (Some(_), Some(_)) => 0o666,
        };
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // A socket that cannot be removed is stale, and replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Checks that `path` is absent or a socket that nobody listens on.
fn check_free(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

fn bind_private(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok((listener, identity(path)?))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_private_and_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/ao/api.sock");
        let socket = ApiSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "leftovers"
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn the_socket_is_open_to_groups_with_a_role() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let socket = ApiSocket::bind(&path).unwrap();
        let own = nix::unistd::getegid().as_raw();
        let opened = |groups: &[u32]| {
            socket.open_to(&groups.iter().copied().collect()).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            (metadata.mode() & 0o7777, metadata.gid())
        };
        assert_eq!(opened(&[own]), (0o660, own));
        assert_eq!(opened(&[own, own + 1]).0, 0o666);
        assert_eq!(opened(&[]).0, 0o600);
    }

    #[test]
    fn a_living_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let living = ApiSocket::bind(&path).unwrap();
        let error = ApiSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with("another ao-sidecar is serving on "),
            "{error}"
        );
        assert!(UnixStream::connect(living.path()).is_ok());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(
            path.exists(),
            "std leaves the file behind, as a killed process does"
        );
        let socket = ApiSocket::bind(&path).unwrap();
        assert!(UnixStream::connect(socket.path()).is_ok());
    }

    #[test]
    fn the_socket_of_a_successor_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let first = ApiSocket::bind(&path).unwrap();
        // Kept under a second name, so that its inode number is not given to the successor.
        fs::rename(&path, folder.path().join("old.sock")).unwrap();
        let successor = ApiSocket::bind(&path).unwrap();
        drop(first);
        assert!(UnixStream::connect(successor.path()).is_ok());
    }

    #[test]
    fn a_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        fs::write(&path, "precious").unwrap();
        let error = ApiSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
