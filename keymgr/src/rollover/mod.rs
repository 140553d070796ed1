//! Automated rollover with one peer: pure, `(now, event)` in, actions out.
//!
//! Both ends of a peering run a [`Rollover`] and tell each other their whole view
//! ([`message::Message`]). A generation is agreed, installed and confirmed at both ends in
//! advance; selecting it then needs no channel: the segments carry the word (RNextKeyID,
//! RFC 5925 §7.5). Before its selection a generation can be given up; after it, there is only
//! forward, and nothing is deleted before its successor is in use everywhere.

pub mod message;
mod event;
mod parameters;
mod record;
mod status;
mod step;

use std::sync::Arc;
use std::time::Duration;

use ao_engine::policy::Mkt;

pub use event::{Action, Event, SessionKeys};
pub use parameters::{Now, Parameters};
pub use record::{Record, RecordError, SecretKind, SecretName};
pub use status::{GenerationStatus, Status};
pub use step::{Alarm, Cause, Dropped, Label, Step};

use message::Instance;

/// The rollover with one peer.
///
/// After every [`handle`](Self::handle), the caller stores the record if
/// [`revision`](Self::revision) has changed, and only then carries out the actions. After a crash
/// it begins again with the record stored last.
#[derive(Debug)]
pub struct Rollover {
    parameters: Parameters,
    instance: Instance,
    record: Record,
    revision: u64,
}

impl Rollover {
    /// A rollover that goes on from `record`; a fresh one is `Record::default()`. `instance`
    /// names our store. The first [`Event::Tick`] is due at once.
    #[must_use]
    pub fn new(parameters: Parameters, instance: Instance, record: Record, now: Now) -> Self {
        let _ = now;
        Self {
            parameters,
            instance,
            record,
            revision: 0,
        }
    }

    /// Takes an event in, and says what to do. `random` fills a slice with random octets.
    pub fn handle(
        &mut self,
        now: Now,
        event: Event,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Vec<Action> {
        let _ = (now, event, random, &self.parameters, self.instance);
        Vec::new()
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

    /// When [`Event::Tick`] is due, on the steady clock.
    #[must_use]
    pub fn next_tick(&self) -> Option<Duration> {
        None
    }

    /// What operators see.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        let _ = now;
        Status {
            active: self.record.active,
            proven: false,
            generations: Vec::new(),
            offering: false,
            start_pending: false,
            next_rollover: None,
            last_heard: None,
            alarms: Vec::new(),
        }
    }

    /// The keys that the backend should have, the preferred one first.
    #[must_use]
    pub fn mkts(&self) -> Vec<Arc<Mkt>> {
        Vec::new()
    }
}
