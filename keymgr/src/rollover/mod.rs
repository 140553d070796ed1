//! Automated rollover with one peer: pure, `(now, event)` in, actions out.
//!
//! Both ends of a peering run a [`Rollover`] and tell each other their whole view
//! ([`message::Message`]). A generation is agreed, installed and confirmed at both ends in
//! advance; selecting it then needs no channel: the segments carry the word (RNextKeyID,
//! RFC 5925 §7.5). Before its selection a generation can be given up; after it, there is only
//! forward, and nothing is deleted before its successor is in use everywhere.

mod agree;
mod alarm;
mod backend;
mod event;
mod exchange;
pub mod message;
mod parameters;
mod reconfigure;
mod record;
mod status;
mod step;
mod switch;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ao_engine::policy::Mkt;

pub use crate::secret::{SecretKind, SecretName};
pub use event::{Action, Event, SessionKeys};
pub use parameters::{Now, Parameters};
pub use record::{Record, RecordError};
pub use status::{GenerationStatus, Status};
pub use step::{Alarm, Cause, Dropped, Label, Step};

use backend::{Local, Watch, Work};
use exchange::Exchange;
use message::{Instance, Refusal, Stage};
use record::Generation;
use switch::Proof;

type Random<'a> = &'a mut dyn FnMut(&mut [u8]);

/// The rollover with one peer.
///
/// After every [`handle`](Self::handle), the caller stores the record if
/// [`revision`](Self::revision) has changed, and only then carries out the actions. After a crash
/// it begins again with the record stored last.
#[derive(Clone, Debug)]
pub struct Rollover {
    parameters: Parameters,
    instance: Instance,
    record: Record,
    revision: u64,

    // What follows ends with the process.
    began: Duration,
    locals: BTreeMap<u64, Local>,
    under_way: Option<Work>,
    watch: Watch,
    exchange: Exchange,
    /// The highest number that the peer told.
    told_number: u64,
    peer_overlap: Option<Duration>,
    /// The number of the peer's offer that could not be answered; it comes with every message.
    standing_offer: Option<u64>,
    /// Why the last offer was not answered, here or there.
    refused: Option<Refusal>,
    offered_at: Duration,
    offer_not_before: Duration,
    /// Until then, another store of the peer is not believed.
    anew_not_before: Duration,
    /// The generation that the backend confirmed as selected.
    selected: Option<u64>,
    decided_at: Duration,
    cause: Cause,
    proof: Option<Proof>,
    /// Segments that each session had verified with the active key when it was first seen after
    /// the selection.
    baseline: BTreeMap<String, u64>,
    /// Sessions that do not use the active key yet.
    waiting_for: Vec<String>,
    /// When the schedule selects the next generation.
    due: Duration,
    alarms: Vec<Alarm>,
    wake: Option<Duration>,
    actions: Vec<Action>,
}

impl Rollover {
    /// A rollover that goes on from `record`; a fresh one is `Record::default()`, and so is one of
    /// keys that were agreed with another far end. `instance`
    /// names our store. The first [`Event::Tick`] is due at once.
    #[must_use]
    pub fn new(parameters: Parameters, instance: Instance, record: Record, now: Now) -> Self {
        let mut record = match &record.far_end {
            Some(known) if *known != parameters.far_end => Record::default(),
            _ => record,
        };
        // On disk with whatever is stored next.
        record.far_end = Some(parameters.far_end.clone());
        // The wall clock may have jumped: at most one interval either way is believed.
        let elapsed =
            Duration::from_secs(unix_seconds(now.wall).saturating_sub(record.selected_at))
                .min(parameters.interval);
        Self {
            due: now.steady + (parameters.interval - elapsed),
            parameters,
            instance,
            record,
            revision: 0,
            began: now.steady,
            locals: BTreeMap::new(),
            under_way: None,
            watch: Watch::default(),
            exchange: Exchange::default(),
            told_number: 0,
            peer_overlap: None,
            standing_offer: None,
            refused: None,
            offered_at: now.steady,
            offer_not_before: Duration::ZERO,
            anew_not_before: Duration::ZERO,
            selected: None,
            decided_at: now.steady,
            cause: Cause::Needed,
            proof: None,
            baseline: BTreeMap::new(),
            waiting_for: Vec::new(),
            alarms: Vec::new(),
            wake: Some(now.steady),
            actions: Vec::new(),
        }
    }

