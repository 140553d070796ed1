//! Sessions whose keys the two sidecars agree on by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::capture::{Capture, tool};
use crate::daemon::{self, Daemon, Implementation, Speaker, wait_converged};
use crate::process::output;
use crate::progress;
use crate::sidecar::{PeerConfig, Sidecar, Terms};
use crate::topology::{Family, Host, Lan};
use crate::wait;

/// What the sidecars of a [`Pair`] call each other.
pub const PEER: &str = "peer-0";

/// How long a change of keys may take whose interval is 10 s.
pub const CHANGE: Duration = Duration::from_secs(40);

/// Octets that the key store takes sooner or later, however few keys it has.
const STORE: u64 = 1 << 20;

/// Between two moves of the routes.
const CHURN: Duration = Duration::from_millis(400);

/// How far the keys of the one automatic peer are.
#[derive(Clone, Debug)]
pub struct Rolling {
    /// The generation in use; 0 without one.
    pub active: u64,
    /// Whether it is in use in both directions on every session.
    pub proven: bool,
    /// Generations both ends could change to without talking.
    pub ready: u64,
    /// What the operator should look at, and why calls fail.
    pub complaints: Vec<String>,
    /// Everything that was told.
    pub told: Value,
}

/// A key that the two ends have agreed on.
#[derive(Clone, Debug)]
pub struct AgreedKey {
    /// Its generation.
    pub generation: u64,
    /// Its KeyID in both directions.
    pub id: u64,
    /// How far it is.
    pub state: String,
}

impl Sidecar {
    /// How far the keys of its one automatic peer are.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn try_rolling(&self) -> Result<Rolling, String> {
        let told = self.query(&["rollover", "status", PEER])?;
        let peer = told.as_array().and_then(|all| all.first());
        let peer = peer.ok_or_else(|| format!("no automatic peer: {told}"))?;
        let mut complaints: Vec<String> = texts(&peer["alarms"]);
        let reason = peer["unreachable_reason"].as_str().map(str::to_owned);
        complaints.extend(reason.filter(|text| !text.is_empty()));
        Ok(Rolling {
            active: peer["active"]["number"].as_u64().unwrap_or(0),
            proven: peer["active"]["state"] == "proven",
            ready: peer["runway_ready"].as_u64().unwrap_or(0),
            complaints,
            told: peer.clone(),
        })
    }

    /// The same.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn rolling(&self) -> Rolling {
        self.try_rolling().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Keys of its automatic peer that exist at this end.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn agreed_keys(&self) -> Result<Vec<AgreedKey>, String> {
        let told = self.query(&["keys", "list", PEER])?;
        let gone = ["offered", "deleted", "revoked"];
        let keys = told.as_array().into_iter().flatten();
        let exist = keys.filter(|key| gone.iter().all(|state| key["state"] != *state));
        exist
            .map(|key| {
                let number = |what: &str| key[what].as_u64();
                let id = number("send_id").filter(|_| key["send_id"] == key["recv_id"]);
                Some(AgreedKey {
                    generation: number("generation").filter(|&number| number > 0)?,
                    id: id?,
                    state: key["state"].as_str()?.to_owned(),
                })
            })
            .collect::<Option<_>>()
            .ok_or_else(|| format!("keys that are not agreed ones: {told}"))
    }

    /// Events of this start of the sidecar, the oldest first.
    ///
    /// # Panics
    /// When it does not answer, or has forgotten some.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.try_events().unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_events(&self) -> Result<Vec<Value>, String> {
        let answer = self.operate(&["events", "--json"])?;
        let events: Result<Vec<Value>, _> = answer.lines().map(serde_json::from_str).collect();
        let events = events.map_err(|error| format!("{error}: {answer}"))?;
        let sequence = |event: &Value| event["sequence"].as_u64();
        for (place, event) in (1..).zip(&events) {
            assert_eq!(sequence(event), Some(place), "{event}");
        }
        Ok(events)
    }

    /// Generations an event of this kind tells of.
    ///
    /// # Panics
    /// When it does not answer, or has forgotten some.
    #[must_use]
    pub fn told_of(&self, kind: &str) -> BTreeSet<u64> {
        generations(&self.events(), kind)
    }

    /// Segments it had verified with the key of each generation when that was proven.
    fn verified_at_proof(&self) -> BTreeMap<u64, u64> {
        let events = self.events();
        let proofs = events.iter().filter(|event| event["kind"] == "proven");
        let verified = |event: &Value| {
            let (_, counts) = event["proof"].as_str()?.split_once("verified here: ")?;
            let (count, _) = counts.split_once(',')?;
            Some((event["generation"].as_u64()?, count.parse().ok()?))
        };
        proofs.filter_map(verified).collect()
    }

    /// Generations that it has proven since it started, and the one in use if that is.
    fn proofs(&self) -> Result<BTreeSet<u64>, String> {
        let rolling = self.try_rolling()?;
        let mut proofs = generations(&self.try_events()?, "proven");
        proofs.extend(rolling.proven.then_some(rolling.active));
        Ok(proofs)
    }

    fn query(&self, words: &[&str]) -> Result<Value, String> {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let answer = self.operate(&words)?;
        serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))
    }
}

