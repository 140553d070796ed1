//! How a running daemon comes by the facts.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ao_engine::policy::Mkt;
use datapath::Datapath;
use datapath::evidence::{Evidence, LocalFacts, PeerLocal, Socket, TcpState};
use datapath::report::{PeerReport, Report};
use grpc_api::operator::administration::{Finding, Origin};
use grpc_api::operator::{ControlError, KeyControl, KeyOrigin, KeyReport, KeyState};
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::facts::{Before, ChainFacts, Facts, KeyFacts, Keys, PeerFacts};
use super::judge::{judge, needs_listening};
use crate::config::{Config, KeySource, Peer};
use crate::keys::{Control, SharedDatapath};

/// Apart from which two readings of the clock are of a clock that jumped.
const APART: Duration = Duration::from_secs(5);
/// Between two looks at counts that should not grow.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// How often it is looked who tries to connect, while it is listened.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a diagnosis needs of the running daemon.
#[derive(Clone)]
pub(crate) struct Parts {
    /// The configuration in use.
    pub(crate) config: Arc<Config>,
    /// The file it is from.
    pub(crate) config_file: PathBuf,
    /// When rules and guard became active.
    pub(crate) started: Instant,
    /// The datapath.
    pub(crate) datapath: Arc<SharedDatapath>,
    /// The keys.
    pub(crate) control: Arc<Control>,
    /// Whether the daemon stops: then nobody is listened to any more.
    pub(crate) stop: watch::Receiver<bool>,
}

/// Finds out what is wrong with `peer`, which is configured, or with any; listens to peers without
/// a session for up to `listen`. It ends early when the caller does not wait for it any more.
pub(crate) async fn diagnose(
    parts: Parts,
    peer: Option<&str>,
    listen: Duration,
) -> Result<Vec<Finding>, ControlError> {
    let peer: Option<Arc<str>> = peer.map(Arc::from);
    let mut facts = look(&parts, peer.clone()).await?;
    let wanted: Vec<Arc<str>> = facts
        .peers
        .iter()
        .filter(|peer| needs_listening(&facts, peer))
        .map(|peer| Arc::clone(&peer.name))
        .collect();
    let before = Before::of(&facts.report);
    if wanted.is_empty() || listen.is_zero() {
        if before != Before::default() {
            // Whether that goes on is seen by another look.
            sleep(BETWEEN_LOOKS).await;
            facts = look(&parts, peer).await?;
            facts.before = Some(before);
        }
        return Ok(judge(&facts));
    }
    let Heard { evidence, tried } = hear(&parts, wanted, listen).await?;
    // Sessions may have come up meanwhile, and daemons given up.
    facts = look(&parts, peer).await?;
    facts.before = Some(before);
    for peer in &mut facts.peers {
        peer.tried |= tried.contains(&peer.name);
    }
    match evidence {
        Ok(evidence) => facts.hear(evidence),
        Err(failure) => facts.unknown.push(failure),
    }
    Ok(judge(&facts))
}

/// Everything but what is on the wire.
async fn look(parts: &Parts, peer: Option<Arc<str>>) -> Result<Facts, ControlError> {
    let rollovers = parts.control.rollovers(peer.as_deref()).await?;
    let agreed = parts.control.keys(peer.as_deref()).await?;
    let parts = parts.clone();
    // Reports, sockets and the chains' clock may all take a moment.
    let facts = spawn_blocking(move || {
        let mut facts = here(&parts, peer.as_deref())?;
        for peer in &mut facts.peers {
            if let Keys::Agreed { rollover, keys } = &mut peer.keys {
                let of_peer = rollovers.iter().find(|it| it.peer == peer.name);
                *rollover = of_peer.cloned().map(Box::new);
                let of_peer = agreed.iter().filter(|key| key.peer == peer.name);
                *keys = of_peer.filter_map(agreed_key).collect();
            }
        }
        Some(facts)
    });
    facts
        .await
        .map_err(|_| ControlError::Refused("the state could not be read".to_owned()))?
        .ok_or(ControlError::Stopping)
}

