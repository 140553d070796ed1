//! The configuration: read and checked as a whole before anything is touched.
//!
//! Every key is described in `docs/CONFIGURATION.md`.

mod api;
mod diff;
mod effect;
mod effective;
mod files;
mod guarded;
mod key_chain;
mod lifetime;
mod overlay;
mod peer;
mod problem;
mod rollover;
mod section;
mod state;
mod summary;
mod toml_text;

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use datapath::keeper;
use datapath::settings::{Choice, OnExit, PeerSpec, Settings, Strip};
use toml::de::DeTable;
use zeroize::Zeroizing;

pub use self::api::{ApiConfig, ApiTcpConfig};
pub use self::diff::diff;
pub(crate) use self::files::{Certificates, Files};
pub use self::guarded::Guarded;
pub use self::key_chain::Chain;
pub(crate) use self::key_chain::checked_name;
pub use self::overlay::Overlay;
pub(crate) use self::overlay::{FOREVER, MadeChain};
pub use self::peer::{KeySource, Peer};
pub use self::problem::{ConfigError, Problem};
use self::problem::{Place, Problems};
pub use self::rollover::{IdentityConfig, RolloverConfig, TrustConfig};
use self::section::{Schema, Section};
pub use self::state::StatePlaces;

/// Where connection state is kept unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/ao-sidecar";
/// Where the API is served unless told otherwise.
pub const DEFAULT_API_SOCKET: &str = "/run/ao-sidecar/api.sock";

/// Longest path of the API's Unix socket, in octets: `sun_path` less its final zero, and less
/// `.keeper`, which names the socket beside it.
const MAX_SOCKET_PATH: usize = 100;

/// What a configuration without peers is told.
const NO_PEER: &str = "there is no [[peer]], so nothing to protect; add one";

const ROOT: Schema = Schema {
    title: "the configuration",
    required: &[],
    optional: &[
        "datapath",
        "state_dir",
        "api_socket",
        "on_exit",
        "log",
        "userspace",
        "identity",
        "peering",
        "store",
        "api",
        "metrics",
        "key_chain",
        "peer",
    ],
};
/// What was made by API.
const MADE: Schema = Schema {
    title: "what was made by API",
    required: &[],
    optional: &["key_chain", "key", "peer"],
};
const MADE_KEY_CHAIN: Schema = Schema {
    title: "a key chain",
    required: &["name"],
    optional: key_chain::KEY_CHAIN.optional,
};
const LOG: Schema = Schema {
    title: "[log]",
    required: &[],
    optional: &["format", "level"],
};
const USERSPACE: Schema = Schema {
    title: "[userspace]",
    required: &[],
    optional: &[
        "first_queue",
        "workers",
        "queue_length",
        "mark_bit",
        "max_connections",
        "strip",
    ],
};

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// Folder for connection state.
    pub state_dir: PathBuf,
    /// Unix socket of the API.
    pub api_socket: PathBuf,
    /// What happens to rules and guard at an orderly exit.
    pub on_exit: OnExit,
    /// Who may use the API, and how from afar.
    pub api: ApiConfig,
    /// Where metrics are served; nowhere when absent.
    pub metrics_listen: Option<SocketAddr>,
    /// How to log.
    pub log: Log,
    /// Options of the userspace backend.
    pub userspace: Userspace,
    /// What this end shows to the sidecars of its peers.
    pub identity: IdentityConfig,
    /// Where those are listened for. Empty when no peer's keys are agreed.
    pub listen: Vec<SocketAddr>,
    /// File with the key that seals the store, when it is not for the store to find.
    pub sealing_key_file: Option<PathBuf>,
    /// Key chains, in the order of the file, then those made by API; whether a peer has them or
    /// not.
    pub chains: Vec<Chain>,
    /// Peers, in the order of the file, then those made by API. At least one.
    pub peers: Vec<Peer>,
    /// Peers that it has as well, and that are not to be served: see [`Config::leave_out`].
    pub left_out: Vec<Peer>,
    /// What is doubtful about it, and did not keep it from being read.
    pub warnings: Vec<Problem>,
    /// What it was read from.
    source: Source,
    /// What the files that it names held.
    files: Files,
}

