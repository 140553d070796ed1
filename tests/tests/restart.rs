//! A sidecar that was killed or stopped goes on with live sessions, and no octet is lost.

use std::time::Duration;

use ao_tests::daemon::{self, Implementation, Speaker, assert_never_down, wait_converged};
use ao_tests::netns::Namespace;
use ao_tests::progress;
use ao_tests::random::Random;
use ao_tests::scene::{Bulk, Opener, Session, sidecars, streams};
use ao_tests::settings::{
    Blackout, CONVERGENCE, blackouts, long_blackouts, opening_blackouts, soak,
};
use ao_tests::sidecar::{Key, Sidecar};
use ao_tests::stream::STEADY;
use ao_tests::topology::{Chain, Family, Lan};
use ao_tests::wait;
use serde_json::Value;

/// How long TCP may take to go on after a blackout: its retransmission timer has doubled up to
/// the blackout's length or a little more.
fn recovery(blackout: Duration) -> Duration {
    blackout * 2 + Duration::from_secs(10)
}

/// Kills one of the sidecars, starts it again after the blackout.
fn black_out(sidecar: &mut Sidecar, length: Duration) {
    sidecar.kill();
    std::thread::sleep(length);
    sidecar.restart();
}

#[test]
fn a_killed_sidecar_loses_no_octet_of_a_bulk_transfer() {
    let Blackout { rounds, length } = blackouts();
    let lan = Lan::new();
    let mut random = Random::new();
    let mut bulk = Bulk::start(&lan.a, &lan.b, Family::V4, STEADY);
    for round in 1..=rounds {
        std::thread::sleep(random.span(Duration::from_secs(1)));
        let at_a = random.below(2) == 0;
        let sidecar = if at_a {
            &mut bulk.sidecar_a
        } else {
            &mut bulk.sidecar_b
        };
        black_out(sidecar, length);
        bulk.wait_for_more(STEADY / 2, recovery(length));
        progress!(
            "round {round} of {rounds}: host {} is back",
            if at_a { "a" } else { "b" }
        );
    }
    bulk.finish(recovery(length));
}

#[test]
fn a_killed_sidecar_loses_no_octet_of_a_bulk_transfer_over_ipv6() {
    let Blackout { length, .. } = blackouts();
    let lan = Lan::new();
    let mut bulk = Bulk::start(&lan.a, &lan.b, Family::LinkLocal, STEADY);
    bulk.sidecar_a.kill();
    bulk.sidecar_b.kill();
    std::thread::sleep(length);
    bulk.sidecar_a.restart();
    bulk.sidecar_b.restart();
    bulk.wait_for_more(STEADY / 2, recovery(length));
    bulk.finish(recovery(length));
}

#[test]
fn a_sidecar_stopped_in_order_goes_on_with_the_transfer() {
    let Blackout { length, .. } = blackouts();
    let lan = Lan::new();
    let mut bulk = Bulk::start(&lan.a, &lan.b, Family::V6, STEADY);
    assert!(bulk.sidecar_b.stop().success());
    std::thread::sleep(length);
    bulk.sidecar_b.restart();
    bulk.wait_for_more(STEADY / 2, recovery(length));
    bulk.finish(recovery(length));
}

#[test]
fn a_bgp_session_survives_a_killed_sidecar() {
    let Blackout { rounds, length } = long_blackouts();
    let daemons = (Implementation::Frr, Implementation::Bird);
    let mut session = Session::start(daemons, Family::V4, Key::default(), Opener::B);
    // One blackout is to be survived, not several that leave no room for a keepalive between them:
    // before the next one, keepalives have passed in both directions.
    let settled = if soak() { 4 } else { 1 };
    for round in 1..=rounds {
        black_out(&mut session.sidecar_a, length);
        wait::until(
            "segments of the session",
            recovery(length) + Duration::from_secs(70),
            || {
                let sessions = session.sidecar_a.ask("sessions");
                let mut sessions = sessions.as_array().into_iter().flatten();
                let good = |one: &Value| one["segments_good"].as_u64().unwrap_or(0);
                sessions.any(|one| one["state"] == "established" && good(one) >= settled)
            },
        );
        session.assert_untouched();
        progress!("round {round} of {rounds}");
    }
}

