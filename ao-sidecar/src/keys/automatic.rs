//! What automatic peers need while they are there: store, identity, a thread that calls and is
//! called.
//!
//! It is started for the first automatic peer and stopped after the last one. A change of the
//! configuration is [prepared](Automatic::prepare), which may fail and changes nothing, and then
//! [carried out](Automatic::carry_out), which cannot fail.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ao_engine::policy::Mkt;
use datapath::AbortOnPanic;
use grpc_api::operator::IdentityReport;
use grpc_api::peer::{Limits, PeerServer};
use keymgr::rollover::message::Instance;
use keymgr::rollover::{Parameters, Record, Rollover};
use keymgr::store::{self, SealingKey, Store};
use tokio::runtime::{self, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::info;

use super::alarms::Alarms;
use super::backend::SharedDatapath;
use super::clock::Clock;
use super::events::Events;
use super::manager::{Course, Handle, Manager, Plan, Planned, Reply};
use super::peering::{Directory, Door, FarEnd, Peering, far_end};
use super::{KeysError, automatic};
use crate::config::{Config, RolloverConfig};

/// Longest time for what is under way when the daemon stops.
const LONGEST_STOP: Duration = Duration::from_secs(2);
/// Longest time that a change of the configuration waits for a job of the backend, or for records
/// to be on disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// Threads that talk to peers: TLS handshakes must not keep operators waiting.
const PEER_THREADS: usize = 2;

/// The running machinery; stops when dropped.
pub(super) struct Automatic {
    pub(super) handle: Handle,
    peering: Arc<Peering>,
    /// Of the store.
    instance: Instance,
    /// What the store had when it was opened, until peers have been begun with it.
    stored: HashMap<Arc<str>, Record>,
    runtime: runtime::Handle,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// A change that can be carried out. Until then, or until this is dropped, no key of an automatic
/// peer changes.
pub(super) struct Prepared {
    directory: Directory,
    plan: Plan,
    release: oneshot::Sender<(Plan, Reply<()>)>,
    /// Peers that may be begun later, with what the store has of them.
    left_out: HashSet<Arc<str>>,
    /// Peers that are begun, with the keys they begin with.
    pub(super) begun: HashMap<Arc<str>, Vec<Arc<Mkt>>>,
}

impl Automatic {
    /// Opens store and identity, and listens. Nobody may call yet.
    pub(super) fn start(
        config: &Config,
        datapath: &Arc<SharedDatapath>,
        events: &Events,
        alarms: &Alarms,
    ) -> Result<Self, KeysError> {
        let peering = Arc::new(Peering::new(config)?);
        let sealing_key = SealingKey::load(&config.state_dir, config.sealing_key_file.as_deref())?;
        let path = config.state_dir.join(store::FILE_NAME);
        let mut store = Store::open(&path, &sealing_key)?;
        let stored = records(&mut store, path)?;
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(PEER_THREADS)
            .thread_name("ao-peers")
            .enable_all()
            .build()?;
        let server = {
            let _inside = runtime.enter();
            let partners = Arc::clone(&peering.partners);
            PeerServer::bind(
                &config.listen,
                &peering.identity,
                partners,
                Limits::default(),
            )?
        };
        let IdentityReport { fingerprint, .. } = &peering.report;
        info!(
            fingerprint,
            listen = ?server.addresses(),
            "keys are agreed with the peers' sidecars"
        );
        let instance = store.instance();
        let (manager, handle) = Manager::new(
            store,
            Arc::clone(datapath),
            Arc::clone(&peering),
            events.clone(),
            alarms.clone(),
            Clock,
        );
        let door = Door {
            handle: handle.clone(),
            peering: Arc::clone(&peering),
        };
        let (stop, stopped) = watch::channel(false);
        Ok(Self {
            handle,
            peering,
            instance,
            stored,
            runtime: runtime.handle().clone(),
            stop,
            thread: Some(spawn(runtime, manager, server, door, stopped)?),
        })
    }

    /// With what this sidecar shows itself.
    pub(super) fn identity(&self) -> IdentityReport {
        self.peering.report.clone()
    }

    /// Whether there are no automatic peers.
    pub(super) fn is_idle(&self) -> bool {
        self.peering.directory().is_empty()
    }

    /// Prepares to have the automatic peers of `config` instead of those there are. From then on,
    /// no key of theirs changes.
    pub(super) fn prepare(&self, config: &Config) -> Result<Prepared, KeysError> {
        let directory = self.peering.directory_of(config)?;
        let former = self.peering.directory();
        let held = self.runtime.block_on(timeout(PATIENCE, self.handle.hold()));
        let release = match held {
            Ok(Ok(release)) => release,
            Ok(Err(reason)) => return Err(KeysError::Busy(reason)),
            Err(_) => {
                let reason = format!("a change of keys takes longer than {PATIENCE:?}; try again");
                return Err(KeysError::Busy(reason));
            }
        };
        let mut begun = HashMap::new();
        let mut planned = Vec::with_capacity(directory.len());
        for (name, far_end) in &directory {
            let course = self.course(name, former.get(name), far_end);
            if let Course::Begun(core) = &course {
                begun.insert(Arc::clone(name), core.mkts());
            }
            planned.push(Planned {
                name: Arc::clone(name),
                incarnation: far_end.incarnation,
                course,
            });
        }
        let left_out: HashSet<_> = config.left_out.iter().map(|peer| &peer.spec.name).collect();
        let gone = self
            .stored
            .keys()
            .filter(|name| !directory.contains_key(*name) && !left_out.contains(name));
        let plan = Plan {
            peers: planned,
            gone: gone.cloned().collect(),
            look_every: look_every(automatic(&config.peers).map(|(_, rollover)| rollover)),
        };
        Ok(Prepared {
            directory,
            plan,
            release,
            left_out: left_out.into_iter().cloned().collect(),
            begun,
        })
    }

    fn course(&self, name: &Arc<str>, former: Option<&FarEnd>, wanted: &FarEnd) -> Course {
        let goes_on = former.filter(|former| former.incarnation == wanted.incarnation);
        match goes_on {
            Some(former) if former.is_same(wanted) => Course::Same,
            Some(_) => Course::Reconfigured(parameters(&wanted.config)),
            None => {
                let record = self.stored.get(name).cloned().unwrap_or_default();
                let parameters = parameters(&wanted.config);
                let core = Rollover::new(parameters, self.instance, record, Clock.now());
                Course::Begun(Box::new(core))
            }
        }
    }

    /// Goes on with what was prepared. Whether all of it is on disk already; if not, it will be as
    /// soon as it can.
    pub(super) fn carry_out(&mut self, prepared: Prepared) -> bool {
        let Prepared {
            directory,
            plan,
            release,
            left_out,
            ..
        } = prepared;
        // Who is not trusted any more is turned away first, and who is trusted from now on is let
        // in last: neither talks to the other's state machine.
        self.peering.set(directory);
        let (done, answer) = oneshot::channel();
        // An error means that the daemon stops.
        let _ = release.send((plan, done));
        let answered = self.runtime.block_on(timeout(PATIENCE, answer));
        self.peering.admit();
        self.stored.retain(|name, _| left_out.contains(name));
        matches!(answered, Ok(Ok(Ok(()))))
    }
}

impl Drop for Automatic {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Everything that the store at `path` has.
fn records(store: &mut Store, path: PathBuf) -> Result<HashMap<Arc<str>, Record>, KeysError> {
    let mut records = HashMap::new();
    for stored in store.load()? {
        let record = match Record::from_parts(&stored.meta, stored.secrets) {
            Ok(record) => record,
            Err(source) => {
                return Err(KeysError::Record {
                    store: path,
                    peer: stored.peer,
                    source,
                });
            }
        };
        records.insert(stored.peer.into(), record);
    }
    Ok(records)
}

fn spawn(
    runtime: Runtime,
    manager: Manager<SharedDatapath, Peering>,
    server: PeerServer,
    door: Door,
    mut stopped: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, KeysError> {
    let run = move || {
        let _abort = AbortOnPanic;
        let mut stop = stopped.clone();
        let stop = async move {
            // An error means that nobody is left to stop it, which is a wish to stop, too.
            let _ = stop.wait_for(|&stop| stop).await;
        };
        runtime.block_on(async {
            let serving = tokio::spawn(server.serve(Arc::new(door), stop));
            tokio::select! {
                () = manager.run() => {}
                _ = stopped.wait_for(|&stop| stop) => {}
            }
            // Answers under way still go out.
            let _ = timeout(LONGEST_STOP, serving).await;
        });
        // A transaction under way is completed.
        runtime.shutdown_timeout(LONGEST_STOP);
    };
    let thread = thread::Builder::new().name("ao-peering".to_owned());
    Ok(thread.spawn(run)?)
}

fn parameters(config: &RolloverConfig) -> Parameters {
    Parameters {
        far_end: far_end(config),
        interval: config.interval,
        overlap: config.overlap,
        runway: config.runway,
        algorithms: config.algorithms.clone(),
        highest_id: config.highest_id,
        ..Parameters::default()
    }
}

/// Often enough to notice in time that a far end has moved on by itself.
fn look_every<'c>(all: impl Iterator<Item = &'c RolloverConfig>) -> Duration {
    let shortest = all.map(|rollover| rollover.interval).min();
    let shortest = shortest.unwrap_or(Duration::MAX);
    (shortest / 5).clamp(Duration::from_secs(1), Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use grpc_api::operator::EventLog;
    use keymgr::store::Entry;

    use super::*;
    use crate::config::Overlay;

    fn peer(name: &str, address: &str) -> String {
        let fingerprint = "00112233445566778899aabbccddeeff".repeat(2);
        format!(
            "[[peer]]\nname = \"{name}\"\naddress = \"{address}\"\n[peer.rollover]\n\
             endpoint = \"{address}:7179\"\nfingerprint = \"sha256:{fingerprint}\"\nlabel = \"{name}\"\n"
        )
    }

    #[test]
    fn what_is_stored_for_a_peer_that_is_left_out_stays() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "state_dir = {:?}\n[peering]\nlisten = []\n{}{}",
            folder.path(),
            peer("in", "192.0.2.1"),
            peer("out", "192.0.2.2")
        );
        let file = folder.path().join("c.toml");
        let mut config = Config::load_text(&text, &file, &Overlay::default()).unwrap();
        let open = || {
            let sealing_key = SealingKey::load(folder.path(), None).unwrap();
            Store::open(&folder.path().join(store::FILE_NAME), &sealing_key).unwrap()
        };
        let meta = Record::default().to_meta();
        let entry = |peer| Entry {
            peer,
            meta: &meta,
            secrets: Vec::new(),
        };
        open().save(&["in", "out", "gone"].map(entry)).unwrap();

        config.leave_out(|name| &**name == "out");
        let events = Events(EventLog::new());
        let mut automatic =
            Automatic::start(&config, &Arc::default(), &events, &Alarms::default()).unwrap();
        // As on a thread of the daemon's.
        let runtime = automatic.runtime.clone();
        let inside = runtime.enter();
        let prepared = automatic.prepare(&config).unwrap();
        assert!(automatic.carry_out(prepared));
        let still: Vec<_> = automatic.stored.keys().map(|name| &**name).collect();
        assert_eq!(still, ["out"]);
        drop(inside);
        drop(automatic);
        let stored = open().load().unwrap();
        let mut names: Vec<_> = stored.into_iter().map(|stored| stored.peer).collect();
        names.sort();
        assert_eq!(names, ["in", "out"]);
    }
}