/// The text of a configuration, which may hold secrets.
#[derive(Clone)]
struct Source {
    text: Arc<Zeroizing<String>>,
    file: PathBuf,
    mode: u32,
}

impl Source {
    /// A text as if it were in `file`, with the permissions it should have.
    fn of_text(text: &str, file: &Path) -> Self {
        Self {
            text: Arc::new(Zeroizing::new(text.to_owned())),
            file: file.to_owned(),
            mode: 0o600,
        }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({})", self.file.display())
    }
}

/// How to log.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Form of a line.
    pub format: LogFormat,
    /// Least important level that is logged.
    pub level: tracing::Level,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Options of the userspace backend; see [`Settings`].
#[derive(Clone, Copy, Debug)]
pub struct Userspace {
    first_queue: u16,
    workers: u8,
    queue_length: u32,
    mark_bit: u32,
    max_connections: u32,
    strip: Strip,
}

impl Config {
    /// Reads and checks `file` and the secret files it names, together with what was made by API.
    /// Nothing else is touched. Peers with a key chain get the keys that it wants now.
    ///
    /// # Errors
    /// When a file cannot be read or anything in it is wrong, or when it does not go together with
    /// what was made by API; the error tells all problems.
    pub fn load(file: &Path, made: &Overlay) -> Result<Self, ConfigError> {
        let (text, metadata) = read(file)
            .map_err(|error| ConfigError::of_file(file, format!("cannot be read: {error}")))?;
        let source = Source {
            text: Arc::new(text),
            file: file.to_owned(),
            mode: metadata.mode() & 0o7777,
        };
        Self::parse(&source, Files::of(file), made, SystemTime::now())
    }

    /// Checks `text` as if it were in the file of this configuration, with the permissions it
    /// should have. Gives the warnings. Files that this configuration does not name are not looked
    /// at, which is among them.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn check_text(&self, text: &str, made: &Overlay) -> Result<Vec<Problem>, ConfigError> {
        let source = Source::of_text(text, self.file());
        let checked = Self::parse(&source, self.files.no_others(), made, SystemTime::now())?;
        Ok(checked.warnings)
    }

    /// The configuration that the same text would be with something else made by API. The text is
    /// the one that was read, and so are the files that it names: nothing is read again.
    /// `state_dir` and `api_socket` stay as they are in this one, for the command line may have
    /// replaced them.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn with(&self, made: &Overlay) -> Result<Self, ConfigError> {
        let fresh = Self::parse(
            &self.source,
            self.files.remembered(),
            made,
            SystemTime::now(),
        )?;
        Ok(Self {
            state_dir: self.state_dir.clone(),
            api_socket: self.api_socket.clone(),
            ..fresh
        })
    }

    /// Leaves out the peers that `is_out` tells by name. Keys that are stored for them are not
    /// touched, unlike those of peers that it does not have.
    pub fn leave_out(&mut self, is_out: impl Fn(&Arc<str>) -> bool) {
        let out = self.peers.extract_if(.., |peer| is_out(&peer.spec.name));
        self.left_out.extend(out);
    }

    /// The file it was read from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.source.file
    }

    /// Reads `text` as if it were in `file`, with the permissions it should have.
    #[cfg(test)]
    pub(crate) fn load_text(text: &str, file: &Path, made: &Overlay) -> Result<Self, ConfigError> {
        let source = Source::of_text(text, file);
        Self::parse(&source, Files::of(file), made, SystemTime::now())
    }

    /// What the files that it names held.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Checks a text at a time.
    fn parse(
        source: &Source,
        files: Files,
        made: &Overlay,
        now: SystemTime,
    ) -> Result<Self, ConfigError> {
        let Source { text, file, mode } = source;
        let table = parsed(text, file)?;
        let made = made.document();
        let problems = Problems::of_file(text, file);
        let api_problems = Problems::of_api(&made);
        // A text that the daemon has written: what it says of others is told, and not its syntax.
        let made_table = parsed(&made.text, file)?;
        let reading = Reading {
            files: &files,
            now,
            root: Section::new(&ROOT, table, 0..0, &problems),
            made: Section::new(&MADE, made_table, 0..0, &api_problems),
        };
        let (mut config, inline_secrets) = reading.config(source.clone());
        if let Some(place) = inline_secrets.first()
            && mode & 0o077 != 0
        {
            let file = file.display();
            place.problem(format!(
                "the file holds a secret and is readable by others (mode {mode:04o}): chmod 600 \
                 {file}, or write `secret_file` with a file of its own"
            ));
        }
        drop(inline_secrets);
        config.warnings = problem::told(file, [problems, api_problems])?;
        config.files = files;
        Ok(config)
    }

    /// What the userspace backend is told.
    #[must_use]
    pub fn settings(&self, replace_sessions: bool) -> Settings {
        let peers = self.peers.iter().map(|peer| peer.spec.clone());
        Settings {
            on_exit: self.on_exit,
            keeper_socket: keeper::socket_path(&self.api_socket),
            replace_sessions,
            ..self.userspace.settings(peers.collect(), &self.state_dir)
        }
    }
}

