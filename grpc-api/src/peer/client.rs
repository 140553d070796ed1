//! Calls to a peer.

use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keymgr::identity::Fingerprint;
use keymgr::rollover::message::Message;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::http::{Request, Response, Uri};
use tonic::{Code, Status};

use super::trust::{explain, wrong_key};
use super::{
    Endpoint, MAX_MESSAGE, PeerIdentity, Trust, VERSIONS, VERSIONS_METADATA, common_version, tls,
    wire,
};
use crate::v1;
use crate::v1::peer_key_service_client::PeerKeyServiceClient;

/// Stands where TLS and HTTP want a name. Whom we talk to is decided by [`Trust`].
const NOBODY: &str = "ao-sidecar";

/// Longest time that something sent may stay unacknowledged, in milliseconds.
const UNACKNOWLEDGED_MS: u32 = 15_000;

/// Longest text of a peer that is shown, in characters.
const MAX_REASON: usize = 300;

/// Why a call failed. Nothing of the answer was taken over.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection came up.
    #[error("{endpoint} cannot be reached: {source}")]
    Unreachable {
        /// Whom we called.
        endpoint: Endpoint,
        /// What the system said.
        source: io::Error,
    },
    /// The call took longer than the caller allowed.
    #[error("{endpoint} gave no answer within {timeout:?}")]
    Timeout {
        /// Whom we called.
        endpoint: Endpoint,
        /// What was allowed.
        timeout: Duration,
    },
    /// Somebody else answered, or the peer has a new key.
    #[error("{endpoint} has the fingerprint {seen}, and not {expected} as configured")]
    WrongFingerprint {
        /// Whom we called.
        endpoint: Endpoint,
        /// The configured fingerprint.
        expected: Fingerprint,
        /// The fingerprint of the certificate presented.
        seen: Fingerprint,
    },
    /// The certificate presented, or the handshake, was not acceptable.
    #[error("{endpoint} is not trusted: {reason}")]
    Untrusted {
        /// Whom we called.
        endpoint: Endpoint,
        /// What is wrong.
        reason: String,
    },
    /// The peer ended the handshake, most likely for our certificate.
    #[error("{endpoint} refuses us ({reason}): is {ours} the fingerprint it is configured with?")]
    NotTrusted {
        /// Whom we called.
        endpoint: Endpoint,
        /// The alert (RFC 8446 §6.2).
        reason: String,
        /// Our own fingerprint.
        ours: Fingerprint,
    },
    /// There is no version of the protocol that both speak.
    #[error(
        "the peer speaks versions {} to {} of the protocol, and we {} to {}",
        theirs.start(), theirs.end(), ours.start(), ours.end()
    )]
    Version {
        /// What we speak.
        ours: RangeInclusive<u32>,
        /// What the peer speaks.
        theirs: RangeInclusive<u32>,
    },
    /// The peer answered with a reason instead of its view.
    #[error("the peer refused the call: {0}")]
    Rejected(String),
    /// The connection ended before the answer was complete.
    #[error("the connection to the peer was lost: {0}")]
    Lost(String),
    /// The answer is not one.
    #[error("the peer's answer is malformed: {0}")]
    Malformed(String),
}

/// Tells `message`, about the peering called `label`, to the sidecar at `endpoint` and returns what
/// it tells, on a connection of its own.
///
/// # Errors
/// When the peer cannot be reached within `timeout`, either end does not trust the other, or
/// there is no well-formed answer.
pub async fn exchange(
    endpoint: &Endpoint,
    identity: &PeerIdentity,
    trust: &Trust,
    label: &str,
    message: &Message,
    timeout: Duration,
) -> Result<Message, CallError> {
    let call = Call {
        endpoint,
        identity,
        trust,
        label,
        timeout,
        versions: VERSIONS,
    };
    tokio::time::timeout(timeout, call.exchange(message))
        .await
        .unwrap_or_else(|_| {
            Err(CallError::Timeout {
                endpoint: endpoint.clone(),
                timeout,
            })
        })
}

struct Call<'a> {
    endpoint: &'a Endpoint,
    identity: &'a PeerIdentity,
    trust: &'a Trust,
    label: &'a str,
    timeout: Duration,
    versions: RangeInclusive<u32>,
}

