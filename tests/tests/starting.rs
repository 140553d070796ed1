//! What a sidecar finds at its start, and says about it.

use std::os::unix::fs::chown;
use std::time::Duration;

use ao_tests::daemon::{
    self, Daemon, Implementation, Speaker, Standing, assert_never_down, wait_converged,
};
use ao_tests::process::output;
use ao_tests::progress;
use ao_tests::scene::{BULK_PORT, Bulk};
use ao_tests::settings::{CONVERGENCE, SIDECAR_START};
use ao_tests::sidecar::{Config, Key, Sidecar, program};
use ao_tests::stream::STEADY;
use ao_tests::topology::{Family, Lan};

const NOBODY: u32 = 65534;

fn unprotected(lan: &Lan) -> (Box<dyn Daemon>, Box<dyn Daemon>) {
    let (a, b) = Speaker::pair(&lan.a, &lan.b, Family::V4);
    let a = daemon::start(Implementation::Bird, &lan.a.namespace, &a);
    let b = daemon::start(Implementation::Frr, &lan.b.namespace, &b);
    wait_converged(&*a, &*b, CONVERGENCE);
    (a, b)
}

/// Launches a sidecar that must end by itself, and returns what it said.
fn refusal(sidecar: &mut Sidecar) -> String {
    sidecar.launch(&[]);
    let status = sidecar.process().wait(SIDECAR_START);
    let said = sidecar.process().log();
    assert!(!status.success(), "it ran: {said}");
    progress!("{said}");
    said
}

#[test]
fn a_live_unprotected_session_is_named_and_left_alone() {
    let lan = Lan::new();
    let (a, b) = unprotected(&lan);
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let mut sidecar = Sidecar::prepare(&lan.a.namespace, &config);
    let said = refusal(&mut sidecar);
    for word in ["10.0.0.1", "10.0.0.2", "--replace-sessions"] {
        assert!(said.contains(word), "{word} is not named: {said}");
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_never_down(&*a);
    assert_never_down(&*b);
    assert!(
        lan.a
            .namespace
            .run("nft", &["list", "ruleset"])
            .trim()
            .is_empty()
    );
}

#[test]
fn replace_sessions_makes_the_daemons_reconnect_protected() {
    let lan = Lan::new();
    let (a, b) = unprotected(&lan);
    let key = Key::default();
    let config_a = Config::new(&lan.b, Family::V4, key.clone());
    let config_b = Config::new(&lan.a, Family::V4, key.mirrored());
    let mut sidecar_a = Sidecar::prepare(&lan.a.namespace, &config_a);
    let mut sidecar_b = Sidecar::prepare(&lan.b.namespace, &config_b);
    for sidecar in [&mut sidecar_a, &mut sidecar_b] {
        sidecar.launch(&["--replace-sessions"]);
        sidecar.wait_ready();
    }
    wait_converged(&*a, &*b, CONVERGENCE);
    let wanted = Standing {
        established: true,
        times_established: 2,
    };
    assert_eq!(a.standing(), Ok(wanted));
    let session = sidecar_a.established();
    assert_eq!(session["peer"], "peer", "{session}");
}

#[test]
fn a_second_sidecar_is_refused_and_the_first_goes_on() {
    let lan = Lan::new();
    let mut bulk = Bulk::start(&lan.a, &lan.b, Family::V4, STEADY);
    let config = Config {
        port: BULK_PORT,
        ..Config::new(&lan.b, Family::V4, Key::default())
    };
    let mut second = Sidecar::prepare(&lan.a.namespace, &config);
    let said = refusal(&mut second);
    assert!(said.contains("queue"), "the queue is not named: {said}");
    bulk.wait_for_more(STEADY, Duration::from_secs(5));
    bulk.finish(Duration::from_secs(10));
}

#[test]
fn without_root_it_says_so() {
    let lan = Lan::new();
    let config = Config::new(&lan.b, Family::V4, Key::default());
    let sidecar = Sidecar::prepare(&lan.a.namespace, &config);
    let folder = sidecar.config_file();
    let folder = folder.parent().expect("its folder");
    chown(folder, Some(NOBODY), Some(NOBODY)).expect("change the owner");
    for entry in std::fs::read_dir(folder).expect("list the folder") {
        let path = entry.expect("an entry").path();
        chown(path, Some(NOBODY), Some(NOBODY)).expect("change the owner");
    }
    let mut command = lan.a.namespace.command("setpriv");
    let id = NOBODY.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    command.arg(program("ao-sidecar")).arg("run");
    command.arg("--config").arg(sidecar.config_file());
    command.arg("--state-dir").arg(folder.join("state"));
    command.arg("--api-socket").arg(folder.join("api.sock"));
    let said = output(command).expect_err("it ran without root");
    assert!(said.contains("root"), "root is not named: {said}");
}
