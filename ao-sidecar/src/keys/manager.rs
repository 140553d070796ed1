//! Drives the automatic peers: takes what happens to their state machines, puts the outcome on
//! disk, and only then does what they ask for.
//!
//! One task owns all peers. In each turn it takes everything that has come in and every deadline
//! that has passed, saves all records that changed in one transaction, and carries out all
//! actions: one job for the backend, one call to each peer that is to be told.

mod handle;
mod reconfigure;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use grpc_api::operator::Severity;
use keymgr::backend::{Backend, Removal};
use keymgr::rollover::message::Message;
use keymgr::rollover::{Action, Event, Now, Record, Rollover, Step};
use keymgr::store::{Entry, Store};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info};

use self::handle::Input;
pub(super) use self::handle::{
    Command, Course, Handle, Named, NoAnswer, Plan, Planned, Reply, View,
};
use self::reconfigure::Hold;
use super::alarms::{Alarms, Subject};
use super::clock::Clock;
use super::events::{Events, trigger};
use super::job::Job;

/// Calls to peers under way at once; each is a TLS connection.
const CALLS_AT_ONCE: usize = 32;
/// Of these, calls to peers that could not be reached the last time: they take long, and must not
/// keep the others waiting.
const DOUBTFUL_CALLS_AT_ONCE: usize = 8;
/// How long to wait before a store that could not be written is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(1);
/// Longest time that is left for more inputs after a save.
const LONGEST_REST: Duration = Duration::from_millis(200);
/// How often nobody is looked at.
const LOOK_WITHOUT_PEERS: Duration = Duration::from_secs(60);
/// Inputs that may wait; then callers do.
const INBOX: usize = 1024;

/// A call to the far end's sidecar that is under way.
pub(super) type Call = Pin<Box<dyn Future<Output = Result<Message, String>> + Send>>;

/// What talks to the far ends.
pub(super) trait Caller: Send + Sync + 'static {
    /// Sends a message to the sidecar of `peer` and waits for its own.
    fn call(self: Arc<Self>, peer: Named, message: Message) -> Call;
}

/// Steps of one turn, to be carried out once the records are on disk.
#[derive(Default)]
struct Work {
    job: Job,
    calls: Vec<(Arc<str>, Message)>,
    replies: Vec<(Reply<Message, NoAnswer>, Result<Message, NoAnswer>)>,
    answers: Vec<(Reply<()>, Result<(), String>)>,
    steps: Vec<(Arc<str>, Step)>,
}

/// What one turn puts on disk.
struct Saving {
    records: Vec<(Arc<str>, Record)>,
    /// Peers whose records are destroyed.
    gone: Vec<Arc<str>>,
}

/// The task's state.
pub(super) struct Manager<B, C> {
    peers: BTreeMap<Arc<str>, Peer>,
    /// Peers whose records are still on disk and must not be.
    gone: BTreeSet<Arc<str>>,
    store: Arc<Mutex<Store>>,
    backend: Arc<B>,
    caller: Arc<C>,
    events: Events,
    alarms: Alarms,
    clock: Clock,
    inbox: mpsc::Receiver<Input>,
    /// For tasks that report back. Weak, so that they do not keep the manager alive.
    outbox: mpsc::WeakSender<Input>,
    calls: Arc<Semaphore>,
    doubtful_calls: Arc<Semaphore>,
    /// The backend does one job at a time; what is asked for meanwhile is the next one.
    busy: bool,
    next_job: Job,
    hold: Option<Hold>,
    holds: u64,
    /// How often all sessions are looked at, to notice that a far end has moved on by itself.
    look_every: Duration,
    next_look: Duration,
    /// Until then the next turn waits for more inputs.
    rest_until: Instant,
}

struct Peer {
    core: Rollover,
    incarnation: u64,
    /// Revision of its record on disk.
    saved: Option<u64>,
    /// Since when and why calls fail.
    failing: Option<(SystemTime, String)>,
    /// Why the generation in use was selected.
    cause: Option<&'static str>,
    /// When the last change of keys was completed, how long it took, and why it was begun.
    last: Option<(SystemTime, Duration, &'static str)>,
}

impl<B: Backend, C: Caller> Manager<B, C> {
    /// A task without peers: they come with a [`Plan`].
    pub(super) fn new(
        store: Store,
        backend: Arc<B>,
        caller: Arc<C>,
        events: Events,
        alarms: Alarms,
        clock: Clock,
    ) -> (Self, Handle) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let manager = Self {
            peers: BTreeMap::new(),
            gone: BTreeSet::new(),
            store: Arc::new(Mutex::new(store)),
            backend,
            caller,
            events,
            alarms,
            clock,
            inbox,
            outbox: sender.downgrade(),
            calls: Arc::new(Semaphore::new(CALLS_AT_ONCE - DOUBTFUL_CALLS_AT_ONCE)),
            doubtful_calls: Arc::new(Semaphore::new(DOUBTFUL_CALLS_AT_ONCE)),
            busy: false,
            next_job: Job::default(),
            hold: None,
            holds: 0,
            look_every: LOOK_WITHOUT_PEERS,
            next_look: Duration::ZERO,
            rest_until: Instant::now(),
        };
        (manager, Handle(sender))
    }

