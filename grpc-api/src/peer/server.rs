//! Where peers call.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keymgr::identity::Fingerprint;
use keymgr::rollover::message::Message;
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use rustls::Error;
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::limits::{Admission, CallRate, Entered, Limits};
use super::refusals::{Kind, Origin, RefusalLog};
use super::trust::{Partners, Recognised, explain};
use super::{MAX_MESSAGE, PeerIdentity, VERSIONS, VERSIONS_METADATA, tls, wire};
use crate::v1;
use crate::v1::peer_key_service_server::{PeerKeyService, PeerKeyServiceServer};

/// Connections that the kernel completes before we take them, and its usual limit: one more has to
/// try again, a second later.
const BACKLOG: u32 = 4096;
/// Longest time that calls in progress have when the server stops.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a refused client has to read why.
const LINGER: Duration = Duration::from_secs(1);
/// Wait after accept(2) failed: without descriptors it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// HTTP/2 streams at a time, on one connection.
const MAX_STREAMS: u32 = 4;
/// HTTP/2 flow-control window, in octets.
const WINDOW: u32 = 64 << 10;
/// Octets of all headers of a call.
const MAX_HEADERS: u32 = 8 << 10;
/// Octets of a label.
const MAX_LABEL: usize = 64;

/// Who calls, by its certificate.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Names of the [`Partner`](super::Partner)s whose certificate it is. More than one when
    /// several have the same.
    pub partners: Vec<Arc<str>>,
    /// Which of several peerings with the caller it is about.
    pub label: String,
    /// Of the certificate.
    pub fingerprint: Fingerprint,
    /// The [`Partners::edition`] that recognised it, when the connection began.
    pub edition: u64,
    /// Where the call comes from. Proves nothing.
    pub address: SocketAddr,
}

/// Why a call gets no answer. The caller is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The message makes no sense (INVALID_ARGUMENT).
    #[error("{0}")]
    Invalid(String),
    /// The caller may not (PERMISSION_DENIED).
    #[error("{0}")]
    Denied(String),
    /// Not now (UNAVAILABLE).
    #[error("{0}")]
    Unavailable(String),
}

/// What answers calls. It gets well-formed messages of known partners only.
pub trait Handler: Send + Sync + 'static {
    /// Answers `message` of `caller`.
    fn exchange(
        &self,
        caller: Caller,
        message: Message,
    ) -> impl Future<Output = Result<Message, Refused>> + Send;
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address cannot be listened on.
    #[error("cannot listen for peers on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS cannot be set up with this identity.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] Error),
}

/// Listens for peers.
pub struct PeerServer {
    listeners: Vec<TcpListener>,
    tls: TlsAcceptor,
    partners: Arc<Partners>,
    limits: Limits,
}

impl PeerServer {
    /// Listens on every address of `listen`, for those in `partners`. `[::]` means IPv6 only.
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on; then none is.
    pub fn bind(
        listen: &[SocketAddr],
        identity: &PeerIdentity,
        partners: Arc<Partners>,
        limits: Limits,
    ) -> Result<Self, BindError> {
        let listener =
            |&address| listener(address).map_err(|source| BindError::Listen { address, source });
        let tls = tls::server_config(identity, Arc::clone(&partners))?;
        Ok(Self {
            listeners: listen.iter().map(listener).collect::<Result<_, _>>()?,
            tls: TlsAcceptor::from(Arc::new(tls)),
            partners,
            limits,
        })
    }

    /// The addresses it listens on, with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }

