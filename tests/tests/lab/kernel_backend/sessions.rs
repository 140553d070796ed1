//! Sessions of every daemon, each at either end.

use ao_tests::capture::Capture;
use ao_tests::daemon::{Implementation, assert_never_down};
use ao_tests::netns::Namespace;
use ao_tests::progress;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::topology::{Chain, Family, Host, INTERFACE, Lan};
use ao_tests::wait;

use super::{STEP, Session, assert_in_kernel, assert_signed, sidecars, speakers};
use Implementation::{Bird, Frr, GoBgp, OpenBgpd};

const BOTH: (&str, &str) = ("kernel", "kernel");

fn assert_protected(session: &Session, sidecars: (&Sidecar, &Sidecar)) {
    assert_in_kernel(sidecars.0);
    assert_in_kernel(sidecars.1);
    assert_never_down(&*session.a);
    assert_never_down(&*session.b);
}

/// On one link, over IPv4 and then over IPv6. The sidecars stay, the daemons are started anew.
fn single_hop(opener: Implementation, waiter: Implementation) {
    let lan = Lan::new();
    let hosts = (&lan.a, &lan.b);
    let key = Key::default();
    let start = |own: &Host, far: &Host, key: &Key| {
        let peers = [Family::V4, Family::V6]
            .map(|family| PeerConfig::new(far.address_text(family), key.clone()));
        Sidecar::start_with_datapath(&own.namespace, "kernel", &peers)
    };
    let sidecar_a = start(&lan.a, &lan.b, &key);
    let sidecar_b = start(&lan.b, &lan.a, &key.mirrored());
    for family in [Family::V4, Family::V6] {
        progress!("{opener:?} opens to {waiter:?} over {family:?}");
        let filter = if family == Family::V4 { "ip" } else { "ip6" };
        let capture = Capture::start(&lan.wire, Lan::PORT_A, filter);
        let both = (&sidecar_a, &sidecar_b);
        let speakers = speakers(&lan.a, &lan.b, family);
        let session = Session::start((opener, waiter), hosts, both, &speakers);
        assert_protected(&session, both);
        assert_signed(capture, &lan.a, &lan.b, family);
    }
}

/// Over three routers, with a waiter that takes any neighbor of a prefix.
fn multi_hop(opener: Implementation, waiter: Implementation, family: Family) {
    progress!("{opener:?} opens to {waiter:?} over three routers, {family:?}");
    let range = match family {
        Family::V4 => "10.0.1.0/24",
        _ => "fd00:1::/64",
    };
    let chain = Chain::new();
    let capture = Capture::start(&chain.routers[1], "left", "ip or ip6");
    let hosts = (&chain.a, &chain.b);
    let key = Key::default();
    let peer_b = PeerConfig::new(chain.b.address_text(family), key.clone());
    let sidecar_a = Sidecar::start_with_datapath(&chain.a.namespace, "kernel", &[peer_b]);
    let peers_a = PeerConfig::new(range, key.mirrored());
    let sidecar_b = Sidecar::start_with_datapath(&chain.b.namespace, "kernel", &[peers_a]);
    let both = (&sidecar_a, &sidecar_b);
    let (a, mut b) = speakers(&chain.a, &chain.b, family);
    b.range = Some(range.to_owned());
    let session = Session::start((opener, waiter), hosts, both, &(a, b));
    assert_protected(&session, both);
    assert_signed(capture, &chain.a, &chain.b, family);
}

/// Puts a host's only link into a VRF.
fn enslave(host: &Host) {
    let namespace: &Namespace = &host.namespace;
    namespace.ip("link add red type vrf table 100");
    namespace.ip("link set red up");
    namespace.ip(&format!("link set {INTERFACE} vrf red"));
    // IPv6 addresses do not survive that, and FRR wants a link-local one, too.
    for address in [host.v6, host.link_local] {
        namespace.ip(&format!("addr replace {address}/64 dev {INTERFACE} nodad"));
    }
    // GoBGP's listener is in no VRF.
    namespace.sysctl("net.ipv4.tcp_l3mdev_accept", "1");
}

