//! The datapath as a whole: rules, guard, and the backends behind them.
//!
//! Read in this order: [`Datapath::start`] (what is done in which order, so that no moment is
//! unprotected), [`Datapath::set_keys`] (all keys at once), `keys` (one after the other, with
//! proofs), `Running::reconsider` (peers change hands when a daemon is launched).

mod error;
mod evidence;
mod guard;
mod keys;
mod reconfigure;
mod served;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ao_engine::policy::Policy;
use ao_sys::capabilities::{have_net_admin, have_net_raw};
use ao_sys::links::Links;
use ao_sys::probe;
use ao_sys::sock_diag::TcpState;

pub use self::error::{ReloadError, StartError, StopError};
pub use self::guard::{install_guard, remove_guard};
pub use self::reconfigure::Reconfigured;
use self::served::{
    Served, backend_of, differences, engine_policy, kernel_target, needs_queues, peer_report,
    served,
};
use crate::choice::{self, Abilities, Circumstances, Decision};
use crate::firewall::{self, Firewall, Queues, Ruleset, Watcher};
use crate::kernel::{ActiveSessions, Kernel, Target};
use crate::lock::NamespaceLock;
use crate::policy;
use crate::protected::Protected;
use crate::report::{Report, SessionState};
use crate::settings::{Backend, OnExit, PeerSpec, Settings};
use crate::sockets::{self, PeerSocket};
use crate::userspace::{BoundQueues, Prepared, Userspace};

/// The running datapath.
pub struct Datapath {
    running: Arc<Running>,
    // Dropped first when the datapath goes: it must not put rules back that are being removed.
    watcher: Option<Watcher>,
    _lock: NamespaceLock,
}

/// What threads beside the caller's act upon, too.
struct Running {
    /// As given at the start; the peers are in `state`.
    settings: Settings,
    firewall: Arc<Firewall>,
    /// Absent when the kernel serves all peers by configuration.
    userspace: Option<Userspace>,
    /// Set once, as it tells us of launched daemons.
    kernel: OnceLock<Kernel>,
    abilities: Abilities,
    /// Held by whoever makes a change, until it is done; taken before `state`.
    turn: Mutex<()>,
    state: Mutex<State>,
}

/// What may change while the datapath runs.
struct State {
    /// In the order of the configuration.
    peers: Vec<Served>,
    links: Arc<Links>,
    /// What the engine was told last.
    policy: Arc<Policy>,
}

impl Datapath {
    /// Starts the datapath in the calling thread's network namespace. When it returns, guard and
    /// rules are in place and the backends serve.
    ///
    /// # Errors
    /// See [`StartError`]. Configured peers are blocked, never unprotected, after an error that
    /// came once rules were in place.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        check_privileges()?;
        let links = Arc::new(Links::read().map_err(|e| StartError::Io("network devices", e))?);
        // All peers at once: what contradicts itself does so whoever serves it.
        let everyone = Arc::new(policy::resolve(&settings.peers, &links)?);
        let firewall = Arc::new(Firewall::probe()?);
        let abilities = Abilities::probe().map_err(|e| StartError::Io("TCP socket", e))?;
        let active = active_sessions(&abilities, &everyone, &links);
        let decisions = choice::decide(&settings.peers, &abilities, |peer| Circumstances {
            kernel_session: active.any_of(&peer.name),
            // Those that there are register, or register again, as soon as we serve.
            launched: false,
            userspace_session: false,
        })?;
        choice::log(&settings.peers, &decisions);
        if abilities.tcp_ao {
            note_key_room(&settings.peers);
        }
        let peers = served(&settings.peers, decisions);
        let policy = Arc::new(engine_policy(&peers, &links)?);
        let ruleset = ruleset(&settings, &peers)?;
        // Queues and lock first: what another sidecar protects must not be taken for unprotected.
        // And queues before rules: from the first rule on there is somebody to serve them.
        let bound = needs_queues(&settings.peers)
            .then(|| BoundQueues::bind(queues(&settings), settings.queue_length))
            .transpose()?;
        let lock = NamespaceLock::acquire()?;
        let prepared = bound
            .map(|bound| Prepared::new(bound, &settings, &policy, Arc::clone(&links)))
            .transpose()?;
        let strangers = || {
            let mut sockets = sockets::of_peers(&policy, &links)
                .map_err(|e| StartError::Io("socket diagnosis", e))?;
            // Read each time: the kernel goes on opening sessions while we start.
            let active = active_sessions(&abilities, &everyone, &links);
            sockets.retain(|socket| match backend_of(&peers, &socket.peer) {
                // One that nobody has accepted yet cannot be looked at; the guard covers it.
                Backend::Kernel => {
                    socket.socket.inode != 0
                        && !active.has(socket.socket.local, socket.socket.remote)
                }
                Backend::Userspace => !prepared
                    .as_ref()
                    .is_some_and(|prepared| prepared.knows(&socket.connection)),
            });
            Ok::<_, StartError>(sockets)
        };
        let covered = match firewall.has_guard()? {
            true => Protected::load(&settings.state_dir),
            false => Protected::default(),
        };
        let was_guarded =
            |found: &PeerSocket| covered.covers(found.socket.local, found.socket.remote);
        let mut unprotected = strangers()?;
        unprotected.retain(|found| !was_guarded(found));
        if !unprotected.is_empty() && !settings.replace_sessions {
            let names = unprotected.iter().map(|found| sockets::name(&found.socket));
            return Err(StartError::UnprotectedSessions(names.collect()));
        }

