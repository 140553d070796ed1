//! The kernel backend: the kernel's own TCP-AO on the sockets of daemons that never ask for it.
//!
//! Read in this order: `wanted` (which socket should have which keys), `plan` (what is to be done
//! about it), `steps` (doing it on one socket), `round` (on all of them), `keepers` and `calls`
//! (on a socket whose daemon is about to connect or listen).

mod calls;
mod keepers;
mod optmem;
mod plan;
mod round;
mod sessions;
mod sockets;
mod steps;
mod wanted;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ao_engine::policy::Peer;
use ao_sys::tcp_socket;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use self::keepers::{Registry, Server};
use self::optmem::OptionMemory;
pub(crate) use self::plan::{kernel_name, mac_length};
use self::round::{Orders, Round, Used};
pub(crate) use self::sessions::ActiveSessions;
use self::sessions::Seen;
use self::sockets::{Concerned, Opener, Trust};
pub(crate) use self::wanted::Target;
use crate::abort::AbortOnPanic;
use crate::keeper::protocol::PeerRange;
use crate::keys::{Arrangement, Carrier, KeyError, KeyOf, Observed, Proofs, Removal, unobserved};
use crate::report::{KernelReport, LaunchedDaemon, Session};

/// How often sockets are compared with what they should have, when nothing happens.
const INTERVAL: Duration = Duration::from_secs(30);
/// How soon that is done again while something is left to do.
const SOON: Duration = Duration::from_secs(1);

/// A daemon under `ao-sidecar exec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launched {
    pub(crate) name: String,
    pub(crate) pid: u32,
}

/// What the threads of the backend share.
struct Shared {
    target: RwLock<Arc<Target>>,
    memory: OptionMemory,
    registry: Registry,
    /// One round at a time; with it, where sockets were last seen.
    opener: Mutex<Opener>,
    last_round: Mutex<Round>,
    wake: Mutex<Sender<Wake>>,
    network_namespace_cookie: Option<u64>,
    /// Whether the kernel has TCP-AO. Without it daemons are launched all the same.
    able: bool,
    /// Called when a daemon has registered or gone, before it goes on.
    on_registered: Box<dyn Fn() + Send + Sync>,
}

enum Wake {
    Recheck,
    Stop,
}

/// The running backend.
pub(crate) struct Kernel {
    shared: Arc<Shared>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    server: Option<Server>,
    reconciler: Option<JoinHandle<()>>,
}

/// Keys that could not be installed everywhere; those that could are removed again.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct RefusedKeys(Vec<String>);

impl Kernel {
    /// Starts the backend for `target`; `able` tells whether the kernel has TCP-AO.
    /// `on_registered` is called whenever a daemon has registered or gone, from another thread; a
    /// registering daemon waits for it.
    pub(crate) fn start(
        target: Target,
        able: bool,
        on_registered: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let (wake, woken) = mpsc::channel();
        let shared = Arc::new(Shared {
            target: RwLock::new(Arc::new(target)),
            memory: OptionMemory::default(),
            registry: Registry::default(),
            opener: Mutex::default(),
            last_round: Mutex::default(),
            wake: Mutex::new(wake),
            network_namespace_cookie: network_namespace_cookie()?,
            able,
            on_registered,
        });
        shared.round(&Orders::default());
        let reconciling = Arc::clone(&shared);
        let reconciler = thread::Builder::new()
            .name("ao-reconciler".to_owned())
            .spawn(move || {
                let _abort = AbortOnPanic;
                reconciling.reconcile(&woken);
            })?;
        let threads = Threads {
            server: None,
            reconciler: Some(reconciler),
        };
        Ok(Self {
            shared,
            threads: Mutex::new(threads),
        })
    }

    /// Begins to serve launched daemons at `socket`.
    pub(crate) fn serve(&self, socket: &Path) -> io::Result<()> {
        let server = Server::start(socket, Arc::clone(&self.shared))?;
        self.threads().server = Some(server);
        Ok(())
    }

    /// Stops in order: launched daemons are without a sidecar from now on, their sockets keep
    /// their keys.
    pub(crate) fn stop(&self) {
        let Threads { server, reconciler } = std::mem::take(&mut *self.threads());
        drop(server);
        self.shared.send(Wake::Stop);
        if let Some(reconciler) = reconciler {
            let _ = reconciler.join();
        }
    }

    /// Whether the thread that compares sockets with what they should have is alive.
    pub(crate) fn is_alive(&self) -> bool {
        let threads = self.threads();
        let reconciler = threads.reconciler.as_ref();
        reconciler.is_some_and(|thread| !thread.is_finished())
    }

    /// Whether a daemon is registered.
    pub(crate) fn has_daemon(&self) -> bool {
        !self.shared.registry.daemons().is_empty()
    }

