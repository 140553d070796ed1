//! Keys that the two sidecars agree on, on the kernel's sockets.

use std::collections::BTreeSet;
use std::time::Duration;

use ao_tests::capture::tool;
use ao_tests::daemon::{Daemon, Implementation, Speaker, assert_never_down, wait_converged};
use ao_tests::process::output;
use ao_tests::progress;
use ao_tests::rollover::{self, CHANGE, Pair, Session};
use ao_tests::settings::rolling;
use ao_tests::sidecar::{Sidecar, Terms};
use ao_tests::topology::Family;
use ao_tests::wait;
use serde_json::Value;

use super::{LIMIT, STEP, assert_in_kernel};

const KERNEL: (&str, &str) = ("kernel", "kernel");

fn session(datapaths: (&'static str, &'static str), change: impl Fn(&mut Speaker)) -> Session {
    let pair = Pair::start(datapaths, Terms::default(), LIMIT);
    Session::bird_frr(pair, change, LIMIT)
}

/// Keys on the sockets of a process, as the kernel itself tells: KeyIDs of each socket that has
/// some.
fn on_sockets(daemon: &dyn Daemon) -> Result<Vec<BTreeSet<u64>>, String> {
    let mut command = tool("socket_keys.py");
    command.arg(daemon.id().to_string());
    let told: Value = serde_json::from_str(&output(command)?).expect("the tool's JSON");
    let sockets = told.as_array().into_iter().flatten();
    let keys = sockets.map(|socket| {
        let keys = socket["keys"].as_array().into_iter().flatten();
        keys.filter_map(|key| key["send_id"].as_u64()).collect()
    });
    Ok(keys
        .filter(|keys: &BTreeSet<u64>| !keys.is_empty())
        .collect())
}

/// The kernel has no key that the sidecar lists no more.
fn assert_no_deleted_key(sidecar: &Sidecar, daemon: &dyn Daemon) {
    wait::poll("no deleted key on a socket", STEP, || {
        let sockets = on_sockets(daemon)?;
        let keys = sidecar.agreed_keys()?;
        let live: BTreeSet<u64> = keys.iter().map(|key| key.id).collect();
        match !sockets.is_empty() && sockets.iter().all(|keys| keys.is_subset(&live)) {
            true => Ok(()),
            false => Err(format!("{sockets:?} where {live:?} live")),
        }
    });
}

fn rolls(datapaths: (&'static str, &'static str)) {
    let session = session(datapaths, |_| ());
    // How long is asserted where nothing is emulated.
    let (changes, limit) = rolling();
    session.roll_under_churn(changes, 3 * limit);
    let pair = &session.pair;
    let ends = [(&pair.a, &session.a), (&pair.b, &session.b)];
    for (sidecar, daemon) in ends {
        if sidecar.datapath() == "kernel" {
            assert_in_kernel(sidecar);
            assert_no_deleted_key(sidecar, &**daemon);
        }
    }
    let wire = pair.wire();
    assert_eq!(wire.count("unsigned"), 0, "{wire:?}");
}

#[test]
#[ignore = "needs the lab's kernel"]
fn keys_roll_over_under_route_churn_with_the_kernel_at_both_ends() {
    rolls(KERNEL);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn keys_roll_over_under_route_churn_with_the_kernel_and_the_engine() {
    rolls(("kernel", "userspace"));
}

/// The kernel cannot speak up by itself: the proof waits for the next keepalive, and says so.
#[test]
#[ignore = "needs the lab's kernel"]
fn keys_of_a_quiet_session_roll_over_with_the_keepalives() {
    let session = session(KERNEL, |speaker| speaker.hold_time = 30);
    let pair = &session.pair;
    pair.wait_next(CHANGE);
    let waiting = wait::poll("the status telling what is waited for", CHANGE, || {
        let rolling = pair.a.try_rolling()?;
        let waiting = rolling.told["waiting"].as_str().unwrap_or_default();
        match rolling.active > 0 && !rolling.proven && waiting.contains("use") {
            true => Ok(waiting.to_owned()),
            false => Err(rolling.told.to_string()),
        }
    });
    progress!("{waiting}");
    for _ in 0..2 {
        let generation = pair.wait_next(CHANGE);
        progress!("generation {generation}");
    }
    session.assert_never_down();
    for sidecar in pair.both() {
        assert_in_kernel(sidecar);
    }
}

/// Until there is a key at both ends, connect(2) fails with EHOSTUNREACH and nothing leaves.
#[test]
#[ignore = "needs the lab's kernel"]
fn a_launched_daemon_is_blocked_until_there_are_keys() {
    let terms = Terms {
        interval: "24h",
        ..Terms::default()
    };
    let mut pair = Pair::prepare(KERNEL, terms);
    let (a, b) = Speaker::pair(&pair.lan.a, &pair.lan.b, Family::V4);
    pair.a.launch(&[]);
    pair.a.wait_ready();
    let daemon_a = rollover::start(Implementation::Bird, &pair.lan.a, &pair.a, &a);
    wait::poll("a refused attempt", STEP, || daemon_a.standing().map(drop));
    wait::hold("the peer being blocked", Duration::from_secs(8), || {
        let (peers, standing) = (pair.a.try_ask("peers")?, daemon_a.standing()?);
        match peers[0]["state"] == "blocked" && !standing.established {
            true => Ok(()),
            false => Err(format!("{peers} {standing:?}")),
        }
    });
    let wire = pair.wire();
    assert_eq!(wire.count("signed") + wire.count("unsigned"), 0, "{wire:?}");
    pair.b.launch(&[]);
    pair.b.wait_ready();
    let daemon_b = rollover::start(Implementation::Frr, &pair.lan.b, &pair.b, &b);
    wait_converged(&*daemon_a, &*daemon_b, LIMIT);
    assert_never_down(&*daemon_a);
    for sidecar in pair.both() {
        assert_in_kernel(sidecar);
    }
    assert_eq!(pair.wire().count("unsigned"), 0);
}
