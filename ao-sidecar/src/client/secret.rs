//! What is read from files and standard input, and may be secret.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use ao_engine::crypto::MasterKey;
use keymgr::secret_file::{self, SecretFileError};
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use zeroize::Zeroizing;

use super::{ClientError, Secret};

/// Largest configuration that is sent to be checked, in octets.
const MAX_CONFIGURATION: u64 = 1 << 20;

/// Reads a secret from `file`, which only its owner may access, or with `-` from standard input; one
/// newline at its end is left out. A terminal does not show it.
///
/// # Errors
/// When it cannot be read, others may read it, or it is empty or too long.
pub fn secret(file: &Path) -> Result<Secret, ClientError> {
    if file.as_os_str() == "-" {
        return standard_input(io::stdin().as_fd());
    }
    let secret = secret_file::read(file).map_err(|error| {
        let name = file.display();
        let remedy = match error {
            SecretFileError::Exposed { .. } => format!("; chmod 600 {name}"),
            SecretFileError::ForeignOwner { .. } => format!("; chown it to yourself: {name}"),
            SecretFileError::Empty => "; write the secret into it".to_owned(),
            _ => String::new(),
        };
        ClientError::Unusable(format!("secret file {name} {error}{remedy}"))
    })?;
    Ok(Zeroizing::new(secret.expose().to_vec()))
}

/// Reads a configuration of up to 1 MiB from `file`, or with `-` from standard input.
///
/// # Errors
/// When it cannot be read, is larger, or is no UTF-8.
pub fn configuration(file: &Path) -> Result<Zeroizing<String>, ClientError> {
    let unusable =
        |why: &dyn std::fmt::Display| ClientError::Unusable(format!("{} {why}", file.display()));
    let opened = match file.as_os_str() == "-" {
        true => unbuffered(io::stdin().as_fd()),
        false => File::open(file),
    };
    let mut octets = Zeroizing::new(Vec::new());
    opened
        .and_then(|opened| opened.take(MAX_CONFIGURATION + 1).read_to_end(&mut octets))
        .map_err(|error| unusable(&format!("cannot be read: {error}")))?;
    if octets.len() as u64 > MAX_CONFIGURATION {
        return Err(unusable(&"is larger than 1 MiB"));
    }
    String::from_utf8(std::mem::take(&mut *octets))
        .map(Zeroizing::new)
        .map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            unusable(&"is no UTF-8")
        })
}

/// Standard input without the buffer of [`io::stdin`], which lives as long as the process.
fn unbuffered(input: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(input.try_clone_to_owned()?))
}

fn standard_input(input: BorrowedFd<'_>) -> Result<Secret, ClientError> {
    let unusable = |why: String| ClientError::Unusable(format!("the secret {why}"));
    let read = match input.is_terminal() {
        true => ask(input),
        false => unbuffered(input).and_then(read_all),
    };
    let mut octets = read.map_err(|error| unusable(format!("cannot be read: {error}")))?;
    if octets.last() == Some(&b'\n') {
        octets.pop();
    }
    match octets.len() {
        0 => Err(unusable("is empty".to_owned())),
        1..=MasterKey::MAX_LEN => Ok(octets),
        _ => Err(unusable(format!(
            "has more than {} octets",
            MasterKey::MAX_LEN
        ))),
    }
}

/// Room for a secret and what shows that it is too long. A vector that grows leaves copies behind.
const ROOM: usize = MasterKey::MAX_LEN + 2;

fn read_all(input: File) -> io::Result<Secret> {
    let mut octets = Zeroizing::new(Vec::with_capacity(ROOM));
    input.take(ROOM as u64).read_to_end(&mut octets)?;
    Ok(octets)
}

/// Reads a line that the terminal does not show.
fn ask(terminal: BorrowedFd<'_>) -> io::Result<Secret> {
    let silent = Silent::new(terminal)?;
    // Without stderr nobody is asked, and may still answer.
    let _ = write!(io::stderr(), "secret: ");
    let line = read_line(unbuffered(terminal)?);
    drop(silent);
    let _ = writeln!(io::stderr());
    line
}

fn read_line(mut input: impl Read) -> io::Result<Secret> {
    const INTERRUPT: u8 = 0x03;
    const END: u8 = 0x04;
    const DELETE: [u8; 2] = [0x08, 0x7f];
    let mut line = Zeroizing::new(Vec::with_capacity(ROOM));
    let mut octet = Zeroizing::new([0]);
    while input.read(&mut *octet)? > 0 {
        match octet[0] {
            b'\r' | b'\n' | END => break,
            INTERRUPT => return Err(io::Error::from(io::ErrorKind::Interrupted)),
            erase if DELETE.contains(&erase) => {
                line.pop();
            }
            octet if line.len() < ROOM => line.push(octet),
            _ => {}
        }
    }
    Ok(line)
}

/// A terminal that shows nothing and hands over each key; as it was before once this goes.
struct Silent<'t> {
    terminal: BorrowedFd<'t>,
    before: Termios,
}

impl<'t> Silent<'t> {
    fn new(terminal: BorrowedFd<'t>) -> io::Result<Self> {
        let before = termios::tcgetattr(terminal)?;
        let mut silent = before.clone();
        // Ctrl-C comes as an octet, too: a signal would leave the terminal silent.
        silent
            .local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        silent.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        silent.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        termios::tcsetattr(terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // There is no other way back if this fails.
        let _ = termios::tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}