/// Generations that events of this kind tell of.
fn generations(events: &[Value], kind: &str) -> BTreeSet<u64> {
    let told = events.iter().filter(|event| event["kind"] == kind);
    told.filter_map(|event| event["generation"].as_u64())
        .collect()
}

fn texts(list: &Value) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|one| one.as_str().map(str::to_owned))
        .collect()
}

/// Two sidecars that know nothing of each other but the fingerprints, and what is between them.
#[derive(Debug)]
pub struct Pair {
    /// The sidecar at host a.
    pub a: Sidecar,
    /// The sidecar at host b.
    pub b: Sidecar,
    /// BGP on host a's link since before the sidecars started.
    pub capture: Capture,
    /// The network.
    pub lan: Lan,
}

impl Pair {
    /// Makes the network and the configurations; starts nothing.
    #[must_use]
    pub fn prepare(datapaths: (&'static str, &'static str), terms: Terms) -> Self {
        let lan = Lan::new();
        let capture = Capture::start(&lan.wire, Lan::PORT_A, "tcp port 179");
        let a = Sidecar::bare(&lan.a.namespace, datapaths.0);
        let b = Sidecar::bare(&lan.b.namespace, datapaths.1);
        a.configure(&[agreeing(&lan.b, &b, terms)]);
        b.configure(&[agreeing(&lan.a, &a, terms)]);
        Self { a, b, capture, lan }
    }

    /// Starts both sidecars and waits until each has a key in use and a full runway.
    #[must_use]
    pub fn start(datapaths: (&'static str, &'static str), terms: Terms, limit: Duration) -> Self {
        let mut pair = Self::prepare(datapaths, terms);
        for sidecar in [&mut pair.a, &mut pair.b] {
            sidecar.launch(&[]);
        }
        for sidecar in [&mut pair.a, &mut pair.b] {
            sidecar.wait_ready();
        }
        pair.wait_runway(terms.runway.into(), limit);
        pair
    }

    /// Both sidecars.
    #[must_use]
    pub fn both(&self) -> [&Sidecar; 2] {
        [&self.a, &self.b]
    }

    /// Waits until both ends have the same key in use, and so many in advance.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub fn wait_runway(&self, runway: u64, limit: Duration) -> u64 {
        self.wait_rolling("keys in use and in advance", limit, |rolling| {
            rolling.active > 0 && rolling.ready >= runway
        })
    }

    /// Waits until both ends have proven generation `least` or a later one, whether or not they use
    /// it still: on a slow machine the next change may have begun when both are asked.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub fn wait_proven(&self, least: u64, limit: Duration) -> u64 {
        let what = format!("generation {least} proven at both ends");
        wait::poll(&what, limit, || self.proven(least))
    }

    /// Waits for the next generation to be proven at both ends.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub fn wait_next(&self, limit: Duration) -> u64 {
        self.wait_proven(self.a.rolling().active + 1, limit)
    }

    /// Waits until both ends use the same key and are as wanted, and returns its generation.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub fn wait_rolling(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Rolling) -> bool,
    ) -> u64 {
        wait::poll(what, limit, || self.agreed(&wanted))
    }

    /// The last generation that both ends have proven, if it is `least` or a later one.
    fn proven(&self, least: u64) -> Result<u64, String> {
        let (a, b) = (self.a.proofs()?, self.b.proofs()?);
        let last = a.intersection(&b).last().copied();
        last.filter(|last| *last >= least)
            .ok_or_else(|| format!("proven by a: {a:?}, by b: {b:?}; {}", self.standing()))
    }

    /// How far both are, in words.
    fn standing(&self) -> String {
        format!(
            "a: {:?}; b: {:?}",
            self.a.try_rolling(),
            self.b.try_rolling()
        )
    }

    /// The generation both ends use, if they are as wanted.
    fn agreed(&self, wanted: &dyn Fn(&Rolling) -> bool) -> Result<u64, String> {
        let (a, b) = (self.a.try_rolling()?, self.b.try_rolling()?);
        match a.active == b.active && wanted(&a) && wanted(&b) {
            true => Ok(a.active),
            false => Err(format!("a: {a:?}; b: {b:?}")),
        }
    }

    /// Drops what the sidecars say to each other.
    pub fn cut(&self) {
        self.lan.a.namespace.nft(
            "table inet cut {
                chain input { type filter hook input priority 0; jump sidecars; }
                chain output { type filter hook output priority 0; jump sidecars; }
                chain sidecars { tcp dport 7179 drop; tcp sport 7179 drop; }
            }",
        );
    }

    /// Undoes [`cut`](Self::cut).
    pub fn mend(&self) {
        self.lan.a.namespace.nft("delete table inet cut");
    }

    /// What is on the wire so far: see `tests/tools/key_ids.py`.
    #[must_use]
    pub fn wire(&self) -> Wire {
        Wire::of(&self.capture, 179)
    }
}

