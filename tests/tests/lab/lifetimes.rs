//! A key chain with lifetimes at one end; at the other Linux's own TCP-AO, which has all the keys
//! and knows nothing of the calendar.

use std::time::{Duration, SystemTime};

use ao_tests::capture::Capture;
use ao_tests::daemon::At;
use ao_tests::progress;
use ao_tests::rollover::refused_for_key;
use ao_tests::sidecar::{ALGORITHMS, Expiry, Key, Lifetime, PeerConfig, Sidecar};
use ao_tests::topology::{INTERFACE, Lan};
use ao_tests::wait;
use serde_json::{Value, json};

use super::kernel_ao::{Ends, in_kernel, kernel_counter};

/// How long each key is sent, from when the sessions are up.
const TERM: Duration = Duration::from_secs(20);

const LONG: Duration = Duration::from_secs(3600);

/// Both sessions come up within it; programs take seconds to start in the lab.
const UP: Duration = Duration::from_secs(50);

/// How long data goes either way: to the end of the calendar, whichever session is up first.
const EACH_WAY: Duration = Duration::from_secs(50);

/// Keys one after the other, the first of which ends a term after `now`.
fn chain(now: SystemTime) -> Vec<Key> {
    let changes = [now - LONG, now + TERM, now + 2 * TERM, now + LONG];
    let spans = changes.windows(2).zip(1..);
    spans
        .map(|(span, id)| Key {
            send_id: id,
            recv_id: 100 + id,
            secret: format!("secret number {id}"),
            lifetime: Some(Lifetime {
                start: span[0],
                end: span[1],
            }),
            ..Key::new(ALGORITHMS[usize::from(id) % 2])
        })
        .collect()
}

/// The engine with one address of host b, the kernel backend with another, both at once: data goes
/// one way and then the other while keys change by a calendar that a reload has brought.
#[test]
#[ignore = "needs the lab's kernel"]
fn keys_change_by_the_calendar_against_a_plain_kernel() {
    let lan = Lan::new();
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 179");
    let keys = chain(SystemTime::now());
    let backends = [("userspace", "10.0.0.2"), ("kernel", "10.0.0.12")];
    lan.b
        .namespace
        .ip(&format!("addr add 10.0.0.12/24 dev {INTERFACE}"));
    let peers = |keys: &[Key]| {
        backends.map(|(datapath, address)| PeerConfig {
            keys: keys.to_vec(),
            expiry: Some(Expiry {
                tolerance: "3s",
                then: "keep",
            }),
            datapath: Some(datapath),
            ..PeerConfig::new(address, Key::default())
        })
    };
    let lasting = Key {
        lifetime: None,
        ..keys[0].clone()
    };
    let mut sidecar = Sidecar::start_with_datapath(&lan.a.namespace, "auto", &peers(&[lasting]));
    let mirrored: Value = keys.iter().map(|key| in_kernel(&key.mirrored())).collect();
    let all = backends.map(|(datapath, address)| {
        let at_a = match datapath {
            "kernel" => At::under(&lan.a.namespace, &sidecar.launcher()),
            _ => At::plain(&lan.a.namespace),
        };
        let at_b = At::plain(&lan.b.namespace);
        let (a, b) = (lan.a.v4.to_string(), address);
        let server = json!([{ "local": b, "remote": a, "port": 179, "keys": mirrored }]);
        let client = json!([{ "local": a, "remote": b, "port": 179, "keys": [] }]);
        let seconds = EACH_WAY.as_secs().to_string();
        Ends::start((&at_b, server), (&at_a, client), &["--seconds", &seconds])
    });
    wait::until("both sessions", UP, || sidecar.all_established().len() == 2);
    let now = SystemTime::now();
    sidecar.reload(&peers(&chain(now)));
    let said = all.map(Ends::finish);
    let a = lan.a.v4.to_string();
    let of_backend = |(_, b): (&str, &str)| {
        let keys = keys.iter().map(|key| key.for_checker(&a, b));
        keys.collect::<Vec<_>>()
    };
    let of_both = backends.map(of_backend).concat();
    capture
        .stop()
        .check(&of_both, &["--offloaded", "--min-signed", "100"]);
    for (said, (datapath, _)) in said.into_iter().zip(backends) {
        progress!("{datapath}: {said}");
        let list = said.lines().find(|line| line.starts_with("served "));
        let list = list.and_then(|line| line.splitn(3, ' ').nth(2));
        let told: Value = serde_json::from_str(list.expect("the keys")).expect("their JSON");
        for key in &keys {
            let mut all = told.as_array().into_iter().flatten();
            let seen = all.find(|told| told["recv_id"] == key.send_id);
            let seen = seen.unwrap_or_else(|| panic!("no key {}: {told}", key.send_id));
            assert!(seen["good"].as_u64() > Some(0), "{datapath}: {seen}");
            assert_eq!(seen["bad"], 0, "{datapath}: {seen}");
        }
    }
    assert!(now.elapsed().is_ok_and(|passed| passed > 2 * TERM));
    for name in ["TCPAOBad", "TCPAOKeyNotFound", "TCPAORequired"] {
        for host in [&lan.a, &lan.b] {
            let count = kernel_counter(&host.namespace, name);
            assert_eq!(count, 0, "{name} at {}", host.namespace.name());
        }
    }
    // A kernel that has closed answers with the key it is asked for. The far end asks for the first
    // one to the end, which is gone by then, so the answer is unsigned, and the rules refuse it.
    let mut refused = refused_for_key(&sidecar);
    refused.retain(|reason, count| *count > 0 && reason != "unsigned");
    assert!(refused.is_empty(), "{refused:?}");
}
