//! Queue rules by nft, which most build machines' kernels cannot load.

use std::time::Duration;

use ao_tests::capture::{Capture, check};
use ao_tests::daemon::Implementation::Bird;
use ao_tests::netns::Namespace;
use ao_tests::progress;
use ao_tests::scene::{Opener, Session, checker_key};
use ao_tests::settings::soak;
use ao_tests::sidecar::{ALGORITHMS, Config, Key, Sidecar};
use ao_tests::stream::Stream;
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;

/// The watcher puts rules back within a second on a machine of ordinary speed.
const RESTORATION: Duration = Duration::from_secs(5);

/// Time for a program to start and send two SYNs.
const ATTEMPTS: Duration = Duration::from_secs(20);

/// The queue rules are in the first, the guard in the second.
const FIREWALLS: [&str; 2] = ["nftables", "iptables"];

/// Empties one of the two firewalls.
fn flush(namespace: &Namespace, firewall: &str) {
    if firewall == "nftables" {
        namespace.nft("flush ruleset");
        return;
    }
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        for table in ["filter", "mangle", "raw", "security"] {
            namespace.run(program, &["-t", table, "-F"]);
        }
    }
}

fn restored(sidecar: &Sidecar) -> u64 {
    sidecar.ask("status")["rules_restored"]
        .as_u64()
        .expect("a count")
}

/// Brings a session up, empties each firewall of each end under it, and recomputes every MAC.
fn session_survives_flushes(family: Family, key: Key) {
    let session = Session::start((Bird, Bird), family, key, Opener::B);
    let ends = [
        (&session.sidecar_a, &session.lan.a.namespace),
        (&session.sidecar_b, &session.lan.b.namespace),
    ];
    for (sidecar, namespace) in ends {
        let status = sidecar.ask("status");
        assert_eq!(status["queue_rules"], "nftables", "{status}");
        assert_eq!(status["guard"], "iptables", "{status}");
        assert_eq!(status["strips"], true, "the kernel has TCP-AO: {status}");
        let rules = namespace.run("nft", &["list", "ruleset"]);
        assert!(rules.contains("queue"), "no native queue rule: {rules}");
        assert_eq!(sidecar.established()["segments_bad"], 0);
    }
    for firewall in FIREWALLS {
        for (sidecar, namespace) in ends {
            let before = restored(sidecar);
            flush(namespace, firewall);
            wait::until("the rules being put back", RESTORATION, || {
                restored(sidecar) > before
            });
            progress!("{family:?}: {firewall} flushed and put back");
        }
    }
    session.assert_untouched();
    progress!("{}", session.check_wire());
}

#[test]
#[ignore = "needs the lab's kernel"]
fn native_rules_carry_a_session_over_ipv4() {
    session_survives_flushes(Family::V4, Key::new(ALGORITHMS[0]));
}

#[test]
#[ignore = "needs the lab's kernel"]
fn native_rules_carry_a_session_over_ipv6() {
    session_survives_flushes(Family::V6, Key::new(ALGORITHMS[1]));
}

/// Host a, which a sidecar protects, and host b, which has none. Each has a listener that would
/// take any connection.
struct Siege {
    lan: Lan,
    family: Family,
    sidecar: Sidecar,
    capture: Capture,
    listeners: [Stream; 2],
}

impl Siege {
    fn lay(family: Family) -> Self {
        let lan = Lan::new();
        let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 179");
        let config = Config::new(&lan.b, family, Key::default());
        let sidecar = Sidecar::start(&lan.a.namespace, &config);
        let listeners = [&lan.a, &lan.b]
            .map(|host| Stream::serve(&host.namespace, &host.socket_text(family, 179), 1));
        Self {
            lan,
            family,
            sidecar,
            capture,
            listeners,
        }
    }

    /// Both hosts try to connect; asserts that neither succeeds, and that no unsigned segment
    /// has ever left host a.
    fn assert_closed(&self, state: &str) {
        let (a, b) = (&self.lan.a, &self.lan.b);
        let from_b = format!("src {}", b.address(self.family));
        let before = self.capture.count(&from_b);
        let attempts = [(a, b), (b, a)].map(|(from, to)| {
            Stream::connect(&from.namespace, &to.socket_text(self.family, 179), 1)
        });
        // The SYN, and its first retransmission a second later.
        wait::until("attempts of host b", ATTEMPTS, || {
            self.capture.count(&from_b) >= before + 2
        });
        for end in attempts.iter().chain(&self.listeners) {
            assert!(!end.is_connected(), "{state}: a connection came up");
        }
        let key = checker_key(&Key::default(), a, b, self.family);
        let anything = [
            "--allow", "bad", "--allow", "unsigned", "--allow", "unknown",
        ];
        let report = check(&self.capture.file(), &[key], &anything);
        let (a, b) = (a.address(self.family), b.address(self.family));
        let left = report[format!("{a}>{b}")]["unsigned"].as_u64();
        assert_eq!(left.unwrap_or(0), 0, "{state}: unsigned segments left");
        progress!("{:?} {state}: closed", self.family);
    }
}

/// Empties firewalls under a running and under a dead sidecar; all four with full figures, else
/// the `running` one under the running sidecar and the `dead` one under the dead.
fn stays_closed(family: Family, running: &'static str, dead: &'static str) {
    let both = soak().then_some(FIREWALLS);
    let mut siege = Siege::lay(family);
    for firewall in both.as_ref().map_or(&[running][..], |both| &both[..]) {
        flush(&siege.lan.a.namespace, firewall);
        siege.assert_closed(&format!("running, {firewall} flushed"));
    }
    for firewall in both.as_ref().map_or(&[dead][..], |both| &both[..]) {
        siege.sidecar.kill();
        flush(&siege.lan.a.namespace, firewall);
        siege.assert_closed(&format!("killed, {firewall} flushed"));
        siege.sidecar.restart();
    }
}

#[test]
#[ignore = "needs the lab's kernel"]
fn nothing_unsigned_passes_when_rules_are_flushed_over_ipv4() {
    stays_closed(Family::V4, "nftables", "iptables");
}

#[test]
#[ignore = "needs the lab's kernel"]
fn nothing_unsigned_passes_when_rules_are_flushed_over_ipv6() {
    stays_closed(Family::V6, "iptables", "nftables");
}
