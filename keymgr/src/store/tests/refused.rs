//! Files that are refused, and stay as they are.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};

use redb::{ReadableTable, TableDefinition};

use super::*;

/// A folder whose store has two peers, closed in order.
fn closed() -> TempDir {
    let (folder, mut store) = opened();
    let states = saved_states();
    sequence::save(&mut store, &states[0], &states[6]).unwrap();
    folder
}

fn store_of(folder: &TempDir) -> PathBuf {
    folder.path().join(FILE_NAME)
}

/// Opening fails; the message is one line with the file's name, and the file as before.
fn refused(folder: &TempDir) -> StoreError {
    let before = fs::read(store_of(folder)).ok();
    let files = names(folder.path());
    let error = open(folder.path()).unwrap_err();
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("keys.redb"), "{text}");
    assert_eq!(fs::read(store_of(folder)).ok(), before, "{text}");
    assert_eq!(names(folder.path()), files, "{text}");
    error
}

#[test]
fn another_sealing_key_is_told_from_damage() {
    let folder = closed();
    let key = folder.path().join("store.key");
    let former = fs::read(&key).unwrap();
    fs::write(&key, [7; 32]).unwrap();
    let error = refused(&folder);
    assert!(matches!(error, StoreError::WrongKey { .. }), "{error}");
    assert!(error.to_string().contains("store.key"), "{error}");
    fs::write(&key, former).unwrap();
    open(folder.path()).unwrap();
}

