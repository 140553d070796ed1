//! Carries out key chains: as their lifetimes begin and end, keys are installed, selected, retired
//! and deleted on live sessions.
//!
//! A thread of its own looks at all chains when one changes, and every few seconds at the clocks.
//! `watch` has what it looks at besides, and tells.

mod watch;

use std::collections::HashMap;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};
use std::{io, mem};

use ao_engine::policy::Mkt;
use datapath::AbortOnPanic;
use grpc_api::operator::Severity;
use keymgr::backend::{Backend, Removal};
use keymgr::chain::{KeyChain, OnExpiry, Wanted};
use keymgr::clock::ClockWatch;
use keymgr::rollover::Now;

use super::alarms::{Alarms, Subject};
use super::clock::Clock;
use super::events::Events;

/// How often the clocks are compared.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often sessions are looked at for the use of their keys, when nothing else asks for it.
const OBSERVE_EVERY: Duration = Duration::from_secs(30);
/// How soon what failed is tried again, and what is awaited looked at again.
const SOON: Duration = Duration::from_secs(1);
/// How long sessions may take to use a key before an operator is told: a quiet session of the kernel
/// shows it at its next keepalive only.
const OVERDUE: Duration = Duration::from_secs(120);

/// A peer with a key chain.
#[derive(Clone, Debug)]
pub(crate) struct ChainPeer {
    pub(crate) name: Arc<str>,
    pub(crate) chain: Arc<KeyChain>,
}

/// The keys that a peer with a chain is to have now; nothing if it keeps those it has.
pub(super) struct ChainKeys(pub(super) Option<Vec<Arc<Mkt>>>);

/// What another configuration says about a wall clock that may have jumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WallClock {
    /// It is believed from now on: the operator has looked.
    Believed,
    /// Nothing.
    AsBefore,
}

/// How much a key has been used: segments verified, and when they last became more.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Use {
    pub(super) verified: u64,
    pub(super) last: Option<SystemTime>,
}

/// The running thread.
pub(super) struct Chains {
    shared: Arc<Shared>,
    thread: Mutex<Option<Thread>>,
}

struct Thread {
    /// Sent to so that it looks at once, dropped so that it ends.
    wake: Sender<()>,
    handle: JoinHandle<()>,
}

struct Shared {
    backend: Arc<dyn Backend>,
    events: Events,
    alarms: Alarms,
    clock: Clock,
    /// Held while keys are changed, so that a reload and a lifetime do not cross.
    state: Mutex<State>,
}

struct State {
    watch: ClockWatch,
    peers: Vec<Scheduled>,
    /// By peer and RecvID.
    uses: HashMap<(Arc<str>, u8), Use>,
    /// When all sessions were looked at last, on the steady clock.
    looked: Option<Duration>,
}

/// A peer, and what is known to be done for it.
struct Scheduled {
    peer: ChainPeer,
    /// Keys the backend has, the preferred one first.
    held: Vec<Arc<Mkt>>,
    retired: Vec<u8>,
    /// The preferred key, since it was selected and until all sessions use it.
    awaited: Option<(Arc<Mkt>, Duration)>,
    /// Whether it was told that this takes too long.
    overdue: bool,
    /// What its chain does, being over.
    expired: Option<OnExpiry>,
    /// Days before the end of the chain that were warned of last.
    warned: Option<u8>,
    /// Why the last step failed; told once.
    failure: Option<String>,
}

