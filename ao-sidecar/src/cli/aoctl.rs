//! The command line of `aoctl`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use super::arguments::patience;
use super::arguments::{ChainRules, KeySettings, PeerSettings, seconds};
use super::{DEFAULT_CONFIG, help};

/// Ask a running ao-sidecar about peers, sessions and keys, find out why a peer is down, and change
/// what it does
#[derive(Parser)]
#[command(name = "aoctl", version, after_help = help::AOCTL)]
pub struct Arguments {
    /// Where the sidecar is, and how to show what it says.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that go with every command.
#[derive(Args)]
pub struct Global {
    /// Unix socket of the sidecar's API [env: AOCTL_SOCKET] [default: /run/ao-sidecar/api.sock]
    #[arg(long, value_name = "FILE", global = true, help_heading = CONNECTION)]
    pub socket: Option<PathBuf>,
    /// Ask over TCP with TLS, instead of the Unix socket [env: AOCTL_ADDRESS]
    #[arg(
        long,
        value_name = "HOST:PORT",
        global = true,
        conflicts_with = "socket",
        help_heading = CONNECTION
    )]
    pub address: Option<String>,
    /// With --address: certificates of the authority that the sidecar's is signed by, PEM
    /// [env: AOCTL_CA]
    #[arg(long, value_name = "FILE", global = true, help_heading = CONNECTION)]
    pub ca: Option<PathBuf>,
    /// With --address: the certificate to show to the sidecar, PEM [env: AOCTL_CERT]
    #[arg(long, value_name = "FILE", global = true, help_heading = CONNECTION)]
    pub cert: Option<PathBuf>,
    /// With --address: the private key of --cert, PEM [env: AOCTL_KEY]
    #[arg(long, value_name = "FILE", global = true, help_heading = CONNECTION)]
    pub key: Option<PathBuf>,
    /// With --address: the name in the sidecar's certificate, if it is not HOST
    /// [env: AOCTL_SERVER_NAME]
    #[arg(long, value_name = "NAME", global = true, help_heading = CONNECTION)]
    pub server_name: Option<String>,
    /// How long to wait for an answer, in seconds or with a unit [env: AOCTL_TIMEOUT]
    /// [default: 5s; 60s for diagnoses and changes]
    #[arg(
        long,
        value_name = "TIME",
        global = true,
        value_parser = patience,
        help_heading = CONNECTION
    )]
    pub timeout: Option<Duration>,
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = OUTPUT)]
    pub json: bool,
    /// Use colours: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(
        long,
        value_name = "WHEN",
        global = true,
        default_value = "auto",
        hide_possible_values = true,
        help_heading = OUTPUT
    )]
    pub color: When,
}

const CONNECTION: &str = "Which sidecar";
const OUTPUT: &str = "Output";

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal.
    Auto,
    /// In any case.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// What is wrong, then the sidecar as a whole: datapath, firewall, peers
    #[command(after_help = help::STATUS)]
    Status,
    /// Find out why a peer is down, and what to do about it
    #[command(after_help = help::DOCTOR)]
    Doctor(Doctor),
    /// A live view of peers, sessions, rates and events
    #[command(after_help = help::TOP)]
    Top {
        /// Time between two looks, in seconds or with a unit
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = seconds)]
        interval: Duration,
    },
    /// Peers: list them; make, change and delete those made by API
    #[command(after_help = help::PEERS)]
    Peers {
        /// What to do with them.
        #[command(subcommand)]
        action: Option<Peers>,
    },
    /// Key chains: list them; make, change and delete those made by API
    #[command(after_help = help::CHAINS)]
    Chains {
        /// What to do with them.
        #[command(subcommand)]
        action: Option<Chains>,
    },
    /// Keys: list them, never their secrets; add, change and delete those made by API
    #[command(subcommand, after_help = help::KEYS)]
    Keys(Keys),
    /// TCP sessions with their keys, segments and sequence number extensions
    Sessions,
    /// Segments and drops by reason, for each peer, queue and firewall rule
    Counters,
    /// Key changes with automatic peers
    #[command(subcommand)]
    Rollover(Rollover),
    /// Steps of key changes, one a line
    #[command(after_help = help::EVENTS)]
    Events(Events),
    /// The configuration: in use, in the file, and how they differ
    #[command(subcommand, after_help = help::CONFIG)]
    Config(Config),
    /// What far ends have to configure to know this sidecar
    Identity,
    /// Print completions for a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages of aoctl and ao-sidecar into a folder
    #[command(hide = true)]
    Man {
        /// The folder, made if it is missing
        folder: PathBuf,
    },
}

/// What is diagnosed.
#[derive(Args)]
pub struct Doctor {
    /// Name of a peer; all of them without it
    pub peer: Option<String>,
    /// Listen so long to segments of peers without a session, 0 to 150 seconds
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = seconds)]
    pub listen: Duration,
    /// The configuration to look at when the sidecar does not answer
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
}

