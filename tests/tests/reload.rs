//! Keys change while a session is busy: SIGHUP makes the sidecar read its configuration again.

use std::time::Duration;

use ao_tests::netns::Namespace;
use ao_tests::scene::{BULK_PORT, Bulk, streams};
use ao_tests::settings::{CONVERGENCE, SIDECAR_START};
use ao_tests::sidecar::{ALGORITHMS, Key, PeerConfig, Sidecar};
use ao_tests::stream::STEADY;
use ao_tests::topology::{Family, Host, Lan};
use ao_tests::wait;
use nix::sys::signal::Signal;
use serde_json::Value;

/// How long the next segments of a busy session may take.
const SOON: Duration = Duration::from_secs(10);

/// Keys as host a has them, in order of preference.
fn old_and_new() -> [Key; 2] {
    let new = Key {
        send_id: 3,
        recv_id: 4,
        secret: "another secret of the tests".into(),
        ..Key::new(ALGORITHMS[1])
    };
    [Key::default(), new]
}

/// A peer with these keys; there must be one.
fn peer(far: &Host, keys: &[Key]) -> PeerConfig {
    let mut peer = PeerConfig::new(far.address_text(Family::V4), keys[0].clone());
    peer.port = BULK_PORT;
    peer.keys = keys.to_vec();
    peer
}

fn mirrored(keys: &[Key]) -> Vec<Key> {
    keys.iter().map(Key::mirrored).collect()
}

/// A transfer whose ends have these keys, given as host a has them.
fn start(lan: &Lan, keys: &[Key]) -> Bulk {
    let start = |namespace: &Namespace, far, keys: &[Key]| {
        Sidecar::start_with_peers(namespace, &[peer(far, keys)])
    };
    let sidecar_a = start(&lan.a.namespace, &lan.b, keys);
    let sidecar_b = start(&lan.b.namespace, &lan.a, &mirrored(keys));
    let (client, server) = streams(&lan.a, &lan.b, Family::V4, STEADY);
    let bulk = Bulk {
        client,
        server,
        sidecar_a,
        sidecar_b,
    };
    bulk.wait_for_more(STEADY / 10, CONVERGENCE);
    bulk
}

/// current_key and rnext_key.
fn keys_in_use(sidecar: &Sidecar) -> (Value, Value) {
    let session = sidecar.established();
    (session["current_key"].clone(), session["rnext_key"].clone())
}

fn wait_for_keys(sidecar: &Sidecar, current: u8, rnext: u8) {
    wait::until("the keys in use", SOON, || {
        keys_in_use(sidecar) == (current.into(), rnext.into())
    });
}

#[test]
fn keys_are_added_preferred_and_removed_under_a_transfer() {
    let lan = Lan::new();
    let [old, new] = old_and_new();
    let mut bulk = start(&lan, std::slice::from_ref(&old));
    let reload_a = |bulk: &mut Bulk, keys: &[Key]| {
        bulk.sidecar_a.reload(&[peer(&lan.b, keys)]);
    };
    let reload_b = |bulk: &mut Bulk, keys: &[Key]| {
        bulk.sidecar_b.reload(&[peer(&lan.a, &mirrored(keys))]);
    };
    let both = [old.clone(), new.clone()];
    reload_a(&mut bulk, &both);
    reload_b(&mut bulk, &both);
    bulk.wait_for_more(STEADY / 2, SOON);
    wait_for_keys(&bulk.sidecar_a, 1, 2);
    wait_for_keys(&bulk.sidecar_b, 2, 1);

    // Each end chooses the key of what it receives.
    let preferred = [new.clone(), old];
    reload_a(&mut bulk, &preferred);
    wait_for_keys(&bulk.sidecar_a, 1, 4);
    wait_for_keys(&bulk.sidecar_b, 4, 1);
    reload_b(&mut bulk, &preferred);
    wait_for_keys(&bulk.sidecar_a, 3, 4);
    wait_for_keys(&bulk.sidecar_b, 4, 3);
    bulk.wait_for_more(STEADY / 2, SOON);

    let only = [new];
    reload_b(&mut bulk, &only);
    bulk.wait_for_more(STEADY / 2, SOON);
    reload_a(&mut bulk, &only);
    bulk.wait_for_more(STEADY / 2, SOON);

    for sidecar in [&bulk.sidecar_a, &bulk.sidecar_b] {
        let session = sidecar.established();
        assert_eq!(session["segments_bad"], 0);
        assert_eq!(session["segments_unsigned"], 0);
        let drops = &sidecar.ask("counters")["peers"][0]["drops"];
        assert_eq!(drops, &serde_json::json!({}));
        assert_eq!(sidecar.ask("peers")[0]["keys"], 1);
    }
    bulk.finish(SOON);
}

#[test]
fn a_configuration_that_is_refused_changes_nothing() {
    let lan = Lan::new();
    let [old, new] = old_and_new();
    let mut bulk = start(&lan, &[old]);
    let before = bulk.sidecar_a.established();
    let file = bulk.sidecar_a.config_file();
    bulk.sidecar_a.configure(&[peer(&lan.b, &[new])]);
    let other_keys = std::fs::read_to_string(&file).expect("a configuration");
    // With what only a restart can change, the keys are not taken over, either.
    let other_queue = format!("{other_keys}[userspace]\nfirst_queue = 8000\n");
    for text in [other_queue.as_str(), "broken"] {
        std::fs::write(&file, text).expect("a configuration");
        let process = bulk.sidecar_a.process();
        let refused = |log: String| log.matches("the running configuration stays").count();
        let earlier = refused(process.log());
        process.signal(Signal::SIGHUP);
        wait::until("the refusal", SIDECAR_START, || {
            refused(process.log()) > earlier
        });
        bulk.wait_for_more(STEADY / 2, SOON);
    }
    let after = bulk.sidecar_a.established();
    for same in ["peer", "local", "remote", "current_key", "rnext_key"] {
        assert_eq!(before[same], after[same]);
    }
    assert_eq!(after["segments_bad"], 0);
    bulk.finish(SOON);
}
