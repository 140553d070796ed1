//! The keys of automatic peers on disk: one transactional file, in which every secret can be
//! destroyed for good.
//!
//! Each secret is sealed under a random key of its own, that key is sealed with the sealing key
//! and kept in the secret's *slot*. Records of peers are sealed as well, and everything is bound
//! to its place: a row that was edited, exchanged or taken from another store is noticed. That
//! the whole file was replaced by an earlier copy of itself is not noticed; the far end notices,
//! because it is ahead then.
//!
//! # Destruction
//! The file is copy-on-write, so what a transaction removes stays in unused pages. Therefore a
//! change that destroys a secret writes the file anew, from what lives: the new file gets the
//! store's name in one step, the former one is overwritten with zeros and then removed. A crash
//! before that step leaves the store as it was, a crash after it is completed at the next
//! opening. A file system that copies on write, a snapshot, a flash device or a backup may keep
//! what was overwritten; whoever gets hold of that needs the sealing key, too.
//!
//! # Opening
//! The file is read and checked as a whole, in memory, before anything is written: a file that is
//! not ours or not in order stays as it is. Then it is written anew.

mod database;
mod disk;
mod error;
mod sealing;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::InMemoryBackend;
use redb::{Database, StorageBackend};

use self::database::{Changes, FORMAT, Owner, Rows};
use self::disk::{Disk, Folder};
pub use self::error::StoreError;
pub use self::sealing::{CREDENTIAL, SealingKey, SealingKeyError};
use crate::private_file;
use crate::rollover::message::Instance;
use crate::secret::{Secret, SecretName};

/// Name of the store in the state folder.
pub const FILE_NAME: &str = "keys.redb";
/// Name of the store of what operators made by API, sealed with the same key.
pub const CHANGES_FILE_NAME: &str = "changes.redb";

/// What a database of redb begins with.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// Memory for pages of the file.
const CACHE: usize = 1 << 20;

/// A file beyond this is none of ours: ten thousand peers need a tenth of it.
const MAX_FILE: u64 = 1 << 28;

/// Octets that are read or overwritten at once.
const CHUNK: usize = 1 << 16;

/// A peer as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub peer: String,
    /// What the caller said about it; authenticated and confidential, but kept in plain memory.
    pub meta: Vec<u8>,
    /// Its secrets, by ascending name.
    pub secrets: Vec<(SecretName, Secret)>,
}

/// A peer as it is to be stored.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its name.
    pub peer: &'a str,
    /// Whatever the caller wants to read again.
    pub meta: &'a [u8],
    /// All secrets that it is to have. A name given twice has the last value.
    pub secrets: Vec<(SecretName, &'a Secret)>,
}

/// The open store, which no other process can have open. Calls block on the disk.
pub struct Store {
    files: Files,
    rows: Rows,
    /// None after a failure: what is on disk must be read again.
    database: Option<Database>,
}

