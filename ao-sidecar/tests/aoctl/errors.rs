//! What cannot be answered: exit codes, and what is said.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use grpc_api::{ApiSocket, PeerFacts};
use insta::assert_snapshot;

use crate::fixture::snapshot;
use crate::server::{Server, failure, program};

#[test]
fn an_unreachable_sidecar_is_exit_code_3() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let (code, text) = failure(&socket, &["status"]);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on SOCKET: No such file or directory (os error 2); is it running, and is --socket right?");

    drop(UnixListener::bind(&socket).unwrap());
    let (code, text) = failure(&socket, &["status"]);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on SOCKET: Connection refused (os error 111); is it running, and is --socket right?");

    let stopping = Server::start(None);
    let (code, text) = failure(&stopping.socket(), &["status"]);
    assert_eq!(code, Some(3));
    assert_snapshot!(text, @"aoctl: cannot reach ao-sidecar on SOCKET: the sidecar is stopping");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let server = Server::start(Some(snapshot()));
    for arguments in [
        &["status"][..],
        &["config", "show", "--json"],
        &["doctor", "--json"],
    ] {
        let mut aoctl = program()
            .arg("--socket")
            .arg(server.socket())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(aoctl.stdout.take());
        let output = aoctl.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn an_output_that_cannot_be_written_is_exit_code_1() {
    let server = Server::start(Some(snapshot()));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut aoctl = program();
    aoctl.arg("--socket").arg(server.socket()).arg("status");
    let output = aoctl.stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_snapshot!(text, @"aoctl: cannot write the answer: No space left on device (os error 28)");
}

#[test]
fn a_peer_with_a_name_of_1_mb_does_no_harm() {
    let mut large = snapshot();
    let name: Arc<str> = "x".repeat(1 << 20).into();
    let facts = PeerFacts {
        name: name.clone(),
        ..large.peers[0].clone()
    };
    large.peers = [facts, large.peers[1].clone()].into();
    large.report.peers[0].name = name;
    let server = Server::start(Some(large));
    for arguments in [["status"], ["peers"], ["counters"]] {
        let text = server.answer(&arguments);
        let longest = text.lines().map(str::len).max().unwrap();
        assert!(longest < 2000, "{arguments:?}: {longest} octets in a line");
    }
    assert!(server.answer(&["peers", "--json"]).len() > 1 << 20);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let (code, text) = failure(Path::new("/nonexistent"), &["stats"]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("a similar subcommand exists: 'status'"),
        "{text}"
    );
}

/// A sidecar that hangs takes connections, as the kernel does that for it.
#[test]
fn a_silent_sidecar_is_waited_for_as_long_as_told() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let ask = |arguments: &[&str], environment: &str| {
        let begun = Instant::now();
        let output = program()
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .env("AOCTL_TIMEOUT", environment)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(4), "{said}");
        (output.status.code(), said)
    };
    assert_eq!(ask(&["status"], "100ms").0, Some(3));
    assert_eq!(ask(&["status", "--timeout", "100ms"], "60").0, Some(3));
    for wrong in ["soon", "0", "2days"] {
        let (code, said) = ask(&["status"], wrong);
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("AOCTL_TIMEOUT") && said.contains(wrong),
            "{said}"
        );
        let (code, said) = ask(&["status", "--timeout", wrong], "1");
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("--timeout") && said.contains(wrong), "{said}");
    }
}

#[test]
fn a_living_socket_is_kept_and_a_stale_one_replaced() {
    let server = Server::start(Some(snapshot()));
    let error = ApiSocket::bind(&server.socket()).unwrap_err().to_string();
    assert!(
        error.starts_with("another ao-sidecar is serving on "),
        "{error}"
    );
    assert!(
        !server.answer(&["status"]).is_empty(),
        "the living one still answers"
    );

    let stale = server.folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let socket = ApiSocket::bind(&stale).unwrap();
    assert!(fs::symlink_metadata(socket.path()).is_ok());
}
