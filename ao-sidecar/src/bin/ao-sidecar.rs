//! `ao-sidecar`: the daemon.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ao_sidecar::config::Config;
use ao_sidecar::daemon::{self, DaemonError, Options};
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

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let running = matches!(command, Command::Run { .. });
    let done = match command {
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
        Command::Guard(GuardAction::Install { config }) => Config::load(&config)
            .map_err(DaemonError::from)
            .and_then(|c| daemon::install_guard(&c)),
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

fn check(file: &Path) -> Result<(), DaemonError> {
    let peers = Config::load(file)?.peers.len();
    let noun = if peers == 1 { "peer" } else { "peers" };
    // The exit code says it, too.
    let _ = writeln!(io::stdout(), "{}: correct, {peers} {noun}", file.display());
    Ok(())
}