impl Store {
    /// Opens the store `path`, and makes it when it is absent. Its folder must exist.
    ///
    /// # Errors
    /// When it is not in order, not ours, sealed with another key, accessible to others, or in
    /// use; then it is left as it is. When the disk fails; then it is as before.
    pub fn open(path: &Path, sealing_key: &SealingKey) -> Result<Self, StoreError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| StoreError::NotRegular {
            path: path.to_owned(),
        })?;
        let folder = Folder::open(private_file::folder_of(path), name)?;
        Self::open_on(Box::new(folder), name, sealing_key)
    }

    fn open_on(disk: Box<dyn Disk>, name: &str, key: &SealingKey) -> Result<Self, StoreError> {
        let mut files = Files::new(disk, name);
        let present = match files.disk.open(name)? {
            Some(file) => Some(checked(&files.path, &*file, key)?),
            None => None,
        };
        files.finish()?;
        let (rows, present) = match present {
            Some((rows, copy)) => (rows, Some(copy)),
            None => (Rows::new(fresh_instance(&files.path)?, key), None),
        };
        let database = files.rewrite(&rows, present.as_ref(), &Changes::default())?;
        drop(present);
        files.finish()?;
        Ok(Self {
            files,
            rows,
            database: Some(database),
        })
    }

    /// Names this store: a store that is made anew has another one.
    #[must_use]
    pub fn instance(&self) -> Instance {
        self.rows.instance
    }

    /// All peers, by name.
    ///
    /// # Errors
    /// When the disk fails, or somebody else has written to the file.
    pub fn load(&mut self) -> Result<Vec<Stored>, StoreError> {
        let database = self.files.reopened(self.database.take())?;
        let loaded = self.rows.read(&database);
        let loaded = loaded.map_err(|error| self.files.failed(error))?;
        self.database = Some(database);
        Ok(loaded)
    }

    /// Makes the peers be as their entries say, all of them in one step; other peers stay.
    ///
    /// When it returns, all of it is on disk, and secrets that are no longer named (or have
    /// another value) are destroyed: neither the file nor the sealing key brings them back. That
    /// takes a rewrite of the file, so saving many peers at once is worth it.
    ///
    /// # Errors
    /// When the disk is full or read-only; then nothing has changed. After another failure of the
    /// disk the entries may have been stored, or not; none of them by half. Either way the store
    /// can be used further, and saving the same again completes it.
    pub fn save(&mut self, entries: &[Entry<'_>]) -> Result<(), StoreError> {
        self.update(entries, &[])
    }

    /// Takes a peer away and destroys its secrets. A peer that is not there is gone already.
    ///
    /// # Errors
    /// As for [`Self::save`].
    pub fn remove(&mut self, peer: &str) -> Result<(), StoreError> {
        self.update(&[], &[peer])
    }

    /// [`Self::save`] and [`Self::remove`] of several peers in one step. A peer that is in both
    /// is saved.
    ///
    /// # Errors
    /// As for [`Self::save`].
    pub fn update(&mut self, entries: &[Entry<'_>], gone: &[&str]) -> Result<(), StoreError> {
        let gone = gone.iter().map(|peer| (*peer, None));
        let saved = entries.iter().map(|entry| (entry.peer, Some(entry)));
        self.change(&gone.chain(saved).collect())
    }

    fn change(&mut self, wanted: &BTreeMap<&str, Option<&Entry<'_>>>) -> Result<(), StoreError> {
        self.files.finish()?;
        let database = self.files.reopened(self.database.take())?;
        let changes = self.rows.changes(&database, wanted);
        let changes = changes.map_err(|error| self.files.failed(error))?;
        let database = if changes.destroy {
            let fresh = self.files.rewrite(&self.rows, Some(&database), &changes)?;
            drop(database);
            fresh
        } else {
            if !changes.is_empty() {
                let committed = self.rows.commit(&database, &changes);
                committed.map_err(|error| self.files.failed(error))?;
            }
            database
        };
        self.files.finish()?;
        self.database = Some(database);
        Ok(())
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.files.path.display())
    }
}

/// The store's file, and those that are there while it is written anew.
struct Files {
    disk: Box<dyn Disk>,
    path: PathBuf,
    name: String,
    /// The coming file, until it is complete.
    next: String,
    /// The former file, until it is destroyed.
    outdated: String,
    /// Whether one of these two may be there.
    unfinished: bool,
}

impl Files {
    fn new(disk: Box<dyn Disk>, name: &str) -> Self {
        Self {
            path: disk.path(name),
            disk,
            name: name.to_owned(),
            next: format!("{name}.next"),
            outdated: format!("{name}.outdated"),
            unfinished: true,
        }
    }

    /// The database, opened again if need be.
    fn reopened(&self, database: Option<Database>) -> Result<Database, StoreError> {
        if let Some(database) = database {
            return Ok(database);
        }
        let file = self.disk.open(&self.name)?;
        let file =
            file.ok_or_else(|| StoreError::io(&self.path, std::io::ErrorKind::NotFound.into()))?;
        connect(file).map_err(|error| self.failed(error))
    }

    /// Replaces the file by one that has what `present` has after the changes. What goes is gone
    /// once [`Self::finish`] has returned, and `present` must be closed before that.
    fn rewrite(
        &mut self,
        rows: &Rows,
        present: Option<&Database>,
        changes: &Changes,
    ) -> Result<Database, StoreError> {
        self.unfinished = true;
        let file = self.disk.create(&self.next)?;
        // Its name comes first: what is in a file without a name could not be overwritten.
        self.disk.sync()?;
        let database = connect(file).map_err(|error| self.failed(error))?;
        let filled = rows.fill(&database, present, changes);
        filled.map_err(|error| self.failed(error))?;
        if present.is_some() {
            // For the same reason the former file gets a second name before it loses the first.
            self.disk.link(&self.name, &self.outdated)?;
            self.disk.sync()?;
        }
        self.disk.rename(&self.next, &self.name)?;
        Ok(database)
    }

