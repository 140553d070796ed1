//! Two ends, their stores and backends, the segments between them, and a channel that fails.

mod rules;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use ao_engine::crypto::Algorithm;
use keymgr::rollover::message::{Instance, Message, Stage};
use keymgr::rollover::{
    Action, Event, GenerationStatus, Now, Parameters, Record, Rollover, SessionKeys, Step,
};

use crate::wire::{Backend, Key, Session};

/// Longest life of a segment in the network; the quarantine is longer.
pub(crate) const SEGMENT_LIFE: Duration = Duration::from_secs(30);
const MOST_CALLS: usize = 4;
const MOST_SESSIONS: usize = 3;
/// Most steps that the ends take at one moment.
const MOST_STEPS: u32 = 2000;

struct Hashing(DefaultHasher);

impl Write for Hashing {
    fn write_str(&mut self, shown: &str) -> std::fmt::Result {
        self.0.write(shown.as_bytes());
        Ok(())
    }
}

/// How often each kind of step was taken, by all worlds: shows how deep schedules get.
pub(crate) static TALLY: [AtomicU64; 9] = [const { AtomicU64::new(0) }; 9];

fn tally(step: &Step) {
    let kind = match step {
        Step::Agreed { .. } => 0,
        Step::Selected { .. } => 1,
        Step::Proven { sessions: 0, .. } => 2,
        Step::Proven { .. } => 3,
        Step::Deleted { forced: false, .. } => 4,
        Step::Deleted { forced: true, .. } => 5,
        Step::Dropped { .. } => 6,
        Step::DropOvertaken { .. } => 7,
        _ => 8,
    };
    TALLY[kind].fetch_add(1, Ordering::Relaxed);
}

/// SplitMix64: short, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound
    }

    fn fill(&mut self, octets: &mut [u8]) {
        for chunk in octets.chunks_mut(8) {
            let next = self.next().to_be_bytes();
            chunk.copy_from_slice(&next[..chunk.len()]);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operator {
    Start,
    Compromise,
    Abort,
    Force,
    /// Other settings, or back to the former ones.
    Reconfigure,
}

/// What the scheduler may let happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Choice {
    /// The end carries out the first of its actions.
    Act(usize),
    /// It cannot.
    Fail(usize),
    Tick(usize),
    /// Time goes on to when an end wants to wake.
    Wait,
    /// The request or the response arrives; a request may arrive again.
    Deliver {
        call: usize,
        again: bool,
    },
    /// The caller gives up; the request may arrive later.
    TimeOut {
        call: usize,
    },
    Lose {
        call: usize,
    },
    Send {
        session: usize,
        side: usize,
    },
    Arrive {
        session: usize,
        segment: usize,
    },
    Drop {
        session: usize,
        segment: usize,
    },
    Open(usize),
    Close(usize),
    /// The process ends between two steps, and begins again from its store.
    Crash(usize),
    /// The next event is handled, but the process ends before it has stored the outcome.
    CrashUnsaved(usize),
    Operate(usize, Operator),
}

#[derive(Clone, Debug)]
struct Call {
    from: usize,
    epoch: u32,
    caller_waits: bool,
    request: Option<Message>,
    response: Option<Message>,
}

#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) core: Rollover,
    pub(crate) disk: Record,
    pub(crate) instance: Instance,
    pub(crate) parameters: Parameters,
    pub(crate) backend: Backend,
    pub(crate) wall_offset: i64,
    queue: VecDeque<(Action, Option<usize>)>,
    epoch: u32,
    dies_unsaved: bool,
    stages: BTreeMap<u64, Stage>,
    pub(crate) refusals: Vec<String>,
    pub(crate) rejections: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) ends: [End; 2],
    pub(crate) sessions: Vec<Option<Session>>,
    calls: Vec<Option<Call>>,
    pub(crate) random: Random,
    /// Whether the channel works at all.
    pub(crate) channel: bool,
    /// A deletion by force at this end, of all below this number: what the other end sends may
    /// fail until it has followed.
    forced: [Option<u64>; 2],
    /// A store was lost or went back in time: the ends may lack a common key until they agree
    /// anew.
    pub(crate) amnesia: bool,
    ever_selected: BTreeSet<u64>,
    pub(crate) chatty: bool,
    /// What happened, when somebody wants to know.
    pub(crate) history: Option<Vec<String>>,
}

