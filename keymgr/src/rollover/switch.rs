//! From one key to the next: when to select, what proves it, when the former one may go.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event::SessionKeys;
use super::message::Stage;
use super::record::{Generation, Pending};
use super::{Action, Cause, Dropped, Now, Random, Rollover, Step};

/// What showed, in this process, that the active key is in use everywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof {
    pub(super) number: u64,
    pub(super) at: Duration,
    /// Sessions showed it; otherwise it is the peer's word that it selected the key.
    pub(super) on_sessions: bool,
}

/// Whether a key may be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// Not by what is known.
    No,
    /// When the overlap has passed, on the steady clock.
    At(Duration),
    /// When no session uses it: that must be seen now.
    AfterLook,
    /// Now.
    Yes,
}

/// How long after a selection a session that is opening with another key is waited for: a
/// handshake that takes longer is as good as lost.
const LONGEST_OPENING: Duration = Duration::from_secs(60);

impl Rollover {
    /// Moves on to the next generation when there is a reason to, and one to move to.
    pub(super) fn select_if_due(&mut self, now: Now, sessions: &[SessionKeys], random: Random<'_>) {
        let Some((number, cause)) = self.choose(now, sessions) else {
            return;
        };
        if let Some(generation) = self.record.get(number)
            && generation.stage == Stage::Revoked
        {
            let generation = generation.label();
            self.tell(Step::DropOvertaken { generation });
        }
        self.record.active = Some(number);
        self.record.selected_at = super::unix_seconds(now.wall);
        if let Some(pending) = self.record.pending.filter(|pending| number > pending.above) {
            self.record.pending = None;
            if pending.compromised {
                self.record.compromised = self.record.compromised.max(pending.above);
            }
        }
        self.cause = cause;
        self.decided_at = now.steady;
        self.proof = None;
        self.watch.looks = 0;
        self.due = now.steady + super::jittered(self.parameters.interval, random);
    }

    fn choose(&self, now: Now, sessions: &[SessionKeys]) -> Option<(u64, Cause)> {
        let active = self.record.active.unwrap_or(0);
        let above = || {
            self.record
                .generations
                .iter()
                .filter(move |g| g.number > active && g.stage != Stage::Deleted && !g.mismatch)
        };
        let selected_there = |g: &&Generation| {
            // Before the first selection, sessions may use any key that is installed.
            g.there.is_some_and(Stage::in_use)
                || (active > 0
                    && g.there != Some(Stage::Deleted)
                    && sessions
                        .iter()
                        .any(|session| session.send_id_current == g.id))
        };
        if let Some(followed) = above().rfind(selected_there) {
            return Some((followed.number, Cause::Peer));
        }
        let mut ready = above().filter(|g| self.is_ready(g)).map(|g| g.number);
        if !self.active_is_common() {
            return Some((ready.next()?, Cause::Needed));
        }
        let proven = self.active_stage() >= Some(Stage::Proven);
        match self.record.pending {
            Some(Pending {
                above,
                compromised: true,
            }) => return Some((ready.find(|number| *number > above)?, Cause::Compromise)),
            Some(_) if proven => return Some((ready.next()?, Cause::Operator)),
            _ => {}
        }
        (proven && self.due <= now.steady)
            .then(|| ready.next())
            .flatten()
            .map(|number| (number, Cause::Schedule))
    }

    /// Installed at both ends, alike, and given up by neither: either end may select it.
    pub(super) fn is_ready(&self, g: &Generation) -> bool {
        g.stage == Stage::Installed
            && g.there == Some(Stage::Installed)
            && !g.mismatch
            && self
                .locals
                .get(&g.number)
                .is_some_and(|local| local.installed)
    }

    pub(super) fn active(&self) -> Option<&Generation> {
        self.record.get(self.record.active?)
    }

    pub(super) fn active_stage(&self) -> Option<Stage> {
        self.active().map(|g| g.stage)
    }

    /// Whether the peer has the active key, as far as is known.
    pub(super) fn active_is_common(&self) -> bool {
        self.active()
            .is_some_and(|g| g.there != Some(Stage::Deleted) && !g.mismatch)
    }

