//! The operator service: who may call it, and what it answers from.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use datapath::report::Report;
use nix::unistd::Uid;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::operator::administration::{Administration, Origin};
use crate::operator::{
    self, ControlError, EventLog, EventStream, KeyControl, Streams, Wanted, automatic, known,
};
use crate::v1::operator_service_server::{OperatorService, OperatorServiceServer};
use crate::v1::{
    AbortRolloverRequest, AbortRolloverResponse, ForceRolloverRequest, ForceRolloverResponse,
    GetCountersRequest, GetCountersResponse, GetIdentityRequest, GetIdentityResponse,
    GetRolloverRequest, GetRolloverResponse, GetStatusRequest, GetStatusResponse, ListKeysRequest,
    ListKeysResponse, ListPeersRequest, ListPeersResponse, ListSessionsRequest,
    ListSessionsResponse, StartRolloverRequest, StartRolloverResponse, WatchEventsRequest,
};
use crate::{ApiSocket, Health, Roles, SocketError, TcpApi, convert};

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
/// The socket is open to those groups only that have a role in `api.roles`, also when these change.
///
/// # Errors
/// When a socket cannot be served.
pub async fn serve<S: Source, K: KeyControl, A: Administration>(
    socket: ApiSocket,
    tcp: Option<TcpApi>,
    api: Api<S, K, A>,
    stop: impl Future<Output = ()>,
) -> Result<(), SocketError> {
    drop(tcp);
    let Api {
        source,
        control,
        events,
        ..
    } = api;
    let incoming = UnixListenerStream::new(socket.listener()?);
    let (stopping, end_of_streams) = watch::channel(false);
    let operator = Operator {
        source,
        control,
        streams: Streams::new(events, end_of_streams),
    };
    let stop = async move {
        stop.await;
        stopping.send_replace(true);
    };
    Server::builder()
        .add_service(OperatorServiceServer::with_interceptor(
            operator,
            check_caller,
        ))
        .serve_with_incoming_shutdown(incoming, stop)
        .await
        .map_err(|source| socket.failed(source))
}

/// Lets root and our own user pass: the file's mode already says so, but a mode is easily changed.
#[allow(clippy::result_large_err, reason = "the signature is tonic's")]
fn check_caller(request: Request<()>) -> Result<Request<()>, Status> {
    let caller = request
        .extensions()
        .get::<UdsConnectInfo>()
        .and_then(|info| info.peer_cred)
        .map(|credentials| Uid::from_raw(credentials.uid()));
    match caller {
        Some(uid) if may_call(uid, Uid::effective()) => Ok(request),
        Some(uid) => Err(Status::permission_denied(format!(
            "user {uid} may not use the API: only root and the sidecar's own user may"
        ))),
        None => Err(Status::permission_denied("the caller's user is unknown")),
    }
}

fn may_call(caller: Uid, own: Uid) -> bool {
    caller.is_root() || caller == own
}

struct Operator<S, K> {
    source: Arc<S>,
    control: Arc<K>,
    streams: Streams,
}

impl<S: Source, K: KeyControl> Operator<S, K> {
    /// Takes a snapshot beside the runtime's thread, which signals and other calls need.
    async fn answer<T>(&self, convert: fn(&Snapshot) -> T) -> Result<Response<T>, Status> {
        let source = Arc::clone(&self.source);
        let snapshot = tokio::task::spawn_blocking(move || source.snapshot())
            .await
            .map_err(|_| Status::internal("the report could not be made"))?
            .ok_or_else(|| Status::unavailable("the sidecar is stopping"))?;
        Ok(Response::new(convert(&snapshot)))
    }

    /// The peer that is asked about; nothing for all.
    #[allow(clippy::result_large_err, reason = "callers answer with it")]
    fn known(&self, asked: &str) -> Result<Option<String>, Status> {
        known(&self.control.peers(), asked)
    }

    /// The automatic peer that is to be changed.
    #[allow(clippy::result_large_err, reason = "callers answer with it")]
    fn automatic(&self, asked: &str) -> Result<String, Status> {
        automatic(&self.control.peers(), asked)
    }
}