#[test]
fn what_is_not_a_store_is_foreign() {
    let folder = closed();
    let long = vec![0x5a; 100_000];
    for foreign in [&b""[..], b"redb", b"SQLite format 3\0", &long] {
        fs::write(store_of(&folder), foreign).unwrap();
        let error = refused(&folder);
        assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
    }
    // Somebody else's database of the same kind.
    fs::remove_file(store_of(&folder)).unwrap();
    let database = Database::create(store_of(&folder)).unwrap();
    let transaction = database.begin_write().unwrap();
    let table = TableDefinition::<u32, u32>::new("other");
    transaction.open_table(table).unwrap().insert(1, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    fs::set_permissions(store_of(&folder), Permissions::from_mode(0o600)).unwrap();
    let error = refused(&folder);
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
}

#[test]
fn other_formats_are_named() {
    for (format, words) in [(0_u32, "an older"), (2, "a newer")] {
        let folder = closed();
        edit(&folder, |transaction| {
            let table = TableDefinition::<&str, &[u8]>::new("header");
            let mut table = transaction.open_table(table).unwrap();
            table.insert("format", &format.to_be_bytes()[..]).unwrap();
        });
        let error = refused(&folder);
        let expected = format!("has format {format}, of {words} ao-sidecar (this one reads 1)");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

fn edit(folder: &TempDir, change: impl FnOnce(&redb::WriteTransaction)) {
    let database = Database::open(store_of(folder)).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

/// With the database's own means, and so with right check sums.
#[test]
fn edited_and_exchanged_rows_are_noticed() {
    type Row = (&'static str, u64, u8);
    let peers = TableDefinition::<&str, &[u8]>::new("peers");
    let secrets = TableDefinition::<Row, &[u8]>::new("secrets");
    let slots = TableDefinition::<Row, &[u8]>::new("slots");
    let header = TableDefinition::<&str, &[u8]>::new("header");
    type Edit<'e> = &'e dyn Fn(&redb::WriteTransaction);
    let edits: [(&str, Edit<'_>); 7] = [
        ("a record taken from another peer", &|transaction| {
            let mut table = transaction.open_table(peers).unwrap();
            let other = table.get("as64502").unwrap().unwrap().value().to_vec();
            table.insert("as64501", &other[..]).unwrap();
        }),
        ("an edited record", &|transaction| {
            let mut table = transaction.open_table(peers).unwrap();
            let mut record = table.get("as64501").unwrap().unwrap().value().to_vec();
            *record.last_mut().unwrap() ^= 1;
            table.insert("as64501", &record[..]).unwrap();
        }),
        ("a removed record", &|transaction| {
            transaction
                .open_table(peers)
                .unwrap()
                .remove("as64501")
                .unwrap();
        }),
        ("a removed secret", &|transaction| {
            transaction
                .open_table(secrets)
                .unwrap()
                .remove(("as64501", 1, 2))
                .unwrap();
        }),
        ("a secret under another name", &|transaction| {
            for table in [secrets, slots] {
                let mut table = transaction.open_table(table).unwrap();
                let other = table
                    .get(("as64501", 1, 1))
                    .unwrap()
                    .unwrap()
                    .value()
                    .to_vec();
                table.insert(("as64501", 1, 2), &other[..]).unwrap();
            }
        }),
        ("a slot without a secret", &|transaction| {
            let mut table = transaction.open_table(slots).unwrap();
            table.insert(("nobody", 1, 1), &[0; 72][..]).unwrap();
        }),
        ("another instance", &|transaction| {
            let mut table = transaction.open_table(header).unwrap();
            table.insert("instance", &[1; 16][..]).unwrap();
        }),
    ];
    for (what, change) in edits {
        let folder = closed();
        edit(&folder, change);
        let error = refused(&folder);
        assert!(
            matches!(error, StoreError::Corrupt { .. }),
            "{what}: {error}"
        );
        assert!(error.to_string().contains("move it away"), "{error}");
    }
}

/// Bits that turn, and ends that are missing: never a panic, never other contents, and the file
/// stays if it is refused.
#[test]
fn damage_is_refused_or_without_effect() {
    let folder = closed();
    let intact = fs::read(store_of(&folder)).unwrap();
    let expected = saved_states()[6].clone();
    let written: Vec<usize> = (0..intact.len()).filter(|&at| intact[at] != 0).collect();
    let mut found = 0;
    let mut check = |damaged: &[u8], what: String| {
        fs::write(store_of(&folder), damaged).unwrap();
        match open(folder.path()) {
            Ok(mut store) => assert_eq!(store.load().unwrap(), expected, "{what}"),
            Err(_) => {
                assert!(fs::read(store_of(&folder)).unwrap() == damaged, "{what}");
                found += 1;
            }
        }
    };
    for &at in written.iter().step_by(written.len().div_ceil(250)) {
        let mut damaged = intact.clone();
        damaged[at] ^= 1 << (at % 8);
        check(&damaged, format!("a bit of octet {at}"));
    }
    for part in 1..40 {
        let len = intact.len() * part / 40;
        check(&intact[..len], format!("the first {len} octets"));
    }
    // As a device loses a page.
    for page in (0..intact.len()).step_by(4096) {
        let end = intact.len().min(page + 4096);
        if intact[page..end].iter().any(|&octet| octet != 0) {
            let mut damaged = intact.clone();
            damaged[page..end].fill(0);
            check(&damaged, format!("the page at {page}"));
        }
    }
    assert!(found > 40, "{found}");
}

#[test]
fn exposed_files_and_links_are_refused() {
    let folder = closed();
    fs::set_permissions(store_of(&folder), Permissions::from_mode(0o640)).unwrap();
    let error = refused(&folder);
    assert!(
        matches!(error, StoreError::Exposed { mode: 0o640, .. }),
        "{error}"
    );
    fs::set_permissions(store_of(&folder), Permissions::from_mode(0o600)).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(store_of(&folder), &elsewhere).unwrap();
    symlink(&elsewhere, store_of(&folder)).unwrap();
    let error = refused(&folder);
    assert!(matches!(error, StoreError::NotRegular { .. }), "{error}");
    fs::remove_file(store_of(&folder)).unwrap();
    fs::create_dir(store_of(&folder)).unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::NotRegular { .. }), "{error}");
}

#[test]
fn a_store_is_open_once() {
    let (folder, store) = opened();
    let error = refused(&folder);
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    open(folder.path()).unwrap();
}

/// What the operator is told to do leads to an empty store of another name.
#[test]
fn a_store_moved_away_is_made_anew_as_another_instance() {
    let folder = closed();
    let former = open(folder.path()).unwrap().instance();
    fs::rename(store_of(&folder), folder.path().join("moved")).unwrap();
    let mut store = open(folder.path()).unwrap();
    assert_ne!(store.instance(), former);
    assert_eq!(store.load().unwrap(), []);
    assert!(folder.path().join("moved").exists());
}
