//! The same addresses in two VRFs are two peers.

use std::time::Duration;

use ao_tests::capture::{Capture, Finished};
use ao_tests::daemon::{
    self, Daemon, Implementation::Bird, Speaker, assert_never_down, wait_converged,
};
use ao_tests::netns::Namespace;
use ao_tests::progress;
use ao_tests::settings::{CONVERGENCE, refusal_watch};
use ao_tests::sidecar::{ALGORITHMS, Key, PeerConfig, Sidecar};
use ao_tests::topology::Family;
use ao_tests::wait;
use serde_json::Value;

const COLOURS: [&str; 2] = ["red", "blue"];

fn address(family: Family, end: u8) -> String {
    match family {
        Family::V4 => format!("10.0.0.{end}"),
        _ => format!("fd00::{end}"),
    }
}

/// A host with two VRFs, in each of which it is end 1, and in each the same end 2.
struct Net {
    host: Namespace,
    far: [Namespace; 2],
    captures: [Capture; 2],
}

impl Net {
    fn new() -> Self {
        let host = Namespace::new("host");
        let far = COLOURS.map(|colour| {
            let far = Namespace::new(colour);
            let (link, table) = (format!("to-{colour}"), u32::from(colour == "red") + 100);
            host.ip(&format!("link add {colour} type vrf table {table}"));
            host.ip(&format!(
                "link add {link} type veth peer name eth0 netns {}",
                far.name()
            ));
            host.ip(&format!("link set {link} vrf {colour}"));
            for (namespace, device, end) in [(&host, link.as_str(), 1), (&far, "eth0", 2)] {
                namespace.ip(&format!("link set {device} up"));
                for (family, length) in [(Family::V4, 24), (Family::V6, 64)] {
                    let address = address(family, end);
                    namespace.ip(&format!("addr add {address}/{length} dev {device}"));
                }
            }
            host.ip(&format!("link set {colour} up"));
            far
        });
        let captures = [0, 1].map(|index| Capture::start(&far[index], "eth0", "ip or ip6"));
        Self {
            host,
            far,
            captures,
        }
    }

    /// One sidecar for both VRFs; peer 0 is the red one.
    fn sidecar(&self, family: Family, keys: [&Key; 2]) -> Sidecar {
        let peers = [0, 1].map(|index| {
            PeerConfig::new(address(family, 2), keys[index].clone()).in_vrf(COLOURS[index])
        });
        Sidecar::start_with_peers(&self.host, &peers)
    }

    /// The far end's sidecar in a VRF; `key` is as the host has it.
    fn far_sidecar(&self, family: Family, index: usize, key: &Key) -> Sidecar {
        let peer = PeerConfig::new(address(family, 1), key.mirrored());
        Sidecar::start_with_peers(&self.far[index], &[peer])
    }

    /// The daemons of a VRF: the host's opens in red, the far one in blue.
    fn daemons(&self, family: Family, index: usize) -> [Box<dyn Daemon>; 2] {
        let speaker = |own, passive, first_route| Speaker {
            family,
            local: address(family, own),
            remote: address(family, 3 - own),
            local_as: 64500 + u32::from(own),
            remote_as: 64503 - u32::from(own),
            passive,
            hold_time: 90,
            first_route,
            routes: 10,
            vrf: None,
            range: None,
            password: None,
        };
        let host = Speaker {
            vrf: Some(COLOURS[index].to_owned()),
            ..speaker(1, index == 1, 0)
        };
        let far = speaker(2, index == 0, 1 << 20);
        [
            daemon::start(Bird, &self.host, &host),
            daemon::start(Bird, &self.far[index], &far),
        ]
    }
}

/// Different keys with the same IDs: only the VRF tells which one counts.
fn keys() -> [Key; 2] {
    let mut blue = Key::new(ALGORITHMS[1]);
    blue.secret = "another secret".into();
    [Key::new(ALGORITHMS[0]), blue]
}

/// Every segment of the capture is signed, once, with `key`.
fn check(capture: &Finished, family: Family, key: &Key) -> Value {
    let key = key.for_checker(&address(family, 1), &address(family, 2));
    capture.check(&[key], &["--min-signed", "4"])
}

fn both_come_up(family: Family) {
    let net = Net::new();
    let [red, blue] = keys();
    let sidecar = net.sidecar(family, [&red, &blue]);
    let _far_red = net.far_sidecar(family, 0, &red);
    let _far_blue = net.far_sidecar(family, 1, &blue);
    let daemons = [0, 1].map(|index| net.daemons(family, index));
    for [host, far] in &daemons {
        wait_converged(&**host, &**far, CONVERGENCE);
    }
    let sessions = sidecar.ask("sessions");
    for (index, colour) in COLOURS.into_iter().enumerate() {
        let live: Vec<&Value> = sessions
            .as_array()
            .into_iter()
            .flatten()
            .filter(|session| session["state"] == "established" && session["vrf"] == colour)
            .collect();
        let [session] = live.as_slice() else {
            panic!("not one session in {colour}: {sessions}");
        };
        assert_eq!(session["peer"], format!("peer-{index}"), "{sessions}");
        assert_eq!(session["segments_bad"], 0, "{sessions}");
    }
    for daemon in daemons.iter().flatten() {
        assert_never_down(&**daemon);
    }
    let captures = net.captures.map(Capture::stop);
    for (capture, key) in captures.iter().zip([&red, &blue]) {
        progress!("{}", check(capture, family, key));
    }
    // The captures tell the keys apart.
    let swapped = std::panic::catch_unwind(|| check(&captures[0], family, &blue));
    assert!(
        swapped.is_err(),
        "the red segments verify with the blue key"
    );
}

#[test]
#[ignore = "needs the lab's kernel"]
fn the_same_addresses_in_two_vrfs_over_ipv4() {
    both_come_up(Family::V4);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn the_same_addresses_in_two_vrfs_over_ipv6() {
    both_come_up(Family::V6);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_wrong_key_in_one_vrf_disturbs_only_that_one() {
    let family = Family::V4;
    let net = Net::new();
    let [red, blue] = keys();
    let sidecar = net.sidecar(family, [&red, &blue]);
    let _far_red = net.far_sidecar(family, 0, &red);
    // The far end in blue has the red key: right in the other VRF, wrong here.
    let _far_blue = net.far_sidecar(family, 1, &red);
    let [host, far] = net.daemons(family, 0);
    wait_converged(&*host, &*far, CONVERGENCE);
    let [blue_host, blue_far] = net.daemons(family, 1);
    let refused = || {
        let counters = sidecar.ask("counters");
        let count = |index: usize| {
            counters["peers"][index]["drops"]["bad-mac"]
                .as_u64()
                .unwrap_or(0)
        };
        (count(0), count(1))
    };
    wait::until("refusals in blue", Duration::from_secs(10), || {
        refused().1 > 0
    });
    wait::hold("blue down, red up", refusal_watch(), || {
        assert_never_down(&*host);
        for daemon in [&blue_host, &blue_far] {
            let standing = daemon.standing()?;
            if standing.times_established > 0 {
                return Err(format!("{standing:?}"));
            }
        }
        Ok(())
    });
    assert_never_down(&*far);
    assert_eq!(refused().0, 0, "refusals in red");
    let [capture, _] = net.captures.map(Capture::stop);
    check(&capture, family, &red);
}