impl Userspace {
    /// With everything else as it is unless told otherwise.
    fn settings(self, peers: Vec<PeerSpec>, state_dir: &Path) -> Settings {
        let Self {
            first_queue,
            workers,
            queue_length,
            mark_bit,
            max_connections,
            strip,
        } = self;
        Settings {
            peers,
            first_queue,
            workers,
            queue_length,
            mark_bit,
            max_connections,
            strip,
            on_exit: OnExit::default(),
            state_dir: state_dir.to_owned(),
            keeper_socket: keeper::socket_path(Path::new(DEFAULT_API_SOCKET)),
            replace_sessions: false,
        }
    }
}

fn read(file: &Path) -> io::Result<(Zeroizing<String>, Metadata)> {
    let mut file = File::open(file)?;
    let metadata = file.metadata()?;
    // Room for all of it from the start: a string that grows leaves copies behind.
    let size = usize::try_from(metadata.len()).unwrap_or(0);
    let mut text = Zeroizing::new(String::with_capacity(size + 1));
    file.read_to_string(&mut text)?;
    Ok((text, metadata))
}

/// The table that a text is.
fn parsed<'t>(text: &'t str, file: &Path) -> Result<DeTable<'t>, ConfigError> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table.into_inner());
    }
    let problems = Problems::of_file(text, file);
    for error in &errors {
        // `Display` would show the line; `message` is made of fixed texts only.
        problems.add(
            &error.span().unwrap_or(0..0),
            format!("not TOML: {}", error.message()),
        );
    }
    problem::told(file, [problems])?;
    Err(ConfigError::of_file(file, "not TOML".to_owned()))
}

/// What a configuration is read from.
struct Reading<'r, 'i> {
    files: &'r Files,
    now: SystemTime,
    /// The file.
    root: Section<'r, 'i>,
    /// What was made by API.
    made: Section<'r, 'i>,
}

impl<'r> Reading<'r, '_> {
    /// Reads both texts, the file first. What it gives back is of use only if no problem was noted.
    fn config(mut self, source: Source) -> (Config, Vec<Place<'r>>) {
        let (files, now) = (self.files, self.now);
        let mut chain_reader = key_chain::Reader {
            files,
            now,
            inline_secrets: Vec::new(),
        };
        let chain_sections = self.both("key_chain", &key_chain::KEY_CHAIN, &MADE_KEY_CHAIN);
        let added = self.made.tables("key", &key_chain::API_KEY);
        let chains = chain_reader.chains(chain_sections, added);
        let peer_sections = self.both("peer", &peer::PEER, &peer::PEER);
        let root = &mut self.root;
        if peer_sections.is_empty() {
            root.place().problem(NO_PEER);
        }
        let peer_reader = peer::Reader {
            chains: &chains,
            datapath: datapath(root).unwrap_or_default(),
            files,
            now,
        };
        let peers = peer_reader.peers(peer_sections);
        let agreed = peers
            .iter()
            .any(|peer| matches!(peer.keys, KeySource::Rollover(_)));
        let on_exit = root.choice(
            "on_exit",
            &[("keep", OnExit::Keep), ("remove", OnExit::Remove)],
        );
        let config = Config {
            state_dir: absolute(root, "state_dir", DEFAULT_STATE_DIR),
            api_socket: api_socket(root),
            on_exit: on_exit.unwrap_or_default(),
            api: api::api(root, files),
            metrics_listen: api::metrics_listen(root),
            log: log(root.table("log", &LOG).as_ref()),
            userspace: userspace(root.table("userspace", &USERSPACE)),
            identity: rollover::identity(root, files),
            listen: rollover::listen(root, agreed),
            sealing_key_file: rollover::sealing_key_file(root, files),
            chains: chains.into_iter().filter_map(|named| named.chain).collect(),
            peers,
            left_out: Vec::new(),
            warnings: Vec::new(),
            files: Files::of(&source.file),
            source,
        };
        (config, chain_reader.inline_secrets)
    }
}

