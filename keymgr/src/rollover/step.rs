//! What happened, for logs and the event stream.

use std::fmt;
use std::time::Duration;

use ao_engine::crypto::Algorithm;

/// Names a generation to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its number.
    pub number: u64,
    /// Its KeyID.
    pub id: u8,
    /// Its algorithm.
    pub algorithm: Algorithm,
}

/// Why a key was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No key was in use that both ends have.
    Needed,
    /// The interval has passed.
    Schedule,
    /// The operator asked.
    Operator,
    /// The operator said that the former keys may be known to others.
    Compromise,
    /// The peer selected it.
    Peer,
}

/// Why a generation was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The operator aborted, here or there.
    Aborted,
    /// Both ends derived different keys.
    Mismatch,
    /// The peer does not have it and never will.
    Unknown,
    /// Its algorithm or KeyID is not to be used any more, by the settings of this end.
    Unfit,
}

/// Something that needs an operator's eye until it clears.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// A new key is due, and none is ready at both ends. The present one stays in use.
    RunwayExhausted,
    /// The selected key is not in use everywhere yet.
    ProofOverdue {
        /// Who is waited for: sessions, or the peer.
        waiting_for: Vec<String>,
    },
    /// Nothing was heard from the peer for more than three heartbeats.
    PeerUnreachable {
        /// How the last call failed.
        reason: String,
    },
    /// The backend could not install, select or delete a key.
    BackendFailed {
        /// The generation.
        number: u64,
        /// Why.
        reason: String,
    },
    /// The ends accept no algorithm in common.
    NoCommonAlgorithm,
    /// No KeyID is free at both ends.
    NoFreeId,
    /// Both ends derived different keys for a generation.
    ConfirmationMismatch {
        /// The generation.
        number: u64,
    },
}

/// A step of the rollover, or an alarm. Its `Display` is a sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Both ends know the master key.
    Agreed {
        /// The generation.
        generation: Label,
        /// Since it was offered.
        took: Duration,
    },
    /// Every socket here has the key.
    InstalledHere {
        /// The generation.
        generation: Label,
        /// Since it was agreed.
        took: Duration,
    },
    /// The peer says that every socket there has the key.
    InstalledThere {
        /// The generation.
        generation: Label,
        /// Since it was agreed.
        took: Duration,
    },
    /// New sessions begin with the key, and the others advertise it.
    Selected {
        /// The generation.
        generation: Label,
        /// Why.
        cause: Cause,
        /// From the decision until the backend had done it.
        took: Duration,
    },
    /// The key is in use in both directions on every session.
    Proven {
        /// The generation.
        generation: Label,
        /// Sessions; with 0, the peer's word that it selected the key.
        sessions: usize,
        /// Since it was selected.
        took: Duration,
        /// Segments verified with it here.
        segments_here: u64,
        /// Segments verified with it at the peer, as last told.
        segments_there: u64,
    },
    /// The key is gone from every socket, and its secret is destroyed.
    Deleted {
        /// The generation.
        generation: Label,
        /// Without waiting for the proof of its successor, by the operator's word.
        forced: bool,
    },
    /// The generation was given up before it was used.
    Dropped {
        /// The generation.
        generation: Label,
        /// Why.
        why: Dropped,
    },
    /// The peer had selected what was to be given up here; it is in use then.
    DropOvertaken {
        /// The generation.
        generation: Label,
    },
    /// The peer has lost its store; what was agreed with it is void.
    PeerStartedAnew,
    /// Something needs an operator's eye.
    Raised(Alarm),
    /// It does no more.
    Cleared(Alarm),
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            id,
            algorithm,
        } = self;
        write!(f, "generation {number} (key {id}, {algorithm})")
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Needed => "no other key is in use at both ends",
            Self::Schedule => "schedule",
            Self::Operator => "operator",
            Self::Compromise => "compromise",
            Self::Peer => "the peer did",
        })
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aborted => "aborted",
            Self::Mismatch => "the ends derived different keys",
            Self::Unknown => "the peer does not have it",
            Self::Unfit => "its algorithm or KeyID is not to be used any more",
        })
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RunwayExhausted => f.write_str(
                "a new key is due and none is ready at both ends; the present one stays in use",
            ),
            Self::ProofOverdue { waiting_for } => {
                write!(
                    f,
                    "the new key is not in use everywhere; waiting for {}",
                    waiting_for.join(", ")
                )
            }
            Self::PeerUnreachable { reason } => {
                write!(f, "nothing heard from the peer's sidecar: {reason}")
            }
            Self::BackendFailed { number, reason } => {
                write!(f, "the key of generation {number} is held up: {reason}")
            }
            Self::NoCommonAlgorithm => f.write_str("the ends accept no algorithm in common"),
            Self::NoFreeId => f.write_str("no KeyID is free at both ends"),
            Self::ConfirmationMismatch { number } => {
                write!(f, "the ends derived different keys for generation {number}")
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agreed { generation, took } => {
                write!(f, "{generation} agreed in {}", Seconds(*took))
            }
            Self::InstalledHere { generation, took } => {
                write!(f, "{generation} installed here after {}", Seconds(*took))
            }
            Self::InstalledThere { generation, took } => {
                write!(
                    f,
                    "{generation} installed at the peer after {}",
                    Seconds(*took)
                )
            }
            Self::Selected {
                generation,
                cause,
                took,
            } => write!(f, "{generation} selected in {}: {cause}", Seconds(*took)),
            Self::Proven {
                generation,
                sessions: 0,
                took,
                ..
            } => write!(
                f,
                "{generation} proven after {} by the peer's word: there is no session",
                Seconds(*took)
            ),
            Self::Proven {
                generation,
                sessions,
                took,
                segments_here,
                segments_there,
            } => write!(
                f,
                "{generation} proven on {sessions} session{} after {}: {segments_here} segments \
                 in, {segments_there} seen by the peer",
                if *sessions == 1 { "" } else { "s" },
                Seconds(*took)
            ),
            Self::Deleted {
                generation,
                forced: false,
            } => write!(f, "{generation} deleted, its key destroyed"),
            Self::Deleted {
                generation,
                forced: true,
            } => write!(
                f,
                "{generation} deleted by force, without waiting for proof; its key destroyed"
            ),
            Self::Dropped { generation, why } => {
                write!(f, "{generation} given up before its use: {why}")
            }
            Self::DropOvertaken { generation } => write!(
                f,
                "{generation} was to be given up, but the peer uses it already: following"
            ),
            Self::PeerStartedAnew => f.write_str(
                "the peer's sidecar has lost its keys: agreeing anew, the present key stays here",
            ),
            Self::Raised(alarm) => write!(f, "{alarm}"),
            Self::Cleared(alarm) => write!(f, "no longer: {alarm}"),
        }
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s", self.0.as_secs_f64())
    }
}
