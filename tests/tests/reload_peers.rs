//! Peers come, go and change while another peer's session is busy: nothing of it is lost.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use ao_tests::doctor::diagnose;
use ao_tests::scene::{BULK_PORT, streams};
use ao_tests::settings::CONVERGENCE;
use ao_tests::sidecar::{ALGORITHMS, Key, Sidecar};
use ao_tests::stream::{STEADY, Stream, finish, wait_for_more};
use ao_tests::topology::{Family, Host, Lan};
use ao_tests::wait;
use serde_json::{Value, json};

/// How long the next segments of a busy session may take.
const SOON: Duration = Duration::from_secs(10);
/// How long it may take until two sidecars have agreed on a first key.
const FIRST_KEY: Duration = Duration::from_secs(30);

/// `[[peer]]` with what else it has.
struct Entry {
    name: &'static str,
    address: String,
    keys: Keys,
    rest: String,
}

enum Keys {
    Chain(Key),
    Agreed { host: String, fingerprint: String },
}

impl Entry {
    fn new(name: &'static str, address: impl Into<String>, key: Key) -> Self {
        Self {
            name,
            address: address.into(),
            keys: Keys::Chain(key),
            rest: String::new(),
        }
    }

    /// Keys of `peer` are agreed with its sidecar.
    fn agreeing(name: &'static str, peer: &Host, sidecar: &Sidecar) -> Self {
        Self {
            keys: Keys::Agreed {
                host: peer.address_text(Family::V4),
                fingerprint: sidecar.fingerprint(),
            },
            ..Self::new(name, peer.address_text(Family::V4), Key::default())
        }
    }

    fn with(self, setting: &str) -> Self {
        Self {
            rest: format!("{}{setting}\n", self.rest),
            ..self
        }
    }

    fn text(&self) -> String {
        let Self {
            name,
            address,
            rest,
            ..
        } = self;
        let mut text = String::new();
        if let Keys::Chain(key) = &self.keys {
            let _ = write!(
                text,
                "[[key_chain]]\nname = \"{name}\"\n[[key_chain.key]]\nsend_id = {}\n\
                 recv_id = {}\nalgorithm = \"{}\"\nsecret = \"{}\"\n",
                key.send_id, key.recv_id, key.algorithm, key.secret
            );
        }
        let _ = write!(
            text,
            "[[peer]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {BULK_PORT}\n{rest}"
        );
        let _ = match &self.keys {
            Keys::Chain(_) => writeln!(text, "key_chain = \"{name}\""),
            Keys::Agreed { host, fingerprint } => writeln!(
                text,
                "[peer.rollover]\nendpoint = \"{host}:7179\"\nfingerprint = \"{fingerprint}\""
            ),
        };
        text
    }
}

fn write(sidecar: &Sidecar, peers: &[&Entry]) {
    let mut text = "datapath = \"userspace\"\n".to_owned();
    for peer in peers {
        text += &peer.text();
    }
    fs::write(sidecar.config_file(), text).expect("a configuration");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(sidecar.config_file(), mode).expect("a private configuration");
}

fn start(host: &Host, peers: &[&Entry]) -> Sidecar {
    let mut sidecar = Sidecar::bare(&host.namespace, "userspace");
    write(&sidecar, peers);
    sidecar.launch(&[]);
    sidecar.wait_ready();
    sidecar
}

/// The peer whose session must not notice anything, as each end has it.
fn busy_at_both(lan: &Lan) -> (Entry, Entry) {
    let at = |far: &Host, key| Entry::new("busy", far.address_text(Family::V4), key);
    let key = Key::default();
    (at(&lan.b, key.clone()), at(&lan.a, key.mirrored()))
}

/// Has the sidecar read another configuration.
fn reload(sidecar: &Sidecar, peers: &[&Entry]) {
    write(sidecar, peers);
    let done = sidecar.operate(&["config", "reload"]);
    done.unwrap_or_else(|error| panic!("{error}"));
}

/// The same, refused. Returns why.
fn refused(sidecar: &Sidecar, peers: &[&Entry]) -> String {
    write(sidecar, peers);
    refusal(sidecar)
}

/// Why the configuration as it is written now is refused.
fn refusal(sidecar: &Sidecar) -> String {
    let done = sidecar.operate(&["config", "reload"]);
    done.expect_err("a refusal")
}

fn names(sidecar: &Sidecar) -> Vec<Value> {
    let peers = sidecar.ask("peers");
    let peers = peers.as_array().expect("a list of peers");
    peers.iter().map(|peer| peer["name"].clone()).collect()
}

fn session_of(sidecar: &Sidecar, peer: &str) -> Option<Value> {
    let mut sessions = sidecar.all_established().into_iter();
    sessions.find(|session| session["peer"] == peer)
}

