//! The userspace backend: netfilter queues, a worker per queue, and an engine in each.
//!
//! Read in this order: [`Prepared`] and [`Userspace`], `worker` (a packet's way), `icmp`,
//! `journal` (what survives a restart), `sessions` (connections whose socket is gone).

mod icmp;
mod journal;
mod log;
mod queues;
mod reports;
mod restored;
mod routes;
mod sessions;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ao_engine::policy::{ConnectionId, Policy};
use ao_sys::links::Links;
use ao_sys::nfqueue::{BindError, Queue};
use ao_sys::probe::kernel_has_tcp_ao;

use self::icmp::IcmpWorker;
use self::journal::Journal;
pub use self::journal::JournalError;
use self::reports::WorkerReport;
use self::restored::Restored;
use self::worker::{Command, Handle, Shared, Worker};
use crate::abort::AbortOnPanic;
use crate::datapath::StartError;
use crate::firewall::Queues;
use crate::keys::{Arrangement, Carrier, KeyError, KeyOf, Observed, Proofs, Removal, unobserved};
use crate::report::Report;
use crate::settings::{Settings, Strip};

/// How often connections are compared with the sockets the kernel has.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);
/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Queues that are bound, but not served yet.
pub(crate) struct BoundQueues {
    workers: Vec<Queue>,
    icmp: Queue,
}

impl BoundQueues {
    /// Binds the queues of the workers and the one of ICMP errors.
    pub(crate) fn bind(queues: Queues, length: u32) -> Result<Self, StartError> {
        Ok(Self {
            workers: (queues.first..=queues.last())
                .map(|number| bind(number, length))
                .collect::<Result<_, _>>()?,
            icmp: bind(queues.icmp(), length)?,
        })
    }
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

/// The backend with its memory of earlier connections, before any thread of it runs.
pub(crate) struct Prepared {
    queues: BoundQueues,
    shared: Arc<Shared>,
}

impl Prepared {
    /// Reads what an earlier process has recorded of connections that the policy covers.
    pub(crate) fn new(
        queues: BoundQueues,
        settings: &Settings,
        policy: &Policy,
        links: Arc<Links>,
    ) -> Result<Self, StartError> {
        // Each worker's table may be full.
        let slots = settings
            .max_connections
            .saturating_mul(u32::from(settings.workers));
        let (journal, records) = Journal::open(&settings.state_dir, slots)?;
        let restored = Restored::new(records, &journal, policy);
        let strips = match settings.strip {
            Strip::Always => true,
            Strip::Never => false,
            Strip::Auto => kernel_has_tcp_ao().map_err(|e| StartError::Io("TCP socket", e))?,
        };
        let shared = Arc::new(Shared::new(settings, strips, journal, restored, links));
        Ok(Self { queues, shared })
    }

    /// Whether a connection is on record.
    pub(crate) fn knows(&self, connection: &ConnectionId) -> bool {
        self.shared.restored.has(connection)
    }

    /// Serves the queues from now on.
    pub(crate) fn run(self, policy: &Arc<Policy>) -> Result<Userspace, StartError> {
        let Self { queues, shared } = self;
        let mut workers = Vec::new();
        for (number, queue) in (0..).zip(queues.workers) {
            let worker = Worker::new(number, queue, Arc::clone(&shared), Arc::clone(policy));
            let handle = worker
                .spawn()
                .map_err(|e| StartError::Io("worker thread", e))?;
            workers.push(Arc::new(handle));
        }
        let icmp = IcmpWorker::spawn(queues.icmp, Arc::clone(&shared), workers.clone())
            .map_err(|e| StartError::Io("ICMP thread", e))?;
        let housekeeper = housekeep(Arc::clone(&shared), workers.clone())
            .map_err(|e| StartError::Io("housekeeping thread", e))?;
        Ok(Userspace {
            shared,
            workers,
            icmp,
            housekeeper: Mutex::new(Some(housekeeper)),
            policy: Mutex::new(Arc::clone(policy)),
        })
    }
}

/// The running backend.
pub(crate) struct Userspace {
    shared: Arc<Shared>,
    workers: Vec<Arc<Handle>>,
    icmp: IcmpWorker,
    housekeeper: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
    /// What the workers were told last.
    policy: Mutex<Arc<Policy>>,
}

impl Userspace {
    /// Follows a change of devices or peers. When it returns, all workers have followed.
    ///
    /// # Errors
    /// When a worker does not answer in time. It follows as soon as it can.
    pub(crate) fn adapt(&self, links: &Arc<Links>, policy: &Arc<Policy>) -> Result<(), KeyError> {
        self.shared.set_links(Arc::clone(links));
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(policy);
        let adapted = ask(&self.workers, PATIENCE, |reply| {
            Command::Adapt(Arc::clone(links), Arc::clone(policy), reply)
        });
        match adapted.len() == self.workers.len() {
            true => Ok(()),
            false => Err(KeyError::Unanswered),
        }
    }

    /// Waits until what is in the queues now has been served.
    pub(crate) fn settle(&self) {
        ask(&self.workers, PATIENCE, Command::Settle);
    }

    /// Whether all threads are alive and the workers answer in time; who does not.
    pub(crate) fn check(&self, patience: Duration) -> Result<(), String> {
        let answered = ask(&self.workers, patience, Command::Settle).len();
        if answered < self.workers.len() {
            let silent = self.workers.len() - answered;
            return Err(format!(
                "{silent} of {} workers of the userspace backend do not answer",
                self.workers.len()
            ));
        }
        match self.icmp.is_alive() {
            true => Ok(()),
            false => Err("the thread of the ICMP queue has ended".to_owned()),
        }
    }

