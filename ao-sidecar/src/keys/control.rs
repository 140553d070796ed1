//! What operators see of keys and may do with them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use grpc_api::operator::{
    CompletedRollover, ControlError, GenerationReport, IdentityReport, KeyControl, KeyOrigin,
    KeyReport, KeyState, Lifetime, PeerKeys, RolloverReport,
};
use keymgr::chain::{Key, KeyChain, Wanted};
use keymgr::rollover::message::Stage;
use keymgr::rollover::{Alarm, GenerationStatus, Status};

use tokio::task::spawn_blocking;

use super::chains::{ChainPeer, Chains};
use super::manager::{Command, Handle, View};
use crate::config::{KeySource, Peer, RolloverConfig};

/// Answers operators.
pub(crate) struct Control {
    answers: RwLock<Arc<Answers>>,
    chains: Arc<Chains>,
}

/// What is answered from.
#[derive(Default)]
struct Answers {
    /// In the order of the configuration.
    peers: Vec<PeerKeys>,
    sources: HashMap<Arc<str>, KeySource>,
    /// Absent while no peer is automatic.
    automatic: Option<(Handle, IdentityReport)>,
}

impl Control {
    /// Knows no peers yet.
    pub(super) fn new(chains: Arc<Chains>) -> Self {
        Self {
            answers: RwLock::default(),
            chains,
        }
    }

    /// Follows a change of the configuration.
    pub(super) fn replace(&self, peers: &[Peer], automatic: Option<(Handle, IdentityReport)>) {
        let keys = |peer: &Peer| PeerKeys {
            name: Arc::clone(&peer.spec.name),
            automatic: peer.keys.rollover().is_some(),
        };
        let source = |peer: &Peer| (Arc::clone(&peer.spec.name), peer.keys.clone());
        let fresh = Answers {
            peers: peers.iter().map(keys).collect(),
            sources: peers.iter().map(source).collect(),
            automatic,
        };
        *self.answers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
    }

    /// Whether there is a peer with this name.
    pub(super) fn knows(&self, peer: &str) -> bool {
        self.answers().sources.contains_key(peer)
    }

