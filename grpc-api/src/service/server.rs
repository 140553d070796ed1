//! Where calls come in: connections, who is at the other end of them, and what it may call.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{Method as Verb, Request, Response, StatusCode};
use tonic::service::Routes;

use super::calls::Operator;
use super::methods::Called;
use super::paced::Paced;
use super::room::{Room, Seat, Whose};
use super::{Api, Source};
use crate::codec::DESCRIPTORS;
use crate::health::HealthService;
use crate::operator::administration::{Administration, Caller, Role};
use crate::operator::{KeyControl, Streams};
use crate::peer::{Kind, Origin, RefusalLog};
use crate::roles::{Identity, RoleMap};
use crate::tcp::Door;
use crate::v1::operator_service_server::OperatorServiceServer;
use crate::{ApiSocket, Roles, SocketError, TcpApi};

/// A connection whose first call has not begun after this time is closed.
const FIRST_CALL: Duration = Duration::from_secs(10);
/// How long who may not call is told so.
const REFUSAL: Duration = Duration::from_secs(5);
/// After this time without a sign of life the far end is asked for one, and has as long again.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Longest time that calls in progress have when the server stops.
const DRAIN: Duration = Duration::from_secs(2);
/// Wait after accept(2) failed: without descriptors it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// HTTP/2 streams at a time, on one connection.
const MAX_STREAMS: u32 = 16;
/// HTTP/2 flow-control window, in octets.
const WINDOW: u32 = 64 << 10;
/// Octets that wait to be sent on one stream.
const SEND_BUFFER: usize = 64 << 10;
/// Octets of all headers of a call.
const MAX_HEADERS: u32 = 8 << 10;
/// Octets of a request.
const MAX_REQUEST: usize = 64 << 10;
/// Octets of a request with a configuration of 1 MiB in it.
const MAX_CONFIG_REQUEST: usize = (1 << 20) + (4 << 10);

/// Who has connected to a Unix socket.
pub(super) type Identify = fn(&UnixStream) -> io::Result<Identity>;

/// What all connections have in common.
pub(super) struct Server<S, K, A> {
    operator: Arc<Operator<S, K, A>>,
    /// Health and reflection.
    others: Routes,
    roles: Roles,
    identify: Identify,
    room: Arc<Room>,
    refusals: RefusalLog,
    stop: watch::Sender<bool>,
}

impl<S: Source, K: KeyControl, A: Administration> Server<S, K, A> {
    pub(super) fn new(api: Api<S, K, A>, identify: Identify) -> Result<Self, SocketError> {
        let stop = watch::Sender::new(false);
        let streams = Streams::new(api.events, stop.subscribe());
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("aosidecar.v1.OperatorService")
            .with_service_name("grpc.health.v1.Health")
            .with_service_name("grpc.reflection.v1.ServerReflection")
            .build_v1()?;
        let health = HealthService::new(api.health, stop.subscribe());
        let operator = Operator::new(api.source, api.control, api.administration, streams);
        Ok(Self {
            operator: Arc::new(operator),
            others: Routes::new(health.server())
                .add_service(reflection)
                .prepare(),
            roles: api.roles,
            identify,
            room: Arc::new(Room::new()),
            refusals: RefusalLog::new("API call"),
            stop,
        })
    }

