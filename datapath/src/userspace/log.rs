//! Refusals as log lines: one per peer and reason a minute, however many there are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ao_engine::crypto::MacProvider;
use ao_engine::engine::Engine;
use ao_engine::reason::DropReason;

const EVERY: Duration = Duration::from_secs(60);

/// What was said last of a peer and reason.
#[derive(Debug)]
struct Said {
    count: u64,
    at: Instant,
}

/// Remembers what was said, so that it is not said again too soon.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    said: HashMap<(Option<Arc<str>>, DropReason), Said>,
}

impl RefusalLog {
    /// Says what was refused since it was last said.
    pub(super) fn update<P: MacProvider>(&mut self, engine: &Engine<P>) {
        for (peer, counters) in engine.peer_counters() {
            for (reason, count) in counters.drops.iter() {
                self.note(Some(peer), reason, count);
            }
        }
        for (reason, count) in engine.unmatched_drops().iter() {
            self.note(None, reason, count);
        }
    }

    fn note(&mut self, peer: Option<&Arc<str>>, reason: DropReason, count: u64) {
        let now = Instant::now();
        let key = (peer.cloned(), reason);
        let before = self.said.get(&key).map_or(0, |said| said.count);
        let quiet = self
            .said
            .get(&key)
            .is_some_and(|said| now - said.at < EVERY);
        if count == before || quiet {
            return;
        }
        let refused = count.saturating_sub(before);
        let reason = reason.as_str();
        match peer {
            Some(peer) => tracing::warn!(%peer, reason, refused, "packets refused"),
            None => tracing::warn!(reason, refused, "packets of no peer refused"),
        }
        self.said.insert(key, Said { count, at: now });
    }
}
