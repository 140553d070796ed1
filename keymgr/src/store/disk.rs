//! The few things that the store does with files.
//!
//! A trait, so that the tests can crash at each of them and lose what was not synced.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::error::StoreError;
use crate::secret_file;

/// A folder with files. Changes of names are durable after [`Disk::sync`], changes of contents
/// after [`StorageBackend::sync_data`].
pub(super) trait Disk: Debug + Send + Sync {
    /// Where a file is, for messages.
    fn path(&self, name: &str) -> PathBuf;
    /// Makes a private file that is not there yet.
    fn create(&self, name: &str) -> Result<Box<dyn StorageBackend>, StoreError>;
    /// Opens a private file for reading and writing; `None` if it is not there.
    fn open(&self, name: &str) -> Result<Option<Box<dyn StorageBackend>>, StoreError>;
    /// Whether two names are of one file. No file is the same as no other.
    fn same(&self, name: &str, other: &str) -> Result<bool, StoreError>;
    /// Gives a file a second name.
    fn link(&self, name: &str, second: &str) -> Result<(), StoreError>;
    /// Gives a file another name, and takes that from the file that has it.
    fn rename(&self, name: &str, other: &str) -> Result<(), StoreError>;
    /// Takes a name away.
    fn remove(&self, name: &str) -> Result<(), StoreError>;
    /// Makes all changes of names durable.
    fn sync(&self) -> Result<(), StoreError>;
}

/// A folder of the file system, locked against other processes' stores of the same name.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    handle: File,
    _lock: Flock<File>,
}

impl Folder {
    /// Opens a folder for the store `name` in it.
    pub(super) fn open(path: &Path, name: &str) -> Result<Self, StoreError> {
        let lock = path.join(format!("{name}.lock"));
        // The file stays for ever: removing it would let two processes lock different files.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&lock)
            .map_err(|error| StoreError::io(&lock, error))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => {
                let path = path.join(name);
                return Err(StoreError::InUse { path });
            }
            Err((_, errno)) => return Err(StoreError::io(&lock, errno.into())),
        };
        Ok(Self {
            path: path.to_owned(),
            handle: File::open(path).map_err(|error| StoreError::io(path, error))?,
            _lock: lock,
        })
    }

    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> StoreError {
        let path = self.path(name);
        move |error| StoreError::io(&path, error)
    }

    fn inode(&self, name: &str) -> Result<Option<(u64, u64)>, StoreError> {
        match fs::symlink_metadata(self.path(name)) {
            Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(name)(error)),
        }
    }

    fn backend(&self, name: &str, file: File) -> Result<Box<dyn StorageBackend>, StoreError> {
        let path = self.path(name);
        secret_file::check(&file.metadata().map_err(|e| StoreError::io(&path, e))?)
            .map_err(|refusal| StoreError::access(&path, refusal))?;
        let backend =
            FileBackend::new(file).map_err(|error| StoreError::database(&path, error.into()))?;
        Ok(Box::new(backend))
    }
}

impl Disk for Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn create(&self, name: &str) -> Result<Box<dyn StorageBackend>, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(name))
            .map_err(self.failed(name))?;
        self.backend(name, file)
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn StorageBackend>>, StoreError> {
        let path = self.path(name);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Said before the attempt to open it, which fails with the system's words.
            Ok(metadata) if !metadata.is_file() => return Err(StoreError::NotRegular { path }),
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(&path)
            .map_err(self.failed(name))?;
        self.backend(name, file).map(Some)
    }

    fn same(&self, name: &str, other: &str) -> Result<bool, StoreError> {
        let inode = self.inode(name)?;
        Ok(inode.is_some() && inode == self.inode(other)?)
    }

    fn link(&self, name: &str, second: &str) -> Result<(), StoreError> {
        fs::hard_link(self.path(name), self.path(second)).map_err(self.failed(second))
    }

    fn rename(&self, name: &str, other: &str) -> Result<(), StoreError> {
        fs::rename(self.path(name), self.path(other)).map_err(self.failed(other))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        fs::remove_file(self.path(name)).map_err(self.failed(name))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.handle
            .sync_all()
            .map_err(|error| StoreError::io(&self.path, error))
    }
}
