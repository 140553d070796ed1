//! Faults at this end: of the daemon, the keys, this host, the way to the far end's sidecar, and a
//! sidecar that does not answer.

use std::time::{Duration, SystemTime};

use ao_tests::daemon::{self, Daemon, Implementation, Speaker, wait_converged};
use ao_tests::doctor::{Diagnosis, FIRST, PEER, diagnose, diagnose_from};
use ao_tests::settings::{CONVERGENCE, SIDECAR_START};
use ao_tests::sidecar::{Config, Expiry, Key, Lifetime, PeerConfig, Rollover, Sidecar, Terms};
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;

use crate::Patient;

use Implementation::Bird;

const HOUR: Duration = Duration::from_secs(3600);

/// Both ends well, and the session up; `change` is made to host a's configuration.
fn well(change: impl FnOnce(&mut Config)) -> (Patient, Sidecar, Box<dyn Daemon>) {
    let patient = Patient::start_with(change);
    let sidecar = patient.far_sidecar(|_| ());
    let daemon = patient.far_daemon(Bird, |speaker| speaker.passive = true);
    wait_converged(&*patient.daemon, &*daemon, CONVERGENCE);
    (patient, sidecar, daemon)
}

/// A sidecar at host a with one peer, host b; no daemon.
fn alone(lan: &Lan, peer: PeerConfig) -> Sidecar {
    Sidecar::start_with_peers(&lan.a.namespace, &[peer])
}

fn of_severity<'d>(diagnosis: &'d Diagnosis, severity: &'static str) -> Vec<&'d str> {
    let findings = diagnosis.of_severity(severity);
    findings
        .filter_map(|finding| finding["code"].as_str())
        .collect()
}

/// Asserts that there is this warning, and nothing worse or else.
#[track_caller]
fn assert_warned(diagnosis: &Diagnosis, code: &str) {
    assert_eq!(of_severity(diagnosis, "problem"), [""; 0], "{diagnosis:#?}");
    assert_eq!(of_severity(diagnosis, "warning"), [code], "{diagnosis:#?}");
    assert_eq!(diagnosis.exit_code, Some(5), "{diagnosis:#?}");
}

#[test]
fn a_daemon_with_an_md5_password() {
    let lan = Lan::new();
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let sidecar = Sidecar::start(&lan.a.namespace, &config);
    let (mut speaker, _) = Speaker::pair(&lan.a, &lan.b, Family::V4);
    speaker.password = Some("a password".into());
    let daemon = daemon::start(Bird, &lan.a.namespace, &speaker);
    let patient = Patient {
        sidecar,
        daemon,
        lan,
    };
    let _sidecar = patient.far_sidecar(|_| ());
    let _daemon = patient.far_daemon(Bird, |_| ());
    let seen = patient.diagnosis().assert_cause("local-md5");
    assert!(seen.contains("bird"), "{seen}");
}

#[test]
fn no_daemon_although_the_far_end_calls() {
    let lan = Lan::new();
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let sidecar = Sidecar::start(&lan.a.namespace, &config);
    let mirrored = Config::new(&lan.a, Family::V4, Key::default().mirrored());
    let _far_sidecar = Sidecar::start(&lan.b.namespace, &mirrored);
    let (_, mut speaker) = Speaker::pair(&lan.a, &lan.b, Family::V4);
    speaker.passive = false;
    let _far = daemon::start(Bird, &lan.b.namespace, &speaker);
    diagnose(&sidecar, &[PEER]).assert_cause("nobody-listens");
}

#[test]
fn no_daemon_and_no_call() {
    let lan = Lan::new();
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let sidecar = Sidecar::start(&lan.a.namespace, &config);
    diagnose(&sidecar, &[PEER, "--listen", "2s"]).assert_cause("nobody-listens");
}

#[test]
fn a_daemon_that_only_waits_for_one_that_only_waits() {
    let lan = Lan::new();
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let sidecar = Sidecar::start(&lan.a.namespace, &config);
    let (mut speaker, _) = Speaker::pair(&lan.a, &lan.b, Family::V4);
    speaker.passive = true;
    let _daemon = daemon::start(Bird, &lan.a.namespace, &speaker);
    diagnose(&sidecar, &[PEER, "--listen", "4s"]).assert_cause("no-attempts");
}

/// A rule of the operator's own, behind the sidecar's.
#[test]
fn a_rule_that_drops_what_verifies() {
    let patient = Patient::start();
    let rule = "-w -I INPUT -p tcp -s 10.0.0.2 -j DROP";
    let rule: Vec<&str> = rule.split(' ').collect();
    patient.lan.a.namespace.run("iptables-legacy", &rule);
    let _sidecar = patient.far_sidecar(|_| ());
    let _daemon = patient.far_daemon(Bird, |_| ());
    patient.diagnosis().assert_cause("local-drop");
}

