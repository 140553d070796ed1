//! The daemon: start in order, serve, stop in order.
//!
//! Configuration, privileges, state folder and API socket are checked before the datapath touches
//! the firewall. READY is told when rules and guard are active and the API answers.

mod administration;
mod alarms;
mod apply;
mod notify;
mod roles;
mod sidecar;
mod state_dir;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use datapath::settings::OnExit;
use datapath::{StartError, StopError};
use grpc_api::operator::EventLog;
use grpc_api::operator::administration::Role;
use grpc_api::{ApiSocket, Health, SocketError, TcpApi, TcpError, TlsFiles};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use self::administration::Administrator;
use self::notify::{Notifier, on_own_thread};
use self::sidecar::Sidecar;
use self::state_dir::StateDir;
pub use self::state_dir::{StateDirError, make_state_dir};
use crate::VERSION;
use crate::changes::{self, Changes, ChangesError, Fitting, LeftOut, LoadError};
use crate::config::{ApiTcpConfig, ConfigError, Guarded};
use crate::keys::{Control, KeysError};
use crate::logging;
use crate::metrics::Endpoint;

/// Longest time calls in progress may take once the daemon stops.
const API_GRACE: Duration = Duration::from_secs(1);

/// Threads for calls that block: the start, the stop, reports, changes, and diagnoses, which take
/// long. Health checks need none of them.
const BLOCKING_THREADS: usize = 16;

/// How often health checks are told how we are.
const HEALTH_EVERY: Duration = Duration::from_secs(3);

/// Between two attempts at what an optional service needs.
const RETRY: Duration = Duration::from_secs(3);

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
    /// What was made by API cannot be read.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// Not root, or too few capabilities.
    #[error("not permitted: run as root, or with the capabilities CAP_NET_ADMIN and CAP_NET_RAW")]
    Privileges,
    /// The state folder cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The API cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
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

impl From<LoadError> for DaemonError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Config(error) => error.into(),
            LoadError::Changes(error) => error.into(),
        }
    }
}

/// Runs the daemon until a signal stops it. Errors other than those of the configuration are
/// logged before they are returned.
///
/// # Errors
/// When anything prevents the start, or the stop fails.
pub fn run(options: &Options) -> Result<(), DaemonError> {
    let (fitting, changes) = load(options)?;
    logging::init(fitting.config.log);
    info!(version = VERSION, config = %options.config.display(), "ao-sidecar starts");
    for warning in &fitting.config.warnings {
        warn!("{}:{warning}", options.config.display());
    }
    for LeftOut { what, why } in &fitting.left_out {
        error!("{what} is left out, for it does not go together with the file: {why}");
    }
    start(options, fitting, changes).inspect_err(|failure| error!("{failure}"))
}

/// The configuration as the command line has it, and what was made by API.
fn load(options: &Options) -> Result<(Fitting, Changes), LoadError> {
    let state_dir = options.state_dir.as_deref();
    let (mut fitting, changes) = changes::load_to_start(&options.config, state_dir)?;
    if let Some(socket) = &options.api_socket {
        fitting.config.api_socket.clone_from(socket);
    }
    Ok((fitting, changes))
}

/// Installs the guard alone, for all peers that can be made out from `file` and from what was
/// covered last, before the network comes up and the daemon starts; `state_dir` replaces the one that
/// is configured. Tells what could not be read of the file.
///
/// # Errors
/// When there is nobody to guard, a privilege is missing, or the firewall refuses.
pub fn install_guard(
    file: &Path,
    state_dir: Option<&Path>,
) -> Result<Option<ConfigError>, DaemonError> {
    check_privileges()?;
    let Guarded { settings, doubts } = Guarded::read(file, state_dir);
    match doubts {
        Some(doubts) if settings.peers.is_empty() => Err(doubts.into()),
        doubts => {
            datapath::install_guard(&settings)?;
            Ok(doubts)
        }
    }
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

fn start(options: &Options, fitting: Fitting, changes: Changes) -> Result<(), DaemonError> {
    let config = &fitting.config;
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
    runtime.block_on(supervise(options.clone(), fitting, changes, socket))
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
    options: Options,
    fitting: Fitting,
    changes: Changes,
    socket: ApiSocket,
) -> Result<(), DaemonError> {
    let stop = watch_signals()?;
    // Watched before the start: it would end the process otherwise.
    let mut hangup = signal(SignalKind::hangup())?;
    let notifier = Notifier::from_environment();
    let config = &fitting.config;
    let (tcp, metrics) = (config.api.tcp.clone(), config.metrics_listen);
    let events = EventLog::new();
    let log = events.clone();
    let started = spawn_blocking(move || Sidecar::start(options, fitting, changes, &log));
    let sidecar = Arc::new(started.await??);
    sidecar.log_start(socket.path().display());

    // What these need may be missing at boot, which is no reason not to protect.
    tokio::spawn(find_groups(Arc::clone(&sidecar)));
    tokio::spawn(take_in_left_out(Arc::clone(&sidecar)));
    if let Some(address) = metrics {
        let (sidecar, events, stop) = (Arc::clone(&sidecar), events.clone(), stop.clone());
        tokio::spawn(serve_metrics(sidecar, address, events, stop));
    }
    let tcp = listen(Arc::clone(&sidecar), tcp);
    let health = Health::new();
    health.set(true);
    let checks = tokio::spawn(check_health(Arc::clone(&sidecar), health.clone()));
    let api = grpc_api::Api {
        source: Arc::clone(&sidecar),
        control: sidecar.control(),
        administration: Arc::new(Administrator::new(Arc::clone(&sidecar), stop.clone())),
        roles: sidecar.roles.clone(),
        health,
        events,
    };
    let api = tokio::spawn(serve_api(socket, tcp, api, stop.clone()));
    notifier.send("READY=1");
    let life = tokio::spawn(notifier.clone().stay_alive({
        let sidecar = Arc::clone(&sidecar);
        move || sidecar.liveness()
    }));
    loop {
        tokio::select! {
            () = wanted(stop.clone()) => break,
            _ = hangup.recv() => reload(&sidecar, &notifier).await,
        }
    }

    notifier.send("STOPPING=1");
    life.abort();
    checks.abort();
    api.await?;
    info!("API closed");
    // What takes over a configuration now goes on to its end first.
    let _turn = Arc::clone(&sidecar.turn).lock_owned().await;
    let on_exit = sidecar.on_exit();
    spawn_blocking(move || sidecar.stop()).await??;
    match on_exit {
        OnExit::Keep => info!("stopped; rules and guard stay: configured peers are blocked"),
        OnExit::Remove => info!("stopped; rules and guard are removed: peers are unprotected"),
    }
    Ok(())
}

/// Takes over the configuration file as it is now. Whatever is wrong with it, the daemon goes on as
/// before.
async fn reload(sidecar: &Arc<Sidecar>, notifier: &Notifier) {
    notifier.send(&reloading());
    let what = "reload the configuration".to_owned();
    let admin = Role::Admin.as_str();
    let work = |sidecar: &Sidecar| sidecar.reload(false);
    let done = sidecar
        .audited("signal SIGHUP".into(), admin, what, work)
        .await;
    if let Err(failure) = done {
        error!("configuration not taken over, the running configuration stays: {failure}");
    }
    notifier.send("READY=1");
}

/// What the service manager is told when a reload begins (sd_notify(3)).
fn reloading() -> String {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    let micros = now.map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000);
    format!("RELOADING=1\nMONOTONIC_USEC={micros}")
}

