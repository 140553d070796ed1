//! The daemon: start in order, serve, stop in order.
//!
//! Configuration, privileges, state folder and API socket are checked before the datapath touches
//! the firewall. READY is told when rules and guard are active and the API answers.

mod administration;
mod notify;
mod reload;
mod state_dir;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use datapath::report::Report;
use datapath::settings::{Backend, OnExit};
use datapath::{Datapath, StartError, StopError};
use grpc_api::operator::EventLog;
use grpc_api::{ApiSocket, PeerFacts, Snapshot, SocketError, Source};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tracing::{error, info, warn};

use self::notify::Notifier;
use self::reload::ReloadError;
use self::state_dir::StateDir;
pub use self::state_dir::{StateDirError, make_state_dir};
use crate::VERSION;
use crate::config::{Config, ConfigError, Overlay, Peer};
use crate::keys::{Control, Keys, KeysError, Prepared, SharedDatapath};
use crate::logging;
use crate::metrics::{Endpoint, MetricsError};

/// Longest time calls in progress may take once the daemon stops.
const API_GRACE: Duration = Duration::from_secs(1);

/// Threads for calls that block: the start, the stop, and reports for the API.
const BLOCKING_THREADS: usize = 4;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration.
    pub config: PathBuf,
    /// Replaces the configuration's `state_dir`.
    pub state_dir: Option<PathBuf>,
    /// Replaces the configuration's `api_socket`.
    pub api_socket: Option<PathBuf>,
    /// Close unprotected sessions that are alive at the first start, instead of refusing to start.
    pub replace_sessions: bool,
}

/// Why the daemon could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Not root, or too few capabilities.
    #[error("not permitted: run as root, or with the capabilities CAP_NET_ADMIN and CAP_NET_RAW")]
    Privileges,
    /// The state folder cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The API cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Keys cannot be managed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The backend did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The backend did not stop in order.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A thread of the start or the stop broke.
    #[error("internal error: {0}")]
    Broken(#[from] JoinError),
    /// The system refused something basic.
    #[error("the system refused signals or timers: {0}")]
    Runtime(#[from] io::Error),
}

/// Runs the daemon until a signal stops it. Errors other than those of the configuration are
/// logged before they are returned.
///
/// # Errors
/// When anything prevents the start, or the stop fails.
pub fn run(options: &Options) -> Result<(), DaemonError> {
    let config = load(options)?;
    logging::init(config.log);
    info!(version = VERSION, config = %options.config.display(), "ao-sidecar starts");
    log_warnings(options, &config);
    start(options, config).inspect_err(|failure| error!("{failure}"))
}

/// Tells what is doubtful about the configuration.
fn log_warnings(options: &Options, config: &Config) {
    for warning in &config.warnings {
        warn!("{}:{warning}", options.config.display());
    }
}

/// The configuration as the command line has it.
fn load(options: &Options) -> Result<Config, ConfigError> {
    let mut config = Config::load(&options.config, &Overlay::default())?;
    if let Some(folder) = &options.state_dir {
        config.state_dir.clone_from(folder);
    }
    if let Some(socket) = &options.api_socket {
        config.api_socket.clone_from(socket);
    }
    Ok(config)
}

/// Installs the guard alone, before the network comes up and the daemon starts.
///
/// # Errors
/// When the configuration is wrong, a privilege is missing, or the firewall refuses.
pub fn install_guard(config: &Config) -> Result<(), DaemonError> {
    check_privileges()?;
    Ok(datapath::install_guard(&config.settings(false))?)
}

/// Removes the guard and the rules that a stopped daemon left: peers are unprotected from then on.
///
/// # Errors
/// When a privilege is missing, the daemon runs, or the firewall refuses.
pub fn remove_guard() -> Result<(), DaemonError> {
    check_privileges()?;
    Ok(datapath::remove_guard()?)
}

fn check_privileges() -> Result<(), DaemonError> {
    let permitted = ao_sys::capabilities::have_net_admin() && ao_sys::capabilities::have_net_raw();
    if permitted {
        Ok(())
    } else {
        Err(DaemonError::Privileges)
    }
}

fn start(options: &Options, config: Config) -> Result<(), DaemonError> {
    check_privileges()?;
    keep_keys_out_of_core_dumps();
    ao_sys::memory::keep_little();
    allow_many_descriptors();
    // Held until the end: a second daemon must not touch this one's state or socket.
    let _state_dir = StateDir::open(&config.state_dir)?;
    let socket = ApiSocket::bind(&config.api_socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    runtime.block_on(supervise(options, config, socket))
}

/// Calls of peers and sockets of daemons need more than the usual soft limit.
fn allow_many_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "the number of open files cannot be raised");
    }
}

