//! The userspace backend: netfilter queues, a worker per queue, and an engine in each.
//!
//! Read in this order: [`Userspace::start`] (what is done in which order, so that no moment is
//! unprotected), `worker` (a packet's way), `icmp`, `journal` (what survives a restart),
//! `sessions` (what the local TCP has, by socket diagnosis).

mod icmp;
mod journal;
mod lock;
mod log;
mod policy;
mod protected;
mod restored;
mod routes;
mod sessions;
mod worker;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ao_sys::capabilities::{have_net_admin, have_net_raw};
use ao_sys::links::Links;
use ao_sys::nfqueue::{BindError, Queue};
use ao_sys::probe::kernel_has_tcp_ao;
use ao_sys::sock_diag::TcpSocket;

use self::icmp::IcmpWorker;
use self::journal::{Journal, JournalError};
use self::lock::NamespaceLock;
use self::protected::Protected;
use self::restored::Restored;
use self::worker::{Command, Handle, Shared, Worker, WorkerReport};
use crate::abort::AbortOnPanic;
use crate::firewall::{self, Firewall, Queues, Ruleset, Watcher};
use crate::report::{PeerReport, Report};
use crate::settings::{Backend, OnExit, Settings, Strip};

/// How often connections are compared with the sockets the kernel has.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);
/// How long a worker may take to answer a request for its report.
const REPORT_PATIENCE: Duration = Duration::from_secs(2);

/// Why the backend could not start. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not root, and without the capabilities.
    #[error("CAP_NET_ADMIN and CAP_NET_RAW are needed: run ao-sidecar as root")]
    Permission,
    /// Two peers or keys contradict each other.
    #[error(transparent)]
    Policy(#[from] ao_engine::policy::PolicyError),
    /// The firewall rules; a guard that was installed stays.
    #[error(transparent)]
    Firewall(#[from] firewall::Error),
    /// A netfilter queue.
    #[error("{0}; stop that program or set another userspace.first_queue")]
    QueueHeld(#[source] BindError),
    /// A netfilter queue, for another cause.
    #[error(transparent)]
    Queue(BindError),
    /// The connection journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Another sidecar has its rules in this network namespace.
    #[error(
        "another ao-sidecar is at work in this network namespace; one serves all peers: stop it, \
         or add the peers to its configuration"
    )]
    AnotherSidecar,
    /// Sessions to configured peers are alive and unprotected.
    #[error(
        "unprotected session{} alive: {}; run with --replace-sessions to close {} and let the \
         daemon reconnect protected",
        if .0.len() == 1 { " is" } else { "s are" },
        .0.join(", "),
        if .0.len() == 1 { "it" } else { "them" },
    )]
    UnprotectedSessions(Vec<String>),
    /// Anything the kernel refused.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

/// Why the backend could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The rules are still there: configured peers stay blocked.
    #[error("the firewall rules could not be removed: {0}")]
    Firewall(#[from] firewall::Error),
}

/// The running backend.
pub struct Userspace {
    settings: Settings,
    shared: Arc<Shared>,
    firewall: Arc<Firewall>,
    workers: Vec<Arc<Handle>>,
    icmp: IcmpWorker,
    // Dropped first when the backend goes: it must not put rules back that are being removed.
    watcher: Option<Watcher>,
    housekeeper: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    _lock: NamespaceLock,
}

