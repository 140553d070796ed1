//! The examples are what their programs accept.

use std::path::{Path, PathBuf};
use std::process::Command;

use ao_tests::process::output;
use ao_tests::scratch::Scratch;
use ao_tests::sidecar::program;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}

/// Checks a sidecar's configuration beside the secret files it names.
fn sidecar_accepts(name: &str) -> Result<String, String> {
    let scratch = Scratch::new();
    let text = std::fs::read_to_string(example(name)).map_err(|error| error.to_string())?;
    let secrets = text.lines().filter(|line| line.starts_with("secret_file"));
    for file in secrets.filter_map(|line| line.split('"').nth(1)) {
        scratch.write(file, "a secret of the tests");
    }
    let file = scratch.write("config.toml", &text);
    let mut command = Command::new(program("ao-sidecar"));
    command.arg("check").arg(file);
    output(command)
}

#[test]
fn the_sidecar_accepts_its_examples() {
    for name in [
        "ao-sidecar.toml",
        "bird/ao-sidecar.toml",
        "frr/ao-sidecar.toml",
        "gobgp/ao-sidecar.toml",
    ] {
        sidecar_accepts(name).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn bird_accepts_its_example() {
    let mut command = Command::new("bird");
    command.arg("-p").arg("-c").arg(example("bird/bird.conf"));
    output(command).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn frr_accepts_its_example() {
    let mut command = Command::new("vtysh");
    command.arg("-C").arg("-f").arg(example("frr/frr.conf"));
    output(command).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn gobgp_accepts_its_example() {
    let mut command = Command::new("gobgpd");
    command.args(["--dry-run", "-t", "toml", "-f"]);
    command.arg(example("gobgp/gobgpd.toml"));
    output(command).unwrap_or_else(|error| panic!("{error}"));
}

/// FRR's own start-up puts the wrap before bgpd's command line.
#[test]
fn frr_starts_bgpd_by_its_example() {
    let script = format!(
        "log_success_msg() {{ echo \"$*\"; exit; }}
         . /usr/lib/frr/frrcommon.sh
         . {}
         is_user_root() {{ :; }}
         daemon_prep() {{ :; }}
         daemon_start bgpd",
        example("frr/daemons-ao-sidecar").display()
    );
    let mut command = Command::new("bash");
    command.arg("-c").arg(script);
    let said = output(command).unwrap_or_else(|error| panic!("{error}"));
    let wrapped = "/usr/bin/ao-sidecar exec -- /usr/lib/frr/bgpd";
    assert!(said.contains(wrapped), "{said}");
}
