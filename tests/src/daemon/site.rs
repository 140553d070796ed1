//! Where and how a daemon's program is started.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::netns::Namespace;
use crate::process::Process;
use crate::sidecar::program;

/// Starts daemons under `ao-sidecar exec`, which keeps the process id.
#[derive(Clone, Debug)]
pub struct Launcher {
    api_socket: PathBuf,
    before: Vec<OsString>,
}

impl Launcher {
    /// For daemons of the sidecar whose API socket is `api_socket`, running or not.
    #[must_use]
    pub fn new(api_socket: &Path) -> Self {
        Self {
            api_socket: api_socket.to_owned(),
            before: Vec::new(),
        }
    }

    /// Puts a command that becomes its arguments, `setpriv` for example, before `ao-sidecar exec`.
    #[must_use]
    pub fn after(mut self, command: &[&str]) -> Self {
        self.before = command.iter().map(OsString::from).collect();
        self
    }

    /// The words before a daemon's own command line.
    fn words(&self) -> Vec<OsString> {
        let mut words = self.before.clone();
        words.push(program("ao-sidecar").into());
        words.extend(["exec", "--api-socket"].map(OsString::from));
        words.push(self.api_socket.clone().into());
        words.push("--".into());
        words
    }
}

/// A namespace, and the words before the command line of a program started in it: none, a
/// launcher's, those of `ip vrf exec`.
#[derive(Debug)]
pub struct At<'a> {
    pub(super) namespace: &'a Namespace,
    before: Vec<OsString>,
}

impl<'a> At<'a> {
    /// Programs are started as they are.
    #[must_use]
    pub fn plain(namespace: &'a Namespace) -> Self {
        Self {
            namespace,
            before: Vec::new(),
        }
    }

    /// Programs are started by a launcher.
    #[must_use]
    pub fn under(namespace: &'a Namespace, launcher: &Launcher) -> Self {
        Self {
            namespace,
            before: launcher.words(),
        }
    }

    /// All sockets of the program are in `vrf`.
    pub(super) fn in_vrf(mut self, vrf: &str) -> Self {
        let exec = ["ip", "vrf", "exec", vrf].map(OsString::from);
        self.before.splice(..0, exec);
        self
    }

    /// Starts a program that goes on running.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn<I: AsRef<OsStr>>(
        &self,
        program: impl AsRef<Path>,
        arguments: impl IntoIterator<Item = I>,
        log: &Path,
    ) -> Process {
        let program = program.as_ref();
        let mut words = self.before.iter().map(OsString::as_os_str);
        let mut command = match words.next() {
            Some(first) => {
                let mut command = self.namespace.command(first);
                command.args(words).arg(program);
                command
            }
            None => self.namespace.command(program),
        };
        command.args(arguments);
        let short = program.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{short} in {}", self.namespace.name());
        Process::spawn(&name, log, command)
    }
}