    /// What the sockets should have now.
    pub(crate) fn target(&self) -> Arc<Target> {
        self.shared.target()
    }

    /// Changes what the sockets should have, and makes it so before it returns. With `strictly`,
    /// nothing changes unless every key could be added everywhere.
    pub(crate) fn set_target(&self, target: Target, strictly: bool) -> Result<(), RefusedKeys> {
        let former = self.shared.target();
        self.shared.set_target(Arc::new(target));
        let refused = self.shared.round(&Orders {
            strictly,
            ..Orders::default()
        });
        if strictly && !refused.is_empty() {
            // What was added is wanted no more, and so is deleted.
            self.restore_target(former);
            return Err(RefusedKeys(refused));
        }
        self.shared.registry.tell(|| self.shared.peer_ranges());
        self.shared.recheck();
        Ok(())
    }

    /// Goes back to a target that was there before.
    pub(crate) fn restore_target(&self, former: Arc<Target>) {
        self.shared.set_target(former);
        self.shared.round(&Orders::default());
        self.shared.registry.tell(|| self.shared.peer_ranges());
    }

    /// Live sessions of the target's peers, with the kernel's counters.
    pub(crate) fn sessions(&self) -> sessions::Reported {
        if !self.shared.able {
            return sessions::Reported::default();
        }
        let target = self.shared.target();
        // A round has it for as long as it takes: then the sockets are looked for anew.
        match self.shared.opener.try_lock() {
            Ok(mut opener) => sessions::report(&target, &Concerned::All, &mut opener),
            Err(_) => sessions::report(&target, &Concerned::All, &mut Opener::default()),
        }
    }

    /// The backend as a whole.
    pub(crate) fn report(&self) -> KernelReport {
        let (optmem_max, optmem_raised_from) = self.shared.memory.limits();
        let daemons = self.shared.registry.daemons();
        let last = self.shared.last_round();
        KernelReport {
            tcp_ao: self.shared.able,
            daemons: daemons
                .into_iter()
                .map(|Launched { name, pid }| LaunchedDaemon { name, pid })
                .collect(),
            listeners: last.listeners,
            optmem_max,
            optmem_raised_from,
            problems: last
                .problems
                .iter()
                .cloned()
                .chain(last.waiting.iter().map(Used::to_string))
                .collect(),
        }
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the arrangement so at the sockets of the peers of `keys`; `prove` tells whether a
    /// round proves it for one of them.
    fn carry_out<'k>(
        &self,
        arrangement: Arrangement,
        keys: impl Iterator<Item = &'k KeyOf> + Clone,
        forced: HashSet<(Arc<str>, u8)>,
        prove: impl Fn(&Round, &KeyOf) -> Result<(), KeyError>,
    ) -> Proofs {
        self.shared.set_target(Arc::new(arrangement.target));
        let peers = keys.clone().map(|key| Arc::clone(&key.peer)).collect();
        match self.shared.round_of(peers, forced) {
            Ok(round) => keys.map(|key| prove(&round, key)).collect(),
            Err(error) => keys.map(|_| Err(not_listed(&error))).collect(),
        }
    }
}

fn not_listed(error: &io::Error) -> KeyError {
    KeyError::Socket(format!("sockets cannot be listed: {error}"))
}

/// A round has done at every socket of a peer what there was to do.
fn is_done(round: &Round, key: &KeyOf) -> Result<(), KeyError> {
    let trouble = round.troubles.get(&key.peer);
    if let Some(trouble) = trouble.or(round.trouble_for_all.as_ref()) {
        return Err(KeyError::Socket(trouble.clone()));
    }
    match round.unaccepted.get(&key.peer) {
        Some(session) => Err(KeyError::NotAccepted {
            session: session.clone(),
        }),
        None => Ok(()),
    }
}

/// A round has found a key that is to go at no socket of its peer.
fn is_gone(round: &Round, key: &KeyOf) -> Result<(), KeyError> {
    let mut waiting = round.waiting.iter();
    match waiting.find(|used| used.peer == key.peer && used.send_id == key.send_id) {
        Some(used) => Err(KeyError::InUse {
            send_id: key.send_id,
            session: used.session.clone(),
        }),
        None => is_done(round, key),
    }
}

impl Carrier for Kernel {
    fn carry(&self, arrangement: Arrangement, keys: &[KeyOf]) -> Proofs {
        self.carry_out(arrangement, keys.iter(), HashSet::new(), is_done)
    }

    fn delete(&self, arrangement: Arrangement, keys: &[(KeyOf, Removal)]) -> Proofs {
        let forced = keys.iter().filter(|key| key.1 == Removal::Forced);
        let forced = forced.map(|(key, _)| (Arc::clone(&key.peer), key.send_id));
        let forced = forced.collect();
        self.carry_out(arrangement, keys.iter().map(|key| &key.0), forced, is_gone)
    }

