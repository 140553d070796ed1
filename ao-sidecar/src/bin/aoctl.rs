//! `aoctl`: asks a running sidecar how it is.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use ao_sidecar::client::{self, ClientError, Format, Question};
use ao_sidecar::config::DEFAULT_API_SOCKET;
use clap::{Parser, Subcommand};

/// Ask a running ao-sidecar about peers, sessions and counters.
#[derive(Parser)]
#[command(
    name = "aoctl",
    version,
    after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage, 3 the sidecar cannot be reached."
)]
struct Arguments {
    /// Unix socket of the sidecar's API
    #[arg(long, value_name = "FILE", default_value = DEFAULT_API_SOCKET, global = true)]
    socket: PathBuf,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Subcommand)]
enum Command {
    /// The sidecar as a whole: datapath, firewall, peers
    Status,
    /// TCP sessions with their keys, segments and sequence number extensions
    Sessions,
    /// Configured peers
    Peers,
    /// Segments and drops by reason, for each peer, queue and firewall rule
    Counters,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let question = match arguments.command {
        Command::Status => Question::Status,
        Command::Sessions => Question::Sessions,
        Command::Peers => Question::Peers,
        Command::Counters => Question::Counters,
    };
    let format = if arguments.json {
        Format::Json
    } else {
        Format::Table
    };
    match client::ask(
        &arguments.socket,
        question,
        format,
        &mut io::stdout().lock(),
    ) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough, as in `aoctl sessions | head`.
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Without stderr the exit code has to do.
            let _ = writeln!(io::stderr(), "aoctl: {error}");
            ExitCode::from(if matches!(error, ClientError::Unreachable { .. }) {
                3
            } else {
                1
            })
        }
    }
}
