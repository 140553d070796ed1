//! Work for the backend, one piece at a time, and what it says about the sessions.

use std::time::{Duration, SystemTime};

use super::event::SessionKeys;
use super::message::Stage;
use super::record::Generation;
use super::switch::Removal;
use super::{Action, Now, Rollover, Step};

/// Longest time before a failed piece of work is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Longest time between two looks while something waits for them; later ones are rarer.
const LONGEST_LOOK: Duration = Duration::from_secs(1);
const MANY_LOOKS: u32 = 60;
const RARE_LOOK: Duration = Duration::from_secs(10);

/// What this process knows of a generation.
#[derive(Clone, Debug, Default)]
pub(super) struct Local {
    pub(super) agreed: Option<Now>,
    /// The backend said so, in this process.
    pub(super) installed: bool,
    pub(super) failure: Option<String>,
    failures: u32,
    retry_at: Duration,
    pub(super) rests_since: Option<Duration>,
    pub(super) verified_here: u64,
    pub(super) verified_there: u64,
    pub(super) last_use: Option<SystemTime>,
}

/// Work that the backend was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Install(u64),
    Select(u64),
    Delete(u64),
}

impl Work {
    fn number(self) -> u64 {
        match self {
            Self::Install(number) | Self::Select(number) | Self::Delete(number) => number,
        }
    }
}

/// When sessions were and will be looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    asked: bool,
    last: Option<Duration>,
    /// Since something began to wait for them.
    pub(super) looks: u32,
}

impl Rollover {
    /// Gives the backend its next piece of work: to select before to install before to delete.
    pub(super) fn work(&mut self, now: Now, everywhere: bool) {
        if self.under_way.is_some() {
            return;
        }
        let mut wake = None;
        let next = self.next_work(now, everywhere, &mut wake);
        if let Some(at) = wake {
            self.wake_at(at);
        }
        let Some(work) = next else { return };
        let Some(g) = self.record.get(work.number()) else {
            return;
        };
        let (number, send_id) = (g.number, g.id);
        self.actions.push(match work {
            Work::Select(_) => Action::Select { number, send_id },
            Work::Delete(_) => Action::Delete {
                number,
                send_id,
                forced: g.forced,
            },
            Work::Install(_) => match g.mkt() {
                Some(mkt) => Action::Install { number, mkt },
                None => return,
            },
        });
        self.under_way = Some(work);
    }

    fn next_work(&self, now: Now, everywhere: bool, wake: &mut Option<Duration>) -> Option<Work> {
        let mut sooner = |at: Duration| *wake = Some(wake.map_or(at, |known| known.min(at)));
        let mut may_try = |g: &Generation| {
            let retry_at = self
                .locals
                .get(&g.number)
                .map_or(Duration::ZERO, |l| l.retry_at);
            if now.steady < retry_at {
                sooner(retry_at);
            }
            now.steady >= retry_at
        };
        let installed = |g: &Generation| self.locals.get(&g.number).is_some_and(|l| l.installed);
        if let Some(active) = self.active()
            && may_try(active)
        {
            if !installed(active) {
                return Some(Work::Install(active.number));
            }
            if self.selected != Some(active.number) {
                return Some(Work::Select(active.number));
            }
        }
        for g in &self.record.generations {
            if self.is_wanted(g) && !installed(g) && may_try(g) {
                return Some(Work::Install(g.number));
            }
        }
        for g in &self.record.generations {
            if self.removal(g, now, everywhere) == Removal::Yes && may_try(g) {
                return Some(Work::Delete(g.number));
            }
        }
        for g in &self.record.generations {
            if let Removal::At(at) = self.removal(g, now, everywhere) {
                sooner(at);
            }
        }
        None
    }

    /// Whether the backend should have it. What is revoked here only, the peer may have selected.
    ///
    /// Before the first selection that is one key only: what
    /// is installed first begins new sessions, and it must not go back to a lower one.
    pub(super) fn is_wanted(&self, g: &Generation) -> bool {
        let alive = |g: &Generation| g.stage != Stage::Deleted && !g.forced && !self.is_given_up(g);
        let lowest = || self.record.generations.iter().find(|g| alive(g));
        alive(g)
            && (self.record.active.is_some()
                || lowest().is_some_and(|lowest| lowest.number == g.number))
    }

