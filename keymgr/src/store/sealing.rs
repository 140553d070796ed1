//! The sealing key, and what is sealed with it.

use std::env;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::error::afresh;
use super::{CHANGES_FILE_NAME, FILE_NAME};
use crate::private_file;
use crate::secret_file::{self, SecretFileError};

/// Name of the sealing key among the credentials that a systemd unit is given.
pub const CREDENTIAL: &str = "ao-sidecar.store-key";

/// Name of the sealing key's file in the state folder.
const KEY_FILE: &str = "store.key";

/// Octets of a key.
const KEY_LEN: usize = 32;

/// Octets of an XChaCha20 nonce.
const NONCE_LEN: usize = 24;

/// The key that seals the store. Whoever has it and the store's file has all keys in it, but none
/// that was deleted.
pub struct SealingKey {
    octets: Zeroizing<[u8; KEY_LEN]>,
    path: PathBuf,
}

/// Why there is no sealing key. The text is one line, names the file and ends with the way back.
#[derive(Debug, thiserror::Error)]
pub enum SealingKeyError {
    /// The store is there, but the key it was sealed with is not.
    #[error(
        "{} is missing, and {} cannot be opened without it: put it back, or move {} away and start \
         again; {}", key.display(), store.display(), store.display(), afresh(store)
    )]
    Missing {
        /// Where the key was expected.
        key: PathBuf,
        /// The store.
        store: PathBuf,
    },
    /// The configured file is not there.
    #[error("sealing key {} is missing: make it with `openssl rand -hex 32`, mode 0600", path.display())]
    NotThere {
        /// The configured file.
        path: PathBuf,
    },
    /// It is refused.
    #[error("sealing key {} {refusal}: it must be a file with mode 0600 of root or the sidecar's \
             user", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        refusal: SecretFileError,
    },
    /// It does not hold a key.
    #[error(
        "sealing key {} holds neither 32 octets nor 64 hexadecimal digits: put the right file in its \
         place", path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("sealing key {} cannot be made: {source}", path.display())]
    Make {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SealingKey {
    /// Finds the sealing key: in the `configured` file; else in the systemd credential
    /// [`CREDENTIAL`]; else in `store.key` in the state folder, where it is made when neither it
    /// nor a store is there.
    ///
    /// A key is 32 octets, or 64 hexadecimal digits and perhaps a newline.
    ///
    /// # Errors
    /// When the file may be accessed by others, cannot be read or made, holds no key, or is missing
    /// beside a store.
    pub fn load(state_dir: &Path, configured: Option<&Path>) -> Result<Self, SealingKeyError> {
        let credentials = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Self::find(state_dir, configured, credentials.as_deref())
    }

    fn find(
        state_dir: &Path,
        configured: Option<&Path>,
        credentials: Option<&Path>,
    ) -> Result<Self, SealingKeyError> {
        if let Some(path) = configured {
            return Self::read(path, Permitted::Owner)?.ok_or_else(|| SealingKeyError::NotThere {
                path: path.to_owned(),
            });
        }
        if let Some(folder) = credentials
            && let Some(key) = Self::read(&folder.join(CREDENTIAL), Permitted::Credential)?
        {
            return Ok(key);
        }
        let path = state_dir.join(KEY_FILE);
        match Self::read(&path, Permitted::Owner)? {
            Some(key) => Ok(key),
            None => Self::make(state_dir, path),
        }
    }

    fn read(path: &Path, permitted: Permitted) -> Result<Option<Self>, SealingKeyError> {
        let refused = |refusal| SealingKeyError::Refused {
            path: path.to_owned(),
            refusal,
        };
        let Some(file) = private_file::open(path).map_err(|e| refused(e.into()))? else {
            return Ok(None);
        };
        permitted.check(&file).map_err(refused)?;
        let malformed = || SealingKeyError::Malformed {
            path: path.to_owned(),
        };
        let text = match private_file::read_all(file, 2 * KEY_LEN as u64 + 1) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(malformed()),
            read => read.map_err(|error| refused(error.into()))?,
        };
        Ok(Some(Self {
            octets: parse(&text).ok_or_else(malformed)?,
            path: path.to_owned(),
        }))
    }

    fn make(state_dir: &Path, path: PathBuf) -> Result<Self, SealingKeyError> {
        let mut stores = [FILE_NAME, CHANGES_FILE_NAME]
            .map(|name| state_dir.join(name))
            .into_iter();
        if let Some(store) = stores.find(|store| store.symlink_metadata().is_ok()) {
            return Err(SealingKeyError::Missing { key: path, store });
        }
        let made = private_file::lock_folder(state_dir).and_then(|_lock| {
            let mut octets = Zeroizing::new([0; KEY_LEN]);
            getrandom::fill(&mut *octets)?;
            let mut text = Zeroizing::new(String::with_capacity(2 * KEY_LEN + 1));
            for octet in octets.iter() {
                text.push(digit(octet >> 4));
                text.push(digit(octet & 0xf));
            }
            text.push('\n');
            private_file::make(&path, text.as_bytes())
        });
        match made {
            // Somebody else may have been faster; then that key is the one.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(SealingKeyError::Make {
                    path,
                    source: error,
                })
            }
            _ => Self::read(&path, Permitted::Owner)?.ok_or(SealingKeyError::NotThere { path }),
        }
    }

    /// Where the key is from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names the key and tells nothing about it.
    pub(super) fn id(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(b"ao-sidecar sealing key");
        digest.update(*self.octets);
        digest.finalize().into()
    }

    pub(super) fn seal(&self) -> Seal {
        Seal(XChaCha20Poly1305::new(&Key::from(*self.octets)))
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealingKey({})", self.path.display())
    }
}

