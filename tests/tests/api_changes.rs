//! What is made by API: it outlives any crash, and a disk without room refuses it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use ao_tests::netns::Namespace;
use ao_tests::process::output;
use ao_tests::sidecar::{Config, Key, Sidecar};
use ao_tests::topology::{Family, Lan};

/// One peer of the file, which nobody is.
fn sidecar(namespace: &Namespace, lan: &Lan) -> Sidecar {
    let config = Config::new(&lan.b, Family::V4, Key::default());
    Sidecar::prepare(namespace, &config)
}

fn create(sidecar: &Sidecar, name: &str, address: &str) -> Result<String, String> {
    let words = ["peers", "create", name, "--peer-address", address];
    sidecar.operate(&[&words[..], &["--key-chain", "chain"]].concat())
}

fn names(sidecar: &Sidecar) -> Vec<String> {
    let peers = sidecar.ask("peers");
    let peers = peers.as_array().expect("a list of peers");
    let name = |peer: &serde_json::Value| peer["name"].as_str().map(str::to_owned);
    peers.iter().filter_map(name).collect()
}

/// After a kill at any moment of a change, it is made or it is not; what was told to be made is.
#[test]
fn a_change_outlives_a_kill_at_any_moment_or_was_never_made() {
    let lan = Lan::new();
    let mut sidecar = sidecar(&lan.a.namespace, &lan);
    sidecar.launch(&[]);
    sidecar.wait_ready();
    let mut expected = vec!["peer".to_owned()];
    for round in 0_u8..12 {
        let name = format!("p{round}");
        let address = format!("192.0.2.{}", 10 + round);
        let made = thread::scope(|scope| {
            let socket = sidecar.socket();
            let creating = {
                let (name, address) = (name.clone(), address.clone());
                scope.spawn(move || create_at(&socket, &name, &address))
            };
            // From before the call arrives to after its answer.
            thread::sleep(Duration::from_millis(u64::from(round) * 25));
            sidecar.kill();
            creating.join().expect("the call")
        });
        sidecar.restart();
        let there = names(&sidecar);
        match (made, there.contains(&name)) {
            (Ok(_), false) => panic!("{name} was made and is gone"),
            (_, true) => expected.push(name),
            (Err(_), false) => {}
        }
        assert_eq!(there, expected);
    }
    // The log of changes has whole lines only.
    let log = fs::read_to_string(sidecar.state_dir().join("audit.log")).expect("the audit log");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(line["outcome"].is_string(), "{line}");
    }
}

fn create_at(socket: &Path, name: &str, address: &str) -> Result<String, String> {
    let mut command = Command::new(ao_tests::sidecar::program("aoctl"));
    command.arg("--socket").arg(socket);
    command.args(["peers", "create", name, "--peer-address", address]);
    command.args(["--key-chain", "chain"]);
    output(command)
}

/// A file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m,mode=0700", "small"]);
        mount.arg(&at);
        output(mount).unwrap_or_else(|error| panic!("{error}"));
        Self(at)
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).expect("a file");
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("the file");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        // Whoever still has it open is about to end.
        unmount.arg("--lazy").arg(&self.0);
        let _ = output(unmount);
    }
}

#[test]
fn a_disk_without_room_refuses_a_change_and_nothing_is_changed() {
    let lan = Lan::new();
    let mut sidecar = sidecar(&lan.a.namespace, &lan);
    let disk = SmallDisk::mount(sidecar.state_dir());
    sidecar.launch(&[]);
    sidecar.wait_ready();
    create(&sidecar, "first", "192.0.2.10").unwrap_or_else(|error| panic!("{error}"));
    let before = names(&sidecar);

    disk.fill();
    // The audit log may have room in its last block, and then has none.
    for _ in 0..40 {
        let refused = create(&sidecar, "second", "192.0.2.11").expect_err("no room");
        let says_why = ["no room", "No space left"].map(|why| refused.contains(why));
        assert!(says_why.contains(&true), "{refused}");
        assert_eq!(names(&sidecar), before);
    }
    let alarms = sidecar.ask("status")["alarms"].to_string();
    assert!(alarms.contains("audit log"), "{alarms}");

    disk.empty();
    create(&sidecar, "second", "192.0.2.11").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(names(&sidecar), ["peer", "first", "second"]);
    let log = fs::read_to_string(sidecar.state_dir().join("audit.log")).expect("the audit log");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }
    sidecar.restart();
    assert_eq!(names(&sidecar), ["peer", "first", "second"]);
}
