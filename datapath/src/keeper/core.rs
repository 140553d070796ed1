//! What a keeper decides: pure, time and events come in, actions go out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::protocol::{Call, PeerRange};

/// How long a call may wait for the sidecar. A daemon with one thread does nothing else meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Ask the sidecar about the call of this notification.
    Ask(u64),
    /// The call goes on.
    Proceed(u64),
    /// The call fails.
    Refuse(u64, i32),
    /// Tell the operator that this peer cannot be reached for want of a sidecar.
    Warn(SocketAddr),
}

/// How the sidecar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sidecar {
    Absent,
    /// It is there and answers.
    Ready,
    /// It left a call unanswered; nothing was heard of it since.
    Silent,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    call: Call,
    deadline: Instant,
}

/// A keeper's state.
#[derive(Debug)]
pub(super) struct Core {
    sidecar: Sidecar,
    /// Configured peers by the latest complete list; kept while there is no sidecar.
    peers: Vec<PeerRange>,
    /// A list of which the end has not come yet.
    coming: Vec<PeerRange>,
    pending: BTreeMap<u64, Pending>,
}

impl Core {
    pub(super) fn new() -> Self {
        Self {
            sidecar: Sidecar::Absent,
            peers: Vec::new(),
            coming: Vec::new(),
            pending: BTreeMap::new(),
        }
    }

    /// Whether some connection to this address is a configured peer's.
    pub(super) fn concerns(&self, remote: IpAddr) -> bool {
        let remote = remote.to_canonical();
        self.peers.iter().any(|range| range.remote.contains(remote))
    }

    /// Whether a connection to `remote` is a configured peer's.
    pub(super) fn is_peer(&self, remote: SocketAddr, local_port: u16) -> bool {
        self.peers
            .iter()
            .any(|range| range.covers(remote, local_port))
    }

    /// A daemon waits in `call`, which is a listen or a connect to a configured peer.
    pub(super) fn call(&mut self, now: Instant, id: u64, call: Call) -> Vec<Action> {
        if self.sidecar == Sidecar::Ready {
            let deadline = now + PATIENCE;
            self.pending.insert(id, Pending { call, deadline });
            vec![Action::Ask(id)]
        } else {
            alone(id, call)
        }
    }

    /// The sidecar has decided. A call that no longer waits is none of our business.
    pub(super) fn verdict(&mut self, id: u64, errno: Option<i32>) -> Vec<Action> {
        self.heard();
        let known = self.pending.remove(&id);
        let action = errno.map_or(Action::Proceed(id), |errno| Action::Refuse(id, errno));
        known.map(|_| action).into_iter().collect()
    }

    /// The sidecar has sent part of a list of peers.
    pub(super) fn peers(&mut self, first: bool, last: bool, part: Vec<PeerRange>) {
        self.heard();
        if first {
            self.coming.clear();
        }
        self.coming.extend(part);
        if last {
            self.peers = std::mem::take(&mut self.coming);
            self.sidecar = Sidecar::Ready;
        }
    }

    /// The connection to the sidecar is gone.
    pub(super) fn lost(&mut self) -> Vec<Action> {
        self.sidecar = Sidecar::Absent;
        self.coming.clear();
        std::mem::take(&mut self.pending)
            .into_iter()
            .flat_map(|(id, pending)| alone(id, pending.call))
            .collect()
    }

    /// Decides what has waited too long.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Action> {
        let late: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline <= now)
            .map(|(&id, _)| id)
            .collect();
        if !late.is_empty() {
            // Others would wait in vain, one after the other. Its late answer brings it back.
            self.sidecar = Sidecar::Silent;
        }
        late.into_iter()
            .filter_map(|id| Some((id, self.pending.remove(&id)?.call)))
            .flat_map(|(id, call)| alone(id, call))
            .collect()
    }

    /// When [`tick`](Self::tick) will have something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.deadline).min()
    }

    fn heard(&mut self) {
        if self.sidecar == Sidecar::Silent {
            self.sidecar = Sidecar::Ready;
        }
    }
}

/// What becomes of a call that no sidecar decides. A listener without keys may open: the guard
/// and the kernel keep unsigned segments from it, and the sidecar will find it.
fn alone(id: u64, call: Call) -> Vec<Action> {
    match call {
        Call::Listen => vec![Action::Proceed(id)],
        Call::Connect { remote } => {
            vec![Action::Refuse(id, libc::EHOSTUNREACH), Action::Warn(remote)]
        }
    }
}

#[cfg(test)]
mod tests {
    use ao_engine::policy::Prefix;
    use proptest::prelude::*;

    use super::*;

    fn connect() -> Call {
        Call::Connect {
            remote: "10.0.0.2:179".parse().unwrap(),
        }
    }

    fn ranges() -> Vec<PeerRange> {
        vec![PeerRange {
            remote: Prefix::host("10.0.0.2".parse().unwrap()),
            first_port: 179,
            last_port: 179,
        }]
    }

