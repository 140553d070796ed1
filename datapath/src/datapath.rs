//! The datapath as a whole: rules, guard, and the backends behind them.
//!
//! Read in this order: [`Datapath::start`] (what is done in which order, so that no moment is
//! unprotected), [`Datapath::set_keys`], [`Datapath::set_backends`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ao_engine::policy::{Mkt, Policy, PolicyError};
use ao_sys::capabilities::{have_net_admin, have_net_raw};
use ao_sys::links::Links;
use ao_sys::nfqueue::BindError;

use crate::firewall::{self, Firewall, Queues, Ruleset, Watcher};
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
}

/// What was decided for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Who signs.
    pub backend: Backend,
    /// Why, in a few words.
    pub reason: String,
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
        policy::resolve(&settings.peers, &links)?;
        let firewall = Arc::new(Firewall::probe()?);
        let peers = served(&settings.peers);
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
            sockets.retain(|socket| match backend_of(&peers, &socket.peer) {
                Backend::Kernel => !signed_by_kernel(socket),
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
        let running = Arc::new(Running {
            settings,
            firewall: Arc::clone(&firewall),
            userspace,
            state: Mutex::new(State { peers, links }),
        });
        let told = Arc::clone(&running);
        let watcher = Watcher::spawn(firewall, move |links| told.set_links(links))?;
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
        state.peers = fresh;
        self.running.adapt(&state, &policy);
        Ok(changed)
    }

    /// Gives peers to other backends: one decision for each, in the order of the settings. Rules
    /// and guard are replaced if any backend has changed; returns whether one has.
    ///
    /// Sessions of a peer that changes hands do not go on.
    ///
    /// # Errors
    /// When the firewall refuses: then backends stay as they were.
    pub fn set_backends(&self, decisions: &[Decision]) -> Result<bool, firewall::Error> {
        self.running.set_backends(decisions)
    }

    /// Stops in order. Rules and guard stay or go as configured; while they stay, configured
    /// peers of the userspace backend are blocked.
    ///
    /// # Errors
    /// When rules that should go could not be removed.
    pub fn stop(mut self) -> Result<(), StopError> {
        drop(self.watcher.take());
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
        for peer in &mut report.peers {
            let established = report.sessions.iter().filter(|session| {
                session.peer == peer.name && session.state == SessionState::Established
            });
            peer.sessions = u32::try_from(established.count()).unwrap_or(u32::MAX);
        }
        report
    }

    fn set_backends(&self, decisions: &[Decision]) -> Result<bool, firewall::Error> {
        let mut state = self.state();
        let mut fresh = state.peers.clone();
        for (served, decision) in fresh.iter_mut().zip(decisions) {
            served.decision.clone_from(decision);
        }
        let backends = |peers: &[Served]| -> Vec<Backend> {
            peers.iter().map(|peer| peer.decision.backend).collect()
        };
        let changed = backends(&fresh) != backends(&state.peers);
        if changed {
            self.firewall.install(&ruleset(&self.settings, &fresh)?)?;
        }
        state.peers = fresh;
        if changed {
            self.follow(&state);
        }
        Ok(changed)
    }

    fn set_links(&self, links: &Arc<Links>) {
        let mut state = self.state();
        state.links = Arc::clone(links);
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
    let ruleset = ruleset(settings, &served(&settings.peers))?;
    Firewall::probe()?.install_guard(&ruleset)?;
    note_protected(settings);
    Ok(())
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

/// Which backend serves which peer, in their order.
fn decide(peers: &[PeerSpec]) -> Vec<Decision> {
    let decision = |peer: &PeerSpec| {
        let (backend, reason) = match peer.datapath {
            Choice::Kernel => (Backend::Kernel, "configured"),
            Choice::Userspace => (Backend::Userspace, "configured"),
            Choice::Auto => (Backend::Userspace, "no daemon is launched"),
        };
        Decision {
            backend,
            reason: reason.to_owned(),
        }
    };
    peers.iter().map(decision).collect()
}

/// Whether the kernel signs a live session by itself.
fn signed_by_kernel(_session: &PeerSocket) -> bool {
    false
}

fn served(peers: &[PeerSpec]) -> Vec<Served> {
    let decided = peers.iter().cloned().zip(decide(peers));
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
