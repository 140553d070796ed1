//! `aoctl`: asks a running sidecar and shows the answer as text or as JSON.

mod chains;
mod change;
mod configuration;
mod connection;
mod doctor;
mod events;
mod keys;
mod output;
mod peer_settings;
mod secret;
mod status;
mod table;
mod time;
mod top;
mod view;

use std::io;
use std::time::Duration;

use grpc_api::v1::{
    AbortRolloverRequest, DiffConfigRequest, ForceRolloverRequest, GetConfigRequest,
    GetCountersRequest, GetIdentityRequest, GetRolloverRequest, GetStatusRequest,
    ListKeyChainsRequest, ListKeysRequest, ListPeersRequest, ListSessionsRequest,
    ReloadConfigRequest, StartRolloverRequest, ValidateConfigRequest,
};
use tonic::Status;
use zeroize::Zeroizing;

use self::chains::KeyChains;
pub use self::change::{Change, Secret};
use self::configuration::{Changed, Checked, Differences, InUse, Reloaded};
pub use self::connection::{Environment, Sidecar, environment};
pub use self::doctor::{Complaint, diagnose};
pub use self::events::{Watch, watch};
use self::keys::{Done, Identity, Keys, OneRollover, Rollovers};
pub use self::output::{Format, Paint, Shown};
pub use self::secret::{configuration, secret};
use self::status::{Peers, StatusView};
pub use self::top::top;
use self::view::{Counters, Sessions};

/// What to ask, or to have done.
pub enum Question {
    /// The whole in one answer.
    Status,
    /// TCP sessions.
    Sessions,
    /// Configured peers.
    Peers,
    /// Counters of peers, queues and firewall.
    Counters,
    /// Key chains, or the one of this name.
    Chains(Option<String>),
    /// Keys of a peer, or of all.
    Keys(Option<String>),
    /// How the key changes of a peer stand, or of all automatic ones.
    Rollover(Option<String>),
    /// Begin a key change.
    StartRollover {
        /// With this peer.
        peer: String,
        /// The keys may be known to others.
        compromised: bool,
    },
    /// Give up a key change with this peer.
    AbortRollover(String),
    /// Delete superseded keys of this peer at once.
    ForceRollover(String),
    /// What far ends know the sidecar by.
    Identity,
    /// The configuration in use.
    Config,
    /// Whether a text would be taken as configuration; without one the sidecar's own file.
    CheckConfig(Option<Zeroizing<String>>),
    /// What a reload would change.
    DiffConfig,
    /// Read the configuration file again.
    ReloadConfig {
        /// Close unprotected sessions of new peers instead of refusing.
        replace_sessions: bool,
    },
    /// Change what is made by API.
    Change(Box<Change>),
}

/// How long to wait for an answer that is there already.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same where sockets, rules and files are read and changed first.
const PATIENCE_WITH_CHANGES: Duration = Duration::from_secs(60);

impl Question {
    fn patience(&self) -> Duration {
        match self {
            Self::CheckConfig(_)
            | Self::DiffConfig
            | Self::ReloadConfig { .. }
            | Self::Change(_) => PATIENCE_WITH_CHANGES,
            _ => PATIENCE,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answers.
    #[error("cannot reach ao-sidecar on {sidecar}: {reason}")]
    Unreachable {
        /// The socket or address.
        sidecar: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The sidecar was there, and is no more.
    #[error("ao-sidecar on {sidecar} went away: {reason}")]
    Gone {
        /// The socket or address.
        sidecar: String,
        /// What was seen of it.
        reason: String,
    },
    /// The sidecar refused to answer.
    #[error("ao-sidecar refused: {0}")]
    Refused(String),
    /// What was given cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl ClientError {
    /// The exit code it ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Unusable(_) | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } | Self::Gone { .. } => 3,
        }
    }
}

/// Asks the sidecar. When the answer is returned, connection and runtime are gone, and with them
/// every copy of what was sent.
///
/// # Errors
/// When the sidecar cannot be reached, or refuses.
pub fn ask(sidecar: &Sidecar, question: Question) -> Result<Shown, ClientError> {
    runtime()?.block_on(answer(sidecar, question))
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

async fn answer(sidecar: &Sidecar, question: Question) -> Result<Shown, ClientError> {
    let mut client = sidecar.connect(question.patience()).await?;
    let failed = |status: Status| sidecar.failed(&status);
    macro_rules! relay {
        ($call:ident($request:expr) as $shown:ty) => {{
            let answer = client.$call($request).await.map_err(failed)?;
            Ok(Shown::new(<$shown>::from(answer.into_inner())))
        }};
    }
    match question {
        Question::Status => relay!(get_status(GetStatusRequest {}) as StatusView),
        Question::Sessions => relay!(list_sessions(ListSessionsRequest {}) as Sessions),
        Question::Peers => relay!(list_peers(ListPeersRequest {}) as Peers),
        Question::Counters => relay!(get_counters(GetCountersRequest {}) as Counters),
        Question::Chains(name) => {
            let name = name.unwrap_or_default();
            relay!(list_key_chains(ListKeyChainsRequest { name }) as KeyChains)
        }
        Question::Keys(peer) => {
            let peer = peer.unwrap_or_default();
            relay!(list_keys(ListKeysRequest { peer }) as Keys)
        }
        Question::Rollover(None) => {
            relay!(get_rollover(GetRolloverRequest::default()) as Rollovers)
        }
        Question::Rollover(Some(peer)) => {
            relay!(get_rollover(GetRolloverRequest { peer }) as OneRollover)
        }
        Question::StartRollover { peer, compromised } => {
            relay!(start_rollover(StartRolloverRequest { peer, compromised }) as Done)
        }
        Question::AbortRollover(peer) => {
            relay!(abort_rollover(AbortRolloverRequest { peer }) as Done)
        }
        Question::ForceRollover(peer) => {
            relay!(force_rollover(ForceRolloverRequest { peer }) as Done)
        }
        Question::Identity => relay!(get_identity(GetIdentityRequest {}) as Identity),
        Question::Config => relay!(get_config(GetConfigRequest {}) as InUse),
        Question::CheckConfig(text) => {
            let toml = text.map_or_else(String::new, |mut text| std::mem::take(&mut *text));
            relay!(validate_config(ValidateConfigRequest { toml }) as Checked)
        }
        Question::DiffConfig => relay!(diff_config(DiffConfigRequest {}) as Differences),
        Question::ReloadConfig { replace_sessions } => {
            relay!(reload_config(ReloadConfigRequest { replace_sessions }) as Reloaded)
        }
        Question::Change(change) => change
            .make(&mut client, sidecar)
            .await
            .map(|changed| Shown::new(Changed::from(changed))),
    }
}
