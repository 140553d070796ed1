//! What cannot be answered: exit codes, and what is said.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use grpc_api::ApiSocket;
use insta::assert_snapshot;

use crate::fixture::snapshot;
use crate::server::{Server, failure};

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
fn wrong_usage_is_exit_code_2() {
    let (code, text) = failure(Path::new("/nonexistent"), &["stats"]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("a similar subcommand exists: 'status'"),
        "{text}"
    );
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
