//! What operators may ask and do about the configuration, in plain types: [`Administration`] is
//! what the daemon implements.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::{ControlError, KeyState, Lifetime};

/// How much a caller may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Sees everything except secrets.
    Viewer,
    /// Has keys change now, reads the configuration file again, diagnoses.
    Operator,
    /// Creates, changes and deletes peers, key chains and keys.
    Admin,
}

impl Role {
    /// The stable lower-case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// For the audit log: `user 1000 (ann), process 4711` or `certificate ann from 192.0.2.1`.
    pub who: Arc<str>,
    /// What the caller may do.
    pub role: Role,
}

/// The configuration of the daemon.
///
/// The service has checked the caller's role before it calls. Futures are dropped when the caller
/// goes away, so what changes something must not depend on being polled to its end.
pub trait Administration: Send + Sync + 'static {
    /// Key chains in use, in the order of the configuration, those made by API last.
    fn key_chains(&self) -> impl Future<Output = Result<Vec<KeyChainReport>, ControlError>> + Send;

    /// The configuration in use.
    fn config(&self) -> impl Future<Output = Result<ConfigReport, ControlError>> + Send;

    /// Whether a text would be taken as configuration; without one, the file.
    fn validate(
        &self,
        toml: Option<Zeroizing<String>>,
    ) -> impl Future<Output = Result<Validation, ControlError>> + Send;

    /// What [`Administration::reload`] would change.
    fn diff(&self) -> impl Future<Output = Result<Changed, ControlError>> + Send;

    /// Reads the configuration file again, and takes over all of it or nothing.
    /// `replace_sessions`: close unprotected sessions of new peers instead of refusing.
    fn reload(
        &self,
        caller: &Caller,
        replace_sessions: bool,
    ) -> impl Future<Output = Result<Changed, ControlError>> + Send;

    /// Makes a change that is kept beside the configuration file; all of it or nothing.
    fn change(
        &self,
        caller: &Caller,
        change: Change,
    ) -> impl Future<Output = Result<Changed, ControlError>> + Send;

    /// Writes to the audit log that `caller` is about to do `what`, before it is done; refused when
    /// it cannot be written. For what changes something by another way than this trait.
    fn audit(
        &self,
        caller: &Caller,
        what: String,
    ) -> impl Future<Output = Result<Audit, ControlError>> + Send;

    /// Finds out what is wrong with `peer`, or with any; listens to peers without a session for up
    /// to `listen`.
    fn diagnose(
        &self,
        peer: Option<&str>,
        listen: Duration,
    ) -> impl Future<Output = Result<Vec<Finding>, ControlError>> + Send;
}

/// An entry of the audit log that has begun. When it is dropped, the log has no outcome.
pub struct Audit(Box<Completion>);

/// Takes what was done, or why nothing was.
type Completion = dyn FnOnce(Result<&str, &str>) + Send;

impl Audit {
    /// An entry that `done` completes.
    pub fn new(done: impl FnOnce(Result<&str, &str>) + Send + 'static) -> Self {
        Self(Box::new(done))
    }

    /// Completes it with what was done, or why nothing was.
    pub fn done(self, outcome: Result<&str, &str>) {
        (self.0)(outcome);
    }
}

/// A change to what is made by API. Values are as the caller gave them; the daemon checks them.
#[derive(Clone, Debug)]
pub enum Change {
    /// Make a peer, or with `replace` change one.
    PutPeer {
        /// The peer.
        peer: PeerSpec,
        /// Whether there is one already.
        replace: bool,
        /// Close unprotected sessions with it instead of refusing.
        replace_sessions: bool,
    },
    /// Delete a peer.
    DeletePeer {
        /// Its name.
        name: String,
    },
    /// Make a key chain.
    CreateKeyChain {
        /// Its rules.
        chain: KeyChainSpec,
        /// Its keys.
        keys: Vec<KeySpec>,
    },
    /// Change the rules of a key chain.
    UpdateKeyChain {
        /// The rules.
        chain: KeyChainSpec,
    },
    /// Delete a key chain.
    DeleteKeyChain {
        /// Its name.
        name: String,
    },
    /// Add a key to a key chain, or with `replace` change one.
    PutKey {
        /// Name of the key chain.
        chain: String,
        /// The key; without a secret it keeps the one it has.
        key: KeySpec,
        /// Whether there is one already.
        replace: bool,
    },
    /// Delete a key.
    DeleteKey {
        /// Name of the key chain.
        chain: String,
        /// Its SendID.
        send_id: u8,
        /// Its RecvID.
        recv_id: u8,
    },
}

