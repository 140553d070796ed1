//! The audit log: who changed what, and when.
//!
//! `audit.log` in the state folder has one JSON object a line, two for each change: the first is on
//! disk before anything is touched, the second tells how it went. The file is opened for each line,
//! so that logrotate may move it away.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::Serialize;
use tracing::error;

/// Name of the log in the state folder.
pub const FILE_NAME: &str = "audit.log";

/// Most octets of a text in a line.
const LONGEST_TEXT: usize = 4096;

/// Why a line is not in the log.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {} cannot be written: {source}", path.display())]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// The audit log of a state folder. Clones are the same log. Calls block on the disk.
#[derive(Clone, Debug)]
pub struct AuditLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u64,
    /// Why the last line is not there.
    failing: Option<String>,
}

/// A change that has begun. Dropped without [`Entry::done`], it stays begun for ever in the log.
#[must_use]
#[derive(Debug)]
pub struct Entry {
    log: AuditLog,
    id: String,
    who: String,
    role: &'static str,
    what: String,
}

/// A line of the log.
#[derive(Serialize)]
struct Line<'e> {
    time: String,
    id: &'e str,
    who: &'e str,
    role: &'e str,
    what: &'e str,
    /// `begun`, `done` or `failed`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'e str>,
}

/// How long a line is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// Until a crash of the machine does not lose it: it comes before the change.
    OnDisk,
    /// Until the kernel has it, for what was done is done: a thousand changes in a row are not to
    /// wait for the disk twice each.
    Written,
}

impl AuditLog {
    /// The log in `state_dir`. Nothing is opened.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self(Arc::new(Inner {
            path: state_dir.join(FILE_NAME),
            state: Mutex::default(),
        }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Writes that `who` is about to do `what`, and waits until that is on disk. Neither may hold
    /// a secret; of each, 4096 octets are kept.
    ///
    /// # Errors
    /// When it cannot be written; then no part of it is in the log, and the change must not be
    /// made.
    pub fn begin(&self, who: &str, role: &'static str, what: &str) -> Result<Entry, AuditError> {
        let id = fresh_id().map_err(|source| self.error(source))?;
        let entry = Entry {
            log: self.clone(),
            id,
            who: shortened(who).to_owned(),
            role,
            what: shortened(what).to_owned(),
        };
        self.write(&entry.line("begun", None), Until::OnDisk)?;
        Ok(entry)
    }

    /// Why the last line could not be written; nothing when it could.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        self.state().failing.clone()
    }

    /// Lines that could not be written.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    fn write(&self, line: &Line<'_>, until: Until) -> Result<(), AuditError> {
        let text = text_of(line).map_err(|source| self.error(source))?;
        // Held to the end: of two lines at once, a failure of one could take the other back.
        let mut state = self.state();
        let written = append(&self.0.path, &text, until);
        match written.map_err(|source| self.error(source)) {
            Ok(()) => {
                state.failing = None;
                Ok(())
            }
            Err(error) => {
                state.failures += 1;
                state.failing = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn error(&self, source: io::Error) -> AuditError {
        AuditError {
            path: self.0.path.clone(),
            source,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = &self.0.state;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Writes how it went: a sentence, or why nothing was changed. A failure is logged, for what is
    /// done cannot be refused any more.
    pub fn done(self, outcome: Result<&str, &str>) {
        let (word, detail) = match outcome {
            Ok(detail) => ("done", detail),
            Err(detail) => ("failed", detail),
        };
        if let Err(failure) = self
            .log
            .write(&self.line(word, Some(shortened(detail))), Until::Written)
        {
            let Self { id, who, what, .. } = &self;
            error!(id, who, what, outcome = word, "{failure}");
        }
    }

    fn line<'e>(&'e self, outcome: &'static str, detail: Option<&'e str>) -> Line<'e> {
        Line {
            time: now(),
            id: &self.id,
            who: &self.who,
            role: self.role,
            what: &self.what,
            outcome,
            detail,
        }
    }
}

/// Adds a line, all of it or nothing.
fn append(path: &Path, line: &str, until: Until) -> io::Result<()> {
    let mut file = open(path)?;
    let before = file.metadata()?;
    check(&before)?;
    // What a crash has cut off must not garble what comes now.
    let cut_off = before.len() > 0 && last_octet(&mut file)? != b'\n';
    let written = if cut_off {
        file.write_all(format!("\n{line}").as_bytes())
    } else {
        file.write_all(line.as_bytes())
    };
    written
        .and_then(|()| match (until, before.len()) {
            (Until::Written, _) => Ok(()),
            // Perhaps it was made just now, and its name is not on disk yet.
            (Until::OnDisk, 0) => {
                file.sync_data()?;
                path.parent()
                    .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
            }
            (Until::OnDisk, _) => file.sync_data(),
        })
        .inspect_err(|_| {
            // Where even that is refused, the next line begins with a newline.
            let _ = file.set_len(before.len());
        })
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        // Neither a symbolic link nor a pipe in its place is followed or waited for.
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
}

fn check(metadata: &Metadata) -> io::Result<()> {
    let owner = metadata.uid();
    let found = if !metadata.is_file() {
        "it is not a regular file: move it away".to_owned()
    } else if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o7777;
        format!("others may write to it (mode {mode:04o}): chmod 600")
    } else if owner != 0 && owner != geteuid().as_raw() {
        format!("it belongs to user {owner}: chown root")
    } else {
        return Ok(());
    };
    Err(io::Error::other(found))
}

fn last_octet(file: &mut File) -> io::Result<u8> {
    let mut octet = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut octet)?;
    Ok(octet[0])
}

/// A JSON object and a newline. Besides those that JSON forbids, control characters are escaped
/// that would move what a terminal shows.
fn text_of(line: &Line<'_>) -> io::Result<String> {
    let json = serde_json::to_string(line)?;
    let mut text = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => text.push(other),
        }
    }
    text.push('\n');
    Ok(text)
}

/// No more than [`LONGEST_TEXT`] octets.
fn shortened(text: &str) -> &str {
    let ends = text
        .char_indices()
        .map(|(start, character)| start + character.len_utf8());
    let end = ends.take_while(|end| *end <= LONGEST_TEXT).last();
    text.get(..end.unwrap_or(0)).unwrap_or(text)
}

/// Tells the lines of one change from those of another.
fn fresh_id() -> io::Result<String> {
    Ok(format!("{:016x}", getrandom::u64()?))
}

fn now() -> String {
    Timestamp::try_from(SystemTime::now())
        .map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests;
