//! The datapath as a whole: rules, guard, and the backends behind them.
//!
//! Read in this order: [`Datapath::start`] (what is done in which order, so that no moment is
//! unprotected), `reconfigure` (peers come, go and change), `keys` (keys one after the other, with
//! proofs), `hands` (peers change hands when a daemon is launched), `telling` (what it tells).

mod error;
mod evidence;
mod guard;
mod hands;
mod keys;
mod reconfigure;
mod served;
mod telling;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ao_engine::policy::Policy;
use ao_sys::capabilities::{have_net_admin, have_net_raw};
use ao_sys::links::Links;
use ao_sys::probe;

pub use self::error::{ReloadError, StartError, StopError};
pub use self::guard::{install_guard, remove_guard};
pub use self::reconfigure::Reconfigured;
use self::served::{Served, backends, engine_policy, kernel_target, needs_queues, served};
use crate::choice::{self, Abilities, Circumstances};
use crate::firewall::{self, Firewall, Queues, Ruleset, Watcher};
use crate::kernel::{ActiveSessions, Kernel, Target};
use crate::lock::NamespaceLock;
use crate::policy;
use crate::protected::Protected;
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
    /// As given at the start, but without peers: those are in `state`.
    settings: Settings,
    firewall: Arc<Firewall>,
    /// Absent as long as the kernel serves all peers by configuration.
    userspace: OnceLock<Userspace>,
    /// Set once, as it tells us of launched daemons.
    kernel: OnceLock<Kernel>,
    abilities: Abilities,
    /// Held by whoever makes a change, until it is done; taken before `state`.
    turn: Mutex<()>,
    state: Mutex<State>,
}

/// What may change while the datapath runs.
#[derive(Clone)]
struct State {
    /// In the order of the configuration.
    peers: Vec<Served>,
    links: Arc<Links>,
    /// What the engine was told last.
    policy: Arc<Policy>,
}

impl State {
    fn specs(&self) -> impl Iterator<Item = &PeerSpec> {
        self.peers.iter().map(|peer| &peer.spec)
    }
}

impl Datapath {
    /// Starts the datapath in the calling thread's network namespace. When it returns, guard and
    /// rules are in place and the backends serve.
    ///
    /// # Errors
    /// See [`StartError`]. Configured peers are blocked, never unprotected, after an error that
    /// came once rules were in place.
    pub fn start(mut settings: Settings) -> Result<Self, StartError> {
        check_privileges()?;
        // Nothing of keys that will be deleted stays behind.
        let specs = std::mem::take(&mut settings.peers);
        let links = Arc::new(Links::read().map_err(|e| StartError::Io("network devices", e))?);
        // All peers at once: what contradicts itself does so whoever serves it.
        let everyone = Arc::new(policy::resolve(&specs, &links)?);
        let firewall = Arc::new(Firewall::probe()?);
        let abilities = Abilities::probe().map_err(|e| StartError::Io("TCP socket", e))?;
        let active = active_sessions(&abilities, &everyone, &links);
        let decisions = choice::decide(&specs, &abilities, |peer| Circumstances {
            kernel_session: active.any_of(&peer.name),
            // Those that there are register, or register again, as soon as we serve.
            launched: false,
            userspace_session: false,
        })?;
        choice::log(&specs, &decisions);
        if abilities.tcp_ao {
            note_key_room(&specs);
        }
        let peers = served(&specs, decisions);
        let policy = Arc::new(engine_policy(&peers, &links)?);
        let ruleset = ruleset(&settings, &peers)?;
        // Queues and lock first: what another sidecar protects must not be taken for unprotected.
        // And queues before rules: from the first rule on there is somebody to serve them.
        let bound = needs_queues(&specs)
            .then(|| BoundQueues::bind(queues(&settings), settings.queue_length))
            .transpose()?;
        let lock = NamespaceLock::acquire()?;
        let prepared = bound
            .map(|bound| Prepared::new(bound, &settings, &policy, Arc::clone(&links)))
            .transpose()?;
        let backends = backends(&peers);
        let unprotected = || {
            let mut sockets = sockets::of_peers(&policy, &links)
                .map_err(|e| StartError::Io("socket diagnosis", e))?;
            // Read each time: the kernel goes on opening sessions while we start.
            let active = active_sessions(&abilities, &everyone, &links);
            let knows = |found: &PeerSocket| {
                let prepared = prepared.as_ref();
                prepared.is_some_and(|prepared| prepared.knows(&found.connection))
            };
            sockets.retain(|found| is_unprotected(found, &backends, &active, knows));
            Ok::<_, StartError>(sockets)
        };
        let noted = Protected::load(&settings.state_dir);
        let covered = firewall.has_guard()?.then_some(&noted);
        let was_guarded = |found: &PeerSocket| {
            covered.is_some_and(|covered| covered.covers(found.socket.local, found.socket.remote))
        };
        let mut found = unprotected()?;
        found.retain(|found| !was_guarded(found) && is_somebodys(found));
        if !found.is_empty() && !settings.replace_sessions {
            return Err(refusal(&found, &specs, covered));
        }

        note_both(&settings, &noted, &specs);
        firewall.install(&ruleset)?;
        note_protected(&settings, &specs);
        // Looked at again: what came up since the first look was not signed, either, as no backend
        // serves yet.
        let unprotected = unprotected()?;

        let userspace = OnceLock::new();
        if let Some(prepared) = prepared {
            let begun = prepared.run(&policy)?;
            userspace.get_or_init(|| begun);
        }
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
            let why = match was_guarded(found) {
                true => "its keys are not on record",
                false => "it was unprotected",
            };
            sockets::close(&found.socket, why);
        }
        Ok(Self {
            running,
            watcher: Some(watcher),
            _lock: lock,
        })
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
        if let Some(userspace) = self.running.userspace.get() {
            userspace.stop();
        }
        Ok(())
    }
}

