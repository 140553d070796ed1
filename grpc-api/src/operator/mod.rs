//! What operators may ask and do about keys, in plain types: [`KeyControl`] is what the daemon
//! implements, [`EventLog`] what it tells its steps to.

pub mod administration;
pub(crate) mod convert;
mod events;
mod names;
mod stream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use self::events::{Event, EventLog, NewEvent, Page, Severity};
pub(crate) use self::names::{automatic, known, known_chain};
pub(crate) use self::stream::{EventStream, Streams, Wanted};

/// The keys of the daemon's peers.
///
/// Methods get names of configured peers only, and those about rollover names of automatic ones:
/// the service refuses others by [`KeyControl::peers`]. Futures are dropped when the caller goes
/// away, so what changes something must not depend on being polled to its end.
pub trait KeyControl: Send + Sync + 'static {
    /// All configured peers, in the order of the configuration. Must not block.
    fn peers(&self) -> Vec<PeerKeys>;

    /// The keys of `peer`, or of all peers.
    fn keys(
        &self,
        peer: Option<&str>,
    ) -> impl Future<Output = Result<Vec<KeyReport>, ControlError>> + Send;

    /// How the key changes of `peer` stand, or of all automatic peers.
    fn rollovers(
        &self,
        peer: Option<&str>,
    ) -> impl Future<Output = Result<Vec<RolloverReport>, ControlError>> + Send;

    /// Begins a key change now. `compromised`: to a fresh key, after which all others go at once.
    /// Returns what was done, as a sentence.
    fn start(
        &self,
        peer: &str,
        compromised: bool,
    ) -> impl Future<Output = Result<String, ControlError>> + Send;

    /// Gives up a key change whose key is not selected yet. Returns what was done, as a sentence.
    fn abort(&self, peer: &str) -> impl Future<Output = Result<String, ControlError>> + Send;

    /// Deletes superseded keys without waiting for a proof. Returns what was done, as a sentence.
    fn force(&self, peer: &str) -> impl Future<Output = Result<String, ControlError>> + Send;

    /// With what this sidecar shows itself to those of its peers; refused when it has no identity.
    fn identity(&self) -> impl Future<Output = Result<IdentityReport, ControlError>> + Send;
}

/// Why a question about keys has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It cannot be done, and nothing has changed; the reason is for people.
    #[error("{0}")]
    Refused(String),
    /// A value is wrong, and nothing has changed; the reason is for people.
    #[error("{0}")]
    Invalid(String),
    /// There is nothing with this name; the reason is for people.
    #[error("{0}")]
    NotFound(String),
    /// There is something with this name already; the reason names both.
    #[error("{0}")]
    Exists(String),
    /// The sidecar stops.
    #[error("the sidecar is stopping")]
    Stopping,
}

/// Where a configured peer has its keys from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerKeys {
    /// Its name.
    pub name: Arc<str>,
    /// Whether its keys are agreed with the far end's sidecar, not taken from a key chain.
    pub automatic: bool,
}

/// A key of a peer, without its secret.
#[derive(Clone, Debug)]
pub struct KeyReport {
    /// Name of the peer.
    pub peer: Arc<str>,
    /// Where it comes from.
    pub origin: KeyOrigin,
    /// SendID and RecvID; nothing while no KeyID is agreed.
    pub ids: Option<(u8, u8)>,
    /// Name of its algorithm; empty while none is agreed.
    pub algorithm: &'static str,
    /// How far it is here.
    pub state: KeyState,
    /// When it may be sent with.
    pub send: Lifetime,
    /// When it is accepted.
    pub accept: Lifetime,
    /// When a segment was last seen to verify with it.
    pub last_use: Option<SystemTime>,
    /// Segments verified with it on sessions that live.
    pub segments_verified: u64,
}

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyOrigin {
    /// A key chain of the configuration.
    Chain {
        /// Its name.
        name: Arc<str>,
    },
    /// An agreement with the far end.
    Rollover {
        /// Number of the generation, from 1.
        generation: u64,
        /// How far it is at the far end, as last told.
        there: Option<KeyState>,
        /// When it was agreed; nothing while it is not, and if that was before the daemon started.
        agreed_at: Option<SystemTime>,
        /// Segments that the far end has verified with it, as last told.
        segments_verified_there: u64,
    },
}

