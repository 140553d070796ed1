//! What operators make by API: peers, key chains and keys that are kept beside the configuration
//! file, in `changes.redb` of the state folder. Secrets are sealed there, and a deleted one is
//! destroyed.

mod fit;
mod record;
mod stage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use grpc_api::operator::ControlError;
use grpc_api::operator::administration::Change;
use keymgr::store::{CHANGES_FILE_NAME, SealingKey, SealingKeyError, Store, StoreError};

pub use self::fit::{Fitting, LeftOut};
pub use self::stage::Staged;
use crate::config::{Config, ConfigError, Overlay, StatePlaces};

/// Most peers, key chains and keys that can be made by API, together.
pub const MOST_OBJECTS: usize = 4096;

/// Why what was made by API cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The sealing key is of no use.
    #[error(transparent)]
    Sealing(#[from] SealingKeyError),
    /// The store is of no use.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in the store is of no use.
    #[error(
        "{} has {name:?} in a form that this release cannot use ({what}): start the release that \
         made it, or move the file away and make anew what was made by API", store.display()
    )]
    Record {
        /// The store.
        store: PathBuf,
        /// What the store calls it.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The configuration cannot be put into words.
    #[error("{name:?} cannot be kept: {what}")]
    Unwritable {
        /// What the store would call it.
        name: String,
        /// What is wrong with it.
        what: String,
    },
}

/// What was made by API, on disk. Calls block on the disk; changes are made one at a time.
#[derive(Debug)]
pub struct Changes {
    path: PathBuf,
    sealing_key_file: Option<PathBuf>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    overlay: Overlay,
    /// Nothing before the first change.
    store: Option<Store>,
    /// By name of the row: its rank among all objects, by which they are put in order.
    ranks: HashMap<String, u64>,
}

impl Changes {
    /// Reads what is kept in `state_dir`. Nothing is made there before the first change. The
    /// sealing key is found as for agreed keys: in `sealing_key_file` if that is given.
    ///
    /// # Errors
    /// When there is a store that cannot be used; it is left as it is.
    pub fn open(state_dir: &Path, sealing_key_file: Option<&Path>) -> Result<Self, ChangesError> {
        let changes = Self {
            path: state_dir.join(CHANGES_FILE_NAME),
            sealing_key_file: sealing_key_file.map(Path::to_owned),
            kept: Mutex::default(),
        };
        if changes.path.symlink_metadata().is_ok() {
            let mut store = changes.open_store()?;
            let mut kept = changes.kept();
            for stored in store.load()? {
                kept.read(stored)
                    .map_err(|(name, what)| ChangesError::Record {
                        store: changes.path.clone(),
                        name,
                        what,
                    })?;
            }
            kept.order();
            kept.store = Some(store);
        }
        Ok(changes)
    }

    /// What is there.
    #[must_use]
    pub fn overlay(&self) -> Overlay {
        self.kept().overlay.clone()
    }

    /// What there would be after `change`. Nothing is kept; whether it is a correct configuration,
    /// together with the file, is for [`Config::with`] to tell.
    ///
    /// # Errors
    /// When what is to be made exists in `running`, what is to be changed does not or is the
    /// file's, or a value is wrong.
    pub fn stage(&self, change: Change, running: &Config) -> Result<Staged, ControlError> {
        stage::stage(&self.overlay(), change, running)
    }

    /// Keeps a change: when it returns, all of it is on disk, and what it deleted is destroyed.
    ///
    /// # Errors
    /// When the disk fails or is full; then everything is as before.
    pub fn keep(&self, staged: Staged) -> Result<(), ChangesError> {
        let Staged { row, overlay, .. } = staged;
        let mut kept = self.kept();
        let mut store = match kept.store.take() {
            Some(store) => store,
            None => self.open_store()?,
        };
        let saved = kept.save(&mut store, &row, &overlay);
        if saved.is_err() {
            // The disk may have it even so. It shall not come back with the next start; where the
            // disk refuses this, too, it has refused the change.
            let former = kept.overlay.clone();
            let _ = kept.save(&mut store, &row, &former);
        }
        kept.store = Some(store);
        saved?;
        kept.take_over(&row, &overlay);
        Ok(())
    }

    fn open_store(&self) -> Result<Store, ChangesError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let key = SealingKey::load(folder, self.sealing_key_file.as_deref())?;
        Ok(Store::open(&self.path, &key)?)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the configuration cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is wrong, or does not go together with what was made by API.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What was made by API cannot be read.
    #[error(transparent)]
    Changes(#[from] ChangesError),
}

/// The configuration as a daemon has it: `file`, and what was made by API. `state_dir` replaces
/// the file's.
///
/// # Errors
/// When either cannot be read, or they do not go together.
pub fn load(file: &Path, state_dir: Option<&Path>) -> Result<Config, LoadError> {
    let changes = open(file, state_dir)?;
    Ok(Config::load(file, &changes.overlay())?)
}

/// The configuration that a daemon starts with: [`load`], but where the two do not go together, what
/// was made by API stands back.
///
/// # Errors
/// When either cannot be read, or the file is wrong by itself.
pub fn load_to_start(
    file: &Path,
    state_dir: Option<&Path>,
) -> Result<(Fitting, Changes), LoadError> {
    let changes = open(file, state_dir)?;
    let mut fitting = fit::fit(file, changes.overlay())?;
    if let Some(folder) = state_dir {
        folder.clone_into(&mut fitting.config.state_dir);
    }
    Ok((fitting, changes))
}

fn open(file: &Path, state_dir: Option<&Path>) -> Result<Changes, LoadError> {
    let places = StatePlaces::read(file)?;
    let folder = state_dir.unwrap_or(&places.state_dir);
    Ok(Changes::open(folder, places.sealing_key_file.as_deref())?)
}

#[cfg(test)]
mod tests;