impl Userspace {
    /// Starts the backend in the calling thread's network namespace. When it returns, guard and
    /// rules are in place and the queues are served.
    ///
    /// # Errors
    /// See [`StartError`]. Configured peers are blocked, never unprotected, after an error that
    /// came once rules were in place.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        if !have_net_admin() || !have_net_raw() {
            return Err(StartError::Permission);
        }
        let links = Arc::new(Links::read().map_err(|e| StartError::Io("network devices", e))?);
        let policy = Arc::new(policy::resolve(&settings.peers, &links)?);
        let firewall = Arc::new(Firewall::probe()?);
        let ruleset = ruleset(&settings)?;
        // Queues and lock first: what another sidecar protects must not be taken for unprotected.
        // And queues before rules: from the first rule on there is somebody to serve them.
        let queues = queues(&settings);
        let bind = |number| bind(number, settings.queue_length);
        let worker_queues = (queues.first..=queues.last())
            .map(bind)
            .collect::<Result<Vec<_>, _>>()?;
        let icmp_queue = bind(queues.icmp())?;
        let lock = NamespaceLock::acquire()?;
        // Each worker's table may be full.
        let slots = settings
            .max_connections
            .saturating_mul(u32::from(settings.workers));
        let (journal, records) = Journal::open(&settings.state_dir, slots)?;
        let restored = Restored::new(records, &journal, &policy);
        let strangers = || {
            sessions::unknown(&policy, &links, &restored)
                .map_err(|e| StartError::Io("socket diagnosis", e))
        };
        let covered = match firewall.has_guard()? {
            true => Protected::load(&settings.state_dir),
            false => Protected::default(),
        };
        let was_guarded = |socket: &TcpSocket| covered.covers(socket.local, socket.remote);
        let mut unprotected = strangers()?;
        unprotected.retain(|socket| !was_guarded(socket));
        if !unprotected.is_empty() && !settings.replace_sessions {
            let names = unprotected.iter().map(sessions::name).collect();
            return Err(StartError::UnprotectedSessions(names));
        }

        let strips = match settings.strip {
            Strip::Always => true,
            Strip::Never => false,
            Strip::Auto => kernel_has_tcp_ao().map_err(|e| StartError::Io("TCP socket", e))?,
        };
        firewall.install(&ruleset)?;
        note_protected(&settings);
        // Looked at again: what came up since the first look was not signed, either, as no worker
        // runs yet.
        let unprotected = strangers()?;

        let shared = Arc::new(Shared::new(
            &settings,
            strips,
            journal,
            restored,
            Arc::clone(&links),
        ));
        let mut workers = Vec::new();
        for (number, queue) in (0..).zip(worker_queues) {
            let worker = Worker::new(number, queue, Arc::clone(&shared), Arc::clone(&policy));
            let handle = worker
                .spawn()
                .map_err(|e| StartError::Io("worker thread", e))?;
            workers.push(Arc::new(handle));
        }
        let icmp = IcmpWorker::spawn(icmp_queue, Arc::clone(&shared), workers.clone())
            .map_err(|e| StartError::Io("ICMP thread", e))?;
        let watcher = watch(&settings, &shared, &firewall, &workers)?;
        for session in &unprotected {
            sessions::close(session, was_guarded(session));
        }
        let housekeeper = housekeep(Arc::clone(&shared), workers.clone())
            .map_err(|e| StartError::Io("housekeeping thread", e))?;
        Ok(Self {
            settings,
            shared,
            firewall,
            workers,
            icmp,
            watcher: Some(watcher),
            housekeeper: Some(housekeeper),
            _lock: lock,
        })
    }

    /// What there is to tell, gathered from all workers and the firewall.
    #[must_use]
    pub fn report(&self) -> Report {
        let reports = worker_reports(&self.workers);
        let links = self.shared.links();
        let mut report = Report {
            queue_rules: self.firewall.queue_rules().as_str(),
            guard: self.firewall.guard().as_str(),
            strips: self.shared.strips,
            rules_restored: self.firewall.restored(),
            firewall_drops: self.firewall.drops().unwrap_or_default(),
            peers: self.settings.peers.iter().map(peer_report).collect(),
            ..Report::default()
        };
        for (_, worker) in &reports {
            report.queues.push(worker.queue.clone());
            add(&mut report.drops, &worker.drops);
            report
                .sessions
                .extend(worker.sessions.iter().map(|view| view.report(&links)));
            for peer in &mut report.peers {
                if let Some(counted) = worker.peers.get(&peer.name) {
                    peer.segments_good += counted.good;
                    peer.segments_sent += counted.sent;
                    add(&mut peer.drops, &counted.drops);
                }
            }
        }
        report.queues.push(self.icmp.queue_report());
        add(&mut report.drops, &self.icmp.drops());
        report
            .sessions
            .extend(self.shared.restored.sessions(&self.settings.peers, &links));
        for session in &report.sessions {
            if session.state == crate::report::SessionState::Established
                && let Some(peer) = report
                    .peers
                    .iter_mut()
                    .find(|peer| peer.name == session.peer)
            {
                peer.sessions += 1;
            }
        }
        report
    }

    /// Stops in order. Rules and guard stay or go as configured; while they stay, configured
    /// peers are blocked.
    ///
    /// # Errors
    /// When rules that should go could not be removed.
    pub fn stop(mut self) -> Result<(), StopError> {
        drop(self.watcher.take());
        if let Some((stop, thread)) = self.housekeeper.take() {
            drop(stop);
            let _ = thread.join();
        }
        // The queues close after the rules are gone, so that what is under way is not lost.
        if self.settings.on_exit == OnExit::Remove {
            self.firewall.remove()?;
        }
        for worker in &self.workers {
            worker.stop();
        }
        self.icmp.stop();
        Ok(())
    }
}

