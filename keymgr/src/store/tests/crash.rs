//! The store is stopped in each of its operations, and must be as before or after the save.

use super::simulated::{Failure, Loss, Simulated, is_empty};
use super::*;

fn key() -> SealingKey {
    let folder = tempfile::tempdir().unwrap();
    SealingKey::load(folder.path(), None).unwrap()
}

fn open_on(disk: &Simulated, key: &SealingKey) -> Result<Store, StoreError> {
    Store::open_on(Box::new(disk.clone()), FILE_NAME, key)
}

/// What the store has promised so far.
#[derive(Default)]
struct Promised {
    /// How many saves have returned.
    saves: usize,
    /// All slots that were ever saved, by their octets.
    slots: Vec<(String, SecretName, Vec<u8>)>,
}

impl Promised {
    /// Notes the slots that the store has now.
    fn note(&mut self, store: &Store) {
        let database = store.database.as_ref().unwrap();
        for slot in store.rows.slots(database).unwrap() {
            if !self.slots.contains(&slot) {
                self.slots.push(slot);
            }
        }
    }

    /// Slots of secrets that are not in `state`, though they were in an earlier one.
    fn destroyed(&self, state: &[Stored]) -> Vec<&[u8]> {
        let lives = |peer: &str, name: SecretName| {
            state.iter().any(|stored| {
                stored.peer == peer && stored.secrets.iter().any(|(other, _)| *other == name)
            })
        };
        let gone = self
            .slots
            .iter()
            .filter(|(peer, name, _)| !lives(peer, *name));
        gone.map(|(_, _, slot)| slot.as_slice()).collect()
    }
}

/// Opens the store and saves one state after the other, until the disk fails.
fn run(disk: &Simulated, key: &SealingKey, promised: &mut Promised) -> Result<(), StoreError> {
    let states = saved_states();
    let mut store = open_on(disk, key)?;
    for pair in states.windows(2) {
        sequence::save(&mut store, &pair[0], &pair[1])?;
        promised.saves += 1;
        promised.note(&store);
    }
    Ok(())
}

/// Whether 16 octets in a row of one of the slots are anywhere on the disk. Slots have 72; the
/// first 24 are the nonce.
fn found(disk: &Simulated, slots: &[&[u8]]) -> bool {
    let pieces: Vec<&[u8]> = slots
        .iter()
        .flat_map(|slot| slot.chunks_exact(16))
        .collect();
    let start = |octets: &[u8]| usize::from(u16::from_be_bytes([octets[0], octets[1]]));
    let mut starts = vec![false; 1 << 16];
    pieces.iter().for_each(|piece| starts[start(piece)] = true);
    let holds = |page: &[u8]| {
        // Most of a database is empty, and that is fast to see.
        !is_empty(page)
            && page
                .windows(16)
                .any(|window| starts[start(window)] && pieces.contains(&window))
    };
    disk.contents().iter().any(|file| {
        // Pages overlap, so that no piece is cut.
        (0..file.len())
            .step_by(4096)
            .any(|start| holds(&file[start..file.len().min(start + 4096 + 15)]))
    })
}

/// Checks a disk after a crash: nothing destroyed is there, and the store is as promised.
fn check(disk: &Simulated, key: &SealingKey, promised: &Promised, context: &str) {
    let states = saved_states();
    let before = &states[promised.saves];
    let after = states.get(promised.saves + 1).unwrap_or(before);
    let gone = promised.destroyed(before);
    assert!(!found(disk, &gone), "a destroyed slot is on disk {context}");
    let mut store = open_on(disk, key).unwrap_or_else(|error| panic!("{error} {context}"));
    let loaded = store.load().unwrap();
    assert!(loaded == *before || loaded == *after, "{context}");
    assert!(
        !found(disk, &promised.destroyed(&loaded)),
        "after opening {context}"
    );
    assert_eq!(disk.names(), [FILE_NAME], "{context}");
}

/// How many operations the whole sequence has.
fn operations(key: &SealingKey) -> u64 {
    let disk = Simulated::new();
    run(&disk, key, &mut Promised::default()).unwrap();
    disk.operations()
}

#[test]
fn killed_in_every_operation_it_is_as_before_or_after() {
    let key = key();
    let last = operations(&key);
    let mut runs = 0;
    for at in 1..=last {
        let disk = Simulated::new();
        disk.fail(Failure::Kill(at));
        let mut promised = Promised::default();
        // A kill while the store is being closed is nobody's error.
        let _ = run(&disk, &key, &mut promised);
        assert!(disk.killed());
        let seeds = [2 * at, 2 * at + 1];
        let losses = seeds.map(|seed| Loss::Power { seed });
        for loss in losses.into_iter().chain([Loss::Nothing]) {
            let context = format!("(killed in operation {at} of {last}, {loss:?})");
            check(&disk.after_crash(loss), &key, &promised, &context);
            runs += 1;
        }
    }
    println!("{runs} crashes in {last} operations");
    assert!(runs >= 1000, "{runs} runs");
}

