//! The calls of the operator service.
#![allow(clippy::result_large_err, reason = "callers answer with the error")]

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::{Snapshot, Source};
use crate::convert;
use crate::operator::administration::{Administration, Caller, Change};
use crate::operator::convert::{administration, requests};
use crate::operator::{
    self, ControlError, EventStream, KeyControl, Streams, Wanted, automatic, known, known_chain,
};
use crate::v1::operator_service_server::OperatorService;
use crate::v1::{
    AbortRolloverRequest, AbortRolloverResponse, ChangeResponse, CreateKeyChainRequest,
    CreateKeyRequest, CreatePeerRequest, DeleteKeyChainRequest, DeleteKeyRequest,
    DeletePeerRequest, DiagnoseRequest, DiagnoseResponse, DiffConfigRequest, DiffConfigResponse,
    ForceRolloverRequest, ForceRolloverResponse, GetConfigRequest, GetConfigResponse,
    GetCountersRequest, GetCountersResponse, GetIdentityRequest, GetIdentityResponse,
    GetRolloverRequest, GetRolloverResponse, GetStatusRequest, GetStatusResponse,
    ListKeyChainsRequest, ListKeyChainsResponse, ListKeysRequest, ListKeysResponse,
    ListPeersRequest, ListPeersResponse, ListSessionsRequest, ListSessionsResponse,
    ReloadConfigRequest, ReloadConfigResponse, StartRolloverRequest, StartRolloverResponse,
    UpdateKeyChainRequest, UpdateKeyRequest, UpdatePeerRequest, ValidateConfigRequest,
    ValidateConfigResponse, WatchEventsRequest,
};

/// Diagnoses at a time: each of them listens to the network.
const DIAGNOSES: usize = 2;
/// Octets of a refusal's text: more of them would not fit into HTTP's headers.
const MAX_REASON: usize = 2048;

type Answer<T> = Result<Response<T>, Status>;

/// What answers the calls. That the caller may make them was checked before.
pub(super) struct Operator<S, K, A> {
    pub(super) source: Arc<S>,
    pub(super) control: Arc<K>,
    pub(super) administration: Arc<A>,
    pub(super) streams: Streams,
    diagnoses: Semaphore,
}

impl<S: Source, K: KeyControl, A: Administration> Operator<S, K, A> {
    pub(super) fn new(
        source: Arc<S>,
        control: Arc<K>,
        administration: Arc<A>,
        streams: Streams,
    ) -> Self {
        Self {
            source,
            control,
            administration,
            streams,
            diagnoses: Semaphore::new(DIAGNOSES),
        }
    }

    /// Takes a snapshot beside the runtime's thread, which signals and other calls need.
    async fn snapshot(&self) -> Result<Snapshot, Status> {
        let source = Arc::clone(&self.source);
        tokio::task::spawn_blocking(move || source.snapshot())
            .await
            .map_err(|_| Status::internal("the report could not be made"))?
            .ok_or_else(|| Status::unavailable("the sidecar is stopping"))
    }

    async fn answer<T>(&self, convert: fn(&Snapshot) -> T) -> Answer<T> {
        Ok(Response::new(convert(&self.snapshot().await?)))
    }

    /// The peer that is asked about; nothing for all.
    fn known(&self, asked: &str) -> Result<Option<String>, Status> {
        requests::asked("peer", asked)?;
        known(&self.control.peers(), asked)
    }

    /// The automatic peer that is to be changed.
    fn automatic(&self, asked: &str) -> Result<String, Status> {
        requests::asked("peer", asked)?;
        automatic(&self.control.peers(), asked)
    }

    /// Does `what`, once the audit log has it, and has it say what came of it.
    async fn audited(
        &self,
        caller: &Caller,
        what: String,
        act: impl Future<Output = Result<String, ControlError>>,
    ) -> Result<String, Status> {
        let entry = self.administration.audit(caller, what).await?;
        let done = act.await;
        match &done {
            Ok(message) => entry.done(Ok(message)),
            Err(refused) => entry.done(Err(&refused.to_string())),
        }
        Ok(done?)
    }

    /// Makes a change; `done` says what was done, as a sentence.
    async fn change(&self, caller: &Caller, change: Change) -> Answer<ChangeResponse> {
        let done = sentence(&change);
        let changed = self.administration.change(caller, change).await?;
        Ok(Response::new(administration::changed(done, changed)))
    }
}

#[tonic::async_trait]
impl<S: Source, K: KeyControl, A: Administration> OperatorService for Operator<S, K, A> {
    type WatchEventsStream = EventStream;