    /// Runs until the last handle is gone.
    pub(super) async fn run(mut self) {
        let mut inputs = VecDeque::new();
        while self.wait(&mut inputs).await {
            let now = self.clock.now();
            let mut work = Work::default();
            for input in inputs.drain(..) {
                self.take(now, input, &mut work);
            }
            self.let_time_pass(now, &mut work);
            if !self.save(&mut inputs).await {
                return;
            }
            self.carry_out(work);
        }
    }

    /// Waits for inputs, or until a deadline has passed. False when nobody is left to ask.
    async fn wait(&mut self, inputs: &mut VecDeque<Input>) -> bool {
        let deadline = self.deadline();
        tokio::select! {
            biased;
            input = self.inbox.recv() => match input {
                Some(input) => inputs.push_back(input),
                None => return false,
            },
            () = sleep_until(deadline) => {}
        }
        sleep_until(self.rest_until).await;
        while let Ok(input) = self.inbox.try_recv() {
            inputs.push_back(input);
        }
        true
    }

    fn deadline(&self) -> Instant {
        let ticks = self.peers.values().filter_map(|peer| peer.core.next_tick());
        let first = ticks.min().unwrap_or(self.next_look).min(self.next_look);
        Instant::now() + first.saturating_sub(self.clock.now().steady)
    }

    fn take(&mut self, now: Now, input: Input, work: &mut Work) {
        match input {
            Input::Request {
                peer,
                message,
                reply,
            } => {
                let given = match self.is_present(&peer) {
                    true => self.handle(now, &peer.name, Event::Request { message }, work),
                    false => Given::default(),
                };
                let answer = given.reply.unwrap_or(Err(NoAnswer::NotNow));
                work.replies.push((reply, answer));
            }
            // What a former far end says is nothing to the present one's state.
            Input::Response { peer, .. } if !self.is_present(&peer) => {}
            Input::Response { peer, result } => {
                let peer = peer.name;
                self.note_call(now, &peer, result.as_ref().err());
                let event = match result {
                    Ok(message) => Event::Response { message },
                    Err(reason) => Event::CallFailed { reason },
                };
                self.handle(now, &peer, event, work);
            }
            Input::Done(events) => {
                self.busy = false;
                for (peer, event) in events {
                    self.handle(now, &peer, event, work);
                }
            }
            Input::Operator {
                peer,
                command,
                reply,
            } => {
                let event = match command {
                    Command::Start { compromised } => Event::Start { compromised },
                    Command::Abort => Event::Abort,
                    Command::Force => Event::Force,
                };
                let given = self.handle(now, &peer, event, work);
                work.answers
                    .push((reply, given.refused.map_or(Ok(()), Err)));
            }
            Input::Status { peer, reply } => {
                // Who asked may have gone.
                let _ = reply.send(self.status(peer.as_ref()));
            }
            Input::Hold { ready, plan } => self.hold(ready, plan),
            Input::Release { number, plan } => {
                if self.hold.as_ref().is_none_or(|hold| hold.number != number) {
                    return;
                }
                self.hold = None;
                if let Some((plan, done)) = plan {
                    self.reconfigure(now, plan);
                    work.answers.push((done, Ok(())));
                }
            }
        }
    }

    /// Lets one state machine take an event, and sorts what it asks for.
    fn handle(&mut self, now: Now, name: &Arc<str>, event: Event, work: &mut Work) -> Given {
        let mut given = Given::default();
        let Some(peer) = self.peers.get_mut(name) else {
            return given;
        };
        let mut alarmed = false;
        for action in peer.core.handle(now, event, &mut random) {
            match action {
                Action::Install { number, mkt } => {
                    work.job.install.push((Arc::clone(name), number, mkt));
                }
                Action::Select { number, send_id } => {
                    work.job.select.push((Arc::clone(name), number, send_id));
                }
                Action::Delete {
                    number,
                    send_id,
                    forced,
                } => {
                    let peer = Arc::clone(name);
                    let removal = Removal {
                        peer,
                        send_id,
                        forced,
                    };
                    work.job.delete.push((number, removal));
                }
                Action::Observe { nudge } => {
                    work.job.observe.push(Arc::clone(name));
                    if nudge {
                        work.job.nudge.push(Arc::clone(name));
                    }
                }
                Action::Call(message) => work.calls.push((Arc::clone(name), message)),
                Action::Reply(message) => given.reply = Some(Ok(message)),
                Action::Reject(reason) => given.reply = Some(Err(NoAnswer::Rejected(reason))),
                Action::Refused(reason) => given.refused = Some(reason),
                Action::Tell(step) => {
                    alarmed |= matches!(step, Step::Raised(_) | Step::Cleared(_));
                    peer.note_step(now, &step);
                    work.steps.push((Arc::clone(name), step));
                }
            }
        }
        if alarmed {
            let texts = peer.core.alarms().iter().map(ToString::to_string);
            self.alarms
                .set(Subject::Rollover(Arc::clone(name)), texts.collect());
        }
        given
    }

