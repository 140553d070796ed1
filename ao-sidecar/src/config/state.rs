//! Where the state is, which is needed before the whole configuration can be read: what was made by
//! API is there.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::files::Files;
use super::problem::{ConfigError, Problems};
use super::rollover::sealing_key_file;
use super::section::Section;
use super::{DEFAULT_STATE_DIR, ROOT, absolute, read};

/// Where the state of the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePlaces {
    /// Folder for connection state, agreed keys, and what was made by API.
    pub state_dir: PathBuf,
    /// File with the key that seals secrets in it, when it is not for the store to find.
    pub sealing_key_file: Option<PathBuf>,
}

impl StatePlaces {
    /// Reads them from `file`. Whatever else is wrong with it is left to [`super::Config::load`]
    /// to tell.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let (text, _) = read(file)
            .map_err(|error| ConfigError::of_file(file, format!("cannot be read: {error}")))?;
        Self::of_text(&text, file)
    }

    fn of_text(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let problems = Problems::of_file(text, file);
        let Ok(table) = DeTable::parse(text) else {
            return Err(ConfigError::of_file(file, "not TOML".to_owned()));
        };
        let mut root = Section::new(&ROOT, table.into_inner(), 0..0, &problems);
        Ok(Self {
            state_dir: absolute(&root, "state_dir", DEFAULT_STATE_DIR),
            sealing_key_file: sealing_key_file(&mut root, &Files::of(file)),
        })
    }
}
