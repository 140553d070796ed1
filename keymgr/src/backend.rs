//! What carries keys onto sockets, as the key manager sees it.
//!
//! Each step takes many keys at once, because a backend does much of its work once per call: it
//! looks at every socket, or hands a policy to every worker. Answers are in the order of the
//! questions. `Ok` is a proof, not a promise: see each step.

use std::sync::Arc;

use ao_engine::policy::Mkt;

use crate::rollover::SessionKeys;

/// A key that is to go, by its SendID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The peer it is for.
    pub peer: Arc<str>,
    /// Its SendID.
    pub send_id: u8,
    /// Whether it goes even where a session still uses it, which then goes on with the peer's
    /// first key.
    pub forced: bool,
}

/// The keys of peers' sessions. Errors are for people: why, and what is to be done.
pub trait Backend: Send + Sync + 'static {
    /// Adds keys behind those that their peers have. `Ok`: every socket of the peer verifies
    /// segments with it.
    fn install(&self, keys: &[(Arc<str>, Arc<Mkt>)]) -> Vec<Result<(), String>>;

    /// Makes keys, named by SendID, the first of their peers. `Ok`: it is rnext_key of every
    /// session, and new sessions begin with it.
    fn select(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), String>>;

    /// Sends with these keys, named by SendID, no more where the far end does not insist, and
    /// accepts them still.
    fn retire(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), String>>;

    /// Removes keys. `Ok`: no socket has it.
    fn delete(&self, keys: &[Removal]) -> Vec<Result<(), String>>;

    /// The sessions of each of `peers`, with the keys they use; an error where there may be some
    /// that cannot be looked at now.
    fn observe(&self, peers: &[Arc<str>]) -> Vec<Result<Vec<SessionKeys>, String>>;

    /// Lets quiet sessions of `peers` show which keys they use, where that is possible.
    fn nudge(&self, peers: &[Arc<str>]);

    /// Closes the sessions of a peer.
    fn close(&self, peer: &str) -> Result<(), String>;
}
