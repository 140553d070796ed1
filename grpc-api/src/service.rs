//! The operator service: who may call it, and what it answers from.

use std::sync::Arc;
use std::time::Duration;

use datapath::report::Report;
use nix::unistd::Uid;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::v1::operator_service_server::{OperatorService, OperatorServiceServer};
use crate::v1::{
    GetCountersRequest, GetCountersResponse, GetStatusRequest, GetStatusResponse, ListPeersRequest,
    ListPeersResponse, ListSessionsRequest, ListSessionsResponse,
};
use crate::{ApiSocket, SocketError, convert};

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
}

/// What the configuration says about a peer.
#[derive(Clone, Debug)]
pub struct PeerFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Name of its key chain.
    pub key_chain: String,
    /// Keys in the chain; without any the peer is blocked.
    pub keys: u32,
    /// Lowest and highest protected port.
    pub ports: (u16, u16),
}

/// Serves the operator service on `socket` until `stop` completes, then waits for calls in
/// progress and removes the socket.
///
/// Only root and the user of this process are answered.
///
/// # Errors
/// When the socket cannot be served.
pub async fn serve<S: Source>(
    socket: ApiSocket,
    source: Arc<S>,
    stop: impl Future<Output = ()>,
) -> Result<(), SocketError> {
    let incoming = UnixListenerStream::new(socket.listener()?);
    let service = OperatorServiceServer::with_interceptor(Operator(source), check_caller);
    Server::builder()
        .add_service(service)
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

struct Operator<S>(Arc<S>);

impl<S: Source> Operator<S> {
    /// Takes a snapshot beside the runtime's thread, which signals and other calls need.
    async fn answer<T>(&self, convert: fn(&Snapshot) -> T) -> Result<Response<T>, Status> {
        let source = Arc::clone(&self.0);
        let snapshot = tokio::task::spawn_blocking(move || source.snapshot())
            .await
            .map_err(|_| Status::internal("the report could not be made"))?
            .ok_or_else(|| Status::unavailable("the sidecar is stopping"))?;
        Ok(Response::new(convert(&snapshot)))
    }
}

#[tonic::async_trait]
impl<S: Source> OperatorService for Operator<S> {
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
