//! The message by which a container runtime hands over seccomp notifications (OCI runtime
//! specification, "Seccomp", `listenerPath`): the container's state as one JSON object over a
//! stream socket, with the descriptors it names.
//!
//! `ao-sidecar exec --launch-socket` speaks it, too, and waits for an answer, which runtimes do not.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ao_sys::seccomp::Listener;
use ao_sys::unix;
use datapath::keeper::Launch;
use serde::{Deserialize, Serialize};

use super::LaunchError;

/// The specification's name of the descriptor.
const SECCOMP_FD: &str = "seccompFd";
/// Longest state that is read.
const MAX_STATE: u64 = 65_536;
/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(30);
/// The answer when all is well.
pub(super) const ACCEPTED: &str = "ready";

/// The part of the container process state that matters here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState {
    #[serde(default)]
    oci_version: String,
    fds: Vec<String>,
    pid: u32,
    #[serde(default)]
    state: State,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    #[serde(default)]
    id: String,
}

/// A process whose notifications were handed over.
#[derive(Debug)]
pub(super) struct HandedOver {
    /// Process id, as the one who handed over sees it.
    pub(super) pid: u32,
    /// Name of the container or program.
    pub(super) name: String,
    pub(super) listener: Listener,
}

/// Reads what a runtime or `exec` sends.
pub(super) fn receive(stream: &mut UnixStream) -> io::Result<HandedOver> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut first = vec![0; 4096];
    let (length, attached) = unix::receive(stream.as_fd(), &mut first)?;
    first.truncate(length);
    (&*stream).take(MAX_STATE).read_to_end(&mut first)?;
    let state: ProcessState =
        serde_json::from_slice(&first).map_err(|_| invalid("no container process state (JSON)"))?;
    let place = state
        .fds
        .iter()
        .position(|name| name == SECCOMP_FD)
        .ok_or_else(|| invalid("no seccompFd among the descriptors"))?;
    let listener: OwnedFd = attached
        .into_iter()
        .nth(place)
        .ok_or_else(|| invalid("the descriptor seccompFd did not come along"))?;
    Ok(HandedOver {
        pid: state.pid,
        name: state.state.id.chars().take(64).collect(),
        listener: listener.into(),
    })
}

/// Installs the filter and hands its notifications to the keeper service at `socket`.
pub(super) fn hand_over(
    socket: &Path,
    launch: &Launch,
    install: impl FnOnce() -> Result<Listener, LaunchError>,
) -> Result<(), LaunchError> {
    let refused = |error: io::Error| {
        LaunchError::Keeper(format!(
            "the keeper service at {} does not answer: {error}",
            socket.display()
        ))
    };
    // Before the filter: it would hold this connect, and nobody would answer.
    let stream = UnixStream::connect(socket).map_err(refused)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(refused)?;
    let listener = install()?;
    let state = ProcessState {
        oci_version: "1.2.0".to_owned(),
        fds: vec![SECCOMP_FD.to_owned()],
        pid: launch.pid,
        state: State {
            id: launch.daemon.clone(),
        },
    };
    let state = serde_json::to_vec(&state).map_err(|error| refused(error.into()))?;
    let sent = unix::send(stream.as_fd(), &state, &[listener.as_fd()])
        .and_then(|()| stream.shutdown(Shutdown::Write));
    drop(listener);
    // One who refuses may have said so, and gone, before it was told everything.
    let mut answer = String::new();
    let heard = (&stream).take(4096).read_to_string(&mut answer);
    match answer.as_str() {
        ACCEPTED => Ok(()),
        "" => Err(refused(
            sent.and(heard.map(|_| ()))
                .err()
                .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()),
        )),
        _ => Err(LaunchError::Keeper(answer)),
    }
}
