//! What happens while the sidecar is away, and when it is back.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use ao_tests::capture::Capture;
use ao_tests::daemon::{self, At, Daemon, Implementation, assert_never_down, wait_converged};
use ao_tests::scene::checker_key;
use ao_tests::scratch::Scratch;
use ao_tests::settings::soak;
use ao_tests::sidecar::{Key, PeerConfig, Sidecar};
use ao_tests::topology::{Family, INTERFACE, Lan};
use ao_tests::wait;

use super::{
    Calls, LIMIT, STEP, Session, assert_in_kernel, assert_signed, sidecars, speakers, wait_listed,
};
use Implementation::{Bird, Frr};

/// How long a hanging sidecar hangs.
fn hang() -> Duration {
    Duration::from_secs(if soak() { 60 } else { 8 })
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_killed_sidecar_leaves_sessions_up_and_finds_them_again() {
    let lan = Lan::new();
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "ip or ip6");
    let (session, mut sidecar_a, mut sidecar_b) = Session::simple(&lan, (Bird, Frr));
    for sidecar in [&mut sidecar_a, &mut sidecar_b] {
        sidecar.kill();
    }
    // Signed keepalives go on without anybody.
    std::thread::sleep(Duration::from_secs(3));
    assert_never_down(&*session.a);
    for sidecar in [&mut sidecar_a, &mut sidecar_b] {
        sidecar.restart();
        wait_listed(sidecar);
        assert_in_kernel(sidecar);
    }
    assert_never_down(&*session.a);
    assert_never_down(&*session.b);
    assert_signed(capture, &lan.a, &lan.b, Family::V4);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_hanging_sidecar_loses_no_session() {
    let lan = Lan::new();
    let (session, mut sidecar_a, _sidecar_b) = Session::simple(&lan, (Bird, Frr));
    sidecar_a.freeze();
    wait::hold("the session staying up", hang(), || {
        match session.b.standing()?.established {
            true => Ok(()),
            false => Err("it is down".to_owned()),
        }
    });
    sidecar_a.thaw();
    wait_listed(&sidecar_a);
    assert_never_down(&*session.a);
    assert_never_down(&*session.b);
}

/// The session is cut while the opener's sidecar is away.
fn comes_back(opener: Implementation) {
    let lan = Lan::new();
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "ip or ip6");
    let (session, mut sidecar_a, _sidecar_b) = Session::simple(&lan, (opener, Bird));
    sidecar_a.kill();
    // The waiting end's side of it is destroyed, which resets it.
    let cut = ["-K", "-t", "state", "established", "sport", "=", ":179"];
    lan.b.namespace.run("ss", &cut);
    wait::until("the session being down", STEP, || {
        session
            .a
            .standing()
            .is_ok_and(|standing| !standing.established)
    });
    // Without its sidecar it must not come back, signed or not.
    wait::hold(
        "the session staying down",
        Duration::from_secs(5),
        || match session.a.standing()?.established {
            false => Ok(()),
            true => Err("it is up".to_owned()),
        },
    );
    sidecar_a.restart();
    wait_converged(&*session.a, &*session.b, LIMIT);
    assert_in_kernel(&sidecar_a);
    let times = session
        .a
        .standing()
        .map(|standing| standing.times_established);
    assert_eq!(times, Ok(2));
    assert_signed(capture, &lan.a, &lan.b, Family::V4);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_session_of_bird_cut_meanwhile_comes_back() {
    comes_back(Bird);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_session_of_frr_cut_meanwhile_comes_back() {
    comes_back(Frr);
}

#[test]
#[ignore = "needs the lab's kernel"]
fn without_a_sidecar_only_connects_to_peers_are_refused() {
    let lan = Lan::new();
    let scratch = Scratch::new();
    let path = scratch.file("unix.sock");
    let _unix = UnixListener::bind(&path).expect("a Unix listener");
    let unix = format!("unix/{}", path.display());
    // An address that is no peer's, where somebody listens.
    lan.b
        .namespace
        .ip(&format!("addr add 10.0.0.9/24 dev {INTERFACE}"));
    let listen = ["listen/10.0.0.9/179", "--hold"];
    let other = Calls::spawn(&At::plain(&lan.b.namespace), &listen);
    assert_eq!(other.outcomes(), ["ok"]);
    let peer = PeerConfig::new(lan.b.v4.to_string(), Key::default());
    let mut sidecar = Sidecar::start_with_datapath(&lan.a.namespace, "kernel", &[peer]);
    let actions = [
        "connect/10.0.0.2/179",
        "connect/10.0.0.9/179",
        unix.as_str(),
        "listen/10.0.0.1/179",
    ];
    let expected = ["EHOSTUNREACH", "ok", "ok", "ok"];
    let calls = [(); 2].map(|()| Calls::prepare(&lan.a.namespace, &sidecar, &actions));
    sidecar.freeze();
    assert_eq!(calls[0].outcomes(), expected, "hanging");
    sidecar.kill();
    assert_eq!(calls[1].outcomes(), expected, "killed");
}

#[test]
#[ignore = "needs the lab's kernel"]
fn a_daemon_started_outside_exec_is_stopped_by_the_guard() {
    let lan = Lan::new();
    let family = Family::V4;
    let (mut sidecar_a, sidecar_b) =
        sidecars(&lan.a, &lan.b, family, ("kernel", "kernel"), |peer| peer);
    let (a, b) = speakers(&lan.a, &lan.b, family);
    let launcher = sidecar_b.launcher();
    let far = daemon::start_under(Bird, &lan.b.namespace, &b, &launcher);
    sidecar_a.kill();
    let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 179");
    let near = daemon::start(Bird, &lan.a.namespace, &a);
    wait::hold("the session staying down", Duration::from_secs(8), || {
        for one in [&near, &far] {
            if let Ok(standing) = Daemon::standing(&**one)
                && standing.times_established > 0
            {
                return Err(format!("{standing:?}"));
            }
        }
        Ok(())
    });
    let key = checker_key(&Key::default(), &lan.a, &lan.b, family);
    let report = capture
        .stop()
        .check(&[key], &["--offloaded", "--allow", "unknown"]);
    assert!(report["10.0.0.1>10.0.0.2"].is_null(), "{report}");
}
