//! What a backend is asked to do for automatic peers, each step for all of them at once.

use std::sync::Arc;

use ao_engine::policy::Mkt;
use keymgr::backend::{Backend, Removal};
use keymgr::rollover::Event;

/// Peer, generation, key.
type Install = (Arc<str>, u64, Arc<Mkt>);
/// Peer, generation, SendID.
type Select = (Arc<str>, u64, u8);
/// Generation, key.
type Delete = (u64, Removal);

/// What the backend is to do, in this order.
#[derive(Default)]
pub(super) struct Job {
    pub(super) install: Vec<Install>,
    pub(super) select: Vec<Select>,
    pub(super) delete: Vec<Delete>,
    pub(super) nudge: Vec<Arc<str>>,
    pub(super) observe: Vec<Arc<str>>,
}

/// What came of a step, for the peer's state machine.
type Told = (Arc<str>, Event);

/// What came of it, for the peers' state machines.
pub(super) type Outcome = Vec<Told>;

impl Job {
    pub(super) fn is_empty(&self) -> bool {
        self.install.is_empty()
            && self.select.is_empty()
            && self.delete.is_empty()
            && self.nudge.is_empty()
            && self.observe.is_empty()
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.install.append(&mut other.install);
        self.select.append(&mut other.select);
        self.delete.append(&mut other.delete);
        self.nudge.append(&mut other.nudge);
        self.observe.append(&mut other.observe);
    }

    /// Forgets what it was to do for peers that do not stay.
    pub(super) fn retain(&mut self, stays: impl Fn(&Arc<str>) -> bool) {
        self.install.retain(|(peer, ..)| stays(peer));
        self.select.retain(|(peer, ..)| stays(peer));
        self.delete.retain(|(_, removal)| stays(&removal.peer));
        self.nudge.retain(&stays);
        self.observe.retain(&stays);
    }

    /// What is told when it broke off: every step is answered, or the peer waits for ever.
    pub(super) fn broken(&self) -> Outcome {
        let broken = || Err("the step broke off".to_owned());
        let install = self.install.iter().cloned();
        let select = self.select.iter().cloned();
        let delete = self.delete.iter().cloned();
        let observe = self.observe.iter();
        let observe = observe.map(|peer| (Arc::clone(peer), Event::NotObserved));
        install
            .map(|key| installed(key, broken()))
            .chain(select.map(|key| selected(key, broken())))
            .chain(delete.map(|key| deleted(key, broken())))
            .chain(observe)
            .collect()
    }

    /// Does everything.
    pub(super) fn run(self, backend: &impl Backend) -> Outcome {
        let install = |(peer, _, mkt): &Install| (Arc::clone(peer), Arc::clone(mkt));
        let select = |(peer, _, send_id): &Select| (Arc::clone(peer), *send_id);
        let delete = |(_, removal): &Delete| removal.clone();
        let mut outcome = step(
            self.install,
            install,
            |keys| backend.install(keys),
            installed,
        );
        outcome.extend(step(
            self.select,
            select,
            |keys| backend.select(keys),
            selected,
        ));
        outcome.extend(step(
            self.delete,
            delete,
            |keys| backend.delete(keys),
            deleted,
        ));
        if !self.nudge.is_empty() {
            backend.nudge(&self.nudge);
        }
        observe(self.observe, backend, &mut outcome);
        outcome
    }
}

/// Takes one step for all keys, which the backend knows as `named`, and tells what came of each.
fn step<K, N>(
    keys: Vec<K>,
    named: impl Fn(&K) -> N,
    take: impl FnOnce(&[N]) -> Vec<Result<(), String>>,
    told: fn(K, Result<(), String>) -> Told,
) -> Outcome {
    if keys.is_empty() {
        return Vec::new();
    }
    let names: Vec<N> = keys.iter().map(named).collect();
    let results = take(&names);
    let both = keys.into_iter().zip(results);
    both.map(|(key, result)| told(key, result)).collect()
}

fn installed((peer, number, _): Install, result: Result<(), String>) -> Told {
    let event = match result {
        Ok(()) => Event::Installed { number },
        Err(reason) => Event::InstallFailed { number, reason },
    };
    (peer, event)
}

fn selected((peer, number, _): Select, result: Result<(), String>) -> Told {
    let event = match result {
        Ok(()) => Event::Selected { number },
        Err(reason) => Event::SelectFailed { number, reason },
    };
    (peer, event)
}

fn deleted((number, removal): Delete, result: Result<(), String>) -> Told {
    let event = match result {
        Ok(()) => Event::Deleted { number },
        Err(reason) => Event::DeleteFailed { number, reason },
    };
    (removal.peer, event)
}

fn observe(mut peers: Vec<Arc<str>>, backend: &impl Backend, outcome: &mut Outcome) {
    peers.sort();
    peers.dedup();
    if peers.is_empty() {
        return;
    }
    let seen = backend.observe(&peers);
    for (peer, sessions) in peers.into_iter().zip(seen) {
        let event = match sessions {
            Ok(sessions) => Event::Observed { sessions },
            Err(reason) => {
                tracing::debug!(%peer, %reason, "sessions cannot be looked at");
                Event::NotObserved
            }
        };
        outcome.push((peer, event));
    }
}
