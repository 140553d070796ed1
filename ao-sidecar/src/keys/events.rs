//! Tells people what happens to keys: a line in the log, an entry in the event stream.

use std::sync::Arc;
use std::time::Duration;

use grpc_api::operator::{EventLog, NewEvent, Severity};
use keymgr::rollover::{Alarm, Cause, Label, Step};
use tracing::{error, info, warn};

/// Log and event stream.
#[derive(Clone, Debug)]
pub(crate) struct Events(pub(crate) EventLog);

impl Events {
    /// Tells of something that is no step of a rollover.
    pub(super) fn tell(
        &self,
        peer: Option<&Arc<str>>,
        kind: &'static str,
        severity: Severity,
        message: String,
    ) {
        self.push(NewEvent {
            peer: peer.cloned(),
            kind,
            severity,
            generation: None,
            key_id: None,
            trigger: None,
            proof: None,
            took: None,
            message,
        });
    }

    /// Tells of a step of an automatic peer.
    pub(super) fn step(&self, peer: &Arc<str>, step: &Step) {
        let Details {
            kind,
            severity,
            generation,
            cause,
            proof,
            took,
        } = details(step);
        self.push(NewEvent {
            peer: Some(Arc::clone(peer)),
            kind,
            severity,
            generation: generation.map(|label| label.number),
            key_id: generation.map(|label| label.id),
            trigger: cause.map(trigger),
            proof,
            took,
            message: step.to_string(),
        });
    }

    /// The store cannot be written.
    pub(super) fn store_failed(&self, problem: &str) {
        let message = format!(
            "the key store cannot be written, so keys stay as they are until it can: {problem}"
        );
        self.tell(None, "store-failed", Severity::Alarm, message);
    }

    /// The store can be written again.
    pub(super) fn store_works(&self) {
        let message = "the key store is written again".to_owned();
        self.tell(None, "store-works", Severity::Info, message);
    }

    fn push(&self, event: NewEvent) {
        let NewEvent {
            peer,
            kind,
            severity,
            message,
            ..
        } = &event;
        let peer = peer.as_deref();
        match severity {
            Severity::Info => info!(peer, event = kind, "{message}"),
            Severity::Warning => warn!(peer, event = kind, "{message}"),
            Severity::Alarm => error!(peer, event = kind, "{message}"),
        }
        self.0.push(event);
    }
}

/// A step, as the event stream has it.
struct Details {
    kind: &'static str,
    severity: Severity,
    generation: Option<Label>,
    cause: Option<Cause>,
    proof: Option<String>,
    took: Option<Duration>,
}

impl Details {
    fn info(kind: &'static str, generation: Label) -> Self {
        Self {
            generation: Some(generation),
            ..Self::of(kind, Severity::Info)
        }
    }

    fn of(kind: &'static str, severity: Severity) -> Self {
        Self {
            kind,
            severity,
            generation: None,
            cause: None,
            proof: None,
            took: None,
        }
    }

    fn after(self, took: Duration) -> Self {
        Self {
            took: Some(took),
            ..self
        }
    }
}

fn details(step: &Step) -> Details {
    match step {
        Step::Agreed { generation, took } => Details::info("agreed", *generation).after(*took),
        Step::InstalledHere { generation, took } => {
            Details::info("installed-here", *generation).after(*took)
        }
        Step::InstalledThere { generation, took } => {
            Details::info("installed-there", *generation).after(*took)
        }
        Step::Selected {
            generation,
            cause,
            took,
        } => Details {
            cause: Some(*cause),
            ..Details::info("selected", *generation).after(*took)
        },
        Step::Proven {
            generation,
            sessions,
            took,
            segments_here,
            segments_there,
        } => Details {
            proof: Some(match sessions {
                0 => "no session; the peer has selected it, too".to_owned(),
                sessions => format!(
                    "sessions: {sessions}, segments verified here: {segments_here}, at the peer: \
                     {segments_there}"
                ),
            }),
            ..Details::info("proven", *generation).after(*took)
        },
        Step::Deleted { generation, .. } => Details::info("deleted", *generation),
        Step::Dropped { generation, .. } => Details {
            severity: Severity::Warning,
            ..Details::info("dropped", *generation)
        },
        Step::DropOvertaken { generation } => Details {
            severity: Severity::Warning,
            ..Details::info("drop-overtaken", *generation)
        },
        Step::PeerStartedAnew => Details::of("peer-started-anew", Severity::Warning),
        Step::Raised(alarm) => Details::of(alarm_kind(alarm), Severity::Alarm),
        Step::Cleared(_) => Details::of("alarm-cleared", Severity::Info),
    }
}

fn alarm_kind(alarm: &Alarm) -> &'static str {
    match alarm {
        Alarm::RunwayExhausted => "runway-exhausted",
        Alarm::ProofOverdue { .. } => "proof-overdue",
        Alarm::PeerUnreachable { .. } => "peer-unreachable",
        Alarm::BackendFailed { .. } => "backend-failed",
        Alarm::NoCommonAlgorithm => "no-common-algorithm",
        Alarm::NoFreeId => "no-free-id",
        Alarm::ConfirmationMismatch { .. } => "keys-differ",
    }
}

/// The name of a trigger in the API.
pub(super) fn trigger(cause: Cause) -> &'static str {
    match cause {
        Cause::Needed => "no-key",
        Cause::Schedule => "schedule",
        Cause::Operator => "operator",
        Cause::Compromise => "compromise",
        Cause::Peer => "peer",
    }
}
