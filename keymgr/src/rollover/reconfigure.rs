//! Other settings while the rollover goes on.

use super::message::Stage;
use super::{Dropped, Now, Parameters, Record, Rollover, Step};

impl Rollover {
    /// Goes on with other settings. The key in use stays in use; what is offered or agreed beyond
    /// it and does not fit any more is given up. Keys of another far end are not kept at all: it is
    /// begun anew then. The record may have changed, and an [`Event::Tick`](super::Event::Tick) is
    /// due at once.
    pub fn reconfigure(&mut self, parameters: Parameters, now: Now) {
        if parameters.far_end != self.parameters.far_end {
            let revision = self.revision + 1;
            *self = Self::new(parameters, self.instance, Record::default(), now);
            self.revision = revision;
            return;
        }
        let before = self.record.clone();
        let former = std::mem::replace(&mut self.parameters, parameters);
        // As if it had been the interval since the last selection.
        self.due = (self.due + self.parameters.interval).saturating_sub(former.interval);
        if former.algorithms != self.parameters.algorithms
            || former.highest_id != self.parameters.highest_id
        {
            // The answer might be what is not wanted any more.
            self.record.offer = None;
            self.offer_not_before = self.offer_not_before.min(now.steady);
            self.give_up_unfit(now);
        }
        // The peer is to know, wherever it is now.
        self.call_anew(now);
        self.wake = Some(now.steady);
        if self.record != before {
            self.revision += 1;
        }
    }

