//! Nothing unsigned leaves or arrives for a configured peer, in whatever state the sidecar is.

use std::time::Duration;

use ao_tests::capture::{Capture, check};
use ao_tests::netns::Namespace;
use ao_tests::process::Process;
use ao_tests::progress;
use ao_tests::scene::{BULK_PORT, Bulk, checker_key};
use ao_tests::scratch::Scratch;
use ao_tests::sidecar::{Config, Key, Sidecar};
use ao_tests::stream::{STEADY, Stream};
use ao_tests::topology::{Family, Host, Lan};
use ao_tests::wait;

/// Several connection attempts by each prober.
const WATCH: Duration = Duration::from_millis(1500);

/// Host a, which a sidecar is to protect, and host b, which never has one. Each has a listener
/// that would take any connection, and both try to connect all the time.
struct Siege {
    family: Family,
    listener_a: Stream,
    listener_b: Stream,
    _probers: [Process; 2],
    capture: Capture,
    sidecar: Sidecar,
    lan: Lan,
    _scratch: Scratch,
}

impl Siege {
    /// Lays the siege. `prepare` gets the sidecar before the first attempt is made.
    fn lay(family: Family, prepare: impl FnOnce(&mut Sidecar)) -> Self {
        let lan = Lan::new();
        let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 179");
        let config = Config::new(&lan.b, family, Key::default());
        let mut sidecar = Sidecar::prepare(&lan.a.namespace, &config);
        prepare(&mut sidecar);
        let listen =
            |host: &Host| Stream::serve(&host.namespace, &host.socket_text(family, 179), STEADY);
        let (listener_a, listener_b) = (listen(&lan.a), listen(&lan.b));
        let scratch = Scratch::new();
        let probe = |from: &Namespace, to: &Host| {
            let script = format!(
                "while :; do timeout 0.2 bash -c '</dev/tcp/{}/179'; done",
                to.address(family)
            );
            from.spawn("bash", ["-c", &script], &scratch.file("prober.log"))
        };
        let probers = [
            probe(&lan.a.namespace, &lan.b),
            probe(&lan.b.namespace, &lan.a),
        ];
        Self {
            family,
            listener_a,
            listener_b,
            _probers: probers,
            capture,
            sidecar,
            lan,
            _scratch: scratch,
        }
    }

    /// Watches for a while, then asserts that the attempts of host b came as far as the wire,
    /// that no listener took a connection, and that no unsigned segment has ever left host a.
    fn assert_closed(&self, state: &str) {
        let attempts = self.left_b();
        std::thread::sleep(WATCH);
        assert!(self.left_b() > attempts, "{state}: host b made no attempt");
        for (listener, host) in [(&self.listener_a, "a"), (&self.listener_b, "b")] {
            assert!(
                !listener.is_connected(),
                "{state}: a connection to host {host}"
            );
        }
        let (unsigned, signed) = self.left_a();
        assert_eq!(unsigned, 0, "{state}: unsigned segments left host a");
        progress!(
            "{:?} {state}: closed ({signed} signed segments so far)",
            self.family
        );
    }

    fn left_b(&self) -> usize {
        let address = self.lan.b.address(self.family);
        self.capture.count(&format!("src {address}"))
    }

    /// Segments from host a so far: unsigned and signed.
    fn left_a(&self) -> (u64, u64) {
        let key = checker_key(&Key::default(), &self.lan.a, &self.lan.b, self.family);
        let anything = [
            "--allow", "bad", "--allow", "unsigned", "--allow", "unknown",
        ];
        let report = check(&self.capture.file(), &[key], &anything);
        let (a, b) = (
            self.lan.a.address(self.family),
            self.lan.b.address(self.family),
        );
        let counts = &report[format!("{a}>{b}")];
        let count = |what: &str| counts[what].as_u64().unwrap_or(0);
        (count("unsigned"), count("signed"))
    }

    fn flush(&self, firewall: &str) {
        flush(&self.lan.a.namespace, firewall);
    }
}

