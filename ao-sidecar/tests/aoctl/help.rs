//! Help, completions and manual pages.

use std::fs;
use std::process::Command;

use insta::assert_snapshot;

use crate::server::program;

fn said(arguments: &[&str]) -> String {
    let output = program().args(arguments).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_help_says_how_to_see_why_a_peer_is_down() {
    assert_snapshot!(said(&["--help"]), @r"
Ask a running ao-sidecar about peers, sessions and keys, find out why a peer is down, and change what it does

Usage: aoctl [OPTIONS] <COMMAND>

Commands:
  status       What is wrong, then the sidecar as a whole: datapath, firewall, peers
  doctor       Find out why a peer is down, and what to do about it
  top          A live view of peers, sessions, rates and events
  peers        Peers: list them; make, change and delete those made by API
  chains       Key chains: list them; make, change and delete those made by API
  keys         Keys: list them, never their secrets; add, change and delete those made by API
  sessions     TCP sessions with their keys, segments and sequence number extensions
  counters     Segments and drops by reason, for each peer, queue and firewall rule
  rollover     Key changes with automatic peers
  events       Steps of key changes, one a line
  config       The configuration: in use, in the file, and how they differ
  identity     What far ends have to configure to know this sidecar
  completions  Print completions for a shell
  help         Print this message or the help of the given subcommand(s)

Options:
  -h, --help     Print help
  -V, --version  Print version

Which sidecar:
      --socket <FILE>        Unix socket of the sidecar's API [env: AOCTL_SOCKET] [default: /run/ao-sidecar/api.sock]
      --address <HOST:PORT>  Ask over TCP with TLS, instead of the Unix socket [env: AOCTL_ADDRESS]
      --ca <FILE>            With --address: certificates of the authority that the sidecar's is signed by, PEM [env: AOCTL_CA]
      --cert <FILE>          With --address: the certificate to show to the sidecar, PEM [env: AOCTL_CERT]
      --key <FILE>           With --address: the private key of --cert, PEM [env: AOCTL_KEY]
      --server-name <NAME>   With --address: the name in the sidecar's certificate, if it is not HOST [env: AOCTL_SERVER_NAME]
      --timeout <TIME>       How long to wait for an answer, in seconds or with a unit [env: AOCTL_TIMEOUT] [default: 5s; 60s for diagnoses and changes]

Output:
      --json          Print JSON instead of text
      --color <WHEN>  Use colours: auto (on a terminal, unless NO_COLOR is set), always or never [default: auto]

A peer is down?           aoctl doctor PEER
What is going on?         aoctl status, aoctl top, aoctl events --follow
Before a reload:          aoctl config diff

Exit codes: 0 success, 1 failure or refusal, 2 wrong usage, 3 the sidecar cannot be reached or goes
away, 4 and 5 with doctor, config check and config diff: something is wrong or differs.
");
}

#[test]
fn every_command_has_help() {
    for (command, actions) in [
        ("status", &[][..]),
        ("doctor", &[]),
        ("top", &[]),
        ("peers", &["list", "create", "update", "delete"]),
        ("chains", &["list", "create", "update", "delete"]),
        ("keys", &["list", "add", "change", "delete"]),
        ("sessions", &[]),
        ("counters", &[]),
        ("rollover", &["status", "start", "abort", "force"]),
        ("events", &[]),
        ("config", &["show", "check", "diff", "reload"]),
        ("identity", &[]),
        ("completions", &[]),
    ] {
        let help = said(&[command, "--help"]);
        assert!(help.contains(&format!("Usage: aoctl {command}")), "{help}");
        for action in actions {
            let help = said(&[command, action, "--help"]);
            assert!(
                help.contains(&format!("Usage: aoctl {command} {action}")),
                "{help}"
            );
        }
    }
}

#[test]
fn completions_are_made_for_each_shell() {
    assert!(said(&["completions", "bash"]).contains("complete -F _aoctl"));
    assert!(said(&["completions", "zsh"]).starts_with("#compdef aoctl"));
    assert!(said(&["completions", "fish"]).contains("complete -c aoctl"));
    let bash = said(&["completions", "bash"]);
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(&script, bash).unwrap();
    let checked = Command::new("bash").arg("-n").arg(script.path()).status();
    assert!(checked.unwrap().success());
}

#[test]
fn manual_pages_are_made_for_both_programs() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    said(&["man", pages.to_str().unwrap()]);
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap();
    assert!(page("aoctl.1").contains("aoctl doctor PEER"));
    assert!(page("aoctl-keys-add.1").contains("secret\\-file"));
    assert!(page("ao-sidecar-run.1").contains("READY=1"));
    assert!(!pages.join("aoctl-man.1").exists(), "it is for packagers");
    // Once more over the same pages.
    said(&["man", pages.to_str().unwrap()]);
}