fn chain(lan: &Lan, lifetime: Lifetime, then: &'static str) -> PeerConfig {
    let key = Key {
        lifetime: Some(lifetime),
        ..Key::default()
    };
    let mut peer = PeerConfig::new(lan.b.address_text(Family::V4), key);
    peer.expiry = Some(Expiry {
        tolerance: "0s",
        then,
    });
    peer
}

fn lifetime(start: SystemTime, end: SystemTime) -> Lifetime {
    Lifetime { start, end }
}

#[test]
fn a_chain_that_is_over() {
    let lan = Lan::new();
    let now = SystemTime::now();
    let sidecar = alone(
        &lan,
        chain(&lan, lifetime(now - 2 * HOUR, now - HOUR), "close"),
    );
    diagnose(&sidecar, &[]).assert_first("chain-expired");
}

#[test]
fn a_chain_that_has_not_begun() {
    let lan = Lan::new();
    let now = SystemTime::now();
    let sidecar = alone(
        &lan,
        chain(&lan, lifetime(now + HOUR, now + 2 * HOUR), "close"),
    );
    diagnose(&sidecar, &[FIRST]).assert_first("chain-not-begun");
}

#[test]
fn a_chain_that_is_about_to_end() {
    let now = SystemTime::now();
    let key = Key {
        lifetime: Some(lifetime(now - HOUR, now + 48 * HOUR)),
        ..Key::default()
    };
    let (patient, _far_sidecar, _far) = well(|config| config.keys = vec![key]);
    let diagnosis = patient.diagnosis();
    let mut warnings = of_severity(&diagnosis, "warning");
    // The clock of a test machine may follow nobody, and now something depends on it.
    warnings.retain(|code| *code != "clock-unsynchronised");
    assert_eq!(warnings, ["chain-ending"], "{diagnosis:#?}");
    assert_eq!(
        of_severity(&diagnosis, "problem"),
        [""; 0],
        "{diagnosis:#?}"
    );
}

#[test]
fn rules_that_are_flushed_again_and_again() {
    let (patient, _far_sidecar, _far) = well(|_| ());
    let restored = || {
        let status = patient.sidecar.ask("status");
        status["rules_restored"].as_u64().expect("a count")
    };
    for _ in 0..7 {
        let before = restored();
        patient.lan.a.namespace.nft("flush ruleset");
        wait::until("the rules being put back", SIDECAR_START, || {
            restored() > before
        });
    }
    assert_warned(&patient.diagnosis(), "rules-flushed");
}

#[test]
fn a_path_that_is_too_narrow() {
    let (patient, _far_sidecar, _far) = well(|_| ());
    patient.lan.a.namespace.ip("link set eth0 mtu 560");
    assert_warned(&patient.diagnosis(), "mtu-small");
}

/// Below 1280 octets a device has no IPv6 at all.
#[test]
fn a_device_that_is_too_narrow_for_ipv6() {
    let lan = Lan::new();
    let config = Config::new(&lan.b, Family::V6, Key::default());
    let sidecar = Sidecar::start(&lan.a.namespace, &config);
    lan.a.namespace.ip("link set eth0 mtu 1270");
    diagnose(&sidecar, &[PEER]).assert_cause("no-route");
}

#[test]
fn a_peer_that_no_route_leads_to() {
    let patient = Patient::start_with(|config| config.peer = "192.0.2.9".into());
    patient.diagnosis().assert_cause("no-route");
}

/// Host b, whose sidecar has this fingerprint.
fn automatic(lan: &Lan, fingerprint: &str) -> PeerConfig {
    let terms = Terms::default();
    PeerConfig::agreeing(&lan.b, Family::V4, fingerprint.to_owned(), terms)
}

fn nobody() -> String {
    format!("sha256:{}", "0a".repeat(32))
}

/// Waits until a call has failed: before, no key is all there is to tell.
#[track_caller]
fn first_call_failed(sidecar: &Sidecar, code: &str) -> String {
    wait::poll(
        "a call that fails",
        Duration::from_secs(30),
        || match sidecar.try_rolling()?.complaints.is_empty() {
            true => Err("no complaint".to_owned()),
            false => Ok(()),
        },
    );
    diagnose(sidecar, &[FIRST]).assert_first(code)
}