pub(crate) fn quick() -> Parameters {
    Parameters {
        interval: Duration::from_secs(10),
        overlap: Duration::from_secs(2),
        runway: 1,
        highest_id: 5,
        quarantine: Duration::from_secs(40),
        ..Parameters::default()
    }
}

/// What an operator changes that to: with everything another, and an algorithm more.
fn other_than_quick() -> Parameters {
    Parameters {
        interval: Duration::from_secs(7),
        overlap: Duration::ZERO,
        runway: 2,
        highest_id: 8,
        algorithms: vec![Algorithm::HmacSha1_96, Algorithm::Aes128Cmac96],
        ..quick()
    }
}

impl World {
    pub(crate) fn new(seed: u64, parameters: [Parameters; 2]) -> Self {
        let now = Duration::from_secs(1000);
        let mut random = Random(seed);
        let ends = parameters.map(|parameters| {
            let mut instance = [0; 16];
            random.fill(&mut instance);
            End::new(parameters, Instance(instance), now)
        });
        Self {
            now,
            ends,
            sessions: Vec::new(),
            calls: Vec::new(),
            random,
            channel: true,
            forced: [None; 2],
            amnesia: false,
            ever_selected: BTreeSet::new(),
            chatty: true,
            history: None,
        }
    }

    pub(crate) fn choices(&self, faults: bool) -> Vec<Choice> {
        let mut choices = Vec::with_capacity(32);
        for (index, end) in self.ends.iter().enumerate() {
            if !end.queue.is_empty() {
                choices.push(Choice::Act(index));
            } else if end.core.next_tick().is_some_and(|at| at <= self.now) {
                choices.push(Choice::Tick(index));
            }
        }
        for (call, state) in self.calls.iter().enumerate() {
            let Some(state) = state else { continue };
            if state.request.is_some() || state.response.is_some() {
                choices.push(Choice::Deliver { call, again: false });
                if faults {
                    choices.push(Choice::Lose { call });
                    if state.request.is_some() {
                        choices.push(Choice::Deliver { call, again: true });
                        choices.push(Choice::TimeOut { call });
                    }
                }
            }
        }
        for (session, state) in self.sessions.iter().enumerate() {
            let Some(state) = state else { continue };
            for segment in 0..state.wire.len() {
                choices.push(Choice::Arrive { session, segment });
                if faults {
                    choices.push(Choice::Drop { session, segment });
                }
            }
            for side in 0..2 {
                if state.sides[side].is_some() && state.wire.len() < 3 {
                    choices.push(Choice::Send { session, side });
                }
            }
            if faults {
                choices.push(Choice::Close(session));
            }
        }
        if self.ends.iter().all(|end| end.queue.is_empty()) && self.next_wake().is_some() {
            choices.push(Choice::Wait);
        }
        for index in 0..2 {
            if self.sessions.iter().flatten().count() < MOST_SESSIONS
                && self.ends[index].backend.first().is_some()
            {
                choices.push(Choice::Open(index));
            }
            if faults {
                choices.push(Choice::Crash(index));
                choices.push(Choice::CrashUnsaved(index));
                if matches!(
                    self.ends[index].queue.front(),
                    Some((
                        Action::Install { .. } | Action::Select { .. } | Action::Delete { .. },
                        _
                    ))
                ) {
                    choices.push(Choice::Fail(index));
                }
                for operator in [
                    Operator::Start,
                    Operator::Compromise,
                    Operator::Abort,
                    Operator::Force,
                    Operator::Reconfigure,
                ] {
                    choices.push(Choice::Operate(index, operator));
                }
            }
        }
        choices
    }

