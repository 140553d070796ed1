//! Looks how chains fare, and tells: which keys sessions use, which chains end, what the clock does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grpc_api::operator::Severity;
use keymgr::chain::{OnExpiry, Wanted};
use keymgr::clock::ClockChange;
use keymgr::rollover::{Now, SessionKeys};

use super::{OBSERVE_EVERY, OVERDUE, Scheduled, Shared, State, Subject, Use};
use crate::keys::time_text;

impl Shared {
    /// Looks which keys sessions use: those of peers that are to use another one, and now and then
    /// all.
    pub(super) fn observe(&self, state: &mut State, now: Now) {
        let due = |looked| now.steady >= looked + OBSERVE_EVERY;
        let all = state.looked.is_none_or(due);
        let looked_at = |scheduled: &&mut Scheduled| all || scheduled.awaited.is_some();
        let looked_at: Vec<&mut Scheduled> = state.peers.iter_mut().filter(looked_at).collect();
        if all {
            state.looked = Some(now.steady);
        }
        if looked_at.is_empty() {
            return;
        }
        let name = |scheduled: &Scheduled| Arc::clone(&scheduled.peer.name);
        let names: Vec<_> = looked_at.iter().map(|scheduled| name(scheduled)).collect();
        let waiting = looked_at.iter().filter(|peer| peer.awaited.is_some());
        let waiting: Vec<_> = waiting.map(|scheduled| name(scheduled)).collect();
        if !waiting.is_empty() {
            self.backend.nudge(&waiting);
        }
        let all = self.backend.observe(&names);
        for ((scheduled, sessions), peer) in looked_at.into_iter().zip(all).zip(names) {
            match sessions {
                Ok(sessions) => {
                    note_use(&mut state.uses, &peer, &sessions, now.wall);
                    self.tell_use(scheduled, &sessions, now.steady);
                }
                // What is not seen is not to be taken for not there; it is looked for again.
                Err(reason) => tracing::debug!(%peer, %reason, "sessions cannot be looked at"),
            }
        }
    }

    /// Tells when all sessions use the key that was selected.
    fn tell_use(&self, scheduled: &mut Scheduled, sessions: &[SessionKeys], steady: Duration) {
        let Some((mkt, since)) = &scheduled.awaited else {
            return;
        };
        let uses = |session: &SessionKeys| {
            session.send_id_current == mkt.send_id && session.recv_id_rnext == mkt.recv_id
        };
        if sessions.is_empty() {
            // Those to come begin with it.
            scheduled.awaited = None;
            return;
        }
        let elapsed = steady.saturating_sub(*since);
        if let Some(lagging) = sessions.iter().find(|session| !uses(session)) {
            if elapsed >= OVERDUE && !scheduled.overdue {
                let message = format!(
                    "{} does not use the key with send_id {} yet: does the far end have it, and ask \
                     for it?",
                    lagging.name, mkt.send_id
                );
                self.tell(scheduled, "chain-key-overdue", Severity::Alarm, message);
                scheduled.overdue = true;
            }
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let message = format!(
            "key with send_id {} in use in both directions on {} after {seconds:.1} s",
            mkt.send_id,
            count(sessions.len(), "session"),
        );
        self.tell(scheduled, "chain-key-in-use", Severity::Info, message);
        scheduled.awaited = None;
    }

    /// Tells of a chain that is over, or soon will be.
    pub(super) fn tell_expiry(&self, scheduled: &mut Scheduled, wanted: &Wanted, now: SystemTime) {
        if let Some(days) = scheduled.peer.chain.warning_due(now, scheduled.warned) {
            let message = format!(
                "key chain {:?} ends in less than {}: add a key with a later end",
                scheduled.peer.chain.name(),
                count(usize::from(days), "day"),
            );
            self.tell(scheduled, "chain-ends", Severity::Warning, message);
            scheduled.warned = Some(days);
        }
        let told = scheduled.expired.take();
        scheduled.expired = wanted.expired;
        if let (Some(on_expiry), None) = (wanted.expired, told) {
            let message = over(scheduled.peer.chain.name(), on_expiry);
            self.tell(scheduled, "chain-over", Severity::Alarm, message);
        }
    }

    /// What an operator should look at now.
    pub(super) fn set_alarms(&self, scheduled: &Scheduled) {
        let chain = scheduled.peer.chain.name();
        let over = scheduled.expired.map(|on_expiry| over(chain, on_expiry));
        let overdue = scheduled.awaited.as_ref().filter(|_| scheduled.overdue);
        let overdue = overdue.map(|(mkt, _)| {
            let id = mkt.send_id;
            format!("not all sessions use the key with send_id {id}: does the far end have it?")
        });
        let texts = over.into_iter().chain(overdue);
        let texts = texts.chain(scheduled.failure.clone()).collect();
        let subject = Subject::Chain(Arc::clone(&scheduled.peer.name));
        self.alarms.set(subject, texts);
    }

    pub(super) fn tell_clock(&self, change: ClockChange) {
        let (kind, severity, message) = match change {
            ClockChange::Jumped { to, trusted } => (
                "clock-jumped",
                Severity::Alarm,
                format!(
                    "the wall clock jumped to {}, expected {}: key chains go on by the steady clock \
                     for an hour; set the clock, or reload to believe it now",
                    time_text(to),
                    time_text(trusted),
                ),
            ),
            ClockChange::Returned => (
                "clock-returned",
                Severity::Info,
                "the wall clock is where it should be again".to_owned(),
            ),
            ClockChange::Believed => (
                "clock-believed",
                Severity::Warning,
                "the wall clock has been even since its jump: key chains go by it".to_owned(),
            ),
        };
        let jumped = matches!(change, ClockChange::Jumped { .. });
        let texts = jumped.then(|| message.clone());
        self.alarms.set(Subject::Clock, texts.into_iter().collect());
        self.events.tell(None, kind, severity, message);
    }
}

fn over(chain: &str, on_expiry: OnExpiry) -> String {
    let outcome = match on_expiry {
        OnExpiry::Keep => "its last key stays in use",
        OnExpiry::Close => "the peer is blocked and its sessions are closed",
    };
    format!("key chain {chain:?} is over: {outcome}; add a key")
}

/// Notes how often keys were used, and when they last were.
fn note_use(
    uses: &mut HashMap<(Arc<str>, u8), Use>,
    peer: &Arc<str>,
    sessions: &[SessionKeys],
    now: SystemTime,
) {
    let mut verified: HashMap<u8, u64> = HashMap::new();
    for &(id, count) in sessions.iter().flat_map(|session| &session.verified) {
        *verified.entry(id).or_default() += count;
    }
    for (id, count) in verified {
        let used = uses.entry((Arc::clone(peer), id)).or_default();
        if count > used.verified {
            used.last = Some(now);
        }
        used.verified = count;
    }
}

fn count(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}
