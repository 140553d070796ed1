//! Peers, key chains and keys that are made, changed and deleted.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

use insta::assert_snapshot;

use crate::administration::SECRET;
use crate::fixture::snapshot;
use crate::server::{Server, program, words};

impl Server {
    /// A file in the server's folder with these contents and mode.
    fn file(&self, name: &str, contents: &str, mode: u32) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What a refused change says, without the name of the folder.
    fn refusal(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let (code, text, error) = self.outcome(arguments);
        assert_eq!(text, "");
        assert!(!error.contains(SECRET), "{error}");
        let folder = self.folder.path().to_str().unwrap();
        (code, error.replace(folder, "FOLDER"))
    }

    /// Runs a command with this standard input.
    fn fed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut aoctl = program()
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses what it reads may have gone before all of it is written.
        let _ = aoctl.stdin.take().unwrap().write_all(input);
        aoctl.wait_with_output().unwrap()
    }
}

#[test]
fn a_peer_is_made_changed_and_deleted() {
    let server = Server::start(Some(snapshot()));
    let create = words(
        "peers create as64502 --peer-address 10.0.0.2 --key-chain lab --ports 179-180 \
         --vrf blue --ttl-min 254 --datapath kernel --local-address 10.0.0.1 \
         --interface eth0 --replace-sessions",
    );
    assert_snapshot!(server.answer(&create), @r"
peer as64502 is made
~ peer as64502: ttl_min 0 becomes 254
warning: its chain has not begun
");
    assert_snapshot!(server.administration.last(), @r#"admin: PutPeer { peer: PeerSpec { name: "as64502", address: "10.0.0.2", key_chain: "lab", ports: Some((179, 180)), local_address: Some("10.0.0.1"), interface: Some("eth0"), vrf: Some("blue"), ttl_min: 254, datapath: Some("kernel") }, replace: false, replace_sessions: true } None"#);

    let update = [
        "peers", "update", "as64502", "--vrf", "", "--port", "1790", "--json",
    ];
    assert_snapshot!(server.answer(&update), @r#"
{
  "message": "peer as64502 is replaced",
  "changes": [
    {
      "subject": "peer as64502",
      "kind": "changed",
      "details": [
        "ttl_min 0 becomes 254"
      ],
      "effect": null,
      "needs_restart": false
    }
  ],
  "warnings": [
    "its chain has not begun"
  ]
}
"#);
    assert_snapshot!(server.administration.last(), @r#"admin: PutPeer { peer: PeerSpec { name: "as64502", address: "10.0.0.2", key_chain: "lab", ports: Some((1790, 1790)), local_address: None, interface: None, vrf: None, ttl_min: 1, datapath: None }, replace: true, replace_sessions: false } None"#);

    server.answer(&["peers", "delete", "as64502"]);
    assert_snapshot!(server.administration.last(), @r#"admin: DeletePeer { name: "as64502" } None"#);
}

#[test]
fn a_key_chain_is_made_changed_and_deleted() {
    let server = Server::start(Some(snapshot()));
    let secret = server.file("secret", SECRET, 0o600);
    let create = format!(
        "chains create lab --accept-tolerance 5m --allow-gaps --on-expiry close \
         --send-id 1 --recv-id 2 --algorithm hmac-sha-1-96 --secret-file {secret} \
         --lifetime 2026-12-01T00:00:00Z/31d"
    );
    let create = words(&create);
    assert_snapshot!(server.answer(&create), @r"
key chain lab is made
~ peer as64502: ttl_min 0 becomes 254
warning: its chain has not begun
");
    assert_snapshot!(server.administration.last().replace(SECRET, "SECRET"), @r#"admin: CreateKeyChain { chain: KeyChainSpec { name: "lab", tolerance: Some(300s), allow_gaps: true, on_expiry: Some("close") }, keys: [KeySpec { send_id: 1, recv_id: 2, algorithm: "hmac-sha-1-96", include_tcp_options: true, secret: Some(Secret(…)), send: Lifetime { start: Some(SystemTime { tv_sec: 1796083200, tv_nsec: 0 }), end: Some(SystemTime { tv_sec: 1798761600, tv_nsec: 0 }) }, accept: None }] } Some("SECRET")"#);

    // What is not given stays as the sidecar has it.
    server.answer(&["chains", "update", "transit", "--allow-gaps", "true"]);
    assert_snapshot!(server.administration.last(), @r#"admin: UpdateKeyChain { chain: KeyChainSpec { name: "transit", tolerance: Some(300s), allow_gaps: true, on_expiry: Some("close") } } None"#);

    server.answer(&["chains", "delete", "lab"]);
    assert_snapshot!(server.administration.last(), @r#"admin: DeleteKeyChain { name: "lab" } None"#);
}

#[test]
fn a_key_is_added_changed_and_deleted() {
    let server = Server::start(Some(snapshot()));
    let secret = server.file("secret", &format!("{SECRET}\n"), 0o400);
    let add = format!(
        "keys add transit --send-id 5 --recv-id 6 --algorithm aes-128-cmac-96 \
         --include-tcp-options false --secret-file {secret} --send-lifetime \
         2026-12-01T00:00:00Z/.. --accept-lifetime always"
    );
    let add = words(&add);
    assert_snapshot!(server.answer(&add), @r"
key 5/6 of key chain transit is made
~ peer as64502: ttl_min 0 becomes 254
warning: its chain has not begun
");
    assert_snapshot!(server.administration.last().replace(SECRET, "SECRET"), @r#"admin: PutKey { chain: "transit", key: KeySpec { send_id: 5, recv_id: 6, algorithm: "aes-128-cmac-96", include_tcp_options: false, secret: Some(Secret(…)), send: Lifetime { start: Some(SystemTime { tv_sec: 1796083200, tv_nsec: 0 }), end: None }, accept: Some(Lifetime { start: None, end: None }) }, replace: false } Some("SECRET")"#);

    // What is not given stays as the sidecar has it, and so does the secret.
    let change = words(
        "keys change transit --send-id 1 --recv-id 2 --accept-lifetime \
         ../2027-02-01T00:00:00Z",
    );
    server.answer(&change);
    assert_snapshot!(server.administration.last(), @r#"admin: PutKey { chain: "transit", key: KeySpec { send_id: 1, recv_id: 2, algorithm: "aes-128-cmac-96", include_tcp_options: false, secret: None, send: Lifetime { start: Some(SystemTime { tv_sec: 1798156800, tv_nsec: 0 }), end: None }, accept: Some(Lifetime { start: None, end: Some(SystemTime { tv_sec: 1801440000, tv_nsec: 0 }) }) }, replace: true } None"#);

    server.answer(&words("keys delete transit --send-id 1 --recv-id 2"));
    assert_snapshot!(server.administration.last(), @r#"admin: DeleteKey { chain: "transit", send_id: 1, recv_id: 2 } None"#);
}

#[test]
fn a_secret_is_read_from_standard_input_and_never_shown() {
    let server = Server::start(Some(snapshot()));
    let add = words(
        "keys add transit --send-id 5 --recv-id 6 --algorithm aes-128-cmac-96 \
         --secret-file -",
    );
    let output = server.fed(&add, format!("{SECRET}\n").as_bytes());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        server
            .administration
            .last()
            .ends_with(&format!("Some({SECRET:?})"))
    );
    let all = [output.stdout, output.stderr].concat();
    assert!(!String::from_utf8(all).unwrap().contains(SECRET));

    for (input, said) in [
        (&b"\n"[..], "aoctl: the secret is empty\n"),
        (&[b'x'; 82], "aoctl: the secret has more than 80 octets\n"),
        (
            &[b'x'; 1 << 20],
            "aoctl: the secret has more than 80 octets\n",
        ),
    ] {
        let output = server.fed(&add, input);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), said);
    }
}

#[test]
fn a_secret_file_is_as_private_as_everywhere() {
    let server = Server::start(Some(snapshot()));
    let add = |file: &str| {
        let add = "keys add transit --send-id 5 --recv-id 6 --algorithm aes-128-cmac-96";
        server.refusal(&words(&format!("{add} --secret-file {file}")))
    };
    let (code, text) = add(&server.file("open", SECRET, 0o644));
    assert_eq!(code, Some(1));
    assert_snapshot!(text, @"aoctl: secret file FOLDER/open is readable by others (mode 0644); chmod 600 FOLDER/open");
    assert_snapshot!(add(&server.file("empty", "", 0o600)).1, @"aoctl: secret file FOLDER/empty is empty; write the secret into it");
    assert_snapshot!(add(&server.file("long", &SECRET.repeat(4), 0o600)).1, @"aoctl: secret file FOLDER/long holds more than 80 octets");
    assert_snapshot!(add(server.folder.path().join("absent").to_str().unwrap()).1, @"aoctl: secret file FOLDER/absent cannot be read: No such file or directory (os error 2)");
}

#[test]
fn what_is_missing_is_wrong_usage() {
    let server = Server::start(Some(snapshot()));
    let usage = |arguments: &[&str]| {
        let (code, text) = server.refusal(arguments);
        assert_eq!(code, Some(2), "{text}");
        text
    };
    assert_snapshot!(usage(&["peers", "create", "x", "--key-chain", "lab"]), @"aoctl: a peer needs --peer-address; see --help");
    assert_snapshot!(usage(&["peers", "create", "x", "--peer-address", "10.0.0.2"]), @"aoctl: a peer needs --key-chain; see --help");
    let ids = ["--send-id", "1", "--recv-id", "2"];
    let add = [&["keys", "add", "transit"][..], &ids].concat();
    assert_snapshot!(usage(&add), @"aoctl: a key needs --algorithm; see --help");
    let add = [&add[..], &["--algorithm", "aes-128-cmac-96"]].concat();
    assert_snapshot!(usage(&add), @"aoctl: a key needs --secret-file; see --help");
    assert_snapshot!(usage(&[&add[..], &["--lifetime", "2026"]].concat()), @r"
error: invalid value '2026' for '--lifetime <SPAN>': write always or START/END, with .. for an open end

For more information, try '--help'.
");
    assert_snapshot!(usage(&["keys", "delete", "x", "--send-id", "256", "--recv-id", "1"]), @r"
error: invalid value '256' for '--send-id <ID>': 256 is not in 0..=255

For more information, try '--help'.
");
    assert!(server.administration.asked.lock().unwrap().is_empty());
}

#[test]
fn refused_changes_say_why() {
    let server = Server::start(Some(snapshot()));
    let create = words("peers create ix --peer-address 10.0.0.2 --key-chain lab");
    let (code, text) = server.refusal(&create);
    assert_eq!(code, Some(1));
    assert_snapshot!(text, @r#"aoctl: ao-sidecar refused: peer "ix" is in /etc/ao-sidecar/config.toml:12: change it there"#);
    let (code, text) = server.refusal(&["peers", "delete", "as64503"]);
    assert_eq!(code, Some(1));
    assert_snapshot!(text, @r#"aoctl: ao-sidecar refused: there is no peer "as64503" made by API; is "as64502" meant?"#);
}

#[test]
fn a_name_of_1_mb_is_refused() {
    let server = Server::start(Some(snapshot()));
    // The longest argument a system takes is 128 KiB; a name of 1 MB comes in pieces or not at all.
    let name = "x".repeat(100_000);
    let (code, text) = server.refusal(&["peers", "delete", &name]);
    assert_eq!(code, Some(1));
    assert!(text.len() < 1000, "{} octets", text.len());
    assert_snapshot!(text, @"aoctl: ao-sidecar refused: Error, decoded message length too large: found 100004 bytes, the limit is: 65536 bytes");
}
