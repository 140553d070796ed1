//! The key manager at work: which keys the peers have, now and next.
//!
//! Read in this order: [`Prepared`] (what is known before the datapath starts), [`Keys`] (what runs
//! beside it), `manager` (automatic peers), `chains` (peers with key chains), `peering` (the way to
//! the far ends), `control` (what operators see).

mod backend;
mod chains;
mod clock;
mod control;
mod events;
mod job;
mod manager;
mod peering;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use ao_engine::policy::Mkt;
use datapath::AbortOnPanic;
use datapath::settings::PeerSpec;
use grpc_api::operator::{EventLog, IdentityReport};
use grpc_api::peer::{BindError, Limits, PeerServer};
use keymgr::rollover::{Parameters, Record, RecordError, Rollover};
use keymgr::store::{self, SealingKey, SealingKeyError, Store, StoreError};
use tokio::sync::watch;
use tracing::{info, warn};

pub(crate) use self::backend::SharedDatapath;
use self::chains::{ChainPeer, Chains};
use self::clock::Clock;
pub(crate) use self::control::Control;
use self::events::Events;
use self::manager::{Handle, Manager};
use self::peering::{Door, Peering, PeeringError, automatic};
use crate::config::{Config, Peer, RolloverConfig};

/// Longest time for what is under way when the daemon stops.
const LONGEST_STOP: Duration = Duration::from_secs(2);
/// Threads that talk to peers: TLS handshakes must not keep operators waiting.
const PEER_THREADS: usize = 2;

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
    /// A thread cannot be started.
    #[error("the system refused a thread: {0}")]
    Thread(#[from] io::Error),
}

/// What is known before the datapath starts.
pub(crate) struct Prepared {
    automatic: Option<Automatic>,
}

struct Automatic {
    store: Store,
    peering: Arc<Peering>,
    peers: Vec<(Arc<str>, Rollover)>,
    look_every: Duration,
}

impl Prepared {
    /// Opens the store and fills in the keys that automatic peers had last. Nothing is opened when
    /// there are none.
    pub(crate) fn new(config: &mut Config) -> Result<Self, KeysError> {
        if automatic(&config.peers).next().is_none() {
            let store = config.state_dir.join(store::FILE_NAME);
            if store.exists() {
                warn!("no peer is automatic any more: remove {}", store.display());
            }
            return Ok(Self { automatic: None });
        }
        let peering = Arc::new(Peering::new(config)?);
        let sealing_key = SealingKey::load(&config.state_dir, config.sealing_key_file.as_deref())?;
        let path = config.state_dir.join(store::FILE_NAME);
        let mut store = Store::open(&path, &sealing_key)?;
        let mut records = Vec::new();
        for stored in store.load()? {
            let record = Record::from_parts(&stored.meta, stored.secrets);
            let record = record.map_err(|source| KeysError::Record {
                store: path.clone(),
                peer: stored.peer.clone(),
                source,
            })?;
            records.push((stored.peer, record));
        }
        let now = Clock.now();
        let mut peers = Vec::new();
        for peer in &mut config.peers {
            let Some(rollover) = peer.keys.rollover() else {
                continue;
            };
            let known = records
                .iter()
                .position(|(name, _)| **name == *peer.spec.name);
            let record = known.map(|place| records.swap_remove(place).1);
            let core = Rollover::new(
                parameters(rollover),
                store.instance(),
                record.unwrap_or_default(),
                now,
            );
            peer.spec.keys = core.mkts();
            peers.push((Arc::clone(&peer.spec.name), core));
        }
        for (name, _) in records {
            // Its keys could only come back by a mistake.
            store.remove(&name)?;
            info!(
                peer = name,
                "not configured any more: its stored keys are destroyed"
            );
        }
        let look_every = look_every(automatic(&config.peers).map(|(_, rollover)| rollover));
        let automatic = Automatic {
            store,
            peering,
            peers,
            look_every,
        };
        Ok(Self {
            automatic: Some(automatic),
        })
    }
}

