use std::time::UNIX_EPOCH;

use ao_engine::crypto::{Algorithm, MasterKey};
use grpc_api::operator::EventLog;
use keymgr::chain::{Key, OnExpiry, Rules};
use keymgr::lifetime::{Lifetime, Tolerance};
use keymgr::rollover::SessionKeys;

use super::*;

/// A peer's keys, as a backend has them, with one session that follows at once.
#[derive(Default)]
struct Fake(Mutex<FakeState>);

#[derive(Default)]
struct FakeState {
    keys: Vec<u8>,
    retired: Vec<u8>,
    sessions: bool,
    refuses: bool,
    done: Vec<String>,
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock().unwrap()
    }

    fn done(&self) -> Vec<String> {
        mem::take(&mut self.state().done)
    }

    fn step<K>(
        &self,
        keys: &[K],
        step: impl Fn(&mut FakeState, &K) -> String,
    ) -> Vec<Result<(), String>> {
        let state = &mut *self.state();
        let take = |key| {
            if state.refuses {
                return Err("not now".to_owned());
            }
            let done = step(state, key);
            state.done.push(done);
            Ok(())
        };
        keys.iter().map(take).collect()
    }
}

impl Backend for Fake {
    fn install(&self, keys: &[(Arc<str>, Arc<Mkt>)]) -> Vec<Result<(), String>> {
        self.step(keys, |state, (_, mkt)| {
            assert!(
                !state.keys.contains(&mkt.send_id),
                "{} is taken",
                mkt.send_id
            );
            state.keys.push(mkt.send_id);
            format!("install {}", mkt.send_id)
        })
    }

    fn select(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), String>> {
        self.step(keys, |state, &(_, id)| {
            assert!(state.keys.contains(&id), "{id} is not there");
            state.keys.retain(|&key| key != id);
            state.keys.insert(0, id);
            format!("select {id}")
        })
    }

    fn retire(&self, keys: &[(Arc<str>, u8)]) -> Vec<Result<(), String>> {
        self.step(keys, |state, &(_, id)| {
            state.retired.push(id);
            format!("retire {id}")
        })
    }

    fn delete(&self, keys: &[Removal]) -> Vec<Result<(), String>> {
        self.step(keys, |state, removal| {
            state.keys.retain(|&key| key != removal.send_id);
            format!("delete {}", removal.send_id)
        })
    }

    fn observe(&self, peers: &[Arc<str>]) -> Vec<Result<Vec<SessionKeys>, String>> {
        let state = self.state();
        let key = state.keys.first().copied().filter(|_| state.sessions);
        let session = key.map(|key| SessionKeys {
            name: "session".into(),
            send_id_current: key,
            recv_id_rnext: key,
            verified: vec![(key, 7)],
            established: true,
        });
        vec![Ok(session.into_iter().collect()); peers.len()]
    }

    fn nudge(&self, _: &[Arc<str>]) {}

    fn close(&self, _: &str) -> Result<(), String> {
        let state = &mut *self.state();
        state.keys.clear();
        state.sessions = false;
        state.done.push("close".into());
        Ok(())
    }
}

const START: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(START + seconds)
}

/// A moment at which both clocks agree.
fn now(seconds: u64) -> Now {
    Now {
        steady: Duration::from_secs(seconds),
        wall: at(seconds),
    }
}

/// A key for sending from `start` to `end`, accepted just as long.
fn key(id: u8, start: u64, end: Option<u64>) -> Key {
    let lifetime = Lifetime::new(Some(at(start)), end.map(at)).unwrap();
    Key {
        mkt: Arc::new(Mkt {
            send_id: id,
            recv_id: id,
            algorithm: Algorithm::HmacSha1_96,
            master_key: MasterKey::new(&[id; 20]).unwrap(),
            include_options: true,
        }),
        send: lifetime,
        accept: lifetime,
    }
}

fn rules(on_expiry: OnExpiry) -> Rules {
    Rules {
        tolerance: Tolerance::Within(Duration::from_secs(10)),
        on_expiry,
        ..Rules::default()
    }
}

/// Chains at second 0, whose thread the test plays.
fn shared(keys: Vec<Key>, rules: Rules) -> (Shared, Arc<Fake>, EventLog) {
    let chain = Arc::new(KeyChain::new("chain", keys, rules).unwrap());
    let held = chain.at(at(0)).keys;
    let fake = Arc::new(Fake::default());
    fake.state().keys = held.iter().map(|mkt| mkt.send_id).collect();
    fake.state().sessions = true;
    let log = EventLog::new();
    let peer = ChainPeer {
        name: "peer".into(),
        chain,
    };
    let shared = Shared {
        backend: fake.clone(),
        events: Events(log.clone()),
        alarms: Alarms::default(),
        clock: Clock,
        state: Mutex::new(State {
            watch: ClockWatch::new(now(0)),
            peers: vec![Scheduled::new(peer, held)],
            uses: HashMap::new(),
            looked: None,
        }),
    };
    (shared, fake, log)
}

/// Plays the thread until `end`; what was done, with the second.
fn play(shared: &Shared, fake: &Fake, from: u64, end: u64) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for second in from..=end {
        shared.turn(now(second));
        all.extend(fake.done().into_iter().map(|done| (second, done)));
    }
    all
}

fn kinds(log: &EventLog) -> Vec<&'static str> {
    let page = log.after(0);
    page.events.iter().map(|event| event.what.kind).collect()
}

