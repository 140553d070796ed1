//! Manual pages, made from the definitions of the command lines.

use std::path::Path;
use std::{fs, io};

use clap::CommandFactory;

use super::{aoctl, sidecar};

/// Writes the manual pages of `aoctl`, `ao-sidecar` and all their commands into `folder`, and makes
/// it if it is missing.
///
/// # Errors
/// When the folder or a page cannot be written.
pub fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for program in [aoctl::Arguments::command(), sidecar::Arguments::command()] {
        clap_mangen::generate_to(program, folder)?;
    }
    Ok(())
}