    async fn get_status(&self, request: Request<GetStatusRequest>) -> Answer<GetStatusResponse> {
        let role = caller(&request)?.role;
        let snapshot = self.snapshot().await?;
        Ok(Response::new(convert::status(&snapshot, role)))
    }

    async fn list_peers(&self, _: Request<ListPeersRequest>) -> Answer<ListPeersResponse> {
        self.answer(convert::peers).await
    }

    async fn list_sessions(&self, _: Request<ListSessionsRequest>) -> Answer<ListSessionsResponse> {
        self.answer(convert::sessions).await
    }

    async fn get_counters(&self, _: Request<GetCountersRequest>) -> Answer<GetCountersResponse> {
        self.answer(convert::counters).await
    }

    async fn list_keys(&self, request: Request<ListKeysRequest>) -> Answer<ListKeysResponse> {
        let peer = self.known(&request.get_ref().peer)?;
        let keys = self.control.keys(peer.as_deref()).await?;
        let keys = keys.into_iter().map(operator::convert::key).collect();
        Ok(Response::new(ListKeysResponse { keys }))
    }

    async fn list_key_chains(
        &self,
        request: Request<ListKeyChainsRequest>,
    ) -> Answer<ListKeyChainsResponse> {
        let ListKeyChainsRequest { name } = request.into_inner();
        requests::asked("key chain", &name)?;
        let mut chains = self.administration.key_chains().await?;
        if !name.is_empty() {
            let names: Vec<_> = chains.iter().map(|report| &*report.chain.name).collect();
            known_chain(&names, &name)?;
            chains.retain(|report| report.chain.name == name);
        }
        let chains = chains.into_iter().map(administration::key_chain);
        Ok(Response::new(ListKeyChainsResponse {
            key_chains: chains.collect(),
        }))
    }

    async fn get_rollover(
        &self,
        request: Request<GetRolloverRequest>,
    ) -> Answer<GetRolloverResponse> {
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
    ) -> Answer<StartRolloverResponse> {
        let caller = caller(&request)?;
        let StartRolloverRequest { peer, compromised } = request.into_inner();
        let peer = self.automatic(&peer)?;
        let how = if compromised { " (compromised)" } else { "" };
        let what = format!("start a key change with peer {peer}{how}");
        let act = self.control.start(&peer, compromised);
        let message = self.audited(&caller, what, act).await?;
        Ok(Response::new(StartRolloverResponse { message }))
    }

    async fn abort_rollover(
        &self,
        request: Request<AbortRolloverRequest>,
    ) -> Answer<AbortRolloverResponse> {
        let caller = caller(&request)?;
        let peer = self.automatic(&request.get_ref().peer)?;
        let what = format!("abort the key change with peer {peer}");
        let act = self.control.abort(&peer);
        let message = self.audited(&caller, what, act).await?;
        Ok(Response::new(AbortRolloverResponse { message }))
    }

    async fn force_rollover(
        &self,
        request: Request<ForceRolloverRequest>,
    ) -> Answer<ForceRolloverResponse> {
        let caller = caller(&request)?;
        let peer = self.automatic(&request.get_ref().peer)?;
        let what = format!("delete superseded keys of peer {peer} at once");
        let act = self.control.force(&peer);
        let message = self.audited(&caller, what, act).await?;
        Ok(Response::new(ForceRolloverResponse { message }))
    }

    async fn get_identity(&self, _: Request<GetIdentityRequest>) -> Answer<GetIdentityResponse> {
        let identity = self.control.identity().await?;
        Ok(Response::new(operator::convert::identity(identity)))
    }

    async fn watch_events(&self, request: Request<WatchEventsRequest>) -> Answer<EventStream> {
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

    async fn get_config(&self, _: Request<GetConfigRequest>) -> Answer<GetConfigResponse> {
        let config = self.administration.config().await?;
        Ok(Response::new(administration::config(config)))
    }

    async fn validate_config(
        &self,
        request: Request<ValidateConfigRequest>,
    ) -> Answer<ValidateConfigResponse> {
        let text = requests::config_text(request.into_inner())?;
        let validation = self.administration.validate(text).await?;
        Ok(Response::new(administration::validation(validation)))
    }

    async fn diff_config(&self, _: Request<DiffConfigRequest>) -> Answer<DiffConfigResponse> {
        let changed = self.administration.diff().await?;
        Ok(Response::new(administration::differences(changed)))
    }

    async fn reload_config(
        &self,
        request: Request<ReloadConfigRequest>,
    ) -> Answer<ReloadConfigResponse> {
        let caller = caller(&request)?;
        let replace_sessions = request.get_ref().replace_sessions;
        let changed = self
            .administration
            .reload(&caller, replace_sessions)
            .await?;
        Ok(Response::new(administration::reloaded(changed)))
    }

    async fn create_peer(&self, request: Request<CreatePeerRequest>) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let change = requests::put_peer(request.peer, false, request.replace_sessions)?;
        self.change(&caller, change).await
    }