#[tonic::async_trait]
impl<S: Source, K: KeyControl> OperatorService for Operator<S, K> {
    type WatchEventsStream = EventStream;

    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        self.answer(convert::status).await
    }

    async fn list_peers(
        &self,
        _: Request<ListPeersRequest>,
    ) -> Result<Response<ListPeersResponse>, Status> {
        self.answer(convert::peers).await
    }

    async fn list_sessions(
        &self,
        _: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        self.answer(convert::sessions).await
    }

    async fn get_counters(
        &self,
        _: Request<GetCountersRequest>,
    ) -> Result<Response<GetCountersResponse>, Status> {
        self.answer(convert::counters).await
    }

    async fn list_keys(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        let peer = self.known(&request.get_ref().peer)?;
        let keys = self.control.keys(peer.as_deref()).await?;
        let keys = keys.into_iter().map(operator::convert::key).collect();
        Ok(Response::new(ListKeysResponse { keys }))
    }

    async fn get_rollover(
        &self,
        request: Request<GetRolloverRequest>,
    ) -> Result<Response<GetRolloverResponse>, Status> {
        let peer = match request.get_ref().peer.as_str() {
            "" => None,
            asked => Some(self.automatic(asked)?),
        };
        let rollovers = self.control.rollovers(peer.as_deref()).await?;
        let rollovers = rollovers
            .into_iter()
            .map(|report| operator::convert::rollover(report, self.streams.log()))
            .collect();
        Ok(Response::new(GetRolloverResponse { rollovers }))
    }

    async fn start_rollover(
        &self,
        request: Request<StartRolloverRequest>,
    ) -> Result<Response<StartRolloverResponse>, Status> {
        let StartRolloverRequest { peer, compromised } = request.into_inner();
        let peer = self.automatic(&peer)?;
        let message = self.control.start(&peer, compromised).await?;
        Ok(Response::new(StartRolloverResponse { message }))
    }

    async fn abort_rollover(
        &self,
        request: Request<AbortRolloverRequest>,
    ) -> Result<Response<AbortRolloverResponse>, Status> {
        let peer = self.automatic(&request.get_ref().peer)?;
        let message = self.control.abort(&peer).await?;
        Ok(Response::new(AbortRolloverResponse { message }))
    }

    async fn force_rollover(
        &self,
        request: Request<ForceRolloverRequest>,
    ) -> Result<Response<ForceRolloverResponse>, Status> {
        let peer = self.automatic(&request.get_ref().peer)?;
        let message = self.control.force(&peer).await?;
        Ok(Response::new(ForceRolloverResponse { message }))
    }

    async fn get_identity(
        &self,
        _: Request<GetIdentityRequest>,
    ) -> Result<Response<GetIdentityResponse>, Status> {
        let identity = self.control.identity().await?;
        Ok(Response::new(operator::convert::identity(identity)))
    }

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let WatchEventsRequest {
            after,
            log,
            peer,
            follow,
        } = request.into_inner();
        let stream = self.streams.open(Wanted {
            after,
            log,
            peer: self.known(&peer)?,
            follow,
        })?;
        Ok(Response::new(stream))
    }

    async fn list_key_chains(
        &self,
        _: Request<crate::v1::ListKeyChainsRequest>,
    ) -> Result<Response<crate::v1::ListKeyChainsResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn get_config(
        &self,
        _: Request<crate::v1::GetConfigRequest>,
    ) -> Result<Response<crate::v1::GetConfigResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn validate_config(
        &self,
        _: Request<crate::v1::ValidateConfigRequest>,
    ) -> Result<Response<crate::v1::ValidateConfigResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn diff_config(
        &self,
        _: Request<crate::v1::DiffConfigRequest>,
    ) -> Result<Response<crate::v1::DiffConfigResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn reload_config(
        &self,
        _: Request<crate::v1::ReloadConfigRequest>,
    ) -> Result<Response<crate::v1::ReloadConfigResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn create_peer(
        &self,
        _: Request<crate::v1::CreatePeerRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn update_peer(
        &self,
        _: Request<crate::v1::UpdatePeerRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn delete_peer(
        &self,
        _: Request<crate::v1::DeletePeerRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn create_key_chain(
        &self,
        _: Request<crate::v1::CreateKeyChainRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn update_key_chain(
        &self,
        _: Request<crate::v1::UpdateKeyChainRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn delete_key_chain(
        &self,
        _: Request<crate::v1::DeleteKeyChainRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn create_key(
        &self,
        _: Request<crate::v1::CreateKeyRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn update_key(
        &self,
        _: Request<crate::v1::UpdateKeyRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn delete_key(
        &self,
        _: Request<crate::v1::DeleteKeyRequest>,
    ) -> Result<Response<crate::v1::ChangeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn diagnose(
        &self,
        _: Request<crate::v1::DiagnoseRequest>,
    ) -> Result<Response<crate::v1::DiagnoseResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        match &error {
            ControlError::Invalid(_) => Self::invalid_argument(error.to_string()),
            ControlError::NotFound(_) => Self::not_found(error.to_string()),
            ControlError::Exists(_) => Self::already_exists(error.to_string()),
            ControlError::Refused(_) => Self::failed_precondition(error.to_string()),
            ControlError::Stopping => Self::unavailable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_may_call() {
        let (root, own, other) = (Uid::from_raw(0), Uid::from_raw(990), Uid::from_raw(1000));
        assert!(may_call(root, own));
        assert!(may_call(own, own));
        assert!(!may_call(other, own));
        assert!(!may_call(other, root));
    }

    #[test]
    fn a_caller_without_credentials_is_refused() {
        let refused = check_caller(Request::new(())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
}
