//! The datapath, as the key manager sees it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use ao_engine::policy::Mkt;
use datapath::report::{Session, SessionState};
use datapath::{Datapath, KeyError, Removal as Emphasis};
use keymgr::backend::{Backend, Removal};
use keymgr::rollover::SessionKeys;

/// The datapath, which many threads use while it runs: nothing before, and nothing once somebody
/// has taken it away.
#[derive(Default)]
pub(crate) struct SharedDatapath(RwLock<Option<Datapath>>);

/// What is said while there is none.
const STOPPED: &str = "the datapath does not run";

impl SharedDatapath {
    /// It runs from now on.
    pub(crate) fn put(&self, datapath: Datapath) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(datapath);
    }

    /// Uses the datapath; nothing while it does not run.
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
        self.step(keys.len(), |datapath| datapath.delete(&keys))
    }

    fn observe(&self, peers: &[Arc<str>]) -> Vec<Result<Vec<SessionKeys>, String>> {
        let Some(observed) = self.with(|datapath| datapath.observe(peers)) else {
            return vec![Err(STOPPED.to_owned()); peers.len()];
        };
        let of_peer = |peer: &Arc<str>| match observed.get(peer) {
            Some(Ok(sessions)) => {
                // What is closing uses its keys for nothing that matters.
                let live = sessions
                    .iter()
                    .filter(|session| session.state != SessionState::Closing);
                Ok(live.map(session_keys).collect())
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Err(KeyError::UnknownPeer.to_string()),
        };
        peers.iter().map(of_peer).collect()
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