/// What to do with peers.
#[derive(Subcommand)]
pub enum Peers {
    /// State, backend and counters of each peer; what plain `aoctl peers` does, too
    #[command(after_help = help::PEERS)]
    List,
    /// Make a peer: it is protected from now on, and after restarts
    #[command(after_help = help::PEERS_CREATE)]
    Create {
        /// Its name, unique
        name: String,
        /// What it is.
        #[command(flatten)]
        settings: PeerSettings,
        /// Close sessions with it that are not protected, instead of refusing
        #[arg(long)]
        replace_sessions: bool,
    },
    /// Change a peer made by API; what is not given stays as it is
    #[command(after_help = help::PEERS_UPDATE)]
    Update {
        /// Its name
        name: String,
        /// What it is to be.
        #[command(flatten)]
        settings: PeerSettings,
        /// Close sessions with it that are not protected, instead of refusing
        #[arg(long)]
        replace_sessions: bool,
    },
    /// Delete a peer made by API: its sessions are closed, and not protected any more
    Delete {
        /// Its name
        name: String,
    },
}

/// What to do with key chains.
#[derive(Subcommand)]
pub enum Chains {
    /// Key chains with their keys and the peers that have them; what plain `aoctl chains` does, too
    List {
        /// Only this one
        name: Option<String>,
    },
    /// Make a key chain with its first key
    #[command(after_help = help::CHAINS_CREATE)]
    Create {
        /// Its name, unique
        name: String,
        /// Its rules.
        #[command(flatten)]
        rules: ChainRules,
        /// Its first key.
        #[command(flatten)]
        key: KeySettings,
    },
    /// Change the rules of a key chain made by API; what is not given stays as it is
    #[command(after_help = help::CHAINS_UPDATE)]
    Update {
        /// Its name
        name: String,
        /// Its rules.
        #[command(flatten)]
        rules: ChainRules,
    },
    /// Delete a key chain made by API, with its keys; refused while a peer has it
    Delete {
        /// Its name
        name: String,
    },
}

/// What to do with keys.
#[derive(Subcommand)]
pub enum Keys {
    /// Keys with IDs, algorithm, state, lifetimes and last use
    #[command(after_help = help::KEYS_LIST)]
    List {
        /// Only those of this peer
        peer: Option<String>,
    },
    /// Add a key to a key chain, be it the file's or one made by API
    #[command(after_help = help::KEYS_ADD)]
    Add {
        /// Name of the key chain
        chain: String,
        /// The key.
        #[command(flatten)]
        key: KeySettings,
    },
    /// Change a key made by API; what is not given stays as it is, its secret as well
    #[command(after_help = help::KEYS_CHANGE)]
    Change {
        /// Name of the key chain
        chain: String,
        /// The key.
        #[command(flatten)]
        key: KeySettings,
    },
    /// Delete a key made by API, and destroy its secret
    #[command(after_help = help::KEYS_DELETE)]
    Delete {
        /// Name of the key chain
        chain: String,
        /// KeyID it is sent with
        #[arg(long, value_name = "ID")]
        send_id: u8,
        /// KeyID it is received with
        #[arg(long, value_name = "ID")]
        recv_id: u8,
    },
}

/// What to do with key changes.
#[derive(Subcommand)]
pub enum Rollover {
    /// Which key is in use, which is next and how far, what it waits for, alarms
    #[command(after_help = help::ROLLOVER_STATUS)]
    Status {
        /// Everything about this peer, instead of a line for each
        peer: Option<String>,
    },
    /// Change to the next key now
    #[command(after_help = help::ROLLOVER_START)]
    Start {
        /// The keys may be known to others: agree on a fresh one, and delete all others as soon
        /// as it is proven
        #[arg(long)]
        compromised: bool,
        /// Name of the peer
        peer: String,
    },
    /// Give up a change whose key is not selected yet
    #[command(after_help = help::ROLLOVER_ABORT)]
    Abort {
        /// Name of the peer
        peer: String,
    },
    /// Delete superseded keys at once, without proof: sessions that still use them are cut
    #[command(after_help = help::ROLLOVER_FORCE)]
    Force {
        /// Name of the peer
        peer: String,
    },
}

/// Which events to show.
#[derive(Args)]
pub struct Events {
    /// Go on with events as they happen, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub after: u64,
    /// The log that N is of, from an event's JSON: tells whether the sidecar was started again
    #[arg(
        long,
        value_name = "ID",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub log: u64,
    /// Only events of this peer
    #[arg(
        long,
        value_name = "PEER",
        default_value = "",
        hide_default_value = true
    )]
    pub peer: String,
}

/// What to do with the configuration.
#[derive(Subcommand)]
pub enum Config {
    /// The configuration in use as TOML: the file's and what was made by API, without secrets
    Show,
    /// Whether the sidecar would take a configuration; changes nothing
    #[command(after_help = help::CONFIG_CHECK)]
    Check {
        /// The file to check, `-` for standard input; the sidecar's own without it
        file: Option<PathBuf>,
    },
    /// What a reload would change; changes nothing
    #[command(after_help = help::CONFIG_DIFF)]
    Diff,
    /// Read the configuration file again, and take over all of it or nothing
    #[command(after_help = help::CONFIG_RELOAD)]
    Reload {
        /// Close sessions with new peers that are not protected, instead of refusing
        #[arg(long)]
        replace_sessions: bool,
    },
}
