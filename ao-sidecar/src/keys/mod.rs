//! The key manager at work: which keys the peers have, now and next.
//!
//! Read in this order: [`Keys`] (how a configuration is taken over, at the start and later),
//! `chains` (peers with key chains), `automatic` and `manager` (automatic peers), `peering` (the way
//! to the far ends), `control` (what operators see).

mod alarms;
mod automatic;
mod backend;
mod chains;
mod clock;
mod control;
mod events;
mod job;
mod manager;
mod peering;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ao_engine::policy::Mkt;
use datapath::settings::PeerSpec;
use grpc_api::Alarm;
use grpc_api::operator::EventLog;
use grpc_api::peer::BindError;
use keymgr::backend::Backend;
use keymgr::rollover::RecordError;
use keymgr::store::{self, SealingKeyError, StoreError};
use tracing::warn;

use self::alarms::Alarms;
use self::automatic::Automatic;
pub(crate) use self::backend::SharedDatapath;
pub(crate) use self::chains::WallClock;
use self::chains::{ChainKeys, ChainPeer, Chains};
use self::clock::Clock;
pub(crate) use self::control::{Control, key_state};
use self::events::Events;
use self::peering::{PeeringError, automatic};
use crate::config::{Config, Peer};

/// Why keys cannot be managed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The sealing key is of no use.
    #[error(transparent)]
    Sealing(#[from] SealingKeyError),
    /// The store is of no use.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store has of a peer is of no use.
    #[error(
        "the key store {} has a record of peer {peer:?} that this release cannot use ({source}): \
         move the file away to agree on keys anew", store.display()
    )]
    Record {
        /// The store.
        store: PathBuf,
        /// The peer.
        peer: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Peers cannot be talked to.
    #[error(transparent)]
    Peering(#[from] PeeringError),
    /// Peers cannot be listened for.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Keys of automatic peers cannot be changed now.
    #[error("keys of automatic peers cannot be changed now: {0}")]
    Busy(String),
    /// A thread cannot be started.
    #[error("the system refused a thread: {0}")]
    Thread(#[from] io::Error),
}

/// The running key manager.
pub(crate) struct Keys {
    datapath: Arc<SharedDatapath>,
    events: Events,
    alarms: Alarms,
    chains: Arc<Chains>,
    control: Arc<Control>,
    /// Absent while no peer is automatic.
    automatic: Mutex<Option<Automatic>>,
}

/// A configuration that the key manager can take over. Until it has, or this is dropped, no key of
/// an automatic peer changes.
pub(crate) struct Prepared {
    /// Before what it belongs to is dropped.
    automatic: Option<automatic::Prepared>,
    /// Started for it.
    started: Option<Automatic>,
}

/// The peers of a configuration, as the datapath is to have them.
pub(crate) struct Wanted {
    /// With the keys they are to have now.
    pub(crate) specs: Vec<PeerSpec>,
    /// Those that keep the keys they have, whatever their spec says.
    pub(crate) keep_keys_of: HashSet<Arc<str>>,
}

impl Keys {
    /// A key manager without peers. The datapath need not run yet.
    pub(crate) fn new(datapath: &Arc<SharedDatapath>, log: &EventLog) -> Result<Self, KeysError> {
        let events = Events(log.clone());
        let alarms = Alarms::default();
        let backend = Arc::clone(datapath);
        let chains = Chains::start(backend, events.clone(), alarms.clone(), Clock)?;
        let chains = Arc::new(chains);
        Ok(Self {
            datapath: Arc::clone(datapath),
            events,
            alarms,
            control: Arc::new(Control::new(Arc::clone(&chains))),
            chains,
            automatic: Mutex::default(),
        })
    }

    /// What answers operators.
    pub(crate) fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// What an operator should look at.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        self.alarms.all()
    }

    /// Does everything that taking a configuration over may fail with. Must not be called within
    /// an asynchronous task.
    pub(crate) fn prepare(&self, config: &Config) -> Result<Prepared, KeysError> {
        let mut running = self.automatic();
        let any = automatic(&config.peers).next().is_some();
        if any && running.as_ref().is_some_and(Automatic::is_idle) {
            // It may have been started with other settings.
            running.take();
        }
        let started = match (&*running, any) {
            (None, true) => Some(Automatic::start(
                config,
                &self.datapath,
                &self.events,
                &self.alarms,
            )?),
            _ => None,
        };
        let machinery = started.as_ref().or(running.as_ref());
        let prepared = machinery.map(|machinery| machinery.prepare(config));
        Ok(Prepared {
            automatic: prepared.transpose()?,
            started,
        })
    }

    /// Takes over a configuration that was prepared: `apply` gives its peers to the datapath, and
    /// may refuse. Nothing has changed then.
    pub(crate) fn take_over<T, E>(
        &self,
        prepared: Prepared,
        peers: &[Peer],
        wall_clock: WallClock,
        apply: impl FnOnce(&Wanted) -> Result<T, E>,
    ) -> Result<T, E> {
        let Prepared {
            automatic: prepared,
            started,
        } = prepared;
        let chain_peers = peers.iter().filter_map(chain_peer).collect();
        let mut blocked = Vec::new();
        let applied = self.chains.replace(chain_peers, wall_clock, |of_chains| {
            let begun = prepared.as_ref().map(|prepared| &prepared.begun);
            let wanted = wanted(peers, of_chains, begun);
            let applied = apply(&wanted)?;
            blocked = wanted.blocked();
            Ok(applied)
        })?;
        let mut running = self.automatic();
        if started.is_some() {
            *running = started;
        }
        if let (Some(machinery), Some(prepared)) = (running.as_mut(), prepared) {
            let settled = machinery.carry_out(prepared);
            if settled && machinery.is_idle() {
                running.take();
            }
        }
        // Sessions that had keys before, if any, cannot go on: closed now, they are back as soon as
        // there is a key, and not when a timer of the daemon ends.
        for name in blocked.iter().filter(|name| self.control.knows(name)) {
            if let Err(reason) = self.datapath.close(name) {
                warn!(peer = %name, %reason, "its sessions cannot be closed");
            }
        }
        let answers = |machinery: &Automatic| (machinery.handle.clone(), machinery.identity());
        self.control.replace(peers, running.as_ref().map(answers));
        Ok(applied)
    }

    /// Stops: keys stay as they are.
    pub(crate) fn stop(&self) {
        drop(self.automatic().take());
        self.chains.stop();
    }

    fn automatic(&self) -> MutexGuard<'_, Option<Automatic>> {
        self.automatic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wanted {
    /// Peers that are to have no keys.
    fn blocked(&self) -> Vec<Arc<str>> {
        let without =
            |spec: &&PeerSpec| spec.keys.is_empty() && !self.keep_keys_of.contains(&spec.name);
        let blocked = self.specs.iter().filter(without);
        blocked.map(|spec| Arc::clone(&spec.name)).collect()
    }
}

/// What the datapath is to have: keys of chains as their lifetimes say, keys of automatic peers
/// that are begun as they were stored, all others as they are.
fn wanted(
    peers: &[Peer],
    of_chains: &HashMap<Arc<str>, ChainKeys>,
    begun: Option<&HashMap<Arc<str>, Vec<Arc<Mkt>>>>,
) -> Wanted {
    let mut keep_keys_of = HashSet::new();
    let mut spec = |peer: &Peer| {
        let name = &peer.spec.name;
        let of_chain = of_chains.get(name).map(|ChainKeys(keys)| keys);
        let fresh = match peer.keys.rollover() {
            Some(_) => begun.and_then(|begun| begun.get(name)).map(Some),
            None => of_chain.map(Option::as_ref),
        };
        let keys = fresh.flatten();
        if keys.is_none() {
            keep_keys_of.insert(Arc::clone(name));
        }
        PeerSpec {
            keys: keys.cloned().unwrap_or_default(),
            ..peer.spec.clone()
        }
    };
    let specs = peers.iter().map(&mut spec).collect();
    Wanted {
        specs,
        keep_keys_of,
    }
}

fn chain_peer(peer: &Peer) -> Option<ChainPeer> {
    Some(ChainPeer {
        name: Arc::clone(&peer.spec.name),
        chain: Arc::clone(peer.keys.chain()?),
    })
}

/// Tells of a store that nobody needs, when the daemon starts.
pub(crate) fn note_unused_store(config: &Config) {
    let store = config.state_dir.join(store::FILE_NAME);
    if automatic(&config.peers).next().is_none() && store.exists() {
        warn!("no peer is automatic any more: remove {}", store.display());
    }
}

/// A moment, for people: UTC to the second.
fn time_text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(
        |_| "a time beyond the calendar".to_owned(),
        |time| format!("{time:.0}"),
    )
}
