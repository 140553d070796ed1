//! Refusals in the log: each kind once a second at most, with how many were left out.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two lines about the same kind.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// A connection, for want of room.
    Room,
    /// A connection, for want of descriptors or memory.
    Accept,
    /// A handshake that failed.
    Handshake,
    /// A handshake that took too long.
    Silence,
    /// A call, because there were too many.
    Rate,
    /// A call in a version that is not served.
    Version,
    /// A view that is not one.
    Malformed,
    /// A call that the handler refused.
    Call,
    /// A call or connection that took too long.
    Slow,
}

#[derive(Default)]
pub(super) struct RefusalLog(Mutex<HashMap<Kind, Line>>);

struct Line {
    written: Instant,
    left_out: u64,
}

impl RefusalLog {
    /// Writes a line, unless one of this kind was written within the last second.
    pub(super) fn note(&self, kind: Kind, from: Option<SocketAddr>, reason: &dyn fmt::Display) {
        let Some(left_out) = self.due(kind, Instant::now()) else {
            return;
        };
        match from {
            Some(from) => tracing::warn!(%from, left_out, "peering refused: {reason}"),
            None => tracing::warn!(left_out, "peering refused: {reason}"),
        }
    }

    /// How many were left out since the last line, if a line is due.
    fn due(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match lines.get_mut(&kind) {
            Some(line) if now.saturating_duration_since(line.written) < INTERVAL => {
                line.left_out += 1;
                None
            }
            last => {
                let left_out = last.map_or(0, |line| line.left_out);
                let line = Line {
                    written: now,
                    left_out: 0,
                };
                lines.insert(kind, line);
                Some(left_out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_a_second() {
        let log = RefusalLog::default();
        let start = Instant::now();
        assert_eq!(log.due(Kind::Room, start), Some(0));
        for _ in 0..5 {
            assert_eq!(log.due(Kind::Room, start), None);
        }
        assert_eq!(log.due(Kind::Rate, start), Some(0));
        assert_eq!(log.due(Kind::Room, start + INTERVAL), Some(5));
        assert_eq!(log.due(Kind::Room, start + 2 * INTERVAL), Some(0));
    }
}