    pub(crate) fn apply(&mut self, choice: Choice) {
        if let Some(history) = &mut self.history {
            let backends = self.ends.each_ref().map(|end| end.backend.to_string());
            history.push(format!("{:?}: {choice:?} {}", self.now, backends.join(" ")));
        }
        match choice {
            Choice::Act(end) => self.act(end, false),
            Choice::Fail(end) => self.act(end, true),
            Choice::Tick(end) => self.event(end, Event::Tick, None),
            Choice::Wait => self.wait(),
            Choice::Deliver { call, again } => self.deliver(call, again),
            Choice::TimeOut { call } => self.time_out(call),
            Choice::Lose { call } => {
                self.time_out(call);
                self.calls[call] = None;
            }
            Choice::Send { session, side } => self.send(session, side),
            Choice::Arrive { session, segment } => self.arrive(session, segment),
            Choice::Drop { session, segment } => {
                if let Some(session) = &mut self.sessions[session] {
                    session.wire.remove(segment);
                }
            }
            Choice::Open(end) => self.open(end),
            Choice::Close(session) => self.sessions[session] = None,
            Choice::Crash(end) => self.crash(end),
            Choice::CrashUnsaved(end) => self.ends[end].dies_unsaved = true,
            Choice::Operate(end, Operator::Force) => self.force(end),
            Choice::Operate(end, Operator::Reconfigure) => self.reconfigure(end),
            Choice::Operate(end, operator) => self.event(
                end,
                match operator {
                    Operator::Start => Event::Start { compromised: false },
                    Operator::Compromise => Event::Start { compromised: true },
                    Operator::Abort | Operator::Force | Operator::Reconfigure => Event::Abort,
                },
                None,
            ),
        }
    }

    fn next_wake(&self) -> Option<Duration> {
        self.ends
            .iter()
            .filter_map(|end| end.core.next_tick())
            .filter(|at| *at > self.now)
            .min()
    }

    fn wait(&mut self) {
        if let Some(at) = self.next_wake() {
            self.pass(at);
        }
    }

    /// Time goes on; what is too old leaves the network, and nobody waits for ever.
    pub(crate) fn pass(&mut self, to: Duration) {
        let long = to.saturating_sub(self.now) > Duration::from_secs(5);
        self.now = to;
        for session in self.sessions.iter_mut().flatten() {
            session
                .wire
                .retain(|segment| segment.sent_at + SEGMENT_LIFE > to);
        }
        for session in &mut self.sessions {
            if session
                .as_ref()
                .is_some_and(|session| session.has_timed_out(to))
            {
                *session = None;
            }
        }
        if long {
            for call in 0..self.calls.len() {
                self.time_out(call);
            }
        }
    }

    fn event(&mut self, index: usize, event: Event, call: Option<usize>) {
        let now = self.clock(index);
        let end = &mut self.ends[index];
        let random = &mut self.random;
        let revision = end.core.revision();
        let actions = end
            .core
            .handle(now, event, &mut |octets| random.fill(octets));
        if end.dies_unsaved {
            return self.crash(index);
        }
        if end.core.revision() != revision {
            end.save();
        }
        for action in actions {
            match action {
                Action::Tell(step) => {
                    tally(&step);
                    if let Some(history) = &mut self.history {
                        history.push(format!("{:?}: end {index}: {step}", self.now));
                    }
                }
                Action::Refused(reason) => end.refusals.push(reason),
                Action::Reject(reason) => end.rejections.push(reason),
                action => end.queue.push_back((action, call)),
            }
        }
    }

    fn clock(&self, index: usize) -> Now {
        let offset = self.ends[index].wall_offset;
        let base = 2_000_000_000_u64.saturating_add_signed(offset);
        Now {
            steady: self.now,
            wall: UNIX_EPOCH + Duration::from_secs(base) + self.now,
        }
    }

    pub(crate) fn status(&self, index: usize) -> keymgr::rollover::Status {
        self.ends[index].core.status(self.clock(index))
    }

