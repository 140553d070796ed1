//! What an operator should look at now, as the parts of the key manager keep it up to date.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grpc_api::Alarm;

/// What alarms are about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Store,
    Clock,
    /// An automatic peer.
    Rollover(Arc<str>),
    /// A peer with a key chain.
    Chain(Arc<str>),
}

/// All alarms. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alarms(Arc<Mutex<BTreeMap<Subject, Vec<String>>>>);

impl Alarms {
    /// All of them.
    pub(crate) fn all(&self) -> Vec<Alarm> {
        let map = self.map();
        let of = |(subject, texts): (&Subject, &Vec<String>)| {
            let peer = match subject {
                Subject::Store | Subject::Clock => None,
                Subject::Rollover(peer) | Subject::Chain(peer) => Some(Arc::clone(peer)),
            };
            let alarm = move |text: &String| Alarm {
                peer: peer.clone(),
                text: text.clone(),
            };
            texts.iter().map(alarm).collect::<Vec<_>>()
        };
        map.iter().flat_map(of).collect()
    }

    /// From now on these are all about `subject`.
    pub(super) fn set(&self, subject: Subject, texts: Vec<String>) {
        let mut map = self.map();
        match texts.is_empty() {
            true => map.remove(&subject),
            false => map.insert(subject, texts),
        };
    }

    /// Forgets those about what does not stay.
    pub(super) fn retain(&self, stays: impl Fn(&Subject) -> bool) {
        self.map().retain(|subject, _| stays(subject));
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<Subject, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
