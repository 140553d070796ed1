//! What operators make by API: peers, key chains and keys that are kept beside the configuration
//! file, in `changes.redb` of the state folder. Secrets are sealed there, and a deleted one is
//! destroyed.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use grpc_api::operator::ControlError;
use grpc_api::operator::administration::Change;
use keymgr::store::{SealingKey, SealingKeyError, Store, StoreError};

use crate::config::{Config, ConfigError, Overlay, StatePlaces};

/// Name of the store in the state folder.
pub const FILE_NAME: &str = "changes.redb";

/// Why what was made by API cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The sealing key is of no use.
    #[error(transparent)]
    Sealing(#[from] SealingKeyError),
    /// The store is of no use.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was made by API, on disk. Calls block on the disk; changes are made one at a time.
#[derive(Debug)]
pub struct Changes {
    state_dir: PathBuf,
    sealing_key_file: Option<PathBuf>,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    overlay: Overlay,
    store: Option<Store>,
}

/// A change that was checked against what is there, and is not kept yet.
#[derive(Clone, Debug)]
pub struct Staged {
    overlay: Overlay,
    former: Overlay,
}

impl Staged {
    /// What there would be.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// The change that takes this one back.
    #[must_use]
    pub fn undo(&self) -> Self {
        Self {
            overlay: self.former.clone(),
            former: self.overlay.clone(),
        }
    }
}

impl Changes {
    /// Reads what is kept in `state_dir`. Nothing is made there before the first change. The
    /// sealing key is found as for agreed keys: in `sealing_key_file` if that is given.
    ///
    /// # Errors
    /// When there is a store that cannot be used; it is left as it is.
    pub fn open(state_dir: &Path, sealing_key_file: Option<&Path>) -> Result<Self, ChangesError> {
        let mut now = Now::default();
        if state_dir.join(FILE_NAME).symlink_metadata().is_ok() {
            let key = SealingKey::load(state_dir, sealing_key_file)?;
            now.store = Some(Store::open(&state_dir.join(FILE_NAME), &key)?);
        }
        Ok(Self {
            state_dir: state_dir.to_owned(),
            sealing_key_file: sealing_key_file.map(Path::to_owned),
            now: Mutex::new(now),
        })
    }

    /// What is there.
    #[must_use]
    pub fn overlay(&self) -> Overlay {
        self.now().overlay.clone()
    }

    /// What there would be after `change`. Nothing is kept; whether it is a correct configuration,
    /// together with the file, is for [`Config::with`] to tell.
    ///
    /// # Errors
    /// When what is to be made exists in `running`, what is to be changed does not or is the
    /// file's, or a value is wrong.
    pub fn stage(&self, change: Change, running: &Config) -> Result<Staged, ControlError> {
        let _ = (change, running);
        let former = self.overlay();
        Ok(Staged {
            overlay: former.clone(),
            former,
        })
    }

    /// Keeps a change: when it returns, all of it is on disk, and what it deleted is destroyed.
    ///
    /// # Errors
    /// When the disk fails or is full; then everything is as before.
    pub fn keep(&self, staged: Staged) -> Result<(), ChangesError> {
        let mut now = self.now();
        if now.store.is_none() {
            let key = SealingKey::load(&self.state_dir, self.sealing_key_file.as_deref())?;
            now.store = Some(Store::open(&self.state_dir.join(FILE_NAME), &key)?);
        }
        now.overlay = staged.overlay;
        Ok(())
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
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
pub fn load(file: &Path, state_dir: Option<&Path>) -> Result<(Config, Changes), LoadError> {
    let places = StatePlaces::read(file)?;
    let folder = state_dir.unwrap_or(&places.state_dir);
    let changes = Changes::open(folder, places.sealing_key_file.as_deref())?;
    let mut config = Config::load(file, &changes.overlay())?;
    folder.clone_into(&mut config.state_dir);
    Ok((config, changes))
}
