//! What an operator sets for one automatic peer, and the time.

use std::time::{Duration, SystemTime};

use ao_engine::crypto::Algorithm;

/// The two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// A clock that never jumps, from any beginning. Every deadline is on it.
    pub steady: Duration,
    /// The wall clock: for people, and to find the schedule again after a restart.
    pub wall: SystemTime,
}

/// Settings of one automatic peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// What the peer has to show: its fingerprint, or its name with an authority. Keys that were
    /// agreed with another one are worth nothing.
    pub far_end: String,
    /// A key's time in use before the schedule replaces it.
    pub interval: Duration,
    /// How long a key is kept for late segments after its successor's proof. The shorter one of
    /// both ends holds: a key that one end has deleted serves neither.
    pub overlap: Duration,
    /// Generations to have ready at both ends above the active one; 1 at least.
    pub runway: u8,
    /// Algorithms accepted, the preferred one first.
    pub algorithms: Vec<Algorithm>,
    /// The highest KeyID to use: 255, or a vendor's limit.
    pub highest_id: u8,
    /// How long a KeyID rests after its key is gone from both ends: longer than a segment may
    /// live in the network.
    pub quarantine: Duration,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            far_end: String::new(),
            interval: Duration::from_secs(24 * 3600),
            overlap: Duration::from_secs(3600),
            runway: 2,
            algorithms: vec![Algorithm::Aes128Cmac96],
            highest_id: u8::MAX,
            quarantine: Duration::from_secs(120),
        }
    }
}

impl Parameters {
    /// Between two exchanges when there is no news: 5 minutes, or the interval if that is
    /// shorter, but at least a second.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.interval
            .min(Duration::from_secs(300))
            .max(Duration::from_secs(1))
    }
}