/// A crash is followed by another one while the store is being opened.
#[test]
fn killed_while_it_recovers_it_is_as_before_or_after() {
    let key = key();
    let last = operations(&key);
    let mut runs = 0;
    for at in (1..=last).step_by(17) {
        let disk = Simulated::new();
        disk.fail(Failure::Kill(at));
        let mut promised = Promised::default();
        // A kill while the store is being closed is nobody's error.
        let _ = run(&disk, &key, &mut promised);
        assert!(disk.killed());
        let loss = |seed| {
            if seed % 2 == 0 {
                Loss::Nothing
            } else {
                Loss::Power { seed }
            }
        };
        for again in 1.. {
            let disk = disk.after_crash(loss(at));
            disk.fail(Failure::Kill(again));
            if open_on(&disk, &key).is_ok() && disk.operations() < again {
                break;
            }
            let disk = disk.after_crash(loss(at / 2 + again));
            let context = format!("(killed in operation {at}, then in {again} of recovery)");
            check(&disk, &key, &promised, &context);
            runs += 1;
        }
    }
    println!("{runs} double crashes");
    assert!(runs >= 1000, "{runs} runs");
}

#[test]
fn a_full_disk_changes_nothing_and_the_same_store_goes_on_when_there_is_room() {
    let key = key();
    let states = saved_states();
    let mut refused = 0;
    for at in (1..=operations(&key)).step_by(3) {
        let disk = Simulated::new();
        let mut store = open_on(&disk, &key).unwrap();
        disk.fail(Failure::Full(at));
        for pair in states.windows(2) {
            if let Err(error) = sequence::save(&mut store, &pair[0], &pair[1]) {
                assert!(
                    matches!(error, StoreError::Full { .. }),
                    "{error} (operation {at})"
                );
                assert_eq!(store.load().unwrap(), pair[0], "(operation {at})");
                disk.fail(Failure::Never);
                sequence::save(&mut store, &pair[0], &pair[1]).unwrap();
                refused += 1;
            }
            assert_eq!(store.load().unwrap(), pair[1], "(operation {at})");
        }
        assert_eq!(disk.names(), [FILE_NAME]);
    }
    println!("{refused} saves found the disk full");
    assert!(refused > 10, "{refused}");
}

#[test]
fn after_any_failure_of_the_disk_the_same_save_succeeds() {
    let key = key();
    let states = saved_states();
    let last = operations(&key);
    let mut failed = 0;
    for at in (1..=last).step_by(3) {
        let disk = Simulated::new();
        let mut store = open_on(&disk, &key).unwrap();
        let mut promised = Promised::default();
        disk.fail(Failure::Error(at));
        for pair in states.windows(2) {
            if sequence::save(&mut store, &pair[0], &pair[1]).is_err() {
                failed += 1;
                let loaded = store.load().unwrap();
                assert!(loaded == pair[0] || loaded == pair[1], "(operation {at})");
                sequence::save(&mut store, &pair[0], &pair[1]).unwrap();
            }
            assert_eq!(store.load().unwrap(), pair[1], "(operation {at})");
            promised.note(&store);
            assert!(
                !found(&disk, &promised.destroyed(&pair[1])),
                "(operation {at})"
            );
        }
    }
    println!("{failed} failures in {last} operations");
    assert!(failed > 100, "{failed}");
}

/// The search would see a slot: it finds those that live, and all of them if nothing is
/// overwritten.
#[test]
fn the_search_for_destroyed_slots_finds_what_is_there() {
    let key = key();
    let disk = Simulated::new();
    let mut promised = Promised::default();
    run(&disk, &key, &mut promised).unwrap();
    let all: Vec<&[u8]> = promised
        .slots
        .iter()
        .map(|(_, _, slot)| slot.as_slice())
        .collect();
    let states = saved_states();
    let gone = promised.destroyed(states.last().unwrap());
    assert!(gone.len() > 10 && gone.len() < all.len());
    assert!(found(&disk, &all));
    assert!(!found(&disk, &gone));
    // Before the first destruction all of them lived.
    let disk = Simulated::new();
    let mut store = open_on(&disk, &key).unwrap();
    let mut promised = Promised::default();
    sequence::save(&mut store, &states[0], &states[3]).unwrap();
    promised.note(&store);
    let slots = promised.slots.iter().map(|(_, _, slot)| slot.as_slice());
    for slot in slots {
        assert!(found(&disk, &[slot]));
    }
}
