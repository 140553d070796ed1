//! What needs an operator's eye, raised once and cleared when it is over.

use std::mem::discriminant;
use std::time::Duration;

use super::message::Stage;
use super::{Alarm, Now, Rollover, Step};

const LONGEST_PATIENCE: Duration = Duration::from_secs(60);

impl Rollover {
    pub(super) fn update_alarms(&mut self, now: Now) {
        let mut current: Vec<Alarm> = self.agreement_alarms().collect();
        current.extend(self.runway_alarm(now));
        current.extend(self.proof_alarm(now));
        current.extend(self.reach_alarm(now));
        current.extend(self.locals.iter().filter_map(|(&number, local)| {
            let reason = local.failure.clone()?;
            Some(Alarm::BackendFailed { number, reason })
        }));
        let before = std::mem::replace(&mut self.alarms, current.clone());
        for alarm in &current {
            if !before.iter().any(|other| same(alarm, other)) {
                self.tell(Step::Raised(alarm.clone()));
            }
        }
        for alarm in before {
            if !current.iter().any(|other| same(&alarm, other)) {
                self.tell(Step::Cleared(alarm));
            }
        }
    }

    fn runway_alarm(&mut self, now: Now) -> Option<Alarm> {
        let active = self.record.active?;
        let grace = (self.parameters.interval / 10).min(Duration::from_secs(30));
        let at = self.due + grace;
        if now.steady < at {
            self.wake_at(at);
            return None;
        }
        let ready = |g: &_| self.is_ready(g);
        let ahead = |number| number > active;
        let proven = self.active_stage() >= Some(Stage::Proven);
        let any = self
            .record
            .generations
            .iter()
            .any(|g| ahead(g.number) && ready(g));
        if any || !proven {
            return None;
        }
        let free = self.free_ids();
        let starved = self.record.offer.is_none() && free.0.iter().all(|octet| *octet == 0);
        Some(if starved || self.refused_id() {
            Alarm::NoFreeId
        } else {
            Alarm::RunwayExhausted
        })
    }

    fn refused_id(&self) -> bool {
        self.refused == Some(super::message::Refusal::NoFreeId)
    }

    fn proof_alarm(&mut self, now: Now) -> Option<Alarm> {
        let stage = self.active_stage()?;
        if stage >= Stage::Proven {
            return None;
        }
        let at = self.decided_at + self.parameters.interval.min(LONGEST_PATIENCE);
        if now.steady < at {
            self.wake_at(at);
            return None;
        }
        let mut waiting_for = self.waiting_for.clone();
        if stage < Stage::Selected {
            waiting_for = vec!["the backend".into()];
        } else if waiting_for.is_empty() {
            waiting_for = vec!["the peer's word, as there is no session".into()];
        }
        Some(Alarm::ProofOverdue { waiting_for })
    }

    fn reach_alarm(&mut self, now: Now) -> Option<Alarm> {
        let since = self.exchange.heard.unwrap_or(self.began);
        let at = since + self.parameters.heartbeat() * 3;
        if now.steady <= at {
            self.wake_at(at + Duration::from_millis(1));
            return None;
        }
        let reason = if self.exchange.failure.is_empty() {
            "it does not call".into()
        } else {
            self.exchange.failure.clone()
        };
        Some(Alarm::PeerUnreachable { reason })
    }
}

/// Whether both are the same trouble, whatever the details by now.
fn same(a: &Alarm, b: &Alarm) -> bool {
    match (a, b) {
        (Alarm::BackendFailed { number: a, .. }, Alarm::BackendFailed { number: b, .. })
        | (Alarm::ConfirmationMismatch { number: a }, Alarm::ConfirmationMismatch { number: b }) => {
            a == b
        }
        _ => discriminant(a) == discriminant(b),
    }
}
