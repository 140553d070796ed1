//! Peers that come, go and change while the datapath runs.
//!
//! What may be refused is done first, and taken back if a later part of it is. Rules and guard of
//! peers that come are in place before anything else; those of peers that go are taken away last,
//! when their sessions are closed. In between the rules are those of both.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ao_engine::policy::Policy;
use ao_sys::links::Links;

use super::served::{Served, backends, engine_policy, kernel_target, needs_queues};
use super::{
    Datapath, ReloadError, Running, State, active_sessions, is_somebodys, is_unprotected,
    note_protected, queues, ruleset,
};
use crate::choice::{self, Circumstances, Decision};
use crate::firewall::Ruleset;
use crate::kernel::Target;
use crate::policy;
use crate::protected::Protected;
use crate::settings::{Backend, PeerSpec};
use crate::sockets::{self, PeerSocket};
use crate::userspace::{BoundQueues, Prepared};

/// What a change of the configuration has changed: numbers of peers, and of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconfigured {
    /// Peers that are new.
    pub added: usize,
    /// Peers that are gone.
    pub removed: usize,
    /// Peers that have other settings, whether or not their keys are others, too.
    pub changed: usize,
    /// Peers that were there before and have other keys.
    pub rekeyed: usize,
    /// Sessions that were closed.
    pub closed: usize,
}

impl Datapath {
    /// Replaces all peers by these, in their order: all or nothing. Those in `keep_keys_of` keep
    /// the keys they have, whatever is given: theirs are not the configuration's.
    ///
    /// A peer whose entry is as it was keeps its backend and its sessions, and no segment of theirs
    /// is lost. So do sessions of a peer with other keys, ports or `ttl_min`, as long as it covers
    /// them; its first key, if it is another one than before, becomes rnext_key of its sessions,
    /// and keys that are gone verify nothing more. Sessions of peers that are gone, or have another
    /// place (address, VRF, interface, local address) or backend, are closed.
    ///
    /// A peer may have unprotected sessions that are alive when it comes: they are closed with
    /// `replace_sessions`, else it is refused.
    ///
    /// # Errors
    /// See [`ReloadError`]; everything is as it was then, except that sessions may have been closed
    /// if the firewall refused only the removal of rules.
    pub fn reconfigure(
        &self,
        peers: &[PeerSpec],
        keep_keys_of: &HashSet<Arc<str>>,
        replace_sessions: bool,
    ) -> Result<Reconfigured, ReloadError> {
        let running = &self.running;
        let _turn = running.turn();
        let plan = Plan::new(running, peers, keep_keys_of)?;
        plan.refuse_unprotected(running, replace_sessions)?;
        running.carry_out(&plan)
    }

    /// The checks of [`reconfigure`](Self::reconfigure), for the same arguments; nothing is
    /// changed.
    ///
    /// # Errors
    /// See [`ReloadError`].
    pub fn check(
        &self,
        peers: &[PeerSpec],
        keep_keys_of: &HashSet<Arc<str>>,
        replace_sessions: bool,
    ) -> Result<(), ReloadError> {
        let running = &self.running;
        let _turn = running.turn();
        let plan = Plan::new(running, peers, keep_keys_of)?;
        plan.refuse_unprotected(running, replace_sessions)
    }

    /// Which of `peers`, whom nobody covers so far, have a session that is alive and unprotected.
    /// Costs a look at all sockets.
    ///
    /// # Errors
    /// When two of them contradict each other, or sockets cannot be looked at.
    pub fn unprotected(&self, peers: &[PeerSpec]) -> Result<HashSet<Arc<str>>, ReloadError> {
        let State { policy, links, .. } = self.running.state().clone();
        let theirs = Arc::new(policy::resolve(peers, &links)?);
        let mut found = sockets_of(&theirs, &links)?;
        found.retain(|found| is_somebodys(found) && policy.find(&found.connection).is_none());
        let active = active_sessions(&self.running.abilities, &theirs, &links);
        found.retain(|found| !active.has(found.socket.local, found.socket.remote));
        Ok(found.into_iter().map(|found| found.peer).collect())
    }
}

/// A change that has been thought through and not begun.
struct Plan {
    former: State,
    fresh: State,
    /// All peers with their keys, whoever serves them.
    everyone: Arc<Policy>,
    target: Target,
    /// The rules while sessions of peers that go are still to be closed: of whoever comes, stays
    /// or goes.
    between: Ruleset,
    rules: Ruleset,
    /// Former peers whose sessions cannot go on.
    displaced: HashSet<Arc<str>>,
    counts: Reconfigured,
}

