//! Key chains whose keys change by the calendar, the same at both ends.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use ao_tests::capture::Capture;
use ao_tests::daemon::{self, Implementation, Speaker, wait_converged};
use ao_tests::progress;
use ao_tests::rollover::{Wire, refused_for_key};
use ao_tests::scene::{BULK_PORT, Bulk, streams};
use ao_tests::settings::CONVERGENCE;
use ao_tests::sidecar::{ALGORITHMS, Expiry, Key, Lifetime, PeerConfig, Sidecar};
use ao_tests::stream::STEADY;
use ao_tests::topology::{Family, Host, Lan};
use ao_tests::wait;
use serde_json::Value;

/// Octets per second; few enough to look at all of them afterwards.
const RATE: u64 = STEADY / 20;

/// How long each key is sent.
const TERM: Duration = Duration::from_secs(10);

/// How far apart clocks may be by the chain, and how far they are.
const TOLERANCE: &str = "5s";
const APART: Duration = Duration::from_secs(4);

const LONG: Duration = Duration::from_secs(3600);

/// Keys 1, 2 and 3, one after the other; the first one changes `TERM` after `now`.
fn three_keys(now: SystemTime) -> Vec<Key> {
    let changes = [now - LONG, now + TERM, now + 2 * TERM, now + LONG];
    let spans = changes.windows(2).zip(1..);
    spans
        .map(|(span, id)| Key {
            send_id: id,
            recv_id: id,
            secret: format!("secret number {id}"),
            lifetime: Some(Lifetime {
                start: span[0],
                end: span[1],
            }),
            ..Key::new(ALGORITHMS[usize::from(id) % 2])
        })
        .collect()
}

/// A peer whose chain has these keys.
fn peer(far: &Host, port: u16, keys: Vec<Key>, expiry: Expiry) -> PeerConfig {
    PeerConfig {
        port,
        keys,
        expiry: Some(expiry),
        ..PeerConfig::new(far.address_text(Family::V4), Key::default())
    }
}

fn in_use(sidecar: &Sidecar) -> (Value, Value) {
    let session = sidecar.established();
    (session["current_key"].clone(), session["rnext_key"].clone())
}

#[test]
fn keys_change_by_the_calendar_with_clocks_apart_and_no_octet_is_lost() {
    let lan = Lan::new();
    let filter = format!("tcp port {BULK_PORT}");
    let capture = Capture::start(&lan.wire, Lan::PORT_A, &filter);
    let expiry = Expiry {
        tolerance: TOLERANCE,
        then: "keep",
    };
    let now = SystemTime::now();
    // A clock that is behind meets the same lifetimes later.
    let start = |own: &Host, far: &Host, now| {
        let peer = peer(far, BULK_PORT, three_keys(now), expiry);
        Sidecar::start_with_peers(&own.namespace, &[peer])
    };
    let sidecar_a = start(&lan.a, &lan.b, now);
    let sidecar_b = start(&lan.b, &lan.a, now + APART);
    let (client, server) = streams(&lan.a, &lan.b, Family::V4, RATE);
    let mut bulk = Bulk {
        client,
        server,
        sidecar_a,
        sidecar_b,
    };
    bulk.wait_for_more(RATE / 10, CONVERGENCE);
    let mut seen = BTreeSet::new();
    wait::poll("the last key in use at both ends", TERM * 4, || {
        let both = [in_use(&bulk.sidecar_a), in_use(&bulk.sidecar_b)];
        if seen.insert(format!("{both:?}")) {
            progress!("{:?}: {both:?}", now.elapsed().unwrap_or_default());
        }
        match both.iter().all(|keys| *keys == (3.into(), 3.into())) {
            true => Ok(()),
            false => Err(format!("{both:?}")),
        }
    });
    bulk.wait_for_more(RATE, Duration::from_secs(10));
    for sidecar in [&bulk.sidecar_a, &bulk.sidecar_b] {
        let mut refused = refused_for_key(sidecar);
        refused.retain(|_, count| *count > 0);
        assert!(refused.is_empty(), "{refused:?}");
    }
    bulk.finish(Duration::from_secs(10));
    let wire = Wire::of(&capture, BULK_PORT);
    assert_eq!(wire.key_ids(), BTreeSet::from([1, 2, 3]), "{wire:?}");
    assert_eq!(wire.count("unsigned"), 0, "{wire:?}");
}

/// One key that ends soon.
fn ending(now: SystemTime) -> Vec<Key> {
    vec![Key {
        recv_id: 1,
        lifetime: Some(Lifetime {
            start: now - LONG,
            end: now + TERM,
        }),
        ..Key::default()
    }]
}

#[test]
fn a_chain_that_ran_out_keeps_its_last_key_unless_told_otherwise() {
    let lan = Lan::new();
    let expiry = Expiry {
        tolerance: "1s",
        then: "keep",
    };
    let now = SystemTime::now();
    let start = |own: &Host, far: &Host| {
        let peer = peer(far, BULK_PORT, ending(now), expiry);
        Sidecar::start_with_peers(&own.namespace, &[peer])
    };
    let (sidecar_a, sidecar_b) = (start(&lan.a, &lan.b), start(&lan.b, &lan.a));
    let (client, server) = streams(&lan.a, &lan.b, Family::V4, RATE);
    let mut bulk = Bulk {
        client,
        server,
        sidecar_a,
        sidecar_b,
    };
    let ran_out = |sidecar: &Sidecar| {
        let events = sidecar.events();
        events.iter().any(|event| event["kind"] == "chain-over")
    };
    wait::until("an alarm at both ends", TERM * 3, || {
        ran_out(&bulk.sidecar_a) && ran_out(&bulk.sidecar_b)
    });
    // Past the tolerance, too.
    std::thread::sleep(Duration::from_secs(3));
    bulk.wait_for_more(RATE, Duration::from_secs(10));
    for sidecar in [&bulk.sidecar_a, &bulk.sidecar_b] {
        assert_eq!(in_use(sidecar), (1.into(), 1.into()));
    }
    bulk.finish(Duration::from_secs(10));
}

#[test]
fn a_chain_that_ran_out_closes_its_sessions_where_told_so() {
    let lan = Lan::new();
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 179");
    let expiry = Expiry {
        tolerance: "1s",
        then: "close",
    };
    let now = SystemTime::now();
    let start = |own: &Host, far: &Host| {
        let peer = peer(far, 179, ending(now), expiry);
        Sidecar::start_with_peers(&own.namespace, &[peer])
    };
    let (sidecar_a, sidecar_b) = (start(&lan.a, &lan.b), start(&lan.b, &lan.a));
    let (a, b) = Speaker::pair(&lan.a, &lan.b, Family::V4);
    let a = daemon::start(Implementation::Bird, &lan.a.namespace, &a);
    let b = daemon::start(Implementation::Bird, &lan.b.namespace, &b);
    wait_converged(&*a, &*b, TERM);
    let closed = || {
        for (sidecar, daemon) in [(&sidecar_a, &a), (&sidecar_b, &b)] {
            let (peers, standing) = (sidecar.try_ask("peers")?, daemon.standing()?);
            if peers[0]["state"] != "blocked" || standing.established {
                return Err(format!("{peers} {standing:?}"));
            }
        }
        Ok(())
    };
    wait::poll("both ends being closed", TERM * 3, closed);
    wait::hold("them staying closed", Duration::from_secs(4), closed);
    let wire = Wire::of(&capture, 179);
    assert_eq!(wire.count("unsigned"), 0, "{wire:?}");
    assert!(wire.count("signed") > 8, "{wire:?}");
}