    /// Serves until `stop` completes; calls in progress then have 2 s left.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, stop: impl Future<Output = ()>) {
        let (stopping, stopped) = watch::channel(false);
        let (alive, mut all_gone) = mpsc::channel::<Infallible>(1);
        let shared = Arc::new(Shared {
            handler,
            tls: self.tls,
            partners: self.partners,
            admission: Arc::new(Admission::new(self.limits.clone())),
            rate: CallRate::new(&self.limits),
            limits: self.limits,
            refusals: RefusalLog::new("peering"),
        });
        for listener in self.listeners {
            let life = Life {
                stopped: stopped.clone(),
                _alive: alive.clone(),
            };
            tokio::spawn(Arc::clone(&shared).accept(listener, life));
        }
        drop(alive);
        stop.await;
        stopping.send_replace(true);
        // Nothing is ever sent: it ends when all tasks have.
        all_gone.recv().await;
    }
}

impl fmt::Debug for PeerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerServer")
            .field(&self.addresses())
            .finish()
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // 0.0.0.0 and [::] can be listened on side by side.
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Tells a task when to stop, and the server when it has.
#[derive(Clone)]
struct Life {
    stopped: watch::Receiver<bool>,
    _alive: mpsc::Sender<Infallible>,
}

impl Life {
    async fn stop(&mut self) {
        // An error means that the server is gone altogether.
        let _ = self.stopped.wait_for(|stopped| *stopped).await;
    }
}

/// What all connections have in common.
struct Shared<H> {
    handler: Arc<H>,
    tls: TlsAcceptor,
    partners: Arc<Partners>,
    admission: Arc<Admission>,
    rate: CallRate,
    limits: Limits,
    refusals: RefusalLog,
}