    pub(crate) fn crash(&mut self, index: usize) {
        let now = self.clock(index);
        let end = &mut self.ends[index];
        end.queue.clear();
        end.dies_unsaved = false;
        end.epoch += 1;
        end.core = Rollover::new(end.parameters.clone(), end.instance, end.disk.clone(), now);
        let known = end.core.status(now).generations;
        let keys = end.core.mkts().into_iter().map(|mkt| {
            let alive = |g: &&GenerationStatus| g.id == mkt.send_id && g.stage != Stage::Deleted;
            let number = known.iter().find(alive).unwrap().number;
            Key { number, mkt }
        });
        end.backend
            .restart(keys.collect(), index, &mut self.sessions);
    }

    /// The end goes on with another store.
    pub(crate) fn replace_store(&mut self, index: usize, record: Record, instance: Instance) {
        let end = &mut self.ends[index];
        end.disk = record;
        end.instance = instance;
        end.stages.clear();
        self.amnesia = true;
        self.crash(index);
    }

    pub(crate) fn act(&mut self, index: usize, fails: bool) {
        let Some((action, call)) = self.ends[index].queue.pop_front() else {
            return;
        };
        let reason = String::from("made to fail");
        let event = match action {
            Action::Install { number, .. } if fails => Event::InstallFailed { number, reason },
            Action::Select { number, .. } if fails => Event::SelectFailed { number, reason },
            Action::Delete { number, .. } if fails => Event::DeleteFailed { number, reason },
            Action::Observe { .. } if fails => Event::NotObserved,
            Action::Install { number, mkt } => {
                self.ends[index].backend.install(Key { number, mkt });
                Event::Installed { number }
            }
            Action::Select { number, .. } => {
                self.ever_selected.insert(number);
                self.ends[index]
                    .backend
                    .select(number, index, &mut self.sessions);
                Event::Selected { number }
            }
            Action::Delete { number, forced, .. } => self.delete(index, number, forced),
            Action::Observe { nudge } => {
                if nudge && self.chatty {
                    for session in 0..self.sessions.len() {
                        self.send(session, index);
                    }
                }
                Event::Observed {
                    sessions: self.observe(index),
                }
            }
            Action::Call(message) => return self.call(index, message),
            Action::Reply(message) => {
                if let Some(call) = call.and_then(|call| self.calls.get_mut(call)?.as_mut()) {
                    call.response = Some(message);
                }
                return;
            }
            other => panic!("{other:?} is not queued"),
        };
        self.event(index, event, None);
    }

    fn call(&mut self, from: usize, message: Message) {
        let call = Call {
            from,
            epoch: self.ends[from].epoch,
            caller_waits: true,
            request: Some(message),
            response: None,
        };
        if !self.channel {
            return self.event(
                from,
                Event::CallFailed {
                    reason: "no route to host".into(),
                },
                None,
            );
        }
        if let Some(free) = self.calls.iter().position(Option::is_none) {
            self.calls[free] = Some(call);
        } else if self.calls.len() < MOST_CALLS {
            self.calls.push(Some(call));
        } else {
            // The network forgets the oldest.
            self.time_out(0);
            self.calls[0] = Some(call);
        }
    }

    fn deliver(&mut self, index: usize, again: bool) {
        let Some(Some(call)) = self.calls.get_mut(index) else {
            return;
        };
        if let Some(message) = call.response.take() {
            let (from, epoch, waits) = (call.from, call.epoch, call.caller_waits);
            call.caller_waits = false;
            if call.request.is_none() {
                self.calls[index] = None;
            }
            if waits && self.ends[from].epoch == epoch {
                self.event(from, Event::Response { message }, None);
            }
        } else if let Some(message) = if again {
            call.request.clone()
        } else {
            call.request.take()
        } {
            let to = 1 - call.from;
            self.event(to, Event::Request { message }, Some(index));
        }
    }

    fn time_out(&mut self, index: usize) {
        let Some(Some(call)) = self.calls.get_mut(index) else {
            return;
        };
        let (from, epoch, waits) = (call.from, call.epoch, call.caller_waits);
        call.caller_waits = false;
        call.response = None;
        if call.request.is_none() {
            self.calls[index] = None;
        }
        if waits && self.ends[from].epoch == epoch {
            self.event(
                from,
                Event::CallFailed {
                    reason: "timed out".into(),
                },
                None,
            );
        }
    }

