//! Small files that only their owner may read, made once and never overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg, OFlag};
use zeroize::Zeroizing;

use crate::secret_file::{self, SecretFileError};

/// All of a private file, `limit` octets at most; `None` if there is none.
///
/// # Errors
/// When it cannot be read, is larger, is not a regular file, may be accessed by group or others,
/// or is owned by neither root nor the effective user.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Zeroizing<Vec<u8>>>, SecretFileError> {
    match open(path)? {
        None => Ok(None),
        Some(file) => {
            secret_file::check(&file.metadata()?)?;
            read_all(file, limit).map(Some).map_err(Into::into)
        }
    }
}

/// Opens a file; `None` if there is none.
pub(crate) fn open(path: &Path) -> io::Result<Option<File>> {
    // Without O_NONBLOCK a pipe in the file's place would hang the start for ever.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All of `file`, `limit` octets at most.
///
/// # Errors
/// When it cannot be read or is larger.
pub(crate) fn read_all(file: File, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the file is too large");
    let room = usize::try_from(limit + 1).map_err(|_| too_large())?;
    // Room for all of it from the start: a vector that grows leaves copies behind.
    let mut octets = Zeroizing::new(Vec::with_capacity(room));
    file.take(limit + 1).read_to_end(&mut octets)?;
    if octets.len() == room {
        return Err(too_large());
    }
    Ok(octets)
}

/// Makes a file with mode 0600 that is either there as a whole or not at all, whenever the system
/// may crash. The caller holds [`lock_folder`].
///
/// # Errors
/// When it is there already, or cannot be made.
pub(crate) fn make(path: &Path, contents: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let mut draft = path.as_os_str().to_owned();
    draft.push(".next");
    let draft = Path::new(&draft);
    // What a crash left has never been in use, for only the link below gives it its name.
    remove_if_there(draft)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)?;
    let made = file
        .write_all(contents)
        .and_then(|()| file.sync_all())
        // Other than a rename, this never replaces a file.
        .and_then(|()| fs::hard_link(draft, path));
    remove_if_there(draft)?;
    made?;
    File::open(folder)?.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The file whose lock keeps two processes from making the same file. Nobody else may open it, and
/// so nobody else can make us wait.
const LOCK: &str = "making.lock";

/// Waits until no other process makes files in the folder, and keeps others from it.
///
/// # Errors
/// When the folder is not there or cannot be locked.
pub(crate) fn lock_folder(path: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path.join(LOCK))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_file_is_made_once_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(read(&path, 10).unwrap().is_none());
        make(&path, b"first").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let error = make(&path, b"second").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path, 5).unwrap().unwrap().as_slice(), b"first");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no draft is left"
        );
    }

    #[test]
    fn the_draft_of_a_crash_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(folder.path().join("file.next"), "half").unwrap();
        make(&path, b"whole").unwrap();
        assert_eq!(read(&path, 5).unwrap().unwrap().as_slice(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_others_may_read_or_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        make(&path, b"12345").unwrap();
        assert!(matches!(read(&path, 4), Err(SecretFileError::Io(_))));
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            read(&path, 5),
            Err(SecretFileError::Exposed { mode: 0o640 })
        ));
    }

    #[test]
    fn a_file_without_a_folder_is_in_the_current_one() {
        assert_eq!(folder_of(Path::new("file")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/file")), Path::new("a"));
    }
}
