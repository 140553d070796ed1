//! A served API with a made-up daemon behind it, and callers of every role.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use datapath::report::Report;
use hyper_util::rt::TokioIo;
use prost::Message;
use tempfile::TempDir;
use tokio::net::{UnixSocket, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use zeroize::Zeroizing;

use crate::operator::administration::{
    Administration, Audit, Caller, Change, Changed, ConfigReport, Finding, FindingSeverity,
    KeyChainReport, KeyChainSpec, Origin, Role, Validation,
};
use crate::operator::{
    ControlError, EventLog, IdentityReport, KeyControl, KeyReport, NewEvent, PeerKeys,
    RolloverReport, Severity,
};
use crate::roles::Identity;
use crate::service::methods::OPERATOR;
use crate::service::server::Server;
use crate::service::{Api, Snapshot, Source};
use crate::test_support::Pki;
use crate::tls::TlsFiles;
use crate::{
    ApiSocket, Client, Health, RoleMap, Roles, ServerTls, SocketError, Target, TcpApi, connect, v1,
};

/// Longer than anything here takes on a loaded machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Octets of the made-up configuration: more than a connection takes before it is read.
const CONFIG: usize = 1 << 20;

/// What callers may be, by their names.
pub(super) const CALLERS: [(&str, Option<Role>); 4] = [
    ("nobody", None),
    ("viewer", Some(Role::Viewer)),
    ("operator", Some(Role::Operator)),
    ("admin", Some(Role::Admin)),
];

/// A daemon that knows two peers and does what it is told. It remembers what changed it.
#[derive(Default)]
pub(super) struct Daemon {
    done: Mutex<Vec<String>>,
}

impl Daemon {
    fn note(&self, what: String) {
        self.done.lock().unwrap().push(what);
    }

    /// What was done since the last time.
    pub(super) fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.done.lock().unwrap())
    }
}

impl Source for Daemon {
    fn snapshot(&self) -> Option<Snapshot> {
        Some(Snapshot {
            version: "1.2.3",
            uptime: Duration::from_secs(5),
            datapath: "userspace",
            peers: Arc::from([]),
            report: Report::default(),
            alarms: Vec::new(),
            config_file: "/etc/ao-sidecar/config.toml".into(),
            config_loaded_at: SystemTime::UNIX_EPOCH,
            api_made: 0,
        })
    }
}

impl KeyControl for Daemon {
    fn peers(&self) -> Vec<PeerKeys> {
        let peer = |(name, automatic): (&str, bool)| PeerKeys {
            name: name.into(),
            automatic,
        };
        [("as64502", true), ("ix", false)].map(peer).into()
    }

    async fn keys(&self, _: Option<&str>) -> Result<Vec<KeyReport>, ControlError> {
        Ok(Vec::new())
    }

    async fn rollovers(&self, _: Option<&str>) -> Result<Vec<RolloverReport>, ControlError> {
        Ok(Vec::new())
    }

    async fn start(&self, peer: &str, compromised: bool) -> Result<String, ControlError> {
        self.note(format!("started {peer} {compromised}"));
        Ok("begun".into())
    }

    async fn abort(&self, peer: &str) -> Result<String, ControlError> {
        self.note(format!("aborted {peer}"));
        Ok("given up".into())
    }

    async fn force(&self, peer: &str) -> Result<String, ControlError> {
        self.note(format!("forced {peer}"));
        Ok("deleted".into())
    }

    async fn identity(&self) -> Result<IdentityReport, ControlError> {
        Ok(IdentityReport {
            fingerprint: String::new(),
            certificate_file: String::new(),
            expires: None,
            listen: Vec::new(),
        })
    }
}

impl Administration for Daemon {
    async fn key_chains(&self) -> Result<Vec<KeyChainReport>, ControlError> {
        let chain = |name: &str| KeyChainReport {
            chain: KeyChainSpec {
                name: name.into(),
                ..KeyChainSpec::default()
            },
            origin: Origin::Api,
            keys: Vec::new(),
            peers: Vec::new(),
        };
        Ok(vec![chain("transit"), chain("spare")])
    }

    async fn config(&self) -> Result<ConfigReport, ControlError> {
        Ok(ConfigReport {
            toml: "#".repeat(CONFIG),
            file: String::new(),
            loaded_at: SystemTime::UNIX_EPOCH,
            api_made: Vec::new(),
        })
    }

    async fn validate(&self, _: Option<Zeroizing<String>>) -> Result<Validation, ControlError> {
        Ok(Validation::default())
    }

    async fn diff(&self) -> Result<Changed, ControlError> {
        Ok(Changed::default())
    }

    async fn reload(&self, caller: &Caller, replace: bool) -> Result<Changed, ControlError> {
        self.note(format!("{}: reloaded {replace}", caller.who));
        Ok(Changed::default())
    }

