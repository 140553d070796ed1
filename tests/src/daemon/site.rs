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
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        let mut words = self.before.clone();
        words.push(program("ao-sidecar").into());
        words.extend(["exec", "--api-socket"].map(OsString::from));
        words.push(self.api_socket.clone().into());
        words.push("--".into());
        words
    }

    /// Starts any program so.
    #[must_use]
    pub fn spawn<I: AsRef<OsStr>>(
        &self,
        namespace: &Namespace,
        program: &str,
        arguments: impl IntoIterator<Item = I>,
        log: &Path,
    ) -> Process {
        spawn(namespace, self.words(), program.as_ref(), arguments, log)
    }
}

/// A namespace and the words before a daemon's command line: none, a launcher's, `ip vrf exec`'s.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) namespace: &'a Namespace,
    before: Vec<OsString>,
}

impl<'a> Site<'a> {
    pub(super) fn new(namespace: &'a Namespace, launcher: Option<&Launcher>) -> Self {
        Self {
            namespace,
            before: launcher.map(Launcher::words).unwrap_or_default(),
        }
    }

    /// All sockets of the program are in `vrf`.
    pub(super) fn in_vrf(mut self, vrf: &str) -> Self {
        let exec = ["ip", "vrf", "exec", vrf].map(OsString::from);
        self.before.splice(..0, exec);
        self
    }

    pub(super) fn spawn<I: AsRef<OsStr>>(
        &self,
        program: impl AsRef<Path>,
        arguments: impl IntoIterator<Item = I>,
        log: &Path,
    ) -> Process {
        let before = self.before.clone();
        spawn(self.namespace, before, program.as_ref(), arguments, log)
    }
}

fn spawn<I: AsRef<OsStr>>(
    namespace: &Namespace,
    mut words: Vec<OsString>,
    program: &Path,
    arguments: impl IntoIterator<Item = I>,
    log: &Path,
) -> Process {
    words.push(program.into());
    words.extend(arguments.into_iter().map(|word| word.as_ref().to_owned()));
    let rest = words.split_off(1);
    let [first] = words.as_slice() else {
        unreachable!("the program is a word")
    };
    let mut command = namespace.command(first);
    command.args(rest);
    let short = program.file_name().unwrap_or_default().to_string_lossy();
    Process::spawn(&format!("{short} in {}", namespace.name()), log, command)
}
