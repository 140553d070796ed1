//! The gRPC APIs: generated code, conversions, access control, and how they are served. Operators
//! use a Unix socket; the sidecars of peers use TLS, in [`peer`].
//!
//! They hold no policy: what they answer comes from a [`Source`] or a [`peer::Handler`].
#![forbid(unsafe_code)]

mod convert;
pub mod operator;
pub mod peer;
mod service;
mod socket;

pub use service::{PeerFacts, Snapshot, Source, serve};
pub use socket::{ApiSocket, SocketError};

/// Messages, client and server generated from `proto/aosidecar/v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic
)]
pub mod v1 {
    tonic::include_proto!("aosidecar.v1");
}

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use v1::operator_service_client::OperatorServiceClient;

/// A client of a sidecar.
pub type Client = OperatorServiceClient<Channel>;

/// Longest time a client waits for an answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer a client takes, in octets: a list of some 200,000 sessions.
const MAX_ANSWER: usize = 32 << 20;

/// Connects to the sidecar that serves `socket`.
///
/// # Errors
/// When nothing listens there, or the file may not be opened.
pub async fn connect(socket: &Path) -> Result<Client, tonic::transport::Error> {
    let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))?
        .connect_timeout(CLIENT_TIMEOUT)
        .timeout(CLIENT_TIMEOUT)
        .connect()
        .await?;
    Ok(OperatorServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}
