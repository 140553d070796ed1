//! A guard against wall clocks that jump.
//!
//! Lifetimes are spans of the wall clock. A clock that jumps, be it by a mistake or by an attack
//! on its source, must not end a key. So the wall clock is compared with the steady one, and after
//! a jump time goes on as if nothing had happened, until the new time has proven steady.

use std::time::{Duration, SystemTime};

use crate::rollover::Now;

/// Difference between the two clocks, in the course of [`PROBATION`], that makes a jump.
pub const JUMP: Duration = Duration::from_secs(60);
/// How long a wall clock that has jumped must run evenly before it is believed.
pub const PROBATION: Duration = Duration::from_secs(3600);

/// Watches one wall clock. It is believed at the start: there is nothing to compare it with.
///
/// The steady clock has to go on while the machine is suspended (`CLOCK_BOOTTIME`), or waking up
/// looks like a jump.
#[derive(Clone, Debug)]
pub struct ClockWatch {
    trusted: Now,
    held: Option<Hold>,
    probation: Duration,
}

/// A wall clock that is not believed.
#[derive(Clone, Copy, Debug)]
struct Hold {
    since: Duration,
    latest: Now,
}

/// What is worth telling; each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockChange {
    /// The wall clock jumped, and is not believed for now.
    Jumped {
        /// What it says.
        to: SystemTime,
        /// What keys go by.
        trusted: SystemTime,
    },
    /// It is back where it would be without the jump.
    Returned,
    /// It has run evenly since its jump for so long that it is believed.
    Believed,
}

/// The time at `steady` of a wall clock that has run evenly since a reading.
fn continued(from: Now, steady: Duration) -> SystemTime {
    from.wall
        .checked_add(steady.saturating_sub(from.steady))
        .unwrap_or(from.wall)
}

/// Whether both could be readings of the same even clock.
fn is_even(from: Now, to: Now) -> bool {
    let off = to.wall.duration_since(continued(from, to.steady));
    off.unwrap_or_else(|earlier| earlier.duration()) <= JUMP
}

impl ClockWatch {
    /// Begins with a reading that is believed.
    #[must_use]
    pub fn new(first: Now) -> Self {
        Self::with_probation(first, PROBATION)
    }

    /// The same with another time than [`PROBATION`].
    #[must_use]
    pub fn with_probation(first: Now, probation: Duration) -> Self {
        Self {
            trusted: first,
            held: None,
            probation,
        }
    }

    /// Takes a reading. Gives the time that keys go by, and what is worth telling.
    pub fn look(&mut self, now: Now) -> (SystemTime, Option<ClockChange>) {
        if !is_even(self.trusted, now) {
            let change = self.doubt(now);
            return (continued(self.trusted, now.steady), change);
        }
        let held = self.held.take().is_some();
        // Not each time: a clock that is pushed on by less than a jump at every look would run as
        // fast as somebody likes.
        if now.steady.saturating_sub(self.trusted.steady) >= self.probation {
            self.trusted = now;
        }
        (now.wall, held.then_some(ClockChange::Returned))
    }

    /// Believes the wall clock as it is: the operator says so.
    pub fn trust(&mut self, now: Now) {
        self.trusted = now;
        self.held = None;
    }

    /// Whether keys go by another time than the wall clock's.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    fn doubt(&mut self, now: Now) -> Option<ClockChange> {
        let since = match self.held {
            Some(hold) if is_even(hold.latest, now) => hold.since,
            _ => {
                self.held = Some(Hold {
                    since: now.steady,
                    latest: now,
                });
                return Some(ClockChange::Jumped {
                    to: now.wall,
                    trusted: continued(self.trusted, now.steady),
                });
            }
        };
        if now.steady.saturating_sub(since) >= self.probation {
            self.trust(now);
            return Some(ClockChange::Believed);
        }
        self.held = Some(Hold { since, latest: now });
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A reading `steady` seconds after the start of a clock that is `off` seconds ahead.
    fn reading(steady: u64, off: i64) -> Now {
        let wall = 1_000_000 + steady.cast_signed() + off;
        Now {
            steady: Duration::from_secs(steady),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(wall.unsigned_abs()),
        }
    }

