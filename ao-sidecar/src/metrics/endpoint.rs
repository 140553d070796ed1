//! Answers scrapers: `GET /metrics` over HTTP/1.1, and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use grpc_api::operator::{EventLog, KeyControl};
use grpc_api::{Snapshot, Source};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{IpFreebind, Ipv6V6Only};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use super::history::History;
use super::page::{self, Memory, Moment};

/// Where the page is.
const PATH: &str = "/metrics";
/// What the page is, as OpenMetrics says it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Scrapers that are talked to at once; more wait until one is done.
pub(super) const MAX_CONNECTIONS: usize = 16;
/// Connections that wait for that.
const BACKLOG: u32 = 16;
/// Longest time for a request to arrive.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a request and its answer, together.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest request, in octets: the least that hyper can be told.
const MAX_REQUEST: usize = 8192;
/// Most headers of a request.
const MAX_HEADERS: usize = 32;
/// How long a page is answered with again: scrapers cannot load the daemon.
pub(super) const PAGE_AGE: Duration = Duration::from_secs(1);
/// How long it is answered with in place of one that would lack something.
const PAGE_KEPT: Duration = Duration::from_secs(60);
/// After a failure to take a connection, which is for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "metrics cannot be served at {address}: {source}{}",
    if source.kind() == io::ErrorKind::AddrInUse {
        "; does another sidecar or program listen there? Set [metrics] listen to another port"
    } else {
        ""
    }
)]
pub struct MetricsError {
    /// Where.
    address: SocketAddr,
    /// What the system says.
    source: io::Error,
}

/// The address that scrapers ask, taken and not served yet.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
}

impl Endpoint {
    /// Listens at `address`. Must be called inside a runtime.
    ///
    /// An address that no interface has is taken all the same: it comes with the network, which
    /// comes after the sidecar.
    ///
    /// # Errors
    /// When somebody else listens there, or the system refuses for another reason.
    pub fn bind(address: SocketAddr) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError { address, source };
        let listener = listener(address, false).or_else(|error| {
            if error.kind() != io::ErrorKind::AddrNotAvailable {
                return Err(error);
            }
            warn!(%address, "no interface has the address of the metrics yet");
            listener(address, true)
        });
        Ok(Self {
            listener: listener.map_err(failed)?,
        })
    }

    /// Where it listens, with the port that the system chose if it was to.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers scrapers with what `source` and `control` know and `log` tells, until `stop`
    /// completes.
    pub async fn serve<S: Source, K: KeyControl>(
        self,
        source: Arc<S>,
        control: Arc<K>,
        log: EventLog,
        stop: impl Future<Output = ()>,
    ) {
        let scraped = Arc::new(Scraped::new(source, control));
        tokio::select! {
            () = stop => info!("metrics closed"),
            () = scraped.history.follow(&log) => {}
            () = self.accept(&scraped) => {}
        }
    }

    async fn accept<S: Source, K: KeyControl>(&self, scraped: &Arc<Scraped<S, K>>) {
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&free).acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let scraped = Arc::clone(scraped);
                    tokio::spawn(async move {
                        talk(stream, from, scraped).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "a scraper could not be let in");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

fn listener(address: SocketAddr, free: bool) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // 0.0.0.0 and [::] can be listened on side by side.
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    if free {
        // Linux takes the option of IPv4 for IPv6, too.
        setsockopt(&socket, IpFreebind, &true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers one request.
async fn talk<S: Source, K: KeyControl>(
    stream: TcpStream,
    from: SocketAddr,
    scraped: Arc<Scraped<S, K>>,
) {
    let service = service_fn(|request| {
        let scraped = Arc::clone(&scraped);
        async move { Ok::<_, Infallible>(scraped.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_REQUEST)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%from, %error, "a scraper's connection broke"),
        Err(_) => debug!(%from, "a scraper was too slow"),
    }
}

/// What is scraped.
struct Scraped<S, K> {
    source: Arc<S>,
    control: Arc<K>,
    history: History,
    memory: Arc<Mutex<Memory>>,
    /// The last page, and when it was made. Held while one is made: whoever asks meanwhile gets
    /// the same.
    last: Arc<tokio::sync::Mutex<Option<(Instant, Bytes)>>>,
}

impl<S: Source, K: KeyControl> Scraped<S, K> {
    fn new(source: Arc<S>, control: Arc<K>) -> Self {
        Self {
            source,
            control,
            history: History::default(),
            memory: Arc::default(),
            last: Arc::default(),
        }
    }

    async fn answer(self: &Arc<Self>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return plain(StatusCode::NOT_FOUND, "there is /metrics only\n");
        }
        // The answer to HEAD is that to GET; its body is not sent.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD only\n");
            refusal
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match self.page().await {
            Some(page) => {
                let mut answer = Response::new(Full::new(page));
                answer
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
                answer
            }
            None => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the sidecar is starting or stopping\n",
            ),
        }
    }

    /// A scraper that goes away does not end the making of a page: else one who comes and goes could
    /// have any number of them made at once.
    async fn page(self: &Arc<Self>) -> Option<Bytes> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some((made, page)) = &*last
            && made.elapsed() < PAGE_AGE
        {
            return Some(page.clone());
        }
        let this = Arc::clone(self);
        let made = tokio::spawn(async move {
            let snapshot = this.snapshot().await?;
            // Counters that fall for a moment would be taken for new ones, and counted twice.
            if snapshot.report.partial
                && let Some((made, page)) = &*last
                && made.elapsed() < PAGE_KEPT
            {
                return Some(page.clone());
            }
            let page = Bytes::from(this.fresh_page(snapshot).await?);
            *last = Some((Instant::now(), page.clone()));
            Some(page)
        });
        made.await.ok()?
    }

    /// Takes one beside the runtime's thread, which signals and the API need.
    async fn snapshot(&self) -> Option<Snapshot> {
        let source = Arc::clone(&self.source);
        spawn_blocking(move || source.snapshot()).await.ok()?
    }

    async fn fresh_page(&self, snapshot: Snapshot) -> Option<String> {
        let moment = Moment {
            snapshot,
            rollovers: self.control.rollovers(None).await.ok()?,
            keys: self.control.keys(None).await.ok()?,
        };
        let counted = self.history.of_peers(&moment.peers());
        let memory = Arc::clone(&self.memory);
        let page = spawn_blocking(move || {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            page::text(moment, &mut memory, counted)
        });
        let page = page.await.ok()?;
        page.inspect_err(|error| error!(%error, "metrics cannot be written"))
            .ok()
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;
    answer
}