/// A span of time, from its first moment to the first one after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// Nothing if it has always been.
    pub start: Option<SystemTime>,
    /// Nothing if it does not end.
    pub end: Option<SystemTime>,
}

/// How far a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Offered to the far end, which has not answered.
    Offered,
    /// Both ends know it.
    Agreed,
    /// Every socket of the peer has it.
    Installed,
    /// Installed and confirmed at both ends.
    Ready,
    /// Advertised as RNextKeyID, and new sessions begin with it.
    Selected,
    /// In use in both directions on every session.
    Proven,
    /// A later one is proven.
    Retiring,
    /// Gone; its KeyID is not used again yet.
    Deleted,
    /// To be given up as soon as the far end agrees.
    Revoking,
    /// Given up before it was selected.
    Revoked,
    /// Of a key chain: neither sent with nor accepted yet.
    Pending,
    /// Of a key chain: may be sent with, and is accepted.
    Active,
    /// Of a key chain: accepted, and not sent with.
    AcceptOnly,
    /// Of a key chain: past its lifetimes.
    Expired,
}

/// How the key changes with a peer stand.
#[derive(Clone, Debug)]
pub struct RolloverReport {
    /// Name of the peer.
    pub peer: Arc<str>,
    /// Where its sidecar is called: host and port.
    pub endpoint: String,
    /// What its certificate must have: a fingerprint, or a name signed by the operator's authority.
    pub trust: String,
    /// Time between two key changes, before jitter.
    pub interval: Duration,
    /// How long a superseded key is still accepted.
    pub overlap: Duration,
    /// The generation that sessions are to use; nothing while the peer is blocked.
    pub active: Option<GenerationReport>,
    /// The generation that a key change under way leads to.
    pub target: Option<GenerationReport>,
    /// Generations above the active one that can be switched to without a channel.
    pub runway_ready: u32,
    /// How many there should be.
    pub runway_wanted: u32,
    /// When the next key change is due; nothing while nothing is active.
    pub next: Option<SystemTime>,
    /// The last key change that was completed by this process.
    pub last: Option<CompletedRollover>,
    /// When a valid message of the peer last came.
    pub last_heard: Option<SystemTime>,
    /// Since when and why calls fail; nothing when the last one succeeded, or there was none.
    pub unreachable: Option<(SystemTime, String)>,
    /// What the key change under way waits for, for people.
    pub waiting: Option<String>,
    /// What an operator should look at, for people.
    pub alarms: Vec<String>,
}

/// A generation of a peer's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationReport {
    /// Its number, from 1.
    pub number: u64,
    /// Its KeyID; nothing while it is not agreed.
    pub key_id: Option<u8>,
    /// How far it is here.
    pub state: KeyState,
    /// How far it is at the far end, as last told.
    pub there: Option<KeyState>,
}

/// A key change that was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletedRollover {
    /// When the new key was proven.
    pub at: SystemTime,
    /// Time from selecting the new key to its proof.
    pub took: Duration,
    /// Why it was begun, by the names of [`NewEvent::trigger`].
    pub trigger: &'static str,
}

/// With what this sidecar shows itself to those of its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityReport {
    /// `sha256:` and 64 hexadecimal digits of its public key's digest.
    pub fingerprint: String,
    /// The file its certificate is in.
    pub certificate_file: String,
    /// When the certificate expires.
    pub expires: Option<SystemTime>,
    /// Where it is called: addresses with ports.
    pub listen: Vec<String>,
}