/// Tells health checks how we are.
async fn check_health(sidecar: Arc<Sidecar>, health: Health) {
    let mut ticks = interval(HEALTH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = Arc::clone(&sidecar);
        let found = on_own_thread(move || asked.health()).await;
        health.set(matches!(found, Ok(Ok(()))));
    }
}

/// Gives groups their roles as soon as all of them are known.
async fn find_groups(sidecar: Arc<Sidecar>) {
    loop {
        // A reload must not be overwritten.
        let turn = Arc::clone(&sidecar.turn).lock_owned().await;
        let asked = Arc::clone(&sidecar);
        let found = spawn_blocking(move || roles::of(&asked.running().config.api));
        let Ok(found) = found.await else { return };
        if let Some(map) = sidecar.settled("groups of [api]", found) {
            sidecar.roles.replace(map);
            return;
        }
        drop(turn);
        sleep(RETRY).await;
    }
}

/// Protects the peers that the start has left out, as soon as they have no unprotected session.
async fn take_in_left_out(sidecar: Arc<Sidecar>) {
    while !sidecar.running().config.left_out.is_empty() {
        sleep(RETRY).await;
        let _turn = Arc::clone(&sidecar.turn).lock_owned().await;
        let asked = Arc::clone(&sidecar);
        let Ok(done) = spawn_blocking(move || asked.take_in_left_out()).await else {
            return;
        };
        sidecar.settled("taking in the peers that were left out", done);
    }
}

/// Answers scrapers as soon as that is possible.
async fn serve_metrics(
    sidecar: Arc<Sidecar>,
    address: SocketAddr,
    events: EventLog,
    stop: watch::Receiver<bool>,
) {
    let endpoint = loop {
        match sidecar.settled("metrics", Endpoint::bind(address)) {
            Some(endpoint) => break endpoint,
            None => sleep(RETRY).await,
        }
    };
    let control = sidecar.control();
    endpoint.serve(sidecar, control, events, wanted(stop)).await;
}

/// Listens for the API over TCP as soon as that is possible, if it is configured.
async fn listen(sidecar: Arc<Sidecar>, config: Option<ApiTcpConfig>) -> Option<TcpApi> {
    let config = config?;
    loop {
        match sidecar.settled("API over TCP", tcp_api(&config)) {
            Some(tcp) => {
                sidecar.note_api_tls(tcp.tls());
                return Some(tcp);
            }
            None => sleep(RETRY).await,
        }
    }
}

fn tcp_api(config: &ApiTcpConfig) -> Result<TcpApi, TcpError> {
    TcpApi::bind(&config.listen, &tls_files(config))
}

fn tls_files(config: &ApiTcpConfig) -> TlsFiles {
    TlsFiles {
        certificate: config.certificate_file.clone(),
        key: config.key_file.clone(),
        ca: config.ca_file.clone(),
    }
}

/// Serves the API until the daemon is to stop. Without it the sessions are still protected, so a
/// failure is logged and no more.
async fn serve_api(
    socket: ApiSocket,
    tcp: impl Future<Output = Option<TcpApi>>,
    api: grpc_api::Api<Sidecar, Control, Administrator>,
    stop: watch::Receiver<bool>,
) {
    let grace_over = async {
        wanted(stop.clone()).await;
        sleep(API_GRACE).await;
    };
    tokio::select! {
        served = grpc_api::serve(socket, tcp, api, wanted(stop.clone())) => {
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