#[test]
fn a_far_end_without_a_sidecar() {
    let lan = Lan::new();
    let sidecar = alone(&lan, automatic(&lan, &nobody()));
    let seen = first_call_failed(&sidecar, "far-end-unreachable");
    assert!(seen.contains("refused"), "{seen}");
}

#[test]
fn a_first_contact_that_is_dropped_on_the_way() {
    let lan = Lan::new();
    let drop = "-w -I INPUT -p tcp --dport 7179 -j DROP";
    let drop: Vec<&str> = drop.split(' ').collect();
    lan.b.namespace.run("iptables-legacy", &drop);
    let sidecar = alone(&lan, automatic(&lan, &nobody()));
    let diagnosis = diagnose(&sidecar, &[FIRST]);
    // Which of them depends on how long the machine took to ask.
    let first = diagnosis.findings[0]["code"].as_str();
    let expected = ["no-key-yet", "far-end-unreachable"];
    assert!(expected.contains(&first.expect("a code")), "{diagnosis:#?}");
    first_call_failed(&sidecar, "far-end-unreachable");
}

/// Two sidecars that agree on keys, if they could.
fn agreeing(
    change_a: impl FnOnce(&mut Rollover),
    change_b: impl FnOnce(&mut Rollover),
) -> ([Sidecar; 2], Lan) {
    let lan = Lan::new();
    let mut a = Sidecar::bare(&lan.a.namespace, "userspace");
    let mut b = Sidecar::bare(&lan.b.namespace, "userspace");
    let fingerprints = [a.fingerprint(), b.fingerprint()];
    let mut at_a = automatic(&lan, &fingerprints[1]);
    let mut at_b = PeerConfig::agreeing(
        &lan.a,
        Family::V4,
        fingerprints[0].clone(),
        Terms::default(),
    );
    at_a.rollover.as_mut().map(change_a);
    at_b.rollover.as_mut().map(change_b);
    a.configure(&[at_a]);
    b.configure(&[at_b]);
    for sidecar in [&mut b, &mut a] {
        sidecar.launch(&[]);
        sidecar.wait_ready();
    }
    ([a, b], lan)
}

#[test]
fn a_far_end_with_another_fingerprint() {
    let ([a, _b], _lan) = agreeing(|at_a| at_a.fingerprint = nobody(), |_| ());
    let seen = first_call_failed(&a, "far-end-untrusted");
    assert!(seen.contains(&nobody()), "{seen}");
}

#[test]
fn a_far_end_that_knows_us_by_another_fingerprint() {
    let ([a, _b], _lan) = agreeing(|_| (), |at_b| at_b.fingerprint = nobody());
    let seen = first_call_failed(&a, "far-end-untrusted");
    assert!(seen.contains("refuses us"), "{seen}");
}

/// Asserts the codes of the problems, and that the sidecar was found not to answer.
#[track_caller]
fn assert_local(lan: &Lan, sidecar: &Sidecar, problems: &[&str]) -> Diagnosis {
    let diagnosis = diagnose_from(&lan.a.namespace, sidecar, &["--listen", "0s"]);
    assert_eq!(
        of_severity(&diagnosis, "problem"),
        problems,
        "{diagnosis:#?}"
    );
    assert_eq!(diagnosis.exit_code, Some(3), "{diagnosis:#?}");
    diagnosis
}

#[test]
fn a_sidecar_that_does_not_run() {
    let lan = Lan::new();
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let mut sidecar = Sidecar::prepare(&lan.a.namespace, &config);
    assert_local(&lan, &sidecar, &["not-running", "unprotected"]);
    sidecar
        .run(&["guard", "install"])
        .expect("install the guard");
    let diagnosis = assert_local(&lan, &sidecar, &["not-running", "blocked-peers"]);
    let blocked = diagnosis.findings[1]["seen"]
        .as_str()
        .expect("what was seen");
    assert!(blocked.ends_with(": peer"), "{blocked}");

    sidecar.launch(&[]);
    sidecar.wait_ready();
    sidecar.freeze();
    let diagnosis = assert_local(&lan, &sidecar, &["hanging"]);
    let seen = diagnosis.findings[0]["seen"]
        .as_str()
        .expect("what was seen");
    assert!(seen.contains("stopped by a signal"), "{seen}");
    sidecar.thaw();
    sidecar.wait_ready();
    sidecar.kill();
    assert_local(&lan, &sidecar, &["not-running", "blocked-peers"]);
    std::fs::write(sidecar.config_file(), "[[peer]]\n").expect("a configuration");
    assert_local(
        &lan,
        &sidecar,
        &["config-wrong", "not-running", "blocked-peers"],
    );
}
