//! Faults at the far end: what arrives from it, or does not.

use ao_tests::daemon::{Implementation, wait_converged};
use ao_tests::settings::CONVERGENCE;
use ao_tests::sidecar::{Key, Sidecar};
use ao_tests::stream::{STEADY, Stream};
use ao_tests::topology::Family;

use ao_tests::doctor::{Diagnosis, PEER, diagnose};

use crate::Patient;

use Implementation::{Bird, Frr};

/// Both ends have a daemon and a sidecar; the key of the far one's is changed.
fn with_another_key(change: impl FnOnce(&mut Key)) -> Diagnosis {
    let patient = Patient::start();
    let _sidecar = patient.far_sidecar(change);
    let _daemon = patient.far_daemon(Bird, |_| ());
    patient.diagnosis()
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let patient = Patient::start();
    let far_sidecar = patient.far_sidecar(|_| ());
    let far = patient.far_daemon(Frr, |speaker| speaker.passive = true);
    wait_converged(&*patient.daemon, &*far, CONVERGENCE);
    patient.diagnosis().assert_healthy();
    diagnose(&patient.sidecar, &[]).assert_healthy();
    diagnose(&far_sidecar, &[PEER]).assert_healthy();
}

#[test]
fn a_session_that_comes_up_meanwhile_is_no_fault() {
    let patient = Patient::start();
    let _sidecar = patient.far_sidecar(|_| ());
    let _daemon = patient.far_daemon(Frr, |speaker| speaker.passive = true);
    patient.diagnosis().assert_healthy();
}

#[test]
fn a_far_end_that_tries_without_tcp_ao() {
    let patient = Patient::start();
    let _daemon = patient.far_daemon(Frr, |_| ());
    patient.diagnosis().assert_cause("no-ao");
}

#[test]
fn a_far_end_that_answers_without_tcp_ao() {
    let patient = Patient::start();
    let _daemon = patient.far_daemon(Bird, |speaker| speaker.passive = true);
    patient.diagnosis().assert_cause("no-ao");
}

#[test]
fn a_far_end_that_has_tcp_md5_instead() {
    let patient = Patient::start();
    let _daemon = patient.far_daemon(Bird, |speaker| speaker.password = Some("secret".into()));
    patient.diagnosis().assert_cause("md5-instead");
}

#[test]
fn a_far_end_with_a_key_that_has_another_id() {
    let seen = with_another_key(|key| {
        (key.send_id, key.recv_id) = (77, 78);
        key.secret = "of another key".into();
    })
    .assert_cause("unknown-key-id");
    assert!(seen.contains("77"), "{seen}");
}

#[test]
fn a_far_end_with_another_secret() {
    with_another_key(|key| key.secret = "a secret of nobody else".into())
        .assert_cause("wrong-secret");
}

#[test]
fn a_far_end_that_leaves_options_out_of_the_mac() {
    with_another_key(|key| key.include_tcp_options = false).assert_cause("options-flag");
}

#[test]
fn a_far_end_with_another_algorithm() {
    let seen =
        with_another_key(|key| key.algorithm = "aes-128-cmac-96").assert_cause("wrong-algorithm");
    assert!(seen.contains("aes-128-cmac-96"), "{seen}");
}

#[test]
fn a_far_end_whose_macs_are_longer() {
    let diagnosis = with_another_key(|key| key.algorithm = "hmac-sha-256-128");
    let seen = diagnosis.assert_cause("wrong-algorithm");
    assert!(seen.contains("hmac-sha-256-128"), "{seen}");
}

#[test]
fn a_far_end_with_the_ids_swapped() {
    with_another_key(|key| std::mem::swap(&mut key.send_id, &mut key.recv_id))
        .assert_cause("ids-swapped");
}

#[test]
fn a_far_end_that_is_not_there() {
    let patient = Patient::start();
    patient.lan.b.namespace.ip("link set eth0 down");
    let seen = patient.diagnosis().assert_cause("no-segments");
    assert!(seen.contains("ARP"), "{seen}");
}

#[test]
fn a_far_end_that_drops_everything() {
    let patient = Patient::start();
    let _daemon = patient.far_daemon(Bird, |_| ());
    let drop = ["-w", "-I", "INPUT", "-p", "tcp", "-j", "DROP"];
    patient.lan.b.namespace.run("iptables-legacy", &drop);
    let drop = ["-w", "-I", "OUTPUT", "-p", "tcp", "-j", "DROP"];
    patient.lan.b.namespace.run("iptables-legacy", &drop);
    patient.diagnosis().assert_cause("no-segments");
}

#[test]
fn a_far_end_where_no_daemon_runs() {
    let patient = Patient::start();
    patient.diagnosis().assert_cause("peer-refuses");
}

#[test]
fn a_far_end_whose_firewall_refuses() {
    let patient = Patient::start();
    let _daemon = patient.far_daemon(Bird, |speaker| speaker.passive = true);
    let refuse = "-w -I INPUT -p tcp --dport 179 -j REJECT --reject-with icmp-admin-prohibited";
    let refuse: Vec<&str> = refuse.split(' ').collect();
    patient.lan.b.namespace.run("iptables-legacy", &refuse);
    let seen = patient.diagnosis().assert_cause("peer-refuses");
    assert!(seen.contains("administratively prohibited"), "{seen}");
}

#[test]
fn a_far_end_whose_ttl_is_too_low() {
    let patient = Patient::start_with(|config| config.ttl_min = 254);
    let _sidecar = patient.far_sidecar(|_| ());
    // With the kernel's default, 64; BGP daemons have their own.
    let here = patient.lan.a.socket_text(Family::V4, 179);
    let _caller = Stream::connect(&patient.lan.b.namespace, &here, STEADY);
    let seen = patient.diagnosis().assert_cause("ttl-low");
    assert!(seen.contains("TTL of 64"), "{seen}");
}

/// Host b comes from another address than host a has for it, with a sidecar or without.
fn from_another_address(with_sidecar: bool) -> Diagnosis {
    let patient = Patient::start();
    let namespace = &patient.lan.b.namespace;
    // The first address of a network takes the others with it when it goes.
    namespace.ip("addr del 10.0.0.2/24 dev eth0");
    namespace.ip("addr add 10.0.0.77/24 dev eth0");
    let _sidecar: Option<Sidecar> = with_sidecar.then(|| patient.far_sidecar(|_| ()));
    let _daemon = patient.far_daemon(Bird, |speaker| speaker.local = "10.0.0.77".into());
    patient.diagnosis()
}

#[test]
fn a_far_end_that_comes_from_another_address_with_the_key() {
    let seen = from_another_address(true).assert_cause("stranger");
    assert!(seen.contains("10.0.0.77"), "{seen}");
}

/// Nothing proves that it is the peer.
#[test]
fn a_far_end_that_is_gone_while_somebody_calls_without_tcp_ao() {
    let diagnosis = from_another_address(false);
    diagnosis.assert_cause("no-segments");
    let mut notes = diagnosis.of_severity("note");
    let stranger = notes.find(|note| note["code"] == "stranger");
    let seen = stranger.expect("the stranger")["seen"].to_string();
    assert!(seen.contains("10.0.0.77"), "{seen}");
}
