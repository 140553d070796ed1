//! The event log: a bounded ring that any number of readers follow, each at its own pace.
//!
//! Readers pull. One that does not read costs nothing and is not waited for: when it comes back,
//! what it missed is either still there or reported as lost.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// Events kept.
const CAPACITY: usize = 4096;
/// Most events a reader gets at once.
const PAGE: usize = 64;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// A step as it should be.
    Info,
    /// Out of the ordinary; the sidecar copes.
    Warning,
    /// An operator should look at it.
    Alarm,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Name of the peer; nothing for what concerns all of them.
    pub peer: Option<Arc<str>>,
    /// A stable name in lower case with hyphens.
    pub kind: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// The generation it is about, from 1.
    pub generation: Option<u64>,
    /// KeyID of that generation.
    pub key_id: Option<u8>,
    /// Why the key change was begun: `schedule`, `operator`, `compromise`, `peer` or `no-key`.
    pub trigger: Option<&'static str>,
    /// What was seen that allows the step, for people.
    pub proof: Option<String>,
    /// How long the step took.
    pub took: Option<Duration>,
    /// The event in a sentence, for people.
    pub message: String,
}

/// An event with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number, from 1 without holes.
    pub sequence: u64,
    /// When it happened.
    pub time: SystemTime,
    /// What happened.
    pub what: NewEvent,
}

/// What a reader gets at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Events that are no longer kept, by the numbers of the first and the last one.
    pub lost: Option<(u64, u64)>,
    /// The next events, in order; none when the reader has all.
    pub events: Vec<Arc<Event>>,
}

/// The last 4096 events of this process. Clones are the same log.
#[derive(Clone)]
pub struct EventLog {
    shared: Arc<Shared>,
}

struct Shared {
    id: u64,
    ring: Mutex<Ring>,
    /// Number of the last event, for readers that wait.
    last: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    last: u64,
    events: VecDeque<Arc<Event>>,
    /// Events so far, by peer and kind.
    counts: BTreeMap<Arc<str>, BTreeMap<&'static str, u64>>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLog")
            .field("id", &self.shared.id)
            .field("last", &self.last())
            .finish_non_exhaustive()
    }
}

impl EventLog {
    /// An empty log, named after the present moment.
    #[must_use]
    pub fn new() -> Self {
        // Two logs of one sidecar never begin in the same millisecond, and 0 means "not known".
        let age = SystemTime::now().duration_since(UNIX_EPOCH);
        let id = age.map_or(1, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Self {
            shared: Arc::new(Shared {
                id: id.max(1),
                ring: Mutex::default(),
                last: watch::Sender::new(0),
            }),
        }
    }

    /// Appends an event, and wakes those who wait for one. Never blocks on a reader. Returns the
    /// event's number.
    pub fn push(&self, what: NewEvent) -> u64 {
        let sequence = {
            let mut ring = self.ring();
            ring.push(SystemTime::now(), what);
            ring.last
        };
        // Several may push at once: the larger number stays.
        self.shared.last.send_if_modified(|last| {
            let newer = sequence > *last;
            *last = sequence.max(*last);
            newer
        });
        sequence
    }

    /// Names this log: another process's log has another number, never 0.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Number of the last event; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.ring().last
    }

    /// The events that follow number `after`, 64 at most.
    #[must_use]
    pub fn after(&self, after: u64) -> Page {
        self.ring().after(after)
    }

    /// Completes when there is an event after number `after`.
    pub async fn arrived(&self, after: u64) {
        let mut last = self.shared.last.subscribe();
        // The sender lives as long as this log, so there is no error.
        let _ = last.wait_for(|&last| last > after).await;
    }