/// Empties a firewall, as an operator or a boot script may do.
fn flush(namespace: &Namespace, firewall: &str) {
    if firewall == "nft" {
        namespace.nft("flush ruleset");
        return;
    }
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        for table in ["filter", "mangle", "raw", "security"] {
            // A table the kernel lacks holds no rules.
            let _ = namespace.try_run(program, &["-t", table, "-F"]);
        }
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[test]
fn without_a_sidecar_the_siege_succeeds() {
    for family in FAMILIES {
        let siege = Siege::lay(family, |_| ());
        wait::until("both connections", Duration::from_secs(5), || {
            siege.listener_a.is_connected() && siege.listener_b.is_connected()
        });
        wait::until(
            "unsigned segments on the wire",
            Duration::from_secs(5),
            || siege.left_a().0 > 0,
        );
    }
}

#[test]
fn closed_before_the_first_start_and_while_starting_running_and_stopped() {
    for family in FAMILIES {
        let mut siege = Siege::lay(family, |sidecar| {
            sidecar
                .run(&["guard", "install"])
                .expect("install the guard");
        });
        siege.assert_closed("guard only");
        assert_eq!(siege.left_a(), (0, 0), "the guard lets nothing leave");
        siege.sidecar.launch(&[]);
        siege.sidecar.wait_ready();
        siege.assert_closed("started");
        assert!(siege.left_a().1 > 0, "a running sidecar signs");
        assert!(siege.sidecar.stop().success());
        siege.assert_closed("stopped");
        siege.sidecar.restart();
        siege.assert_closed("started again");
    }
}

#[test]
fn closed_while_hanging_and_after_a_crash() {
    for family in FAMILIES {
        let mut siege = Siege::lay(family, |sidecar| {
            sidecar.launch(&[]);
            sidecar.wait_ready();
        });
        siege.assert_closed("running");
        siege.sidecar.freeze();
        siege.assert_closed("hanging");
        siege.sidecar.thaw();
        siege.assert_closed("running again");
        siege.sidecar.kill();
        siege.assert_closed("killed");
        siege.sidecar.restart();
        siege.assert_closed("started after a crash");
    }
}

#[test]
fn closed_after_the_firewall_is_flushed_under_a_running_sidecar() {
    for family in FAMILIES {
        let siege = Siege::lay(family, |sidecar| {
            sidecar.launch(&[]);
            sidecar.wait_ready();
        });
        for firewall in ["nft", "iptables"] {
            let restored = |siege: &Siege| {
                siege.sidecar.ask("status")["rules_restored"]
                    .as_u64()
                    .unwrap_or(0)
            };
            let before = restored(&siege);
            siege.flush(firewall);
            wait::until("the rules being put back", Duration::from_secs(1), || {
                restored(&siege) > before
            });
            siege.assert_closed(&format!("{firewall} flushed"));
        }
    }
}

#[test]
fn closed_after_the_firewall_is_flushed_under_a_dead_sidecar() {
    for family in FAMILIES {
        for firewall in ["nft", "iptables"] {
            let mut siege = Siege::lay(family, |sidecar| {
                sidecar.launch(&[]);
                sidecar.wait_ready();
            });
            siege.sidecar.kill();
            siege.flush(firewall);
            siege.assert_closed(&format!("killed, {firewall} flushed"));
            siege.sidecar.restart();
            siege.assert_closed("started after that");
        }
    }
}

#[test]
fn flushing_the_firewall_loses_no_octet_of_a_transfer() {
    let lan = Lan::new();
    let filter = format!("tcp port {BULK_PORT}");
    let capture = Capture::start(&lan.wire, Lan::PORT_A, &filter);
    let mut bulk = Bulk::start(&lan.a, &lan.b, Family::V4, STEADY);
    for firewall in ["nft", "iptables"] {
        for host in [&lan.a, &lan.b] {
            flush(&host.namespace, firewall);
            bulk.wait_for_more(STEADY, Duration::from_secs(10));
        }
    }
    bulk.finish(Duration::from_secs(10));
    let key = checker_key(&Key::default(), &lan.a, &lan.b, Family::V4);
    let port = BULK_PORT.to_string();
    capture.stop().check(&[key], &["--port", &port]);
}

#[test]
fn a_removed_guard_lets_the_peer_in_again() {
    let siege = Siege::lay(Family::V4, |sidecar| {
        sidecar
            .run(&["guard", "install"])
            .expect("install the guard");
    });
    siege.assert_closed("guard only");
    siege
        .sidecar
        .run(&["guard", "remove"])
        .expect("remove the guard");
    wait::until("both connections", Duration::from_secs(5), || {
        siege.listener_a.is_connected() && siege.listener_b.is_connected()
    });
}
