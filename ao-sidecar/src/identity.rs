//! `ao-sidecar identity`: what operators of far ends are told before the daemon first runs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use keymgr::identity::{Identity, IdentityError};
use serde::Serialize;

use crate::config::{Config, ConfigError, DEFAULT_STATE_DIR, IdentityConfig, Overlay};
use crate::daemon::{StateDirError, make_state_dir};

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Take state folder and certificate from this configuration.
    pub config: Option<PathBuf>,
    /// The state folder, whatever the configuration says.
    pub state_dir: Option<PathBuf>,
    /// One JSON object instead of the fingerprint alone.
    pub json: bool,
}

/// Why the identity cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// There is no usable identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It cannot be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

#[derive(Serialize)]
struct Shown<'a> {
    fingerprint: String,
    certificate_file: &'a Path,
    expires: Option<String>,
}

/// Writes the fingerprint of this sidecar's key, alone on a line. State folder and key are made
/// when absent; the daemon may be running.
///
/// # Errors
/// When the configuration is wrong, or the identity cannot be read, made or written.
pub fn print(options: &Options, out: &mut dyn Write) -> Result<(), Error> {
    let (identity, certificate_file) = identity(options)?;
    if options.json {
        let expires = Timestamp::try_from(identity.not_after()).ok();
        let shown = Shown {
            fingerprint: identity.fingerprint().to_string(),
            certificate_file: &certificate_file,
            expires: expires.map(|time| format!("{time:.3}")),
        };
        serde_json::to_writer_pretty(&mut *out, &shown).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", identity.fingerprint())?;
    }
    Ok(out.flush()?)
}

fn identity(options: &Options) -> Result<(Identity, PathBuf), Error> {
    let load = |file| Config::load(file, &Overlay::default());
    let config = options.config.as_deref().map(load).transpose()?;
    let configured = config.as_ref().map(|config| &config.identity);
    if let Some(IdentityConfig::Files {
        cert_file,
        key_file,
    }) = configured
    {
        return Ok((Identity::load(cert_file, key_file)?, cert_file.clone()));
    }
    let state_dir = match (&options.state_dir, &config) {
        (Some(folder), _) => folder,
        (None, Some(config)) => &config.state_dir,
        (None, None) => Path::new(DEFAULT_STATE_DIR),
    };
    make_state_dir(state_dir)?;
    let identity = Identity::load_or_create(state_dir)?;
    Ok((identity, state_dir.join("identity.crt")))
}