        firewall.install(&ruleset)?;
        note_protected(&settings);
        // Looked at again: what came up since the first look was not signed, either, as no backend
        // serves yet.
        let unprotected = strangers()?;

        let userspace = prepared.map(|prepared| prepared.run(&policy)).transpose()?;
        let target = kernel_target(&Target::default(), &peers, &links)?;
        let running = Arc::new(Running {
            settings,
            firewall: Arc::clone(&firewall),
            userspace,
            kernel: OnceLock::new(),
            abilities,
            turn: Mutex::default(),
            state: Mutex::new(State {
                peers,
                links,
                policy,
            }),
        });
        running.start_kernel(target)?;
        let told = Arc::clone(&running);
        let watcher = Watcher::spawn(firewall, move |links| told.set_links(links))
            // Its threads may be with us at this moment, and must not be the last to let go.
            .inspect_err(|_| running.stop_kernel())?;
        for found in &unprotected {
            sockets::close(&found.socket, was_guarded(found));
        }
        Ok(Self {
            running,
            watcher: Some(watcher),
            _lock: lock,
        })
    }

    /// What there is to tell, gathered from the backends and the firewall.
    #[must_use]
    pub fn report(&self) -> Report {
        self.running.report()
    }

    /// Whether everything that protection depends on is alive and answers within a second.
    ///
    /// # Errors
    /// What does not, for people.
    pub fn health(&self) -> Result<(), String> {
        match &self.running.userspace {
            Some(userspace) if !userspace.answers() => {
                Err("a worker of the userspace backend does not answer".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Replaces the keys of all peers, whose other settings must be as they are; returns how many
    /// peers have other keys now. All keys are replaced, or none. A peer that is given without
    /// keys keeps those it has: they are not the configuration's.
    ///
    /// Sessions go on. A peer's first key, if it is another one than before, becomes rnext_key of
    /// its sessions; keys that are gone verify nothing more.
    ///
    /// # Errors
    /// When something else than keys differs, or keys contradict each other.
    pub fn set_keys(&self, peers: &[PeerSpec]) -> Result<usize, ReloadError> {
        let _turn = self.running.turn();
        let mut state = self.running.state();
        let differences = differences(&state.peers, peers);
        if !differences.is_empty() {
            return Err(ReloadError::Differs(differences));
        }
        policy::resolve(peers, &state.links)?;
        let mut fresh = state.peers.clone();
        let given: HashMap<&str, &PeerSpec> = peers.iter().map(|new| (&*new.name, new)).collect();
        let mut changed = 0;
        for peer in &mut fresh {
            let new = given.get(&*peer.spec.name);
            if let Some(new) = new.filter(|new| !new.keys.is_empty()) {
                changed += usize::from(peer.replace(&new.keys));
            }
        }
        let policy = Arc::new(engine_policy(&fresh, &state.links)?);
        if let Some(kernel) = self.running.kernel.get() {
            let target = kernel_target(&kernel.target(), &fresh, &state.links)?;
            kernel.set_target(target, true)?;
        }
        state.peers = fresh;
        self.running.adapt(&mut state, policy);
        Ok(changed)
    }

    /// Stops in order. Rules and guard stay or go as configured; while they stay, configured
    /// peers of the userspace backend are blocked. The kernel's sessions go on.
    ///
    /// # Errors
    /// When rules that should go could not be removed.
    pub fn stop(mut self) -> Result<(), StopError> {
        drop(self.watcher.take());
        self.running.stop_kernel();
        // The queues close after the rules are gone, so that what is under way is not lost.
        if self.running.settings.on_exit == OnExit::Remove {
            self.running.firewall.remove()?;
        }
        if let Some(userspace) = &self.running.userspace {
            userspace.stop();
        }
        Ok(())
    }
}

impl Running {
    fn report(&self) -> Report {
        let peers = self.state().peers.clone();
        let mut report = Report {
            queue_rules: self.firewall.queue_rules().as_str(),
            guard: self.firewall.guard().as_str(),
            rules_restored: self.firewall.restored(),
            firewall_drops: self.firewall.drops().unwrap_or_default(),
            peers: peers.iter().map(peer_report).collect(),
            ..Report::default()
        };
        if let Some(userspace) = &self.userspace {
            userspace.report(&mut report);
        }
        if let Some(kernel) = self.kernel.get() {
            let sessions = kernel.sessions();
            for session in &sessions {
                let mut peers = report.peers.iter_mut();
                if let Some(peer) = peers.find(|peer| peer.name == session.peer) {
                    peer.segments_good += session.segments_good;
                    peer.segments_sent += session.segments_sent;
                }
            }
            report.sessions.extend(sessions);
            report.kernel = Some(kernel.report());
        }
        for peer in &mut report.peers {
            let established = report.sessions.iter().filter(|session| {
                session.peer == peer.name && session.state == SessionState::Established
            });
            peer.sessions = u32::try_from(established.count()).unwrap_or(u32::MAX);
        }
        report
    }

    /// Starts the kernel backend, which tells us from then on of launched daemons.
    fn start_kernel(self: &Arc<Self>, target: Target) -> Result<(), StartError> {
        let this = Arc::downgrade(self);
        let on_registered = Box::new(move || {
            if let Some(this) = this.upgrade() {
                this.reconsider();
            }
        });
        let kernel = Kernel::start(target, self.abilities.tcp_ao, on_registered)
            .map_err(|e| StartError::Io("kernel backend", e))?;
        let kernel = self.kernel.get_or_init(|| kernel);
        kernel
            .serve(&self.settings.keeper_socket)
            .map_err(|e| StartError::Io("socket for launched daemons", e))
    }

    fn stop_kernel(&self) {
        if let Some(kernel) = self.kernel.get() {
            kernel.stop();
        }
    }

    /// Decides anew, as a daemon has been launched or has gone.
    fn reconsider(&self) {
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        let _turn = self.turn();
        let mut state = self.state();
        let specs: Vec<PeerSpec> = state.peers.iter().map(|peer| peer.spec.clone()).collect();
        let decided = self
            .circumstances(kernel, &specs, &state.links)
            .map(|of| choice::decide(&specs, &self.abilities, of));
        match decided {
            Ok(Ok(decisions)) => {
                if let Err(error) = self.set_backends(kernel, &mut state, &decisions) {
                    tracing::error!(%error, "peers stay with their backends");
                }
            }
            // What was possible at the start and is not any more: keys have changed since.
            Ok(Err(error)) => tracing::error!(%error, "peers stay with their backends"),
            Err(error) => tracing::error!(%error, "peers stay with their backends"),
        }
    }

    /// How things are with each peer now.
    fn circumstances(
        &self,
        kernel: &Kernel,
        specs: &[PeerSpec],
        links: &Arc<Links>,
    ) -> io::Result<impl Fn(&PeerSpec) -> Circumstances> {
        let everyone = policy::resolve(specs, links).map_err(io::Error::other)?;
        let everyone = Arc::new(everyone);
        let active = active_sessions(&self.abilities, &everyone, links);
        let others: HashSet<Arc<str>> = sockets::of_peers(&everyone, links)?
            .into_iter()
            // What is being closed holds nothing up.
            .filter(|found| found.socket.state == TcpState::Established)
            .filter(|found| !active.has(found.socket.local, found.socket.remote))
            .map(|found| found.peer)
            .collect();
        let launched = kernel.has_daemon();
        Ok(move |peer: &PeerSpec| Circumstances {
            launched,
            kernel_session: active.any_of(&peer.name),
            userspace_session: others.contains(&peer.name),
        })
    }

    /// Gives peers to other backends. Sessions of a peer that changes hands would not go on, and
    /// it is decided so that there are none.
    fn set_backends(
        &self,
        kernel: &Kernel,
        state: &mut State,
        decisions: &[Decision],
    ) -> Result<(), firewall::Error> {
        let mut fresh = state.peers.clone();
        let mut moved = Vec::new();
        for (served, decision) in fresh.iter_mut().zip(decisions) {
            if served.decision.backend != decision.backend {
                moved.push((Arc::clone(&served.spec.name), decision.clone()));
            }
            served.decision.clone_from(decision);
        }
        if moved.is_empty() {
            state.peers = fresh;
            return Ok(());
        }
        // Keys first, so that a peer that comes to the kernel finds its listener ready.
        let former = kernel.target();
        self.set_kernel_target(kernel, &fresh, &state.links);
        let installed =
            ruleset(&self.settings, &fresh).and_then(|ruleset| self.firewall.install(&ruleset));
        if let Err(error) = installed {
            kernel.restore_target(former);
            return Err(error);
        }
        for (peer, decision) in moved {
            let backend = decision.backend.as_str();
            tracing::info!(%peer, backend, "peer changes hands: {}", decision.reason);
        }
        state.peers = fresh;
        self.follow(state);
        Ok(())
    }

    fn set_kernel_target(&self, kernel: &Kernel, peers: &[Served], links: &Arc<Links>) {
        let target = kernel_target(&kernel.target(), peers, links);
        // Not strictly: what cannot be done is logged and tried again.
        let set = target.map(|target| kernel.set_target(target, false));
        if let Err(error) = set {
            tracing::error!(%error, "peers could not be matched to the devices");
        }
    }

    fn set_links(&self, links: &Arc<Links>) {
        let _turn = self.turn();
        let mut state = self.state();
        state.links = Arc::clone(links);
        if let Some(kernel) = self.kernel.get() {
            self.set_kernel_target(kernel, &state.peers, &state.links);
        }
        self.follow(&mut state);
    }

    /// Tells the engine of the peers and devices there are now.
    fn follow(&self, state: &mut State) {
        match engine_policy(&state.peers, &state.links) {
            Ok(policy) => self.adapt(state, Arc::new(policy)),
            Err(error) => tracing::error!(%error, "peers could not be matched to the new devices"),
        }
    }

    fn adapt(&self, state: &mut State, policy: Arc<Policy>) {
        state.policy = policy;
        if let Some(userspace) = &self.userspace
            && let Err(error) = userspace.adapt(&state.links, &state.policy)
        {
            tracing::error!(%error, "a change of peers or devices is not proven");
        }
    }

    /// One change at a time.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_privileges() -> Result<(), StartError> {
    match have_net_admin() && have_net_raw() {
        true => Ok(()),
        false => Err(StartError::Permission),
    }
}

/// Tells beforehand when the keys of all peers will not fit onto one listener as things are.
fn note_key_room(peers: &[PeerSpec]) {
    let keys: usize = peers.iter().map(|peer| peer.keys.len()).sum();
    let needed = u32::try_from(keys).unwrap_or(u32::MAX);
    match probe::keys_per_listener(needed) {
        Ok(room) if room < needed => tracing::info!(
            room,
            needed,
            "a listener holds fewer keys than all peers have; net.core.optmem_max will be raised"
        ),
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "the room for keys cannot be tried"),
    }
}

/// Sessions that the kernel signs by itself, whoever gave it the keys.
fn active_sessions(
    abilities: &Abilities,
    everyone: &Arc<Policy>,
    links: &Arc<Links>,
) -> ActiveSessions {
    if !abilities.tcp_ao {
        return ActiveSessions::default();
    }
    let names = everyone.peers().iter().map(|peer| Arc::clone(&peer.name));
    let target = Target::after(
        &Target::default(),
        Arc::clone(everyone),
        names.collect(),
        Arc::clone(links),
    );
    ActiveSessions::find(&target)
}

fn queues(settings: &Settings) -> Queues {
    Queues {
        first: settings.first_queue,
        workers: settings.workers,
    }
}

fn ruleset(settings: &Settings, peers: &[Served]) -> Result<Ruleset, firewall::Error> {
    let peers = peers.iter().map(|peer| (&peer.spec, peer.decision.backend));
    Ruleset::new(peers, queues(settings), settings.mark_bit)
}

/// Without the note a later start may refuse where it could close a session: no reason to stop.
fn note_protected(settings: &Settings) {
    if let Err(error) = Protected::save(&settings.state_dir, &settings.peers) {
        tracing::warn!(%error, "cannot note which peers are covered");
    }
}
