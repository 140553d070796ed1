//! A process that saves without pause is killed again and again; whatever it had saved is there.
//!
//! With a `main` of its own: the same program, given a folder, is the process that is killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it did"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, io, thread};

use libtest_mimic::{Arguments, Trial};

use keymgr::secret::{Secret, SecretKind, SecretName};
use keymgr::store::{Entry, FILE_NAME, SealingKey, Store};

const KILLS: u64 = 60;
const PEERS: [&str; 2] = ["as64501", "as64502"];

fn main() {
    if let Some(folder) = env::var_os("AO_STORE_KILL_FOLDER") {
        return save_for_ever(Path::new(&folder));
    }
    let test = Trial::test("killed_in_a_save_it_is_as_before_or_after", || {
        kill_again_and_again();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit();
}

fn open(folder: &Path) -> Store {
    let key = SealingKey::load(folder, None).unwrap();
    Store::open(&folder.join(FILE_NAME), &key).unwrap()
}

/// How many saves the store has seen, after a check that all peers tell of the same one.
fn saved(store: &mut Store) -> u64 {
    let loaded = store.load().unwrap();
    let Some(first) = loaded.first() else {
        return 0;
    };
    let step = u64::from_be_bytes(first.meta.as_slice().try_into().unwrap());
    assert_eq!(loaded.len(), PEERS.len());
    for stored in loaded {
        assert_eq!(stored.meta, first_octets(step));
        assert_eq!(stored.secrets, secrets(&stored.peer, step));
    }
    step
}

fn first_octets(step: u64) -> [u8; 8] {
    step.to_be_bytes()
}

/// The secrets of a peer after a save: up to four, and every other save destroys one.
fn secrets(peer: &str, step: u64) -> Vec<(SecretName, Secret)> {
    let newest = step.div_ceil(2);
    let oldest = (step / 2).saturating_sub(2) + 1;
    let secret = |number: u64| {
        let kind = SecretKind::MasterKey;
        let octets = [peer.as_bytes(), &number.to_be_bytes()].concat();
        (SecretName { number, kind }, Secret::new(&octets))
    };
    (oldest..=newest).map(secret).collect()
}

fn save_for_ever(folder: &Path) {
    let mut store = open(folder);
    let mut step = saved(&mut store);
    loop {
        step += 1;
        let meta = first_octets(step);
        let all = PEERS.map(|peer| secrets(peer, step));
        let entries = PEERS.iter().zip(&all).map(|(peer, secrets)| Entry {
            peer,
            meta: &meta,
            secrets: secrets
                .iter()
                .map(|(name, secret)| (*name, secret))
                .collect(),
        });
        store.save(&entries.collect::<Vec<_>>()).unwrap();
        // The parent reads until the end; without it there is nothing left to do.
        if writeln!(io::stdout(), "{step}").is_err() {
            return;
        }
    }
}

fn kill_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut saves = saved(&mut open(folder.path()));
    for kill in 0..KILLS {
        let mut child = Killed(
            Command::new(env::current_exe().unwrap())
                .env("AO_STORE_KILL_FOLDER", folder.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let first = lines.next().expect("a save before the kill").unwrap();
        // Wherever that is in a save: from its beginning to the middle of a later one.
        thread::sleep(Duration::from_micros(kill * 7919 % 20_000));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        let told = lines.map_while(Result::ok).last().unwrap_or(first);
        let told: u64 = told.parse().unwrap();
        let found = saved(&mut open(folder.path()));
        assert!(
            found == told || found == told + 1,
            "told {told}, found {found}"
        );
        assert!(found > saves, "{found} after {saves}");
        saves = found;
        let files = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 4, "store, sealing key, and a lock for each");
    }
    println!("{KILLS} kills, {saves} saves");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Ended already, unless the test fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