    /// Events of a peer so far, by kind.
    #[must_use]
    pub fn counts(&self, peer: &str) -> BTreeMap<&'static str, u64> {
        self.ring().counts.get(peer).cloned().unwrap_or_default()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.shared
            .ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, time: SystemTime, what: NewEvent) {
        self.last += 1;
        if let Some(peer) = &what.peer {
            let kinds = self.counts.entry(Arc::clone(peer)).or_default();
            *kinds.entry(what.kind).or_default() += 1;
        }
        if self.events.len() == CAPACITY {
            self.events.pop_front();
        }
        self.events.push_back(Arc::new(Event {
            sequence: self.last,
            time,
            what,
        }));
    }

    fn after(&self, after: u64) -> Page {
        let first_kept = self
            .events
            .front()
            .map_or(self.last + 1, |event| event.sequence);
        let wanted = after.saturating_add(1);
        let skip = wanted.saturating_sub(first_kept);
        let kept = self
            .events
            .iter()
            .skip(usize::try_from(skip).unwrap_or(usize::MAX));
        Page {
            lost: (wanted < first_kept).then(|| (wanted, first_kept - 1)),
            events: kept.take(PAGE).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(peer: Option<&str>, kind: &'static str) -> NewEvent {
        NewEvent {
            peer: peer.map(Arc::from),
            kind,
            severity: Severity::Info,
            generation: Some(1),
            key_id: Some(7),
            trigger: None,
            proof: None,
            took: None,
            message: "it happened".into(),
        }
    }

    fn sequences(page: &Page) -> Vec<u64> {
        page.events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn events_are_numbered_from_one() {
        let log = EventLog::new();
        assert_eq!((log.last(), log.after(0).events.len()), (0, 0));
        assert_eq!(log.push(event(None, "a")), 1);
        assert_eq!(log.push(event(None, "b")), 2);
        let page = log.after(0);
        assert_eq!((page.lost, sequences(&page)), (None, vec![1, 2]));
        assert_eq!(page.events[1].what.kind, "b");
        assert_eq!(sequences(&log.after(1)), [2]);
        for beyond in [2, 3, u64::MAX] {
            let page = log.after(beyond);
            assert_eq!((page.lost, page.events.len()), (None, 0), "{beyond}");
        }
        assert_ne!(log.id(), 0);
    }

    #[test]
    fn pages_follow_each_other_without_a_hole() {
        let log = EventLog::new();
        let count = PAGE as u64 * 2 + 1;
        for _ in 0..count {
            log.push(event(None, "a"));
        }
        let mut seen = Vec::new();
        loop {
            let page = log.after(seen.last().copied().unwrap_or(0));
            assert!(page.lost.is_none() && page.events.len() <= PAGE);
            if page.events.is_empty() {
                break;
            }
            seen.extend(sequences(&page));
        }
        assert_eq!(seen, (1..=count).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_overwritten_is_reported_as_lost() {
        let log = EventLog::new();
        let capacity = CAPACITY as u64;
        for _ in 0..capacity {
            log.push(event(None, "a"));
        }
        assert_eq!(log.after(0).lost, None);
        log.push(event(None, "a"));
        log.push(event(None, "a"));
        assert_eq!(log.after(0).lost, Some((1, 2)));
        assert_eq!(log.after(1).lost, Some((2, 2)));
        assert_eq!(log.after(2).lost, None);
        assert_eq!(sequences(&log.after(0)).first(), Some(&3));
        assert_eq!(sequences(&log.after(capacity + 1)), [capacity + 2]);
    }

    #[test]
    fn peers_events_are_counted_by_kind() {
        let log = EventLog::new();
        for (peer, kind) in [("x", "a"), ("x", "a"), ("x", "b"), ("y", "a")] {
            log.push(event(Some(peer), kind));
        }
        log.push(event(None, "a"));
        assert_eq!(log.counts("x"), BTreeMap::from([("a", 2), ("b", 1)]));
        assert_eq!(log.counts("z"), BTreeMap::new());
    }

    #[tokio::test]
    async fn readers_wake_up() {
        let log = EventLog::new();
        log.push(event(None, "a"));
        log.arrived(0).await;
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { log.arrived(1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        log.push(event(None, "a"));
        tokio::time::timeout(Duration::from_secs(5), waiting)
            .await
            .unwrap()
            .unwrap();
    }
}
