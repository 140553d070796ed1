//! Counters per peer, and for packets of no peer.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::policy::{Peer, Policy};
use crate::reason::DropReason;
use crate::time::Instant;

/// Refused packets by reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Packets refused for `reason`.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let counts = DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.get(reason)));
        counts.filter(|&(_, count)| count > 0)
    }

    /// All refused packets.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(super) fn count(&mut self, reason: DropReason) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += 1;
        }
    }
}

/// A packet that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: DropReason,
    /// When.
    pub at: Instant,
    /// The KeyID that it named, if it had TCP-AO and was read that far.
    pub key_id: Option<u8>,
}

/// Packets of one peer, over all its connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Received and verified.
    pub good: u64,
    /// Signed and sent.
    pub sent: u64,
    /// Refused.
    pub drops: DropCounters,
    /// The last of those.
    pub last_refused: Option<Refused>,
}

/// All counters of one engine, in the order of the policy's peers.
#[derive(Debug, Default)]
pub(super) struct Counters {
    peers: Vec<(Arc<str>, PeerCounters)>,
    /// Refused packets of no peer.
    pub(super) unmatched: DropCounters,
}

impl Counters {
    /// Follows a new policy; a peer keeps its counts under its name.
    pub(super) fn follow(&mut self, policy: &Policy) {
        let old = core::mem::take(&mut self.peers);
        let mut old: BTreeMap<Arc<str>, PeerCounters> = old.into_iter().collect();
        let of_peer = |peer: &Arc<Peer>| {
            let counters = old.remove(&peer.name).unwrap_or_default();
            (peer.name.clone(), counters)
        };
        self.peers = policy.peers().iter().map(of_peer).collect();
    }

    pub(super) fn peer(&mut self, index: usize) -> Option<&mut PeerCounters> {
        self.peers.get_mut(index).map(|(_, counters)| counters)
    }

    /// Counts a refused packet against a peer, or against none.
    pub(super) fn refuse(&mut self, peer: Option<usize>, refused: Refused) {
        match peer.and_then(|index| self.peers.get_mut(index)) {
            Some((_, counters)) => {
                counters.drops.count(refused.reason);
                counters.last_refused = Some(refused);
            }
            None => self.unmatched.count(refused.reason),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &PeerCounters)> {
        self.peers.iter().map(|(name, counters)| (name, counters))
    }
}