impl Chains {
    /// Starts without peers.
    pub(super) fn start(
        backend: Arc<dyn Backend>,
        events: Events,
        alarms: Alarms,
        clock: Clock,
    ) -> io::Result<Self> {
        let state = State {
            watch: ClockWatch::new(clock.now()),
            peers: Vec::new(),
            uses: HashMap::new(),
            looked: None,
        };
        let shared = Arc::new(Shared {
            backend,
            events,
            alarms,
            clock,
            state: Mutex::new(state),
        });
        let (wake, woken) = mpsc::channel();
        let running = Arc::clone(&shared);
        let handle = thread::Builder::new()
            .name("ao-chains".to_owned())
            .spawn(move || {
                let _abort = AbortOnPanic;
                running.run(&woken);
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(Thread { wake, handle })),
        })
    }

    /// Replaces the chains: `apply` gets the keys that each peer is to have, gives them to the
    /// backend, and may refuse.
    pub(super) fn replace<T, E>(
        &self,
        peers: Vec<ChainPeer>,
        wall_clock: WallClock,
        apply: impl FnOnce(&HashMap<Arc<str>, ChainKeys>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.shared.state();
        let now = self.shared.clock.now();
        let time = match wall_clock {
            WallClock::Believed => now.wall,
            WallClock::AsBefore => state.watch.clone().look(now).0,
        };
        let former: HashMap<Arc<str>, Scheduled> = mem::take(&mut state.peers)
            .into_iter()
            .map(|scheduled| (Arc::clone(&scheduled.peer.name), scheduled))
            .collect();
        let keys = peers.iter().map(|peer| {
            let keys = keys_for(peer, former.get(&peer.name), time);
            (Arc::clone(&peer.name), ChainKeys(keys))
        });
        let mut keys: HashMap<Arc<str>, ChainKeys> = keys.collect();
        let applied = match apply(&keys) {
            Ok(applied) => applied,
            Err(refused) => {
                state.peers = former.into_values().collect();
                return Err(refused);
            }
        };
        if wall_clock == WallClock::Believed {
            state.watch.trust(now);
        }
        self.shared.alarms.retain(|subject| match subject {
            Subject::Chain(name) => keys.get(name).is_some_and(|ChainKeys(keys)| keys.is_none()),
            _ => true,
        });
        state.uses.retain(|(name, _), _| keys.contains_key(name));
        let mut former = former;
        let fresh = peers.into_iter().map(|peer| {
            let keys = keys.remove(&peer.name).and_then(|ChainKeys(keys)| keys);
            match (keys, former.remove(&peer.name)) {
                (None, Some(former)) if former.peer.chain.is_same(&peer.chain) => former,
                // A chain that is over gave the backend no keys: it has those from before.
                (None, Some(former)) => Scheduled::new(peer, former.held),
                (keys, _) => Scheduled::new(peer, keys.unwrap_or_default()),
            }
        });
        state.peers = fresh.collect();
        drop(state);
        if let Some(thread) = &*self.thread() {
            // The thread has ended only if the daemon stops.
            let _ = thread.wake.send(());
        }
        Ok(applied)
    }

    /// What is known of the use of a peer's keys, by RecvID.
    pub(super) fn uses(&self, peer: &str) -> HashMap<u8, Use> {
        let state = self.shared.state();
        let of_peer = state.uses.iter().filter(|((name, _), _)| &**name == peer);
        of_peer.map(|((_, id), used)| (*id, *used)).collect()
    }

    /// The time that chains go by.
    pub(super) fn now(&self) -> SystemTime {
        let mut watch = self.shared.state().watch.clone();
        watch.look(self.shared.clock.now()).0
    }

    /// Ends the thread; keys stay as they are.
    pub(super) fn stop(&self) {
        let thread = self.thread().take();
        if let Some(Thread { wake, handle }) = thread {
            drop(wake);
            let _ = handle.join();
        }
    }

    fn thread(&self) -> MutexGuard<'_, Option<Thread>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, woken: &mpsc::Receiver<()>) {
        loop {
            let pause = self.turn(self.clock.now());
            match woken.recv_timeout(pause) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Does what is due; how long nothing will be.
    fn turn(&self, now: Now) -> Duration {
        let state = &mut *self.state();
        let (trusted, change) = state.watch.look(now);
        if let Some(change) = change {
            self.tell_clock(change);
        }
        let mut next = LOOK_EVERY;
        let wanted: Vec<Wanted> = state
            .peers
            .iter()
            .map(|scheduled| scheduled.peer.chain.at(trusted))
            .collect();
        self.change_keys(&mut state.peers, &wanted, now.steady);
        self.observe(state, now);
        for (scheduled, wanted) in state.peers.iter_mut().zip(&wanted) {
            self.tell_expiry(scheduled, wanted, trusted);
            self.set_alarms(scheduled);
            if scheduled.is_unfinished(wanted) || scheduled.awaited.is_some() {
                next = next.min(SOON);
            }
            let change = wanted.next_change.map(|at| at.duration_since(trusted));
            if let Some(Ok(until)) = change {
                next = next.min(until);
            }
        }
        next
    }

    /// Takes the steps that lead from what is held to what is wanted: each for all peers at once.
    fn change_keys(&self, peers: &mut [Scheduled], wanted: &[Wanted], steady: Duration) {
        self.make_room(peers, wanted);
        self.install(peers, wanted);
        self.select(peers, wanted, steady);
        self.retire(peers, wanted);
        self.delete(peers, wanted);
    }

    /// Deletes keys that are over and whose IDs a key to be installed has.
    fn make_room(&self, peers: &mut [Scheduled], wanted: &[Wanted]) {
        let in_the_way = |key: &Mkt, wanted: &Wanted| {
            let takes = |new: &Arc<Mkt>| new.send_id == key.send_id || new.recv_id == key.recv_id;
            wanted.keys.iter().any(takes)
        };
        self.delete_where(peers, wanted, in_the_way);
        for (scheduled, wanted) in peers.iter_mut().zip(wanted) {
            let holds_none = !wanted.keys.iter().any(|mkt| scheduled.holds(mkt));
            let last = scheduled.held.first();
            // After a gap the chain goes on with the IDs of the key it ended with: no session can
            // have both.
            if holds_none && last.is_some_and(|last| in_the_way(last, wanted)) {
                self.close(scheduled);
            }
        }
    }

    fn install(&self, peers: &mut [Scheduled], wanted: &[Wanted]) {
        let mut keys = Vec::new();
        let mut of = Vec::new();
        for (place, (scheduled, wanted)) in peers.iter().zip(wanted).enumerate() {
            for mkt in wanted.keys.iter().filter(|mkt| !scheduled.holds(mkt)) {
                keys.push((Arc::clone(&scheduled.peer.name), Arc::clone(mkt)));
                of.push(place);
            }
        }
        if keys.is_empty() {
            return;
        }
        let results = self.backend.install(&keys);
        for ((place, (_, mkt)), result) in of.into_iter().zip(keys).zip(results) {
            let Some(scheduled) = peers.get_mut(place) else {
                continue;
            };
            if self.note(scheduled, result, &not_yet(mkt.send_id, "installed")) {
                let message = format!("key with send_id {} installed", mkt.send_id);
                self.tell(scheduled, "chain-key-installed", Severity::Info, message);
                scheduled.held.push(mkt);
            }
        }
    }

    fn select(&self, peers: &mut [Scheduled], wanted: &[Wanted], steady: Duration) {
        let due = |(scheduled, wanted): &(&mut Scheduled, &Wanted)| {
            let preferred = wanted.keys.first();
            preferred.is_some_and(|mkt| scheduled.holds(mkt) && !scheduled.prefers(mkt))
        };
        let due: Vec<_> = peers.iter_mut().zip(wanted).filter(due).collect();
        let keys: Vec<_> = due
            .iter()
            .filter_map(|(scheduled, wanted)| {
                Some((
                    Arc::clone(&scheduled.peer.name),
                    wanted.keys.first()?.send_id,
                ))
            })
            .collect();
        if keys.is_empty() {
            return;
        }
        let results = self.backend.select(&keys);
        for ((scheduled, wanted), result) in due.into_iter().zip(results) {
            let Some(mkt) = wanted.keys.first() else {
                continue;
            };
            if self.note(scheduled, result, &not_yet(mkt.send_id, "selected")) {
                let message = format!(
                    "key with send_id {} selected: its time has come",
                    mkt.send_id
                );
                self.tell(scheduled, "chain-key-selected", Severity::Info, message);
                scheduled.prefer(mkt);
                scheduled.awaited = Some((Arc::clone(mkt), steady));
                scheduled.overdue = false;
            }
        }
    }

    fn retire(&self, peers: &mut [Scheduled], wanted: &[Wanted]) {
        let mut keys = Vec::new();
        let mut of = Vec::new();
        for (place, (scheduled, wanted)) in peers.iter().zip(wanted).enumerate() {
            for id in wanted
                .retired
                .iter()
                .filter(|id| !scheduled.retired.contains(id))
            {
                // The last key of a chain is all there is.
                if scheduled
                    .held
                    .first()
                    .is_some_and(|first| first.send_id != *id)
                {
                    keys.push((Arc::clone(&scheduled.peer.name), *id));
                    of.push(place);
                }
            }
        }
        if keys.is_empty() {
            return;
        }
        let results = self.backend.retire(&keys);
        for ((place, (_, send_id)), result) in of.into_iter().zip(keys).zip(results) {
            let Some(scheduled) = peers.get_mut(place) else {
                continue;
            };
            if self.note(scheduled, result, &not_yet(send_id, "retired")) {
                scheduled.retired.push(send_id);
            }
        }
    }

    fn delete(&self, peers: &mut [Scheduled], wanted: &[Wanted]) {
        for (scheduled, wanted) in peers.iter_mut().zip(wanted) {
            if wanted.keys.is_empty() && !scheduled.held.is_empty() {
                self.close(scheduled);
            }
        }
        self.delete_where(peers, wanted, |_, _| true);
    }

    /// A chain that is over and whose sessions are to end with it.
    fn close(&self, scheduled: &mut Scheduled) {
        let removal = |key: &Arc<Mkt>| Removal {
            peer: Arc::clone(&scheduled.peer.name),
            send_id: key.send_id,
            forced: true,
        };
        let all: Vec<Removal> = scheduled.held.iter().map(removal).collect();
        // Keys first: no session comes up between. A session of the kernel holds on to its last
        // one until it is closed, so that it takes a second time.
        let _ = self.backend.delete(&all);
        let closed = self.backend.close(&scheduled.peer.name);
        let mut results = self.backend.delete(&all);
        results.push(closed);
        let failed = results.into_iter().find(Result::is_err);
        if self.note(
            scheduled,
            failed.unwrap_or(Ok(())),
            "the chain is over, and its keys are not gone yet",
        ) {
            scheduled.held.clear();
            scheduled.retired.clear();
            scheduled.awaited = None;
        }
    }

    /// Deletes the held keys that are not wanted and that `is_due` chooses.
    fn delete_where(
        &self,
        peers: &mut [Scheduled],
        wanted: &[Wanted],
        is_due: impl Fn(&Mkt, &Wanted) -> bool,
    ) {
        let mut keys = Vec::new();
        let mut of = Vec::new();
        for (place, (scheduled, wanted)) in peers.iter().zip(wanted).enumerate() {
            let stays = |key: &Arc<Mkt>| wanted.keys.iter().any(|mkt| Arc::ptr_eq(mkt, key));
            // The first key is never deleted before another one has been selected.
            let others = scheduled.held.iter().skip(1);
            for key in others.filter(|key| !stays(key) && is_due(key, wanted)) {
                keys.push(Removal {
                    peer: Arc::clone(&scheduled.peer.name),
                    send_id: key.send_id,
                    forced: true,
                });
                of.push((place, Arc::clone(key)));
            }
        }
        if keys.is_empty() {
            return;
        }
        let results = self.backend.delete(&keys);
        for ((place, key), result) in of.into_iter().zip(results) {
            let Some(scheduled) = peers.get_mut(place) else {
                continue;
            };
            if self.note(scheduled, result, &not_yet(key.send_id, "deleted")) {
                let message = format!("key with send_id {} deleted: its time is over", key.send_id);
                self.tell(scheduled, "chain-key-deleted", Severity::Info, message);
                scheduled.forget(&key);
            }
        }
    }

    /// Whether a step was taken. Why it was not is told once.
    fn note(&self, scheduled: &mut Scheduled, result: Result<(), String>, what: &str) -> bool {
        let Err(reason) = result else {
            scheduled.failure = None;
            return true;
        };
        let failure = format!("{what}: {reason}");
        if scheduled.failure.as_ref() != Some(&failure) {
            self.tell(
                scheduled,
                "backend-failed",
                Severity::Alarm,
                failure.clone(),
            );
            scheduled.failure = Some(failure);
        }
        false
    }

    fn tell(&self, of: &Scheduled, kind: &'static str, severity: Severity, message: String) {
        self.events
            .tell(Some(&of.peer.name), kind, severity, message);
    }
}

impl Scheduled {
    fn new(peer: ChainPeer, held: Vec<Arc<Mkt>>) -> Self {
        Self {
            peer,
            held,
            retired: Vec::new(),
            awaited: None,
            overdue: false,
            expired: None,
            warned: None,
            failure: None,
        }
    }

    fn holds(&self, mkt: &Arc<Mkt>) -> bool {
        self.held.iter().any(|held| Arc::ptr_eq(held, mkt))
    }

    fn prefers(&self, mkt: &Arc<Mkt>) -> bool {
        self.held.first().is_some_and(|held| Arc::ptr_eq(held, mkt))
    }

    fn prefer(&mut self, mkt: &Arc<Mkt>) {
        self.held.retain(|held| !Arc::ptr_eq(held, mkt));
        self.held.insert(0, Arc::clone(mkt));
    }

    fn forget(&mut self, mkt: &Arc<Mkt>) {
        self.held.retain(|held| !Arc::ptr_eq(held, mkt));
        self.retired.retain(|&id| id != mkt.send_id);
    }

    /// Whether something wanted is not there, or something there is not wanted.
    fn is_unfinished(&self, wanted: &Wanted) -> bool {
        self.held.len() != wanted.keys.len()
            || !wanted.keys.iter().all(|mkt| self.holds(mkt))
            || wanted.keys.first().is_some_and(|mkt| !self.prefers(mkt))
    }
}

/// The keys that a peer is to have at once; nothing if it keeps those it has: the same chain goes on
/// as it was, and when a chain is over, what it had is taken away in order.
fn keys_for(
    peer: &ChainPeer,
    former: Option<&Scheduled>,
    now: SystemTime,
) -> Option<Vec<Arc<Mkt>>> {
    if former.is_some_and(|former| former.peer.chain.is_same(&peer.chain)) {
        return None;
    }
    let keys = peer.chain.at(now).keys;
    (former.is_none() || !keys.is_empty()).then_some(keys)
}

fn not_yet(send_id: u8, step: &str) -> String {
    format!("the key with send_id {send_id} is not {step} yet")
}

#[cfg(test)]
mod tests;
