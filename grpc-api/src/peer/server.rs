//! Where peers call.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keymgr::identity::Fingerprint;
use keymgr::rollover::message::Message;
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::limits::{Admission, CallRate, Full, Limits, Place};
use super::refusals::{Kind, RefusalLog};
use super::trust::{Partners, explain};
use super::{MAX_MESSAGE, PeerIdentity, VERSIONS, VERSIONS_METADATA, tls, wire};
use crate::v1;
use crate::v1::peer_key_service_server::{PeerKeyService, PeerKeyServiceServer};

/// Connections that the kernel completes before we take them.
const BACKLOG: u32 = 1024;
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
    Tls(#[from] rustls::Error),
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
            refusals: RefusalLog::default(),
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
                Ok((tcp, from)) => tokio::select! {
                    () = self.admit(tcp, from, life.clone()) => {}
                    () = life.stop() => return,
                },
                Err(error) => {
                    self.refusals.note(Kind::Accept, None, &error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Partners are so many that all of them may call at once: while there is no room for one, the
    /// kernel keeps the others.
    async fn admit(self: &Arc<Self>, tcp: TcpStream, from: SocketAddr, life: Life) {
        let expected = self.partners.at(from.ip());
        loop {
            match self.admission.enter(from.ip(), expected) {
                Ok((place, evicted)) => {
                    tokio::spawn(Arc::clone(self).connection(tcp, from, place, evicted, life));
                    return;
                }
                Err(Full::Connections) if expected > 0 => self.admission.freed().await,
                Err(full) => return self.refusals.note(Kind::Room, Some(from), &full),
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        tcp: TcpStream,
        from: SocketAddr,
        mut place: Place,
        evicted: oneshot::Receiver<()>,
        mut life: Life,
    ) {
        let tls = tokio::select! {
            tls = self.handshake(tcp, from) => tls,
            _ = evicted => {
                let reason = "closed before its handshake, to make room for newer connections";
                return self.refusals.note(Kind::Room, Some(from), &reason);
            }
            () = life.stop() => return,
        };
        let Some(tls) = tls else { return };
        let caller = match self.caller(&tls, from) {
            Ok(caller) => caller,
            Err(error) => {
                return self
                    .refusals
                    .note(Kind::Handshake, Some(from), &explain(&error));
            }
        };
        let Some(partner) = caller.partners.first().cloned() else {
            return;
        };
        if let Err(full) = place.authenticated(&partner) {
            let reason = format!("{partner}: {full}");
            return self.refusals.note(Kind::Room, Some(from), &reason);
        }
        let calls = Calls {
            shared: Arc::clone(&self),
            caller,
            partner,
        };
        self.serve(tls, calls, &mut life).await;
    }

    async fn handshake(&self, tcp: TcpStream, from: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let accepted = async {
            match self.tls.accept(tcp).into_fallible().await {
                Ok(tls) => Some(tls),
                Err((error, tcp)) => {
                    self.refusals
                        .note(Kind::Handshake, Some(from), &handshake_failure(&error));
                    linger(tcp).await;
                    None
                }
            }
        };
        timeout(self.limits.handshake, accepted)
            .await
            .unwrap_or_else(|_| {
                let reason = format!("no handshake within {:?}", self.limits.handshake);
                self.refusals.note(Kind::Silence, Some(from), &reason);
                None
            })
    }

    fn caller(
        &self,
        tls: &TlsStream<TcpStream>,
        from: SocketAddr,
    ) -> Result<Caller, rustls::Error> {
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let (fingerprint, partners) = self.partners.identify(chain, UnixTime::now())?;
        let address = from;
        Ok(Caller {
            partners,
            label: String::new(),
            fingerprint,
            address,
        })
    }

    async fn serve(&self, tls: TlsStream<TcpStream>, calls: Calls<H>, life: &mut Life) {
        let from = calls.caller.address;
        let longest = self.limits.call;
        let service = PeerKeyServiceServer::new(calls).max_decoding_message_size(MAX_MESSAGE);
        let service = service_fn(move |request| {
            let mut service = service.clone();
            async move {
                let answer = timeout(longest, service.call(request)).await;
                answer.unwrap_or_else(|_| Ok(Status::deadline_exceeded("too slow").into_http()))
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
        let grace = tokio::select! {
            // How it ended is the caller's business: each call was answered or logged.
            _ = connection.as_mut() => return,
            () = tokio::time::sleep(self.limits.connection) => longest,
            () = life.stop() => DRAIN,
        };
        connection.as_mut().graceful_shutdown();
        if timeout(grace, connection).await.is_err() {
            self.refusals.note(
                Kind::Slow,
                Some(from),
                &"the connection did not end in time",
            );
        }
    }
}

/// Lets a client read the alert: what it has sent in the meantime would otherwise turn our close
/// into a reset, which overtakes the alert.
async fn linger(mut tcp: TcpStream) {
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

fn handshake_failure(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    tls.map_or_else(|| error.to_string(), explain)
}

/// The calls of one connection.
struct Calls<H> {
    shared: Arc<Shared<H>>,
    caller: Caller,
    partner: Arc<str>,
}

impl<H: Handler> Calls<H> {
    async fn answer(&self, request: &v1::ExchangeRequest) -> Result<Message, (Kind, Status)> {
        if !self.shared.rate.allows(&self.partner, Instant::now()) {
            let status = Status::resource_exhausted("too many calls; wait a second");
            return Err((Kind::Rate, status));
        }
        if !VERSIONS.contains(&request.version) {
            return Err((Kind::Version, unknown_version(request.version)));
        }
        let message = wire::from_wire(request.view.as_ref()).map_err(|malformed| {
            (
                Kind::Malformed,
                Status::invalid_argument(malformed.to_string()),
            )
        })?;
        if request.label.is_empty() || request.label.len() > MAX_LABEL {
            let reason = format!("the label has not 1 to {MAX_LABEL} octets");
            return Err((Kind::Malformed, Status::invalid_argument(reason)));
        }
        let caller = Caller {
            label: request.label.clone(),
            ..self.caller.clone()
        };
        let answer = self.shared.handler.exchange(caller, message).await;
        answer.map_err(|refused| (Kind::Call, refused.into()))
    }
}

#[tonic::async_trait]
impl<H: Handler> PeerKeyService for Calls<H> {
    async fn exchange(
        &self,
        request: tonic::Request<v1::ExchangeRequest>,
    ) -> Result<tonic::Response<v1::ExchangeResponse>, Status> {
        let request = request.into_inner();
        let version = request.version;
        match self.answer(&request).await {
            Ok(message) => {
                let view = Some(wire::to_wire(&message));
                Ok(tonic::Response::new(v1::ExchangeResponse { version, view }))
            }
            Err((kind, status)) => {
                let reason = format!("{}: {}", self.partner, status.message());
                self.shared
                    .refusals
                    .note(kind, Some(self.caller.address), &reason);
                Err(status)
            }
        }
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
