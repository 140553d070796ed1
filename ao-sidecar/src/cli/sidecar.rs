//! The command line of `ao-sidecar`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::{DEFAULT_CONFIG, help};
use crate::config::DEFAULT_API_SOCKET;

/// Protect the TCP sessions of an unmodified BGP daemon with TCP-AO (RFC 5925).
#[derive(Parser)]
#[command(
    name = "ao-sidecar",
    version,
    after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage or configuration."
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Protect the configured peers until SIGTERM or SIGINT
    ///
    /// Tells the service manager READY=1 once rules and guard are active and the API answers.
    /// After a signal, rules and guard stay unless the configuration says on_exit = "remove"; a
    /// second signal exits at once.
    Run {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Keep connection state there instead of where the configuration says
        #[arg(long, value_name = "FOLDER")]
        state_dir: Option<PathBuf>,
        /// Serve the API there instead of where the configuration says
        #[arg(long, value_name = "FILE")]
        api_socket: Option<PathBuf>,
        /// Close sessions with configured peers that are alive and unprotected, so that the
        /// daemon reconnects protected; without it such sessions are named and the start refused
        #[arg(long)]
        replace_sessions: bool,
    },
    /// Check a configuration and the secret files it names, together with what was made by API
    #[command(after_help = help::CHECK)]
    Check {
        /// The configuration
        #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Folder with what was made by API, instead of the configured one
        #[arg(long, value_name = "DIRECTORY")]
        state_dir: Option<PathBuf>,
    },
    /// Print the fingerprint that far ends know this sidecar by, alone on a line
    ///
    /// Makes key and certificate when there are none. The daemon may be running.
    Identity {
        /// Take state folder and certificate from this configuration
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The folder that key and certificate are in [default: the configuration's, or
        /// /var/lib/ao-sidecar]
        #[arg(long, value_name = "FOLDER")]
        state_dir: Option<PathBuf>,
        /// Print a JSON object: fingerprint, certificate_file, expires
        #[arg(long)]
        json: bool,
    },
    /// Become a BGP daemon whose sockets get their TCP-AO keys before they connect or listen
    ///
    /// Waits for a running `ao-sidecar run`, then starts DAEMON in this very process. A small
    /// keeper process stays beside it until it ends. Needs root; DAEMON may drop its privileges,
    /// fork, and use threads.
    #[command(
        after_help = "Exit codes: DAEMON's own; 125 it was not started, 126 it cannot be \
                            run, 127 there is no such program."
    )]
    Exec {
        /// Unix socket of the sidecar's API
        #[arg(long, value_name = "FILE", default_value = DEFAULT_API_SOCKET)]
        api_socket: PathBuf,
        /// Wait so long for the sidecar
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        wait: u64,
        /// Without root: hand over to the keeper service at this socket (`ao-sidecar keeper`)
        #[arg(long, value_name = "FILE")]
        launch_socket: Option<PathBuf>,
        /// The daemon and its arguments, which must keep it 64-bit and may let it fork
        #[arg(
            value_name = "DAEMON",
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        command: Vec<OsString>,
    },
    /// Keep containers and unprivileged units as `exec` keeps its daemon
    ///
    /// Takes seccomp notifications from an OCI container runtime (`listenerPath`) and from
    /// `ao-sidecar exec --launch-socket`. Must run as long as they do: without it, their calls of
    /// connect and listen fail.
    Keeper {
        /// Where programs are handed over
        #[arg(long, value_name = "FILE", default_value = DEFAULT_LAUNCH_SOCKET)]
        socket: PathBuf,
        /// Unix socket of the sidecar's API
        #[arg(long, value_name = "FILE", default_value = DEFAULT_API_SOCKET)]
        api_socket: PathBuf,
        /// Wait so long for the sidecar when a program is handed over
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        wait: u64,
        /// A user, besides root, that may hand over programs; may be repeated
        #[arg(long, value_name = "NAME")]
        allow_user: Vec<String>,
    },
    /// Block unsigned segments of configured peers without a running daemon
    #[command(subcommand)]
    Guard(GuardAction),
}

/// What to do with the guard.
#[derive(Subcommand)]
pub enum GuardAction {
    /// Put the guard's firewall rules in place, before the network comes up
    Install {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Folder with what the sidecar covered last, instead of the configured one
        #[arg(long, value_name = "DIRECTORY")]
        state_dir: Option<PathBuf>,
    },
    /// Take them away, and those a stopped daemon left: peers are unprotected from then on
    ///
    /// Needs no configuration: it works when the configuration is what is broken.
    Remove {
        /// Accepted for symmetry with install, and not read
        #[arg(long, value_name = "FILE", hide = true)]
        config: Option<PathBuf>,
    },
}

const DEFAULT_LAUNCH_SOCKET: &str = "/run/ao-sidecar-keeper/launch.sock";
