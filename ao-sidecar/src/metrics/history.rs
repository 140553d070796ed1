//! Counters made of events: key changes that were completed, and how long they took.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grpc_api::operator::{Event, EventLog, Severity};

/// Upper bounds of the histogram's buckets, in seconds.
const BOUNDS: [f64; 11] = [
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];
/// The trigger of a key change that was begun before this process.
const EARLIER: &str = "earlier";

/// How long key changes took.
#[derive(Clone, Debug, Default)]
pub(super) struct Durations {
    /// Seconds, all together.
    pub(super) sum: f64,
    /// Number of key changes.
    pub(super) count: u64,
    /// Key changes by the first bound that was not passed; the last ones passed all.
    buckets: [u64; BOUNDS.len() + 1],
}

impl Durations {
    fn add(&mut self, seconds: f64) {
        self.sum += seconds;
        self.count += 1;
        let bucket = BOUNDS.partition_point(|&bound| bound < seconds);
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
    }

    /// Upper bound and count of each bucket, not cumulated.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(self.buckets).collect()
    }
}

/// Events that stand at 0 before the first: an alert that asks for an increase would not see it.
const FORESEEN: [(&str, &str); 1] = [("clock-jumped", "alarm")];

/// What the events so far amount to.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    /// Completed key changes by peer and trigger.
    pub(super) completed: BTreeMap<(Arc<str>, &'static str), u64>,
    /// How long they took, by trigger.
    pub(super) durations: BTreeMap<&'static str, Durations>,
    /// Events by kind and severity.
    pub(super) events: BTreeMap<(&'static str, &'static str), u64>,
    /// Why the key change under way was begun, by peer: the event that ends it does not say.
    begun: HashMap<Arc<str>, (Option<u64>, &'static str)>,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            completed: BTreeMap::new(),
            durations: BTreeMap::new(),
            events: FORESEEN.into_iter().map(|event| (event, 0)).collect(),
            begun: HashMap::new(),
        }
    }
}

impl Counted {
    fn take(&mut self, event: &Event) {
        let what = &event.what;
        let severity = severity(what.severity);
        *self.events.entry((what.kind, severity)).or_default() += 1;
        let Some(peer) = &what.peer else { return };
        match (what.kind, what.took) {
            ("selected", _) => {
                let trigger = what.trigger.unwrap_or(EARLIER);
                self.begun
                    .insert(Arc::clone(peer), (what.generation, trigger));
            }
            ("proven", Some(took)) => {
                let begun = self.begun.remove(peer);
                let trigger = begun
                    .filter(|(generation, _)| *generation == what.generation)
                    .map_or(EARLIER, |(_, trigger)| trigger);
                let completed = self.completed.entry((Arc::clone(peer), trigger));
                *completed.or_default() += 1;
                self.durations
                    .entry(trigger)
                    .or_default()
                    .add(took.as_secs_f64());
            }
            _ => {}
        }
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Alarm => "alarm",
    }
}

/// Follows the event log.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Counted>);

impl History {
    /// Follows `log` from its beginning, for ever.
    pub(super) async fn follow(&self, log: &EventLog) {
        let mut last = 0;
        loop {
            log.arrived(last).await;
            last = self.catch_up(log, last);
        }
    }

    /// Takes in all events after number `last`; returns the number of the last one there is.
    pub(super) fn catch_up(&self, log: &EventLog, mut last: u64) -> u64 {
        loop {
            let page = log.after(last);
            let Some(newest) = page.events.last() else {
                return last;
            };
            last = newest.sequence;
            let mut counted = self.counted();
            page.events.iter().for_each(|event| counted.take(event));
        }
    }

    /// What the events so far amount to, for these peers; others are forgotten.
    pub(super) fn of_peers(&self, peers: &HashSet<&str>) -> Counted {
        let mut counted = self.counted();
        counted
            .completed
            .retain(|(peer, _), _| peers.contains(&**peer));
        counted.begun.retain(|peer, _| peers.contains(&**peer));
        counted.clone()
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use grpc_api::operator::NewEvent;

    use super::*;

    fn event(kind: &'static str, generation: u64, trigger: Option<&'static str>) -> NewEvent {
        NewEvent {
            peer: Some("as1".into()),
            kind,
            severity: Severity::Info,
            generation: Some(generation),
            key_id: Some(7),
            trigger,
            proof: None,
            took: Some(Duration::from_secs(2)),
            message: "it happened".into(),
        }
    }

    #[test]
    fn key_changes_are_counted_when_they_are_proven() {
        let (log, history) = (EventLog::new(), History::default());
        log.push(event("proven", 1, None));
        log.push(event("selected", 2, Some("schedule")));
        assert_eq!(history.catch_up(&log, 0), 2);
        log.push(event("proven", 2, None));
        log.push(event("selected", 3, Some("operator")));
        assert_eq!(history.catch_up(&log, 2), 4);
        let counted = history.of_peers(&HashSet::from(["as1"]));
        let completed = [("earlier", 1), ("schedule", 1)]
            .map(|(trigger, count)| ((Arc::from("as1"), trigger), count));
        assert_eq!(counted.completed, completed.into());
        let durations = &counted.durations["schedule"];
        assert_eq!((durations.count, durations.sum), (1, 2.0));
        let events = [
            (("clock-jumped", "alarm"), 0),
            (("proven", "info"), 2),
            (("selected", "info"), 2),
        ];
        assert_eq!(counted.events, events.into());
    }

    #[test]
    fn peers_that_went_are_forgotten() {
        let (log, history) = (EventLog::new(), History::default());
        log.push(event("proven", 1, None));
        history.catch_up(&log, 0);
        let counted = history.of_peers(&HashSet::new());
        assert!(counted.completed.is_empty());
        assert_eq!(counted.events[&("proven", "info")], 1);
    }

    #[test]
    fn a_bucket_includes_its_bound() {
        let mut durations = Durations::default();
        for seconds in [0.0, 0.1, 0.11, 3600.0, 3601.0] {
            durations.add(seconds);
        }
        let buckets = durations.buckets();
        let filled: Vec<_> = buckets
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(
            filled,
            [(0.1, 2), (0.5, 1), (3600.0, 1), (f64::INFINITY, 1)]
        );
    }

    #[tokio::test]
    async fn more_events_than_a_page_are_followed() {
        let (log, history) = (EventLog::new(), Arc::new(History::default()));
        for _ in 0..200 {
            log.push(event("agreed", 1, None));
        }
        let following = tokio::spawn({
            let (log, history) = (log.clone(), Arc::clone(&history));
            async move { history.follow(&log).await }
        });
        let count = || history.counted().events.get(&("agreed", "info")).copied();
        while count() != Some(200) {
            tokio::task::yield_now().await;
        }
        log.push(event("agreed", 2, None));
        while count() != Some(201) {
            tokio::task::yield_now().await;
        }
        following.abort();
    }
}