    /// Keeps why calls to a peer fail, and tells when they begin to, for which reason, and when
    /// they work again: the alarm comes much later.
    fn note_call(&mut self, now: Now, name: &Arc<str>, failure: Option<&String>) {
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let before = peer.failing.take();
        peer.failing = failure.map(|reason| {
            let since = before.as_ref().map_or(now.wall, |(since, _)| *since);
            (since, reason.clone())
        });
        match (failure, before) {
            (Some(reason), before) if before.as_ref().is_none_or(|(_, told)| told != reason) => {
                let message = format!("the peer's sidecar cannot be asked: {reason}");
                self.events
                    .tell(Some(name), "call-failed", Severity::Warning, message);
            }
            (None, Some(_)) => {
                let message = "the peer's sidecar answers again".to_owned();
                self.events
                    .tell(Some(name), "call-works", Severity::Info, message);
            }
            _ => {}
        }
    }

    fn let_time_pass(&mut self, now: Now, work: &mut Work) {
        let is_due = |peer: &Peer| peer.core.next_tick().is_some_and(|tick| tick <= now.steady);
        let due = self.peers.iter().filter(|(_, peer)| is_due(peer));
        let due: Vec<Arc<str>> = due.map(|(name, _)| Arc::clone(name)).collect();
        for name in due {
            self.handle(now, &name, Event::Tick, work);
        }
        if now.steady >= self.next_look {
            work.job.observe = self.peers.keys().cloned().collect();
            self.next_look = now.steady + self.look_every;
        }
    }

    /// Puts every record that has changed on disk. Nothing else happens until that has worked: a
    /// step that was forgotten in a crash must not have been seen by anybody. What comes in
    /// meanwhile is put off. False when nobody is left to ask.
    async fn save(&mut self, put_off: &mut VecDeque<Input>) -> bool {
        let changed = self.peers.iter().filter(|(_, peer)| !peer.is_saved());
        let records: Vec<_> = changed
            .map(|(name, peer)| (Arc::clone(name), peer.core.record().clone()))
            .collect();
        if records.is_empty() && self.gone.is_empty() {
            return true;
        }
        let gone: Vec<Arc<str>> = std::mem::take(&mut self.gone).into_iter().collect();
        let saving = Arc::new(Saving { records, gone });
        let mut failed = false;
        while let Err(problem) = self.try_save(&saving).await {
            if !failed {
                self.events.store_failed(&problem);
                let text = format!("the key store cannot be written: {problem}");
                self.alarms.set(Subject::Store, vec![text]);
            }
            failed = true;
            if !self.hold_out(&problem, put_off).await {
                return false;
            }
        }
        if failed {
            self.events.store_works();
            self.alarms.set(Subject::Store, Vec::new());
        }
        for peer in self.peers.values_mut() {
            peer.saved = Some(peer.core.revision());
        }
        for peer in &saving.gone {
            info!(%peer, "not automatic any more: its stored keys are destroyed");
        }
        true
    }

    /// Passes the time until the store is tried again: operators learn how things are, nobody
    /// changes them.
    async fn hold_out(&mut self, problem: &str, put_off: &mut VecDeque<Input>) -> bool {
        let again = Instant::now() + SAVE_AGAIN;
        let refusal = || format!("the key store cannot be written: {problem}");
        loop {
            let input = tokio::select! {
                () = sleep_until(again) => return true,
                input = self.inbox.recv() => input,
            };
            match input {
                None => return false,
                Some(Input::Status { peer, reply }) => {
                    let _ = reply.send(self.status(peer.as_ref()));
                }
                Some(Input::Request { reply, .. }) => {
                    let _ = reply.send(Err(NoAnswer::NotNow));
                }
                Some(Input::Operator { reply, .. } | Input::Hold { ready: reply, .. }) => {
                    let _ = reply.send(Err(refusal()));
                }
                Some(other) => put_off.push_back(other),
            }
        }
    }

