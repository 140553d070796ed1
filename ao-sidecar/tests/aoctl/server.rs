//! A real API over a real Unix socket, and the real `aoctl` that asks it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;

use grpc_api::operator::EventLog;
use grpc_api::{Api, ApiSocket, Health, Roles, Snapshot, SocketError, Source};
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
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), SocketError>>>,
}

impl Server {
    pub(crate) fn start(snapshot: Option<Snapshot>) -> Self {
        let events = EventLog::new();
        let folder = tempfile::tempdir().unwrap();
        let socket = ApiSocket::bind(&folder.path().join("api.sock")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let log = events.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let api = Api {
                source: Arc::new(Fixed(snapshot)),
                control: Arc::new(keys::Fixed),
                administration: Arc::new(administration::Fixed),
                roles: Roles::default(),
                health: Health::new(),
                events: log,
            };
            runtime.block_on(grpc_api::serve(socket, None, api, async {
                let _ = stopped.await;
            }))
        });
        Self {
            folder,
            events,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

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

pub(crate) fn aoctl(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aoctl"))
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .output()
        .unwrap()
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
