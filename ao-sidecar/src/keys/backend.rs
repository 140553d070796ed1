//! The datapath, as the key manager sees it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use ao_engine::policy::Mkt;
use datapath::report::{Session, SessionState};
use datapath::{Datapath, KeyError, Removal as Emphasis};
use keymgr::backend::{Backend, Removal};
use keymgr::rollover::SessionKeys;

/// The running datapath, which many threads use and the last one takes away.
pub(crate) struct SharedDatapath(RwLock<Option<Datapath>>);

/// What is said when the datapath has stopped.
const STOPPED: &str = "the datapath has stopped";

impl SharedDatapath {
    pub(crate) fn new(datapath: Datapath) -> Self {
        Self(RwLock::new(Some(datapath)))
    }

    /// Uses the datapath; nothing once it has been taken.
    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&Datapath) -> T) -> Option<T> {
        self.read().as_ref().map(use_it)
    }

    /// Takes the datapath away, when nobody uses it any more.
    pub(crate) fn take(&self) -> Option<Datapath> {
        let mut datapath = self.0.write().unwrap_or_else(PoisonError::into_inner);
        datapath.take()
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Datapath>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a step with `count` keys.
    fn step(
        &self,
        count: usize,
        step: impl FnOnce(&Datapath) -> Vec<Result<(), KeyError>>,
    ) -> Vec<Result<(), String>> {
        match self.with(step) {
            Some(results) => {
                let told = |result: Result<(), KeyError>| result.map_err(|e| e.to_string());
                results.into_iter().map(told).collect()
            }
            None => vec![Err(STOPPED.to_owned()); count],
        }
    }
}

impl Backend for SharedDatapath {
    fn install(&self, keys: &[(Arc<str>, Arc<Mkt>)]) -> Vec<Result<(), String>> {
        self.step(keys.len(), |datapath| datapath.install(keys))
    }

    fn select(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), String>> {
        self.step(keys.len(), |datapath| datapath.select(keys))
    }

    fn retire(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), String>> {
        self.step(keys.len(), |datapath| datapath.retire(keys))
    }

    fn delete(&self, keys: &[Removal]) -> Vec<Result<(), String>> {
        let keys: Vec<(Arc<str>, u8, Emphasis)> = keys
            .iter()
            .map(|removal| {
                let emphasis = match removal.forced {
                    true => Emphasis::Forced,
                    false => Emphasis::Unused,
                };
                (Arc::clone(&removal.peer), removal.send_id, emphasis)
            })
            .collect();
        self.step(keys.len(), |datapath| {
            let results = datapath.delete(&keys);
            // What is not there needs no deleting: a step may be asked for again after a crash.
            let gone = |result| match result {
                Err(KeyError::UnknownKey(_)) => Ok(()),
                other => other,
            };
            results.into_iter().map(gone).collect()
        })
    }

    fn observe(&self, peers: &[Arc<str>]) -> Vec<Vec<SessionKeys>> {
        let sessions = self.with(|datapath| datapath.observe(peers));
        let mut seen: Vec<Vec<SessionKeys>> = vec![Vec::new(); peers.len()];
        let places: std::collections::HashMap<&str, usize> =
            peers.iter().map(|peer| &**peer).zip(0..).collect();
        for session in sessions.unwrap_or_default() {
            // What is closing uses its keys for nothing that matters.
            if session.state == SessionState::Closing {
                continue;
            }
            let place = places.get(&*session.peer);
            if let Some(seen) = place.and_then(|&place| seen.get_mut(place)) {
                seen.push(session_keys(&session));
            }
        }
        seen
    }

    fn nudge(&self, peers: &[Arc<str>]) {
        self.with(|datapath| datapath.nudge(peers));
    }

    fn close(&self, peer: &str) -> Result<(), String> {
        match self.with(|datapath| datapath.close(peer)) {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err(STOPPED.to_owned()),
        }
    }
}

fn session_keys(session: &Session) -> SessionKeys {
    SessionKeys {
        name: format!("{} – {}", session.local, session.remote),
        send_id_current: session.current_key,
        recv_id_rnext: session.rnext_key,
        verified: session
            .keys
            .iter()
            .map(|key| (key.recv_id, key.good))
            .collect(),
        established: matches!(
            session.state,
            SessionState::Established | SessionState::Restored
        ),
    }
}