    fn status(&self, wanted: Option<&Arc<str>>) -> Vec<(Arc<str>, View)> {
        let now = self.clock.now();
        let is_wanted = |name: &Arc<str>| wanted.is_none_or(|wanted| wanted == name);
        let all = self.peers.iter().filter(|(name, _)| is_wanted(name));
        let view = |peer: &Peer| View {
            status: peer.core.status(now),
            failing: peer.failing.clone(),
            last: peer.last,
        };
        all.map(|(name, peer)| (Arc::clone(name), view(peer)))
            .collect()
    }

    /// Saving costs nearly the same for one peer and for all, so that it gets half of the time at
    /// most: what comes in meanwhile is saved together.
    async fn try_save(&mut self, saving: &Arc<Saving>) -> Result<(), String> {
        let began = Instant::now();
        let (store, saving) = (Arc::clone(&self.store), Arc::clone(saving));
        let saved = spawn_blocking(move || {
            let Saving { records, gone } = &*saving;
            let gone: Vec<&str> = gone.iter().map(|name| &**name).collect();
            let metas: Vec<Vec<u8>> = records.iter().map(|(_, record)| record.to_meta()).collect();
            let entries: Vec<Entry<'_>> = records
                .iter()
                .zip(&metas)
                .map(|((peer, record), meta)| Entry {
                    peer,
                    meta,
                    secrets: record.secrets().collect(),
                })
                .collect();
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            store.update(&entries, &gone)
        });
        let saved = saved.await;
        self.rest_until = Instant::now() + began.elapsed().min(LONGEST_REST);
        match saved {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(broken) => Err(broken.to_string()),
        }
    }

    fn carry_out(&mut self, work: Work) {
        for (peer, step) in &work.steps {
            self.events.step(peer, step);
        }
        // Whoever asked may have gone.
        for (reply, answer) in work.replies {
            let _ = reply.send(answer);
        }
        for (reply, answer) in work.answers {
            let _ = reply.send(answer);
        }
        for (peer, message) in work.calls {
            self.call(peer, message);
        }
        self.next_job.append(work.job);
        if self.busy {
            return;
        }
        match &mut self.hold {
            Some(hold) => {
                if let Some(ready) = hold.ready.take() {
                    let _ = ready.send(Ok(()));
                }
            }
            None if self.next_job.is_empty() => {}
            None => self.start_job(),
        }
    }

    fn call(&self, name: Arc<str>, message: Message) {
        let Some(known) = self.peers.get(&name) else {
            return;
        };
        let calls = match known.failing.is_some() {
            true => Arc::clone(&self.doubtful_calls),
            false => Arc::clone(&self.calls),
        };
        let peer = Named {
            name,
            incarnation: known.incarnation,
        };
        let (caller, outbox) = (Arc::clone(&self.caller), self.outbox.clone());
        tokio::spawn(async move {
            let Ok(_permit) = calls.acquire().await else {
                return;
            };
            // Made only now: a call takes much more memory than its message. In a task of its own,
            // because every call has to end, even in a panic.
            let call = tokio::spawn(caller.call(peer.clone(), message));
            let result = call.await.unwrap_or_else(|broken| {
                error!(%broken, "internal error: a call broke off");
                Err("the call broke off".to_owned())
            });
            if let Some(outbox) = outbox.upgrade() {
                let _ = outbox.send(Input::Response { peer, result }).await;
            }
        });
    }

    fn start_job(&mut self) {
        self.busy = true;
        let job = std::mem::take(&mut self.next_job);
        let (backend, outbox) = (Arc::clone(&self.backend), self.outbox.clone());
        let if_broken = job.broken();
        tokio::spawn(async move {
            let done = spawn_blocking(move || job.run(&*backend)).await;
            let events = done.unwrap_or_else(|broken| {
                error!(%broken, "internal error: a change of keys broke off");
                if_broken
            });
            if let Some(outbox) = outbox.upgrade() {
                let _ = outbox.send(Input::Done(events)).await;
            }
        });
    }
}

impl Peer {
    fn new(core: Rollover, incarnation: u64) -> Self {
        Self {
            core,
            incarnation,
            saved: None,
            failing: None,
            cause: None,
            last: None,
        }
    }

    fn is_saved(&self) -> bool {
        self.saved == Some(self.core.revision())
    }

    fn note_step(&mut self, now: Now, step: &Step) {
        match step {
            Step::Selected { cause, .. } => self.cause = Some(trigger(*cause)),
            Step::Proven { took, .. } => {
                self.last = self.cause.take().map(|trigger| (now.wall, *took, trigger));
            }
            _ => {}
        }
    }
}

/// Answers among the actions.
#[derive(Default)]
struct Given {
    reply: Option<Result<Message, NoAnswer>>,
    refused: Option<String>,
}

/// Random octets of the system.
fn random(octets: &mut [u8]) {
    // Linux's getrandom(2) does not fail once the system is up; without it no key may be made.
    if let Err(failure) = getrandom::fill(octets) {
        error!(%failure, "no random numbers: no key can be made");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests;