    async fn update_peer(&self, request: Request<UpdatePeerRequest>) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let change = requests::put_peer(request.peer, true, request.replace_sessions)?;
        self.change(&caller, change).await
    }

    async fn delete_peer(&self, request: Request<DeletePeerRequest>) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let name = requests::name("peer", request.into_inner().name)?;
        self.change(&caller, Change::DeletePeer { name }).await
    }

    async fn create_key_chain(
        &self,
        request: Request<CreateKeyChainRequest>,
    ) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let change = requests::create_key_chain(request.into_inner())?;
        self.change(&caller, change).await
    }

    async fn update_key_chain(
        &self,
        request: Request<UpdateKeyChainRequest>,
    ) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let change = requests::update_key_chain(request.into_inner())?;
        self.change(&caller, change).await
    }

    async fn delete_key_chain(
        &self,
        request: Request<DeleteKeyChainRequest>,
    ) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let name = requests::name("key chain", request.into_inner().name)?;
        self.change(&caller, Change::DeleteKeyChain { name }).await
    }

    async fn create_key(&self, request: Request<CreateKeyRequest>) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let CreateKeyRequest { key_chain, key } = request.into_inner();
        let change = requests::put_key(key_chain, key, false)?;
        self.change(&caller, change).await
    }

    async fn update_key(&self, request: Request<UpdateKeyRequest>) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let UpdateKeyRequest { key_chain, key } = request.into_inner();
        let change = requests::put_key(key_chain, key, true)?;
        self.change(&caller, change).await
    }

    async fn delete_key(&self, request: Request<DeleteKeyRequest>) -> Answer<ChangeResponse> {
        let caller = caller(&request)?;
        let change = requests::delete_key(request.into_inner())?;
        self.change(&caller, change).await
    }

    async fn diagnose(&self, request: Request<DiagnoseRequest>) -> Answer<DiagnoseResponse> {
        let request = request.into_inner();
        let peer = self.known(&request.peer)?;
        let listen = requests::listen(request.listen.as_ref())?;
        let _turn = self.diagnoses.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!("{DIAGNOSES} diagnoses are under way already"))
        })?;
        let findings = self
            .administration
            .diagnose(peer.as_deref(), listen)
            .await?;
        Ok(Response::new(administration::diagnosis(findings)))
    }
}

/// Who makes a call.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller
        .cloned()
        .ok_or_else(|| Status::permission_denied("the caller is unknown"))
}

/// What a change has done.
fn sentence(change: &Change) -> String {
    let put = |replace| if replace { "replaced" } else { "made" };
    match change {
        Change::PutPeer { peer, replace, .. } => {
            format!("peer {} is {}", peer.name, put(*replace))
        }
        Change::DeletePeer { name } => format!("peer {name} is deleted"),
        Change::CreateKeyChain { chain, .. } => format!("key chain {} is made", chain.name),
        Change::UpdateKeyChain { chain } => {
            format!("the rules of key chain {} are replaced", chain.name)
        }
        Change::DeleteKeyChain { name } => format!("key chain {name} is deleted"),
        Change::PutKey {
            chain,
            key,
            replace,
        } => {
            let (send, recv) = (key.send_id, key.recv_id);
            format!(
                "key {send}/{recv} of key chain {chain} is {}",
                put(*replace)
            )
        }
        Change::DeleteKey {
            chain,
            send_id,
            recv_id,
        } => format!("key {send_id}/{recv_id} of key chain {chain} is deleted"),
    }
}

impl From<ControlError> for Status {
    fn from(error: ControlError) -> Self {
        let mut reason = error.to_string();
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        match error {
            ControlError::Invalid(_) => Self::invalid_argument(reason),
            ControlError::NotFound(_) => Self::not_found(reason),
            ControlError::Exists(_) => Self::already_exists(reason),
            ControlError::Refused(_) => Self::failed_precondition(reason),
            ControlError::Stopping => Self::unavailable(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reasons_are_cut() {
        let status = Status::from(ControlError::Refused("ä".repeat(MAX_REASON)));
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert_eq!(status.message(), "ä".repeat(MAX_REASON / 2));
    }

    #[test]
    fn a_call_without_a_caller_is_refused() {
        let refused = caller(&Request::new(())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
}
