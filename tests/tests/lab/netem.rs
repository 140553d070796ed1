//! A path that loses, reorders, doubles and delays.

use std::time::Duration;

use ao_tests::capture::Capture;
use ao_tests::daemon::{self, Implementation::Bird, Speaker, assert_never_down, wait_converged};
use ao_tests::netns::Namespace;
use ao_tests::progress;
use ao_tests::scene::{BULK_PORT, checker_key, streams};
use ao_tests::settings::soak;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::stream::{finish, wait_for_more};
use ao_tests::topology::{Family, Host, Lan};
use serde_json::Value;

const PATH: &str = "delay 10ms 4ms loss 3% duplicate 2% reorder 25% 50%";
const RATE: u64 = 400_000;
const LIMIT: Duration = Duration::from_secs(60);

/// Why a path like this makes the sidecar refuse a segment: a copy of a connection's last
/// segments comes after the connection has ended.
const CAUSED_BY_THE_PATH: [&str; 1] = ["unknown-connection"];

/// Octets each way.
fn octets() -> u64 {
    if soak() { 50_000_000 } else { 1_000_000 }
}

fn sidecar(host: &Namespace, far: &Host, family: Family, key: &Key) -> Sidecar {
    let peers = [179, BULK_PORT].map(|port| PeerConfig {
        port,
        ..PeerConfig::new(far.address_text(family), key.clone())
    });
    Sidecar::start_with_peers(host, &peers)
}

/// Everything refused so far, as `reason: count`.
fn refused(sidecar: &Sidecar) -> Vec<(String, u64)> {
    let counters = sidecar.ask("counters");
    let tables = counters["peers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|peer| &peer["drops"])
        .chain([&counters["drops"], &counters["firewall_drops"]]);
    tables
        .filter_map(Value::as_object)
        .flatten()
        .map(|(reason, count)| (reason.clone(), count.as_u64().unwrap_or(0)))
        .filter(|&(_, count)| count > 0)
        .collect()
}

/// A BGP session and a bulk transfer over such a path: neither loses anything.
fn nothing_is_lost(family: Family) {
    let lan = Lan::new();
    for port in [Lan::PORT_A, Lan::PORT_B] {
        let arguments = format!("qdisc add dev {port} root netem limit 10000 {PATH}");
        let arguments: Vec<&str> = arguments.split(' ').collect();
        lan.wire.run("tc", &arguments);
    }
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 179");
    let key = Key::default();
    let ends = [
        sidecar(&lan.a.namespace, &lan.b, family, &key),
        sidecar(&lan.b.namespace, &lan.a, family, &key.mirrored()),
    ];
    let (mut a, mut b) = Speaker::pair(&lan.a, &lan.b, family);
    // Several keepalives and hold times go by under the transfer.
    (a.hold_time, b.hold_time) = (9, 9);
    let a = daemon::start(Bird, &lan.a.namespace, &a);
    let b = daemon::start(Bird, &lan.b.namespace, &b);
    wait_converged(&*a, &*b, LIMIT);
    let (mut client, mut server) = streams(&lan.a, &lan.b, family, RATE);
    wait_for_more(&server, octets(), 10 * LIMIT);
    wait_for_more(
        &client,
        octets().saturating_sub(client.received()),
        10 * LIMIT,
    );
    for sidecar in &ends {
        let live = sidecar.all_established();
        assert_eq!(live.len(), 2, "{live:?}");
        for session in live {
            assert_eq!(session["segments_bad"], 0, "{session}");
            assert_eq!(session["segments_unsigned"], 0, "{session}");
        }
    }
    finish(&mut client, &mut server, LIMIT);
    assert_never_down(&*a);
    assert_never_down(&*b);
    for sidecar in &ends {
        let refused = refused(sidecar);
        progress!("{family:?}: refused {refused:?}");
        for (reason, count) in refused {
            assert!(
                CAUSED_BY_THE_PATH.contains(&reason.as_str()),
                "{count} segments refused as {reason}"
            );
        }
    }
    let disturbances = lan
        .wire
        .run("tc", &["-s", "qdisc", "show", "dev", Lan::PORT_A]);
    progress!("{disturbances}");
    assert!(!disturbances.contains("dropped 0,"), "{disturbances}");
    let key = checker_key(&key, &lan.a, &lan.b, family);
    // Of the transfer the far end and both engines have verified every octet.
    let report = capture.stop().check(&[key], &["--min-signed", "4"]);
    progress!("{report}");
}

#[test]
#[ignore = "needs the lab's kernel"]
fn loss_and_reordering_lose_nothing_over_ipv4() {
    nothing_is_lost(Family::V4);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn loss_and_reordering_lose_nothing_over_ipv6() {
    nothing_is_lost(Family::V6);
}