/// On one link that is in a VRF at both ends.
fn in_vrf(opener: Implementation, waiter: Implementation, family: Family) {
    progress!("{opener:?} opens to {waiter:?} in a VRF over {family:?}");
    let lan = Lan::new();
    enslave(&lan.a);
    enslave(&lan.b);
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "ip or ip6");
    let (sidecar_a, sidecar_b) = sidecars(&lan.a, &lan.b, family, BOTH, |peer| peer.in_vrf("red"));
    let both = (&sidecar_a, &sidecar_b);
    let (mut a, mut b) = speakers(&lan.a, &lan.b, family);
    (a.vrf, b.vrf) = (Some("red".to_owned()), Some("red".to_owned()));
    let session = Session::start((opener, waiter), (&lan.a, &lan.b), both, &(a, b));
    assert_protected(&session, both);
    assert_eq!(sidecar_a.established()["vrf"], "red");
    assert_signed(capture, &lan.a, &lan.b, family);
}

macro_rules! each_pair {
    ($($name:ident: $opener:ident, $waiter:ident, $family:ident;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            #[ignore = "needs the lab's kernel"]
            fn on_one_link() {
                single_hop($opener, $waiter);
            }

            #[test]
            #[ignore = "needs the lab's kernel"]
            fn over_routers_by_prefix() {
                multi_hop($opener, $waiter, Family::$family);
            }

            #[test]
            #[ignore = "needs the lab's kernel"]
            fn in_a_vrf() {
                in_vrf($opener, $waiter, Family::$family);
            }
        }
    )*};
}

// Each daemon opens to one and waits for another; what runs over IPv4 only at one end of a pair
// runs over IPv6 in another.
each_pair! {
    bird_opens_to_frr: Bird, Frr, V4;
    frr_opens_to_gobgp: Frr, GoBgp, V6;
    gobgp_opens_to_openbgpd: GoBgp, OpenBgpd, V4;
    openbgpd_opens_to_bird: OpenBgpd, Bird, V6;
}

/// `auto` is the userspace engine as long as no daemon was launched, and the kernel from then on.
#[test]
#[ignore = "needs the lab's kernel"]
fn auto_takes_the_kernel_for_a_launched_daemon() {
    let lan = Lan::new();
    let family = Family::V4;
    let (sidecar_a, sidecar_b) = sidecars(&lan.a, &lan.b, family, ("auto", "kernel"), |peer| peer);
    let peer = || sidecar_a.ask("peers")[0].clone();
    let before = peer();
    assert_eq!(before["datapath"], "userspace", "{before}");
    assert_ne!(before["datapath_reason"], "", "{before}");
    let both = (&sidecar_a, &sidecar_b);
    let speakers = speakers(&lan.a, &lan.b, family);
    let session = Session::start((Bird, Frr), (&lan.a, &lan.b), both, &speakers);
    assert_protected(&session, both);
    assert_eq!(peer()["datapath"], "kernel", "{}", peer());
    let status = sidecar_a.ask("status");
    assert_eq!(status["kernel"]["tcp_ao"], true, "{status}");
    assert_eq!(status["kernel"]["daemons"][0]["name"], "bird", "{status}");
    assert_eq!(
        status["kernel"]["daemons"][0]["pid"],
        session.a.id(),
        "{status}"
    );
    drop(session);
    wait::until("the engine taking over again", STEP, || {
        peer()["datapath"] == "userspace"
    });
}

/// A daemon that runs already gets keys on its listener, and its own connects stay blocked.
#[test]
#[ignore = "needs the lab's kernel"]
fn a_daemon_that_runs_already_is_attached_to() {
    let lan = Lan::new();
    let family = Family::V4;
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "ip or ip6");
    let (a, b) = speakers(&lan.a, &lan.b, family);
    let daemon_b = ao_tests::daemon::start(Bird, &lan.b.namespace, &b);
    wait::until("the listener", STEP, || daemon_b.standing().is_ok());
    let (sidecar_a, sidecar_b) = sidecars(&lan.a, &lan.b, family, BOTH, |peer| peer);
    let launcher = sidecar_a.launcher();
    let daemon_a = ao_tests::daemon::start_under(Bird, &lan.a.namespace, &a, &launcher);
    ao_tests::daemon::wait_converged(&*daemon_a, &*daemon_b, super::LIMIT);
    assert_in_kernel(&sidecar_a);
    assert_in_kernel(&sidecar_b);
    assert_signed(capture, &lan.a, &lan.b, family);
}