    /// Completes what a rewrite, in this process or a former one, has left to do.
    fn finish(&mut self) -> Result<(), StoreError> {
        if !self.unfinished {
            return Ok(());
        }
        // A name that could still go back to the former file must not find it empty.
        self.disk.sync()?;
        for name in [&self.next, &self.outdated] {
            let Some(file) = self.disk.open(name)? else {
                continue;
            };
            // The crash may have come between its second name and the loss of its first.
            if !self.disk.same(name, &self.name)? {
                let overwritten = overwrite(&*file);
                overwritten.map_err(|error| StoreError::io(&self.disk.path(name), error))?;
            }
            drop(file);
            self.disk.remove(name)?;
        }
        self.disk.sync()?;
        self.unfinished = false;
        Ok(())
    }

    fn failed(&self, error: redb::Error) -> StoreError {
        StoreError::database(&self.path, error)
    }
}

/// A copy of the file in memory, which is in order and which `key` opens.
fn checked(
    path: &Path,
    file: &dyn StorageBackend,
    key: &SealingKey,
) -> Result<(Rows, Database), StoreError> {
    let foreign = || StoreError::Foreign {
        path: path.to_owned(),
    };
    let copy = copied(file).map_err(|error| StoreError::io(path, error))?;
    let copy = copy.ok_or_else(foreign)?;
    // On some damage redb panics, at the latest when it closes a database. What it panics about is
    // a copy, and does not leave the closure.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = connect(Box::new(copy))?;
        let owner = database::owner(&database, key)?;
        let Owner::Us(instance) = owner else {
            return Ok((owner, None));
        };
        let rows = Rows::new(instance, key);
        rows.read(&database)?;
        let sound = connect(Box::new(InMemoryBackend::new()))?;
        rows.fill(&sound, Some(&database), &Changes::default())?;
        Ok((owner, Some((rows, sound))))
    }));
    let opened =
        opened.map_err(|_| StoreError::corrupt(path, "its pages contradict each other"))?;
    match opened.map_err(|error| StoreError::database(path, error))? {
        (_, Some(present)) => Ok(present),
        (Owner::Version(found), None) => Err(StoreError::Version {
            path: path.to_owned(),
            found,
            supported: FORMAT,
        }),
        (Owner::OtherKey, None) => Err(StoreError::WrongKey {
            path: path.to_owned(),
            key: key.path().to_owned(),
        }),
        (Owner::Us(_) | Owner::Stranger, None) => Err(foreign()),
    }
}

/// What is in the file, in memory; `None` if that is no database.
fn copied(file: &dyn StorageBackend) -> std::io::Result<Option<InMemoryBackend>> {
    let len = file.len()?;
    if len < MAGIC.len() as u64 || len > MAX_FILE {
        return Ok(None);
    }
    let copy = InMemoryBackend::new();
    copy.set_len(len)?;
    let mut chunk = vec![0; CHUNK];
    for (offset, part) in chunks(len) {
        let chunk = &mut chunk[..part];
        file.read(offset, chunk)?;
        if offset == 0 && !chunk.starts_with(MAGIC) {
            return Ok(None);
        }
        copy.write(offset, chunk)?;
    }
    Ok(Some(copy))
}

/// Overwrites a whole file with zeros, and waits until they are on disk.
fn overwrite(file: &dyn StorageBackend) -> std::io::Result<()> {
    let zeros = vec![0; CHUNK];
    for (offset, part) in chunks(file.len()?) {
        file.write(offset, &zeros[..part])?;
    }
    file.sync_data()
}

/// Offsets and lengths that cover `len` octets, none longer than [`CHUNK`].
fn chunks(len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len).step_by(CHUNK).map(move |offset| {
        let part = usize::try_from(len - offset).unwrap_or(CHUNK).min(CHUNK);
        (offset, part)
    })
}

fn connect(file: Box<dyn StorageBackend>) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    Ok(builder.create_with_backend(Connected(file))?)
}

fn fresh_instance(path: &Path) -> Result<Instance, StoreError> {
    let mut octets = [0; 16];
    getrandom::fill(&mut octets).map_err(|error| StoreError::io(path, error.into()))?;
    Ok(Instance(octets))
}

/// A backend behind a pointer, which redb does not take. Locks are left to [`Folder`].
#[derive(Debug)]
struct Connected(Box<dyn StorageBackend>);

impl StorageBackend for Connected {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> std::io::Result<()> {
        self.0.close()
    }
}

#[cfg(test)]
mod tests;
