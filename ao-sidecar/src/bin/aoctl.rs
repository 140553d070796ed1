//! `aoctl`: asks a running sidecar how it is, and has it change keys.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use ao_sidecar::client::{self, ClientError, Format, Question, Watch};
use ao_sidecar::config::DEFAULT_API_SOCKET;
use clap::{Args, Parser, Subcommand};

/// Ask a running ao-sidecar about peers, sessions, keys and counters, and have it change keys.
#[derive(Parser)]
#[command(
    name = "aoctl",
    version,
    after_help = "Exit codes: 0 success, 1 failure or refusal, 2 wrong usage, 3 the sidecar cannot \
                  be reached or goes away."
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

#[derive(Subcommand)]
enum Command {
    /// The sidecar as a whole: datapath, firewall, peers
    Status,
    /// TCP sessions with their keys, segments and sequence number extensions
    Sessions,
    /// Configured peers
    Peers,
    /// Segments and drops by reason, for each peer, queue and firewall rule
    Counters,
    /// Keys of the peers, never their secrets
    #[command(subcommand)]
    Keys(Keys),
    /// Key changes with automatic peers
    #[command(subcommand)]
    Rollover(Rollover),
    /// What far ends have to configure to know this sidecar
    Identity,
    /// Steps of key changes, one a line
    #[command(after_help = EVENTS_HELP)]
    Events(Events),
}

#[derive(Subcommand)]
enum Keys {
    /// Keys with IDs, algorithm, state, lifetimes and last use
    #[command(after_help = KEYS_HELP)]
    List {
        /// Only those of this peer
        peer: Option<String>,
    },
}

#[derive(Subcommand)]
enum Rollover {
    /// Which key is in use, which is next and how far, what it waits for, alarms
    #[command(after_help = STATUS_HELP)]
    Status {
        /// Everything about this peer, instead of a line for each
        peer: Option<String>,
    },
    /// Change to the next key now
    #[command(after_help = START_HELP)]
    Start {
        /// The keys may be known to others: agree on a fresh one, and delete all others as soon
        /// as it is proven
        #[arg(long)]
        compromised: bool,
        /// Name of the peer
        peer: String,
    },
    /// Give up a change whose key is not selected yet
    #[command(after_help = ABORT_HELP)]
    Abort {
        /// Name of the peer
        peer: String,
    },
    /// Delete superseded keys at once, without proof: sessions that still use them are cut
    #[command(after_help = FORCE_HELP)]
    Force {
        /// Name of the peer
        peer: String,
    },
}

#[derive(Args)]
struct Events {
    /// Go on with events as they happen, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    after: u64,
    /// The log that N is of, from an event's JSON: tells whether the sidecar was started again
    #[arg(
        long,
        value_name = "ID",
        default_value_t = 0,
        hide_default_value = true
    )]
    log: u64,
    /// Only events of this peer
    #[arg(
        long,
        value_name = "PEER",
        default_value = "",
        hide_default_value = true
    )]
    peer: String,
}

const KEYS_HELP: &str = "\
States of agreed keys: offered, agreed, installed (on every socket here), ready (at both ends),
selected (advertised), proven (in use in both directions), retiring, deleted, revoking, revoked.
States of keys of a chain: pending, active, accept-only, expired.
Times are in UTC; `..` is an open end.

Examples:
  aoctl keys list
  aoctl keys list as64502 --json";

const STATUS_HELP: &str = "\
Examples:
  aoctl rollover status            a line for each peer, and all alarms
  aoctl rollover status as64502    everything about one";

const START_HELP: &str = "\
Returns as soon as the change is begun; `aoctl events --follow` shows its steps.

Examples:
  aoctl rollover start as64502
  aoctl rollover start --compromised as64502";

const ABORT_HELP: &str = "\
Once the key is selected there is no way back: the far end may have deleted the former one.

Example:
  aoctl rollover abort as64502";

const FORCE_HELP: &str = "\
Refused unless the successor is installed at both ends.

Example:
  aoctl rollover force as64502";

const EVENTS_HELP: &str = "\
Each line has the time in UTC, number, severity (info, warning, alarm), peer, kind and message.
The sidecar keeps the last 4096 events of this start; an event of kind `gap` tells that some are
lost. With --follow, Ctrl-C ends with exit code 0; a sidecar that goes away with 3.

Examples:
  aoctl events
  aoctl events --follow --peer as64502
  aoctl events --json --after 17 --log 1795000000000";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = match arguments.json {
        true => Format::Json,
        false => Format::Table,
    };
    let mut out = io::stdout().lock();
    let mut ask = |question| client::ask(&arguments.socket, question, format, &mut out);
    let done = match arguments.command {
        Command::Status => ask(Question::Status),
        Command::Sessions => ask(Question::Sessions),
        Command::Peers => ask(Question::Peers),
        Command::Counters => ask(Question::Counters),
        Command::Keys(Keys::List { peer }) => ask(Question::Keys(peer)),
        Command::Rollover(rollover) => ask(rollover.question()),
        Command::Identity => ask(Question::Identity),
        Command::Events(events) => {
            client::watch(&arguments.socket, events.watch(), format, &mut out)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough, as in `aoctl sessions | head`.
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Without stderr the exit code has to do.
            let _ = writeln!(io::stderr(), "aoctl: {error}");
            ExitCode::from(match error {
                ClientError::Unreachable { .. } | ClientError::Gone { .. } => 3,
                ClientError::Refused(_) | ClientError::Output(_) => 1,
            })
        }
    }
}

impl Rollover {
    fn question(self) -> Question {
        match self {
            Self::Status { peer } => Question::Rollover(peer),
            Self::Start { compromised, peer } => Question::StartRollover { peer, compromised },
            Self::Abort { peer } => Question::AbortRollover(peer),
            Self::Force { peer } => Question::ForceRollover(peer),
        }
    }
}

impl Events {
    fn watch(self) -> Watch {
        Watch {
            after: self.after,
            log: self.log,
            peer: self.peer,
            follow: self.follow,
        }
    }
}
