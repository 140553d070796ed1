//! What the core is told, and what it asks for.

use std::sync::Arc;

use ao_engine::policy::Mkt;

use super::message::Message;
use super::step::Step;

/// A session's keys, as the backend sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionKeys {
    /// What to call it: its addresses and ports.
    pub name: String,
    /// SendID of current_key.
    pub send_id_current: u8,
    /// RecvID of rnext_key.
    pub recv_id_rnext: u8,
    /// RecvIDs, and how many segments of this session verified with each.
    pub verified: Vec<(u8, u64)>,
    /// Whether segments verified under both ISNs. Sessions that are opening count as users of
    /// their keys, but prove nothing; sessions that are closing should be left out.
    pub established: bool,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// [`next_tick`](super::Rollover::next_tick) has come. Early and late ones do no harm.
    Tick,
    /// The operator wants a new key; `compromised`: one that no one can have seen, and the
    /// others gone as soon as it is proven.
    Start {
        /// Whether the keys at hand may be known to others.
        compromised: bool,
    },
    /// The operator wants no new key after all.
    Abort,
    /// The operator wants superseded keys gone, proof or no proof.
    Force,
    /// The peer called: one [`Action::Reply`] or [`Action::Reject`] comes back.
    Request {
        /// What it told.
        message: Message,
    },
    /// The answer to our [`Action::Call`]. It must have been made after that call began: it is
    /// what the core trusts to learn of the peer's new store.
    Response {
        /// What the peer told.
        message: Message,
    },
    /// There was no answer to our [`Action::Call`].
    CallFailed {
        /// Why, for people.
        reason: String,
    },
    /// Every socket of the peer, and every worker, has the key.
    Installed {
        /// The generation.
        number: u64,
    },
    /// Not every socket has the key.
    InstallFailed {
        /// The generation.
        number: u64,
        /// Why, for people.
        reason: String,
    },
    /// New sessions begin with the key, and all others advertise it.
    Selected {
        /// The generation.
        number: u64,
    },
    /// Not every session advertises the key.
    SelectFailed {
        /// The generation.
        number: u64,
        /// Why, for people.
        reason: String,
    },
    /// No socket of the peer has the key any more, or none ever had.
    Deleted {
        /// The generation.
        number: u64,
    },
    /// Some socket may still have the key.
    DeleteFailed {
        /// The generation.
        number: u64,
        /// Why, for people.
        reason: String,
    },
    /// The answer to [`Action::Observe`].
    Observed {
        /// Every session of the peer.
        sessions: Vec<SessionKeys>,
    },
    /// The other answer to [`Action::Observe`]: there may be sessions that cannot be looked at now.
    NotObserved,
}

/// Something to do, after the record is on disk.
#[derive(Clone, Debug)]
pub enum Action {
    /// Give the key to every socket of the peer, behind those it has. Idempotent. Answered by
    /// [`Event::Installed`] or [`Event::InstallFailed`].
    Install {
        /// The generation.
        number: u64,
        /// The key.
        mkt: Arc<Mkt>,
    },
    /// Begin new sessions with the key and advertise it on all others. Idempotent. Answered by
    /// [`Event::Selected`] or [`Event::SelectFailed`].
    Select {
        /// The generation.
        number: u64,
        /// Its SendID.
        send_id: u8,
    },
    /// Take the key from every socket. Idempotent: a key that is not there is deleted. Answered
    /// by [`Event::Deleted`] or [`Event::DeleteFailed`].
    Delete {
        /// The generation.
        number: u64,
        /// Its SendID.
        send_id: u8,
        /// Whether sessions that still use it are moved to the first key; otherwise the deletion
        /// fails.
        forced: bool,
    },
    /// Look at all sessions now. Answered by [`Event::Observed`] or [`Event::NotObserved`].
    Observe {
        /// Whether quiet sessions may be made to speak: a proof waits for them.
        nudge: bool,
    },
    /// Call the peer. Answered by [`Event::Response`] or [`Event::CallFailed`]; until then there
    /// is no other call.
    Call(Message),
    /// Answer the peer's call.
    Reply(Message),
    /// Refuse the peer's call, for this reason.
    Reject(String),
    /// Refuse what the operator asked for, for this reason.
    Refused(String),
    /// Tell people.
    Tell(Step),
}