    async fn change(&self, caller: &Caller, change: Change) -> Result<Changed, ControlError> {
        let what = match change {
            Change::PutPeer { replace, .. } => format!("put peer {replace}"),
            Change::DeletePeer { .. } => "delete peer".into(),
            Change::CreateKeyChain { .. } => "create chain".into(),
            Change::UpdateKeyChain { .. } => "update chain".into(),
            Change::DeleteKeyChain { .. } => "delete chain".into(),
            Change::PutKey { replace, .. } => format!("put key {replace}"),
            Change::DeleteKey { .. } => "delete key".into(),
        };
        self.note(format!("{}: {what}", caller.who));
        Ok(Changed::default())
    }

    async fn audit(&self, caller: &Caller, what: String) -> Result<Audit, ControlError> {
        self.note(format!("{}: {what}", caller.who));
        Ok(Audit::new(|_| ()))
    }

    async fn diagnose(&self, _: Option<&str>, _: Duration) -> Result<Vec<Finding>, ControlError> {
        Ok(vec![Finding {
            code: "session-ok",
            severity: FindingSeverity::Ok,
            peer: None,
            seen: String::new(),
            matters: String::new(),
            remedy: String::new(),
        }])
    }
}

/// A request of every call that the made-up daemon answers.
pub(super) fn request(call: &str) -> Vec<u8> {
    let peer = || v1::PeerSpec {
        name: "new".into(),
        address: "10.0.0.9".into(),
        key_chain: "transit".into(),
        ..v1::PeerSpec::default()
    };
    let key = || v1::KeySpec {
        send_id: Some(1),
        recv_id: Some(1),
        algorithm: "aes-128-cmac-96".into(),
        secret: b"precious".to_vec(),
        ..v1::KeySpec::default()
    };
    let chain = || v1::KeyChainSpec {
        name: "new".into(),
        ..v1::KeyChainSpec::default()
    };
    // Field 1, a text.
    let named = |name: &str| v1::DeletePeerRequest { name: name.into() }.encode_to_vec();
    match call {
        "StartRollover" | "AbortRollover" | "ForceRollover" => named("as64502"),
        "CreatePeer" | "UpdatePeer" => v1::CreatePeerRequest {
            peer: Some(peer()),
            replace_sessions: false,
        }
        .encode_to_vec(),
        "DeletePeer" | "DeleteKeyChain" => named("new"),
        "CreateKeyChain" => v1::CreateKeyChainRequest {
            key_chain: Some(chain()),
            keys: vec![key()],
        }
        .encode_to_vec(),
        "UpdateKeyChain" => v1::UpdateKeyChainRequest {
            key_chain: Some(chain()),
        }
        .encode_to_vec(),
        "CreateKey" | "UpdateKey" => v1::CreateKeyRequest {
            key_chain: "transit".into(),
            key: Some(key()),
        }
        .encode_to_vec(),
        "DeleteKey" => v1::DeleteKeyRequest {
            key_chain: "transit".into(),
            send_id: Some(1),
            recv_id: Some(1),
        }
        .encode_to_vec(),
        _ => Vec::new(),
    }
}

/// A served API.
pub(super) struct Served {
    folder: TempDir,
    pki: Pki,
    address: SocketAddr,
    pub(super) daemon: Arc<Daemon>,
    pub(super) roles: Roles,
    pub(super) health: Health,
    pub(super) events: EventLog,
    pub(super) tls: ServerTls,
    connections: Arc<AtomicU32>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<Result<(), SocketError>>,
}

impl Served {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new();
        let socket = ApiSocket::bind(&folder.path().join("api.sock")).unwrap();
        let listen = ["127.0.0.1:0".parse().unwrap()];
        let tcp = TcpApi::bind(&listen, &pki.issue(&["sidecar.example"])).unwrap();
        let (address, tls) = (tcp.addresses()[0], tcp.tls());
        let daemon = Arc::new(Daemon::default());
        let roles = Roles::new(role_map());
        let (health, events) = (Health::new(), EventLog::new());
        let api = Api {
            source: daemon.clone(),
            control: daemon.clone(),
            administration: daemon.clone(),
            roles: roles.clone(),
            health: health.clone(),
            events: events.clone(),
        };
        let (stop, stopped) = oneshot::channel();
        let server = Server::new(api, identify).unwrap();
        let server = tokio::spawn(server.serve(socket, std::future::ready(Some(tcp)), async {
            let _ = stopped.await;
        }));
        Self {
            folder,
            pki,
            address,
            daemon,
            roles,
            health,
            events,
            tls,
            connections: Arc::default(),
            stop: Some(stop),
            server,
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection to the Unix socket by a user called `caller`.
    pub(super) async fn user(&self, caller: &str) -> Channel {
        self.try_user(caller).await.unwrap()
    }

    pub(super) async fn try_user(&self, caller: &str) -> Result<Channel, tonic::transport::Error> {
        let connector = Named {
            own: self.folder.path().join(caller),
            socket: self.socket(),
            connections: Arc::clone(&self.connections),
        };
        let endpoint = Endpoint::from_static("http://ao-sidecar")
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535);
        endpoint.connect_with_connector(connector).await
    }

