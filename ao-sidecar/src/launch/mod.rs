//! `ao-sidecar exec`: becomes a daemon whose sockets get their keys before they connect or listen.
//!
//! A keeper is split off first and gets in touch with the sidecar; then the seccomp filter is
//! installed, its notifications are handed to the keeper, and the process becomes the daemon. It
//! keeps its process id, so that service managers see nothing unusual.

mod keeper;
mod oci;
mod service;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ao_sys::process::{self, Side};
use ao_sys::seccomp::{self, Listener};
use ao_sys::{capabilities, probe, unix};
use datapath::keeper::{Launch, socket_path};

pub use self::service::{Service, ServiceError, serve};

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// Unix socket of the sidecar's API; keepers are awaited beside it.
    pub api_socket: PathBuf,
    /// How long to wait for the sidecar.
    pub wait: Duration,
    /// Socket of a keeper service, for a process that may not be a keeper itself.
    pub launch_socket: Option<PathBuf>,
    /// The daemon and its arguments. At least one.
    pub command: Vec<OsString>,
}

/// Why the daemon was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// There is no such program.
    #[error("{}: no such program", Path::new(.0).display())]
    NotFound(OsString),
    /// The program cannot be run.
    #[error("{} cannot be run: {source}", program.display())]
    NotRunnable {
        /// Its path.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its system calls could not be understood.
    #[error(
        "{} is a 32-bit program: the kernel has TCP-AO for 64-bit ones only, install the daemon \
         for this machine's architecture", .0.display()
    )]
    ThirtyTwoBit(PathBuf),
    /// Not root.
    #[error(
        "{missing} is missing: run `ao-sidecar exec` as root, or give --launch-socket of a \
         running `ao-sidecar keeper`"
    )]
    Capability {
        /// Its name.
        missing: &'static str,
    },
    /// Yama forbids what a keeper does.
    #[error(
        "kernel.yama.ptrace_scope is 3, which forbids to reach the daemon's sockets: set it to 2 \
         or less, which takes a reboot"
    )]
    Yama,
    /// The keeper did not come up.
    #[error("{0}")]
    Keeper(String),
    /// A container runtime has filtered this process already.
    #[error(
        "another program holds this process's system calls already (seccomp user notification); \
         let it hand them to `ao-sidecar keeper` instead"
    )]
    Filtered,
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl LaunchError {
    /// Exit code, as of env(1): 127 no such program, 126 it cannot be run, 125 anything else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotRunnable { .. } | Self::ThirtyTwoBit(_) => 126,
            _ => 125,
        }
    }

    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Becomes the daemon. Returns only if that fails; no daemon runs then.
///
/// # Errors
/// See [`LaunchError`].
pub fn exec(options: &Options) -> LaunchError {
    match prepare(options) {
        Ok(mut command) => {
            let source = command.exec();
            LaunchError::NotRunnable {
                program: command.get_program().into(),
                source,
            }
        }
        Err(error) => error,
    }
}

/// Everything up to the moment of becoming the daemon.
fn prepare(options: &Options) -> Result<Command, LaunchError> {
    let Some((name, arguments)) = options.command.split_first() else {
        return Err(LaunchError::NotFound(OsString::new()));
    };
    let program = find_program(name)?;
    let launch = Launch {
        socket: socket_path(&options.api_socket),
        daemon: short_name(&program),
        pid: std::process::id(),
        network_namespace: process::network_namespace(None)
            .map_err(LaunchError::system("network namespace"))?,
    };
    match &options.launch_socket {
        Some(socket) => oci::hand_over(socket, &launch, install)?,
        None => hand_to_keeper(launch, options.wait)?,
    }
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments);
    Ok(command)
}

/// The file that the name of a program stands for, by PATH unless it has a slash.
fn find_program(name: &OsStr) -> Result<PathBuf, LaunchError> {
    let is_program = |path: &Path| {
        let metadata = path.metadata();
        metadata.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let found = if name.as_bytes().contains(&b'/') {
        Some(PathBuf::from(name)).filter(|path| path.exists())
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(name))
            .find(|candidate| is_program(candidate))
    };
    let program = found.ok_or_else(|| LaunchError::NotFound(name.to_owned()))?;
    if !is_program(&program) {
        let source = io::ErrorKind::PermissionDenied.into();
        return Err(LaunchError::NotRunnable { program, source });
    }
    match process::is_64_bit_program(&program) {
        Ok(Some(false)) => Err(LaunchError::ThirtyTwoBit(program)),
        // One that may be run and not read is for execve to judge.
        Ok(_) | Err(_) => Ok(program),
    }
}

fn short_name(program: &Path) -> String {
    let name = program.file_name().unwrap_or(program.as_os_str());
    name.to_string_lossy().chars().take(64).collect()
}

fn hand_to_keeper(launch: Launch, wait: Duration) -> Result<(), LaunchError> {
    check_privileges()?;
    let (ours, theirs) = unix::pair().map_err(LaunchError::system("socket pair"))?;
    match process::detach().map_err(LaunchError::system("keeper process"))? {
        Side::Detached => {
            drop(ours);
            keeper::run(&theirs, launch, wait)
        }
        Side::Parent => drop(theirs),
    }
    keeper::await_word(ours.as_fd()).map_err(LaunchError::Keeper)?;
    let listener = install()?;
    unix::send(ours.as_fd(), keeper::READY, &[listener.as_fd()])
        .map_err(LaunchError::system("handing over to the keeper"))?;
    drop(listener);
    keeper::await_word(ours.as_fd()).map_err(LaunchError::Keeper)
}

fn check_privileges() -> Result<(), LaunchError> {
    let needed = [
        (capabilities::have_sys_ptrace(), "CAP_SYS_PTRACE"),
        (capabilities::have_sys_admin(), "CAP_SYS_ADMIN"),
    ];
    if let Some((_, missing)) = needed.into_iter().find(|(have, _)| !have) {
        return Err(LaunchError::Capability { missing });
    }
    if probe::yama_forbids_attach() {
        return Err(LaunchError::Yama);
    }
    Ok(())
}

/// Installs the filter on this process.
fn install() -> Result<Listener, LaunchError> {
    seccomp::install(seccomp::Options::default()).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => LaunchError::Filtered,
        _ => LaunchError::System {
            what: "seccomp filter",
            source,
        },
    })
}