/// A generation that the datapath may have.
fn agreed_key(report: &KeyReport) -> Option<KeyFacts> {
    let (send_id, recv_id) = report.ids?;
    let gone = matches!(
        report.state,
        KeyState::Deleted | KeyState::Revoked | KeyState::Agreed | KeyState::Offered
    );
    matches!(report.origin, KeyOrigin::Rollover { .. } if !gone).then_some(KeyFacts {
        send_id,
        recv_id,
        algorithm: report.algorithm.parse().ok()?,
        include_options: true,
        active: true,
        made_by_api: false,
    })
}

/// What datapath, configuration and this host say; nothing while the daemon stops.
fn here(parts: &Parts, asked: Option<&str>) -> Option<Facts> {
    let now = SystemTime::now();
    let chain_time = parts.control.chain_time();
    let trusted = (apart(now, chain_time) > APART).then_some(chain_time);
    let peers = || {
        let all = parts.config.peers.iter();
        all.filter(|peer| asked.is_none_or(|asked| *peer.spec.name == *asked))
    };
    let names: Vec<Arc<str>> = peers().map(|peer| Arc::clone(&peer.spec.name)).collect();
    let (report, host) = parts
        .datapath
        .with(|datapath| (datapath.report(), datapath.local(&names)))?;
    let mut unknown = Vec::new();
    let mut host = host.unwrap_or_else(|error| {
        unknown.push(format!(
            "sockets and routes of this host cannot be read: {error}"
        ));
        // What is not known is not held against it.
        LocalFacts {
            net_admin: true,
            net_raw: true,
            sys_ptrace: true,
            ..LocalFacts::default()
        }
    });
    let time = trusted.unwrap_or(now);
    let peers = peers().map(|peer| peer_facts(&parts.config, peer, &report, &mut host, time));
    let peers = peers.collect();
    Some(Facts {
        now,
        trusted,
        uptime: parts.started.elapsed(),
        config_file: parts.config_file.clone(),
        peers,
        report: Report {
            peers: Vec::new(),
            sessions: Vec::new(),
            ..report
        },
        before: None,
        host,
        listened: Duration::ZERO,
        strangers: datapath::evidence::Strangers::default(),
        left_out: match asked {
            None => {
                let left_out = parts.config.left_out.iter();
                left_out.map(|peer| Arc::clone(&peer.spec.name)).collect()
            }
            Some(_) => Vec::new(),
        },
        unknown,
    })
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other)
        .unwrap_or_else(|earlier| earlier.duration())
}

fn peer_facts(
    config: &Config,
    peer: &Peer,
    report: &Report,
    host: &mut LocalFacts,
    now: SystemTime,
) -> PeerFacts {
    let spec = &peer.spec;
    let of_peer = report.peers.iter().find(|it| it.name == spec.name);
    let sessions = report.sessions.iter().filter(|it| it.peer == spec.name);
    let place = host.peers.iter().position(|it| it.peer == spec.name);
    PeerFacts {
        name: Arc::clone(&spec.name),
        remote: spec.remote,
        local: spec.local,
        interface: spec.interface.clone(),
        vrf: spec.vrf.clone(),
        ports: spec.ports.clone(),
        ttl_min: spec.ttl_min,
        datapath: spec.datapath,
        made_by_api: peer.origin == Origin::Api,
        report: of_peer.cloned().unwrap_or_else(|| not_served(peer)),
        sessions: sessions.cloned().collect(),
        keys: keys(config, peer, now),
        evidence: None,
        tried: place
            .and_then(|place| host.peers.get(place))
            .is_some_and(|host| host.sockets.iter().any(is_trying)),
        host: place.map(|place| host.peers.swap_remove(place)),
    }
}

/// A peer that the datapath does not have yet.
fn not_served(peer: &Peer) -> PeerReport {
    PeerReport {
        name: Arc::clone(&peer.spec.name),
        address: peer.spec.remote.to_string(),
        backend: datapath::settings::Backend::Userspace,
        backend_reason: String::new(),
        keys: 0,
        sessions: 0,
        segments_good: 0,
        segments_sent: 0,
        drops: std::collections::BTreeMap::new(),
        last_refused: None,
    }
}