    /// Reads the proof of the active key off all sessions. Whether they all use it.
    ///
    /// current_key is moved by the peer's RNextKeyID, so it shows the peer's selection; a verified
    /// segment shows that ours has arrived there.
    pub(super) fn prove(&mut self, now: Now, sessions: &[SessionKeys]) -> bool {
        let Some(active) = self.active() else {
            return false;
        };
        if self.selected != Some(active.number) {
            return false;
        }
        let (number, id, there) = (active.number, active.id, active.there);
        let generation = active.label();
        let baseline = &mut self.baseline;
        baseline.retain(|name, _| sessions.iter().any(|session| session.name == *name));
        // A session that is opening holds up nothing for long: a recorded SYN, sent again, opens one
        // with whichever key it was signed with.
        let opening_count = now.steady < self.decided_at + LONGEST_OPENING;
        let established = || sessions.iter().filter(|session| session.established);
        let lagging: Vec<_> = sessions
            .iter()
            .filter(|session| session.established || opening_count)
            .filter(|session| !uses(session, id, baseline))
            .map(|session| session.name.clone())
            .collect();
        let established = established().count();
        let everywhere = lagging.is_empty();
        let on_sessions = everywhere && established > 0;
        let vacuous = everywhere && there.is_some_and(Stage::in_use);
        self.waiting_for = lagging;
        if !on_sessions && !vacuous {
            return everywhere;
        }
        let proof = self.proof.get_or_insert(Proof {
            number,
            at: now.steady,
            on_sessions,
        });
        proof.on_sessions |= on_sessions;
        if self.active_stage() < Some(Stage::Proven) {
            if let Some(active) = self.record.get_mut(number) {
                active.advance(Stage::Proven, now);
            }
            self.tell(Step::Proven {
                generation,
                sessions: established,
                took: now.steady.saturating_sub(self.decided_at),
                segments_here: self.verified(number),
                segments_there: self.locals.get(&number).map_or(0, |l| l.verified_there),
            });
        }
        everywhere
    }

    /// A proven key retires all lower ones.
    pub(super) fn retire(&mut self, now: Now) {
        let Some(proof) = self.proof else { return };
        for g in &mut self.record.generations {
            if g.number < proof.number && g.stage < Stage::Retiring {
                g.advance(Stage::Retiring, now);
            }
        }
    }

    /// Whether the key of `g` may be deleted. `everywhere`: all sessions were seen to use the
    /// active key, just now.
    pub(super) fn removal(&self, g: &Generation, now: Now, everywhere: bool) -> Removal {
        if g.stage == Stage::Deleted || Some(g.number) == self.record.active {
            return Removal::No;
        }
        if g.forced {
            return Removal::Yes;
        }
        match g.stage {
            Stage::Revoked if self.is_given_up(g) => Removal::Yes,
            Stage::Retiring => {
                let Some(proof) = self.proof else {
                    return Removal::No;
                };
                let confirmed = self
                    .active()
                    .is_some_and(|g| matches!(g.there, Some(Stage::Proven | Stage::Retiring)));
                let at = proof.at + self.overlap(g);
                if !proof.on_sessions && !confirmed {
                    Removal::No
                } else if now.steady < at {
                    Removal::At(at)
                } else if everywhere {
                    Removal::Yes
                } else {
                    Removal::AfterLook
                }
            }
            _ => Removal::No,
        }
    }

    /// Whether neither end has selected it or ever will: both have said so. Below the active one
    /// that is not known for sure, so those go by the proof.
    pub(super) fn is_given_up(&self, g: &Generation) -> bool {
        g.stage == Stage::Revoked
            && matches!(g.there, Some(Stage::Revoked | Stage::Deleted))
            && Some(g.number) > self.record.active
    }

    fn overlap(&self, g: &Generation) -> Duration {
        if g.number <= self.record.compromised {
            return Duration::ZERO;
        }
        let ours = self.parameters.overlap;
        ours.min(self.peer_overlap.unwrap_or(ours))
    }

