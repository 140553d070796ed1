//! When to call the peer: at once with news, else now and then; less often when it fails.

use std::time::Duration;

use super::message::{Message, Refusal};
use super::{Action, Now, Random, Rollover};

/// Longest time between two calls that fail, and the same while there is no common key.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE_BLOCKED: Duration = Duration::from_secs(10);
/// Longest time until a call is tried again once the peer has been heard.
const SOON: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default)]
pub(super) struct Exchange {
    /// The tidings of the call under way.
    calling: Option<u64>,
    /// The tidings that the peer has.
    told: Option<u64>,
    /// A call came that can be trusted only once the peer has answered one.
    pub(super) call_back: bool,
    failures: u32,
    not_before: Duration,
    heartbeat_at: Duration,
    /// When the peer was heard last, in this process.
    pub(super) heard: Option<Duration>,
    /// Why the last call failed.
    pub(super) failure: String,
}

impl Exchange {
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }
}

impl Rollover {
    pub(super) fn heard(&mut self, now: Now) {
        let exchange = &mut self.exchange;
        exchange.heard = Some(now.steady);
        // It is there again: what was told in vain need not wait long. Not at once, or two ends that
        // refuse each other's answers would go on for ever.
        exchange.not_before = exchange.not_before.min(now.steady + SOON);
    }

    /// What the peer was told is not enough any more; pauses after failures do not count.
    pub(super) fn call_anew(&mut self, now: Now) {
        self.exchange.told = None;
        self.exchange.not_before = now.steady;
    }

    pub(super) fn call_if_wanted(&mut self, now: Now) {
        if self.exchange.calling.is_some() {
            return;
        }
        let tidings = self.tidings();
        let exchange = &mut self.exchange;
        let news = exchange.told != Some(tidings) || exchange.call_back || exchange.failures > 0;
        let at = if news {
            exchange.not_before
        } else {
            exchange.heartbeat_at
        };
        if now.steady < at {
            return self.wake_at(at);
        }
        exchange.calling = Some(tidings);
        exchange.call_back = false;
        let message = self.message(None);
        self.actions.push(Action::Call(message));
    }

    /// The peer answered our call.
    pub(super) fn answered_call(&mut self, now: Now, message: &Message, random: Random<'_>) {
        let Some(told) = self.exchange.calling else {
            return;
        };
        match self.take_message(now, message, true, &mut *random) {
            Ok(_) => {
                let heartbeat = super::jittered(self.parameters.heartbeat(), random);
                let exchange = &mut self.exchange;
                exchange.calling = None;
                exchange.told = Some(told);
                exchange.failures = 0;
                exchange.not_before = now.steady;
                exchange.heartbeat_at = now.steady + heartbeat;
            }
            Err(reason) => {
                self.call_failed(now, format!("its answer was refused: {reason}"), random);
            }
        }
    }

    pub(super) fn call_failed(&mut self, now: Now, reason: String, random: Random<'_>) {
        if self.exchange.calling.take().is_none() {
            return;
        }
        let longest = if self.active_is_common() {
            LONGEST_PAUSE
        } else {
            LONGEST_PAUSE_BLOCKED
        };
        let pause = super::backoff(self.exchange.failures, longest);
        self.exchange.not_before = now.steady + super::jittered(pause, random);
        self.exchange.failures = self.exchange.failures.saturating_add(1);
        self.exchange.failure = reason;
    }

    /// Answers the peer's call, last of all, so that the answer has what the call led to.
    pub(super) fn reply(&mut self, refusal: Option<Refusal>) {
        // If the reply is lost, the peer calls again.
        if !self.exchange.call_back {
            self.exchange.told = Some(self.tidings());
        }
        let message = self.message(refusal);
        self.actions.push(Action::Reply(message));
    }
}