    /// Takes an event in, and says what to do. `random` fills a slice with random octets.
    ///
    /// A request gets exactly one reply or rejection, and what an operator asks for at most one
    /// refusal.
    pub fn handle(
        &mut self,
        now: Now,
        event: Event,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Vec<Action> {
        let before = self.record.clone();
        let mut sessions = None;
        let mut reply = None;
        match event {
            Event::Tick => {}
            Event::Start { compromised } => self.start(compromised),
            Event::Abort => self.abort(now),
            Event::Force => self.force(now),
            Event::Request { message } => match self.take_message(now, &message, false, random) {
                Ok(refusal) => reply = Some(refusal),
                Err(reason) => self.actions.push(Action::Reject(reason)),
            },
            Event::Response { message } => self.answered_call(now, &message, random),
            Event::CallFailed { reason } => self.call_failed(now, reason, random),
            Event::Installed { number } => self.worked(now, Work::Install(number)),
            Event::Selected { number } => self.worked(now, Work::Select(number)),
            Event::Deleted { number } => self.worked(now, Work::Delete(number)),
            Event::InstallFailed { number, reason } => {
                self.failed(now, Work::Install(number), reason);
            }
            Event::SelectFailed { number, reason } => {
                self.failed(now, Work::Select(number), reason);
            }
            Event::DeleteFailed { number, reason } => {
                self.failed(now, Work::Delete(number), reason);
            }
            Event::Observed { sessions: seen } => {
                self.observed(now, &seen);
                sessions = Some(seen);
            }
            Event::NotObserved => self.not_observed(),
        }
        self.advance(now, sessions.as_deref(), random);
        if let Some(refusal) = reply {
            self.reply(refusal);
        }
        self.call_if_wanted(now);
        if self.record != before {
            self.revision += 1;
        }
        std::mem::take(&mut self.actions)
    }

    /// Applies every rule to what is known now.
    fn advance(&mut self, now: Now, sessions: Option<&[SessionKeys]>, random: Random<'_>) {
        self.wake = None;
        self.give_up_hopeless(now);
        self.offer_if_wanted(now, &mut *random);
        self.select_if_due(now, sessions.unwrap_or_default(), random);
        let everywhere = sessions.is_some_and(|sessions| self.prove(now, sessions));
        self.retire(now);
        self.work(now, everywhere);
        self.forget_rested(now);
        self.look_if_wanted(now);
        self.update_alarms(now);
        if self.record.active.is_some() && now.steady < self.due {
            self.wake_at(self.due);
        }
    }

    /// What must be stored.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Counts the changes of the record in this process, from 0.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When [`Event::Tick`] is due, on the steady clock; `None`: not before another event.
    #[must_use]
    pub fn next_tick(&self) -> Option<Duration> {
        self.wake
    }

    /// The keys that the backend should have, the preferred one first. Empty: block the peer.
    #[must_use]
    pub fn mkts(&self) -> Vec<Arc<Mkt>> {
        let others = self
            .record
            .generations
            .iter()
            .filter(|g| Some(g.number) != self.record.active && self.is_wanted(g));
        self.active()
            .into_iter()
            .chain(others)
            .filter_map(Generation::mkt)
            .collect()
    }

    /// What needs an operator's eye now.
    #[must_use]
    pub fn alarms(&self) -> &[Alarm] {
        &self.alarms
    }

    /// What operators see.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        let generations = self.record.generations.iter().map(|g| {
            let local = self.locals.get(&g.number);
            GenerationStatus {
                number: g.number,
                id: g.id,
                algorithm: g.algorithm,
                stage: g.stage,
                there: g.there,
                ready: self.is_ready(g),
                since: UNIX_EPOCH + Duration::from_secs(g.since),
                agreed_at: local.and_then(|local| Some(local.agreed?.wall)),
                verified_here: self.verified(g.number),
                verified_there: local.map_or(0, |local| local.verified_there),
                last_use: local.and_then(|local| local.last_use),
            }
        });
        Status {
            active: self.record.active,
            proven: self.active_stage() >= Some(Stage::Proven),
            generations: generations.collect(),
            offering: self.record.offer.is_some(),
            start_pending: self.record.pending.is_some(),
            next_rollover: self
                .record
                .active
                .map(|_| self.due.saturating_sub(now.steady)),
            last_heard: self
                .exchange
                .heard
                .map(|heard| now.steady.saturating_sub(heard)),
            alarms: self.alarms.clone(),
        }
    }

    fn local(&mut self, number: u64) -> &mut Local {
        self.locals.entry(number).or_default()
    }

    fn tell(&mut self, step: Step) {
        self.actions.push(Action::Tell(step));
    }

    fn wake_at(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }
}

/// Seconds of the UNIX epoch; 0 before it.
fn unix_seconds(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// 1 s after the first failure, then twice as long each time.
fn backoff(failures: u32, longest: Duration) -> Duration {
    Duration::from_secs(1 << failures.min(16)).min(longest)
}

/// Up to a tenth less, so that peers do not all act at once.
fn jittered(duration: Duration, random: Random<'_>) -> Duration {
    let mut octet = [0];
    random(&mut octet);
    duration - duration / 10 * u32::from(octet[0]) / 255
}