impl Call<'_> {
    async fn exchange(&self, message: &Message) -> Result<Message, CallError> {
        let (io, failure) = Watched::new(self.handshake(self.connect().await?).await?);
        let lost = |error: hyper::Error| CallError::Lost(error.to_string());
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(8 << 10)
            .handshake(TokioIo::new(io))
            .await
            .map_err(lost)?;
        let conversation = async {
            let answer = self.converse(sender, message).await;
            answer.map_err(|error| self.blame(error, &failure))
        };
        // The connection ends by itself once the sender, which the conversation owns, is gone.
        let (answer, _) = tokio::join!(conversation, connection);
        answer
    }

    /// Tries the addresses of the endpoint in turn, each for its share of the time.
    async fn connect(&self) -> Result<TcpStream, CallError> {
        let unreachable = |source| CallError::Unreachable {
            endpoint: self.endpoint.clone(),
            source,
        };
        let host = (self.endpoint.host(), self.endpoint.port());
        let addresses: Vec<_> = lookup_host(host).await.map_err(unreachable)?.collect();
        let attempts = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let share = self.timeout / attempts.saturating_add(1);
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    prepare(&tcp).map_err(unreachable)?;
                    return Ok(tcp);
                }
                Ok(Err(error)) => failure = error,
                Err(_) => failure = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(unreachable(failure))
    }

    async fn handshake(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, CallError> {
        let config =
            tls::client_config(self.identity, self.trust).map_err(|error| self.refused(&error))?;
        let name = ServerName::try_from(NOBODY).map_err(|_| CallError::Lost(NOBODY.into()))?;
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .map_err(|error| match tls_error(&error) {
                Some(tls) => self.refused(tls),
                None => CallError::Lost(error.to_string()),
            })
    }

    /// Calls in the newest version that we speak, and again in the newest that both do.
    async fn converse(&self, sender: Sender, message: &Message) -> Result<Message, CallError> {
        let origin = Uri::from_static("https://ao-sidecar");
        let mut client = PeerKeyServiceClient::with_origin(Channel(sender), origin)
            .max_decoding_message_size(MAX_MESSAGE);
        let mut version = *self.versions.end();
        loop {
            let view = Some(wire::to_wire(message));
            let label = self.label.to_owned();
            let request = v1::ExchangeRequest {
                version,
                view,
                label,
            };
            let status = match client.exchange(request).await {
                Ok(response) => return answer(&response.into_inner(), version),
                Err(status) => status,
            };
            let Some(theirs) = served_versions(&status) else {
                return Err(rejected(&status));
            };
            match common_version(&self.versions, &theirs) {
                Some(common) if common < version => version = common,
                _ => {
                    return Err(CallError::Version {
                        ours: self.versions.clone(),
                        theirs,
                    });
                }
            }
        }
    }

    /// A lost connection was ended by an alert, when TLS saw one.
    fn blame(&self, error: CallError, failure: &OnceLock<rustls::Error>) -> CallError {
        match (&error, failure.get()) {
            (CallError::Lost(_), Some(tls)) => self.refused(tls),
            _ => error,
        }
    }

    fn refused(&self, error: &rustls::Error) -> CallError {
        let endpoint = self.endpoint.clone();
        if let Some(key) = wrong_key(error) {
            let (expected, seen) = (key.expected, key.seen);
            return CallError::WrongFingerprint {
                endpoint,
                expected,
                seen,
            };
        }
        match error {
            rustls::Error::AlertReceived(alert) => CallError::NotTrusted {
                endpoint,
                reason: format!("{alert:?}"),
                ours: self.identity.fingerprint(),
            },
            error => CallError::Untrusted {
                endpoint,
                reason: explain(error),
            },
        }
    }
}

/// What is sent and not acknowledged ends the connection, even after the call was given up.
fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, TcpUserTimeout, &UNACKNOWLEDGED_MS)?;
    Ok(())
}

fn answer(response: &v1::ExchangeResponse, version: u32) -> Result<Message, CallError> {
    if response.version != version {
        let problem = format!("version {} instead of {version}", response.version);
        return Err(CallError::Malformed(problem));
    }
    wire::from_wire(response.view.as_ref())
        .map_err(|malformed| CallError::Malformed(malformed.to_string()))
}

/// The versions that the peer serves, if they were the reason to refuse.
fn served_versions(status: &Status) -> Option<RangeInclusive<u32>> {
    let text = status.metadata().get(VERSIONS_METADATA)?.to_str().ok()?;
    let (lowest, highest) = text.split_once('-')?;
    let versions = lowest.parse().ok()?..=highest.parse().ok()?;
    (status.code() == Code::FailedPrecondition && !versions.is_empty()).then_some(versions)
}

fn rejected(status: &Status) -> CallError {
    // Only what tonic made itself has a source; what the peer sent has none.
    match std::error::Error::source(status) {
        Some(source) => CallError::Lost(source.to_string()),
        None => CallError::Rejected(format!(
            "{:?}: {}",
            status.code(),
            printable(status.message())
        )),
    }
}

