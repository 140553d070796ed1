//! Where the API is served over TCP, and who gets as far as a call: TLS 1.3 with certificates at
//! both ends.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::peer::{
    Admission, Entered, Kind, Limits, Origin, RefusalLog, handshake_failure, linger,
};
use crate::roles::Identity;
use crate::tls::{TlsError, TlsFiles, dns_names};

/// Connections whose handshake is under way. The newest closes the oldest one of the source that
/// has most.
const HANDSHAKES: usize = 64;
/// Of these, from one source (IPv4 address or IPv6 /64).
const HANDSHAKES_EACH: usize = 16;
/// Longest time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest time that something sent may stay unacknowledged, in milliseconds.
const UNACKNOWLEDGED_MS: u32 = 30_000;
/// Connections that the kernel completes before we take them.
const BACKLOG: i32 = 128;

/// Why the API cannot be served over TCP.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// An address cannot be listened on.
    #[error("cannot serve the API on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The certificate that callers over TCP see, and whose certificates they may have. All copies are
/// one.
#[derive(Clone)]
pub struct ServerTls(Arc<RwLock<Arc<ServerConfig>>>);

/// Files for [`ServerTls`] that have been read.
pub struct FreshTls(Arc<ServerConfig>);

impl FreshTls {
    /// What `files` hold now.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(files.server()?)))
    }
}

impl ServerTls {
    fn new(FreshTls(config): FreshTls) -> Self {
        Self(Arc::new(RwLock::new(config)))
    }

    /// For all handshakes from now on; connections that there are stay.
    pub fn replace(&self, FreshTls(config): FreshTls) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn acceptor(&self) -> TlsAcceptor {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&config))
    }
}

/// Listening TCP sockets, not yet served.
pub struct TcpApi {
    listeners: Vec<TcpListener>,
    tls: ServerTls,
}

impl TcpApi {
    /// Listens on every address of `listen`. `[::]` means IPv6 only. An address that no interface
    /// has is taken all the same: it may come with the network, which comes after the sidecar.
    ///
    /// # Errors
    /// When a file cannot be used or an address cannot be listened on; then none is.
    pub fn bind(listen: &[SocketAddr], files: &TlsFiles) -> Result<Self, TcpError> {
        let tls = ServerTls::new(FreshTls::read(files)?);
        let listener =
            |&address| listener(address).map_err(|source| TcpError::Listen { address, source });
        let listeners = listen.iter().map(listener).collect::<Result<_, _>>()?;
        Ok(Self { listeners, tls })
    }

    /// What callers see, to be replaced while it is served.
    #[must_use]
    pub fn tls(&self) -> ServerTls {
        self.tls.clone()
    }

    /// The addresses it listens on, with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.iter();
        listeners
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }

    /// For the running tokio runtime: the listeners, and what takes their connections in.
    pub(crate) fn open(self) -> Result<(Vec<tokio::net::TcpListener>, Arc<Door>), TcpError> {
        let open = |listener: TcpListener| {
            let address = listener.local_addr();
            tokio::net::TcpListener::from_std(listener).map_err(|source| TcpError::Listen {
                address: address.unwrap_or_else(|_| SocketAddr::from(([0; 4], 0))),
                source,
            })
        };
        let listeners = self
            .listeners
            .into_iter()
            .map(open)
            .collect::<Result<_, _>>()?;
        Ok((listeners, Arc::new(Door::new(self.tls))))
    }
}

impl fmt::Debug for TcpApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpApi").field(&self.addresses()).finish()
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        // 0.0.0.0 and [::] can be listened on side by side.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    let bound = bind(socket.as_raw_fd(), &SockaddrStorage::from(address));
    if bound == Err(Errno::EADDRNOTAVAIL) {
        tracing::warn!(%address, "no interface has the address of the API yet");
        // Linux takes the option of IPv4 for IPv6, too.
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    } else {
        bound?;
    }
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

/// Who has come in, by its certificate.
pub(crate) type Entrant = (TlsStream<TcpStream>, Identity);

/// Where handshakes are made.
pub(crate) struct Door {
    tls: ServerTls,
    admission: Arc<Admission>,
    refusals: RefusalLog,
}

impl Door {
    fn new(tls: ServerTls) -> Self {
        Self {
            tls,
            admission: Arc::new(Admission::new(Limits {
                connections: HANDSHAKES,
                strangers: HANDSHAKES,
                pending_per_source: HANDSHAKES_EACH,
                ..Limits::default()
            })),
            refusals: RefusalLog::new("API connection"),
        }
    }

    /// A place for a handshake. Connections have to ask in the order in which they came: the
    /// newest takes the place of the oldest.
    pub(crate) fn admit(&self, from: SocketAddr) -> Option<Entered> {
        match self.admission.enter(from.ip(), 0) {
            Ok(entered) => Some(entered),
            Err(full) => {
                self.refuse(Kind::Room, from, &full);
                None
            }
        }
    }

    /// Makes the handshake; nothing when it fails, takes too long, or has to make room for others.
    pub(crate) async fn enter(
        &self,
        tcp: TcpStream,
        from: SocketAddr,
        (_place, evicted): Entered,
    ) -> Option<Entrant> {
        // What the kernel does not take costs the caller no more than the time to notice.
        let _ = setsockopt(&tcp, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS);
        let accepted = async {
            match self.tls.acceptor().accept(tcp).into_fallible().await {
                Ok(tls) => Some(tls),
                Err((error, tcp)) => {
                    self.refuse(Kind::Handshake, from, &handshake_failure(&error));
                    linger(tcp).await;
                    None
                }
            }
        };
        let tls = tokio::select! {
            tls = timeout(HANDSHAKE, accepted) => match tls {
                Ok(tls) => tls?,
                Err(_) => {
                    let reason = format!("no handshake within {HANDSHAKE:?}");
                    self.refuse(Kind::Silence, from, &reason);
                    return None;
                }
            },
            _ = evicted => {
                let reason = "closed before its handshake, to make room for newer connections";
                self.refuse(Kind::Room, from, &reason);
                return None;
            }
        };
        let certificate = tls.get_ref().1.peer_certificates()?.first()?;
        let identity = Identity::Certificate {
            names: dns_names(certificate),
            from: from.ip().to_canonical(),
        };
        Some((tls, identity))
    }

    fn refuse(&self, kind: Kind, from: SocketAddr, reason: &dyn fmt::Display) {
        self.refusals
            .note(kind, Origin::Stranger, Some(from), reason);
    }
}
