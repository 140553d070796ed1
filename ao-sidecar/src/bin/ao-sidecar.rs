//! `ao-sidecar`: the daemon.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use ao_sidecar::config::{Config, DEFAULT_API_SOCKET, Overlay};
use ao_sidecar::daemon::{self, DaemonError, Options};
use ao_sidecar::identity;
use ao_sidecar::launch::{self, Service};
use clap::{Parser, Subcommand};

/// Protect the TCP sessions of an unmodified BGP daemon with TCP-AO (RFC 5925).
#[derive(Parser)]
#[command(
    name = "ao-sidecar",
    version,
    after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage or configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
    /// Check a configuration and the secret files it names, and touch nothing
    Check {
        /// The configuration
        #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
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

#[derive(Subcommand)]
enum GuardAction {
    /// Put the guard's firewall rules in place, before the network comes up
    Install {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
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

const DEFAULT_CONFIG: &str = "/etc/ao-sidecar/config.toml";
const DEFAULT_LAUNCH_SOCKET: &str = "/run/ao-sidecar-keeper/launch.sock";

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let running = matches!(command, Command::Run { .. });
    let done = match command {
        Command::Exec {
            api_socket,
            wait,
            launch_socket,
            command,
        } => {
            let error = launch::exec(&launch::Options {
                api_socket,
                wait: Duration::from_secs(wait),
                launch_socket,
                command,
            });
            return fail("ao-sidecar exec: ", &error, error.exit_code());
        }
        Command::Keeper {
            socket,
            api_socket,
            wait,
            allow_user,
        } => {
            let service = Service {
                socket,
                api_socket,
                wait: Duration::from_secs(wait),
                allowed_users: allow_user,
            };
            return match launch::serve(&service) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail("ao-sidecar keeper: ", &error, 1),
            };
        }
        Command::Identity {
            config,
            state_dir,
            json,
        } => {
            let options = identity::Options {
                config,
                state_dir,
                json,
            };
            return match identity::print(&options, &mut io::stdout()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error @ identity::Error::Config(_)) => fail("", &error, 2),
                Err(error) => fail("ao-sidecar identity: ", &error, 1),
            };
        }
        Command::Run {
            config,
            state_dir,
            api_socket,
            replace_sessions,
        } => daemon::run(&Options {
            config,
            state_dir,
            api_socket,
            replace_sessions,
        }),
        Command::Check { config } => check(&config),
        Command::Guard(GuardAction::Install { config }) => {
            Config::load(&config, &Overlay::default())
                .map_err(DaemonError::from)
                .and_then(|c| daemon::install_guard(&c))
        }
        Command::Guard(GuardAction::Remove { .. }) => daemon::remove_guard(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What ends a run is in the log already, in the form the log has.
            if !running || matches!(error, DaemonError::Config(_)) {
                // Without stderr the exit code has to do.
                let _ = writeln!(io::stderr(), "{error}");
            }
            ExitCode::from(if matches!(error, DaemonError::Config(_)) {
                2
            } else {
                1
            })
        }
    }
}

/// Says why, as far as there is a stderr: without one the exit code has to do.
fn fail(prefix: &str, error: &dyn std::error::Error, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "{prefix}{error}");
    ExitCode::from(code)
}

fn check(file: &Path) -> Result<(), DaemonError> {
    let config = Config::load(file, &Overlay::default())?;
    let peers = config.peers.len();
    let noun = if peers == 1 { "peer" } else { "peers" };
    for warning in &config.warnings {
        let _ = writeln!(io::stderr(), "{}:{warning}", file.display());
    }
    let mut said = format!("{}: correct, {peers} {noun}\n", file.display());
    for line in config.chain_summaries(SystemTime::now()) {
        said.push_str(&line);
        said.push('\n');
    }
    // The exit code says it, too.
    let _ = io::stdout().write_all(said.as_bytes());
    Ok(())
}
