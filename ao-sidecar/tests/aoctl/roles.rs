//! Who may do what: the real program as other users and in other groups. These tests need root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use grpc_api::RoleMap;
use grpc_api::operator::administration::Role;

use crate::fixture::snapshot;
use crate::server::Server;

/// A user and its own group, which nobody else has.
const USER: u32 = 4_000_065_001;
const VIEWERS: u32 = 4_000_065_010;
const OPERATORS: u32 = 4_000_065_011;
const ADMINS: u32 = 4_000_065_012;

/// A server whose folder others may enter, with a program in it that they may run.
fn server() -> Server {
    let server = Server::start(Some(snapshot()));
    let folder = server.folder.path();
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("aoctl");
    fs::copy(env!("CARGO_BIN_EXE_aoctl"), &program).unwrap();
    fs::set_permissions(program, Permissions::from_mode(0o755)).unwrap();
    server
}

/// Exit code and what is said on stderr when a user with these groups runs `aoctl`.
fn run(server: &Server, group: u32, others: &[u32], arguments: &[&str]) -> (Option<i32>, String) {
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    let others = match others.is_empty() {
        true => "--clear-groups".to_owned(),
        false => format!("--groups={}", others.join(",")),
    };
    let output = Command::new("setpriv")
        .arg(format!("--reuid={USER}"))
        .arg(format!("--regid={group}"))
        .arg(others)
        .arg(server.folder.path().join("aoctl"))
        .arg("--socket")
        .arg(server.socket())
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Replaces the roles, and waits until the socket is open to them.
fn open_to(server: &Server, groups: &[(u32, Role)], mode: u32) {
    server.roles.replace(RoleMap {
        groups: groups.to_vec(),
        ..RoleMap::default()
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::metadata(server.socket()).unwrap().mode() & 0o7777 != mode {
        assert!(Instant::now() < deadline, "the socket is not opened");
        std::thread::yield_now();
    }
}

const STATUS: [&str; 1] = ["status"];
const RELOAD: [&str; 2] = ["config", "reload"];
const DELETE: [&str; 3] = ["peers", "delete", "as64502"];

#[test]
fn without_groups_only_root_and_the_own_user_connect() {
    let server = server();
    let (code, text) = run(&server, USER, &[VIEWERS], &STATUS);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("Permission denied"), "{text}");
    server.answer(&STATUS);
    server.answer(&DELETE);
}

#[test]
fn one_group_has_the_socket() {
    let server = server();
    open_to(&server, &[(VIEWERS, Role::Viewer)], 0o660);
    assert_eq!(fs::metadata(server.socket()).unwrap().gid(), VIEWERS);
    let (code, text) = run(&server, USER, &[], &STATUS);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("Permission denied"), "{text}");
    for (group, others) in [(USER, &[1, VIEWERS][..]), (VIEWERS, &[])] {
        let (code, text) = run(&server, group, others, &STATUS);
        assert_eq!(code, Some(0), "{text}");
        let (code, text) = run(&server, group, others, &RELOAD);
        assert_eq!(code, Some(1), "{text}");
        let reason = "this takes the role operator, and the caller has viewer";
        assert!(text.contains(reason), "{text}");
    }
    open_to(&server, &[], 0o600);
    let (code, text) = run(&server, VIEWERS, &[], &STATUS);
    assert_eq!(code, Some(3), "{text}");
}

#[test]
fn several_groups_are_told_apart_by_who_connects() {
    let server = server();
    let groups = [
        (VIEWERS, Role::Viewer),
        (OPERATORS, Role::Operator),
        (ADMINS, Role::Admin),
    ];
    open_to(&server, &groups, 0o666);
    let codes = |group, others: &[u32]| {
        [&STATUS[..], &RELOAD, &DELETE].map(|arguments| run(&server, group, others, arguments).0)
    };
    let (yes, no) = (Some(0), Some(1));
    assert_eq!(codes(USER, &[]), [no, no, no]);
    assert_eq!(codes(USER, &[1, 2, 3]), [no, no, no]);
    assert_eq!(codes(VIEWERS, &[]), [yes, no, no]);
    assert_eq!(codes(OPERATORS, &[VIEWERS]), [yes, yes, no]);
    assert_eq!(codes(USER, &[VIEWERS, OPERATORS, ADMINS]), [yes, yes, yes]);
    let (_, text) = run(&server, USER, &[], &STATUS);
    assert!(text.contains(&format!("user {USER} has no role")), "{text}");
    server.answer(&DELETE);
}
