//! Somebody has the sealing key and every octet of every file, and wants a deleted key.

use super::*;
use crate::secret::SecretKind;

/// Octets of a sealed slot: nonce, key, tag.
const SLOT_LEN: usize = 24 + 32 + 16;
/// Octets of a sealed master key of AES-128-CMAC.
const SEALED_LEN: usize = 16 + 16;

const PEER: &str = "as64502";

fn master_key(octet: u8) -> Secret {
    Secret::new(&[octet; 16])
}

/// Takes every place in every file for the slot and the sealed secret of `number`.
fn recover(folder: &Path, instance: Instance, number: u64) -> Option<Secret> {
    let key = SealingKey::load(folder, None).unwrap();
    let rows = Rows::new(instance, &key);
    let name = SecretName {
        number,
        kind: SecretKind::MasterKey,
    };
    let files: Vec<Vec<u8>> = names(folder)
        .iter()
        .map(|name| fs::read(folder.join(name)).unwrap())
        .collect();
    // What is empty holds neither.
    let places = |len: usize| {
        let windows = files.iter().flat_map(move |file| file.windows(len));
        windows.filter(|window| window[0] != 0 || window[1] != 0)
    };
    let slots = places(SLOT_LEN).filter(|slot| rows.opens_slot(PEER, name, slot));
    let slots: Vec<&[u8]> = slots.collect();
    let mut secrets = slots.iter().flat_map(|slot| {
        let sealed = places(SEALED_LEN);
        sealed.filter_map(|sealed| rows.opened(PEER, name, sealed, slot))
    });
    secrets.next()
}

#[test]
fn no_octets_of_any_file_bring_a_deleted_generation_back() {
    let (folder, mut store) = opened();
    let instance = store.instance();
    let keys: Vec<(SecretName, Secret)> = (1..=3)
        .map(|number| (super::master_key(number.into()), master_key(number)))
        .collect();
    let save = |store: &mut Store, from: usize, to: usize, meta: &[u8]| {
        let secrets = keys[from..to]
            .iter()
            .map(|(name, key)| (*name, key))
            .collect();
        let peer = PEER;
        store
            .save(&[Entry {
                peer,
                meta,
                secrets,
            }])
            .unwrap();
    };
    // The first key goes through some transactions, so that pages with it become unused.
    for (to, meta) in [
        (1, "agreed"),
        (1, "installed"),
        (2, "selected"),
        (3, "proven"),
    ] {
        save(&mut store, 0, to, meta.as_bytes());
    }
    assert_eq!(recover(folder.path(), instance, 1), Some(master_key(1)));
    save(&mut store, 1, 3, b"deleted");
    assert_eq!(recover(folder.path(), instance, 1), None);
    assert_eq!(recover(folder.path(), instance, 3), Some(master_key(3)));
    // Nor when the store has been closed, and its peer removed.
    store.remove(PEER).unwrap();
    assert_eq!(store.load().unwrap(), []);
    drop(store);
    assert_eq!(recover(folder.path(), instance, 3), None);
    assert_eq!(recover(folder.path(), instance, 1), None);
}

/// As a crash leaves them: names that this sidecar uses, with old contents.
#[test]
fn leftovers_of_a_crash_are_overwritten_before_they_go() {
    let (folder, mut store) = opened();
    let key = master_key(9);
    let secrets = vec![(super::master_key(9), &key)];
    let (peer, meta) = (PEER, &b""[..]);
    store
        .save(&[Entry {
            peer,
            meta,
            secrets,
        }])
        .unwrap();
    drop(store);
    let file = folder.path().join(FILE_NAME);
    let outdated = folder.path().join("keys.redb.outdated");
    fs::copy(&file, &outdated).unwrap();
    fs::copy(&file, folder.path().join("keys.redb.next")).unwrap();
    // A second name keeps the inode in sight.
    fs::hard_link(&outdated, folder.path().join("seen")).unwrap();
    drop(open(folder.path()).unwrap());
    let seen = fs::read(folder.path().join("seen")).unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|&octet| octet == 0));
    assert!(!outdated.exists());
}

/// The crash came after the former file had got its second name, and before it lost its first.
#[test]
fn a_second_name_of_the_store_itself_is_just_taken_away() {
    let (folder, mut store) = opened();
    let state = &saved_states()[3];
    sequence::save(&mut store, &[], state).unwrap();
    drop(store);
    let file = folder.path().join(FILE_NAME);
    fs::hard_link(&file, folder.path().join("keys.redb.outdated")).unwrap();
    let mut store = open(folder.path()).unwrap();
    assert_eq!(store.load().unwrap(), *state);
    assert_eq!(
        names(folder.path()),
        ["keys.redb", "keys.redb.lock", "making.lock", "store.key"]
    );
}
