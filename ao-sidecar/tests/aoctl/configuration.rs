//! The configuration: shown, checked, compared, read again; key chains.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use grpc_api::operator::administration::{ChangeKind, Changed, ConfigChange};
use insta::assert_snapshot;

use crate::administration::differs;
use crate::fixture::snapshot;
use crate::server::{Server, program};

fn three() -> Changed {
    Changed {
        changes: vec![
            ConfigChange {
                details: Vec::new(),
                ..differs("peer new", ChangeKind::Added)
            },
            ConfigChange {
                details: Vec::new(),
                effect: "its 2 sessions are closed".into(),
                ..differs("peer old\u{1b}[2J", ChangeKind::Removed)
            },
            ConfigChange {
                details: vec![
                    "ttl_min 0 becomes 254".into(),
                    "key_chain \"a\" becomes \"b\"".into(),
                ],
                ..differs("peer as64502", ChangeKind::Changed)
            },
            differs("peer one", ChangeKind::Changed),
        ],
        warnings: vec!["key chain \"b\" ends in 3 days; add a key".into()],
    }
}

#[test]
fn differences_are_shown_as_a_diff() {
    let server = Server::start(Some(snapshot()));
    let (code, nothing, _) = server.outcome(&["config", "diff"]);
    assert_eq!((code, nothing.as_str()), (Some(0), "no differences\n"));

    *server.administration.changed.lock().unwrap() = three();
    let (code, text, _) = server.outcome(&["config", "diff"]);
    assert_eq!(code, Some(5));
    assert_snapshot!(text, @r#"
+ peer new
- peer old�[2J
    its 2 sessions are closed
~ peer as64502
    ttl_min 0 becomes 254
    key_chain "a" becomes "b"
~ peer one: ttl_min 0 becomes 254
warning: key chain "b" ends in 3 days; add a key
"#);
    let (code, json, _) = server.outcome(&["config", "diff", "--json"]);
    assert_eq!(code, Some(5));
    assert_snapshot!(json, @r#"
{
  "changes": [
    {
      "subject": "peer new",
      "kind": "added",
      "details": [],
      "effect": null,
      "needs_restart": false
    },
    {
      "subject": "peer old\u001b[2J",
      "kind": "removed",
      "details": [],
      "effect": "its 2 sessions are closed",
      "needs_restart": false
    },
    {
      "subject": "peer as64502",
      "kind": "changed",
      "details": [
        "ttl_min 0 becomes 254",
        "key_chain \"a\" becomes \"b\""
      ],
      "effect": null,
      "needs_restart": false
    },
    {
      "subject": "peer one",
      "kind": "changed",
      "details": [
        "ttl_min 0 becomes 254"
      ],
      "effect": null,
      "needs_restart": false
    }
  ],
  "warnings": [
    "key chain \"b\" ends in 3 days; add a key"
  ]
}
"#);
}

#[test]
fn a_difference_that_needs_a_restart_is_exit_code_4() {
    let server = Server::start(Some(snapshot()));
    let mut changed = three();
    changed.changes.truncate(1);
    changed.changes.push(ConfigChange {
        subject: "[userspace]".into(),
        details: vec!["queues 2 becomes 4".into()],
        needs_restart: true,
        ..differs("", ChangeKind::Changed)
    });
    changed.warnings.clear();
    *server.administration.changed.lock().unwrap() = changed;
    let (code, text, _) = server.outcome(&["config", "diff"]);
    assert_eq!(code, Some(4));
    assert_snapshot!(text, @r"
+ peer new
~ [userspace]: queues 2 becomes 4
    needs a restart
a reload would be refused: a restart is needed
");
    let (code, text, error) = server.outcome(&["config", "reload"]);
    assert_eq!((code, text.as_str()), (Some(1), ""));
    assert_snapshot!(error, @"aoctl: ao-sidecar refused: [userspace] needs a restart; nothing has changed");

    let mut changed = three();
    changed.changes[0].subject = "c.toml:1:1: one\nc.toml:2:1: two\x1b[2J".into();
    changed.changes[0].needs_restart = true;
    *server.administration.changed.lock().unwrap() = changed;
    let (_, _, error) = server.outcome(&["config", "reload"]);
    assert_snapshot!(error, @r"
    aoctl: ao-sidecar refused: c.toml:1:1: one
    c.toml:2:1: two�[2J needs a restart; nothing has changed
    ");
}

#[test]
fn a_reload_says_what_it_changed() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["config", "reload"]), @"read again; nothing has changed");
    assert_eq!(
        server.administration.last(),
        "reload, replace sessions: false"
    );
    *server.administration.changed.lock().unwrap() = three();
    assert_snapshot!(server.answer(&["config", "reload", "--replace-sessions"]), @r#"
+ peer new
- peer old�[2J
    its 2 sessions are closed
~ peer as64502
    ttl_min 0 becomes 254
    key_chain "a" becomes "b"
~ peer one: ttl_min 0 becomes 254
warning: key chain "b" ends in 3 days; add a key
"#);
    assert_eq!(
        server.administration.last(),
        "reload, replace sessions: true"
    );
    let json = server.answer(&["config", "reload", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["changes"][1]["kind"], "removed");
    assert_eq!(json["changes"][1]["effect"], "its 2 sessions are closed");
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn the_configuration_in_use_is_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["config", "show"]), @r#"
# in use since 2026-12-25T00:00:00Z, read from /etc/ao-sidecar/config.toml
# made by API: key chain lab, peer as64502
datapath = "auto"

[[key_chain]] # made by API
name = "lab"

[[key_chain.key]]
send_id = 1
recv_id = 2
algorithm = "aes-128-cmac-96"
# secret

[[peer]] # made by API
name = "as64502"
address = "10.0.0.2"
key_chain = "lab"
ports = "179-180"
vrf = "blue"
ttl_min = 1
"#);
    let json = server.answer(&["config", "show", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["file"], "/etc/ao-sidecar/config.toml");
    assert_eq!(json["loaded_at"], "2026-12-25T00:00:00.000Z");
    assert_eq!(json["api_made"][1], "peer as64502");
    assert!(json["toml"].as_str().unwrap().starts_with("datapath = "));
}

#[test]
fn a_configuration_is_checked() {
    let server = Server::start(Some(snapshot()));
    let (code, text, _) = server.outcome(&["config", "check"]);
    assert_eq!(code, Some(0));
    assert_snapshot!(text, @r#"
warning: key chain "ix" ends in 3 days; add a key
it would be taken
"#);

    let file = server.folder.path().join("new.toml");
    fs::write(&file, "[[peer]]").unwrap();
    let file = file.to_str().unwrap();
    let (code, text, _) = server.outcome(&["config", "check", file]);
    assert_eq!(code, Some(4));
    assert_eq!(server.administration.last(), "validate 8 octets");
    assert_snapshot!(text, @r#"
9:15: problem: secret file x.key cannot be read
13:1: problem: unknown key `adress`; write `address`
warning: key chain "ix" ends in 3 days; add a key
it would be refused
"#);
    let (code, json, _) = server.outcome(&["config", "check", file, "--json"]);
    assert_eq!(code, Some(4));
    assert_snapshot!(json, @r#"
{
  "valid": false,
  "problems": [
    {
      "line": 9,
      "column": 15,
      "text": "secret file x.key cannot be read"
    },
    {
      "line": 13,
      "column": 1,
      "text": "unknown key `adress`; write `address`"
    }
  ],
  "warnings": [
    {
      "line": null,
      "column": null,
      "text": "key chain \"ix\" ends in 3 days; add a key"
    }
  ]
}
"#);
}

#[test]
fn a_configuration_is_checked_from_standard_input() {
    let server = Server::start(Some(snapshot()));
    let mut aoctl = program()
        .arg("--socket")
        .arg(server.socket())
        .args(["config", "check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    aoctl
        .stdin
        .take()
        .unwrap()
        .write_all(b"datapath = \"auto\"")
        .unwrap();
    assert_eq!(aoctl.wait().unwrap().code(), Some(4));
    assert_eq!(server.administration.last(), "validate 17 octets");
}

#[test]
fn what_cannot_be_a_configuration_is_not_sent() {
    let server = Server::start(Some(snapshot()));
    let folder = server.folder.path();
    let refusal = |name: &str| {
        let file = folder.join(name);
        let (code, text, error) = server.outcome(&["config", "check", file.to_str().unwrap()]);
        assert_eq!((code, text.as_str()), (Some(1), ""));
        error.replace(folder.to_str().unwrap(), "FOLDER")
    };
    fs::write(folder.join("large"), vec![b'#'; (1 << 20) + 1]).unwrap();
    fs::write(folder.join("octets"), [0xff, 0xfe]).unwrap();
    assert_snapshot!(refusal("large"), @"aoctl: FOLDER/large is larger than 1 MiB");
    assert_snapshot!(refusal("octets"), @"aoctl: FOLDER/octets is no UTF-8");
    assert_snapshot!(refusal("absent"), @"aoctl: FOLDER/absent cannot be read: No such file or directory (os error 2)");
}

#[test]
fn key_chains_are_shown() {
    let server = Server::start(Some(snapshot()));
    assert_snapshot!(server.answer(&["chains"]), @r"
key chain transit (file, line 7)
peers      as64502, ix
rules      tolerance 5m 0s, gaps not allowed, on expiry close
SEND-ID  RECV-ID  ALGORITHM        OPTIONS   STATE    SEND                     ACCEPT                   ORIGIN
      1        2  aes-128-cmac-96  left out  active   2026-12-25T00:00:00Z/..  2026-12-25T00:00:00Z/..  file, line 11
      3        4  aes-128-cmac-96  covered   pending  2026-12-25T00:00:00Z/..  2026-12-25T00:00:00Z/..  api

key chain lab (api)
peers      none
rules      tolerance none, gaps allowed, on expiry keep
SEND-ID  RECV-ID  ALGORITHM        OPTIONS  STATE        SEND    ACCEPT                   ORIGIN
      5        6  aes-128-cmac-96  covered  accept-only  always  ../2026-12-25T01:00:00Z  api
");
    assert_snapshot!(server.answer(&["chains", "list", "lab", "--json"]), @r#"
[
  {
    "name": "lab",
    "origin": "api",
    "line": null,
    "accept_tolerance_ms": null,
    "allow_gaps": true,
    "on_expiry": "keep",
    "peers": [],
    "keys": [
      {
        "send_id": 5,
        "recv_id": 6,
        "algorithm": "aes-128-cmac-96",
        "include_tcp_options": true,
        "state": "accept-only",
        "send": {
          "start": null,
          "end": null
        },
        "accept": {
          "start": null,
          "end": "2026-12-25T01:00:00.000Z"
        },
        "origin": "api",
        "line": null
      }
    ]
  }
]
"#);
    let (code, _, error) = server.outcome(&["chains", "list", "lax"]);
    assert_eq!(code, Some(1));
    assert_snapshot!(error, @"aoctl: ao-sidecar refused: there is no key chain `lax`; is `lab` meant?");
}
