//! Changing the keys of peers while their sessions live: what both backends do, each step with
//! its proof.

use std::collections::HashMap;
use std::sync::Arc;

use ao_engine::policy::{Policy, PolicyError};
use ao_sys::links::Links;

use crate::kernel::Target;
use crate::report::Session;

/// How much is asked before a key goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It stays while a session uses it.
    Unused,
    /// Sessions that use it go on with the peer's first key, whether the far end has that or not.
    Forced,
}

/// Why a step was not taken, or cannot be proven yet. A step may be asked for again at any time:
/// what is done already stays done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No peer has this name.
    #[error("no peer has this name")]
    UnknownPeer,
    /// The peer has another key with one of its IDs. Nothing has changed.
    #[error("the peer has another key with send_id {send_id} or recv_id {recv_id}")]
    Taken {
        /// SendID of the key.
        send_id: u8,
        /// RecvID of the key.
        recv_id: u8,
    },
    /// The peer has no key with this SendID.
    #[error("the peer has no key with send_id {0}")]
    UnknownKey(u8),
    /// The key is the first of its peer. Nothing has changed.
    #[error("the key with send_id {0} is the first of its peer: select another one before")]
    First(u8),
    /// A session uses the key. Nothing has changed, or only the last session is left.
    #[error("the key with send_id {send_id} is still in use: {session}")]
    InUse {
        /// SendID of the key.
        send_id: u8,
        /// One such session.
        session: String,
    },
    /// The daemon has not accepted a connection yet, and until then nobody can look at its keys.
    /// The step is done everywhere else, and there as soon as the connection is accepted.
    #[error("{session} waits to be accepted by its daemon")]
    NotAccepted {
        /// The connection.
        session: String,
    },
    /// A worker has not answered in time. It follows as soon as it can.
    #[error("a worker of the userspace backend does not answer")]
    Unanswered,
    /// What stands in the way at some socket. It will be tried again.
    #[error("{0}")]
    Socket(String),
    /// Peers or keys contradict each other. Nothing has changed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// By peer: all its sessions, or why not all of them could be looked at. What is not seen is not
/// to be taken for not there.
pub type Observed = HashMap<Arc<str>, Result<Vec<Session>, KeyError>>;

/// Who has which keys from now on, as each backend is told it.
pub(crate) struct Arrangement {
    /// The engine's peers.
    pub(crate) policy: Arc<Policy>,
    /// What the kernel's sockets should have.
    pub(crate) target: Target,
    pub(crate) links: Arc<Links>,
}

/// A key of a peer.
#[derive(Clone, Debug)]
pub(crate) struct KeyOf {
    pub(crate) peer: Arc<str>,
    pub(crate) send_id: u8,
}

/// The proof of a step, for each key asked about.
pub(crate) type Proofs = Vec<Result<(), KeyError>>;

/// What a backend does with keys. Each step makes the arrangement so, once for all keys, and
/// proves for each key what it names.
pub(crate) trait Carrier {
    /// Every session and listener of the keys' peers has what is arranged: all keys, the first of
    /// them as rnext_key, and none as current_key that is to be accepted only.
    fn carry(&self, arrangement: Arrangement, keys: &[KeyOf]) -> Proofs;

    /// The keys are gone from every session and listener.
    fn delete(&self, arrangement: Arrangement, keys: &[(KeyOf, Removal)]) -> Proofs;

    /// The sessions of these peers, with the keys they use.
    fn observe(&self, peers: &[Arc<str>]) -> Observed;
}

/// What is told of peers none of whose sessions can be looked at.
pub(crate) fn unobserved(peers: &[Arc<str>], error: &KeyError) -> Observed {
    let unseen = peers
        .iter()
        .map(|peer| (Arc::clone(peer), Err(error.clone())));
    unseen.collect()
}
