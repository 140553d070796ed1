//! The datapath as a whole: rules, guard, and the backends behind them.
//!
//! Read in this order: [`Datapath::start`] (what is done in which order, so that no moment is
//! unprotected), [`Datapath::set_keys`], `Running::reconsider` (peers change hands when a daemon is
//! launched).

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ao_engine::policy::{Mkt, Policy, PolicyError};
use ao_sys::capabilities::{have_net_admin, have_net_raw};
use ao_sys::links::Links;
use ao_sys::nfqueue::BindError;
use ao_sys::probe;
use ao_sys::sock_diag::TcpState;

use crate::choice::{self, Abilities, Circumstances, Decision, Impossible};
use crate::firewall::{self, Firewall, Queues, Ruleset, Watcher};
use crate::kernel::{ActiveSessions, Kernel, RefusedKeys, Target};
use crate::lock::NamespaceLock;
use crate::policy;
use crate::protected::Protected;
use crate::report::{PeerReport, Report, SessionState};
use crate::settings::{Backend, Choice, OnExit, PeerSpec, Settings};
use crate::sockets::{self, PeerSocket};
use crate::userspace::{BoundQueues, JournalError, Prepared, Userspace};

/// Why the datapath could not start. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not root, and without the capabilities.
    #[error("CAP_NET_ADMIN and CAP_NET_RAW are needed: run ao-sidecar as root")]
    Permission,
    /// Two peers or keys contradict each other.
    #[error(transparent)]
    Policy(#[from] PolicyError),
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
    /// A peer is to be the kernel's and cannot be.
    #[error(transparent)]
    Impossible(#[from] Impossible),
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

/// Why the datapath could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The rules are still there: configured peers stay blocked.
    #[error("the firewall rules could not be removed: {0}")]
    Firewall(#[from] firewall::Error),
}

/// Why keys were not changed. The running ones are as they were.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// More than keys differs.
    #[error("only keys can change while ao-sidecar runs, restart it for the rest: {}", .0.join(", "))]
    Differs(Vec<String>),
    /// Two keys contradict each other.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The kernel does not take them.
    #[error("{0}")]
    Kernel(#[from] RefusedKeys),
}

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
    state: Mutex<State>,
}

/// What may change while the datapath runs.
struct State {
    /// In the order of the configuration.
    peers: Vec<Served>,
    links: Arc<Links>,
}

/// A peer, and who serves it.
#[derive(Clone)]
struct Served {
    spec: PeerSpec,
    decision: Decision,
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
            state: Mutex::new(State { peers, links }),
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

    /// Replaces the keys of all peers, whose other settings must be as they are; returns how many
    /// peers have other keys now. All keys are replaced, or none.
    ///
    /// Sessions go on. A peer's first key, if it is another one than before, becomes rnext_key of
    /// its sessions; keys that are gone verify nothing more.
    ///
    /// # Errors
    /// When something else than keys differs, or keys contradict each other.
    pub fn set_keys(&self, peers: &[PeerSpec]) -> Result<usize, ReloadError> {
        let mut state = self.running.state();
        let differences = differences(&state.peers, peers);
        if !differences.is_empty() {
            return Err(ReloadError::Differs(differences));
        }
        policy::resolve(peers, &state.links)?;
        let mut fresh = state.peers.clone();
        let mut changed = 0;
        for Served { spec, .. } in &mut fresh {
            let Some(new) = peers.iter().find(|new| new.name == spec.name) else {
                continue;
            };
            changed += usize::from(!same_keys(&spec.keys, &new.keys));
            spec.keys.clone_from(&new.keys);
        }
        let policy = Arc::new(engine_policy(&fresh, &state.links)?);
        if let Some(kernel) = self.running.kernel.get() {
            let target = kernel_target(&kernel.target(), &fresh, &state.links)?;
            kernel.set_target(target, true)?;
        }
        state.peers = fresh;
        self.running.adapt(&state, &policy);
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
        let (peers, policy) = {
            let state = self.state();
            let policy = engine_policy(&state.peers, &state.links);
            (state.peers.clone(), policy.unwrap_or_default())
        };
        let mut report = Report {
            queue_rules: self.firewall.queue_rules().as_str(),
            guard: self.firewall.guard().as_str(),
            rules_restored: self.firewall.restored(),
            firewall_drops: self.firewall.drops().unwrap_or_default(),
            peers: peers.iter().map(peer_report).collect(),
            ..Report::default()
        };
        if let Some(userspace) = &self.userspace {
            userspace.report(&mut report, &policy);
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
        let mut state = self.state();
        state.links = Arc::clone(links);
        if let Some(kernel) = self.kernel.get() {
            self.set_kernel_target(kernel, &state.peers, &state.links);
        }
        self.follow(&state);
    }

    /// Tells the engine of the peers and devices there are now.
    fn follow(&self, state: &State) {
        match engine_policy(&state.peers, &state.links) {
            Ok(policy) => self.adapt(state, &Arc::new(policy)),
            Err(error) => tracing::error!(%error, "peers could not be matched to the new devices"),
        }
    }

    fn adapt(&self, state: &State, policy: &Arc<Policy>) {
        if let Some(userspace) = &self.userspace {
            userspace.adapt(&state.links, policy);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Installs the guard alone: configured peers are blocked until a sidecar runs.
///
/// # Errors
/// See [`StartError`].
pub fn install_guard(settings: &Settings) -> Result<(), StartError> {
    check_privileges()?;
    let _lock = NamespaceLock::acquire()?;
    let decisions = guard_decisions(settings)?;
    let ruleset = ruleset(settings, &served(&settings.peers, decisions))?;
    Firewall::probe()?.install_guard(&ruleset)?;
    note_protected(settings);
    Ok(())
}

/// For the guard alone it matters who lets segments in: the kernel by itself, for peers that are
/// its or have a session of its; the engine, which marks them, for all others. Whether the kernel
/// can is for the start to say.
fn guard_decisions(settings: &Settings) -> Result<Vec<Decision>, StartError> {
    let links = Arc::new(Links::read().map_err(|e| StartError::Io("network devices", e))?);
    let everyone = Arc::new(policy::resolve(&settings.peers, &links)?);
    let abilities = Abilities::probe().map_err(|e| StartError::Io("TCP socket", e))?;
    let active = active_sessions(&abilities, &everyone, &links);
    let decision = |peer: &PeerSpec| {
        let kernel = peer.datapath == Choice::Kernel || active.any_of(&peer.name);
        Decision {
            backend: if kernel {
                Backend::Kernel
            } else {
                Backend::Userspace
            },
            reason: "guard only".to_owned(),
        }
    };
    Ok(settings.peers.iter().map(decision).collect())
}

/// Removes guard and rules: configured peers are unprotected from then on.
///
/// # Errors
/// See [`StartError`].
pub fn remove_guard() -> Result<(), StartError> {
    check_privileges()?;
    let _lock = NamespaceLock::acquire()?;
    Ok(Firewall::probe()?.remove()?)
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

/// What the kernel's sockets should have.
fn kernel_target(
    former: &Target,
    peers: &[Served],
    links: &Arc<Links>,
) -> Result<Target, PolicyError> {
    let specs: Vec<PeerSpec> = peers.iter().map(|peer| peer.spec.clone()).collect();
    let ours = peers
        .iter()
        .filter(|peer| peer.decision.backend == Backend::Kernel)
        .map(|peer| Arc::clone(&peer.spec.name));
    Ok(Target::after(
        former,
        Arc::new(policy::resolve(&specs, links)?),
        ours.collect(),
        Arc::clone(links),
    ))
}

fn served(peers: &[PeerSpec], decisions: Vec<Decision>) -> Vec<Served> {
    let decided = peers.iter().cloned().zip(decisions);
    decided
        .map(|(spec, decision)| Served { spec, decision })
        .collect()
}

fn backend_of(peers: &[Served], name: &str) -> Backend {
    let found = peers.iter().find(|peer| &*peer.spec.name == name);
    found.map_or(Backend::Userspace, |peer| peer.decision.backend)
}

/// Whether any peer may ever be the userspace backend's.
fn needs_queues(peers: &[PeerSpec]) -> bool {
    peers.is_empty() || peers.iter().any(|peer| peer.datapath != Choice::Kernel)
}

/// The policy of the userspace engine. The kernel's peers are in it without keys: it serves none
/// of their connections, nor takes one for that of a peer with a shorter prefix.
fn engine_policy(peers: &[Served], links: &Links) -> Result<Policy, PolicyError> {
    let spec = |peer: &Served| {
        let mut spec = peer.spec.clone();
        if peer.decision.backend == Backend::Kernel {
            spec.keys.clear();
        }
        spec
    };
    let specs: Vec<PeerSpec> = peers.iter().map(spec).collect();
    policy::resolve(&specs, links)
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

/// What differs between the peers served and those wanted, other than keys.
fn differences(served: &[Served], wanted: &[PeerSpec]) -> Vec<String> {
    let named = |name: &str| served.iter().find(|peer| &*peer.spec.name == name);
    let mut differences = Vec::new();
    for new in wanted {
        match named(&new.name) {
            None => differences.push(format!("peer {:?} is new", new.name)),
            Some(Served { spec, .. }) => differences.extend(
                differing_settings(spec, new)
                    .map(|setting| format!("peer {:?} has another {setting}", new.name)),
            ),
        }
    }
    for Served { spec, .. } in served {
        if !wanted.iter().any(|new| new.name == spec.name) {
            differences.push(format!("peer {:?} is gone", spec.name));
        }
    }
    differences
}

fn differing_settings(old: &PeerSpec, new: &PeerSpec) -> impl Iterator<Item = &'static str> {
    let PeerSpec {
        name: _,
        remote,
        local,
        ports,
        interface,
        vrf,
        keys: _,
        ttl_min,
        datapath,
    } = old;
    [
        ("address", *remote != new.remote),
        ("local_address", *local != new.local),
        ("port", *ports != new.ports),
        ("interface", *interface != new.interface),
        ("vrf", *vrf != new.vrf),
        ("ttl_min", *ttl_min != new.ttl_min),
        ("datapath", *datapath != new.datapath),
    ]
    .into_iter()
    .filter_map(|(setting, differs)| differs.then_some(setting))
}

fn same_keys(one: &[Arc<Mkt>], other: &[Arc<Mkt>]) -> bool {
    let same = |(a, b): (&Arc<Mkt>, &Arc<Mkt>)| {
        (a.send_id, a.recv_id, a.algorithm, a.include_options)
            == (b.send_id, b.recv_id, b.algorithm, b.include_options)
            && a.master_key == b.master_key
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

fn peer_report(peer: &Served) -> PeerReport {
    let Served { spec, decision } = peer;
    let address = match &spec.interface {
        Some(interface) => format!("{}%{interface}", spec.remote),
        None => spec.remote.to_string(),
    };
    PeerReport {
        name: Arc::clone(&spec.name),
        address,
        backend: decision.backend,
        backend_reason: decision.reason.clone(),
        sessions: 0,
        segments_good: 0,
        segments_sent: 0,
        drops: std::collections::BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use ao_engine::crypto::{Algorithm, MasterKey};
    use ao_engine::policy::{ConnectionId, Prefix};

    use super::*;

    fn served_by(backend: Backend, name: &str, remote: Prefix) -> Served {
        let key = Mkt {
            send_id: 1,
            recv_id: 1,
            algorithm: Algorithm::HmacSha1_96,
            master_key: MasterKey::new(b"secret").unwrap(),
            include_options: true,
        };
        Served {
            spec: PeerSpec {
                name: name.into(),
                remote,
                local: None,
                ports: 179..=179,
                interface: None,
                vrf: None,
                keys: vec![Arc::new(key)],
                ttl_min: 0,
                datapath: Choice::Auto,
            },
            decision: Decision {
                backend,
                reason: String::new(),
            },
        }
    }

    /// Its connections are not the wider peer's, whose keys they would be signed with.
    #[test]
    fn a_kernel_peer_hides_the_wider_userspace_peer_from_the_engine() {
        let address = "10.0.0.2".parse().unwrap();
        let wide = Prefix::new("10.0.0.0".parse().unwrap(), 24).unwrap();
        let peers = [
            served_by(Backend::Kernel, "host", Prefix::host(address)),
            served_by(Backend::Userspace, "net", wide),
        ];
        let policy = engine_policy(&peers, &Links::default()).unwrap();
        let connection = ConnectionId {
            domain: 0,
            interface: 0,
            local: "10.0.0.1".parse().unwrap(),
            remote: address,
            local_port: 40000,
            remote_port: 179,
        };
        let found = &policy.peers()[policy.find(&connection).unwrap()];
        assert_eq!((&*found.name, found.keys.len()), ("host", 0));
        let other = ConnectionId {
            remote: "10.0.0.3".parse().unwrap(),
            ..connection
        };
        let found = &policy.peers()[policy.find(&other).unwrap()];
        assert_eq!((&*found.name, found.keys.len()), ("net", 1));
    }

    #[test]
    fn queues_are_needed_unless_all_peers_are_the_kernels_by_configuration() {
        let remote = Prefix::host("10.0.0.2".parse().unwrap());
        let peer = |datapath| PeerSpec {
            datapath,
            ..served_by(Backend::Kernel, "p", remote).spec
        };
        assert!(!needs_queues(&[peer(Choice::Kernel), peer(Choice::Kernel)]));
        assert!(needs_queues(&[peer(Choice::Kernel), peer(Choice::Auto)]));
        assert!(needs_queues(&[peer(Choice::Userspace)]));
    }
}