    fn watch() -> ClockWatch {
        ClockWatch::new(reading(0, 0))
    }

    #[test]
    fn a_jump_is_told_once_and_time_goes_on_as_before() {
        for off in [61, -61, 900_000, -900_000] {
            let mut watch = watch();
            let (time, change) = watch.look(reading(10, off));
            assert_eq!(time, reading(10, 0).wall);
            let (to, trusted) = (reading(10, off).wall, reading(10, 0).wall);
            assert_eq!(change, Some(ClockChange::Jumped { to, trusted }));
            assert_eq!(watch.look(reading(20, off)), (reading(20, 0).wall, None));
            assert!(watch.holds());
        }
    }

    #[test]
    fn a_minute_is_no_jump() {
        let mut watch = watch();
        assert_eq!(watch.look(reading(10, 60)), (reading(10, 60).wall, None));
        assert_eq!(watch.look(reading(20, 0)), (reading(20, 0).wall, None));
        assert_eq!(watch.look(reading(30, -60)), (reading(30, -60).wall, None));
    }

    /// A little at each look adds up to a jump.
    #[test]
    fn a_clock_that_is_walked_away_has_jumped() {
        let mut watch = watch();
        let change = (1..10).find_map(|look: i64| {
            let steady = look.unsigned_abs() * 10;
            watch.look(reading(steady, look * 20)).1
        });
        assert!(matches!(change, Some(ClockChange::Jumped { .. })));
        assert_eq!(watch.look(reading(100, 200)).0, reading(100, 0).wall);
    }

    #[test]
    fn a_clock_that_comes_back_is_believed_at_once() {
        let mut watch = watch();
        watch.look(reading(10, 5000));
        let (time, change) = watch.look(reading(20, 3));
        assert_eq!(
            (time, change),
            (reading(20, 3).wall, Some(ClockChange::Returned))
        );
        assert!(!watch.holds());
    }

    #[test]
    fn a_clock_that_stays_is_believed_after_an_hour() {
        let mut watch = watch();
        watch.look(reading(100, 5000));
        assert_eq!(watch.look(reading(3699, 5000)).1, None);
        let (time, change) = watch.look(reading(3700, 5000));
        assert_eq!(
            (time, change),
            (reading(3700, 5000).wall, Some(ClockChange::Believed))
        );
    }

    #[test]
    fn each_jump_begins_the_hour_anew() {
        let mut watch = watch();
        watch.look(reading(100, 5000));
        let (_, change) = watch.look(reading(3000, 9000));
        assert!(matches!(change, Some(ClockChange::Jumped { .. })));
        assert_eq!(
            watch.look(reading(3700, 9000)),
            (reading(3700, 0).wall, None)
        );
        assert_eq!(
            watch.look(reading(6600, 9000)).1,
            Some(ClockChange::Believed)
        );
    }

    #[test]
    fn the_operator_is_believed() {
        let mut watch = watch();
        watch.look(reading(10, 5000));
        watch.trust(reading(11, 5000));
        assert_eq!(
            watch.look(reading(12, 5000)),
            (reading(12, 5000).wall, None)
        );
    }

    proptest! {
        /// However the wall clock jumps, within an hour keys never see time go another way than
        /// the steady clock says, give or take the minute that each look allows.
        #[test]
        fn no_jump_gets_through(
            looks in prop::collection::vec((1_u64..100, prop_oneof![-900_i64..-60, 61_i64..900]), 1..30)
        ) {
            let mut watch = watch();
            let mut steady = 0;
            for (pause, off) in looks {
                steady += pause;
                let (time, _) = watch.look(reading(steady, off));
                prop_assert_eq!(time, reading(steady, 0).wall);
            }
        }

        #[test]
        fn an_even_clock_is_always_believed(
            looks in prop::collection::vec((1_u64..10_000, -30_i64..=30), 1..50)
        ) {
            let mut watch = watch();
            let mut steady = 0;
            for (pause, off) in looks {
                steady += pause;
                let now = reading(steady, off);
                prop_assert_eq!(watch.look(now), (now.wall, None));
            }
        }
    }
}