/// A peer, as a caller wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSpec {
    /// Its name.
    pub name: String,
    /// Address or prefix.
    pub address: String,
    /// Name of its key chain.
    pub key_chain: String,
    /// Lowest and highest protected port; nothing for BGP's.
    pub ports: Option<(u16, u16)>,
    /// Address of this end.
    pub local_address: Option<String>,
    /// Interface of a link-local peer.
    pub interface: Option<String>,
    /// VRF device.
    pub vrf: Option<String>,
    /// Lowest TTL or hop limit accepted; 0 accepts all.
    pub ttl_min: u8,
    /// Name of the backend wanted.
    pub datapath: Option<String>,
}

/// The rules of a key chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyChainSpec {
    /// Its name.
    pub name: String,
    /// How far clocks may be apart.
    pub tolerance: Option<Duration>,
    /// Whether there may be times at which no key is sent with.
    pub allow_gaps: bool,
    /// `keep` or `close`.
    pub on_expiry: Option<String>,
}

/// A key of a key chain, as a caller wants it.
#[derive(Clone, Debug)]
pub struct KeySpec {
    /// Its SendID.
    pub send_id: u8,
    /// Its RecvID.
    pub recv_id: u8,
    /// Name of its algorithm.
    pub algorithm: String,
    /// Whether MACs cover the other TCP options.
    pub include_tcp_options: bool,
    /// Its secret; nothing in reports, and where a key keeps the one it has.
    pub secret: Option<Secret>,
    /// When it may be sent with.
    pub send: Lifetime,
    /// When it is accepted; nothing for as long as it is sent with.
    pub accept: Option<Lifetime>,
}

/// A secret, wiped when dropped and never shown.
#[derive(Clone)]
pub struct Secret(pub Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where something was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In this line of the configuration file.
    File(u32),
    /// By API.
    Api,
}

/// A key chain in use.
#[derive(Clone, Debug)]
pub struct KeyChainReport {
    /// Its rules.
    pub chain: KeyChainSpec,
    /// Where it was made.
    pub origin: Origin,
    /// Its keys, without secrets.
    pub keys: Vec<ChainKeyReport>,
    /// Names of the peers that have it.
    pub peers: Vec<Arc<str>>,
}

/// A key of a key chain in use.
#[derive(Clone, Debug)]
pub struct ChainKeyReport {
    /// The key, without its secret.
    pub key: KeySpec,
    /// Where it was made.
    pub origin: Origin,
    /// How far it is.
    pub state: KeyState,
}

/// The configuration in use.
#[derive(Clone, Debug)]
pub struct ConfigReport {
    /// As TOML, defaults included, without secrets.
    pub toml: String,
    /// The file it was read from.
    pub file: String,
    /// When it was taken over.
    pub loaded_at: SystemTime,
    /// What was made by API, such as `peer as64502`.
    pub api_made: Vec<String>,
}

/// Whether a configuration would be taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validation {
    /// What is wrong with it; it would be taken if nothing is.
    pub problems: Vec<ConfigProblem>,
    /// What is doubtful about it.
    pub warnings: Vec<ConfigProblem>,
}

/// A place in a configuration, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Line and column, both from 1; nothing when the whole is meant.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what to write instead.
    pub text: String,
}

/// What a change did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// What differs.
    pub changes: Vec<ConfigChange>,
    /// What is doubtful about the configuration now, for people.
    pub warnings: Vec<String>,
}

/// Something that differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// What it is about, such as `peer as64502`.
    pub subject: String,
    /// How it differs.
    pub kind: ChangeKind,
    /// What differs, for people.
    pub details: Vec<String>,
    /// What that does to sessions, for people; empty when nothing.
    pub effect: String,
    /// Whether it can be taken over by a restart only.
    pub needs_restart: bool,
}

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is another one.
    Changed,
}

/// Something that a diagnosis found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A stable name in lower case with hyphens.
    pub code: &'static str,
    /// How much it matters.
    pub severity: FindingSeverity,
    /// Name of the peer; nothing for what concerns all of them.
    pub peer: Option<Arc<str>>,
    /// What was seen.
    pub seen: String,
    /// Why it matters.
    pub matters: String,
    /// What to do.
    pub remedy: String,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingSeverity {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Will be a problem, or may be one.
    Warning,
    /// Keeps a session from coming up, or leaves one in danger.
    Problem,
}
