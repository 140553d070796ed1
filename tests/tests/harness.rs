//! The harness proves itself: the daemons' sessions come up unprotected, and it can fail.

use std::time::Duration;

use ao_tests::attack::Attacker;
use ao_tests::capture::Capture;
use ao_tests::daemon::{self, Implementation, Speaker, assert_never_down, wait_converged};
use ao_tests::scene::streams;
use ao_tests::settings::CONVERGENCE;
use ao_tests::stream::{STEADY, finish, wait_for_more};
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;

fn comes_up(first: Implementation, second: Implementation) {
    for family in Family::ALL {
        for swap in [false, true] {
            let lan = Lan::new();
            let (mut a, mut b) = Speaker::pair(&lan.a, &lan.b, family);
            (a.passive, b.passive) = (swap, !swap);
            let a = daemon::start(first, &lan.a.namespace, &a);
            let b = daemon::start(second, &lan.b.namespace, &b);
            wait_converged(&*a, &*b, CONVERGENCE);
            assert_never_down(&*a);
            assert_never_down(&*b);
        }
    }
}

#[test]
fn an_unprotected_session_of_bird_and_frr_comes_up() {
    comes_up(Implementation::Bird, Implementation::Frr);
}

#[test]
fn an_unprotected_session_of_bird_and_gobgp_comes_up() {
    comes_up(Implementation::Bird, Implementation::GoBgp);
}

#[test]
fn an_unprotected_session_of_frr_and_frr_comes_up() {
    comes_up(Implementation::Frr, Implementation::Frr);
}

/// The attacks that the protected sessions withstand are real ones: without protection they end
/// a session.
#[test]
fn the_attacks_end_unprotected_sessions() {
    for family in [Family::V4, Family::V6] {
        for attack in ["rst", "fin", "wrong-key", "fragment"] {
            let lan = Lan::new();
            let capture = Capture::start(&lan.wire, Lan::PORT_A, "ip or ip6");
            let (a, b) = Speaker::pair(&lan.a, &lan.b, family);
            let a = daemon::start(Implementation::Bird, &lan.a.namespace, &a);
            let b = daemon::start(Implementation::Frr, &lan.b.namespace, &b);
            wait_converged(&*a, &*b, CONVERGENCE);
            let attacker = Attacker {
                namespace: &lan.wire,
                interface: Lan::PORT_A,
                victim: lan.a.address(family).to_string(),
                port: 179,
                capture: &capture.file(),
            };
            attacker.run(attack, &[]);
            wait::poll("the session going down", Duration::from_secs(5), || {
                let standing = a.standing()?;
                if !standing.established || standing.times_established > 1 {
                    return Ok(());
                }
                Err(format!("{family:?}: {attack} did no harm: {standing:?}"))
            });
        }
    }
}

#[test]
fn a_transfer_without_protection_arrives_whole_and_unsigned() {
    for family in Family::ALL {
        let lan = Lan::new();
        let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 5179");
        let (mut client, mut server) = streams(&lan.a, &lan.b, family, STEADY);
        wait_for_more(&server, STEADY, Duration::from_secs(10));
        finish(&mut client, &mut server, Duration::from_secs(10));
        let captured = capture.stop();
        let arguments = ["--port", "5179", "--allow", "unsigned"];
        let report = captured.check(&[], &arguments);
        let (a, b) = (lan.a.address(family), lan.b.address(family));
        let counts = &report[format!("{a}>{b}")];
        assert!(counts["unsigned"].as_u64() > Some(100), "{report}");
        // And the checker does complain when it is not told to allow that.
        let complaint = std::panic::catch_unwind(|| captured.check(&[], &arguments[..2]));
        assert!(complaint.is_err(), "the checker found nothing");
    }
}
