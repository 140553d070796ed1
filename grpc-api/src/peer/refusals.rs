//! Refusals in the log: each kind once a second at most, with how many were left out. Strangers
//! share a line; every partner has its own, so that no flood hides what is wrong with it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two lines about the same kind and the same origin.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
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
    /// A call that is not one, by its framing or its content.
    Malformed,
    /// A call that the handler refused for another reason.
    Call,
    /// A call that took too long, or a connection that brought none or did not end in time.
    Slow,
}

/// Who is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// Nobody yet: nothing was accepted.
    Nobody,
    /// Whoever has no partner's address.
    Stranger,
    /// Whoever has this address, where a partner is.
    Expected(IpAddr),
    /// A partner, by its certificate.
    Partner(Arc<str>),
}

/// It has as many lines as there are kinds, for each partner that was ever configured.
pub(crate) struct RefusalLog {
    /// What is refused, for people.
    what: &'static str,
    lines: Mutex<HashMap<(Kind, Origin), Line>>,
}

struct Line {
    written: Instant,
    left_out: u64,
}

impl RefusalLog {
    /// `what` is refused.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            lines: Mutex::default(),
        }
    }

    /// Writes a line, unless one of this kind and origin was written within the last second.
    pub(crate) fn note(
        &self,
        kind: Kind,
        origin: Origin,
        from: Option<SocketAddr>,
        reason: &dyn fmt::Display,
    ) {
        let Some(left_out) = self.due(kind, origin, Instant::now()) else {
            return;
        };
        let what = self.what;
        match from {
            Some(from) => tracing::warn!(%from, left_out, "{what} refused: {reason}"),
            None => tracing::warn!(left_out, "{what} refused: {reason}"),
        }
    }

    /// How many were left out since the last line, if a line is due.
    fn due(&self, kind: Kind, origin: Origin, now: Instant) -> Option<u64> {
        let key = (kind, origin);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match lines.get_mut(&key) {
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
                lines.insert(key, line);
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
        let log = RefusalLog::new("peering");
        let start = Instant::now();
        let due = |kind, now| log.due(kind, Origin::Stranger, now);
        assert_eq!(due(Kind::Room, start), Some(0));
        for _ in 0..5 {
            assert_eq!(due(Kind::Room, start), None);
        }
        assert_eq!(due(Kind::Rate, start), Some(0));
        assert_eq!(due(Kind::Room, start + INTERVAL), Some(5));
        assert_eq!(due(Kind::Room, start + 2 * INTERVAL), Some(0));
    }

    #[test]
    fn a_flood_of_strangers_hides_no_partner() {
        let log = RefusalLog::new("peering");
        let start = Instant::now();
        let expected = Origin::Expected([192, 0, 2, 1].into());
        let partner = Origin::Partner("a".into());
        for origin in [Origin::Stranger, expected, partner] {
            assert_eq!(log.due(Kind::Handshake, origin.clone(), start), Some(0));
            assert_eq!(log.due(Kind::Handshake, origin, start), None);
        }
    }
}