impl<H: Handler> Shared<H> {
    async fn accept(self: Arc<Self>, listener: TcpListener, mut life: Life) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = life.stop() => return,
            };
            match accepted {
                Ok((tcp, from)) => self.admit(tcp, from, life.clone()),
                Err(error) => {
                    self.refusals
                        .note(Kind::Accept, Origin::Nobody, None, &error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, tcp: TcpStream, from: SocketAddr, life: Life) {
        let expected = self.partners.at(from.ip());
        let shared = Arc::clone(self);
        match self.admission.enter(from.ip(), expected) {
            Ok(entered) => {
                tokio::spawn(shared.connection(tcp, from, entered, life));
            }
            Err(_) if expected > 0 => {
                tokio::spawn(shared.wait(tcp, from, expected, life));
            }
            Err(full) => self.refuse(Kind::Room, from, &full),
        }
    }

    /// Lets a partner's connection wait for room, without the others behind it.
    async fn wait(
        self: Arc<Self>,
        tcp: TcpStream,
        from: SocketAddr,
        expected: usize,
        mut life: Life,
    ) {
        let entered = tokio::select! {
            entered = self.admission.wait(from.ip(), expected) => entered,
            () = life.stop() => return,
        };
        match entered {
            Ok(entered) => self.connection(tcp, from, entered, life).await,
            Err(full) => self.refuse(Kind::Room, from, &full),
        }
    }

    async fn connection(
        self: Arc<Self>,
        tcp: TcpStream,
        from: SocketAddr,
        (mut place, evicted): Entered,
        mut life: Life,
    ) {
        let tls = tokio::select! {
            tls = self.handshake(tcp, from) => tls,
            _ = evicted => {
                let reason = "closed before its handshake, to make room for newer connections";
                return self.refuse(Kind::Room, from, &reason);
            }
            () = life.stop() => return,
        };
        let Some(tls) = tls else { return };
        let client = match self.client(&tls, from) {
            Ok(client) => client,
            Err(error) => return self.refuse(Kind::Handshake, from, &explain(&error)),
        };
        if let Err(full) = place.authenticated(&client.first, client.partners.len()) {
            return self.refuse_client(Kind::Room, &client, None, &full);
        }
        self.serve(tls, client, &mut life).await;
    }

    async fn handshake(&self, tcp: TcpStream, from: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let accepted = async {
            match self.tls.accept(tcp).into_fallible().await {
                Ok(tls) => Some(tls),
                Err((error, tcp)) => {
                    self.refuse(Kind::Handshake, from, &handshake_failure(&error));
                    linger(tcp).await;
                    None
                }
            }
        };
        timeout(self.limits.handshake, accepted)
            .await
            .unwrap_or_else(|_| {
                let reason = format!("no handshake within {:?}", self.limits.handshake);
                self.refuse(Kind::Silence, from, &reason);
                None
            })
    }

    fn client(&self, tls: &TlsStream<TcpStream>, address: SocketAddr) -> Result<Client, Error> {
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let Recognised {
            fingerprint,
            partners,
            edition,
        } = self.partners.identify(chain, UnixTime::now())?;
        let first = partners.first().ok_or(Error::NoCertificatesPresented)?;
        Ok(Client {
            first: Arc::clone(first),
            partners,
            fingerprint,
            edition,
            address,
        })
    }

    async fn serve(self: &Arc<Self>, tls: TlsStream<TcpStream>, client: Client, life: &mut Life) {
        let client = Arc::new(client);
        let called = Arc::new(Notify::new());
        let service = service_fn({
            let (shared, client, called) = (self.clone(), client.clone(), called.clone());
            move |request| {
                called.notify_one();
                Arc::clone(&shared).call(Arc::clone(&client), request)
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buf_size(MAX_MESSAGE)
            .max_pending_accept_reset_streams(8)
            .max_local_error_reset_streams(8)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(tls), service);
        let mut connection = pin!(connection);
        let no_call = async {
            let first_call = called.notified();
            if timeout(self.limits.first_call, first_call).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        let grace = tokio::select! {
            // First, so that a call that has come is seen however late we look.
            biased;
            // How it ended is the caller's business: each call was answered or logged.
            _ = connection.as_mut() => return,
            () = no_call => {
                let reason = format!("no call within {:?}", self.limits.first_call);
                return self.refuse_client(Kind::Slow, &client, None, &reason);
            }
            () = tokio::time::sleep(self.limits.connection) => self.limits.call,
            () = life.stop() => DRAIN,
        };
        connection.as_mut().graceful_shutdown();
        if timeout(grace, connection).await.is_err() {
            let reason = "the connection did not end in time";
            self.refuse_client(Kind::Slow, &client, None, &reason);
        }
    }

    /// One call, whatever it calls: all of them count, and every refusal is logged.
    async fn call(
        self: Arc<Self>,
        client: Arc<Client>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let call = Arc::new(Call {
            handler: Arc::clone(&self.handler),
            client: Arc::clone(&client),
            label: OnceLock::new(),
        });
        let partners = client.partners.len();
        let response = if self.rate.allows(&client.first, partners, Instant::now()) {
            let service = PeerKeyServiceServer::from_arc(Arc::clone(&call));
            let mut service = service.max_decoding_message_size(MAX_MESSAGE);
            match timeout(self.limits.call, service.call(request)).await {
                Ok(Ok(response)) => response,
                Err(_) => Status::deadline_exceeded("too slow").into_http(),
            }
        } else {
            Status::resource_exhausted("too many calls; wait a second").into_http()
        };
        let status = Status::from_header_map(response.headers());
        if let Some(status) = status.filter(|status| status.code() != Code::Ok) {
            let reason = match status.message() {
                "" => status.code().description(),
                message => message,
            };
            let label = call.label.get().map(String::as_str);
            self.refuse_client(kind(status.code()), &client, label, &reason);
        }
        Ok(response)
    }

    /// Logs that somebody at `from` is refused, whose certificate is not known.
    fn refuse(&self, kind: Kind, from: SocketAddr, reason: &dyn fmt::Display) {
        let origin = match self.partners.at(from.ip()) {
            0 => Origin::Stranger,
            _ => Origin::Expected(from.ip().to_canonical()),
        };
        self.refusals.note(kind, origin, Some(from), reason);
    }

    /// Logs that `client` is refused, about the peering called `label`.
    fn refuse_client(
        &self,
        kind: Kind,
        client: &Client,
        label: Option<&str>,
        reason: &dyn fmt::Display,
    ) {
        let about = label.map_or_else(String::new, |label| format!(", label {label:?}"));
        let reason = format!("{client}{about}: {reason}");
        let origin = Origin::Partner(Arc::clone(&client.first));
        self.refusals
            .note(kind, origin, Some(client.address), &reason);
    }
}

/// What a refusal is in the log.
fn kind(code: Code) -> Kind {
    match code {
        Code::ResourceExhausted => Kind::Rate,
        Code::FailedPrecondition => Kind::Version,
        Code::DeadlineExceeded => Kind::Slow,
        Code::PermissionDenied | Code::Unavailable => Kind::Call,
        // Of tonic: unknown methods, what does not decode, what is too large.
        _ => Kind::Malformed,
    }
}

/// Lets a client read the alert: what it has sent in the meantime would otherwise turn our close
/// into a reset, which overtakes the alert.
pub(crate) async fn linger(mut tcp: TcpStream) {
    let mut ignored = [0; 1024];
    let until_closed = async {
        let mut octets = 0;
        tcp.shutdown().await?;
        while octets < MAX_MESSAGE {
            match tcp.read(&mut ignored).await? {
                0 => break,
                read => octets += read,
            }
        }
        Ok::<(), io::Error>(())
    };
    // Whether it reads is up to the client.
    let _ = timeout(LINGER, until_closed).await;
}

pub(crate) fn handshake_failure(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    tls.map_or_else(|| error.to_string(), explain)
}

/// The far end of a connection.
struct Client {
    /// The first one of `partners`, which stands for all of them.
    first: Arc<str>,
    partners: Vec<Arc<str>>,
    fingerprint: Fingerprint,
    edition: u64,
    address: SocketAddr,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first)?;
        match self.partners.len() {
            0 | 1 => Ok(()),
            all => write!(f, " or another of {all} with its certificate"),
        }
    }
}

/// One call.
struct Call<H> {
    handler: Arc<H>,
    client: Arc<Client>,
    /// Once it is known, for the log.
    label: OnceLock<String>,
}

#[tonic::async_trait]
impl<H: Handler> PeerKeyService for Call<H> {
    async fn exchange(
        &self,
        request: tonic::Request<v1::ExchangeRequest>,
    ) -> Result<tonic::Response<v1::ExchangeResponse>, Status> {
        let v1::ExchangeRequest {
            version,
            view,
            label,
        } = request.into_inner();
        if !VERSIONS.contains(&version) {
            return Err(unknown_version(version));
        }
        if label.is_empty() || label.len() > MAX_LABEL {
            let reason = format!("the label has not 1 to {MAX_LABEL} octets");
            return Err(Status::invalid_argument(reason));
        }
        let label = self.label.get_or_init(|| label).clone();
        let message = wire::from_wire(view.as_ref())
            .map_err(|malformed| Status::invalid_argument(malformed.to_string()))?;
        let caller = Caller {
            partners: self.client.partners.clone(),
            label,
            fingerprint: self.client.fingerprint,
            edition: self.client.edition,
            address: self.client.address,
        };
        let answer = self.handler.exchange(caller, message).await?;
        let view = Some(wire::to_wire(&answer));
        Ok(tonic::Response::new(v1::ExchangeResponse { version, view }))
    }
}

fn unknown_version(asked: u32) -> Status {
    let (lowest, highest) = (VERSIONS.start(), VERSIONS.end());
    let reason = format!("version {asked} is not served, only {lowest} to {highest}");
    let mut metadata = MetadataMap::new();
    if let Ok(served) = format!("{lowest}-{highest}").parse() {
        metadata.insert(VERSIONS_METADATA, served);
    }
    Status::with_metadata(Code::FailedPrecondition, reason, metadata)
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid(reason) => Self::invalid_argument(reason),
            Refused::Denied(reason) => Self::permission_denied(reason),
            Refused::Unavailable(reason) => Self::unavailable(reason),
        }
    }
}