fn keys(config: &Config, peer: &Peer, now: SystemTime) -> Keys {
    match &peer.keys {
        KeySource::Static(chain) => {
            let mut chains = config.chains.iter();
            let known = chains.find(|known| known.keys.name() == chain.name());
            let origins = known.map_or(&[][..], |known| &known.key_origins);
            Keys::Chain(ChainFacts::of(chain, origins, now))
        }
        KeySource::Rollover(_) => Keys::Agreed {
            rollover: None,
            keys: Vec::new(),
        },
    }
}

/// What listening came to.
struct Heard {
    /// What was on the wire, or why that is not known.
    evidence: Result<Evidence, String>,
    /// Peers that a program tried to connect to meanwhile.
    tried: HashSet<Arc<str>>,
}

/// Listens to peers, in a thread of its own: the runtime has few.
async fn hear(
    parts: &Parts,
    peers: Vec<Arc<str>>,
    at_most: Duration,
) -> Result<Heard, ControlError> {
    let (sender, heard) = oneshot::channel();
    let (datapath, stop) = (Arc::clone(&parts.datapath), parts.stop.clone());
    let extra = keys_of_other_times(&parts.config, &peers);
    let listen = move || {
        let tried = RefCell::new(HashSet::new());
        let looked = Cell::new(None::<Instant>);
        let evidence = datapath.with(|datapath| {
            let go_on = || {
                if looked.get().is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                    tried.borrow_mut().extend(trying(datapath, &peers));
                    looked.set(Some(Instant::now()));
                }
                !sender.is_closed() && !*stop.borrow()
            };
            datapath.listen(&peers, &extra, at_most, true, &go_on)
        });
        // The caller may have gone away.
        let _ = sender.send(evidence.map(|evidence| (evidence, tried.into_inner())));
    };
    thread::Builder::new()
        .name("ao-doctor".to_owned())
        .spawn(listen)
        .map_err(|error| ControlError::Refused(format!("the system refused a thread: {error}")))?;
    let heard = heard.await.ok().flatten();
    let (evidence, tried) = heard.ok_or(ControlError::Stopping)?;
    let unheard = |error| format!("segments of the peers cannot be listened to: {error}");
    Ok(Heard {
        evidence: evidence.map_err(unheard),
        tried,
    })
}

/// Peers that a program tries to connect to at this moment. An attempt may end, for want of the next
/// hop's link-layer address, without any segment.
fn trying(datapath: &Datapath, peers: &[Arc<str>]) -> Vec<Arc<str>> {
    let host = datapath.local(peers).unwrap_or_default();
    let tries = |peer: &PeerLocal| peer.sockets.iter().any(is_trying);
    let trying = host.peers.into_iter().filter(tries);
    trying.map(|peer| peer.peer).collect()
}

fn is_trying(socket: &Socket) -> bool {
    socket.state == TcpState::SynSent
}

/// All keys of the chains of these peers: the datapath has those of this moment.
fn keys_of_other_times(config: &Config, peers: &[Arc<str>]) -> Vec<(Arc<str>, Arc<Mkt>)> {
    let wanted = config
        .peers
        .iter()
        .filter(|peer| peers.contains(&peer.spec.name));
    let keys = wanted.filter_map(|peer| {
        let keys = peer.keys.chain()?.keys().iter();
        Some(keys.map(|key| (Arc::clone(&peer.spec.name), Arc::clone(&key.mkt))))
    });
    keys.flatten().collect()
}

impl Before {
    fn of(report: &Report) -> Self {
        let lost = report
            .queues
            .iter()
            .map(|queue| queue.dropped + queue.overruns);
        Self {
            rules_restored: report.rules_restored,
            lost: lost.sum(),
        }
    }
}

impl Facts {
    /// Takes in what was heard.
    fn hear(&mut self, evidence: Evidence) {
        self.listened = evidence.listened;
        self.strangers = evidence.strangers;
        if evidence.missed > 0 {
            self.unknown.push(format!(
                "{} handshake packets came faster than they could be looked at",
                evidence.missed
            ));
        }
        for heard in evidence.peers {
            let mut peers = self.peers.iter_mut();
            if let Some(peer) = peers.find(|peer| peer.name == heard.peer) {
                peer.evidence = Some(heard);
            }
        }
    }
}