impl Running {
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

/// Whether a live session of a peer is signed by nobody; `knows` tells of those that the engine
/// has.
fn is_unprotected(
    found: &PeerSocket,
    backends: &HashMap<Arc<str>, Backend>,
    active: &ActiveSessions,
    knows: impl Fn(&PeerSocket) -> bool,
) -> bool {
    match backends.get(&found.peer) {
        // One that nobody has accepted yet cannot be looked at; the guard covers it.
        Some(Backend::Kernel) => {
            found.socket.inode != 0 && !active.has(found.socket.local, found.socket.remote)
        }
        Some(Backend::Userspace) | None => !knows(found),
    }
}

/// Why there is no start beside `found`, sessions that are alive, unprotected, and not `covered` by
/// the guard, if there is one.
fn refusal(found: &[PeerSocket], specs: &[PeerSpec], covered: Option<&Protected>) -> StartError {
    let has_one = |spec: &&PeerSpec| found.iter().any(|found| found.peer == spec.name);
    let theirs: Vec<&PeerSpec> = specs.iter().filter(has_one).collect();
    let are_new = covered
        .filter(|covered| !covered.peers().is_empty())
        .is_some_and(|covered| !theirs.iter().any(|spec| covered.touches(spec)));
    let newcomers = theirs.iter().filter(|_| are_new);
    let name = |found: &PeerSocket| sockets::name(&found.socket);
    StartError::UnprotectedSessions {
        sessions: found.iter().map(name).collect(),
        newcomers: newcomers.map(|spec| Arc::clone(&spec.name)).collect(),
    }
}

/// Whether a program has the socket. One that nobody has accepted yet, or that its program has
/// closed, is no session that anybody would miss.
fn is_somebodys(found: &PeerSocket) -> bool {
    found.socket.inode != 0
}

/// Notes, before the rules change, who was covered and who will be: whatever comes of the change, or
/// of us in the midst of it, whoever is blocked or protected then must not be taken for somebody
/// whom nobody has protected yet. With no note at all, nobody is.
fn note_both(settings: &Settings, former: &Protected, fresh: &[PeerSpec]) {
    let peers = former.peers().iter().chain(fresh);
    if let Err(error) = Protected::save(&settings.state_dir, peers) {
        tracing::warn!(%error, "cannot note which peers are covered");
        if let Err(error) = Protected::forget(&settings.state_dir) {
            tracing::warn!(%error, "cannot remove the note which peers were covered");
        }
    }
}

/// Notes who is covered. With the note of more peers that there is a later start may close a session
/// where it would have to refuse: no reason to stop.
fn note_protected<'a>(settings: &Settings, peers: impl IntoIterator<Item = &'a PeerSpec>) {
    if let Err(error) = Protected::save(&settings.state_dir, peers) {
        tracing::warn!(%error, "cannot note which peers are covered");
    }
}
