//! A real API over a real Unix socket, and the real `aoctl` that asks it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use grpc_api::operator::EventLog;
use grpc_api::{Api, ApiSocket, Health, RoleMap, Roles, Snapshot, SocketError, Source, TcpApi};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::{administration, keys};

/// Answers the same at all times, or nothing.
pub(crate) struct Fixed(Option<Snapshot>);

impl Source for Fixed {
    fn snapshot(&self) -> Option<Snapshot> {
        self.0.clone()
    }
}

/// A served API; it stops with this value.
pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) events: EventLog,
    pub(crate) administration: Arc<administration::Fixed>,
    pub(crate) roles: Roles,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), SocketError>>>,
}

impl Server {
    pub(crate) fn start(snapshot: Option<Snapshot>) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), snapshot)
    }

    /// Serves on `api.sock` in this folder.
    pub(crate) fn start_in(folder: TempDir, snapshot: Option<Snapshot>) -> Self {
        Self::start_with(folder, snapshot, None, RoleMap::default())
    }

    /// The same, and over TCP.
    pub(crate) fn start_with(
        folder: TempDir,
        snapshot: Option<Snapshot>,
        tcp: Option<TcpApi>,
        roles: RoleMap,
    ) -> Self {
        let events = EventLog::new();
        let socket = ApiSocket::bind(&folder.path().join("api.sock")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let log = events.clone();
        let administration = Arc::new(administration::Fixed::default());
        let configuration = Arc::clone(&administration);
        let roles = Roles::new(roles);
        let who_may = roles.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let api = Api {
                source: Arc::new(Fixed(snapshot)),
                control: Arc::new(keys::Fixed),
                administration: configuration,
                roles: who_may,
                health: Health::new(),
                events: log,
            };
            runtime.block_on(grpc_api::serve(
                socket,
                std::future::ready(tcp),
                api,
                async {
                    let _ = stopped.await;
                },
            ))
        });
        Self {
            folder,
            events,
            administration,
            roles,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Stops serving, and hands out the folder.
    pub(crate) fn stop(mut self) -> TempDir {
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    /// Exit code, what is printed, and what is said on stderr.
    pub(crate) fn outcome(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = aoctl(&self.socket(), arguments);
        let text = |octets| String::from_utf8(octets).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }

    /// What is printed by a command that succeeds.
    pub(crate) fn answer(&self, arguments: &[&str]) -> String {
        let output = aoctl(&self.socket(), arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
        assert!(
            !self.socket().exists(),
            "the socket goes away with its server"
        );
    }
}

/// The words of a command line without blanks in any of them.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// `aoctl`, with nothing from the environment of the test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aoctl"));
    for variable in ["SOCKET", "ADDRESS", "CA", "CERT", "KEY", "SERVER_NAME"] {
        command.env_remove(format!("AOCTL_{variable}"));
    }
    command.env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

pub(crate) fn aoctl(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = program();
    command.arg("--socket").arg(socket).args(arguments);
    command.output().unwrap()
}

/// Exit code and what stderr says, with the socket's name replaced.
pub(crate) fn failure(socket: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = aoctl(socket, arguments);
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    (
        output.status.code(),
        text.replace(socket.to_str().unwrap(), "SOCKET"),
    )
}
