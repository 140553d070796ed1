//! `aoctl doctor` names the true cause: faults injected one by one, at the far end and at this one.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod far_end;
mod this_end;

use std::process::Command;

use ao_tests::daemon::{self, Daemon, Implementation, Speaker};
use ao_tests::netns::Namespace;
use ao_tests::sidecar::{Config, Key, Sidecar, program};
use ao_tests::topology::{Family, Lan};
use serde_json::Value;

/// The name that [`Config`] gives its peer.
const PEER: &str = "peer";

/// A BGP daemon at host a, protected by the sidecar under examination. What host b has is each
/// test's.
struct Patient {
    sidecar: Sidecar,
    daemon: Box<dyn Daemon>,
    lan: Lan,
}

impl Patient {
    /// BIRD, which tries every 2 s and takes calls, behind a sidecar with the default key.
    fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// The same, after a change to the sidecar's configuration.
    fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let lan = Lan::new();
        let mut config = Config::new(&lan.b, Family::V4, Key::default());
        change(&mut config);
        let sidecar = Sidecar::start(&lan.a.namespace, &config);
        let (speaker, _) = Speaker::pair(&lan.a, &lan.b, Family::V4);
        let daemon = daemon::start(Implementation::Bird, &lan.a.namespace, &speaker);
        Self {
            sidecar,
            daemon,
            lan,
        }
    }

    /// A daemon at host b, which tries as well; `change` makes it another than host a expects.
    fn far_daemon(
        &self,
        implementation: Implementation,
        change: impl FnOnce(&mut Speaker),
    ) -> Box<dyn Daemon> {
        let (_, mut speaker) = Speaker::pair(&self.lan.a, &self.lan.b, Family::V4);
        speaker.passive = false;
        change(&mut speaker);
        daemon::start(implementation, &self.lan.b.namespace, &speaker)
    }

    /// A sidecar at host b whose key is the right one but for `change`.
    fn far_sidecar(&self, change: impl FnOnce(&mut Key)) -> Sidecar {
        let mut key = Key::default().mirrored();
        change(&mut key);
        let config = Config::new(&self.lan.a, Family::V4, key);
        Sidecar::start(&self.lan.b.namespace, &config)
    }

    /// What the doctor says of the peer.
    fn diagnosis(&self) -> Diagnosis {
        diagnose(&self.sidecar, &[PEER])
    }
}

/// What `aoctl doctor` has printed.
#[derive(Debug)]
struct Diagnosis {
    /// The findings, as they stand in its JSON.
    findings: Vec<Value>,
    exit_code: Option<i32>,
}

/// Runs `aoctl doctor --json WORDS…` on a sidecar that answers.
fn diagnose(sidecar: &Sidecar, words: &[&str]) -> Diagnosis {
    diagnose_by(Command::new(program("aoctl")), sidecar, words)
}

/// The same in a namespace: without an answer, it is looked at what is there.
fn diagnose_from(namespace: &Namespace, sidecar: &Sidecar, words: &[&str]) -> Diagnosis {
    diagnose_by(namespace.command(program("aoctl")), sidecar, words)
}

fn diagnose_by(mut command: Command, sidecar: &Sidecar, words: &[&str]) -> Diagnosis {
    command.arg("--socket").arg(sidecar.socket());
    command.args(["doctor", "--json", "--config"]);
    command.arg(sidecar.config_file()).args(words);
    if !words.contains(&"--listen") {
        command.args(["--listen", "20s"]);
    }
    let output = command.output().expect("run aoctl");
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{command:?}: {error}: {output:?}"));
    let findings = answer["findings"].as_array().expect("findings").clone();
    assert!(!findings.is_empty(), "no findings at all: {output:?}");
    Diagnosis {
        findings,
        exit_code: output.status.code(),
    }
}

impl Diagnosis {
    /// Asserts that the first problem told of the peer is `code`, that nothing of all peers is told
    /// to be a problem, and that it says what to do. Returns what was seen.
    #[track_caller]
    fn assert_cause(&self, code: &str) -> String {
        let mut problems = self.of_severity("problem");
        let Some(first) = problems.next() else {
            panic!("no problem: {self:#?}")
        };
        assert_eq!(
            (&first["code"], &first["peer"]),
            (&code.into(), &PEER.into()),
            "{self:#?}"
        );
        for part in ["matters", "remedy"] {
            assert!(
                first[part].as_str().is_some_and(|text| !text.is_empty()),
                "{first}"
            );
        }
        assert!(problems.all(|other| other["peer"] == PEER), "{self:#?}");
        assert_eq!(self.exit_code, Some(4), "{self:#?}");
        first["seen"].as_str().expect("what was seen").to_owned()
    }

    /// Asserts that nothing is wrong.
    #[track_caller]
    fn assert_healthy(&self) {
        let wrong = self
            .of_severity("problem")
            .chain(self.of_severity("warning"));
        assert_eq!(wrong.count(), 0, "{self:#?}");
        let said = |code: &str| self.findings.iter().any(|finding| finding["code"] == code);
        assert!(said("session-ok"), "{self:#?}");
        assert_eq!(self.exit_code, Some(0), "{self:#?}");
    }

    fn of_severity(&self, severity: &'static str) -> impl Iterator<Item = &Value> {
        let findings = self.findings.iter();
        findings.filter(move |finding| finding["severity"] == severity)
    }
}
