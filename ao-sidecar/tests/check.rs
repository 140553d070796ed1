//! `ao-sidecar` as it is started from a shell.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn sidecar(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ao-sidecar"))
        .args(arguments)
        .output()
        .unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A copy of the example configuration beside a good secret file.
fn example() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("ao-sidecar.toml");
    fs::copy(repository().join("examples/ao-sidecar.toml"), &config).unwrap();
    for name in ["transit-1.key", "ix-1.key", "ix-2.key"] {
        let secret = folder.path().join(name);
        fs::write(&secret, "a secret for this test only\n").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    }
    (folder, config)
}

#[test]
fn the_example_is_correct() {
    let (_folder, config) = example();
    let output = sidecar(&["check", config.to_str().unwrap()]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(said, format!("{}: correct, 1 peer\n", config.display()));
}

/// Every TOML block of the manual, put together, is a correct configuration.
#[test]
fn the_manual_is_correct() {
    let (folder, _) = example();
    // Their contents are not looked at before they are used.
    for name in [
        "router.crt",
        "router.key",
        "store.key",
        "authority.crt",
        "api.crt",
        "api.key",
        "clients.crt",
    ] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let manual = fs::read_to_string(repository().join("docs/CONFIGURATION.md")).unwrap();
    let blocks: Vec<&str> = manual
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(blocks.len() >= 5, "the blocks are found");
    let config = folder.path().join("manual.toml");
    fs::write(&config, blocks.join("\n")).unwrap();
    let output = sidecar(&["check", config.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
}

#[test]
fn chains_with_lifetimes_are_summed_up_and_warned_about() {
    let (_folder, config) = example();
    let check = |lifetime: &str| {
        let text = fs::read_to_string(repository().join("examples/ao-sidecar.toml")).unwrap();
        let text = text.replace("include_tcp_options = true", lifetime);
        fs::write(&config, text).unwrap();
        let output = sidecar(&["check", config.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0));
        let utf8 = |octets| String::from_utf8(octets).unwrap();
        (utf8(output.stdout), utf8(output.stderr))
    };
    let file = config.display();

    let (said, warned) = check("lifetime = { start = 2020-01-01T00:00:00Z }");
    let line = "key chain \"transit\": sends with ID 1; never runs out";
    assert_eq!(said, format!("{file}: correct, 1 peer\n{line}\n"));
    assert_eq!(warned, "");

    let (said, warned) = check("lifetime = { end = 2020-01-01T00:00:00Z }");
    let line = "key chain \"transit\": still sends with ID 1; ran out at 2020-01-01T00:00:00Z";
    assert_eq!(said, format!("{file}: correct, 1 peer\n{line}\n"));
    let warning = "key chain \"transit\" ran out at 2020-01-01T00:00:00Z: its last key stays in \
                   use; add a key";
    assert_eq!(warned, format!("{file}:5:8: {warning}\n"));
}

#[test]
fn a_group_that_is_not_known_here_is_warned_about() {
    let (_folder, config) = example();
    let text = fs::read_to_string(&config).unwrap();
    let groups = "[api]\nviewer_group = \"root\"\nadmin_group = \"no-such-group\"\n";
    fs::write(&config, format!("{text}{groups}")).unwrap();
    let output = sidecar(&["check", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let warned = String::from_utf8(output.stderr).unwrap();
    let warning = "there is no group \"no-such-group\" on this machine";
    assert_eq!(warned, format!("{}: {warning}\n", config.display()));
}

#[test]
fn a_wrong_configuration_is_exit_code_2_and_names_the_line() {
    let (folder, config) = example();
    fs::remove_file(folder.path().join("transit-1.key")).unwrap();
    for command in [&["check"][..], &["run", "--config"]] {
        let output = sidecar(&[command, &[config.to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        let said = String::from_utf8(output.stderr).unwrap();
        let text = fs::read_to_string(&config).unwrap();
        let line = text
            .lines()
            .position(|line| line.starts_with("secret_file = \"transit-1.key\""));
        let place = format!("{}:{}:15: ", config.display(), line.unwrap() + 1);
        assert!(said.starts_with(&place), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// In a network namespace of its own, where it does no harm.
#[test]
fn the_guard_is_installed_without_the_secrets() {
    let (folder, config) = example();
    fs::remove_file(folder.path().join("transit-1.key")).unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let state = folder.path().join("state");
    fs::write(
        &config,
        format!("state_dir = {:?}\n{text}", state.to_str().unwrap()),
    )
    .unwrap();
    let install = "\"$0\" guard install --config \"$1\" && nft list tables";
    let output = Command::new("unshare")
        .args([
            "--net",
            "sh",
            "-c",
            install,
            env!("CARGO_BIN_EXE_ao-sidecar"),
        ])
        .arg(&config)
        .output()
        .unwrap();
    let warned = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{warned}");
    assert_eq!(warned, "");
    assert!(
        String::from_utf8(output.stdout).unwrap().contains("table"),
        "{warned}"
    );
}

#[test]
fn check_touches_nothing() {
    let (folder, config) = example();
    let text = fs::read_to_string(&config).unwrap();
    let state = folder.path().join("state");
    let with_state = format!("state_dir = {:?}\n{text}", state.to_str().unwrap());
    fs::write(&config, with_state).unwrap();
    assert!(
        sidecar(&["check", config.to_str().unwrap()])
            .status
            .success()
    );
    assert!(!state.exists());
}

#[test]
fn wrong_usage_is_exit_code_2() {
    assert_eq!(sidecar(&[]).status.code(), Some(2));
    assert_eq!(sidecar(&["chek"]).status.code(), Some(2));
    assert_eq!(sidecar(&["guard", "--config", "x"]).status.code(), Some(2));
}

#[test]
fn help_documents_the_exit_codes() {
    let help = String::from_utf8(sidecar(&["--help"]).stdout).unwrap();
    assert!(
        help.contains("Exit codes: 0 success, 1 failure, 2 wrong usage"),
        "{help}"
    );
}

/// A user without capabilities gets one line and leaves nothing behind.
#[test]
fn without_privileges_the_start_is_refused_in_one_line() {
    let (folder, config) = example();
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = if root {
        // As nobody: the folder and the secrets must be its own.
        for name in ["", "ao-sidecar.toml", "transit-1.key", "ix-1.key"] {
            std::os::unix::fs::chown(folder.path().join(name), Some(65534), None).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ]);
        command.arg(readable_copy(folder.path()));
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_ao-sidecar"))
    };
    let state = folder.path().join("state");
    let output = command
        .args([
            "run",
            "--config",
            config.to_str().unwrap(),
            "--state-dir",
            state.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("run as root, or with the capabilities CAP_NET_ADMIN"),
        "{said}"
    );
    assert_eq!(
        said.lines().filter(|line| line.contains("ERROR")).count(),
        1,
        "{said}"
    );
    assert!(!state.exists());
}

/// The binary where nobody may execute it, wherever the build put it.
fn readable_copy(folder: &Path) -> PathBuf {
    let copy = folder.join("ao-sidecar");
    fs::copy(env!("CARGO_BIN_EXE_ao-sidecar"), &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    copy
}