    /// Lets go of generations whose KeyID has rested long enough.
    pub(super) fn forget_rested(&mut self, now: Now) {
        let quarantine = self.parameters.quarantine;
        let mut wake = None;
        let (locals, selected) = (&mut self.locals, self.record.active);
        self.record.generations.retain(|g| {
            if g.stage != Stage::Deleted
                || g.there != Some(Stage::Deleted)
                || Some(g.number) == selected
            {
                return true;
            }
            let local = locals.entry(g.number).or_default();
            let until = *local.rests_since.get_or_insert(now.steady) + quarantine;
            if now.steady < until {
                wake = Some(wake.map_or(until, |at: Duration| at.min(until)));
                return true;
            }
            locals.remove(&g.number);
            false
        });
        if let Some(at) = wake {
            self.wake_at(at);
        }
    }

    /// The operator wants a new key.
    pub(super) fn start(&mut self, compromised: bool) {
        let before = self.record.pending;
        if compromised {
            // What is offered may be known to others, too.
            self.record.offer = None;
            self.record.pending = Some(Pending {
                above: self.record.last_number.max(self.told_number),
                compromised: true,
            });
        } else if before.is_none() {
            self.record.pending = Some(Pending {
                above: self.record.active.unwrap_or(0),
                compromised: false,
            });
        }
    }

    /// The operator wants no new key after all.
    pub(super) fn abort(&mut self, now: Now) {
        let Some(active) = self.record.active else {
            return self.refuse("no key is in use yet: there is nothing to go back to");
        };
        let pending = self.record.pending.is_some();
        let stage = self.active_stage();
        if !pending && stage < Some(Stage::Proven) {
            return self.refuse(&format!(
                "generation {active} is selected already: from here it can only go forward"
            ));
        }
        let mut dropped = Vec::new();
        for g in &mut self.record.generations {
            if g.number > active && g.stage < Stage::Revoked && !g.there.is_some_and(Stage::in_use)
            {
                g.advance(Stage::Revoked, now);
                dropped.push(g.label());
            }
        }
        if !pending && dropped.is_empty() {
            return self.refuse("there is nothing to abort");
        }
        self.record.pending = None;
        self.record.offer = None;
        for generation in dropped {
            let why = Dropped::Aborted;
            self.tell(Step::Dropped { generation, why });
        }
    }

    /// The operator wants superseded keys gone.
    pub(super) fn force(&mut self, now: Now) {
        let Some(active) = self.active() else {
            return self.refuse("no key is in use yet");
        };
        let number = active.number;
        let there = active.there;
        if self.selected != Some(number) || active.stage < Stage::Selected {
            return self.refuse(&format!("generation {number} is not selected here yet"));
        }
        if !self.active_is_common() || there < Some(Stage::Installed) {
            return self.refuse(&format!(
                "the peer does not have generation {number}: deleting the others would end all \
                 sessions"
            ));
        }
        let mut any = false;
        for g in &mut self.record.generations {
            if g.number < number && g.stage != Stage::Deleted {
                g.advance(Stage::Retiring, now);
                g.forced = true;
                any = true;
            }
        }
        if !any {
            self.refuse("there is no superseded key");
        }
    }

    fn refuse(&mut self, reason: &str) {
        self.actions.push(Action::Refused(reason.to_owned()));
    }
}

/// Whether a session uses the key in both directions. One that is opening has yet to show
/// segments.
///
/// Only segments count that were verified after the session was first seen with the key selected
/// here: a SYN may have come with the key before, and been answered with the former one's
/// RNextKeyID, which took the peer's current_key back.
fn uses(session: &SessionKeys, id: u8, baseline: &mut BTreeMap<String, u64>) -> bool {
    let verified = session.verified.iter();
    let count = verified
        .filter(|&&(key, _)| key == id)
        .map(|&(_, count)| count)
        .sum();
    let before = match baseline.get_mut(&session.name) {
        Some(before) => before,
        None => baseline.entry(session.name.clone()).or_insert(count),
    };
    *before = count.min(*before);
    session.send_id_current == id
        && session.recv_id_rnext == id
        && (count > *before || !session.established)
}
