//! What the store promises, on real files and on a disk that crashes.

mod crash;
mod destroyed;
mod refused;
mod sequence;
mod simulated;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use self::sequence::{entry_of, saved_states};
use super::*;

/// A state folder with a store in it.
fn opened() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    (folder, store)
}

fn open(folder: &Path) -> Result<Store, StoreError> {
    let key = SealingKey::load(folder, None).unwrap();
    Store::open(&folder.join(FILE_NAME), &key)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_is_loaded_after_every_save_and_reopening() {
    let (folder, mut store) = opened();
    assert_eq!(store.load().unwrap(), []);
    let instance = store.instance();
    for (before, state) in saved_states().windows(2).map(|pair| (&pair[0], &pair[1])) {
        assert_eq!(&store.load().unwrap(), before);
        sequence::save(&mut store, before, state).unwrap();
        assert_eq!(&store.load().unwrap(), state);
        drop(store);
        store = open(folder.path()).unwrap();
        assert_eq!(&store.load().unwrap(), state);
        assert_eq!(store.instance(), instance);
        assert_eq!(
            names(folder.path()),
            ["keys.redb", "keys.redb.lock", "making.lock", "store.key"]
        );
    }
}

#[test]
fn a_name_given_twice_has_its_last_value() {
    let (_folder, mut store) = opened();
    let state = &saved_states()[3];
    let mut entry = entry_of(&state[0]);
    let (name, former) = entry.secrets[0];
    let latter = Secret::new(b"latter");
    entry.secrets = vec![(name, former), (name, &latter)];
    store.save(&[entry]).unwrap();
    assert_eq!(store.load().unwrap()[0].secrets, [(name, latter)]);
}

#[test]
fn a_thousand_peers_fit_and_their_file_stays_small() {
    let (folder, mut store) = opened();
    let secrets: Vec<Secret> = (0..4).map(|n| Secret::new(&[n; 32])).collect();
    let peers: Vec<String> = (0..1000).map(|n| format!("as{}", 64_512 + n)).collect();
    let meta = [7; 600];
    for first in 0..4 {
        let entries: Vec<_> = peers
            .iter()
            .map(|peer| Entry {
                peer,
                meta: &meta,
                secrets: (first..first + 4)
                    .zip(&secrets)
                    .map(|(number, secret)| (master_key(number), secret))
                    .collect(),
            })
            .collect();
        store.save(&entries).unwrap();
    }
    assert_eq!(store.load().unwrap().len(), 1000);
    let size = fs::metadata(folder.path().join(FILE_NAME)).unwrap().len();
    assert!(size < 8 << 20, "{size} octets");
}

fn master_key(number: u64) -> SecretName {
    SecretName {
        number,
        kind: crate::secret::SecretKind::MasterKey,
    }
}
