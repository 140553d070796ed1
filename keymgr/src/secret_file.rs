//! Files that hold one secret.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ao_engine::crypto::MasterKey;
use nix::fcntl::OFlag;
use nix::unistd::Uid;
use zeroize::Zeroizing;

/// Why a secret file was refused. The text names neither the file nor its contents.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be opened or read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is a directory, a pipe or a device.
    #[error("is not a regular file")]
    NotRegular,
    /// Group or others have a permission on it.
    #[error("is readable by others (mode {mode:04o})")]
    Exposed {
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else, who could read or replace the secret.
    #[error("is owned by user {owner}, not by root or the user that reads it")]
    ForeignOwner {
        /// Its owner.
        owner: u32,
    },
    /// It holds nothing, or a newline only.
    #[error("is empty")]
    Empty,
    /// It holds more than a secret may have.
    #[error("holds more than {} octets", MasterKey::MAX_LEN)]
    TooLong,
}

/// Reads the secret in `path`: all octets of the file but one trailing newline.
///
/// Any octets are allowed; 1 to 80 of them must be left. The checks are made on the opened file,
/// so that it cannot be exchanged between check and use. Symbolic links are followed.
///
/// # Errors
/// When the file cannot be read, is not a regular file, may be accessed by group or others, is
/// owned by neither root nor the effective user, is empty or too long.
pub fn read(path: &Path) -> Result<MasterKey, SecretFileError> {
    // Without O_NONBLOCK a pipe in the secret's place would hang the start for ever.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    check(&file.metadata()?)?;
    let octets = read_octets(file)?;
    let secret = octets.strip_suffix(b"\n").unwrap_or(&octets);
    if secret.is_empty() {
        return Err(SecretFileError::Empty);
    }
    MasterKey::new(secret).map_err(|_| SecretFileError::TooLong)
}

pub(crate) fn check(metadata: &Metadata) -> Result<(), SecretFileError> {
    if !metadata.is_file() {
        return Err(SecretFileError::NotRegular);
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Exposed { mode });
    }
    let owner = Uid::from_raw(metadata.uid());
    if !owner.is_root() && owner != Uid::effective() {
        return Err(SecretFileError::ForeignOwner {
            owner: metadata.uid(),
        });
    }
    Ok(())
}

/// Reads up to one octet more than a secret with its newline has.
fn read_octets(file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = MasterKey::MAX_LEN + 2;
    // Room for all of it from the start: a vector that grows leaves copies behind.
    let mut octets = Zeroizing::new(Vec::with_capacity(limit));
    file.take(limit as u64).read_to_end(&mut octets)?;
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn read_with(contents: &[u8], mode: u32) -> Result<MasterKey, SecretFileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        read(&path)
    }

    fn message(result: Result<MasterKey, SecretFileError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn one_trailing_newline_is_not_part_of_the_secret() {
        // 80 octets and a newline pass only if the newline is left out; a second one is too much.
        let longest = [b'k'; MasterKey::MAX_LEN];
        assert!(read_with(&[&longest[..], b"\n"].concat(), 0o600).is_ok());
        let error = message(read_with(&[&longest[..], b"\n\n"].concat(), 0o600));
        assert_eq!(error, "holds more than 80 octets");
        assert!(read_with(b"\n\n", 0o600).is_ok());
    }

    #[test]
    fn length_bounds_hold() {
        assert_eq!(message(read_with(b"", 0o600)), "is empty");
        assert_eq!(message(read_with(b"\n", 0o600)), "is empty");
        assert_eq!(
            message(read_with(&[b'k'; 81], 0o600)),
            "holds more than 80 octets"
        );
        assert_eq!(
            message(read_with(&[b'k'; 9000], 0o600)),
            "holds more than 80 octets"
        );
        assert!(read_with(&[0xff], 0o400).is_ok());
    }

    #[test]
    fn files_others_can_access_are_refused() {
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o666] {
            let error = message(read_with(b"secret", mode));
            assert_eq!(error, format!("is readable by others (mode {mode:04o})"));
        }
    }

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(message(read(folder.path())), "is not a regular file");
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(message(read(&pipe)), "is not a regular file");
        assert!(message(read(&folder.path().join("absent"))).starts_with("cannot be read: "));
    }

    #[test]
    fn links_lead_to_the_checked_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("secret"), folder.path().join("link"));
        fs::write(&path, "secret").unwrap();
        symlink(&path, &link).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read(&link), Err(SecretFileError::Exposed { .. })));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(read(&link).is_ok());
    }

    #[test]
    fn a_foreign_owner_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        if Uid::effective().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(matches!(
                read(&path),
                Err(SecretFileError::ForeignOwner { owner: 65534 })
            ));
        } else {
            // Only root can give a file away; its own file must pass for anybody.
            assert!(read(&path).is_ok());
        }
    }
}
