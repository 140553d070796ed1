//! Records of an earlier process that no worker has met yet.
//!
//! The kernel hashes connections to queues by a secret of its own, so which worker a record is for
//! shows only when a segment of its connection arrives.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ao_engine::policy::{ConnectionId, Policy};
use ao_engine::record::Record;
use ao_sys::links::Links;

use super::journal::{Journal, Slot};
use crate::report::{Session, SessionState};
use crate::settings::Backend;
use crate::sockets;

/// Records waiting for their connection to be seen.
#[derive(Debug)]
pub(super) struct Restored {
    records: Mutex<HashMap<ConnectionId, Vec<(Slot, Record)>>>,
    /// Spares the lock, once all are met.
    any: AtomicBool,
}

impl Restored {
    /// Takes in what was found, except what no configured peer with a key covers any more.
    pub(super) fn new(found: Vec<(Slot, Record)>, journal: &Journal, policy: &Policy) -> Self {
        let mut records: HashMap<ConnectionId, Vec<(Slot, Record)>> = HashMap::new();
        for (slot, record) in found {
            let peer = policy
                .find(&record.connection)
                .and_then(|index| policy.peers().get(index));
            if peer.is_none_or(|peer| peer.keys.is_empty()) {
                forget(journal, slot);
                continue;
            }
            records
                .entry(record.connection)
                .or_default()
                .push((slot, record));
        }
        let any = AtomicBool::new(!records.is_empty());
        Self {
            records: Mutex::new(records),
            any,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    pub(super) fn has(&self, connection: &ConnectionId) -> bool {
        self.lock().contains_key(connection)
    }

    /// Hands the records of a connection over.
    pub(super) fn take(&self, connection: &ConnectionId) -> Vec<(Slot, Record)> {
        let mut records = self.lock();
        let taken = records.remove(connection).unwrap_or_default();
        self.any.store(!records.is_empty(), Ordering::Relaxed);
        taken
    }

    /// Gives up those whose connection is gone.
    pub(super) fn retain(&self, journal: &Journal, alive: impl Fn(&ConnectionId) -> bool) {
        let mut records = self.lock();
        let gone: Vec<ConnectionId> = records.keys().filter(|id| !alive(id)).copied().collect();
        for (slot, _) in gone.iter().filter_map(|id| records.remove(id)).flatten() {
            forget(journal, slot);
        }
        self.any.store(!records.is_empty(), Ordering::Relaxed);
    }

    /// The connections that wait.
    pub(super) fn connections(&self) -> Vec<ConnectionId> {
        self.lock().keys().copied().collect()
    }

    /// The proven ones, as sessions.
    pub(super) fn sessions(&self, policy: &Policy, links: &Links) -> Vec<Session> {
        let records = self.lock();
        let proven = records
            .values()
            .flatten()
            .filter(|(_, record)| record.proven);
        proven
            .filter_map(|(_, record)| {
                let index = policy.find(&record.connection)?;
                Some(Session {
                    peer: policy.peers().get(index)?.name.clone(),
                    local: sockets::local_end(&record.connection),
                    remote: sockets::remote_end(&record.connection),
                    vrf: sockets::vrf_name(&record.connection, links),
                    backend: Backend::Userspace,
                    state: SessionState::Restored,
                    current_key: record.current_key,
                    rnext_key: record.rnext_key,
                    segments_good: 0,
                    segments_bad: 0,
                    segments_unsigned: 0,
                    segments_sent: 0,
                    key_not_found: 0,
                    dropped_icmp: 0,
                    keys: Vec::new(),
                    snd_sne: Some(upper_half(record.sent)),
                    rcv_sne: Some(upper_half(record.received)),
                })
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Vec<(Slot, Record)>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget(journal: &Journal, slot: Slot) {
    if let Err(error) = journal.forget(slot) {
        tracing::warn!(%error, "cannot delete the record of a connection");
    }
}

fn upper_half(mark: u64) -> u32 {
    u32::try_from(mark >> 32).unwrap_or(u32::MAX)
}