impl Plan {
    fn new(
        running: &Running,
        peers: &[PeerSpec],
        keep_keys_of: &HashSet<Arc<str>>,
    ) -> Result<Self, ReloadError> {
        let former = running.state().clone();
        let links = Arc::clone(&former.links);
        let by_name: HashMap<&str, &Served> = former
            .peers
            .iter()
            .map(|peer| (&*peer.spec.name, peer))
            .collect();
        let mut counts = Reconfigured::default();
        let mut fresh: Vec<Served> = Vec::with_capacity(peers.len());
        for spec in peers {
            let Some(&old) = by_name.get(&*spec.name) else {
                counts.added += 1;
                fresh.push(Served::undecided(spec.clone()));
                continue;
            };
            let mut served = old.clone();
            if !keep_keys_of.contains(&spec.name) {
                counts.rekeyed += usize::from(served.replace(&spec.keys));
            }
            counts.changed += usize::from(!old.has_settings_of(spec));
            served.take_settings(spec);
            fresh.push(served);
        }
        let specs: Vec<PeerSpec> = fresh.iter().map(|peer| peer.spec.clone()).collect();
        let everyone = Arc::new(policy::resolve(&specs, &links)?);
        let decisions = decide(running, &specs, &by_name, &links)?;
        for (served, decision) in fresh.iter_mut().zip(decisions) {
            served.decision = decision;
        }

        let by_new_name: HashMap<&str, &Served> =
            fresh.iter().map(|peer| (&*peer.spec.name, peer)).collect();
        let successor = |old: &Served| by_new_name.get(&*old.spec.name).copied();
        counts.removed = former
            .peers
            .iter()
            .filter(|old| successor(old).is_none())
            .count();
        let is_displaced = |old: &&Served| {
            successor(old).is_none_or(|new| {
                !old.has_place_of(&new.spec) || old.decision.backend != new.decision.backend
            })
        };
        let displaced = former.peers.iter().filter(is_displaced);
        let displaced = displaced.map(|old| Arc::clone(&old.spec.name)).collect();
        // The former first: where both are about the same segments, they are still its.
        let go = |old: &&Served| {
            is_displaced(old) || successor(old).is_some_and(|new| old.spec.ports != new.spec.ports)
        };
        let going: Vec<Served> = former.peers.iter().filter(go).cloned().collect();
        let both: Vec<Served> = going.into_iter().chain(fresh.iter().cloned()).collect();
        let between = ruleset(&running.settings, &both)?;
        let rules = ruleset(&running.settings, &fresh)?;

        let kernel = running.kernel.get();
        let former_target = kernel.map(|kernel| kernel.target()).unwrap_or_default();
        let target = kernel_target(&former_target, &fresh, &links)?;
        let policy = Arc::new(engine_policy(&fresh, &links)?);
        let fresh = State {
            peers: fresh,
            links,
            policy,
        };
        Ok(Self {
            former,
            fresh,
            everyone,
            target,
            between,
            rules,
            displaced,
            counts,
        })
    }

    fn refuse_unprotected(
        &self,
        running: &Running,
        replace_sessions: bool,
    ) -> Result<(), ReloadError> {
        let mut unprotected = self.unprotected(running)?;
        unprotected.retain(is_somebodys);
        if replace_sessions || unprotected.is_empty() {
            return Ok(());
        }
        let name = |found: &PeerSocket| {
            let session = sockets::name(&found.socket);
            format!("{session} of peer {:?}", found.peer)
        };
        Err(ReloadError::UnprotectedSessions(
            unprotected.iter().map(name).collect(),
        ))
    }

    /// Live sessions that no peer has covered so far, and that the kernel does not sign.
    fn unprotected(&self, running: &Running) -> Result<Vec<PeerSocket>, ReloadError> {
        let State { peers, links, .. } = &self.fresh;
        let mut found = sockets_of(&self.everyone, links)?;
        found.retain(|found| self.former.policy.find(&found.connection).is_none());
        if found.is_empty() {
            return Ok(found);
        }
        let active = active_sessions(&running.abilities, &self.everyone, links);
        let backends = backends(peers);
        // The engine knows none of a peer that it has not had.
        found.retain(|found| is_unprotected(found, &backends, &active, |_| false));
        Ok(found)
    }

    /// Sessions that cannot go on: their peer is displaced, or they belong to another one now.
    fn displaced(&self) -> Result<Vec<PeerSocket>, ReloadError> {
        let State { policy, links, .. } = &self.former;
        let mut found = sockets_of(policy, links)?;
        let successor = |found: &PeerSocket| {
            let index = self.everyone.find(&found.connection)?;
            Some(&self.everyone.peers().get(index)?.name)
        };
        found.retain(|found| {
            self.displaced.contains(&found.peer) || successor(found) != Some(&found.peer)
        });
        Ok(found)
    }
}