/// Whose a sealing key's file may be.
#[derive(Clone, Copy)]
enum Permitted {
    /// Nobody but its owner has a permission.
    Owner,
    /// As systemd makes credentials of units with `User=`: the unit's user reads it by an access
    /// control list, whose mask shows as a group permission.
    Credential,
}

impl Permitted {
    fn check(self, file: &File) -> Result<(), SecretFileError> {
        match (self, secret_file::check(&file.metadata()?)) {
            (Self::Credential, Err(SecretFileError::Exposed { mode })) if mode & 0o037 == 0 => {
                Ok(())
            }
            (_, checked) => checked,
        }
    }
}

fn digit(value: u8) -> char {
    char::from_digit(value.into(), 16).unwrap_or('0')
}

fn parse(text: &[u8]) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let mut octets = Zeroizing::new([0; KEY_LEN]);
    if text.len() == KEY_LEN {
        octets.copy_from_slice(text);
        return Some(octets);
    }
    let digits = text.strip_suffix(b"\n").unwrap_or(text);
    if digits.len() != 2 * KEY_LEN {
        return None;
    }
    for (octet, pair) in octets.iter_mut().zip(digits.chunks(2)) {
        for &digit in pair {
            let value = char::from(digit).to_digit(16)?;
            *octet = *octet << 4 | u8::try_from(value).ok()?;
        }
    }
    Some(octets)
}

/// Seals with the sealing key.
pub(super) struct Seal(XChaCha20Poly1305);

/// A secret as it is stored: whoever loses the slot has lost the secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SealedSecret {
    /// The secret, sealed under a random key that seals nothing else.
    pub(super) secret: Vec<u8>,
    /// That key, sealed with the sealing key.
    pub(super) slot: Vec<u8>,
}

impl Seal {
    /// Seals `plain`, bound to `place`.
    pub(super) fn seal(&self, place: &[u8], plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)?;
        // Random nonces of 192 bits never meet, however often this key is used.
        let payload = Payload {
            msg: plain,
            aad: place,
        };
        let sealed = self.0.encrypt(&XNonce::from(nonce), payload);
        Ok([&nonce[..], &sealed.map_err(|_| too_long())?].concat())
    }

    /// What was sealed; `None` unless it was sealed with this key for this place.
    pub(super) fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let payload = Payload {
            msg: sealed,
            aad: place,
        };
        let opened = self.0.decrypt(&XNonce::from(*nonce), payload);
        opened.ok().map(Zeroizing::new)
    }

    /// Seals a secret under a key of its own, bound to `place`.
    pub(super) fn seal_secret(&self, place: &[u8], secret: &[u8]) -> io::Result<SealedSecret> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut *key)?;
        let payload = Payload {
            msg: secret,
            aad: place,
        };
        // The key seals nothing else, so any nonce will do.
        let secret = own_cipher(&key).encrypt(&Nonce::default(), payload);
        Ok(SealedSecret {
            secret: secret.map_err(|_| too_long())?,
            slot: self.seal(place, &*key)?,
        })
    }

    /// The secret; `None` unless it was sealed with this key for this place.
    pub(super) fn open_secret(
        &self,
        place: &[u8],
        sealed: &SealedSecret,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let slot = self.open(place, &sealed.slot)?;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.copy_from_slice(slot.get(..KEY_LEN).filter(|_| slot.len() == KEY_LEN)?);
        let payload = Payload {
            msg: &sealed.secret,
            aad: place,
        };
        let opened = own_cipher(&key).decrypt(&Nonce::default(), payload);
        opened.ok().map(Zeroizing::new)
    }
}

