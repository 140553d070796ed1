//! What a backend is asked to do for automatic peers, each step for all of them at once.

use std::sync::Arc;

use ao_engine::policy::Mkt;
use keymgr::backend::{Backend, Removal};
use keymgr::rollover::Event;

/// What the backend is to do, in this order.
#[derive(Default)]
pub(super) struct Job {
    pub(super) install: Vec<(Arc<str>, u64, Arc<Mkt>)>,
    pub(super) select: Vec<(Arc<str>, u64, u8)>,
    pub(super) delete: Vec<(u64, Removal)>,
    pub(super) nudge: Vec<Arc<str>>,
    pub(super) observe: Vec<Arc<str>>,
}

/// What came of it, for the peers' state machines.
pub(super) type Outcome = Vec<(Arc<str>, Event)>;

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

    /// What is told when it broke off: every step is answered, or the peer waits for ever.
    pub(super) fn broken(&self) -> Outcome {
        let reason = || "the step broke off".to_owned();
        let install = self.install.iter().map(|&(ref peer, number, _)| {
            let reason = reason();
            (Arc::clone(peer), Event::InstallFailed { number, reason })
        });
        let select = self.select.iter().map(|&(ref peer, number, _)| {
            let reason = reason();
            (Arc::clone(peer), Event::SelectFailed { number, reason })
        });
        let delete = self.delete.iter().map(|(number, removal)| {
            let (number, reason) = (*number, reason());
            (
                Arc::clone(&removal.peer),
                Event::DeleteFailed { number, reason },
            )
        });
        let observe = self.observe.iter();
        let observe = observe.map(|peer| (Arc::clone(peer), Event::NotObserved));
        install.chain(select).chain(delete).chain(observe).collect()
    }

    /// Does everything.
    pub(super) fn run(self, backend: &impl Backend) -> Outcome {
        let mut outcome = Vec::new();
        install(self.install, backend, &mut outcome);
        select(self.select, backend, &mut outcome);
        delete(self.delete, backend, &mut outcome);
        if !self.nudge.is_empty() {
            backend.nudge(&self.nudge);
        }
        observe(self.observe, backend, &mut outcome);
        outcome
    }
}

fn install(keys: Vec<(Arc<str>, u64, Arc<Mkt>)>, backend: &impl Backend, outcome: &mut Outcome) {
    if keys.is_empty() {
        return;
    }
    let named: Vec<_> = keys
        .iter()
        .map(|(peer, _, mkt)| (Arc::clone(peer), Arc::clone(mkt)))
        .collect();
    let results = backend.install(&named);
    outcome.extend(
        keys.into_iter()
            .zip(results)
            .map(|((peer, number, _), result)| {
                let event = match result {
                    Ok(()) => Event::Installed { number },
                    Err(reason) => Event::InstallFailed { number, reason },
                };
                (peer, event)
            }),
    );
}

fn select(keys: Vec<(Arc<str>, u64, u8)>, backend: &impl Backend, outcome: &mut Outcome) {
    if keys.is_empty() {
        return;
    }
    let named: Vec<_> = keys
        .iter()
        .map(|(peer, _, send_id)| (Arc::clone(peer), *send_id))
        .collect();
    let results = backend.select(&named);
    outcome.extend(
        keys.into_iter()
            .zip(results)
            .map(|((peer, number, _), result)| {
                let event = match result {
                    Ok(()) => Event::Selected { number },
                    Err(reason) => Event::SelectFailed { number, reason },
                };
                (peer, event)
            }),
    );
}

fn delete(keys: Vec<(u64, Removal)>, backend: &impl Backend, outcome: &mut Outcome) {
    if keys.is_empty() {
        return;
    }
    let named: Vec<_> = keys.iter().map(|(_, removal)| removal.clone()).collect();
    let results = backend.delete(&named);
    outcome.extend(
        keys.into_iter()
            .zip(results)
            .map(|((number, removal), result)| {
                let event = match result {
                    Ok(()) => Event::Deleted { number },
                    Err(reason) => Event::DeleteFailed { number, reason },
                };
                (removal.peer, event)
            }),
    );
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