    /// Where somebody with the certificate `NAME.example` finds the API over TCP.
    pub(super) fn target(&self, name: &str) -> Target {
        Target::Tcp {
            address: self.address.to_string(),
            server_name: Some("sidecar.example".into()),
            tls: self.certificate(&[&format!("{name}.example")]),
        }
    }

    pub(super) fn certificate(&self, names: &[&str]) -> TlsFiles {
        self.pki.issue(names)
    }

    /// A client over the Unix socket, and one over TCP.
    pub(super) async fn both(&self, caller: &str) -> [Client; 2] {
        let unix = Client::new(self.user(caller).await);
        [unix, connect(&self.target(caller)).await.unwrap()]
    }

    /// That the API still answers somebody else.
    pub(super) async fn still_serves(&self) {
        for mut client in self.both("viewer").await {
            let status = client.get_status(v1::GetStatusRequest {}).await.unwrap();
            assert_eq!(status.into_inner().role, "viewer");
        }
    }

    pub(super) fn push(&self, count: usize) {
        for _ in 0..count {
            self.events.push(NewEvent {
                peer: Some("as64502".into()),
                kind: "proven",
                severity: Severity::Info,
                generation: None,
                key_id: None,
                trigger: None,
                proof: None,
                took: None,
                message: "x".repeat(2048),
            });
        }
    }

    /// Stops the server, and waits until it has.
    pub(super) async fn stop(mut self) {
        drop(self.stop.take());
        let ended = tokio::time::timeout(PATIENCE, self.server).await;
        ended.unwrap().unwrap().unwrap();
        assert!(!self.folder.path().join("api.sock").exists());
    }
}

/// Groups and names of all callers but the first.
pub(super) fn role_map() -> RoleMap {
    let with_role = CALLERS.iter().zip(100..);
    let with_role =
        with_role.filter_map(|(&(name, role), group)| role.map(|role| (name, role, group)));
    let mut names = BTreeMap::new();
    let mut groups = Vec::new();
    for (name, role, group) in with_role {
        names.insert(format!("{name}.example"), role);
        groups.push((group, role));
    }
    RoleMap { groups, names }
}

/// Users of this machine are made up: the name of a caller's own socket is who it is.
fn identify(stream: &UnixStream) -> io::Result<Identity> {
    let address = stream.peer_addr()?;
    let name = address.as_pathname().and_then(Path::file_name);
    let name = name.map(|name| name.to_string_lossy().into_owned());
    let caller = CALLERS.iter().zip(100..).find(|((caller, _), _)| {
        let name = name.as_deref().unwrap_or("viewer");
        name.split('-').next() == Some(caller)
    });
    let group = caller.map_or(99, |(_, group)| group);
    Ok(Identity::User {
        uid: 4_000_000_000 + group,
        groups: vec![group],
        pid: Some(4711),
    })
}

/// Connects from a socket with a name, and a number that no other has.
#[derive(Clone)]
struct Named {
    own: PathBuf,
    socket: PathBuf,
    connections: Arc<AtomicU32>,
}

impl Service<Uri> for Named {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let own = format!("{}-{number}", self.own.display());
        let socket = self.socket.clone();
        Box::pin(async move {
            let stream = UnixSocket::new_stream()?;
            stream.bind(own)?;
            Ok(TokioIo::new(stream.connect(socket).await?))
        })
    }
}

/// Sends octets as they are.
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put(buffer, &*item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use prost::bytes::Buf;
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// Calls what is at `path`, and reads the whole answer.
pub(super) async fn call_path(channel: Channel, path: &str, octets: Vec<u8>) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel);
    let called = async {
        grpc.ready()
            .await
            .map_err(|error| Status::unknown(error.to_string()))?;
        let path: PathAndQuery = path.parse().unwrap();
        let answer = grpc
            .server_streaming(Request::new(octets), path, Raw)
            .await?;
        let mut stream: Streaming<Vec<u8>> = answer.into_inner();
        while stream.message().await?.is_some() {}
        Ok(())
    };
    tokio::time::timeout(PATIENCE, called).await.unwrap()
}

/// Makes a call of the operator service; its code, and what it is told.
pub(super) async fn call(channel: Channel, name: &str, octets: Vec<u8>) -> (Code, String) {
    let result = call_path(channel, &format!("{OPERATOR}{name}"), octets).await;
    let refused = result.err().unwrap_or_else(|| Status::ok(""));
    (refused.code(), refused.message().to_owned())
}

/// A channel over TCP.
pub(super) async fn channel(target: &Target) -> Channel {
    crate::client::channel(target, PATIENCE, PATIENCE)
        .await
        .unwrap()
}