    fn delete(&mut self, index: usize, number: u64, forced: bool) -> Event {
        let used = self
            .sessions
            .iter()
            .flatten()
            .filter_map(|session| session.sides[index].as_ref())
            .any(|side| side.uses(number));
        if used && !forced {
            return Event::DeleteFailed {
                number,
                reason: "a session uses it".into(),
            };
        }
        if !forced {
            self.check_deletion(index, number);
        }
        self.ends[index]
            .backend
            .delete(number, index, &mut self.sessions);
        Event::Deleted { number }
    }

    /// From here on, a restart may take the superseded keys away, too.
    fn force(&mut self, end: usize) {
        let before = self.ends[end].core.record().clone();
        self.event(end, Event::Force, None);
        if &before != self.ends[end].core.record() {
            self.forced[end] = self.forced[end].max(self.status(end).active);
        }
    }

    fn reconfigure(&mut self, index: usize) {
        let now = self.clock(index);
        let end = &mut self.ends[index];
        let parameters = match end.parameters.runway {
            1 => other_than_quick(),
            _ => quick(),
        };
        end.parameters = parameters.clone();
        let revision = end.core.revision();
        end.core.reconfigure(parameters, now);
        if end.core.revision() != revision {
            end.save();
        }
    }

    fn observe(&self, index: usize) -> Vec<SessionKeys> {
        self.sessions
            .iter()
            .enumerate()
            .filter_map(|(number, session)| {
                let side = session.as_ref()?.sides[index].as_ref()?;
                Some(side.observed(number))
            })
            .collect()
    }

    pub(crate) fn open(&mut self, index: usize) {
        let Some(session) = Session::open(index, &self.ends[index].backend, self.now) else {
            return;
        };
        match self.sessions.iter().position(Option::is_none) {
            Some(free) => self.sessions[free] = Some(session),
            None => self.sessions.push(Some(session)),
        }
    }

    pub(crate) fn send(&mut self, session: usize, side: usize) {
        if let Some(Some(session)) = self.sessions.get_mut(session) {
            session.send(side, self.now);
        }
    }

    fn arrive(&mut self, session: usize, segment: usize) {
        let Some(Some(session)) = self.sessions.get_mut(session) else {
            return;
        };
        let segment = session.wire.remove(segment);
        session.arrive(&segment, &self.ends[segment.to].backend, self.now);
    }

