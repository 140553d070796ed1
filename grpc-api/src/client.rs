//! The operator's side of the API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::tcp::{TcpError, TlsFiles};
use crate::v1::operator_service_client::OperatorServiceClient;

/// A client of a sidecar.
pub type Client = OperatorServiceClient<Channel>;

/// Longest time to connect, and to wait for an answer unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// Largest answer a client takes, in octets: a list of some 200,000 sessions.
const MAX_ANSWER: usize = 32 << 20;

/// Where a sidecar is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// On this machine.
    Unix(PathBuf),
    /// Over TCP with mutual TLS.
    Tcp {
        /// Host (a name, an IPv4 address, or an IPv6 address in brackets) and port.
        address: String,
        /// What the sidecar's certificate is for; nothing for the host.
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
    Tls(#[from] TcpError),
    /// The address makes no sense.
    #[error("{0:?} is no address: give HOST:PORT, an IPv6 address in brackets")]
    Address(String),
    /// Nothing listens there, or it does not let us in. Its innermost source says why.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}

/// Connects to the sidecar at `target`. Calls get DEADLINE_EXCEEDED after 5 s without an answer.
///
/// # Errors
/// When nothing listens there, or it may not be used.
pub async fn connect(target: &Target) -> Result<Client, ConnectError> {
    connect_for(target, PATIENCE).await
}

/// The same for calls that may take as long as `answer`. Streams may last longer.
///
/// # Errors
/// When nothing listens there, or it may not be used.
pub async fn connect_for(target: &Target, answer: Duration) -> Result<Client, ConnectError> {
    let channel = match target {
        Target::Unix(socket) => {
            Endpoint::from_shared(format!("unix:{}", socket.display()))?
                .connect_timeout(PATIENCE)
                .timeout(answer)
                .connect()
                .await?
        }
        Target::Tcp { address, .. } => return Err(ConnectError::Address(address.clone())),
    };
    Ok(OperatorServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}
