//! From two fingerprints to a protected session, and back to it after a reboot.

use std::time::Duration;

use ao_tests::daemon::{Implementation, Speaker, wait_converged};
use ao_tests::rollover::{self, Pair, Session};
use ao_tests::settings::CONVERGENCE;
use ao_tests::topology::Family;
use ao_tests::wait;

use super::{ENGINE, by_hand, session};

/// Several attempts of a daemon to connect.
const WATCH: Duration = Duration::from_secs(4);

#[test]
fn two_fresh_sidecars_bring_a_session_up_and_nothing_unsigned_leaves() {
    let mut pair = Pair::prepare(ENGINE, by_hand());
    let (a, b) = Speaker::pair(&pair.lan.a, &pair.lan.b, Family::V4);
    pair.a.launch(&[]);
    pair.a.wait_ready();
    let daemon_a = rollover::start(Implementation::Bird, &pair.lan.a, &pair.a, &a);
    wait::hold("the peer being blocked", WATCH, || {
        let peers = pair.a.try_ask("peers")?;
        match peers[0]["state"] == "blocked" {
            true => Ok(()),
            false => Err(peers.to_string()),
        }
    });
    let refused = pair.a.drops();
    assert!(
        refused.of(&["no-key", "guard"]) > 0,
        "no attempt: {refused:?}"
    );
    assert_eq!(
        pair.wire().count("signed") + pair.wire().count("unsigned"),
        0
    );

    pair.b.launch(&[]);
    pair.b.wait_ready();
    let daemon_b = rollover::start(Implementation::Frr, &pair.lan.b, &pair.b, &b);
    wait_converged(&*daemon_a, &*daemon_b, CONVERGENCE);
    let keys = pair.a.agreed_keys().expect("the keys");
    let active = pair.a.rolling().active;
    let key = keys.iter().find(|key| key.generation == active);
    let id = key.map(|key| key.id).expect("the key in use");
    for sidecar in pair.both() {
        assert_eq!(sidecar.ask("peers")[0]["state"], "established");
        let session = sidecar.established();
        assert_eq!(session["current_key"], id, "{session}");
        assert_eq!(session["rnext_key"], id, "{session}");
    }
    let wire = pair.wire();
    assert_eq!(wire.count("unsigned"), 0, "{wire:?}");
    assert!(wire.count("signed") > 8, "{wire:?}");
}

#[test]
fn after_a_reboot_of_both_hosts_stored_keys_suffice_without_a_channel() {
    let Session { a, b, mut pair } = session(by_hand());
    let active = pair.wait_proven(1, CONVERGENCE);
    drop((a, b));
    for sidecar in [&mut pair.a, &mut pair.b] {
        assert!(sidecar.stop().success());
    }
    pair.cut();
    for sidecar in [&mut pair.a, &mut pair.b] {
        sidecar.restart();
    }
    let session = Session::bird_frr(pair, |_| (), CONVERGENCE);
    let pair = &session.pair;
    for sidecar in pair.both() {
        assert_eq!(sidecar.rolling().active, active);
    }
    pair.wait_rolling("the channel being cut", CONVERGENCE, |rolling| {
        !rolling.complaints.is_empty()
    });
    assert_eq!(pair.wire().count("unsigned"), 0);
    pair.mend();
    // A call that fails is tried again after a minute at the latest.
    pair.wait_rolling("the channel", Duration::from_secs(75), |rolling| {
        rolling.complaints.is_empty()
    });
    session.assert_never_down();
}