fn parameters(config: &RolloverConfig) -> Parameters {
    Parameters {
        far_end: config.trust.to_string(),
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
    let shortest = all
        .map(|rollover| rollover.interval)
        .min()
        .unwrap_or_default();
    (shortest / 5).clamp(Duration::from_secs(1), Duration::from_secs(30))
}

/// The running key manager.
pub(crate) struct Keys {
    control: Arc<Control>,
    chains: Arc<Chains>,
    peers: Option<Peers>,
}

/// The thread of the automatic peers.
struct Peers {
    stop: watch::Sender<bool>,
    thread: thread::JoinHandle<()>,
}

impl Keys {
    /// Starts with the datapath, which has the keys of `config`. Peers are listened for when it
    /// returns.
    pub(crate) fn start(
        prepared: Prepared,
        config: &Config,
        datapath: &Arc<SharedDatapath>,
        log: &EventLog,
    ) -> Result<Self, KeysError> {
        let events = Events(log.clone());
        let (peers, automatic) = match prepared.automatic {
            Some(prepared) => {
                let identity = prepared.peering.report.clone();
                let (peers, handle) = Peers::start(prepared, config, datapath, &events)?;
                (Some(peers), Some((handle, identity)))
            }
            None => (None, None),
        };
        let backend = Arc::clone(datapath);
        let chains = Chains::start(chain_peers(&config.peers), backend, events, Clock)?;
        let chains = Arc::new(chains);
        let control = Control::new(&config.peers, Arc::clone(&chains), automatic);
        Ok(Self {
            control: Arc::new(control),
            chains,
            peers,
        })
    }

    /// What answers operators.
    pub(crate) fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Follows a configuration whose key chains have changed: `apply` gives all peers to the
    /// datapath, automatic ones without keys, and may refuse.
    pub(crate) fn reload<T, E>(
        &self,
        peers: &[Peer],
        apply: impl FnOnce(&[PeerSpec]) -> Result<T, E>,
    ) -> Result<T, E> {
        let chain_peers = peers.iter().filter_map(chain_peer).collect();
        let applied = self.chains.replace(chain_peers, |keys| {
            let specs: Vec<PeerSpec> = peers.iter().map(|peer| with_keys(peer, keys)).collect();
            apply(&specs)
        })?;
        self.control.replace(peers);
        Ok(applied)
    }

    /// Stops: keys stay as they are.
    pub(crate) fn stop(&mut self) {
        if let Some(Peers { stop, thread }) = self.peers.take() {
            stop.send_replace(true);
            let _ = thread.join();
        }
        self.chains.stop();
    }
}

fn with_keys(peer: &Peer, keys: &[(Arc<str>, Vec<Arc<Mkt>>)]) -> PeerSpec {
    let of_peer = keys.iter().find(|(name, _)| *name == peer.spec.name);
    PeerSpec {
        keys: of_peer.map(|(_, keys)| keys.clone()).unwrap_or_default(),
        ..peer.spec.clone()
    }
}

fn chain_peer(peer: &Peer) -> Option<ChainPeer> {
    Some(ChainPeer {
        name: Arc::clone(&peer.spec.name),
        chain: Arc::clone(peer.keys.chain()?),
    })
}

/// Peers with a key chain, and the keys they started with.
fn chain_peers(peers: &[Peer]) -> Vec<(ChainPeer, Vec<Arc<Mkt>>)> {
    let both = |peer: &Peer| Some((chain_peer(peer)?, peer.spec.keys.clone()));
    peers.iter().filter_map(both).collect()
}

impl Peers {
    fn start(
        prepared: Automatic,
        config: &Config,
        datapath: &Arc<SharedDatapath>,
        events: &Events,
    ) -> Result<(Self, Handle), KeysError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(PEER_THREADS)
            .thread_name("ao-peers")
            .enable_all()
            .build()?;
        let Automatic {
            store,
            peering,
            peers,
            look_every,
        } = prepared;
        let server = {
            let _inside = runtime.enter();
            PeerServer::bind(
                &config.listen,
                &peering.identity,
                Arc::clone(&peering.partners),
                Limits::default(),
            )?
        };
        let IdentityReport { fingerprint, .. } = &peering.report;
        info!(
            fingerprint,
            peers = peers.len(),
            listen = ?server.addresses(),
            "keys are agreed with the peers' sidecars"
        );
        let (manager, handle) = Manager::new(
            peers,
            store,
            Arc::clone(datapath),
            Arc::clone(&peering),
            events.clone(),
            Clock,
            look_every,
        );
        let (stop, mut stopped) = watch::channel(false);
        let door = Arc::new(Door {
            handle: handle.clone(),
            peering,
        });
        let thread = thread::Builder::new()
            .name("ao-peering".to_owned())
            .spawn(move || {
                let _abort = AbortOnPanic;
                let mut stop = stopped.clone();
                let stop = async move {
                    // An error means that nobody is left to stop it, which is a wish to stop, too.
                    let _ = stop.wait_for(|&stop| stop).await;
                };
                runtime.block_on(async {
                    let serving = tokio::spawn(server.serve(door, stop));
                    tokio::select! {
                        () = manager.run() => {}
                        _ = stopped.wait_for(|&stop| stop) => {}
                    }
                    // Answers under way still go out.
                    let _ = tokio::time::timeout(LONGEST_STOP, serving).await;
                });
                // A transaction under way is completed.
                runtime.shutdown_timeout(LONGEST_STOP);
            })?;
        Ok((Self { stop, thread }, handle))
    }
}

/// A moment, for people: UTC to the second.
fn time_text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(
        |_| "a time beyond the calendar".to_owned(),
        |time| format!("{time:.0}"),
    )
}