/// The peer `host`, whose sidecar is `sidecar`.
fn agreeing(host: &Host, sidecar: &Sidecar, terms: Terms) -> PeerConfig {
    PeerConfig::agreeing(host, Family::V4, sidecar.fingerprint(), terms)
}

/// A capture of a protected port.
#[derive(Debug)]
pub struct Wire(Value);

impl Wire {
    /// Reads a capture, which may go on.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn of(capture: &Capture, port: u16) -> Self {
        let mut command = tool("key_ids.py");
        command.arg(capture.file());
        command.args(["--port", &port.to_string()]);
        let report = output(command).unwrap_or_else(|error| panic!("{error}"));
        Self(serde_json::from_str(&report).expect("the tool's report"))
    }

    /// Segments of both directions: "signed", "unsigned" or "with_data".
    #[must_use]
    pub fn count(&self, what: &str) -> u64 {
        self.directions()
            .filter_map(|counts| counts[what].as_u64())
            .sum()
    }

    /// KeyIDs that were in use in both directions.
    #[must_use]
    pub fn key_ids(&self) -> BTreeSet<u64> {
        let ids = |counts: &Value| -> BTreeSet<u64> {
            let ids = counts["order"].as_array().into_iter().flatten();
            ids.filter_map(Value::as_u64).collect()
        };
        let common = self
            .directions()
            .map(ids)
            .reduce(|one, other| &one & &other);
        match self.directions().count() {
            2 => common.unwrap_or_default(),
            _ => BTreeSet::new(),
        }
    }

    fn directions(&self) -> impl Iterator<Item = &Value> {
        self.0
            .as_object()
            .into_iter()
            .flat_map(serde_json::Map::values)
    }
}

/// A BGP session between two hosts whose sidecars agree on its keys.
#[derive(Debug)]
pub struct Session {
    /// The daemon at host a, which opens.
    pub a: Box<dyn Daemon>,
    /// The daemon at host b.
    pub b: Box<dyn Daemon>,
    /// The sidecars and the network.
    pub pair: Pair,
}

impl Session {
    /// BIRD at host a opens to FRR at host b, each launched by `ao-sidecar exec` where its sidecar
    /// uses the kernel; waits until all routes are exchanged.
    #[must_use]
    pub fn bird_frr(pair: Pair, change: impl Fn(&mut Speaker), limit: Duration) -> Self {
        let (mut a, mut b) = Speaker::pair(&pair.lan.a, &pair.lan.b, Family::V4);
        change(&mut a);
        change(&mut b);
        let a = start(Implementation::Bird, &pair.lan.a, &pair.a, &a);
        let b = start(Implementation::Frr, &pair.lan.b, &pair.b, &b);
        wait_converged(&*a, &*b, limit);
        Self { a, b, pair }
    }