    pub(super) async fn serve(
        self,
        socket: ApiSocket,
        tcp: impl Future<Output = Option<TcpApi>>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), SocketError> {
        let server = Arc::new(self);
        // Whatever still runs ends with this function, also when it is dropped.
        let mut listeners = JoinSet::new();
        listeners.spawn(Arc::clone(&server).accept_unix(socket.listener()?));
        let open_tcp = async {
            match tcp.await.map(TcpApi::open).transpose() {
                Ok(opened) => {
                    if let Some((sockets, door)) = opened {
                        for listener in sockets {
                            let door = Arc::clone(&door);
                            listeners.spawn(Arc::clone(&server).accept_tcp(listener, door));
                        }
                    }
                }
                Err(error) => tracing::error!("{error}"),
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            () = stop => {}
            never = server.keep_open(&socket) => match never {},
            never = open_tcp => match never {},
        }
        server.stop.send_replace(true);
        while listeners.join_next().await.is_some() {}
        Ok(())
    }

    /// Keeps the Unix socket open to those who have a role.
    async fn keep_open(&self, socket: &ApiSocket) -> Infallible {
        let mut roles = self.roles.watch();
        loop {
            let groups: BTreeSet<u32> = {
                let map = roles.borrow_and_update();
                map.groups.iter().map(|&(group, _)| group).collect()
            };
            if let Err(error) = socket.open_to(&groups) {
                let socket = socket.path().display();
                tracing::warn!(%socket, %error, "the API cannot be opened to its groups");
            }
            // The sender lives as long as this server.
            let _ = roles.changed().await;
        }
    }

    async fn accept_unix(self: Arc<Self>, listener: UnixListener) {
        let mut stop = self.stop.subscribe();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                _ = stop.wait_for(|&stop| stop) => break,
            };
            let known = accepted.and_then(|(stream, _)| Ok(((self.identify)(&stream)?, stream)));
            match known {
                Ok((identity, stream)) => {
                    connections.spawn(Arc::clone(&self).connection(stream, identity));
                }
                Err(error) => {
                    self.refuse(Kind::Accept, &error);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener, door: Arc<Door>) {
        let mut stop = self.stop.subscribe();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                _ = stop.wait_for(|&stop| stop) => break,
            };
            match accepted {
                Ok((tcp, from)) => {
                    let Some(entered) = door.admit(from) else {
                        continue;
                    };
                    let (server, door) = (Arc::clone(&self), Arc::clone(&door));
                    connections.spawn(async move {
                        let mut stop = server.stop.subscribe();
                        let entered = tokio::select! {
                            entered = door.enter(tcp, from, entered) => entered,
                            _ = stop.wait_for(|&stop| stop) => None,
                        };
                        if let Some((tls, identity)) = entered {
                            server.connection(tls, identity).await;
                        }
                    });
                }
                Err(error) => {
                    self.refuse(Kind::Accept, &error);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    /// Serves a connection until it ends, its caller has no role any more, or the server stops.
    async fn connection<I>(self: Arc<Self>, io: I, identity: Identity)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let map = self.roles.current();
        let role = map.role(&identity);
        let place = match self.place(&identity, &map, role) {
            Ok(place) => place,
            Err(status) => {
                self.refuse(Kind::Call, &status.message());
                match self.room.refuse() {
                    Some(place) => Place::Refused(status, place),
                    None => return,
                }
            }
        };
        let refused = matches!(place, Place::Refused(..));
        let client = Arc::new(Client {
            identity,
            place,
            who: OnceCell::new(),
        });
        let called = Arc::new(Notify::new());
        let service = service_fn({
            let (server, client, called) = (self.clone(), client.clone(), called.clone());
            move |request| {
                called.notify_one();
                Arc::clone(&server).call(Arc::clone(&client), request)
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buf_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(32)
            .max_local_error_reset_streams(32)
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        let mut stop = self.stop.subscribe();
        tokio::select! {
            // First, so that a call that has come is seen however late we look.
            biased;
            // How it ended is the caller's business: each call was answered.
            _ = connection.as_mut() => return,
            () = no_call(&called) => return,
            () = dismissed(&self.roles, &client.identity), if !refused => {}
            () = sleep(REFUSAL), if refused => {}
            _ = stop.wait_for(|&stop| stop) => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = timeout(DRAIN, connection).await;
    }

    /// A place for calls of `identity`, or why it may make none.
    #[allow(clippy::result_large_err, reason = "callers answer with it")]
    fn place(
        &self,
        identity: &Identity,
        map: &RoleMap,
        role: Option<Role>,
    ) -> Result<Place, Status> {
        let Some(role) = role else {
            return Err(Status::permission_denied(no_role(identity)));
        };
        let whose = match identity {
            Identity::User { uid, .. } => Whose::User(*uid),
            Identity::Certificate { names, .. } => {
                let known = names.iter().find_map(|name| map.named(name));
                let name = known.map_or("", |(name, _)| name);
                Whose::Certificate(name.to_ascii_lowercase())
            }
        };
        let seat = self.room.enter(whose, role == Role::Admin);
        seat.map(Place::Seat)
            .map_err(|full| Status::resource_exhausted(full.to_string()))
    }

    /// One call, whatever it calls.
    async fn call(
        self: Arc<Self>,
        client: Arc<Client>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        if !is_grpc(&request) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Ok(response);
        }
        let (called, role, place) = match self.permit(&client, request.uri().path()) {
            Ok(permitted) => permitted,
            Err(status) => return Ok(status.into_http()),
        };
        let who = client.who(called, &self.roles).await;
        request.extensions_mut().insert(Caller { who, role });
        let response = self.route(called, request).await;
        let dismissed = async move {
            dismissed(&self.roles, &client.identity).await;
            Status::permission_denied(no_role(&client.identity))
        };
        Ok(response.map(|answer| Body::new(Paced::new(answer, place, dismissed))))
    }

    /// Whether `client` may call what is at `path` now, in which role, and the place of the call.
    #[allow(clippy::result_large_err, reason = "callers answer with it")]
    fn permit(
        &self,
        client: &Client,
        path: &str,
    ) -> Result<(Called, Role, OwnedSemaphorePermit), Status> {
        let seat = match &client.place {
            Place::Seat(seat) => seat,
            Place::Refused(status, _) => return Err(status.clone()),
        };
        let role = self.roles.current().role(&client.identity);
        let role = role.ok_or_else(|| Status::permission_denied(no_role(&client.identity)))?;
        let called = Called::at(path).ok_or_else(|| Status::unimplemented("no such call"))?;
        if role < called.role() {
            return Err(Status::permission_denied(format!(
                "this takes the role {}, and the caller has {}",
                called.role().as_str(),
                role.as_str()
            )));
        }
        let place = seat.call().ok_or_else(|| {
            Status::resource_exhausted("too many calls of this caller are under way already")
        })?;
        Ok((called, role, place))
    }

    async fn route(&self, called: Called, request: Request<Incoming>) -> Response<Body> {
        match called {
            Called::Operator(method) => {
                let most = match method.name {
                    "ValidateConfig" => MAX_CONFIG_REQUEST,
                    _ => MAX_REQUEST,
                };
                let operator = Arc::clone(&self.operator);
                let mut service =
                    OperatorServiceServer::from_arc(operator).max_decoding_message_size(most);
                service
                    .call(request)
                    .await
                    .unwrap_or_else(|never| match never {})
            }
            Called::Other => {
                let answer = self.others.clone().call(request).await;
                answer.unwrap_or_else(|never| match never {})
            }
        }
    }

    /// Logs that something is refused.
    fn refuse(&self, kind: Kind, reason: &dyn std::fmt::Display) {
        self.refusals.note(kind, Origin::Nobody, None, reason);
    }
}

/// The far end of a connection.
struct Client {
    identity: Identity,
    place: Place,
    /// Once something was called that goes into the audit log.
    who: OnceCell<Arc<str>>,
}

/// What a connection is for.
enum Place {
    /// Calls.
    Seat(Seat),
    /// Being told why there are none.
    Refused(
        Status,
        #[allow(dead_code, reason = "held")] OwnedSemaphorePermit,
    ),
}

impl Client {
    /// Who calls, for the audit log; only an identity where nothing is logged.
    async fn who(&self, called: Called, roles: &Roles) -> Arc<str> {
        if called.role() == Role::Viewer {
            return "viewer".into();
        }
        let describe = || {
            let (identity, map) = (self.identity.clone(), roles.current());
            async move {
                let described = tokio::task::spawn_blocking(move || identity.describe(&map));
                // Only a runtime that ends does not run it.
                described
                    .await
                    .unwrap_or_else(|_| "somebody".to_owned())
                    .into()
            }
        };
        Arc::clone(self.who.get_or_init(describe).await)
    }
}

/// Completes when `identity` has no role any more.
async fn dismissed(roles: &Roles, identity: &Identity) {
    let mut roles = roles.watch();
    // The sender lives as long as the server, so there is no error.
    let _ = roles.wait_for(|map| map.role(identity).is_none()).await;
}

/// Completes when the first call has not begun in time.
async fn no_call(called: &Notify) {
    if timeout(FIRST_CALL, called.notified()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    let grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    grpc && request.method() == Verb::POST
}

fn no_role(identity: &Identity) -> String {
    match identity {
        Identity::User { uid, .. } => format!(
            "user {uid} has no role: root, the sidecar's own user and members of the groups in \
             [api] have one"
        ),
        Identity::Certificate { names, .. } if names.is_empty() => {
            "the certificate has no DNS name, so it has no role".to_owned()
        }
        Identity::Certificate { names, .. } => {
            let names: String = names.join(", ").chars().take(128).collect();
            format!("the name in the certificate ({names}) has no role in [api.tcp]")
        }
    }
}
