//! What an operator should look at now, beside what the key manager says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::report::Report;
use grpc_api::Alarm;

/// How long something that has happened is still an alarm.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What is compared from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Watched {
    overruns: Growth,
    restored: Growth,
    /// Why the last line was not written to the audit log.
    audit_failure: Option<String>,
    /// What of the configuration is not in use, until one is taken over whole.
    left_out: Vec<Alarm>,
    /// By what waits for it: what is not as it should be yet.
    missing: BTreeMap<&'static str, String>,
}

/// A counter, and when it was last seen to have grown.
#[derive(Debug, Default)]
struct Growth {
    count: u64,
    grew: Option<Instant>,
}

impl Growth {
    /// How much it is, if it has grown of late.
    fn look(&mut self, count: u64, now: Instant) -> Option<u64> {
        if count > self.count {
            self.grew = Some(now);
        }
        self.count = count;
        let recent = |grew: &Instant| now.saturating_duration_since(*grew) < REMEMBERED;
        self.grew
            .as_ref()
            .filter(|grew| recent(grew))
            .map(|_| count)
    }
}

impl Watched {
    /// Whether the audit log can be written.
    pub(super) fn note_audit(&mut self, failure: Option<String>) {
        self.audit_failure = failure;
    }

    /// What of the configuration is not in use.
    pub(super) fn note_left_out(&mut self, alarms: Vec<Alarm>) {
        self.left_out = alarms;
    }

    /// Why something is not there yet; nothing when it is. Tells whether that is news.
    pub(super) fn note_missing(&mut self, what: &'static str, why: Option<&str>) -> bool {
        let former = match why {
            Some(why) => self.missing.insert(what, why.to_owned()),
            None => self.missing.remove(what),
        };
        former.as_deref() != why
    }

    /// The alarms of this moment.
    pub(super) fn alarms(&mut self, report: &Report, now: Instant) -> Vec<Alarm> {
        let general = |text: String| Alarm { peer: None, text };
        let mut alarms: Vec<Alarm> = self.audit_failure.iter().cloned().map(general).collect();
        alarms.extend(self.left_out.iter().cloned());
        alarms.extend(self.missing.values().cloned().map(general));
        let overruns = report
            .queues
            .iter()
            .map(|queue| queue.overruns + queue.dropped);
        if let Some(lost) = self.overruns.look(overruns.sum(), now) {
            let text = format!("packets were lost because queues were full, {lost} in all");
            alarms.push(general(text));
        }
        if let Some(times) = self.restored.look(report.rules_restored, now) {
            let text = format!(
                "somebody removes the firewall rules: they were put back {times} time{}",
                if times == 1 { "" } else { "s" }
            );
            alarms.push(general(text));
        }
        if let Some(trouble) = &report.rules_trouble {
            alarms.push(general(format!(
                "the firewall rules are not all in place: {trouble}"
            )));
        }
        let blocked = report.peers.iter().filter(|peer| peer.keys == 0);
        alarms.extend(blocked.map(|peer| Alarm {
            peer: Some(Arc::clone(&peer.name)),
            text: "blocked: it has no key".to_owned(),
        }));
        alarms
    }
}

#[cfg(test)]
mod tests {
    use datapath::report::QueueReport;

    use super::*;

    fn texts(watched: &mut Watched, report: &Report, now: Instant) -> Vec<String> {
        let alarms = watched.alarms(report, now);
        alarms.into_iter().map(|alarm| alarm.text).collect()
    }

    #[test]
    fn what_has_happened_is_an_alarm_for_a_while() {
        let mut watched = Watched::default();
        let start = Instant::now();
        let mut report = Report::default();
        assert!(texts(&mut watched, &report, start).is_empty());
        report.rules_restored = 1;
        report.queues = vec![QueueReport {
            number: 1,
            packets: 9,
            overruns: 2,
            waiting: 0,
            dropped: 3,
        }];
        let told = texts(&mut watched, &report, start);
        let expected = [
            "packets were lost because queues were full, 5 in all",
            "somebody removes the firewall rules: they were put back 1 time",
        ];
        assert_eq!(told, expected);
        let later = start + REMEMBERED;
        assert_eq!(
            texts(&mut watched, &report, later - Duration::from_secs(1)),
            expected
        );
        assert!(texts(&mut watched, &report, later).is_empty());
        report.rules_restored = 2;
        let told = texts(&mut watched, &report, later);
        assert_eq!(told, [expected[1].replace("1 time", "2 times")]);
    }

    #[test]
    fn rules_that_are_missing_are_an_alarm_until_they_are_back() {
        let mut watched = Watched::default();
        let (mut report, now) = (Report::default(), Instant::now());
        report.rules_trouble = Some("nft: wrong".to_owned());
        let expected = "the firewall rules are not all in place: nft: wrong";
        assert_eq!(texts(&mut watched, &report, now), [expected]);
        report.rules_trouble = None;
        assert!(texts(&mut watched, &report, now).is_empty());
    }

    #[test]
    fn an_audit_log_that_cannot_be_written_is_an_alarm_until_it_can() {
        let mut watched = Watched::default();
        let (report, now) = (Report::default(), Instant::now());
        watched.note_audit(Some("no room".to_owned()));
        assert_eq!(texts(&mut watched, &report, now), ["no room"]);
        watched.note_audit(None);
        assert!(texts(&mut watched, &report, now).is_empty());
    }
}
