//! The way to the far end's sidecar.

use grpc_api::operator::RolloverReport;
use grpc_api::operator::administration::FindingSeverity;

use super::Draft;
use crate::doctor::code::Code;
use crate::doctor::facts::{Keys, PeerFacts};
use crate::doctor::text::{count, time};

const FIRST_KEY: &str = "The first key is agreed with the far end's sidecar. Until then the peer is \
                         blocked: nothing is sent or accepted unsigned.";

/// A peer that has never had a key.
pub(super) fn first_contact(peer: &PeerFacts, rollover: &RolloverReport) -> Draft {
    if let Some((_, reason)) = &rollover.unreachable {
        return failing(peer, rollover, reason, FIRST_KEY.to_owned());
    }
    let seen = format!(
        "no key is agreed with the sidecar at {} yet{}",
        rollover.endpoint,
        alarms(rollover)
    );
    let remedy = format!(
        "wait some seconds and ask again; at the far end, see what `aoctl doctor` says there, and \
         `aoctl rollover status {}` here",
        peer.name
    );
    Draft::new(Code::NoKeyYet, seen, FIRST_KEY, remedy)
}

/// What will keep later keys from being agreed.
pub(super) fn warnings(peer: &PeerFacts) -> Vec<Draft> {
    let Keys::Agreed {
        rollover: Some(rollover),
        ..
    } = &peer.keys
    else {
        return Vec::new();
    };
    if rollover.active.is_none() {
        return Vec::new();
    }
    let mut found = Vec::new();
    if let Some((since, reason)) = &rollover.unreachable {
        let matters = format!(
            "The session goes on with the keys there are: {} can still follow the present one. \
             After that the key does not change any more.",
            count(rollover.runway_ready.into(), "agreed key"),
        );
        let draft = failing(peer, rollover, reason, matters);
        let seen = format!("since {}: {}", time(*since), draft.seen);
        found.push(
            Draft { seen, ..draft }
                .at(FindingSeverity::Warning)
                .of(peer),
        );
    }
    let others = rollover.alarms.iter().filter(|alarm| {
        // Told above.
        !(alarm.starts_with("nothing heard") && rollover.unreachable.is_some())
    });
    found.extend(others.map(|alarm| {
        let remedy = format!(
            "see `aoctl rollover status {}` and `aoctl events --peer {}`; docs/ROLLOVER.md has what \
             each alarm asks for",
            peer.name, peer.name
        );
        let matters = "The present key stays in use, and none follows it until that is solved.";
        Draft::new(Code::RolloverAlarm, alarm.clone(), matters, remedy).of(peer)
    }));
    found
}

fn alarms(rollover: &RolloverReport) -> String {
    match rollover.alarms.as_slice() {
        [] => String::new(),
        alarms => format!(" ({})", alarms.join("; ")),
    }
}

/// Calls that fail.
fn failing(peer: &PeerFacts, rollover: &RolloverReport, reason: &str, matters: String) -> Draft {
    let code = why(reason);
    let (name, endpoint) = (&peer.name, &rollover.endpoint);
    let remedy = match code {
        Code::FarEndUntrusted if reason.contains(" refuses us ") => {
            "at the far end, [peer.rollover] of this router must have the fingerprint that `aoctl \
             identity` prints here (or its authority must have signed our certificate); then `aoctl \
             config reload` there"
                .to_owned()
        }
        Code::FarEndUntrusted => format!(
            "ask the far end's operator, by another way than this one, what `aoctl identity` prints \
             there. If it is what was seen, write it as `fingerprint` in [peer.rollover] of peer \
             {name:?}, then `aoctl config reload`; if not, somebody else answers at {endpoint}"
        ),
        Code::FarEndVersion => {
            "upgrade the older of the two sidecars: `ao-sidecar --version` at both ends".to_owned()
        }
        Code::FarEndRefuses => format!(
            "at the far end, look for a [[peer]] with our address and [peer.rollover], and compare \
             `label` with that of peer {name:?} here; `aoctl doctor` there may tell more"
        ),
        _ => format!(
            "is ao-sidecar running at the far end, with a peer that has [peer.rollover] and \
             [peering] `listen` on that port? Is TCP to {endpoint} let through by firewalls on the \
             way? Is `endpoint` of peer {name:?} right?"
        ),
    };
    Draft::new(
        code,
        format!("calls to the far end's sidecar fail: {reason}"),
        matters,
        remedy,
    )
    .of(peer)
}

/// What kind of failure the client's words are about.
fn why(reason: &str) -> Code {
    let says = |words: &str| reason.contains(words);
    if says(" has the fingerprint ") || says(" is not trusted: ") || says(" refuses us (") {
        Code::FarEndUntrusted
    } else if says("speaks versions ") {
        Code::FarEndVersion
    } else if says("refused the call: ") {
        Code::FarEndRefuses
    } else {
        Code::FarEndUnreachable
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use grpc_api::peer::CallError;

    use super::*;

    /// The words of the client are known: a change of them fails here.
    #[test]
    fn each_failure_of_a_call_has_its_code() {
        let endpoint = || "far.example:7179".parse().unwrap();
        let fingerprint = || format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        let errors = [
            (
                CallError::Unreachable {
                    endpoint: endpoint(),
                    source: io::ErrorKind::ConnectionRefused.into(),
                },
                Code::FarEndUnreachable,
            ),
            (
                CallError::Timeout {
                    endpoint: endpoint(),
                    timeout: Duration::from_secs(10),
                },
                Code::FarEndUnreachable,
            ),
            (CallError::Lost("reset".into()), Code::FarEndUnreachable),
            (
                CallError::Malformed("no view".into()),
                Code::FarEndUnreachable,
            ),
            (
                CallError::WrongFingerprint {
                    endpoint: endpoint(),
                    expected: fingerprint(),
                    seen: fingerprint(),
                },
                Code::FarEndUntrusted,
            ),
            (
                CallError::Untrusted {
                    endpoint: endpoint(),
                    reason: "expired".into(),
                },
                Code::FarEndUntrusted,
            ),
            (
                CallError::NotTrusted {
                    endpoint: endpoint(),
                    reason: "AccessDenied".into(),
                    ours: fingerprint(),
                },
                Code::FarEndUntrusted,
            ),
            (
                CallError::Version {
                    ours: 1..=1,
                    theirs: 2..=3,
                },
                Code::FarEndVersion,
            ),
            (
                CallError::Rejected("PermissionDenied: no".into()),
                Code::FarEndRefuses,
            ),
        ];
        for (error, code) in errors {
            assert_eq!(why(&error.to_string()), code, "{error}");
        }
    }
}
