//! `ao-sidecar`: the daemon.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use ao_sidecar::changes::{self, LoadError};
use ao_sidecar::cli::sidecar::{Arguments, Command, GuardAction};
use ao_sidecar::config::{Config, Overlay};
use ao_sidecar::daemon::{self, DaemonError, Options};
use ao_sidecar::identity;
use ao_sidecar::launch::{self, Service};
use clap::Parser;
use nix::unistd::Group;

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
        Command::Check { config, state_dir } => check(&config, state_dir.as_deref()),
        Command::Guard(GuardAction::Install { config, state_dir }) => {
            install_guard(&config, state_dir.as_deref())
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

fn install_guard(file: &Path, state_dir: Option<&Path>) -> Result<(), DaemonError> {
    if let Some(doubts) = daemon::install_guard(file, state_dir)? {
        let text = "the guard is installed for all other peers and those that were covered last";
        let _ = writeln!(io::stderr(), "{doubts}\n{text}");
    }
    Ok(())
}

fn check(file: &Path, state_dir: Option<&Path>) -> Result<(), DaemonError> {
    let config = match changes::load(file, state_dir) {
        Ok(config) => config,
        Err(LoadError::Config(error)) => return Err(error.into()),
        Err(LoadError::Changes(error)) => {
            let _ = writeln!(
                io::stderr(),
                "what was made by API cannot be read, so only the file is checked ({error}); while \
                 the sidecar runs, ask it: aoctl config check"
            );
            Config::load(file, &Overlay::default())?
        }
    };
    let peers = config.peers.len();
    let noun = if peers == 1 { "peer" } else { "peers" };
    for warning in &config.warnings {
        let _ = writeln!(io::stderr(), "{}:{warning}", file.display());
    }
    for name in config.api.groups() {
        // It may well be for another machine.
        if !matches!(Group::from_name(name), Ok(Some(_))) {
            let file = file.display();
            let _ = writeln!(
                io::stderr(),
                "{file}: there is no group {name:?} on this machine"
            );
        }
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