    fn answers(&self) -> Arc<Answers> {
        Arc::clone(&self.answers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Peers with a chain, all or one.
    fn chain_peers(&self, wanted: Option<&str>) -> Vec<ChainPeer> {
        let answers = self.answers();
        let is_wanted = |peer: &&PeerKeys| wanted.is_none_or(|wanted| &*peer.name == wanted);
        let chain_peer = |peer: &PeerKeys| {
            Some(ChainPeer {
                name: Arc::clone(&peer.name),
                chain: Arc::clone(answers.sources.get(&peer.name)?.chain()?),
            })
        };
        let wanted = answers.peers.iter().filter(is_wanted);
        wanted.filter_map(chain_peer).collect()
    }

    /// The time that chains go by. May wait for a change of keys.
    pub(crate) fn chains_now(&self) -> SystemTime {
        self.chains.now()
    }

    fn handle(&self) -> Option<Handle> {
        let answers = self.answers();
        answers.automatic.as_ref().map(|(handle, _)| handle.clone())
    }

    /// The time that key chains go by; another than the wall clock's after a jump of it.
    pub(crate) fn chain_time(&self) -> SystemTime {
        self.chains.now()
    }

    async fn views(&self, peer: Option<&str>) -> Result<Vec<(Arc<str>, View)>, ControlError> {
        let Some(handle) = self.handle() else {
            return Ok(Vec::new());
        };
        let views = handle.status(peer.map(Arc::from)).await;
        views.map_err(|_| ControlError::Stopping)
    }

    async fn command(&self, peer: &str, command: Command) -> Result<(), ControlError> {
        let Some(handle) = self.handle() else {
            return Err(ControlError::Refused("no peer is automatic".to_owned()));
        };
        let done = handle.command(peer.into(), command).await;
        done.map_err(ControlError::Refused)
    }
}

impl KeyControl for Control {
    fn peers(&self) -> Vec<PeerKeys> {
        self.answers().peers.clone()
    }

    async fn keys(&self, peer: Option<&str>) -> Result<Vec<KeyReport>, ControlError> {
        let (peers, chains) = (self.chain_peers(peer), Arc::clone(&self.chains));
        // Beside the runtime's thread: the chains may be in the middle of a change of keys.
        let of_chains = spawn_blocking(move || {
            let now = chains.now();
            let keys = peers.iter().flat_map(|peer| chain_keys(peer, &chains, now));
            keys.collect::<Vec<_>>()
        });
        let mut keys = of_chains.await.map_err(|_| ControlError::Stopping)?;
        for (name, view) in self.views(peer).await? {
            let generations = view.status.generations.iter();
            keys.extend(generations.map(|generation| generation_key(&name, generation)));
        }
        Ok(keys)
    }

    async fn rollovers(&self, peer: Option<&str>) -> Result<Vec<RolloverReport>, ControlError> {
        let views = self.views(peer).await?;
        let answers = self.answers();
        let report = |(name, view): (Arc<str>, View)| {
            let config = answers.sources.get(&name)?.rollover()?;
            Some(rollover_report(name, &view, config))
        };
        Ok(views.into_iter().filter_map(report).collect())
    }

    async fn start(&self, peer: &str, compromised: bool) -> Result<String, ControlError> {
        self.command(peer, Command::Start { compromised }).await?;
        Ok(match compromised {
            false => format!("changing the key of peer {peer:?}"),
            true => format!(
                "agreeing on a fresh key with peer {peer:?}; all others go as soon as it is proven"
            ),
        })
    }

    async fn abort(&self, peer: &str) -> Result<String, ControlError> {
        self.command(peer, Command::Abort).await?;
        Ok(format!(
            "keys of peer {peer:?} that are not in use yet are given up"
        ))
    }

    async fn force(&self, peer: &str) -> Result<String, ControlError> {
        self.command(peer, Command::Force).await?;
        Ok(format!(
            "superseded keys of peer {peer:?} are being deleted"
        ))
    }

    async fn identity(&self) -> Result<IdentityReport, ControlError> {
        let answers = self.answers();
        let identity = answers.automatic.as_ref();
        identity.map(|(_, it)| it.clone()).ok_or_else(|| {
            let reason = "no peer has [peer.rollover], so this sidecar needs no identity; \
                          `ao-sidecar identity` makes one";
            ControlError::Refused(reason.to_owned())
        })
    }
}

fn chain_keys(peer: &ChainPeer, chains: &Chains, now: SystemTime) -> Vec<KeyReport> {
    let uses = chains.uses(&peer.name);
    let wanted = peer.chain.at(now);
    let chain: &KeyChain = &peer.chain;
    let name: Arc<str> = chain.name().into();
    let report = |key: &Key| {
        let used = uses.get(&key.mkt.recv_id).copied().unwrap_or_default();
        let accepted = accepts(&wanted, key);
        let state = state_at(&wanted, key, now);
        // Another key with this ID may have been used before or since.
        let used = Some(used).filter(|_| accepted).unwrap_or_default();
        KeyReport {
            peer: Arc::clone(&peer.name),
            origin: KeyOrigin::Chain {
                name: Arc::clone(&name),
            },
            ids: Some((key.mkt.send_id, key.mkt.recv_id)),
            algorithm: key.mkt.algorithm.name(),
            state,
            send: lifetime(key.send),
            accept: lifetime(key.accept),
            last_use: used.last,
            segments_verified: used.verified,
        }
    };
    chain.keys().iter().map(report).collect()
}

/// How far a key of `chain` is at `now`.
pub(crate) fn key_state(chain: &KeyChain, key: &Key, now: SystemTime) -> KeyState {
    state_at(&chain.at(now), key, now)
}

fn state_at(wanted: &Wanted, key: &Key, now: SystemTime) -> KeyState {
    match (accepts(wanted, key), key.send.has_begun(now)) {
        (true, true) if !wanted.retired.contains(&key.mkt.send_id) => KeyState::Active,
        (true, _) => KeyState::AcceptOnly,
        (false, _) if key.accept.has_ended(now) => KeyState::Expired,
        (false, _) => KeyState::Pending,
    }
}

fn accepts(wanted: &Wanted, key: &Key) -> bool {
    wanted.keys.iter().any(|mkt| Arc::ptr_eq(mkt, &key.mkt))
}

fn lifetime(lifetime: keymgr::lifetime::Lifetime) -> Lifetime {
    Lifetime {
        start: lifetime.start(),
        end: lifetime.end(),
    }
}

fn generation_key(peer: &Arc<str>, generation: &GenerationStatus) -> KeyReport {
    KeyReport {
        peer: Arc::clone(peer),
        origin: KeyOrigin::Rollover {
            generation: generation.number,
            there: generation.there.map(stage),
            agreed_at: generation.agreed_at,
            segments_verified_there: generation.verified_there,
        },
        ids: Some((generation.id, generation.id)),
        algorithm: generation.algorithm.name(),
        state: state_of(generation),
        send: Lifetime::default(),
        accept: Lifetime::default(),
        last_use: generation.last_use,
        segments_verified: generation.verified_here,
    }
}

fn state_of(generation: &GenerationStatus) -> KeyState {
    match (generation.stage, generation.ready) {
        (Stage::Installed, true) => KeyState::Ready,
        (other, _) => stage(other),
    }
}

fn stage(stage: Stage) -> KeyState {
    match stage {
        Stage::Agreed => KeyState::Agreed,
        Stage::Installed => KeyState::Installed,
        Stage::Selected => KeyState::Selected,
        Stage::Proven => KeyState::Proven,
        Stage::Retiring => KeyState::Retiring,
        Stage::Deleted => KeyState::Deleted,
        Stage::Revoked => KeyState::Revoked,
    }
}

fn rollover_report(peer: Arc<str>, view: &View, config: &RolloverConfig) -> RolloverReport {
    let Status {
        active,
        proven,
        generations,
        next_rollover,
        last_heard,
        alarms,
        start_pending,
        ..
    } = &view.status;
    let now = SystemTime::now();
    let report = |number: u64| {
        let generation = generations.iter().find(|found| found.number == number)?;
        Some(GenerationReport {
            number,
            key_id: Some(generation.id),
            state: state_of(generation),
            there: generation.there.map(stage),
        })
    };
    let above = |generation: &&GenerationStatus| active.is_none_or(|at| generation.number > at);
    let ready = generations
        .iter()
        .filter(above)
        .filter(|generation| generation.ready);
    let coming = generations.iter().find(|generation| {
        above(generation) && matches!(generation.stage, Stage::Agreed | Stage::Installed)
    });
    let waiting = match (active, proven, start_pending) {
        (None, _, _) => Some("the first key: the peer is blocked until both ends have it"),
        (_, false, _) => Some("the proof that the key is in use in both directions at both ends"),
        (_, _, true) => Some("a key that both ends have"),
        (_, true, false) => None,
    };
    // An alarm knows better whom it waits for.
    let overdue = alarms.iter().find_map(|alarm| match alarm {
        Alarm::ProofOverdue { waiting_for } => Some(waiting_for.join(", ")),
        _ => None,
    });
    let target = match (proven, start_pending) {
        (false, _) => active.and_then(report),
        (true, true) => coming.and_then(|generation| report(generation.number)),
        (true, false) => None,
    };
    RolloverReport {
        peer,
        endpoint: config.endpoint.to_string(),
        trust: config.trust.to_string(),
        interval: config.interval,
        overlap: config.overlap,
        active: active.and_then(report),
        target,
        runway_ready: u32::try_from(ready.count()).unwrap_or(u32::MAX),
        runway_wanted: u32::from(config.runway),
        next: next_rollover.and_then(|left| now.checked_add(left)),
        last: view
            .last
            .map(|(at, took, trigger)| CompletedRollover { at, took, trigger }),
        last_heard: last_heard.and_then(|ago| now.checked_sub(ago)),
        unreachable: view.failing.clone(),
        waiting: overdue.or_else(|| waiting.map(str::to_owned)),
        alarms: alarms.iter().map(ToString::to_string).collect(),
    }
}
