//! Diagnoses.

use grpc_api::operator::administration::{Finding, FindingSeverity};
use insta::assert_snapshot;

use crate::administration::finding;
use crate::fixture::snapshot;
use crate::server::Server;

fn findings() -> Vec<Finding> {
    vec![
        Finding {
            seen: "12 SYNs came from 10.0.0.2 with KeyID 7, and none verified with the secret of \
                   key 7/7\u{1b}[2J"
                .into(),
            matters: "Both ends need the same secret; the segments are dropped, and the far end \
                      sees a time-out."
                .into(),
            remedy: "Compare the secrets of key 7/7:\n  ao-sidecar check \
                     /etc/ao-sidecar/config.toml, with a line that is longer than a page\nand \
                     correct one of them."
                .into(),
            ..finding("wrong-secret", FindingSeverity::Problem, "as64502")
        },
        finding("clock-unsynchronised", FindingSeverity::Warning, ""),
        finding("chain-ending", FindingSeverity::Warning, "ix"),
        finding("session-ok", FindingSeverity::Ok, "new"),
    ]
}

#[test]
fn findings_are_paragraphs_by_severity() {
    let server = Server::start(Some(snapshot()));
    *server.administration.findings.lock().unwrap() = findings();
    let (code, text, error) = server.outcome(&["doctor"]);
    assert_eq!((code, error.as_str()), (Some(4), ""));
    assert_eq!(server.administration.last(), "diagnose None for 10s");
    assert_snapshot!(text, @r"
PROBLEMS

as64502: wrong-secret
  seen  12 SYNs came from 10.0.0.2 with KeyID 7, and none verified with the
        secret of key 7/7�[2J
  why   Both ends need the same secret; the segments are dropped, and the far
        end sees a time-out.
  do    Compare the secrets of key 7/7:
          ao-sidecar check /etc/ao-sidecar/config.toml, with a line that is longer than a page
        and correct one of them.

WARNINGS

clock-unsynchronised
  seen  what was seen of clock-unsynchronised

ix: chain-ending
  seen  what was seen of chain-ending

AS IT SHOULD BE

new: session-ok
  seen  what was seen of session-ok

1 problem, 2 warnings, 1 point as it should be
");
    let (code, json, _) = server.outcome(&["doctor", "as64502", "--listen", "1m", "--json"]);
    assert_eq!(code, Some(4));
    assert_eq!(
        server.administration.last(),
        "diagnose Some(\"as64502\") for 60s"
    );
    assert_snapshot!(json, @r#"
{
  "findings": [
    {
      "code": "wrong-secret",
      "severity": "problem",
      "peer": "as64502",
      "seen": "12 SYNs came from 10.0.0.2 with KeyID 7, and none verified with the secret of key 7/7\u001b[2J",
      "matters": "Both ends need the same secret; the segments are dropped, and the far end sees a time-out.",
      "remedy": "Compare the secrets of key 7/7:\n  ao-sidecar check /etc/ao-sidecar/config.toml, with a line that is longer than a page\nand correct one of them."
    },
    {
      "code": "clock-unsynchronised",
      "severity": "warning",
      "peer": null,
      "seen": "what was seen of clock-unsynchronised",
      "matters": null,
      "remedy": null
    },
    {
      "code": "chain-ending",
      "severity": "warning",
      "peer": "ix",
      "seen": "what was seen of chain-ending",
      "matters": null,
      "remedy": null
    },
    {
      "code": "session-ok",
      "severity": "ok",
      "peer": "new",
      "seen": "what was seen of session-ok",
      "matters": null,
      "remedy": null
    }
  ]
}
"#);
}

#[test]
fn the_exit_code_tells_the_worst_finding() {
    let server = Server::start(Some(snapshot()));
    for (from, code) in [(0, 4), (1, 5), (3, 0)] {
        *server.administration.findings.lock().unwrap() = findings().split_off(from);
        assert_eq!(server.outcome(&["doctor", "--listen", "0"]).0, Some(code));
    }
}

#[test]
fn an_unknown_peer_is_refused_with_a_hint() {
    let server = Server::start(Some(snapshot()));
    let (code, _, error) = server.outcome(&["doctor", "as64520"]);
    assert_eq!(code, Some(1));
    assert_snapshot!(error, @"aoctl: ao-sidecar refused: there is no peer `as64520`; is `as64502` meant?");
}

#[test]
fn without_a_sidecar_it_looks_itself() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let config = folder.path().join("config.toml");
    let config = config.to_str().unwrap();
    let output = crate::server::aoctl(&socket, &["doctor", "--config", config, "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert!(!findings.is_empty());
    assert_eq!(findings[0]["severity"], "problem", "{json}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("aoctl: cannot reach ao-sidecar on "),
        "{said}"
    );
}
