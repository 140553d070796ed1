//! What daemons, systems and operators get wrong: each has a clear message, and no session comes
//! up unprotected.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use ao_tests::daemon::{At, Implementation, Launcher};
use ao_tests::netns::Namespace;
use ao_tests::scratch::Scratch;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::topology::{Family, Lan};
use ao_tests::wait;

use super::{Calls, LIMIT, STEP, Session, assert_in_kernel, sidecars, speakers, wait_log};
use Implementation::Bird;

const TO_PEER: &str = "connect/10.0.0.2/179";

/// A protected host a, and nothing at host b.
fn protected(lan: &Lan) -> Sidecar {
    let peer = PeerConfig::new(lan.b.v4.to_string(), Key::default());
    Sidecar::start_with_datapath(&lan.a.namespace, "kernel", &[peer])
}

/// Runs `ao-sidecar exec` with a program and waits for its end: exit code and output.
fn exec(namespace: &Namespace, launcher: &Launcher, program: &str) -> (Option<i32>, String) {
    let scratch = Scratch::new();
    let at = At::under(namespace, launcher);
    let none: [&str; 0] = [];
    let mut process = at.spawn(program, none, &scratch.file("exec.log"));
    let status = process.wait(STEP);
    (status.code(), process.log())
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_daemon_that_sets_tcp_md5_for_the_peer_is_told() {
    let lan = Lan::new();
    let mut sidecar = protected(&lan);
    let words = ["--md5", "10.0.0.2", TO_PEER, "listen/10.0.0.1/179"];
    let calls = Calls::prepare(&lan.a.namespace, &sidecar, &words);
    assert_eq!(calls.outcomes(), ["EHOSTUNREACH", "ok"]);
    wait_log(sidecar.process(), &["connect to 10.0.0.2:179", "TCP-MD5"]);
    wait_log(sidecar.process(), &["listener on 10.0.0.1:179", "TCP-MD5"]);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_peer_in_two_key_chains_has_the_closer_one() {
    let lan = Lan::new();
    let mut other = Key::new("aes-128-cmac-96");
    other.secret = "of the prefix".into();
    let peers = [
        PeerConfig::new("10.0.0.0/24", other),
        PeerConfig::new(lan.b.v4.to_string(), Key::default()),
    ];
    // The kernel could not tell which one to prefer.
    let mut refused = Sidecar::prepare_with_peers(&lan.a.namespace, "kernel", &peers);
    refused.launch(&[]);
    assert!(!refused.process().wait(STEP).success());
    wait_log(
        refused.process(),
        &["peer-0", "cannot have datapath", "peer-1"],
    );
    let sidecar_a = Sidecar::start_with_datapath(&lan.a.namespace, "auto", &peers);
    let peer_of_b = PeerConfig::new(lan.a.v4.to_string(), Key::default().mirrored());
    let sidecar_b = Sidecar::start_with_datapath(&lan.b.namespace, "kernel", &[peer_of_b]);
    let speakers = speakers(&lan.a, &lan.b, Family::V4);
    let hosts = (&lan.a, &lan.b);
    let _session = Session::start((Bird, Bird), hosts, (&sidecar_a, &sidecar_b), &speakers);
    let peers = sidecar_a.ask("peers");
    let reason = peers[0]["datapath_reason"].as_str().unwrap_or_default();
    assert_eq!(peers[0]["datapath"], "userspace", "{peers}");
    assert!(reason.contains("peer-1"), "{peers}");
    assert_eq!(sidecar_a.established()["peer"], "peer-1");
    assert_in_kernel(&sidecar_a);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_listener_with_too_little_option_memory_gets_more() {
    let lan = Lan::new();
    let tiny = 512;
    lan.a
        .namespace
        .sysctl("net.core.optmem_max", &tiny.to_string());
    let family = Family::V4;
    let both = ("kernel", "kernel");
    let (mut sidecar_a, sidecar_b) = sidecars(&lan.a, &lan.b, family, both, |peer| PeerConfig {
        keys: (0..4)
            .map(|number| Key {
                send_id: peer.keys[0].send_id + 10 * number,
                recv_id: peer.keys[0].recv_id + 10 * number,
                ..peer.keys[0].clone()
            })
            .collect(),
        ..peer
    });
    let speakers = speakers(&lan.a, &lan.b, family);
    let hosts = (&lan.a, &lan.b);
    let _session = Session::start((Bird, Bird), hosts, (&sidecar_a, &sidecar_b), &speakers);
    assert_in_kernel(&sidecar_a);
    let status = sidecar_a.ask("status");
    assert_eq!(status["kernel"]["optmem_raised_from"], tiny, "{status}");
    assert!(
        status["kernel"]["optmem_max"].as_u64() > Some(tiny),
        "{status}"
    );
    wait_log(sidecar_a.process(), &["net.core.optmem_max raised"]);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn system_calls_of_a_32_bit_process_are_refused() {
    let lan = Lan::new();
    let mut sidecar = protected(&lan);
    let calls = Calls::prepare(&lan.a.namespace, &sidecar, &["int80"]);
    assert_eq!(calls.outcomes(), ["ENOSYS"]);
    wait_log(sidecar.process(), &["foreign ABI", "32-bit"]);
    // The same without the filter is an answer, so the call is a right one.
    let plain = Calls::spawn(&At::plain(&lan.a.namespace), &["int80"]);
    assert_eq!(plain.outcomes(), ["ok"]);
    // A program known to be one is not started.
    let scratch = Scratch::new();
    let program = scratch.write("program", "\x7fELF\x01\x01\x01 and no more");
    std::fs::set_permissions(&program, Permissions::from_mode(0o700)).expect("set permissions");
    let launcher = sidecar.launcher();
    let (code, log) = exec(&lan.a.namespace, &launcher, &program.to_string_lossy());
    assert_eq!(code, Some(126), "{log}");
    assert!(log.contains("32-bit program"), "{log}");
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_daemon_in_another_network_namespace_is_not_started() {
    let lan = Lan::new();
    let mut sidecar = protected(&lan);
    let (code, log) = exec(&lan.b.namespace, &sidecar.launcher(), "true");
    assert_eq!(code, Some(125), "{log}");
    assert!(log.contains("another network namespace"), "{log}");
    wait_log(sidecar.process(), &["another network namespace"]);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_daemon_that_ends_while_its_call_waits_harms_nobody() {
    let lan = Lan::new();
    let mut sidecar = protected(&lan);
    let mut calls = Calls::prepare(&lan.a.namespace, &sidecar, &[TO_PEER]);
    sidecar.freeze();
    calls.go();
    calls.process.kill();
    sidecar.thaw();
    wait_log(sidecar.process(), &["daemon or its keeper gone"]);
    assert_eq!(
        sidecar.ask("status")["kernel"]["daemons"][0],
        serde_json::Value::Null
    );
    let next = Calls::prepare(&lan.a.namespace, &sidecar, &["--patience", "1", TO_PEER]);
    // Nobody there has keys, so nobody answers; but it was let go.
    assert_eq!(next.outcomes(), ["timeout"]);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_sidecar_killed_while_a_call_waits_refuses_it() {
    let lan = Lan::new();
    let mut sidecar = protected(&lan);
    let calls = Calls::prepare(&lan.a.namespace, &sidecar, &[TO_PEER]);
    sidecar.freeze();
    calls.go();
    sidecar.kill();
    let results = calls.results();
    assert_eq!(results[0].0, "EHOSTUNREACH");
    assert!(results[0].1 < 2000, "{results:?}");
}

#[test]
#[ignore = "needs the lab's kernel"]
fn without_capabilities_no_daemon_is_started() {
    let lan = Lan::new();
    let sidecar = protected(&lan);
    for (capability, name) in [
        ("sys_ptrace", "CAP_SYS_PTRACE"),
        ("sys_admin", "CAP_SYS_ADMIN"),
    ] {
        let without = format!("-{capability}");
        let launcher = sidecar.launcher().after(&[
            "setpriv",
            "--inh-caps",
            &without,
            "--bounding-set",
            &without,
        ]);
        let (code, log) = exec(&lan.a.namespace, &launcher, "true");
        assert_eq!(code, Some(125), "{log}");
        assert!(log.contains(name), "{log}");
    }
}

#[test]
#[ignore = "needs the lab's kernel"]
fn without_a_sidecar_no_daemon_is_started() {
    let lan = Lan::new();
    let mut sidecar = protected(&lan);
    sidecar.kill();
    let (code, log) = exec(&lan.a.namespace, &sidecar.launcher(), "true");
    assert_eq!(code, Some(125), "{log}");
    assert!(log.contains("no ao-sidecar answers"), "{log}");
}

/// The far end has no keys at all.
#[test]
#[ignore = "needs the lab's kernel"]
fn an_unprotected_far_end_gets_no_session() {
    let lan = Lan::new();
    let sidecar = protected(&lan);
    let (a, mut b) = speakers(&lan.a, &lan.b, Family::V4);
    b.passive = false;
    let far = ao_tests::daemon::start(Bird, &lan.b.namespace, &b);
    let launcher = sidecar.launcher();
    let near = ao_tests::daemon::start_under(Bird, &lan.a.namespace, &a, &launcher);
    wait::until("both daemons answering", LIMIT, || {
        near.standing().is_ok() && far.standing().is_ok()
    });
    wait::hold("no session", Duration::from_secs(8), || {
        for daemon in [&near, &far] {
            let standing = daemon.standing()?;
            if standing.times_established > 0 {
                return Err(format!("{standing:?}"));
            }
        }
        Ok(())
    });
}