/// A moment while a connection is being opened, made to last: the middle router drops what would
/// end it.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The SYN is there, no SYN-ACK comes back.
    SynSent,
    /// The SYN-ACK is there, no ACK comes back.
    SynAckSent,
}

impl Moment {
    fn hold(self, router: &Namespace) {
        let rule = match self {
            Self::SynSent => "tcp flags & (syn|ack) == (syn|ack)",
            Self::SynAckSent => "ip saddr 10.0.1.1 tcp flags & (syn|ack) == ack",
        };
        router.nft(&format!(
            "table ip moment {{
                chain forward {{
                    type filter hook forward priority 0
                    {rule} counter drop
                }}
            }}"
        ));
    }

    /// Whether it has been reached: something was dropped.
    fn is_reached(router: &Namespace) -> bool {
        let rules = router.run("nft", &["list", "table", "ip", "moment"]);
        rules.contains("counter packets") && !rules.contains("counter packets 0 ")
    }

    fn release(router: &Namespace) {
        router.nft("delete table ip moment");
    }
}

fn survives_while_opening(moment: Moment, client_dies: bool) {
    let Blackout { rounds, length } = opening_blackouts();
    for _ in 0..rounds {
        let chain = Chain::new();
        let router = &chain.routers[1];
        let (mut sidecar_a, mut sidecar_b) = sidecars(&chain.a, &chain.b, Family::V4);
        moment.hold(router);
        let (mut client, mut server) = streams(&chain.a, &chain.b, Family::V4, STEADY);
        wait::until("the moment", Duration::from_secs(5), || {
            Moment::is_reached(router)
        });
        let sidecar = if client_dies {
            &mut sidecar_a
        } else {
            &mut sidecar_b
        };
        black_out(sidecar, length);
        Moment::release(router);
        ao_tests::stream::wait_for_more(&server, STEADY / 4, recovery(length));
        ao_tests::stream::wait_for_more(&client, STEADY / 4, recovery(length));
        ao_tests::stream::finish(&mut client, &mut server, Duration::from_secs(10));
    }
}

#[test]
fn the_opener_may_be_killed_between_its_syn_and_the_answer() {
    survives_while_opening(Moment::SynSent, true);
}

#[test]
fn the_listener_may_be_killed_while_its_syn_ack_is_on_the_way() {
    survives_while_opening(Moment::SynSent, false);
}

#[test]
fn the_opener_may_be_killed_while_its_ack_is_on_the_way() {
    survives_while_opening(Moment::SynAckSent, true);
}

#[test]
fn the_listener_may_be_killed_between_its_syn_ack_and_the_ack() {
    survives_while_opening(Moment::SynAckSent, false);
}

#[test]
fn on_exit_remove_takes_every_rule_away() {
    let lan = Lan::new();
    let family = Family::V4;
    let (mut sidecar_a, mut sidecar_b) =
        Sidecar::pair_with(&lan.a, &lan.b, family, &Key::default(), |config| {
            config.on_exit = "remove";
        });
    let (a, b) = Speaker::pair(&lan.a, &lan.b, family);
    let a = daemon::start(Implementation::Bird, &lan.a.namespace, &a);
    let b = daemon::start(Implementation::Bird, &lan.b.namespace, &b);
    wait_converged(&*a, &*b, CONVERGENCE);
    for (sidecar, host) in [(&mut sidecar_a, &lan.a), (&mut sidecar_b, &lan.b)] {
        assert!(sidecar.stop().success());
        let rules = firewall_rules(&host.namespace);
        assert!(rules.is_empty(), "left behind: {rules:?}");
    }
    // The daemons may go on, unprotected: neither end strips or adds anything.
    wait_converged(&*a, &*b, CONVERGENCE);
    assert_never_down(&*a);
}

/// Everything that nft and x_tables hold in a namespace, but empty built-in chains.
fn firewall_rules(namespace: &Namespace) -> Vec<String> {
    let mut rules: Vec<String> = Vec::new();
    for (program, arguments) in [
        ("nft", &["list", "ruleset"][..]),
        ("iptables-legacy-save", &[]),
        ("ip6tables-legacy-save", &[]),
    ] {
        let listing = namespace.run(program, arguments);
        let ours = listing
            .lines()
            .filter(|line| program == "nft" || line.starts_with("-A") || line.starts_with(":AO"));
        rules.extend(ours.map(str::to_owned));
    }
    rules
}