    /// Lets keys roll over so many times while routes come and go, within `limit`; `terms` have an
    /// interval of 10 s. Asserts that no segment was refused for its key, that each key carried
    /// segments in both directions, and that those of the past are gone.
    ///
    /// # Panics
    /// When one of these is not so.
    pub fn roll_under_churn(&self, changes: u64, limit: Duration) {
        let both = self.pair.both();
        let refused = both.map(refused_for_key);
        let mut ids = BTreeMap::new();
        let next = self.pair.a.rolling().active + 1;
        let first = self.churn(&mut ids, next, CHANGE);
        let size = both.map(state_size);
        let began = Instant::now();
        let last = self.churn(&mut ids, first + changes, limit);
        progress!("{} changes of keys in {:?}", last - first, began.elapsed());
        self.assert_never_down();
        wait_converged(&*self.a, &*self.b, CHANGE);
        for (sidecar, refused) in both.into_iter().zip(refused) {
            assert_eq!(refused_for_key(sidecar), refused);
            let verified = sidecar.verified_at_proof();
            let carried = |one| verified.get(&one) > Some(&0);
            assert!(
                (first..=last).all(carried),
                "{first} to {last}: {verified:?}"
            );
            wait::poll("older keys being deleted", CHANGE, || {
                let deleted = sidecar.told_of("deleted");
                let all = (first..last - 1).all(|one| deleted.contains(&one));
                all.then_some(()).ok_or_else(|| format!("{deleted:?}"))
            });
            let keys = sidecar.agreed_keys();
            let keys = keys.unwrap_or_else(|error| panic!("{error}"));
            assert!(
                keys.iter().all(|key| key.generation >= last - 1),
                "{keys:?}"
            );
        }
        for (sidecar, size) in both.into_iter().zip(size) {
            let grown = state_size(sidecar);
            assert!(grown <= 2 * size.max(STORE), "{grown} from {size}");
        }
        let seen = self.pair.wire().key_ids();
        let mut expected = BTreeSet::new();
        for generation in first..=last {
            let id = ids.get(&generation);
            assert!(
                id.is_some_and(|id| seen.contains(id) && expected.insert(*id)),
                "generation {generation}: KeyID {id:?} of {ids:?}, on the wire {seen:?}"
            );
        }
    }

    /// Withdraws and announces all routes until both ends have proven generation `least`, and notes
    /// the KeyIDs of generations. Gives the last one proven, with all routes announced.
    fn churn(&self, ids: &mut BTreeMap<u64, u64>, least: u64, limit: Duration) -> u64 {
        let began = Instant::now();
        for announcing in [false, true].into_iter().cycle() {
            for daemon in [&self.a, &self.b] {
                let moved = daemon.announce(announcing);
                moved.unwrap_or_else(|error| panic!("{error}"));
            }
            for sidecar in self.pair.both() {
                let keys = sidecar.agreed_keys();
                let keys = keys.unwrap_or_else(|error| panic!("{error}"));
                for key in keys {
                    let known = *ids.entry(key.generation).or_insert(key.id);
                    assert_eq!(known, key.id, "KeyIDs of generation {}", key.generation);
                }
            }
            match self.pair.proven(least) {
                Ok(last) if announcing => return last,
                Err(why) if began.elapsed() > limit => panic!("not within {limit:?}: {why}"),
                _ => std::thread::sleep(CHURN),
            }
        }
        unreachable!("a cycle has no end")
    }

    /// Asserts that the session has been up all the time at both ends.
    ///
    /// # Panics
    /// When it has not.
    pub fn assert_never_down(&self) {
        daemon::assert_never_down(&*self.a);
        daemon::assert_never_down(&*self.b);
    }
}

/// Starts a daemon beside its sidecar.
#[must_use]
pub fn start(
    implementation: Implementation,
    host: &Host,
    sidecar: &Sidecar,
    speaker: &Speaker,
) -> Box<dyn Daemon> {
    match sidecar.datapath() {
        "kernel" => {
            let launcher = sidecar.launcher();
            daemon::start_under(implementation, &host.namespace, speaker, &launcher)
        }
        _ => daemon::start(implementation, &host.namespace, speaker),
    }
}

/// Segments a sidecar has refused for their key so far, by reason.
#[must_use]
pub fn refused_for_key(sidecar: &Sidecar) -> BTreeMap<String, u64> {
    let reasons = [
        "bad-mac",
        "mac-length",
        "no-key",
        "unknown-key-id",
        "unsigned",
    ];
    let drops = sidecar.drops();
    let sessions = sidecar.ask("sessions");
    let of_sessions = ["segments_bad", "segments_unsigned", "key_not_found"].map(|counter| {
        let all = sessions.as_array().into_iter().flatten();
        let count = all.filter_map(|session| session[counter].as_u64()).sum();
        (counter.to_owned(), count)
    });
    reasons
        .map(|reason| (reason.to_owned(), drops.of(&[reason])))
        .into_iter()
        .chain(of_sessions)
        .collect()
}

/// Octets of all files in the state folder of a sidecar.
///
/// # Panics
/// When the folder cannot be read.
#[must_use]
pub fn state_size(sidecar: &Sidecar) -> u64 {
    let files = std::fs::read_dir(sidecar.state_dir()).expect("the state folder");
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        // A file that is gone by now takes no room.
        entry
            .and_then(|entry| entry.metadata())
            .map_or(0, |file| file.len())
    };
    files.map(size).sum()
}
