//! Sessions of unmodified daemons come up protected, and only with the right key.

use ao_tests::capture::Capture;
use ao_tests::daemon::{self, Daemon, Implementation, Speaker};
use ao_tests::progress;
use ao_tests::scene::{Opener, Session, checker_key};
use ao_tests::settings::refusal_watch;
use ao_tests::sidecar::{ALGORITHMS, Config, Key, Sidecar};
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;

use Implementation::{Bird, Frr, GoBgp, OpenBgpd};

/// Opens the session from either end, each time with another algorithm and another choice on
/// covering options, and recomputes every MAC seen on the wire.
fn comes_up_from_either_end(
    daemons: (Implementation, Implementation),
    family: Family,
    variant: usize,
) {
    for (turn, opener) in [Opener::A, Opener::B].into_iter().enumerate() {
        let mut key = Key::new(ALGORITHMS[(variant + 2 * turn) % ALGORITHMS.len()]);
        key.include_tcp_options = (variant + turn).is_multiple_of(2);
        progress!("{daemons:?} {family:?} opened by {opener:?}: {key:?}");
        let session = Session::start(daemons, family, key, opener);
        let established = session.sidecar_a.established();
        assert_eq!(established["current_key"], 1, "{established}");
        assert_eq!(established["rnext_key"], 2, "{established}");
        assert_eq!(established["segments_bad"], 0, "{established}");
        let status = session.sidecar_b.ask("status");
        assert_eq!(status["datapath"], "userspace", "{status}");
        assert_eq!(status["peers"][0]["sessions"], 1, "{status}");
        session.assert_untouched();
        session.check_wire();
    }
}

#[test]
fn bird_and_frr_come_up_over_ipv4() {
    comes_up_from_either_end((Bird, Frr), Family::V4, 0);
}

#[test]
fn bird_and_frr_come_up_over_ipv6() {
    comes_up_from_either_end((Bird, Frr), Family::V6, 1);
}

#[test]
fn bird_and_frr_come_up_over_link_local_addresses() {
    comes_up_from_either_end((Bird, Frr), Family::LinkLocal, 2);
}

#[test]
fn bird_and_gobgp_come_up_over_ipv4() {
    comes_up_from_either_end((Bird, GoBgp), Family::V4, 3);
}

#[test]
fn bird_and_gobgp_come_up_over_ipv6() {
    comes_up_from_either_end((Bird, GoBgp), Family::V6, 0);
}

#[test]
fn bird_and_gobgp_come_up_over_link_local_addresses() {
    comes_up_from_either_end((Bird, GoBgp), Family::LinkLocal, 1);
}

#[test]
fn frr_and_frr_come_up_over_ipv4() {
    comes_up_from_either_end((Frr, Frr), Family::V4, 2);
}

#[test]
fn frr_and_frr_come_up_over_ipv6() {
    comes_up_from_either_end((Frr, Frr), Family::V6, 3);
}

#[test]
fn frr_and_frr_come_up_over_link_local_addresses() {
    comes_up_from_either_end((Frr, Frr), Family::LinkLocal, 0);
}

#[test]
fn bird_and_openbgpd_come_up_over_ipv4() {
    comes_up_from_either_end((Bird, OpenBgpd), Family::V4, 1);
}

#[test]
fn bird_and_openbgpd_come_up_over_ipv6() {
    comes_up_from_either_end((Bird, OpenBgpd), Family::V6, 2);
}

fn comes_up_with(algorithm: &'static str) {
    for include_tcp_options in [true, false] {
        let mut key = Key::new(algorithm);
        key.include_tcp_options = include_tcp_options;
        let session = Session::start((Bird, Bird), Family::V6, key, Opener::A);
        session.assert_untouched();
        session.check_wire();
    }
}

#[test]
fn hmac_sha_1_96_works_with_options_covered_and_not() {
    comes_up_with("hmac-sha-1-96");
}

#[test]
fn aes_128_cmac_96_works_with_options_covered_and_not() {
    comes_up_with("aes-128-cmac-96");
}

#[test]
fn hmac_sha_256_96_works_with_options_covered_and_not() {
    comes_up_with("hmac-sha-256-96");
}

#[test]
fn hmac_sha_256_128_works_with_options_covered_and_not() {
    comes_up_with("hmac-sha-256-128");
}

