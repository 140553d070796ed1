//! `aoctl`: asks a running sidecar and shows the answer as a table or as JSON.

mod table;
mod view;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use grpc_api::v1::{GetCountersRequest, GetStatusRequest, ListPeersRequest, ListSessionsRequest};
use serde::Serialize;
use tonic::{Code, Status};

use self::view::{Counters, Peers, Sessions, StatusView};

/// What to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The whole in one answer.
    Status,
    /// TCP sessions.
    Sessions,
    /// Configured peers.
    Peers,
    /// Counters of peers, queues and firewall.
    Counters,
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match question {
        Question::Status => show(&runtime.block_on(status(socket))?, format, out),
        Question::Sessions => show(&runtime.block_on(sessions(socket))?, format, out),
        Question::Peers => show(&runtime.block_on(peers(socket))?, format, out),
        Question::Counters => show(&runtime.block_on(counters(socket))?, format, out),
    }
}

async fn status(socket: &Path) -> Result<StatusView, ClientError> {
    let answer = connect(socket).await?.get_status(GetStatusRequest {}).await;
    answer
        .map(|answer| answer.into_inner().into())
        .map_err(|status| failed(socket, &status))
}

async fn sessions(socket: &Path) -> Result<Sessions, ClientError> {
    let answer = connect(socket)
        .await?
        .list_sessions(ListSessionsRequest {})
        .await;
    answer
        .map(|answer| answer.into_inner().into())
        .map_err(|status| failed(socket, &status))
}

async fn peers(socket: &Path) -> Result<Peers, ClientError> {
    let answer = connect(socket).await?.list_peers(ListPeersRequest {}).await;
    answer
        .map(|answer| answer.into_inner().into())
        .map_err(|status| failed(socket, &status))
}

async fn counters(socket: &Path) -> Result<Counters, ClientError> {
    let answer = connect(socket)
        .await?
        .get_counters(GetCountersRequest {})
        .await;
    answer
        .map(|answer| answer.into_inner().into())
        .map_err(|status| failed(socket, &status))
}

async fn connect(socket: &Path) -> Result<grpc_api::Client, ClientError> {
    grpc_api::connect(socket)
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
    match status.code() {
        // The first is a sidecar that stops, the others one that hangs or is still starting.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => ClientError::Unreachable {
            socket: socket.to_owned(),
            reason: status.message().to_owned(),
        },
        _ => ClientError::Refused(status.message().to_owned()),
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