/// Not one segment of the peer was refused, and its session is the one it was.
fn assert_untouched(sidecar: &Sidecar, peer: &str, local: &Value) {
    let counters = sidecar.ask("counters");
    let of_peer = counters["peers"].as_array().into_iter().flatten();
    let mut of_peer = of_peer.filter(|counters| counters["name"] == peer);
    let counters = of_peer.next().expect("the peer's counters");
    assert_eq!(counters["drops"], json!({}), "{counters}");
    let session = session_of(sidecar, peer).expect("the session");
    assert_eq!(&session["local"], local);
    assert_eq!(session["segments_bad"], 0);
    assert_eq!(session["segments_unsigned"], 0);
}

fn another_key() -> Key {
    Key {
        secret: "another secret of the tests".into(),
        ..Key::new(ALGORITHMS[1])
    }
}

fn connected(streams: &(Stream, Stream)) {
    wait_for_more(&streams.0, STEADY / 20, CONVERGENCE);
    wait_for_more(&streams.1, STEADY / 20, CONVERGENCE);
}

#[test]
fn a_busy_session_loses_nothing_while_other_peers_come_go_and_change() {
    let lan = Lan::new();
    let (at_a, at_b) = busy_at_both(&lan);
    let sidecar_a = start(&lan.a, &[&at_a]);
    let sidecar_b = start(&lan.b, &[&at_b]);
    let mut busy = streams(&lan.a, &lan.b, Family::V4, STEADY * 8);
    connected(&busy);
    let local = session_of(&sidecar_a, "busy").expect("a session")["local"].clone();

    // A second peer comes, in front of the busy one, and has a session.
    let key = another_key();
    let second_a = Entry::new("second", lan.b.address_text(Family::V6), key.clone());
    let second_b = Entry::new("second", lan.a.address_text(Family::V6), key.mirrored());
    reload(&sidecar_a, &[&second_a, &at_a]);
    reload(&sidecar_b, &[&second_b, &at_b]);
    assert_eq!(names(&sidecar_a), ["second", "busy"]);
    let mut second = streams(&lan.a, &lan.b, Family::V6, STEADY);
    connected(&second);
    assert!(session_of(&sidecar_a, "second").is_some());

    // A third one, which nobody is; the others change places.
    let third = Entry::new("third", "192.0.2.77", Key::default()).with("ttl_min = 255");
    reload(&sidecar_a, &[&at_a, &third, &second_a]);
    assert_eq!(names(&sidecar_a), ["busy", "third", "second"]);
    connected(&second);

    // The second one gets other settings and keys, and goes on.
    let second_key = Key {
        send_id: 7,
        recv_id: 8,
        ..Key::default()
    };
    let changed_a = Entry::new("second", lan.b.address_text(Family::V6), second_key.clone());
    let changed_b = Entry::new(
        "second",
        lan.a.address_text(Family::V6),
        second_key.mirrored(),
    );
    let changed_a = changed_a.with("ttl_min = 1");
    reload(&sidecar_a, &[&at_a, &third, &changed_a]);
    reload(&sidecar_b, &[&changed_b, &at_b]);
    connected(&second);

    // It goes, with its session.
    reload(&sidecar_a, &[&at_a]);
    assert_eq!(names(&sidecar_a), ["busy"]);
    wait::until("the end of the session", SOON, || {
        !second.0.is_running() || !second.1.is_running()
    });

    wait_for_more(&busy.0, STEADY, SOON);
    wait_for_more(&busy.1, STEADY, SOON);
    for sidecar in [&sidecar_a, &sidecar_b] {
        let local = match std::ptr::eq(sidecar, &raw const sidecar_a) {
            true => local.clone(),
            false => session_of(sidecar, "busy").expect("a session")["local"].clone(),
        };
        assert_untouched(sidecar, "busy", &local);
    }
    finish(&mut busy.0, &mut busy.1, SOON);
}

#[test]
fn an_error_half_way_leaves_everything_as_it_was() {
    let lan = Lan::new();
    let (at_a, at_b) = busy_at_both(&lan);
    let sidecar_a = start(&lan.a, &[&at_a]);
    let _sidecar_b = start(&lan.b, &[&at_b]);
    let mut busy = streams(&lan.a, &lan.b, Family::V4, STEADY);
    connected(&busy);
    let local = session_of(&sidecar_a, "busy").expect("a session")["local"].clone();
    let rekeyed = Entry::new("busy", lan.b.address_text(Family::V4), another_key());

    // What comes first is correct, what comes second is not.
    let absent = Entry::new("second", "192.0.2.77", Key::default());
    let text = absent.text().replace(
        "secret = \"a secret of the tests\"",
        "secret_file = \"absent.key\"",
    );
    write(&sidecar_a, &[&rekeyed]);
    let file = sidecar_a.config_file();
    let first = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, first + &text).expect("a configuration");
    let reason = refusal(&sidecar_a);
    assert!(reason.contains("absent.key"), "{reason}");

    // A session that is not protected is alive with the peer that comes.
    let mut plain = streams(&lan.a, &lan.b, Family::V6, STEADY);
    connected(&plain);
    let second = Entry::new("second", lan.b.address_text(Family::V6), another_key());
    let reason = refused(&sidecar_a, &[&rekeyed, &second]);
    assert!(reason.contains("unprotected session"), "{reason}");
    connected(&plain);
    finish(&mut plain.0, &mut plain.1, SOON);

    // What needs a restart.
    write(&sidecar_a, &[&rekeyed]);
    let text = fs::read_to_string(&file).expect("a configuration");
    fs::write(
        &file,
        format!("on_exit = \"keep\"\n{text}[userspace]\nworkers = 7\n"),
    )
    .expect("a configuration");
    let reason = refusal(&sidecar_a);
    assert!(reason.contains("restart"), "{reason}");

    connected(&busy);
    assert_eq!(names(&sidecar_a), ["busy"]);
    assert_untouched(&sidecar_a, "busy", &local);
    finish(&mut busy.0, &mut busy.1, SOON);
}

