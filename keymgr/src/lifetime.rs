//! When a key is used (RFC 8177 §2.2): lifetimes on the wall clock, and how far clocks may differ.

use std::cmp::Ordering;
use std::time::{Duration, SystemTime};

/// A span of the wall clock: from its start on, up to and without its end. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    start: Option<SystemTime>,
    end: Option<SystemTime>,
}

/// A lifetime ends before or when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lifetime is empty: it ends before it has begun")]
pub struct EmptyLifetime;

impl Lifetime {
    /// Without start and end.
    pub const ALWAYS: Self = Self {
        start: None,
        end: None,
    };

    /// From `start` to before `end`; without bound where one is absent.
    ///
    /// # Errors
    /// When no instant would be in it.
    pub fn new(start: Option<SystemTime>, end: Option<SystemTime>) -> Result<Self, EmptyLifetime> {
        match (start, end) {
            (Some(start), Some(end)) if end <= start => Err(EmptyLifetime),
            _ => Ok(Self { start, end }),
        }
    }

    /// The first instant; absent when there was none.
    #[must_use]
    pub fn start(&self) -> Option<SystemTime> {
        self.start
    }

    /// The first instant after it; absent when it never ends.
    #[must_use]
    pub fn end(&self) -> Option<SystemTime> {
        self.end
    }

    /// Whether `instant` is in it.
    #[must_use]
    pub fn contains(&self, instant: SystemTime) -> bool {
        self.has_begun(instant) && !self.has_ended(instant)
    }

    /// Whether its start is not after `instant`.
    #[must_use]
    pub fn has_begun(&self, instant: SystemTime) -> bool {
        self.start.is_none_or(|start| start <= instant)
    }

    /// Whether its end is not after `instant`.
    #[must_use]
    pub fn has_ended(&self, instant: SystemTime) -> bool {
        self.end.is_some_and(|end| end <= instant)
    }

    /// Whether some instant is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let ends_before_start = |one: &Self, other: &Self| {
            one.end
                .zip(other.start)
                .is_some_and(|(end, start)| end <= start)
        };
        !ends_before_start(self, other) && !ends_before_start(other, self)
    }

    /// The lifetime for clocks that are up to `tolerance` off.
    #[must_use]
    pub fn widened(&self, tolerance: Tolerance) -> Self {
        match tolerance {
            Tolerance::Forever => Self::ALWAYS,
            // What the clock cannot express is as good as unbounded.
            Tolerance::Within(margin) => Self {
                start: self.start.and_then(|start| start.checked_sub(margin)),
                end: self.end.and_then(|end| end.checked_add(margin)),
            },
        }
    }

    /// The same start with a later end, or itself when it ends later than that.
    pub(crate) fn extended_to(self, end: Option<SystemTime>) -> Self {
        Self {
            end: later_end(self.end, end),
            ..self
        }
    }
}

/// Orders ends; an absent one is the last.
pub(crate) fn compare_ends(one: Option<SystemTime>, other: Option<SystemTime>) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) => one.cmp(&other),
        (one, other) => one.is_none().cmp(&other.is_none()),
    }
}

fn later_end(one: Option<SystemTime>, other: Option<SystemTime>) -> Option<SystemTime> {
    one.zip(other).map(|(one, other)| one.max(other))
}

/// How far the clocks of the two ends may be apart (`accept-tolerance` of RFC 8177).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// A key is accepted that much before and after its accept lifetime.
    Within(Duration),
    /// A key is accepted whenever it is seen.
    Forever,
}

impl Default for Tolerance {
    /// Five minutes: more than clocks that are kept by anything ever differ.
    fn default() -> Self {
        Self::Within(Duration::from_secs(300))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn span(start: u64, end: u64) -> Lifetime {
        Lifetime::new(Some(at(start)), Some(at(end))).unwrap()
    }

    #[test]
    fn a_lifetime_has_its_start_and_lacks_its_end() {
        let lifetime = span(10, 20);
        let inside: Vec<u64> = (8..23)
            .filter(|&second| lifetime.contains(at(second)))
            .collect();
        assert_eq!(inside, (10..20).collect::<Vec<_>>());
        assert!(Lifetime::ALWAYS.contains(at(0)));
    }

    #[test]
    fn empty_lifetimes_are_refused() {
        assert!(Lifetime::new(Some(at(10)), Some(at(10))).is_err());
        assert!(Lifetime::new(Some(at(10)), Some(at(9))).is_err());
        assert!(Lifetime::new(Some(at(10)), None).is_ok());
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!span(10, 20).overlaps(&span(20, 30)));
        assert!(!span(20, 30).overlaps(&span(10, 20)));
        assert!(span(10, 21).overlaps(&span(20, 30)));
        assert!(span(10, 40).overlaps(&span(20, 30)));
        assert!(Lifetime::ALWAYS.overlaps(&span(20, 30)));
    }

    #[test]
    fn a_tolerance_widens_both_sides() {
        let five = Tolerance::Within(Duration::from_secs(5));
        assert_eq!(span(10, 20).widened(five), span(5, 25));
        assert_eq!(span(10, 20).widened(Tolerance::Forever), Lifetime::ALWAYS);
        let endless = Tolerance::Within(Duration::MAX);
        assert_eq!(span(10, 20).widened(endless), Lifetime::ALWAYS);
    }

    #[test]
    fn an_extension_never_shortens() {
        assert_eq!(span(10, 20).extended_to(Some(at(30))), span(10, 30));
        assert_eq!(span(10, 20).extended_to(Some(at(15))), span(10, 20));
        assert_eq!(span(10, 20).extended_to(None).end(), None);
    }
}
