//! What a worker tells of its engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ao_engine::engine::{KeyCounters, SessionCounters, SessionState, SessionView};
use ao_engine::policy::{ConnectionId, Mkt};
use ao_sys::links::Links;

use crate::report::{KeyUse, LastRefused, QueueReport, Session};
use crate::settings::Backend;
use crate::sockets;

/// One connection, as reported.
#[derive(Clone, Debug)]
pub(super) struct ConnectionReport {
    pub(super) connection: ConnectionId,
    pub(super) peer: Arc<str>,
    pub(super) silent_for: Duration,
    state: SessionState,
    current_key: u8,
    rnext_key: u8,
    counters: SessionCounters,
    keys: Vec<KeyUse>,
    snd_sne: u32,
    rcv_sne: u32,
}

impl ConnectionReport {
    pub(super) fn new(view: &SessionView<'_>, now: ao_engine::time::Instant) -> Self {
        Self {
            connection: view.connection,
            peer: Arc::clone(&view.peer.name),
            silent_for: now.since(view.last_seen),
            state: view.state,
            current_key: view.current_key,
            rnext_key: view.rnext_key,
            counters: view.counters,
            keys: view.keys().map(key_use).collect(),
            snd_sne: view.snd_sne,
            rcv_sne: view.rcv_sne,
        }
    }

    pub(super) fn report(&self, links: &Links) -> Session {
        use crate::report::SessionState as Reported;
        Session {
            peer: Arc::clone(&self.peer),
            local: sockets::local_end(&self.connection),
            remote: sockets::remote_end(&self.connection),
            vrf: sockets::vrf_name(&self.connection, links),
            backend: Backend::Userspace,
            state: match self.state {
                SessionState::Opening => Reported::Opening,
                SessionState::Established => Reported::Established,
                SessionState::Closing => Reported::Closing,
            },
            current_key: self.current_key,
            rnext_key: self.rnext_key,
            segments_good: self.counters.good,
            segments_bad: self.counters.bad,
            segments_unsigned: self.counters.unsigned,
            segments_sent: self.counters.sent,
            key_not_found: 0,
            dropped_icmp: 0,
            keys: self.keys.clone(),
            snd_sne: Some(self.snd_sne),
            rcv_sne: Some(self.rcv_sne),
        }
    }
}

fn key_use((key, counted): (&Mkt, KeyCounters)) -> KeyUse {
    KeyUse {
        send_id: key.send_id,
        recv_id: key.recv_id,
        good: counted.good,
        bad: counted.bad,
        sent: Some(counted.sent),
    }
}

/// Counters of one peer at one worker.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerCounts {
    pub(super) good: u64,
    pub(super) sent: u64,
    pub(super) drops: BTreeMap<&'static str, u64>,
    pub(super) last_refused: Option<LastRefused>,
}

/// What one worker tells.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkerReport {
    pub(super) queue: QueueReport,
    pub(super) sessions: Vec<ConnectionReport>,
    pub(super) peers: Vec<(Arc<str>, PeerCounts)>,
    pub(super) drops: BTreeMap<&'static str, u64>,
    pub(super) macs: u64,
    pub(super) mac_time: Duration,
}
