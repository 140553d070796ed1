//! A full table passes a protected session intact.

use std::time::Instant;

use ao_tests::capture::Capture;
use ao_tests::daemon::{self, Implementation, Speaker, assert_never_down, wait_converged};
use ao_tests::progress;
use ao_tests::scene::checker_key;
use ao_tests::settings::{soak, table_limit, table_routes};
use ao_tests::sidecar::{Key, Sidecar};
use ao_tests::topology::{Family, Lan};

/// Every route has a metric of its own, so no two share an UPDATE, and a single octet lost or
/// changed shows.
#[test]
fn a_full_table_arrives_intact() {
    let lan = Lan::new();
    let key = Key::default();
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 179");
    let (sidecar_a, _sidecar_b) = Sidecar::pair(&lan.a, &lan.b, Family::V4, &key);
    let (mut a, b) = Speaker::pair(&lan.a, &lan.b, Family::V4);
    a.routes = table_routes();
    let started = Instant::now();
    let a = daemon::start(Implementation::Bird, &lan.a.namespace, &a);
    let b = daemon::start(Implementation::Frr, &lan.b.namespace, &b);
    wait_converged(&*a, &*b, table_limit());
    progress!("{} routes within {:?}", table_routes(), started.elapsed());
    assert_never_down(&*a);
    assert_never_down(&*b);
    let session = sidecar_a.established();
    assert_eq!(session["segments_bad"], 0, "{session}");
    let finished = capture.stop();
    if !soak() {
        // Python takes too long for the full figure, and it would show nothing new.
        let key = checker_key(&key, &lan.a, &lan.b, Family::V4);
        finished.check(&[key], &["--max-ip-length", "1500"]);
    }
}