#[test]
fn keys_follow_their_lifetimes_and_the_tolerance() {
    let keys = vec![key(1, 0, Some(100)), key(2, 100, None)];
    let (shared, fake, log) = shared(keys, rules(OnExpiry::Keep));
    let done = play(&shared, &fake, 0, 200);
    let expected = [
        (90_u64, "install 2"),
        (100, "select 2"),
        (100, "retire 1"),
        (110, "delete 1"),
    ];
    assert_eq!(
        done,
        expected.map(|(second, done)| (second, done.to_owned()))
    );
    let told = [
        "chain-key-installed",
        "chain-key-selected",
        "chain-key-in-use",
        "chain-key-deleted",
    ];
    assert_eq!(kinds(&log), told);
}

#[test]
fn the_thread_sleeps_until_the_next_change_at_most() {
    let keys = vec![key(1, 0, Some(100)), key(2, 100, None)];
    let (shared, _, _) = shared(keys, rules(OnExpiry::Keep));
    assert_eq!(shared.turn(now(0)), LOOK_EVERY);
    assert_eq!(shared.turn(now(86)), Duration::from_secs(4));
}

#[test]
fn what_was_refused_is_tried_again_and_told_once() {
    let keys = vec![key(1, 0, Some(100)), key(2, 100, None)];
    let (shared, fake, log) = shared(keys, rules(OnExpiry::Keep));
    fake.state().refuses = true;
    assert_eq!(play(&shared, &fake, 90, 94), []);
    assert_eq!(kinds(&log), ["backend-failed"]);
    assert_eq!(shared.turn(now(95)), SOON);
    fake.state().refuses = false;
    assert_eq!(play(&shared, &fake, 96, 96), [(96, "install 2".to_owned())]);
}

#[test]
fn a_chain_that_is_over_keeps_its_last_key() {
    let (shared, fake, log) = shared(vec![key(1, 0, Some(100))], rules(OnExpiry::Keep));
    assert_eq!(play(&shared, &fake, 0, 1000), []);
    assert_eq!(fake.state().keys, [1]);
    assert_eq!(kinds(&log), ["chain-ends", "chain-over"]);
}

#[test]
fn a_chain_that_is_over_may_close_the_sessions() {
    let (shared, fake, log) = shared(vec![key(1, 0, Some(100))], rules(OnExpiry::Close));
    let done = ["delete 1", "close", "delete 1"].map(|done| (100, done.to_owned()));
    assert_eq!(play(&shared, &fake, 0, 1000), done);
    assert_eq!(fake.state().keys, [0_u8; 0]);
    assert_eq!(kinds(&log), ["chain-ends", "chain-over"]);
}

/// Neither far into the future nor back, by which keys would go or come that the far end has not.
#[test]
fn a_clock_that_jumps_changes_no_key() {
    for jump in [86_400 * 365, 200] {
        let keys = vec![key(1, 0, Some(500)), key(2, 500, None)];
        let (shared, fake, log) = shared(keys, rules(OnExpiry::Keep));
        let done = play(&shared, &fake, 0, 400);
        assert_eq!(done, []);
        shared.turn(Now {
            wall: at(401 + jump),
            ..now(401)
        });
        shared.turn(Now {
            wall: at(0),
            ..now(402)
        });
        assert_eq!(fake.done(), [""; 0]);
        assert_eq!(kinds(&log), ["clock-jumped", "clock-jumped"]);
        // By the steady clock the time of the second key comes all the same.
        shared.turn(Now {
            wall: at(99),
            ..now(501)
        });
        assert_eq!(fake.state().keys, [2, 1]);
    }
}

/// Whoever changes another peer by API has not looked at the clock.
#[test]
fn only_an_operator_who_looked_makes_a_jumped_clock_believed() {
    let (shared, _, _) = shared(vec![key(1, 0, None)], rules(OnExpiry::Keep));
    // For the chains it is 1970; the machine's clock is far ahead.
    shared.turn(shared.clock.now());
    let chains = Chains {
        shared: Arc::new(shared),
        thread: Mutex::default(),
    };
    let peers = || {
        let state = chains.shared.state();
        let peers = state.peers.iter().map(|scheduled| scheduled.peer.clone());
        peers.collect::<Vec<_>>()
    };
    for (wall_clock, holds) in [(WallClock::AsBefore, true), (WallClock::Believed, false)] {
        let replaced = chains.replace(peers(), wall_clock, |_| Ok::<_, String>(()));
        replaced.unwrap();
        assert_eq!(chains.shared.state().watch.holds(), holds, "{wall_clock:?}");
    }
}

#[test]
fn the_use_of_keys_is_noted() {
    let (shared, _, _) = shared(vec![key(1, 0, None)], rules(OnExpiry::Keep));
    shared.turn(now(5));
    shared.turn(now(40));
    let state = shared.state();
    let used = state.uses.get(&("peer".into(), 1)).unwrap();
    assert_eq!((used.verified, used.last), (7, Some(at(5))));
}

/// After a gap the next key may have the IDs of the former one, which no session can have both.
#[test]
fn a_key_with_the_ids_of_the_last_one_takes_its_place() {
    let keys = vec![key(1, 0, Some(100)), key(1, 200, None)];
    let rules = Rules {
        tolerance: Tolerance::Within(Duration::ZERO),
        allow_gaps: true,
        on_expiry: OnExpiry::Keep,
    };
    let (shared, fake, _) = shared(keys, rules);
    let done = play(&shared, &fake, 0, 300);
    let done: Vec<&str> = done.iter().map(|(_, done)| &**done).collect();
    assert_eq!(done, ["delete 1", "close", "delete 1", "install 1"]);
}