/// A new entry in the file, a sidecar killed before anybody has seen to the session: whoever was
/// protected must not wait for whoever was not.
#[test]
fn a_restart_beside_an_unprotected_session_leaves_out_its_peer_alone() {
    let lan = Lan::new();
    let (busy_at_a, busy_at_b) = busy_at_both(&lan);
    let plain_at_a = Entry::new("plain", lan.b.address_text(Family::V6), another_key());
    let mut sidecar_a = start(&lan.a, &[&busy_at_a]);
    let _sidecar_b = start(&lan.b, &[&busy_at_b]);
    let mut busy = streams(&lan.a, &lan.b, Family::V4, STEADY);
    let mut plain = streams(&lan.a, &lan.b, Family::V6, STEADY);
    connected(&busy);
    connected(&plain);

    write(&sidecar_a, &[&busy_at_a, &plain_at_a]);
    sidecar_a.kill();
    sidecar_a.restart();
    wait_for_more(&busy.0, STEADY, SOON);
    wait_for_more(&plain.1, STEADY, SOON);
    assert_eq!(names(&sidecar_a), ["busy"]);
    let alarms = || sidecar_a.ask("status")["alarms"].to_string();
    for word in ["plain", "not protected", "--replace-sessions"] {
        assert!(alarms().contains(word), "{}", alarms());
    }
    let reason = refusal(&sidecar_a);
    assert!(reason.contains("unprotected session"), "{reason}");
    assert!(alarms().contains("plain"), "{}", alarms());

    let told = diagnose(&sidecar_a, &["--listen", "0s"]);
    let mut problems = told.of_severity("problem");
    let is_it = |found: &Value| found["code"] == "left-out" && found["peer"] == "plain";
    assert!(problems.any(is_it), "{told:#?}");

    // Changes that have nothing to do with it go on.
    let words = ["--peer-address", "192.0.2.9", "--key-chain", "busy"];
    let words = ["peers", "create", "made"].into_iter().chain(words);
    let done = sidecar_a.operate(&words.collect::<Vec<_>>());
    done.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(names(&sidecar_a), ["busy", "made"]);
    assert!(alarms().contains("plain"), "{}", alarms());

    finish(&mut plain.0, &mut plain.1, SOON);
    wait::until("the peer being taken in", SOON, || {
        // The alarm goes once all of the configuration is taken over, after the peer is served.
        names(&sidecar_a) == ["busy", "plain", "made"] && !alarms().contains("plain")
    });
    finish(&mut busy.0, &mut busy.1, SOON);
}

#[test]
fn a_peer_changes_between_a_key_chain_and_agreed_keys() {
    let lan = Lan::new();
    let static_a = Entry::new("peer", lan.b.address_text(Family::V4), Key::default());
    let static_b = Entry::new(
        "peer",
        lan.a.address_text(Family::V4),
        Key::default().mirrored(),
    );
    let sidecar_a = start(&lan.a, &[&static_a]);
    let sidecar_b = start(&lan.b, &[&static_b]);
    let run = || {
        let mut streams = streams(&lan.a, &lan.b, Family::V4, STEADY);
        connected(&streams);
        finish(&mut streams.0, &mut streams.1, SOON);
    };
    run();
    for _ in 0..2 {
        // Neither store nor listener is there before the first automatic peer.
        reload(&sidecar_a, &[&Entry::agreeing("peer", &lan.b, &sidecar_b)]);
        reload(&sidecar_b, &[&Entry::agreeing("peer", &lan.a, &sidecar_a)]);
        for sidecar in [&sidecar_a, &sidecar_b] {
            wait::until("a key in use", FIRST_KEY, || {
                let status = sidecar.operate(&["rollover", "status", "--json"]);
                let status: Value =
                    serde_json::from_str(&status.unwrap_or_default()).unwrap_or_default();
                status[0]["active"]["number"].as_u64().unwrap_or(0) > 0
            });
        }
        run();
        reload(&sidecar_a, &[&static_a]);
        reload(&sidecar_b, &[&static_b]);
        run();
        let keys = sidecar_a.operate(&["keys", "list", "--json"]);
        let keys: Value = serde_json::from_str(&keys.expect("keys")).expect("keys");
        assert_eq!(keys.as_array().map(Vec::len), Some(1), "{keys}");
    }
}
