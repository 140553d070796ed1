//! The operator's side of the API.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::bytes::BytesMut;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, Error as Tls};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use crate::peer::{self, EndpointError, explain};
use crate::tls::{TlsError, TlsFiles};
use crate::v1::operator_service_client::OperatorServiceClient;

/// A client of a sidecar.
pub type Client = OperatorServiceClient<Channel>;

/// Longest time to connect, and to wait for an answer unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest answer a client takes, in octets: a list of some 200,000 sessions.
const MAX_ANSWER: usize = 32 << 20;

/// Octets that are read of a new connection, to see whether there are any.
const FIRST: usize = 1 << 10;

/// Where a sidecar is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// On this machine.
    Unix(PathBuf),
    /// Over TCP with mutual TLS.
    Tcp {
        /// Host (a name, an IPv4 address, or an IPv6 address in brackets) and port.
        address: String,
        /// The name its certificate is for; nothing for the host of the address.
        server_name: Option<String>,
        /// The caller's certificate and key, and the authority of the sidecar's certificate.
        tls: TlsFiles,
    },
}

impl From<&Path> for Target {
    fn from(socket: &Path) -> Self {
        Self::Unix(socket.to_owned())
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The files that TLS needs cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address makes no sense.
    #[error("{0:?} {error}", error = EndpointError)]
    Address(String),
    /// This cannot be the name in a certificate.
    #[error("{0:?} cannot be the name in a certificate")]
    ServerName(String),
    /// Nothing listens there, or it does not let us in. The innermost source says why.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}

/// Connects to the sidecar at `target`. Calls get DEADLINE_EXCEEDED after 5 s without an answer.
///
/// # Errors
/// When nothing listens there, or it may not be used.
pub async fn connect(target: &Target) -> Result<Client, ConnectError> {
    connect_for(target, PATIENCE, PATIENCE).await
}

/// The same, waiting for so long to be connected, and for calls that may take as long as `answer`.
/// Streams may last longer.
///
/// # Errors
/// When nothing listens there, or it may not be used.
pub async fn connect_for(
    target: &Target,
    connected: Duration,
    answer: Duration,
) -> Result<Client, ConnectError> {
    let channel = channel(target, connected, answer).await?;
    Ok(OperatorServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

pub(crate) async fn channel(
    target: &Target,
    connected: Duration,
    answer: Duration,
) -> Result<Channel, ConnectError> {
    let patient = |endpoint: Endpoint| endpoint.connect_timeout(connected).timeout(answer);
    match target {
        Target::Unix(socket) => {
            let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
            Ok(patient(endpoint).connect().await?)
        }
        Target::Tcp {
            address,
            server_name,
            tls,
        } => {
            let wrong = |_| ConnectError::Address(address.clone());
            let sidecar: peer::Endpoint = address.parse().map_err(wrong)?;
            let name = server_name.as_deref().unwrap_or_else(|| sidecar.host());
            let connector = Connector {
                address: sidecar.to_string(),
                name: ServerName::try_from(name.to_owned())
                    .map_err(|_| ConnectError::ServerName(name.to_owned()))?,
                tls: TlsConnector::from(Arc::new(tls.client()?)),
            };
            // Only the connector knows where the sidecar is; HTTP/2 wants a name nevertheless.
            let endpoint = Endpoint::from_static("https://ao-sidecar");
            Ok(patient(endpoint).connect_with_connector(connector).await?)
        }
    }
}

/// Makes connections with TLS.
#[derive(Clone)]
struct Connector {
    address: String,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<Begun>> {
        let tcp = TcpStream::connect(&self.address).await?;
        // An answer waits for nothing; where it cannot be set it comes a little later.
        let _ = tcp.set_nodelay(true);
        let mut tls = self.tls.connect(self.name, tcp).await.map_err(in_words)?;
        // Whether our certificate is taken is seen after the handshake: then the sidecar begins
        // with HTTP/2, without waiting for us.
        let mut first = BytesMut::with_capacity(FIRST);
        if tls.read_buf(&mut first).await.map_err(in_words)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(TokioIo::new(Begun { first, tls }))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Begun>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Begun>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// Why TLS failed, in words.
fn in_words(error: io::Error) -> io::Error {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Tls>());
    let text = match tls {
        None => return error,
        Some(Tls::AlertReceived(alert)) => match alert {
            AlertDescription::CertificateRequired => {
                "the sidecar wants a certificate, and got none".to_owned()
            }
            AlertDescription::UnknownCA => {
                "the sidecar does not know the authority of our certificate".to_owned()
            }
            AlertDescription::CertificateExpired => {
                "the sidecar says that our certificate has expired".to_owned()
            }
            alert => format!("the sidecar refuses our certificate or our TLS: {alert:?}"),
        },
        Some(tls) => format!("the sidecar's end of TLS is refused: {}", explain(tls)),
    };
    io::Error::new(io::ErrorKind::ConnectionAborted, text)
}

/// A connection whose far end has begun to send.
struct Begun {
    /// What has come, and is not read yet.
    first: BytesMut,
    tls: TlsStream<TcpStream>,
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}