    /// The backend has done what it was given. Anything else it says is ignored.
    pub(super) fn worked(&mut self, now: Now, work: Work) {
        if self.under_way != Some(work) {
            return;
        }
        self.under_way = None;
        let (decided_at, cause) = (self.decided_at, self.cause);
        let local = self.local(work.number());
        local.failure = None;
        local.failures = 0;
        let agreed_at = local.agreed.map_or(now.steady, |agreed| agreed.steady);
        local.installed = !matches!(work, Work::Delete(_));
        let Some(g) = self.record.get_mut(work.number()) else {
            return;
        };
        let generation = g.label();
        match work {
            Work::Install(_) => {
                if g.stage >= Stage::Installed {
                    return;
                }
                g.advance(Stage::Installed, now);
                self.tell(Step::InstalledHere {
                    generation,
                    took: now.steady.saturating_sub(agreed_at),
                });
            }
            Work::Select(number) => {
                self.selected = Some(number);
                self.baseline.clear();
                self.watch.looks = 0;
                if g.stage >= Stage::Selected {
                    return;
                }
                g.advance(Stage::Selected, now);
                self.tell(Step::Selected {
                    generation,
                    cause,
                    took: now.steady.saturating_sub(decided_at),
                });
            }
            Work::Delete(_) => {
                let forced = g.forced;
                g.advance(Stage::Deleted, now);
                g.master_key = None;
                g.contribution = None;
                g.answers = None;
                self.watch.looks = 0;
                self.tell(Step::Deleted { generation, forced });
            }
        }
    }

    /// The backend could not do what it was given; it is tried again.
    pub(super) fn failed(&mut self, now: Now, work: Work, reason: String) {
        if self.under_way != Some(work) {
            return;
        }
        self.under_way = None;
        let local = self.local(work.number());
        local.failure = Some(reason);
        local.retry_at = now.steady + super::backoff(local.failures, LONGEST_RETRY);
        local.failures = local.failures.saturating_add(1);
    }

    /// Notes what the sessions show about the use of keys.
    pub(super) fn observed(&mut self, now: Now, sessions: &[SessionKeys]) {
        self.watch.asked = false;
        for g in &self.record.generations {
            let count = sessions
                .iter()
                .flat_map(|session| &session.verified)
                .filter(|&&(id, _)| id == g.id && g.stage != Stage::Deleted)
                .fold(0_u64, |sum, &(_, count)| sum.saturating_add(count));
            let local = self.locals.entry(g.number).or_default();
            if count > local.verified_here {
                local.last_use = Some(now.wall);
            }
            local.verified_here = count;
        }
    }

    /// What was not seen shows nothing; it is looked for again.
    pub(super) fn not_observed(&mut self) {
        self.watch.asked = false;
    }

    pub(super) fn verified(&self, number: u64) -> u64 {
        self.locals
            .get(&number)
            .map_or(0, |local| local.verified_here)
    }

    /// Looks at the sessions while something depends on them: a proof, a deletion, or, when the
    /// channel is down, what the peer has selected.
    pub(super) fn look_if_wanted(&mut self, now: Now) {
        if self.watch.asked {
            return;
        }
        let unproven = self.record.active.is_some()
            && self.selected == self.record.active
            && self.proof.is_none();
        let in_the_way = self.under_way.is_none()
            && self
                .record
                .generations
                .iter()
                .any(|g| self.removal(g, now, false) == Removal::AfterLook);
        // By the peer's word alone nothing is deleted: sessions may come that show more.
        let by_word_only = self.proof.is_some_and(|proof| !proof.on_sessions)
            && self
                .record
                .generations
                .iter()
                .any(|g| g.stage == Stage::Retiring);
        let waits = unproven || in_the_way;
        let period = if waits {
            match self.watch.looks {
                0 => Duration::ZERO,
                looks if looks > MANY_LOOKS => RARE_LOOK,
                looks => Duration::from_millis(100 << (looks - 1).min(4)).min(LONGEST_LOOK),
            }
        } else if by_word_only || self.exchange.is_failing() {
            (self.parameters.interval / 4).clamp(LONGEST_LOOK, RARE_LOOK)
        } else {
            return;
        };
        let at = self.watch.last.map_or(Duration::ZERO, |last| last + period);
        if now.steady < at {
            return self.wake_at(at);
        }
        self.watch.asked = true;
        self.watch.last = Some(now.steady);
        let nudge = waits && self.watch.looks > 0;
        self.watch.looks = self.watch.looks.saturating_add(u32::from(waits));
        self.actions.push(Action::Observe { nudge });
    }
}
