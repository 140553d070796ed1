//! Path MTU: the octets that TCP does not know of never stall a session.

use std::time::Duration;

use ao_tests::capture::Capture;
use ao_tests::daemon::{self, Implementation, Speaker, assert_never_down, wait_converged};
use ao_tests::progress;
use ao_tests::scene::{BULK_PORT, Bulk, checker_key, streams};
use ao_tests::settings::CONVERGENCE;
use ao_tests::sidecar::{Key, Sidecar};
use ao_tests::stream::{STEADY, Stream, finish};
use ao_tests::topology::{Chain, Family, INTERFACE};

/// IPv6 guarantees 1280, so this can be had with both.
const NARROW: u32 = 1300;

/// Longer than a retransmission or two, much shorter than what TCP takes to give up.
const NO_STALL: Duration = Duration::from_secs(10);

fn narrow_both_ways(chain: &Chain, mtu: u32) {
    chain.narrow_towards_b(mtu);
    chain.narrow_towards_a(mtu);
}

#[test]
fn a_path_that_shrinks_two_hops_away_does_not_stall_a_live_transfer() {
    for family in [Family::V4, Family::V6] {
        let chain = Chain::new();
        let capture = Capture::start(&chain.a.namespace, INTERFACE, "ip or ip6");
        let mut bulk = Bulk::start(&chain.a, &chain.b, family, STEADY);
        for mtu in [1400, NARROW] {
            narrow_both_ways(&chain, mtu);
            bulk.wait_for_more(2 * STEADY, NO_STALL);
            progress!("{family:?}: going on at MTU {mtu}");
        }
        bulk.finish(NO_STALL);
        let key = checker_key(&Key::default(), &chain.a, &chain.b, family);
        let port = BULK_PORT.to_string();
        capture
            .stop()
            .check(&[key], &["--port", &port, "--max-ip-length", "1500"]);
    }
}

#[test]
fn a_path_that_shrinks_does_not_stall_a_bgp_session_with_routes_in_flight() {
    for family in [Family::V4, Family::V6] {
        let chain = Chain::new();
        let key = Key::default();
        let _sidecars = Sidecar::pair(&chain.a, &chain.b, family, &key);
        let (a, mut b) = Speaker::pair(&chain.a, &chain.b, family);
        b.routes = 20_000;
        let a = daemon::start(Implementation::Frr, &chain.a.namespace, &a);
        let b = daemon::start(Implementation::Bird, &chain.b.namespace, &b);
        ao_tests::wait::until("the first routes", CONVERGENCE, || {
            a.received_count().is_ok_and(|count| count > 0)
        });
        narrow_both_ways(&chain, NARROW);
        wait_converged(&*a, &*b, CONVERGENCE);
        assert_never_down(&*a);
        assert_never_down(&*b);
    }
}

#[test]
fn a_path_mtu_learned_by_another_flow_does_not_stall_a_session() {
    for family in [Family::V4, Family::V6] {
        let chain = Chain::new();
        narrow_both_ways(&chain, NARROW);
        // Not the protected port: this flow has no engine, and teaches the kernel.
        let address = chain.b.socket_text(family, 6000);
        let mut server = Stream::serve(&chain.b.namespace, &address, STEADY);
        let mut client = Stream::connect(&chain.a.namespace, &address, STEADY);
        ao_tests::stream::wait_for_more(&server, STEADY, NO_STALL);
        ao_tests::stream::wait_for_more(&client, STEADY, NO_STALL);
        finish(&mut client, &mut server, NO_STALL);
        for (host, far) in [(&chain.a, &chain.b), (&chain.b, &chain.a)] {
            let far = far.address(family).to_string();
            let route = host.namespace.ip(&format!("route get {far}"));
            assert!(
                route.contains(&format!("mtu {NARROW}")),
                "not learned: {route}"
            );
        }

        let mut bulk = Bulk::start(&chain.a, &chain.b, family, STEADY);
        bulk.wait_for_more(2 * STEADY, NO_STALL);
        bulk.finish(NO_STALL);
    }
}

#[test]
fn a_static_mtu_of_the_route_does_not_stall_a_session() {
    for family in [Family::V4, Family::V6] {
        let chain = Chain::new();
        for (host, link, gateway) in [(&chain.a, 1, 2), (&chain.b, 4, 1)] {
            let (flag, via) = match family {
                Family::V4 => ("-4", format!("10.0.{link}.{gateway}")),
                _ => ("-6", format!("fd00:{link}::{gateway}")),
            };
            host.namespace.ip(&format!(
                "{flag} route replace default via {via} mtu {NARROW}"
            ));
        }
        let mut bulk = Bulk::start(&chain.a, &chain.b, family, STEADY);
        bulk.wait_for_more(2 * STEADY, NO_STALL);
        bulk.finish(NO_STALL);
    }
}

#[test]
fn a_static_mtu_set_under_a_live_transfer_does_not_stall_it() {
    let chain = Chain::new();
    let (_sidecars, (mut client, mut server)) = (
        ao_tests::scene::sidecars(&chain.a, &chain.b, Family::V4),
        streams(&chain.a, &chain.b, Family::V4, STEADY),
    );
    ao_tests::stream::wait_for_more(&server, STEADY, NO_STALL);
    chain
        .a
        .namespace
        .ip(&format!("route replace default via 10.0.1.2 mtu {NARROW}"));
    ao_tests::stream::wait_for_more(&server, 2 * STEADY, NO_STALL);
    ao_tests::stream::wait_for_more(&client, STEADY, NO_STALL);
    finish(&mut client, &mut server, NO_STALL);
}