impl<'r, 'i> Reading<'r, 'i> {
    /// The tables of an array in the file, then those in what was made by API.
    fn both(&mut self, key: &str, of_file: &Schema, of_api: &Schema) -> Vec<Section<'r, 'i>> {
        let mut sections = self.root.tables(key, of_file);
        sections.extend(self.made.tables(key, of_api));
        sections
    }
}

/// Which backend is wanted, for the whole or for one peer.
fn datapath(section: &Section<'_, '_>) -> Option<Choice> {
    let names = [
        ("auto", Choice::Auto),
        ("kernel", Choice::Kernel),
        ("userspace", Choice::Userspace),
    ];
    section.choice("datapath", &names)
}

fn absolute(section: &Section<'_, '_>, key: &str, default: &str) -> PathBuf {
    let given = section.parsed(key, |path| {
        if Path::new(path).is_absolute() && !path.contains('\0') {
            Ok(PathBuf::from(path))
        } else {
            Err(format!(
                "`{key}` is no absolute path; write one that begins with /"
            ))
        }
    });
    given.unwrap_or_else(|| PathBuf::from(default))
}

fn api_socket(root: &Section<'_, '_>) -> PathBuf {
    let path = absolute(root, "api_socket", DEFAULT_API_SOCKET);
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        let text = format!("`api_socket` is too long; write at most {MAX_SOCKET_PATH} octets");
        root.problem("api_socket", text);
    }
    path
}

fn log(section: Option<&Section<'_, '_>>) -> Log {
    use tracing::Level;
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    Log {
        format: section
            .and_then(|log| log.choice("format", &formats))
            .unwrap_or(LogFormat::Text),
        level: section
            .and_then(|log| log.choice("level", &levels))
            .unwrap_or(Level::INFO),
    }
}

fn userspace(section: Option<Section<'_, '_>>) -> Userspace {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Userspace {
        first_queue: 7900,
        workers: if cores > 1 { 2 } else { 1 },
        queue_length: 4096,
        mark_bit: 0x0800_0000,
        max_connections: 4096,
        strip: Strip::Auto,
    };
    let Some(section) = section else {
        return options;
    };
    options.workers = section
        .integer("workers", 1..=64)
        .unwrap_or(options.workers);
    // The queues of the workers and the one for ICMP errors follow the first.
    let highest = u16::MAX - u16::from(options.workers);
    options.first_queue = section
        .integer("first_queue", 0..=highest)
        .unwrap_or(options.first_queue);
    options.queue_length = section
        .integer("queue_length", 64..=65_536)
        .unwrap_or(options.queue_length);
    options.mark_bit = mark_bit(&section).unwrap_or(options.mark_bit);
    options.max_connections = section
        .integer("max_connections", 16..=1_048_576)
        .unwrap_or(options.max_connections);
    let strips = [
        ("auto", Strip::Auto),
        ("always", Strip::Always),
        ("never", Strip::Never),
    ];
    options.strip = section.choice("strip", &strips).unwrap_or(options.strip);
    options
}

/// A single bit, as an integer or as a string of hexadecimal digits after `0x`.
fn mark_bit(section: &Section<'_, '_>) -> Option<u32> {
    let bit = if section.is_text("mark_bit") {
        section.parsed("mark_bit", |text| {
            let digits = text.strip_prefix("0x").unwrap_or_default();
            u32::from_str_radix(digits, 16)
                .map_err(|_| format!("{text:?} is no mark; write one like \"0x08000000\""))
        })?
    } else {
        section.integer("mark_bit", 1..=u32::MAX)?
    };
    if !bit.is_power_of_two() {
        let text = format!("0x{bit:08x} is not a single bit; write one like 0x08000000");
        section.problem("mark_bit", text);
    }
    Some(bit)
}

#[cfg(test)]
mod tests;
