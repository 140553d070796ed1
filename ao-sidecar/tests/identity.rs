//! `ao-sidecar identity` as it is started from a shell.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

fn identity(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ao-sidecar"))
        .arg("identity")
        .args(arguments)
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = identity(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.is_empty(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_fingerprint_is_alone_on_a_line_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let fingerprint = printed(&["--state-dir", text(&state)]);
    let digits = fingerprint.strip_prefix("sha256:").unwrap();
    let digits = digits.strip_suffix('\n').unwrap();
    assert_eq!(digits.len(), 64, "{fingerprint}");
    assert!(digits.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')));
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(printed(&["--state-dir", text(&state)]), fingerprint);
}

#[test]
fn json_tells_the_same_and_when_it_expires() {
    let folder = tempfile::tempdir().unwrap();
    let state = text(folder.path());
    let fingerprint = printed(&["--state-dir", state]);
    let object: serde_json::Value =
        serde_json::from_str(&printed(&["--state-dir", state, "--json"])).unwrap();
    assert_eq!(object["fingerprint"], fingerprint.trim_end());
    assert_eq!(object["expires"], "2130-01-01T00:00:00.000Z");
    assert_eq!(object["certificate_file"], format!("{state}/identity.crt"));
}

/// The fingerprint is of the key as others compute it, too.
#[test]
fn openssl_computes_the_same_fingerprint() {
    let folder = tempfile::tempdir().unwrap();
    let fingerprint = printed(&["--state-dir", text(folder.path())]);
    let key = folder.path().join("identity.key");
    let pipe = "openssl pkey -in \"$0\" -pubout -outform DER | sha256sum";
    let output = Command::new("sh")
        .args(["-c", pipe, text(&key)])
        .output()
        .unwrap();
    let sum = String::from_utf8(output.stdout).unwrap();
    let sum = sum.split_whitespace().next().unwrap();
    assert_eq!(fingerprint, format!("sha256:{sum}\n"));
}

#[test]
fn a_configuration_says_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (state, config) = (
        folder.path().join("state"),
        folder.path().join("config.toml"),
    );
    let peer = "[[key_chain]]\nname = \"k\"\n[[key_chain.key]]\nsend_id = 1\nrecv_id = 1\n\
                algorithm = \"hmac-sha-1-96\"\nsecret = \"for this test only\"\n\
                [[peer]]\nname = \"p\"\naddress = \"192.0.2.1\"\nkey_chain = \"k\"\n";
    fs::write(&config, format!("state_dir = {:?}\n{peer}", text(&state))).unwrap();
    fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
    let fingerprint = printed(&["--config", text(&config)]);
    assert_eq!(printed(&["--state-dir", text(&state)]), fingerprint);

    let own = format!(
        "[identity]\ncert_file = {:?}\nkey_file = {:?}\n{peer}",
        text(&state.join("identity.crt")),
        text(&state.join("identity.key"))
    );
    fs::write(&config, own).unwrap();
    assert_eq!(printed(&["--config", text(&config)]), fingerprint);

    fs::write(&config, "peer = 1\n").unwrap();
    assert_eq!(
        identity(&["--config", text(&config)]).status.code(),
        Some(2)
    );
}

#[test]
fn what_is_wrong_is_said_in_a_line_with_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let state = text(folder.path());
    printed(&["--state-dir", state]);
    let key = folder.path().join("identity.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let output = identity(&["--state-dir", state]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("ao-sidecar identity: "), "{said}");
    assert!(
        said.contains("identity.key is readable by others"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}