    /// Lets quiet sessions of these peers send a signed acknowledgment.
    pub(crate) fn nudge(&self, peers: &[Arc<str>]) {
        let peers: Arc<HashSet<Arc<str>>> = Arc::new(peers.iter().cloned().collect());
        for worker in &self.workers {
            worker.send(Command::Nudge(Arc::clone(&peers)));
        }
    }

    /// The arrangement, adopted by all workers, is the proof of every step: they hold all
    /// sessions, and the keys of those that begin.
    fn adopt(&self, arrangement: &Arrangement, steps: usize) -> Proofs {
        vec![self.adapt(&arrangement.links, &arrangement.policy); steps]
    }

    /// Adds what the workers tell to a report that has all peers.
    pub(crate) fn report(&self, report: &mut Report) {
        let links = self.shared.links();
        report.strips = self.shared.strips;
        let names = report.peers.iter().map(|peer| Arc::clone(&peer.name));
        let places: HashMap<Arc<str>, usize> = names.zip(0..).collect();
        let answers = worker_reports(&self.workers);
        report.partial |= answers.len() < self.workers.len();
        for (_, worker) in answers {
            add(&mut report.drops, &worker.drops);
            report.macs += worker.macs;
            report.mac_time += worker.mac_time;
            report
                .sessions
                .extend(worker.sessions.iter().map(|view| view.report(&links)));
            for (name, counted) in worker.peers {
                let place = places.get(&name).copied();
                let Some(peer) = place.and_then(|place| report.peers.get_mut(place)) else {
                    continue;
                };
                peer.segments_good += counted.good;
                peer.segments_sent += counted.sent;
                add(&mut peer.drops, &counted.drops);
                let both = [peer.last_refused, counted.last_refused];
                peer.last_refused = both.into_iter().flatten().min_by_key(|last| last.ago);
            }
            report.queues.push(worker.queue);
        }
        report.queues.push(self.icmp.queue_report());
        queues::fill_in(&mut report.queues);
        add(&mut report.drops, &self.icmp.drops());
        report
            .sessions
            .extend(self.shared.restored.sessions(&self.policy(), &links));
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops all threads; the queues are closed then.
    pub(crate) fn stop(&self) {
        let housekeeper = self
            .housekeeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((stop, thread)) = housekeeper {
            drop(stop);
            let _ = thread.join();
        }
        for worker in &self.workers {
            worker.stop();
        }
        self.icmp.stop();
    }
}

/// Forgets connections whose socket is gone, now and then, until the sender is dropped.
fn housekeep(
    shared: Arc<Shared>,
    workers: Vec<Arc<Handle>>,
) -> io::Result<(Sender<()>, JoinHandle<()>)> {
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

impl Carrier for Userspace {
    fn carry(&self, arrangement: Arrangement, keys: &[KeyOf]) -> Proofs {
        self.adopt(&arrangement, keys.len())
    }

    fn delete(&self, arrangement: Arrangement, keys: &[(KeyOf, Removal)]) -> Proofs {
        self.adopt(&arrangement, keys.len())
    }

    fn observe(&self, peers: &[Arc<str>]) -> Observed {
        let links = self.shared.links();
        // Before the workers are asked: what one takes up meanwhile is told twice rather than not.
        let restored = self.shared.restored.sessions(&self.policy(), &links);
        let wanted: Arc<HashSet<Arc<str>>> = Arc::new(peers.iter().cloned().collect());
        let answers = ask(&self.workers, PATIENCE, |reply| {
            Command::Observe(Arc::clone(&wanted), reply)
        });
        if answers.len() < self.workers.len() {
            return unobserved(peers, &KeyError::Unanswered);
        }
        let met = answers.iter().flat_map(|(_, sessions)| sessions);
        let none = peers.iter().map(|peer| (Arc::clone(peer), Ok(Vec::new())));
        let mut observed: Observed = none.collect();
        for session in met.map(|view| view.report(&links)).chain(restored) {
            if let Some(Ok(of_peer)) = observed.get_mut(&session.peer) {
                of_peer.push(session);
            }
        }
        observed
    }
}

/// The reports of the workers that answer in time.
fn worker_reports(workers: &[Arc<Handle>]) -> Vec<(&Handle, WorkerReport)> {
    ask(workers, PATIENCE, Command::Report)
}

/// Gives each worker a command, and collects the answers that come in time.
fn ask<T>(
    workers: &[Arc<Handle>],
    patience: Duration,
    command: impl Fn(Sender<T>) -> Command,
) -> Vec<(&Handle, T)> {
    let asked: Vec<_> = workers
        .iter()
        .map(|worker| {
            let (reply, answer) = mpsc::channel();
            worker.send(command(reply));
            (worker.as_ref(), answer)
        })
        .collect();
    let deadline = Instant::now() + patience;
    let left = || deadline.saturating_duration_since(Instant::now());
    asked
        .into_iter()
        .filter_map(|(worker, answer)| Some((worker, answer.recv_timeout(left()).ok()?)))
        .collect()
}

fn add(sum: &mut BTreeMap<&'static str, u64>, counted: &BTreeMap<&'static str, u64>) {
    for (name, count) in counted {
        *sum.entry(name).or_default() += count;
    }
}