/// A core dump or a debugger of another process would show the master keys.
fn keep_keys_out_of_core_dumps() {
    let limited = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Err(error) = limited.and_then(|()| set_dumpable(false)) {
        warn!(%error, "core dumps cannot be turned off: one would hold the keys");
    }
}

async fn supervise(
    options: &Options,
    mut config: Config,
    socket: ApiSocket,
) -> Result<(), DaemonError> {
    let stop = watch_signals()?;
    // Watched before the start: it would end the process otherwise.
    let mut hangup = signal(SignalKind::hangup())?;
    let notifier = Notifier::from_environment();
    let on_exit = config.on_exit;
    let metrics = config.metrics_listen.map(Endpoint::bind).transpose()?;
    // Before the datapath: automatic peers have the keys of the store from its first moment.
    let prepared = Prepared::new(&mut config)?;
    let settings = config.settings(options.replace_sessions);

    let datapath = spawn_blocking(move || Datapath::start(settings)).await??;
    let datapath = Arc::new(SharedDatapath::new(datapath));
    let events = EventLog::new();
    let keys = match Keys::start(prepared, &config, &datapath, &events) {
        Ok(keys) => keys,
        Err(failure) => {
            if let Some(datapath) = datapath.take() {
                spawn_blocking(move || datapath.stop()).await??;
            }
            return Err(failure.into());
        }
    };
    let control = keys.control();
    let sidecar = Arc::new(Sidecar::new(config, datapath, keys));
    sidecar.log_start(socket.path().display());

    if let Some(metrics) = metrics {
        let (source, control, events) = (sidecar.clone(), control.clone(), events.clone());
        tokio::spawn(metrics.serve(source, control, events, wanted(stop.clone())));
    }
    let api = tokio::spawn(serve_api(
        socket,
        sidecar.clone(),
        control,
        events,
        stop.clone(),
    ));
    notifier.send("READY=1");
    let life = tokio::spawn(notifier.clone().stay_alive({
        let sidecar = Arc::clone(&sidecar);
        move || sidecar.health()
    }));
    loop {
        tokio::select! {
            () = wanted(stop.clone()) => break,
            _ = hangup.recv() => reload(options, &sidecar, &notifier).await?,
        }
    }

    notifier.send("STOPPING=1");
    life.abort();
    api.await?;
    info!("API closed");
    spawn_blocking(move || sidecar.stop()).await??;
    match on_exit {
        OnExit::Keep => info!("stopped; rules and guard stay: configured peers are blocked"),
        OnExit::Remove => info!("stopped; rules and guard are removed: peers are unprotected"),
    }
    Ok(())
}

/// Takes over the keys of a configuration that has changed. Whatever is wrong with it, the daemon
/// goes on as before.
async fn reload(
    options: &Options,
    sidecar: &Arc<Sidecar>,
    notifier: &Notifier,
) -> Result<(), DaemonError> {
    notifier.send(&reload::reloading());
    let (options, sidecar) = (options.clone(), Arc::clone(sidecar));
    match spawn_blocking(move || sidecar.reload(&options)).await? {
        Ok(1) => info!("configuration read again: keys of 1 peer changed"),
        Ok(changed) => info!("configuration read again: keys of {changed} peers changed"),
        Err(failure) => {
            error!("configuration not taken over, the running configuration stays: {failure}");
        }
    }
    notifier.send("READY=1");
    Ok(())
}

/// Serves the API until the daemon is to stop. Without it the sessions are still protected, so a
/// failure is logged and no more.
async fn serve_api(
    socket: ApiSocket,
    sidecar: Arc<Sidecar>,
    control: Arc<Control>,
    events: EventLog,
    stop: watch::Receiver<bool>,
) {
    let grace_over = async {
        wanted(stop.clone()).await;
        tokio::time::sleep(API_GRACE).await;
    };
    let api = grpc_api::Api {
        source: sidecar.clone(),
        control,
        administration: sidecar,
        roles: grpc_api::Roles::default(),
        health: grpc_api::Health::new(),
        events,
    };
    tokio::select! {
        served = grpc_api::serve(socket, None, api, wanted(stop.clone())) => {
            if let Err(failure) = served {
                error!("{failure}; sessions stay protected, restart the sidecar to have the API");
            }
        }
        () = grace_over => info!("API calls still in progress were cut off"),
    }
}