    fn observe(&self, peers: &[Arc<str>]) -> Observed {
        let none = peers.iter().map(|peer| (Arc::clone(peer), Ok(Vec::new())));
        let mut observed: Observed = none.collect();
        if !self.shared.able {
            return observed;
        }
        let target = self.shared.target();
        let of = Concerned::Peers(peers.iter().cloned().collect());
        let Seen { sessions, unseen } =
            match sessions::look(&target, &of, &mut self.shared.opener()) {
                Ok(seen) => seen,
                Err(error) => return unobserved(peers, &not_listed(&error)),
            };
        let concerned = target.peers().filter(|peer| of.has(&peer.name));
        let by_name: HashMap<&str, &Peer> =
            concerned.map(|peer| (&*peer.name, peer.as_ref())).collect();
        let is_behind = |session: &Session| {
            let Some(peer) = by_name.get(&*session.peer) else {
                return false;
            };
            let preferred = peer.keys.first().map(|key| key.recv_id);
            preferred.is_some_and(|recv_id| recv_id != session.rnext_key)
                || peer.accept_only.contains(&session.current_key)
        };
        // One that was accepted since the last round has what its SYN asked for, and one that the
        // far end took back to a retired key signs with that.
        if sessions.iter().any(is_behind) {
            self.shared.recheck();
        }
        for session in sessions {
            if let Some(Ok(of_peer)) = observed.get_mut(&session.peer) {
                of_peer.push(session);
            }
        }
        observed.extend(unseen.into_iter().map(|(peer, error)| (peer, Err(error))));
        observed
    }
}

impl Shared {
    fn target(&self) -> Arc<Target> {
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&target)
    }

    fn set_target(&self, target: Arc<Target>) {
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// The kernel's peers, as keepers know them.
    fn peer_ranges(&self) -> Vec<PeerRange> {
        let target = self.target();
        let range = |peer: &Arc<Peer>| PeerRange {
            remote: peer.selector.remote,
            first_port: *peer.selector.ports.start(),
            last_port: *peer.selector.ports.end(),
        };
        target.peers().map(range).collect()
    }

    fn registered(&self) {
        (self.on_registered)();
    }

    fn recheck(&self) {
        self.send(Wake::Recheck);
    }

    fn send(&self, wake: Wake) {
        let sender = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
        // The reconciler has ended, and needs no waking.
        let _ = sender.send(wake);
    }

    fn opener(&self) -> MutexGuard<'_, Opener> {
        self.opener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_round(&self) -> MutexGuard<'_, Round> {
        self.last_round
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares at intervals, on request, and soon again where something is left to do.
    fn reconcile(&self, woken: &mpsc::Receiver<Wake>) {
        loop {
            let unfinished = self.last_round().is_unfinished();
            let patience = if unfinished { SOON } else { INTERVAL };
            match woken.recv_timeout(patience) {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Recheck) | Err(RecvTimeoutError::Timeout) => {}
            }
            // Requests that came meanwhile are answered by the same round.
            loop {
                match woken.try_recv() {
                    Ok(Wake::Recheck) => {}
                    Ok(Wake::Stop) => return,
                    Err(_) => break,
                }
            }
            if self.target().has_peers() {
                self.round(&Orders::default());
            }
        }
    }

    /// One round over all sockets; returns why not every one has all keys it should have.
    fn round(&self, orders: &Orders) -> Vec<String> {
        if !self.able {
            return Vec::new();
        }
        let round = match self.run_round(orders) {
            Ok(round) => round,
            Err(error) => {
                tracing::warn!(%error, "sockets cannot be listed; keys stay as they are");
                let problem = format!("sockets cannot be listed: {error}");
                self.last_round().problems = vec![problem.clone()];
                return vec![problem];
            }
        };
        let mut last = self.last_round();
        round.log_after(&last);
        let refused = round.refused.clone();
        *last = round;
        refused
    }

    fn run_round(&self, orders: &Orders) -> io::Result<Round> {
        let mut opener = self.opener();
        let trust = Trust::new(self.registry.users());
        round::run(&self.target(), &mut opener, &self.memory, &trust, orders)
    }

    /// One round over the sockets of some peers.
    fn round_of(
        &self,
        peers: HashSet<Arc<str>>,
        forced: HashSet<(Arc<str>, u8)>,
    ) -> io::Result<Round> {
        let round = self.run_round(&Orders {
            of: Concerned::Peers(peers),
            strictly: false,
            forced,
        })?;
        round.log_after(&self.last_round());
        if round.is_unfinished() {
            self.recheck();
        }
        Ok(round)
    }
}

/// The cookie of this thread's network namespace, by a socket made in it.
fn network_namespace_cookie() -> io::Result<Option<u64>> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let facts = tcp_socket::facts(socket.as_fd())?;
    Ok(facts.and_then(|facts| facts.network_namespace_cookie))
}
