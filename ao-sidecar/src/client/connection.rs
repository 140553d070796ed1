//! Which sidecar is asked, and how it is reached.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use grpc_api::{Client, ConnectError, Target, TlsFiles};
use tonic::{Code, Status};

use super::ClientError;
use super::table::printable_lines;
use crate::cli::aoctl::{Global, patience};
use crate::config::DEFAULT_API_SOCKET;

/// The sidecar that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    target: Target,
    /// How long to wait to be connected, and for an answer, whatever is asked.
    timeout: Option<Duration>,
}

impl Sidecar {
    /// The one that the options name; what they leave out the environment says.
    ///
    /// # Errors
    /// When it is to be asked over TCP, and a file for TLS is not named, or the environment has a
    /// time that is none.
    pub fn named(global: &Global, environment: Environment) -> Result<Self, ClientError> {
        let text = |name| environment(name).and_then(|value| value.into_string().ok());
        let of_environment = || {
            text("AOCTL_TIMEOUT")
                .map(|time| patience(&time))
                .transpose()
        };
        let timeout = match global.timeout {
            None => of_environment()
                .map_err(|error| ClientError::Usage(format!("AOCTL_TIMEOUT: {error}")))?,
            given => given,
        };
        Ok(Self {
            target: target(global, environment)?,
            timeout,
        })
    }

    /// The Unix socket; nothing for one that is asked over TCP.
    pub(super) fn socket(&self) -> Option<&Path> {
        match &self.target {
            Target::Unix(socket) => Some(socket),
            Target::Tcp { .. } => None,
        }
    }

    /// Connects for calls that may take as long as `usual`, unless the user has said how long.
    pub(super) async fn connect(&self, usual: Duration) -> Result<Client, ClientError> {
        self.connect_beside(Duration::ZERO, usual).await
    }

    /// The same where the answer takes as long as `work` at least.
    pub(super) async fn connect_beside(
        &self,
        work: Duration,
        usual: Duration,
    ) -> Result<Client, ClientError> {
        let answer = work.saturating_add(self.timeout.unwrap_or(usual));
        let patience = self.timeout.unwrap_or(super::PATIENCE);
        let connected = grpc_api::connect_for(&self.target, patience, answer).await;
        connected.map_err(|error| match error {
            ConnectError::Transport(error) => self.unreachable(self.trouble(&error)),
            wrong => ClientError::Unusable(wrong.to_string()),
        })
    }

    /// Why there is no connection, and what to do.
    fn trouble(&self, error: &(dyn Error + 'static)) -> String {
        match (&self.target, io_error(error)) {
            (Target::Unix(_), Some(cause)) if cause.kind() == io::ErrorKind::PermissionDenied => {
                format!("{cause}; run aoctl as root or as a user of a group that [api] names")
            }
            (Target::Unix(_), Some(cause)) => {
                format!("{cause}; is it running, and is --socket right?")
            }
            // What TLS says is in words already.
            (Target::Tcp { .. }, Some(cause))
                if cause.kind() == io::ErrorKind::ConnectionAborted =>
            {
                cause.to_string()
            }
            (Target::Tcp { .. }, Some(cause)) => {
                format!("{cause}; is it running with [api.tcp], and is --address right?")
            }
            (_, None) => error.to_string(),
        }
    }

    fn unreachable(&self, reason: String) -> ClientError {
        ClientError::Unreachable {
            sidecar: self.to_string(),
            reason,
        }
    }

    /// What an answer means that is none.
    pub(super) fn failed(&self, status: &Status) -> ClientError {
        // A status that was not sent but made here has a cause: the connection broke.
        let broken = Error::source(status).is_some();
        // The first is a sidecar that stops, the others one that hangs or is still starting.
        let unreachable = matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
        );
        // Where the system said why it broke, that is all there is to say.
        let message = match io_error(status).filter(|_| broken) {
            Some(cause) => cause.to_string(),
            // What is wrong with a configuration is a line each.
            None => printable_lines(status.message()),
        };
        match (broken || unreachable, status.code()) {
            (true, _) => self.unreachable(message),
            (false, Code::Unimplemented) => ClientError::Refused(
                "it is another version, and does not know this call; run the aoctl of the sidecar"
                    .to_owned(),
            ),
            (false, _) => ClientError::Refused(message),
        }
    }

    /// What it means when a stream of answers ends in the middle.
    pub(super) fn gone(&self, reason: &str) -> ClientError {
        ClientError::Gone {
            sidecar: self.to_string(),
            reason: reason.to_owned(),
        }
    }
}

fn target(global: &Global, environment: Environment) -> Result<Target, ClientError> {
    let text = |name| environment(name).and_then(|value| value.into_string().ok());
    if let Some(socket) = &global.socket {
        return Ok(Target::Unix(socket.clone()));
    }
    let Some(address) = global.address.clone().or_else(|| text("AOCTL_ADDRESS")) else {
        let socket = environment("AOCTL_SOCKET");
        let socket = socket.map_or_else(|| DEFAULT_API_SOCKET.into(), PathBuf::from);
        return Ok(Target::Unix(socket));
    };
    let file = |option: &Option<PathBuf>, name, variable| {
        let given = option
            .clone()
            .or_else(|| environment(variable).map(PathBuf::from));
        given.ok_or_else(|| {
            ClientError::Usage(format!(
                "over TCP, both ends show certificates: {name} FILE is missing, and so is \
                 {variable} in the environment"
            ))
        })
    };
    let tls = TlsFiles {
        ca: file(&global.ca, "--ca", "AOCTL_CA")?,
        certificate: file(&global.cert, "--cert", "AOCTL_CERT")?,
        key: file(&global.key, "--key", "AOCTL_KEY")?,
    };
    let server_name = global
        .server_name
        .clone()
        .or_else(|| text("AOCTL_SERVER_NAME"));
    Ok(Target::Tcp {
        address,
        server_name,
        tls,
    })
}

/// How the environment is asked for a variable.
pub type Environment = fn(&str) -> Option<OsString>;

/// The process's own environment; an empty variable is none.
#[must_use]
pub fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

impl fmt::Display for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Unix(socket) => write!(f, "{}", socket.display()),
            Target::Tcp { address, .. } => f.write_str(address),
        }
    }
}

/// The system's error at the bottom of another one.
fn io_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    let mut next = Some(error);
    let mut found = None;
    while let Some(error) = next {
        found = error.downcast_ref().or(found);
        next = error.source();
    }
    found
}