    fn ready() -> Core {
        let mut core = Core::new();
        core.peers(true, true, ranges());
        core
    }

    fn refused(id: u64) -> Vec<Action> {
        alone(id, connect())
    }

    #[test]
    fn a_call_waits_for_the_verdict() {
        let (mut core, now) = (ready(), Instant::now());
        assert_eq!(core.call(now, 1, connect()), [Action::Ask(1)]);
        assert_eq!(core.tick(now + PATIENCE / 2), []);
        assert_eq!(core.verdict(1, None), [Action::Proceed(1)]);
        assert_eq!(core.verdict(1, None), []);
        assert_eq!(core.call(now, 2, Call::Listen), [Action::Ask(2)]);
        assert_eq!(core.verdict(2, Some(1)), [Action::Refuse(2, 1)]);
        assert_eq!(core.next_deadline(), None);
    }

    #[test]
    fn without_a_sidecar_peers_are_unreachable_and_listeners_open() {
        let (mut core, now) = (Core::new(), Instant::now());
        assert_eq!(core.call(now, 1, connect()), refused(1));
        assert_eq!(core.call(now, 2, Call::Listen), [Action::Proceed(2)]);
    }

    #[test]
    fn a_lost_sidecar_decides_nothing_and_its_peers_stay_known() {
        let (mut core, now) = (ready(), Instant::now());
        core.call(now, 1, connect());
        core.call(now, 2, Call::Listen);
        let actions = core.lost();
        assert_eq!(actions, [refused(1), vec![Action::Proceed(2)]].concat());
        assert!(core.is_peer("10.0.0.2:179".parse().unwrap(), 0));
        assert_eq!(core.call(now, 3, connect()), refused(3));
        // Half a list makes no sidecar ready.
        core.peers(true, false, vec![]);
        assert_eq!(core.call(now, 4, connect()), refused(4));
        core.peers(false, true, ranges());
        assert_eq!(core.call(now, 5, connect()), [Action::Ask(5)]);
    }

    #[test]
    fn a_silent_sidecar_costs_one_wait_until_it_is_heard_again() {
        let (mut core, now) = (ready(), Instant::now());
        core.call(now, 1, connect());
        assert_eq!(core.tick(now + PATIENCE), refused(1));
        assert_eq!(core.call(now + PATIENCE, 2, connect()), refused(2));
        // The late verdict changes nothing but that.
        assert_eq!(core.verdict(1, None), []);
        assert_eq!(core.call(now + PATIENCE, 3, connect()), [Action::Ask(3)]);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Call(bool),
        Verdict(u64, Option<i32>),
        Peers,
        Lost,
        Wait(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<bool>().prop_map(Event::Call),
            (0..20_u64, proptest::option::of(1..5_i32))
                .prop_map(|(id, errno)| Event::Verdict(id, errno)),
            Just(Event::Peers),
            Just(Event::Lost),
            (0..300_u64).prop_map(Event::Wait),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: each call is decided exactly once, within the
        /// patience, and a connection proceeds only by the sidecar's word.
        #[test]
        fn every_call_is_decided_once_and_in_time(events in prop::collection::vec(event(), 0..60)) {
            let mut core = Core::new();
            let mut now = Instant::now();
            let mut waiting: BTreeMap<u64, (Instant, bool)> = BTreeMap::new();
            let mut next = 0;
            for event in events {
                let mut allowed = None;
                let actions = match event {
                    Event::Call(connects) => {
                        next += 1;
                        waiting.insert(next, (now, connects));
                        let call = if connects { connect() } else { Call::Listen };
                        core.call(now, next, call)
                    }
                    Event::Verdict(id, errno) => {
                        allowed = errno.is_none().then_some(id);
                        core.verdict(id, errno)
                    }
                    Event::Peers => {
                        core.peers(true, true, ranges());
                        vec![]
                    }
                    Event::Lost => core.lost(),
                    Event::Wait(milliseconds) => {
                        // As the event loop does it: a deadline is never slept through.
                        let end = now + Duration::from_millis(milliseconds);
                        let wake = core.next_deadline().map_or(end, |deadline| deadline.min(end));
                        now = wake.max(now);
                        let actions = core.tick(now);
                        now = end;
                        actions
                    }
                };
                for action in actions {
                    match action {
                        Action::Ask(id) => prop_assert!(waiting.contains_key(&id)),
                        Action::Proceed(id) => {
                            let (_, connects) = waiting.remove(&id).expect("decided twice");
                            prop_assert!(!connects || allowed == Some(id));
                        }
                        Action::Refuse(id, _) => {
                            waiting.remove(&id).expect("decided twice");
                        }
                        Action::Warn(_) => {}
                    }
                }
                let asked_at = waiting.values().map(|(since, _)| *since).min();
                if let Some(since) = asked_at {
                    let deadline = core.next_deadline().expect("something waits");
                    prop_assert!(deadline <= since + PATIENCE);
                }
            }
        }
    }
}
