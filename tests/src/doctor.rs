//! What `aoctl doctor` says, and what it is expected to say.

use std::process::Command;

use serde_json::Value;

use crate::netns::Namespace;
use crate::sidecar::{Sidecar, program};

/// The name that [`Config`](crate::sidecar::Config) gives its peer.
pub const PEER: &str = "peer";

/// What a sidecar with several peers calls the first.
pub const FIRST: &str = "peer-0";

/// What `aoctl doctor` has printed.
#[derive(Debug)]
pub struct Diagnosis {
    /// The findings, as they stand in its JSON.
    pub findings: Vec<Value>,
    /// How it ended.
    pub exit_code: Option<i32>,
}

/// Runs `aoctl doctor --json WORDS…` on a sidecar that answers.
///
/// # Panics
/// When that prints no findings.
#[must_use]
pub fn diagnose(sidecar: &Sidecar, words: &[&str]) -> Diagnosis {
    diagnose_by(Command::new(program("aoctl")), sidecar, words)
}

/// The same in a namespace: without an answer, it is looked at what is there.
///
/// # Panics
/// When that prints no findings.
#[must_use]
pub fn diagnose_from(namespace: &Namespace, sidecar: &Sidecar, words: &[&str]) -> Diagnosis {
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
    ///
    /// # Panics
    /// When that is not so.
    #[track_caller]
    pub fn assert_cause(&self, code: &str) -> String {
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

    /// Asserts that the first of all findings is this problem of the peer [`FIRST`], and gives what
    /// was seen.
    ///
    /// # Panics
    /// When that is not so.
    #[track_caller]
    pub fn assert_first(&self, code: &str) -> String {
        let first = &self.findings[0];
        let told = [&first["severity"], &first["code"], &first["peer"]];
        assert_eq!(told, ["problem", code, FIRST], "{self:#?}");
        assert_eq!(self.exit_code, Some(4), "{self:#?}");
        first["seen"].as_str().expect("what was seen").to_owned()
    }

    /// Asserts that nothing is wrong.
    ///
    /// # Panics
    /// When something is.
    #[track_caller]
    pub fn assert_healthy(&self) {
        let wrong = self
            .of_severity("problem")
            .chain(self.of_severity("warning"));
        assert_eq!(wrong.count(), 0, "{self:#?}");
        let said = |code: &str| self.findings.iter().any(|finding| finding["code"] == code);
        assert!(said("session-ok"), "{self:#?}");
        assert_eq!(self.exit_code, Some(0), "{self:#?}");
    }

    /// The findings of one severity.
    pub fn of_severity(&self, severity: &'static str) -> impl Iterator<Item = &Value> {
        let findings = self.findings.iter();
        findings.filter(move |finding| finding["severity"] == severity)
    }
}
