//! Attacks by somebody on the wire: the session does not notice, the counters do.

use std::time::Duration;

use ao_tests::attack::Attacker;
use ao_tests::capture::Capture;
use ao_tests::daemon::assert_never_down;
use ao_tests::progress;
use ao_tests::scene::{BULK_PORT, Session, sidecars, streams};
use ao_tests::stream::{STEADY, Stream, finish, wait_for_more};
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;

/// How long after an attack its effect would have shown.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Attacks a live session and asserts that it stays up with all routes, and that host a refused
/// the packets for one of `reasons`: all of them, unless they are replays that TCP itself takes
/// for late duplicates.
fn does_no_harm(attack: &str, arguments: &[&str], reasons: &[&str], all_refused: bool) {
    for family in [Family::V4, Family::V6] {
        let session = Session::bird_frr(family);
        let capture = session.capture.file();
        let before = session.sidecar_a.drops();
        let sent = session.attacker(&capture).run(attack, arguments);
        let wanted = if all_refused { sent } else { 1 };
        let refused = wait::poll("the attack being counted", Duration::from_secs(5), || {
            let drops = session.sidecar_a.drops();
            let refused = drops.of(reasons) - before.of(reasons);
            if refused >= wanted {
                Ok(refused)
            } else {
                Err(format!(
                    "{refused} of {sent} refused for {reasons:?}: {drops:?}"
                ))
            }
        });
        progress!("{family:?}: {refused} of {sent} packets of {attack} refused");
        wait::hold("the session staying up", AFTERMATH, || {
            assert_never_down(&*session.a);
            assert_never_down(&*session.b);
            Ok(())
        });
        session.assert_untouched();
    }
}

/// Where unsigned segments are counted: in the engine, or in the firewall before it.
const UNSIGNED: [&str; 3] = ["unsigned", "guard", "guard-unverified"];

#[test]
fn forged_resets_do_no_harm() {
    does_no_harm("rst", &[], &UNSIGNED, true);
}

#[test]
fn unsigned_data_and_fin_do_no_harm() {
    does_no_harm("fin", &[], &UNSIGNED, true);
}

#[test]
fn unsigned_syns_do_no_harm() {
    does_no_harm("syn", &[], &UNSIGNED, true);
}

#[test]
fn segments_with_a_wrong_key_do_no_harm() {
    does_no_harm("wrong-key", &[], &["bad-mac"], true);
}

#[test]
fn fragments_with_an_injected_tail_do_no_harm() {
    does_no_harm("fragment", &[], &["fragment"], true);
}

#[test]
fn forged_icmp_does_no_harm() {
    does_no_harm(
        "icmp",
        &["--count", "3"],
        &["icmp-ignored", "icmp-unmatched"],
        false,
    );
}

#[test]
fn replayed_segments_do_no_harm() {
    for family in [Family::V4, Family::V6] {
        let session = Session::bird_frr(family);
        let capture = session.capture.file();
        let count = |session: &Session| {
            let good = &session.sidecar_a.established()["segments_good"];
            good.as_u64().expect("a count of segments")
        };
        let before = count(&session);
        let sent = session.attacker(&capture).run("replay", &["--count", "20"]);
        progress!("{family:?}: {sent} old segments replayed");
        // Their MACs are right; TCP itself discards them by their sequence numbers.
        wait::until("the replays being seen", Duration::from_secs(5), || {
            count(&session) > before
        });
        wait::hold("the session staying up", AFTERMATH, || {
            assert_never_down(&*session.a);
            assert_never_down(&*session.b);
            Ok(())
        });
        session.assert_untouched();
        // And the other way, where the listener is: the SYN of the session itself.
        let attacker = Attacker {
            interface: Lan::PORT_B,
            victim: session.lan.b.address(family).to_string(),
            ..session.attacker(&capture)
        };
        attacker.run("replay-syn", &[]);
        wait::hold("the session staying up", AFTERMATH, || {
            assert_never_down(&*session.a);
            assert_never_down(&*session.b);
            Ok(())
        });
        session.assert_untouched();
    }
}

#[test]
fn a_syn_replayed_in_time_wait_opens_nothing() {
    for family in [Family::V4, Family::V6] {
        let lan = Lan::new();
        let capture = Capture::start(&lan.wire, Lan::PORT_B, "ip or ip6");
        // Otherwise a replay, answered by an ACK, answered by a reset, ends TIME_WAIT (RFC 1337):
        // that is TCP's own weakness, signed or not.
        lan.b.namespace.sysctl("net.ipv4.tcp_rfc1337", "1");
        let _sidecars = sidecars(&lan.a, &lan.b, family);
        let (mut client, mut server) = streams(&lan.a, &lan.b, family, STEADY);
        wait_for_more(&server, STEADY / 4, Duration::from_secs(10));
        // The listening end closes first, so the connection lingers there.
        server.end();
        let limit = Duration::from_secs(10);
        let (sent, received) = server.finish(limit);
        assert_eq!(client.finish(limit), (received, sent));
        let lingering = || {
            let port = format!("( sport = :{BULK_PORT} )");
            lan.b
                .namespace
                .run("ss", &["-Htn", "state", "time-wait", &port])
        };
        assert!(!lingering().trim().is_empty(), "no connection in TIME_WAIT");

        let address = lan.b.socket_text(family, BULK_PORT);
        let mut second = Stream::serve(&lan.b.namespace, &address, STEADY);
        let attacker = Attacker {
            namespace: &lan.wire,
            interface: Lan::PORT_B,
            victim: lan.b.address(family).to_string(),
            port: BULK_PORT,
            capture: &capture.file(),
        };
        attacker.run("replay-syn", &[]);
        attacker.run("replay", &["--count", "20"]);
        wait::hold("nothing being opened", AFTERMATH, || {
            if second.is_connected() {
                return Err("a connection was accepted".into());
            }
            Ok(())
        });
        assert!(!lingering().trim().is_empty(), "TIME_WAIT was cut short");
        // A true connection still comes up.
        let mut client = Stream::connect(&lan.a.namespace, &address, STEADY);
        wait_for_more(&second, STEADY / 4, Duration::from_secs(10));
        finish(&mut client, &mut second, limit);
    }
}