/// Tells when the first SIGTERM or SIGINT arrives. The second one exits at once, whatever goes on.
fn watch_signals() -> io::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        info!("{name}: stopping in order; a second signal exits at once");
        // Nobody listens any more only if the daemon has ended already.
        let _ = sender.send(true);
        let name = next(&mut terminate, &mut interrupt).await;
        error!("second signal ({name}): exiting at once; rules and guard stay");
        std::process::exit(1);
    });
    Ok(receiver)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Completes when the daemon is to stop.
async fn wanted(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a wish to stop, too.
    let _ = stop.wait_for(|&stop| stop).await;
}

/// What runs, as the API sees it.
struct Sidecar {
    started: Instant,
    running: Mutex<Config>,
    datapath: Arc<SharedDatapath>,
    keys: Mutex<Keys>,
}

impl Sidecar {
    fn new(config: Config, datapath: Arc<SharedDatapath>, keys: Keys) -> Self {
        Self {
            started: Instant::now(),
            running: Mutex::new(config),
            datapath,
            keys: Mutex::new(keys),
        }
    }

    /// Reads the configuration again; returns how many peers have other keys now.
    fn reload(&self, options: &Options) -> Result<usize, ReloadError> {
        let fresh = load(options)?;
        let mut running = self.running();
        let differing = reload::differing_settings(&running, &fresh);
        if !differing.is_empty() {
            return Err(ReloadError::Settings(differing));
        }
        let changed = self.keys().reload(&fresh.peers, |peers| {
            let changed = self.datapath.with(|datapath| datapath.set_keys(peers));
            let changed = changed.ok_or(ReloadError::Stopping)?;
            changed.map_err(ReloadError::from)
        })?;
        log_warnings(options, &fresh);
        *running = fresh;
        Ok(changed)
    }

    fn log_start(&self, socket: impl std::fmt::Display) {
        let Some(Snapshot {
            datapath, report, ..
        }) = self.snapshot()
        else {
            return;
        };
        info!(
            datapath,
            peers = report.peers.len(),
            queue_rules = report.queue_rules,
            guard = report.guard,
            strip = report.strips,
            api = %socket,
            "protecting"
        );
    }

    /// What is wrong, if anything is; nothing while it stops.
    fn health(&self) -> Result<(), String> {
        self.datapath.with(Datapath::health).unwrap_or(Ok(()))
    }

    fn stop(&self) -> Result<(), StopError> {
        self.keys().stop();
        self.datapath.take().map_or(Ok(()), Datapath::stop)
    }

    fn running(&self) -> MutexGuard<'_, Config> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Sidecar {
    fn snapshot(&self) -> Option<Snapshot> {
        let report = self.datapath.with(Datapath::report)?;
        Some(Snapshot {
            version: VERSION,
            uptime: self.started.elapsed(),
            datapath: backends(&report),
            peers: self.running().peers.iter().map(facts).collect(),
            report,
            alarms: Vec::new(),
            config_file: String::new(),
            config_loaded_at: std::time::SystemTime::now(),
            api_made: 0,
        })
    }
}

/// What the API tells of a peer beside the datapath's report.
fn facts(peer: &Peer) -> PeerFacts {
    PeerFacts {
        name: peer.spec.name.clone(),
        // Empty when keys are agreed.
        key_chain: peer
            .keys
            .chain()
            .map_or_else(String::new, |chain| chain.name().to_owned()),
        ports: (*peer.spec.ports.start(), *peer.spec.ports.end()),
        origin: grpc_api::operator::administration::Origin::File(0),
    }
}

/// The backends that serve a peer.
fn backends(report: &Report) -> &'static str {
    let serves = |backend| report.peers.iter().any(|peer| peer.backend == backend);
    match (serves(Backend::Kernel), serves(Backend::Userspace)) {
        (true, true) => "kernel and userspace",
        (true, false) => "kernel",
        (false, _) => "userspace",
    }
}
