//! `aoctl`: asks a running sidecar and shows the answer as a table or as JSON.

mod events;
mod keys;
mod table;
mod time;
mod view;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use grpc_api::v1::{
    AbortRolloverRequest, ForceRolloverRequest, GetCountersRequest, GetIdentityRequest,
    GetRolloverRequest, GetStatusRequest, ListKeysRequest, ListPeersRequest, ListSessionsRequest,
    StartRolloverRequest,
};
use serde::Serialize;
use tonic::{Code, Status};

pub use self::events::{Watch, watch};
use self::keys::{Done, Identity, Keys, OneRollover, Rollovers};
use self::view::{Counters, Peers, Sessions, StatusView};

/// What to ask, or to have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The whole in one answer.
    Status,
    /// TCP sessions.
    Sessions,
    /// Configured peers.
    Peers,
    /// Counters of peers, queues and firewall.
    Counters,
    /// Keys of a peer, or of all.
    Keys(Option<String>),
    /// How the key changes of a peer stand, or of all automatic ones.
    Rollover(Option<String>),
    /// Begin a key change.
    StartRollover {
        /// With this peer.
        peer: String,
        /// The keys may be known to others.
        compromised: bool,
    },
    /// Give up a key change with this peer.
    AbortRollover(String),
    /// Delete superseded keys of this peer at once.
    ForceRollover(String),
    /// What far ends know the sidecar by.
    Identity,
}

/// How to show the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answers on the socket.
    #[error("cannot reach ao-sidecar on {}: {reason}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The sidecar was there, and is no more.
    #[error("ao-sidecar on {} went away: {reason}", socket.display())]
    Gone {
        /// The socket.
        socket: PathBuf,
        /// What was seen of it.
        reason: String,
    },
    /// The sidecar refused to answer.
    #[error("ao-sidecar refused: {0}")]
    Refused(String),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

/// Asks the sidecar on `socket` and writes the answer to `out`.
///
/// # Errors
/// When the sidecar cannot be reached, refuses, or `out` cannot be written.
pub fn ask(
    socket: &Path,
    question: Question,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    runtime()?.block_on(answer(socket, question, format, out))
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

async fn answer(
    socket: &Path,
    question: Question,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    let mut client = connect(socket).await?;
    let failed = |status: Status| failed(socket, &status);
    macro_rules! relay {
        ($call:ident($request:expr) as $shown:ty) => {{
            let answer = client.$call($request).await.map_err(failed)?;
            show(&<$shown>::from(answer.into_inner()), format, out)
        }};
    }
    match question {
        Question::Status => relay!(get_status(GetStatusRequest {}) as StatusView),
        Question::Sessions => relay!(list_sessions(ListSessionsRequest {}) as Sessions),
        Question::Peers => relay!(list_peers(ListPeersRequest {}) as Peers),
        Question::Counters => relay!(get_counters(GetCountersRequest {}) as Counters),
        Question::Keys(peer) => {
            let peer = peer.unwrap_or_default();
            relay!(list_keys(ListKeysRequest { peer }) as Keys)
        }
        Question::Rollover(None) => {
            relay!(get_rollover(GetRolloverRequest::default()) as Rollovers)
        }
        Question::Rollover(Some(peer)) => {
            relay!(get_rollover(GetRolloverRequest { peer }) as OneRollover)
        }
        Question::StartRollover { peer, compromised } => {
            relay!(start_rollover(StartRolloverRequest { peer, compromised }) as Done)
        }
        Question::AbortRollover(peer) => {
            relay!(abort_rollover(AbortRolloverRequest { peer }) as Done)
        }
        Question::ForceRollover(peer) => {
            relay!(force_rollover(ForceRolloverRequest { peer }) as Done)
        }
        Question::Identity => relay!(get_identity(GetIdentityRequest {}) as Identity),
    }
}

async fn connect(socket: &Path) -> Result<grpc_api::Client, ClientError> {
    grpc_api::connect(&socket.into())
        .await
        .map_err(|error| ClientError::Unreachable {
            socket: socket.to_owned(),
            reason: match io_error(&error) {
                Some(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                    format!("{cause}; run aoctl as root or as the sidecar's user")
                }
                Some(cause) => format!("{cause}; is it running, and is --socket right?"),
                None => error.to_string(),
            },
        })
}

/// The system's error at the bottom of another one.
fn io_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e io::Error> {
    let mut next = Some(error);
    let mut found = None;
    while let Some(error) = next {
        found = error.downcast_ref().or(found);
        next = error.source();
    }
    found
}

fn failed(socket: &Path, status: &Status) -> ClientError {
    // A status that was not sent but made here has a cause: the connection broke.
    let broken = std::error::Error::source(status).is_some();
    // The first is a sidecar that stops, the others one that hangs or is still starting.
    let unreachable = matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    );
    if broken || unreachable {
        ClientError::Unreachable {
            socket: socket.to_owned(),
            reason: status.message().to_owned(),
        }
    } else {
        ClientError::Refused(status.message().to_owned())
    }
}

/// An answer that can be shown both ways.
trait Answer: Serialize {
    fn table(&self, out: &mut dyn Write) -> io::Result<()>;
}

fn show(answer: &impl Answer, format: Format, out: &mut dyn Write) -> Result<(), ClientError> {
    match format {
        Format::Table => answer.table(out)?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, answer).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(out.flush()?)
}