/// A peer's words, fit for a log: bounded and on one line.
fn printable(text: &str) -> String {
    let shown = text.chars().take(MAX_REASON);
    shown
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

type Sender = http2::SendRequest<Body>;

/// An HTTP/2 connection as tonic wants it.
struct Channel(Sender);

impl GrpcService<Body> for Channel {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A TLS stream that remembers why it failed: with TLS 1.3 a client learns only with the first
/// answer whether its certificate was accepted, and HTTP/2 keeps the alert to itself.
struct Watched {
    tls: TlsStream<TcpStream>,
    failure: Arc<OnceLock<rustls::Error>>,
}

impl Watched {
    fn new(tls: TlsStream<TcpStream>) -> (Self, Arc<OnceLock<rustls::Error>>) {
        let failure = Arc::new(OnceLock::new());
        let watched = Self {
            tls,
            failure: Arc::clone(&failure),
        };
        (watched, failure)
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Some(error) = result.as_ref().err().and_then(tls_error) {
            // Only the first failure explains the others.
            let _: Result<(), rustls::Error> = self.failure.set(error.clone());
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.tls).poll_read(context, buffer));
        Poll::Ready(self.note(result))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.tls).poll_write(context, octets));
        Poll::Ready(self.note(result))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.tls).poll_flush(context));
        Poll::Ready(self.note(result))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.tls).poll_shutdown(context));
        Poll::Ready(self.note(result))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;
    use crate::peer::{Caller, Handler, Limits, Partner, Partners, PeerServer, Refused};

    struct Echo;

    impl Handler for Echo {
        async fn exchange(&self, _: Caller, message: Message) -> Result<Message, Refused> {
            Ok(message)
        }
    }

    fn message() -> Message {
        Message {
            instance: keymgr::rollover::message::Instance([1; 16]),
            yours: None,
            generations: Vec::new(),
            offer: None,
            answer: None,
            refusal: None,
            overlap: Duration::ZERO,
        }
    }

    /// A call of a release that speaks `versions`, at this one.
    async fn call_speaking(versions: RangeInclusive<u32>) -> Result<Message, CallError> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["a".to_owned()]).unwrap();
        let key = signing_key.serialize_der();
        let identity = PeerIdentity::new(vec![cert.der().to_vec()], &key).unwrap();
        let trust = Trust::Pinned(identity.fingerprint());
        let addresses = Vec::new();
        let partner = Partner {
            name: "a".into(),
            trust: trust.clone(),
            addresses,
        };
        let listen = ["127.0.0.1:0".parse().unwrap()];
        let partners = Arc::new(Partners::new(vec![partner]));
        let server = PeerServer::bind(&listen, &identity, partners, Limits::default()).unwrap();
        let endpoint = server.addresses()[0].into();
        let serving = tokio::spawn(server.serve(Arc::new(Echo), std::future::pending()));
        let call = Call {
            endpoint: &endpoint,
            identity: &identity,
            trust: &trust,
            label: "ipv4",
            timeout: Duration::from_secs(10),
            versions,
        };
        let answer = call.exchange(&message()).await;
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn a_later_release_falls_back_to_what_this_one_speaks() {
        assert_eq!(call_speaking(1..=7).await.unwrap(), message());
        let error = call_speaking(2..=7).await.unwrap_err();
        assert!(
            matches!(&error, CallError::Version { theirs, .. } if *theirs == VERSIONS),
            "{error}"
        );
        let error = call_speaking(0..=0).await.unwrap_err();
        assert!(matches!(error, CallError::Version { .. }), "{error}");
    }

    #[test]
    fn a_peers_words_fit_on_a_line() {
        assert_eq!(printable("a\n\x1b[31mb\u{85}"), "a  [31mb ");
        assert_eq!(printable(&"é".repeat(999)).chars().count(), MAX_REASON);
    }

    #[test]
    fn versions_are_read_from_refusals_for_the_version_only() {
        let status = |code, text: &'static str| {
            let mut status = Status::new(code, "");
            let value = text.parse().unwrap();
            status.metadata_mut().insert(VERSIONS_METADATA, value);
            served_versions(&status)
        };
        assert_eq!(status(Code::FailedPrecondition, "2-5"), Some(2..=5));
        assert_eq!(status(Code::Internal, "2-5"), None);
        for bad in ["", "2", "5-2", "-", "a-b", "1-99999999999"] {
            assert_eq!(status(Code::FailedPrecondition, bad), None, "{bad}");
        }
    }
}
