//! The two clocks: one that people set, and one that only ever advances.

use std::time::{Duration, SystemTime};

use keymgr::rollover::Now;
use nix::time::{ClockId, clock_gettime};

/// Reads both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock;

impl Clock {
    /// This moment. The steady clock goes on while the machine sleeps.
    pub(super) fn now(self) -> Now {
        let steady = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Now {
            steady,
            wall: SystemTime::now(),
        }
    }
}