/// Where the kernel has TCP-AO, or would stumble over the option, the engine removes it.
#[test]
fn every_algorithm_works_when_the_option_is_always_stripped() {
    for algorithm in ALGORITHMS {
        let key = Key::new(algorithm);
        let session = Session::start_with((Bird, Bird), Family::V4, key, Opener::B, |config| {
            config.strip = "always";
        });
        let status = session.sidecar_a.ask("status");
        assert_eq!(status["strips"], true, "{status}");
        session.assert_untouched();
        session.check_wire();
    }
}

#[test]
fn a_peer_may_be_configured_by_a_prefix() {
    for (family, prefix) in [(Family::V4, "10.0.0.0/24"), (Family::V6, "fd00::/64")] {
        let key = Key::default();
        let session = Session::start_with((Bird, Bird), family, key, Opener::A, |config| {
            config.peer = prefix.to_owned();
        });
        session.assert_untouched();
        session.check_wire();
    }
}

/// Starts a session whose ends disagree, and asserts that it stays down, that no unsigned
/// segment leaves a protected end, and that host a counts the refusals under `reasons`.
fn stays_down(key_a: &Key, key_b: Option<&Key>, reasons: &[&str]) {
    let lan = Lan::new();
    let family = Family::V4;
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "ip or ip6");
    let sidecar_a = Sidecar::start(
        &lan.a.namespace,
        &Config::new(&lan.b, family, key_a.clone()),
    );
    let sidecar_b = key_b
        .map(|key| Sidecar::start(&lan.b.namespace, &Config::new(&lan.a, family, key.clone())));
    let (mut a, mut b) = Speaker::pair(&lan.a, &lan.b, family);
    (a.passive, b.passive) = (false, false);
    let a = daemon::start(Bird, &lan.a.namespace, &a);
    let b = daemon::start(Bird, &lan.b.namespace, &b);
    wait::hold("the session staying down", refusal_watch(), || {
        for daemon in [&a, &b] {
            if let Ok(standing) = Daemon::standing(&**daemon)
                && standing.times_established > 0
            {
                return Err(format!("{standing:?}"));
            }
        }
        Ok(())
    });
    let drops = sidecar_a.drops();
    assert!(drops.of(reasons) > 0, "{reasons:?} not among {drops:?}");
    let key = checker_key(key_a, &lan.a, &lan.b, family);
    let report = capture.stop().check(
        &[key],
        &[
            "--allow", "bad", "--allow", "unsigned", "--allow", "unknown",
        ],
    );
    assert_eq!(report["10.0.0.1>10.0.0.2"]["unsigned"], 0, "{report}");
    if sidecar_b.is_some() {
        assert_eq!(report["10.0.0.2>10.0.0.1"]["unsigned"], 0, "{report}");
    }
}

#[test]
fn a_peer_with_a_wrong_key_is_refused() {
    let key = Key::default();
    let mut other = key.mirrored();
    other.secret.push('!');
    stays_down(&key, Some(&other), &["bad-mac"]);
}

#[test]
fn a_peer_with_a_wrong_id_is_refused() {
    let key = Key::default();
    let mut other = key.mirrored();
    other.send_id = 77;
    stays_down(&key, Some(&other), &["unknown-key-id"]);
}

#[test]
fn a_peer_with_a_wrong_algorithm_is_refused() {
    let key = Key::new("hmac-sha-1-96");
    let other = Key::new("aes-128-cmac-96").mirrored();
    stays_down(&key, Some(&other), &["bad-mac"]);
}

#[test]
fn a_peer_with_a_longer_mac_is_refused() {
    let key = Key::new("hmac-sha-256-96");
    let other = Key::new("hmac-sha-256-128").mirrored();
    stays_down(&key, Some(&other), &["mac-length"]);
}

#[test]
fn a_peer_that_does_not_cover_options_is_refused() {
    let key = Key::default();
    let mut other = key.mirrored();
    other.include_tcp_options = false;
    stays_down(&key, Some(&other), &["bad-mac"]);
}

#[test]
fn a_peer_without_tcp_ao_is_refused() {
    stays_down(
        &Key::default(),
        None,
        &["unsigned", "guard", "guard-unverified"],
    );
}
