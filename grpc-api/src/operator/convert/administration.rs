//! What the daemon tells of its configuration, as messages.

use super::{lifetime, span, state, timestamp};
use crate::operator::Lifetime;
use crate::operator::administration::{
    ChainKeyReport, ChangeKind, Changed, ConfigChange, ConfigProblem, ConfigReport, Finding,
    FindingSeverity, KeyChainReport, KeyChainSpec, KeySpec, Origin, Validation,
};
use crate::v1;

pub(crate) fn key_chain(report: KeyChainReport) -> v1::KeyChain {
    v1::KeyChain {
        spec: Some(rules(report.chain)),
        origin: origin(report.origin).into(),
        line: line(report.origin),
        keys: report.keys.into_iter().map(chain_key).collect(),
        peers: report.peers.iter().map(ToString::to_string).collect(),
    }
}

fn rules(chain: KeyChainSpec) -> v1::KeyChainSpec {
    v1::KeyChainSpec {
        name: chain.name,
        tolerance: chain.tolerance.map(span),
        allow_gaps: chain.allow_gaps,
        on_expiry: chain.on_expiry.unwrap_or_default(),
    }
}

fn chain_key(report: ChainKeyReport) -> v1::ChainKey {
    v1::ChainKey {
        spec: Some(key(report.key)),
        origin: origin(report.origin).into(),
        line: line(report.origin),
        state: state(report.state).into(),
    }
}

fn key(key: KeySpec) -> v1::KeySpec {
    v1::KeySpec {
        send_id: Some(key.send_id.into()),
        recv_id: Some(key.recv_id.into()),
        algorithm: key.algorithm,
        include_tcp_options: Some(key.include_tcp_options),
        // Whatever the daemon has put there.
        secret: Vec::new(),
        send_lifetime: limited(key.send),
        accept_lifetime: key.accept.and_then(limited),
    }
}

/// Nothing for always.
fn limited(span: Lifetime) -> Option<v1::Lifetime> {
    (span != Lifetime::default())
        .then(|| lifetime(span))
        .flatten()
}

pub(crate) fn origin(origin: Origin) -> v1::Origin {
    match origin {
        Origin::File(_) => v1::Origin::File,
        Origin::Api => v1::Origin::Api,
    }
}

fn line(origin: Origin) -> u32 {
    match origin {
        Origin::File(line) => line,
        Origin::Api => 0,
    }
}

pub(crate) fn config(report: ConfigReport) -> v1::GetConfigResponse {
    v1::GetConfigResponse {
        toml: report.toml,
        file: report.file,
        loaded_at: Some(timestamp(report.loaded_at)),
        api_made: report.api_made,
    }
}

pub(crate) fn validation(validation: Validation) -> v1::ValidateConfigResponse {
    v1::ValidateConfigResponse {
        valid: validation.problems.is_empty(),
        problems: validation.problems.into_iter().map(problem).collect(),
        warnings: validation.warnings.into_iter().map(problem).collect(),
    }
}

fn problem(problem: ConfigProblem) -> v1::ConfigProblem {
    let (line, column) = problem.place.unwrap_or_default();
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
    v1::ConfigProblem {
        line: number(line),
        column: number(column),
        text: problem.text,
    }
}

pub(crate) fn differences(changed: Changed) -> v1::DiffConfigResponse {
    v1::DiffConfigResponse {
        changes: changes(changed.changes),
        warnings: changed.warnings,
    }
}

pub(crate) fn reloaded(changed: Changed) -> v1::ReloadConfigResponse {
    v1::ReloadConfigResponse {
        changes: changes(changed.changes),
        warnings: changed.warnings,
    }
}

/// `message`: what was done, as a sentence.
pub(crate) fn changed(message: String, changed: Changed) -> v1::ChangeResponse {
    v1::ChangeResponse {
        message,
        changes: changes(changed.changes),
        warnings: changed.warnings,
    }
}

fn changes(changes: Vec<ConfigChange>) -> Vec<v1::ConfigChange> {
    let change = |change: ConfigChange| v1::ConfigChange {
        subject: change.subject,
        kind: match change.kind {
            ChangeKind::Added => v1::ChangeKind::Added,
            ChangeKind::Removed => v1::ChangeKind::Removed,
            ChangeKind::Changed => v1::ChangeKind::Changed,
        }
        .into(),
        details: change.details,
        effect: change.effect,
        needs_restart: change.needs_restart,
    };
    changes.into_iter().map(change).collect()
}

/// What matters most comes first, otherwise they stay in order.
pub(crate) fn diagnosis(mut findings: Vec<Finding>) -> v1::DiagnoseResponse {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let finding = |finding: Finding| v1::Finding {
        code: finding.code.to_owned(),
        severity: match finding.severity {
            FindingSeverity::Ok => v1::FindingSeverity::Ok,
            FindingSeverity::Note => v1::FindingSeverity::Note,
            FindingSeverity::Warning => v1::FindingSeverity::Warning,
            FindingSeverity::Problem => v1::FindingSeverity::Problem,
        }
        .into(),
        peer: finding.peer.as_deref().unwrap_or_default().to_owned(),
        seen: finding.seen,
        matters: finding.matters,
        remedy: finding.remedy,
    };
    v1::DiagnoseResponse {
        findings: findings.into_iter().map(finding).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use zeroize::Zeroizing;

    use super::*;
    use crate::operator::KeyState;
    use crate::operator::administration::Secret;

    #[test]
    fn secrets_are_never_told() {
        let secret = Secret(Zeroizing::new(b"precious".to_vec()));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        let report = KeyChainReport {
            chain: KeyChainSpec {
                name: "ix".into(),
                tolerance: Some(Duration::from_secs(60)),
                ..KeyChainSpec::default()
            },
            origin: Origin::File(12),
            keys: vec![ChainKeyReport {
                key: KeySpec {
                    send_id: 1,
                    recv_id: 2,
                    algorithm: "aes-128-cmac-96".into(),
                    include_tcp_options: true,
                    secret: Some(secret),
                    send: Lifetime::default(),
                    accept: Some(Lifetime {
                        start: None,
                        end: Some(SystemTime::UNIX_EPOCH),
                    }),
                },
                origin: Origin::Api,
                state: KeyState::Expired,
            }],
            peers: vec!["as64502".into()],
        };
        let told = key_chain(report);
        let key = &told.keys[0];
        let spec = key.spec.as_ref().unwrap();
        assert!(spec.secret.is_empty());
        assert_eq!(spec.send_lifetime, None);
        assert!(spec.accept_lifetime.is_some());
        assert_eq!((told.line, key.line), (12, 0));
        assert_eq!(
            (told.origin(), key.origin()),
            (v1::Origin::File, v1::Origin::Api)
        );
    }

    #[test]
    fn what_matters_most_comes_first() {
        let finding = |code, severity| Finding {
            code,
            severity,
            peer: None,
            seen: String::new(),
            matters: String::new(),
            remedy: String::new(),
        };
        let told = diagnosis(vec![
            finding("a", FindingSeverity::Ok),
            finding("b", FindingSeverity::Problem),
            finding("c", FindingSeverity::Note),
            finding("d", FindingSeverity::Problem),
            finding("e", FindingSeverity::Warning),
        ]);
        let codes: Vec<_> = told.findings.iter().map(|finding| &*finding.code).collect();
        assert_eq!(codes, ["b", "d", "e", "c", "a"]);
    }
}
