//! The operator service: what it answers from, and where it is served.

mod calls;
pub(crate) mod methods;
mod paced;
mod room;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use datapath::report::Report;

use self::server::Server;
use crate::operator::administration::{Administration, Origin};
use crate::operator::{EventLog, KeyControl};
use crate::roles::Identity;
use crate::{ApiSocket, Health, Roles, SocketError, TcpApi};

/// Where the service takes its answers from.
pub trait Source: Send + Sync + 'static {
    /// The state of this moment; nothing while the sidecar stops. May block
    /// for as long as a caller should wait.
    fn snapshot(&self) -> Option<Snapshot>;
}

/// The state of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Version of the sidecar.
    pub version: &'static str,
    /// Time since rules and guard became active.
    pub uptime: Duration,
    /// Backend in use.
    pub datapath: &'static str,
    /// What the configuration says about the peers, in its order.
    pub peers: Arc<[PeerFacts]>,
    /// What the backend says.
    pub report: Report,
    /// What an operator should look at.
    pub alarms: Vec<Alarm>,
    /// The configuration file.
    pub config_file: String,
    /// When the configuration in use was taken over.
    pub config_loaded_at: SystemTime,
    /// How many peers, key chains and keys were made by API.
    pub api_made: u32,
}

/// Something an operator should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Name of the peer; nothing for what concerns all of them.
    pub peer: Option<Arc<str>>,
    /// What it is, for people.
    pub text: String,
}

/// What the configuration says about a peer.
#[derive(Clone, Debug)]
pub struct PeerFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Name of its key chain; empty when its keys are agreed automatically.
    pub key_chain: String,
    /// Lowest and highest protected port.
    pub ports: (u16, u16),
    /// Where it was made.
    pub origin: Origin,
}

/// What the operator service answers from.
#[derive(Debug)]
pub struct Api<S, K, A> {
    /// The state.
    pub source: Arc<S>,
    /// The keys.
    pub control: Arc<K>,
    /// The configuration.
    pub administration: Arc<A>,
    /// Who may do what.
    pub roles: Roles,
    /// What health checks are told.
    pub health: Health,
    /// The log of events.
    pub events: EventLog,
}

/// Serves the operator service on `socket` and `tcp` until `stop` completes, then ends all streams,
/// waits for calls in progress and removes the socket.
///
/// `tcp` may take its time, or never complete: the socket is served meanwhile.
///
/// The socket is open to those groups only that have a role in `api.roles`, also when these change.
///
/// # Errors
/// When a socket cannot be served.
pub async fn serve<S: Source, K: KeyControl, A: Administration>(
    socket: ApiSocket,
    tcp: impl Future<Output = Option<TcpApi>>,
    api: Api<S, K, A>,
    stop: impl Future<Output = ()>,
) -> Result<(), SocketError> {
    let server = Server::new(api, Identity::of)?;
    server.serve(socket, tcp, stop).await
}
