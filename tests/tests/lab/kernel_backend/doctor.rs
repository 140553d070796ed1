//! `aoctl doctor` where the kernel signs: it hears the same handshakes, and asks the kernel's sockets.

use ao_tests::daemon::{self, Implementation, Speaker};
use ao_tests::doctor::{FIRST, diagnose};
use ao_tests::rollover;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::topology::{Family, Host, Lan};
use ao_tests::wait;

use super::{STEP, Session, speakers};
use Implementation::Bird;

fn sidecar(own: &Host, far: &Host, key: Key) -> Sidecar {
    let peer = PeerConfig::new(far.address_text(Family::V4), key);
    Sidecar::start_with_datapath(&own.namespace, "kernel", &[peer])
}

/// Asserts that `code` is told of host a, whose key is the default one, where host b opens with
/// another.
fn assert_told(code: &str, change: impl FnOnce(&mut Key)) {
    let lan = Lan::new();
    let mut key = Key::default().mirrored();
    change(&mut key);
    let sidecar_a = sidecar(&lan.a, &lan.b, Key::default());
    let sidecar_b = sidecar(&lan.b, &lan.a, key);
    // The one that is examined waits: what it hears is the far end's own.
    let (speaker_b, speaker_a) = Speaker::pair(&lan.b, &lan.a, Family::V4);
    let _a = rollover::start(Bird, &lan.a, &sidecar_a, &speaker_a);
    let _b = rollover::start(Bird, &lan.b, &sidecar_b, &speaker_b);
    diagnose(&sidecar_a, &[FIRST]).assert_first(code);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn doctor_finds_nothing_in_a_session_of_the_kernel() {
    let lan = Lan::new();
    let (_session, sidecar_a, sidecar_b) = Session::simple(&lan, (Bird, Bird));
    diagnose(&sidecar_a, &[]).assert_healthy();
    diagnose(&sidecar_b, &[FIRST]).assert_healthy();
}

#[test]
#[ignore = "needs the lab's kernel"]
fn doctor_names_what_is_wrong_with_the_far_ends_keys() {
    assert_told("wrong-secret", |key| key.secret = "not that".into());
    assert_told("options-flag", |key| {
        key.include_tcp_options = !key.include_tcp_options;
    });
    // Linux takes no SYN that asks for a key it has not.
    assert_told("unknown-rnext-key-id", |key| key.recv_id = 77);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn doctor_names_a_daemon_that_was_not_launched() {
    let lan = Lan::new();
    let sidecar_a = sidecar(&lan.a, &lan.b, Key::default());
    let (a, _) = speakers(&lan.a, &lan.b, Family::V4);
    let daemon = daemon::start(Bird, &lan.a.namespace, &a);
    wait::poll("the daemon", STEP, || daemon.standing().map(drop));
    diagnose(&sidecar_a, &[FIRST, "--listen", "10s"]).assert_first("kernel-without-launch");
}