fn own_cipher(key: &[u8; KEY_LEN]) -> ChaCha20Poly1305 {
    let mut key = Key::from(*key);
    let cipher = ChaCha20Poly1305::new(&key);
    key.as_mut_slice().zeroize();
    cipher
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "too long to be sealed")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path, contents: &[u8], mode: u32) {
        fs::write(path, contents).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn message(result: Result<SealingKey, SealingKeyError>) -> String {
        let text = result.unwrap_err().to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }

    #[test]
    fn a_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let made = SealingKey::find(folder.path(), None, None).unwrap();
        assert_eq!(made.path(), folder.path().join(KEY_FILE));
        let found = SealingKey::find(folder.path(), None, None).unwrap();
        assert_eq!(made.octets, found.octets);
        let other = tempfile::tempdir().unwrap();
        let other = SealingKey::find(other.path(), None, None).unwrap();
        assert_ne!(made.octets, other.octets);
    }

    #[test]
    fn beside_a_store_a_missing_key_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), "").unwrap();
        let text = message(SealingKey::find(folder.path(), None, None));
        assert!(text.contains("store.key is missing, and"), "{text}");
        assert!(!folder.path().join(KEY_FILE).exists());
    }

    #[test]
    fn the_configured_key_comes_first_and_the_credential_second() {
        let folder = tempfile::tempdir().unwrap();
        let (configured, credential) = (folder.path().join("k"), folder.path().join(CREDENTIAL));
        write(&configured, &[1; 32], 0o600);
        write(&credential, &[2; 32], 0o440);
        let find = |configured| SealingKey::find(folder.path(), configured, Some(folder.path()));
        assert_eq!(*find(Some(&*configured)).unwrap().octets, [1; 32]);
        assert_eq!(*find(None).unwrap().octets, [2; 32]);
        fs::remove_file(&credential).unwrap();
        assert_eq!(find(None).unwrap().path(), folder.path().join(KEY_FILE));
        fs::remove_file(&configured).unwrap();
        let text = message(find(Some(&*configured)));
        assert!(text.contains("k is missing: make it with"), "{text}");
    }

    #[test]
    fn octets_and_digits_are_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let digits = "0aF1".repeat(16);
        for (contents, first) in [
            (vec![0x61; 32], Some(0x61)),
            (digits.clone().into_bytes(), Some(0x0a)),
            (format!("{digits}\n").into_bytes(), Some(0x0a)),
            (format!("{digits}\n\n").into_bytes(), None),
            (format!("{digits}0").into_bytes(), None),
            (format!("{}g", &digits[1..]).into_bytes(), None),
            (vec![0; 31], None),
            (vec![0; 33], None),
            (vec![b'0'; 1000], None),
            (Vec::new(), None),
        ] {
            write(&path, &contents, 0o600);
            let key = SealingKey::find(folder.path(), Some(&path), None);
            match first {
                Some(octet) => assert_eq!(key.unwrap().octets[0], octet),
                None => assert!(message(key).contains("holds neither 32 octets nor")),
            }
        }
    }

    #[test]
    fn exposed_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, credential) = (folder.path().join("key"), folder.path().join(CREDENTIAL));
        write(&path, &[1; 32], 0o640);
        let text = message(SealingKey::find(folder.path(), Some(&path), None));
        assert!(
            text.contains("key is readable by others (mode 0640)"),
            "{text}"
        );
        for mode in [0o444, 0o460] {
            write(&credential, &[1; 32], mode);
            let text = message(SealingKey::find(folder.path(), None, Some(folder.path())));
            assert!(text.contains("is readable by others"), "{text}");
        }
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_in_its_place_only() {
        let folder = tempfile::tempdir().unwrap();
        let seal = SealingKey::find(folder.path(), None, None).unwrap().seal();
        let sealed = seal.seal(b"here", b"plain").unwrap();
        assert_eq!(seal.open(b"here", &sealed).unwrap().as_slice(), b"plain");
        assert!(seal.open(b"there", &sealed).is_none());
        assert!(seal.open(b"here", &sealed[1..]).is_none());
        assert!(seal.open(b"here", b"").is_none());
        let one = seal.seal_secret(b"here", b"secret").unwrap();
        let other = seal.seal_secret(b"here", b"secret").unwrap();
        assert_eq!(
            seal.open_secret(b"here", &one).unwrap().as_slice(),
            b"secret"
        );
        assert!(seal.open_secret(b"there", &one).is_none());
        // Each has a key of its own.
        let (secret, slot) = (one.secret, other.slot);
        assert!(
            seal.open_secret(b"here", &SealedSecret { secret, slot })
                .is_none()
        );
    }

    #[test]
    fn a_key_does_not_show() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write(&path, &[b'k'; 32], 0o600);
        let key = SealingKey::find(folder.path(), Some(&path), None).unwrap();
        assert_eq!(
            format!("{key:?}"),
            format!("SealingKey({})", path.display())
        );
    }
}