/// Installs the guard alone: configured peers are blocked until a sidecar runs.
///
/// # Errors
/// See [`StartError`].
pub fn install_guard(settings: &Settings) -> Result<(), StartError> {
    if !have_net_admin() || !have_net_raw() {
        return Err(StartError::Permission);
    }
    let _lock = NamespaceLock::acquire()?;
    Firewall::probe()?.install_guard(&ruleset(settings)?)?;
    note_protected(settings);
    Ok(())
}

/// Removes guard and rules: configured peers are unprotected from then on.
///
/// # Errors
/// See [`StartError`].
pub fn remove_guard() -> Result<(), StartError> {
    if !have_net_admin() || !have_net_raw() {
        return Err(StartError::Permission);
    }
    let _lock = NamespaceLock::acquire()?;
    Ok(Firewall::probe()?.remove()?)
}

/// Without the note a later start may refuse where it could close a session: no reason to stop.
fn note_protected(settings: &Settings) {
    if let Err(error) = Protected::save(&settings.state_dir, &settings.peers) {
        tracing::warn!(%error, "cannot note which peers are covered");
    }
}

fn queues(settings: &Settings) -> Queues {
    Queues {
        first: settings.first_queue,
        workers: settings.workers,
    }
}

fn ruleset(settings: &Settings) -> Result<Ruleset, firewall::Error> {
    let peers = settings.peers.iter().map(|peer| (peer, Backend::Userspace));
    Ruleset::new(peers, queues(settings), settings.mark_bit)
}

fn bind(number: u16, length: u32) -> Result<Queue, StartError> {
    // Each waiting packet takes its data and the kernel's bookkeeping: 2 KiB of buffer for a
    // packet of Ethernet's size.
    let buffer = length.saturating_mul(2048);
    Queue::bind(number, length, buffer).map_err(|error| match error {
        BindError::Held { .. } => StartError::QueueHeld(error),
        BindError::Permission(_) => StartError::Permission,
        other => StartError::Queue(other),
    })
}

fn watch(
    settings: &Settings,
    shared: &Arc<Shared>,
    firewall: &Arc<Firewall>,
    workers: &[Arc<Handle>],
) -> Result<Watcher, StartError> {
    let peers = settings.peers.clone();
    let shared = Arc::clone(shared);
    let workers = workers.to_vec();
    let on_links = move |links: &Arc<Links>| {
        shared.set_links(Arc::clone(links));
        match policy::resolve(&peers, links) {
            Ok(policy) => {
                let policy = Arc::new(policy);
                for worker in &workers {
                    worker.send(Command::Links(Arc::clone(links), Arc::clone(&policy)));
                }
            }
            Err(error) => tracing::error!(%error, "peers could not be matched to the new devices"),
        }
    };
    Ok(Watcher::spawn(Arc::clone(firewall), on_links)?)
}

/// Forgets connections whose socket is gone, now and then, until the sender is dropped.
fn housekeep(
    shared: Arc<Shared>,
    workers: Vec<Arc<Handle>>,
) -> io::Result<(mpsc::Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = mpsc::channel::<()>();
    let run = move || {
        let _abort = AbortOnPanic;
        let mut missing = HashSet::new();
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(RECONCILE_EVERY) {
            let reports = worker_reports(&workers);
            if let Err(error) = sessions::reconcile(&shared, &reports, &mut missing) {
                tracing::warn!(%error, "cannot compare connections with sockets");
            }
        }
    };
    let thread = thread::Builder::new()
        .name("ao-housekeeper".to_owned())
        .spawn(run)?;
    Ok((stop, thread))
}

/// The reports of the workers that answer in time.
fn worker_reports(workers: &[Arc<Handle>]) -> Vec<(&Handle, WorkerReport)> {
    let asked: Vec<_> = workers
        .iter()
        .map(|worker| (worker.as_ref(), worker.ask_report()))
        .collect();
    let deadline = Instant::now() + REPORT_PATIENCE;
    let left = || deadline.saturating_duration_since(Instant::now());
    asked
        .into_iter()
        .filter_map(|(worker, answer)| Some((worker, answer.recv_timeout(left()).ok()?)))
        .collect()
}

fn peer_report(spec: &crate::settings::PeerSpec) -> PeerReport {
    let address = match &spec.interface {
        Some(interface) => format!("{}%{interface}", spec.remote),
        None => spec.remote.to_string(),
    };
    PeerReport {
        name: Arc::clone(&spec.name),
        address,
        backend: Backend::Userspace,
        backend_reason: String::new(),
        sessions: 0,
        segments_good: 0,
        segments_sent: 0,
        drops: BTreeMap::new(),
    }
}

fn add(sum: &mut BTreeMap<&'static str, u64>, counted: &BTreeMap<&'static str, u64>) {
    for (name, count) in counted {
        *sum.entry(name).or_default() += count;
    }
}