    /// Stands for the joint state. Secrets do not show in it, so neither does where they come from.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = Hashing(DefaultHasher::new());
        let shown = write!(
            hasher,
            "{:?} {:?} {:?} {:?}",
            self.now, self.ends, self.sessions, self.calls
        );
        shown.unwrap();
        hasher.0.finish()
    }

    /// Whether both ends have a key in use and the next one ready.
    pub(crate) fn has_runway(&self) -> bool {
        (0..2).all(|end| {
            let status = self.status(end);
            status.active.is_some() && status.generations.iter().any(|g| g.ready)
        })
    }

    /// Generations whose keys the end's backend has.
    pub(crate) fn keys(&self, end: usize) -> Vec<u64> {
        let mut numbers: Vec<_> = self.ends[end]
            .backend
            .keys
            .iter()
            .map(|key| key.number)
            .collect();
        numbers.sort_unstable();
        numbers
    }

    pub(crate) fn views(&self) -> String {
        format!("{:#?}\n{:#?}", self.status(0), self.status(1))
    }

    /// What an end in this state tells.
    pub(crate) fn message_of(mut core: Rollover, now: Duration) -> Message {
        let clock = Now {
            steady: now,
            wall: UNIX_EPOCH + Duration::from_secs(2_000_000_000) + now,
        };
        let mut random = Random(0);
        let mut fill = |octets: &mut [u8]| random.fill(octets);
        // Whatever call is under way is over; the next one is due within a heartbeat.
        let reason = String::from("over");
        let mut actions = core.handle(clock, Event::CallFailed { reason }, &mut fill);
        let later = Now {
            steady: now + Duration::from_secs(3600),
            ..clock
        };
        actions.extend(core.handle(later, Event::Tick, &mut fill));
        let called = actions.into_iter().find_map(|action| match action {
            Action::Call(message) => Some(message),
            _ => None,
        });
        called.unwrap()
    }

    /// Both sides of a session say something, twice.
    pub(crate) fn speak(&mut self, session: usize) {
        for side in [0, 1, 0, 1] {
            self.send(session, side);
            self.arrive(session, 0);
        }
    }

    /// Lets everything happen, in order and without faults, until `done` or the deadline.
    pub(crate) fn run(&mut self, until: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        loop {
            let mut steps = 0;
            while let Some(choice) = self.next_orderly() {
                self.apply(choice);
                self.check();
                steps += 1;
                assert!(steps < MOST_STEPS, "the ends never come to rest");
            }
            if done(self) {
                return true;
            }
            if self.now >= until {
                return false;
            }
            for session in 0..self.sessions.len() {
                for side in 0..2 {
                    if self.chatty {
                        self.send(session, side);
                    }
                }
            }
            let next = self.now + Duration::from_secs(1);
            let at = self.next_wake().map_or(next, |at| at.min(next));
            self.pass(at.min(until));
        }
    }

    /// What happens next when nothing goes wrong.
    pub(crate) fn next_orderly(&self) -> Option<Choice> {
        for (index, end) in self.ends.iter().enumerate() {
            if !end.queue.is_empty() {
                return Some(Choice::Act(index));
            }
            if end.core.next_tick().is_some_and(|at| at <= self.now) {
                return Some(Choice::Tick(index));
            }
        }
        let under_way = |call: &Option<Call>| {
            call.as_ref()
                .is_some_and(|call| call.request.is_some() || call.response.is_some())
        };
        if let Some(call) = self.calls.iter().position(under_way) {
            return Some(Choice::Deliver { call, again: false });
        }
        let waiting = |session: &Option<Session>| {
            session
                .as_ref()
                .is_some_and(|session| !session.wire.is_empty())
        };
        let session = self.sessions.iter().position(waiting)?;
        Some(Choice::Arrive {
            session,
            segment: 0,
        })
    }

    pub(crate) fn operate(&mut self, end: usize, operator: Operator) {
        self.apply(Choice::Operate(end, operator));
    }

    pub(crate) fn tell(&mut self, end: usize, event: Event) {
        self.event(end, event, None);
    }
}

impl End {
    fn new(parameters: Parameters, instance: Instance, now: Duration) -> Self {
        let clock = Now {
            steady: now,
            wall: UNIX_EPOCH + Duration::from_secs(2_000_000_000) + now,
        };
        Self {
            core: Rollover::new(parameters.clone(), instance, Record::default(), clock),
            disk: Record::default(),
            instance,
            parameters,
            backend: Backend::default(),
            wall_offset: 0,
            queue: VecDeque::new(),
            epoch: 0,
            dies_unsaved: false,
            stages: BTreeMap::new(),
            refusals: Vec::new(),
            rejections: Vec::new(),
        }
    }

    /// Whether a deletion is among what the core wants done.
    pub(crate) fn asks_deletion(&self) -> bool {
        let deletes = |(action, _): &(Action, _)| matches!(action, Action::Delete { .. });
        self.queue.iter().any(deletes)
    }

    pub(crate) fn next_is_install(&self) -> bool {
        matches!(self.queue.front(), Some((Action::Install { .. }, _)))
    }

    pub(crate) fn next_is_selection(&self) -> bool {
        matches!(self.queue.front(), Some((Action::Select { .. }, _)))
    }

    fn save(&mut self) {
        self.disk = self.core.record().clone();
        self.check_stages();
    }

    fn check_stages(&mut self) {
        let now = Now {
            steady: Duration::ZERO,
            wall: UNIX_EPOCH,
        };
        for g in self.core.status(now).generations {
            let before = self.stages.insert(g.number, g.stage);
            assert!(
                before <= Some(g.stage),
                "generation {} went back from {before:?} to {:?}",
                g.number,
                g.stage
            );
        }
    }
}
