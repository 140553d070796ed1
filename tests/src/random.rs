//! Numbers for random moments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::progress;

/// Numbers from a seed, which is printed so that a failure can be told.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A seed from the time.
    #[must_use]
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = now.map_or(1, |now| {
            now.as_secs() << 20 | u64::from(now.subsec_micros())
        });
        progress!("seed {seed}");
        Self(seed)
    }

    /// A number from 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }

    /// A span below `limit`, by the millisecond.
    pub fn span(&mut self, limit: Duration) -> Duration {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.below(limit.max(1)))
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