/// Who is to serve each peer. One that stays where it was stays with its backend, unless the kernel
/// cannot do what is asked of it now.
fn decide(
    running: &Running,
    specs: &[PeerSpec],
    former: &HashMap<&str, &Served>,
    links: &Arc<Links>,
) -> Result<Vec<Decision>, ReloadError> {
    let Running { abilities, .. } = running;
    let io = |error| ReloadError::Io("socket diagnosis", error);
    let circumstances = running
        .kernel
        .get()
        .map(|kernel| running.circumstances(kernel, specs, links))
        .transpose()
        .map_err(io)?;
    let in_place = |spec: &PeerSpec| {
        let old = former.get(&*spec.name).copied();
        old.filter(|old| old.has_place_of(spec))
    };
    let decisions = choice::decide(specs, abilities, |spec| {
        let now = circumstances
            .as_ref()
            .map(|of| of(spec))
            .unwrap_or_default();
        Circumstances {
            // Those of a peer that comes are not signed by anybody.
            userspace_session: now.userspace_session && in_place(spec).is_some(),
            ..now
        }
    })?;
    let decided = specs.iter().zip(decisions).map(|(spec, decision)| {
        let stays = in_place(spec).filter(|old| {
            old.spec.datapath == spec.datapath
                && (old.decision.backend == Backend::Userspace
                    || choice::obstacle(spec, specs, abilities).is_none())
        });
        stays.map_or(decision, |old| old.decision.clone())
    });
    Ok(decided.collect())
}

fn sockets_of(policy: &Policy, links: &Links) -> Result<Vec<PeerSocket>, ReloadError> {
    sockets::of_peers(policy, links).map_err(|e| ReloadError::Io("socket diagnosis", e))
}

impl Running {
    fn carry_out(&self, plan: &Plan) -> Result<Reconfigured, ReloadError> {
        self.need_userspace(plan)?;
        let kernel = self.kernel.get();
        let former_target = kernel.map(|kernel| kernel.target());
        // As for a start; but a start must protect, and this may as well be refused.
        let noted = Protected::load(&self.settings.state_dir);
        let served = plan.former.specs().chain(plan.fresh.specs());
        Protected::save(&self.settings.state_dir, noted.peers().iter().chain(served))
            .map_err(|e| ReloadError::Io("the note which peers are covered", e))?;
        self.firewall.replace(&plan.between)?;
        let Plan {
            former,
            fresh,
            rules,
            ..
        } = plan;
        // As long as nobody signs for new peers: what comes up later is protected.
        let unprotected = plan
            .unprotected(self)
            .inspect_err(|_| self.restore_rules(former))?;
        let mut counts = plan.counts;
        let set = kernel.map(|kernel| kernel.set_target(plan.target.clone(), true));
        if let Some(Err(refused)) = set {
            self.restore_rules(former);
            return Err(refused.into());
        }
        // From here on only the firewall may refuse, which has taken more than is asked of it now.
        counts.closed += self.close_displaced(plan);
        self.adopt(fresh.clone());
        if let Err(error) = self.firewall.replace(rules) {
            if let (Some(kernel), Some(target)) = (kernel, former_target) {
                kernel.restore_target(target);
            }
            self.adopt(former.clone());
            self.restore_rules(former);
            return Err(error.into());
        }
        note_protected(&self.settings, fresh.specs());
        for found in &unprotected {
            sockets::close(&found.socket, "it was unprotected");
        }
        counts.closed += unprotected.len();
        Ok(counts)
    }

    /// Binds the queues for the first peer that needs them.
    fn need_userspace(&self, plan: &Plan) -> Result<(), ReloadError> {
        let State { policy, links, .. } = &plan.former;
        if self.userspace.get().is_some() || !needs_queues(plan.fresh.specs()) {
            return Ok(());
        }
        let Self { settings, .. } = self;
        let begun = BoundQueues::bind(queues(settings), settings.queue_length)
            .and_then(|bound| Prepared::new(bound, settings, policy, Arc::clone(links)))
            .and_then(|prepared| prepared.run(policy))
            .map_err(ReloadError::Userspace)?;
        self.userspace.get_or_init(|| begun);
        Ok(())
    }

    /// Closes sessions that cannot go on, while their rules are in place and the engine knows them:
    /// the far end believes no reset that is not signed. Returns how many.
    fn close_displaced(&self, plan: &Plan) -> usize {
        let displaced = match plan.displaced() {
            Ok(displaced) => displaced,
            Err(error) => {
                tracing::error!(%error, "sessions of peers that have gone stay, unsigned");
                return 0;
            }
        };
        for found in &displaced {
            sockets::close(&found.socket, "its peer has changed or gone");
        }
        if !displaced.is_empty()
            && let Some(userspace) = self.userspace.get()
        {
            userspace.settle();
        }
        displaced.len()
    }

    fn restore_rules(&self, former: &State) {
        let restored = ruleset(&self.settings, &former.peers)
            .and_then(|ruleset| self.firewall.replace(&ruleset));
        match restored {
            Ok(()) => note_protected(&self.settings, former.specs()),
            Err(error) => {
                tracing::error!(%error, "rules of peers that were refused stay: they are blocked");
            }
        }
    }
}