    /// Gives up generations that may not become the active one by the present settings.
    fn give_up_unfit(&mut self, now: Now) {
        let active = self.record.active.unwrap_or(0);
        let Parameters {
            algorithms,
            highest_id,
            ..
        } = &self.parameters;
        let mut dropped = Vec::new();
        for g in &mut self.record.generations {
            let fits = algorithms.contains(&g.algorithm) && g.id <= *highest_id;
            let may_be_selected = g.number > active && g.stage < Stage::Revoked;
            if !fits && may_be_selected && !g.there.is_some_and(Stage::in_use) {
                g.advance(Stage::Revoked, now);
                dropped.push(g.label());
            }
        }
        for generation in dropped {
            let why = Dropped::Unfit;
            self.tell(Step::Dropped { generation, why });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use ao_engine::crypto::Algorithm;

    use super::super::message::Instance;
    use super::super::{Event, GenerationStatus};
    use super::*;

    fn at(seconds: u64) -> Now {
        Now {
            steady: Duration::from_secs(seconds),
            wall: UNIX_EPOCH + Duration::from_secs(2_000_000_000 + seconds),
        }
    }

    fn random(octets: &mut [u8]) {
        octets.fill(7);
    }

    fn parameters() -> Parameters {
        Parameters {
            far_end: "one".to_owned(),
            algorithms: vec![Algorithm::HmacSha1_96, Algorithm::Aes128Cmac96],
            ..Parameters::default()
        }
    }

    /// Two ends that call each other at once, until both have a key and a runway.
    fn in_service() -> [Rollover; 2] {
        let end = |store| {
            Rollover::new(
                parameters(),
                Instance([store; 16]),
                Record::default(),
                at(0),
            )
        };
        let mut ends = [end(1), end(2)];
        for second in 1..30 {
            exchange(&mut ends, second);
        }
        assert!(ends.iter().all(|end| end.record.active.is_some()));
        ends
    }

    /// Everything that both ends want to do at this second.
    fn exchange(ends: &mut [Rollover; 2], second: u64) {
        use super::super::Action;
        let mut events = vec![(0, Event::Tick), (1, Event::Tick)];
        while let Some((end, event)) = events.pop() {
            for action in ends[end].handle(at(second), event, &mut random) {
                let told = match action {
                    Action::Install { number, .. } => Event::Installed { number },
                    Action::Select { number, .. } => Event::Selected { number },
                    Action::Delete { number, .. } => Event::Deleted { number },
                    Action::Observe { .. } => Event::Observed {
                        sessions: Vec::new(),
                    },
                    Action::Call(message) => {
                        let request = Event::Request { message };
                        let answers = ends[1 - end].handle(at(second), request, &mut random);
                        for action in answers {
                            match action {
                                Action::Reply(message) => {
                                    events.insert(0, (end, Event::Response { message }));
                                }
                                Action::Install { number, .. } => {
                                    events.push((1 - end, Event::Installed { number }));
                                }
                                Action::Select { number, .. } => {
                                    events.push((1 - end, Event::Selected { number }));
                                }
                                Action::Delete { number, .. } => {
                                    events.push((1 - end, Event::Deleted { number }));
                                }
                                Action::Observe { .. } => {
                                    let sessions = Vec::new();
                                    events.push((1 - end, Event::Observed { sessions }));
                                }
                                _ => {}
                            }
                        }
                        continue;
                    }
                    _ => continue,
                };
                events.push((end, told));
            }
        }
    }

    fn ahead(end: &Rollover) -> Vec<GenerationStatus> {
        let status = end.status(at(40));
        let above = |g: &GenerationStatus| Some(g.number) > status.active;
        status.generations.into_iter().filter(above).collect()
    }

    #[test]
    fn a_shorter_interval_counts_from_the_last_selection() {
        let [mut end, _] = in_service();
        let due = |end: &Rollover| end.status(at(40)).next_rollover.unwrap();
        let before = due(&end);
        let hour = Duration::from_secs(3600);
        let shorter = Parameters {
            interval: hour,
            ..parameters()
        };
        end.reconfigure(shorter, at(40));
        let day = parameters().interval;
        assert_eq!(due(&end), (before + hour).saturating_sub(day));
        assert_eq!(end.next_tick(), Some(at(40).steady));
    }

    #[test]
    fn keys_of_an_algorithm_that_is_not_wanted_are_given_up_unless_in_use() {
        let [mut end, _] = in_service();
        assert!(!ahead(&end).is_empty());
        let active = end.mkts()[0].clone();
        assert_eq!(active.algorithm, Algorithm::HmacSha1_96);
        let revision = end.revision();
        let other = Parameters {
            algorithms: vec![Algorithm::Aes128Cmac96],
            ..parameters()
        };
        end.reconfigure(other, at(40));
        assert!(end.revision() > revision);
        assert!(end.mkts()[0].is_same(&active));
        assert!(
            ahead(&end)
                .iter()
                .all(|g| g.stage == Stage::Revoked && !g.ready)
        );
        let told = end.handle(at(40), Event::Tick, &mut random);
        let dropped = |action: &super::super::Action| {
            matches!(
                action,
                super::super::Action::Tell(Step::Dropped {
                    why: Dropped::Unfit,
                    ..
                })
            )
        };
        assert!(told.iter().any(dropped));
    }

    #[test]
    fn both_ends_change_to_another_algorithm_and_have_a_runway_of_it() {
        let mut ends = in_service();
        for end in &mut ends {
            let other = Parameters {
                algorithms: vec![Algorithm::Aes128Cmac96],
                ..parameters()
            };
            end.reconfigure(other, at(40));
        }
        for second in 40..80 {
            exchange(&mut ends, second);
        }
        for end in &ends {
            let ready: Vec<_> = ahead(end).into_iter().filter(|g| g.ready).collect();
            assert_eq!(ready.len(), usize::from(parameters().runway));
            assert!(ready.iter().all(|g| g.algorithm == Algorithm::Aes128Cmac96));
        }
    }

    /// Whoever had to be there before may have kept them.
    #[test]
    fn keys_of_another_far_end_are_not_kept() {
        let [mut end, _] = in_service();
        let revision = end.revision();
        let other = Parameters {
            far_end: "other".to_owned(),
            ..parameters()
        };
        end.reconfigure(other, at(40));
        assert!(end.mkts().is_empty());
        assert_eq!(end.record().secrets().count(), 0);
        assert!(end.revision() > revision, "it must get on disk");
    }
}
