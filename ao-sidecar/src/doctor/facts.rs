//! What is known of one moment: plain data, without secrets.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ao_engine::crypto::Algorithm;
use ao_engine::policy::{Mkt, Prefix};
use datapath::evidence::{LocalFacts, PeerEvidence, PeerLocal, Socket, Strangers, TcpState};
use datapath::report::{PeerReport, Report, Session, SessionState};
use datapath::settings::Choice;
use grpc_api::operator::RolloverReport;
use grpc_api::operator::administration::Origin;
use keymgr::chain::{Key, KeyChain, OnExpiry};
use keymgr::lifetime::Lifetime;

/// Everything a diagnosis is judged by.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The moment, by the wall clock.
    pub now: SystemTime,
    /// What key chains go by instead, while the wall clock is not believed.
    pub trusted: Option<SystemTime>,
    /// Time since rules and guard became active.
    pub uptime: Duration,
    /// The configuration file.
    pub config_file: PathBuf,
    /// The peers in question, in the order of the configuration.
    pub peers: Vec<PeerFacts>,
    /// The datapath as a whole; peers and sessions are in `peers`.
    pub report: Report,
    /// What it restored and dropped before it was listened; absent when it was not.
    pub before: Option<Before>,
    /// This host; peers are in `peers`.
    pub host: LocalFacts,
    /// How long it was listened.
    pub listened: Duration,
    /// SYNs of nobody's; nothing when it was not listened.
    pub strangers: Strangers,
    /// Peers of the configuration that are not served.
    pub left_out: Vec<Arc<str>>,
    /// What could not be found out, for people.
    pub unknown: Vec<String>,
}

/// Counts of the datapath before it was listened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Times the watcher had to put rules back.
    pub rules_restored: u64,
    /// Packets that queues lost.
    pub lost: u64,
}

/// A peer.
#[derive(Clone, Debug)]
pub struct PeerFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Addresses of the far end.
    pub remote: Prefix,
    /// Address of this end; any when absent.
    pub local: Option<IpAddr>,
    /// Interface of a link-local peer.
    pub interface: Option<String>,
    /// VRF device.
    pub vrf: Option<String>,
    /// Protected ports.
    pub ports: RangeInclusive<u16>,
    /// Lowest TTL or hop limit accepted.
    pub ttl_min: u8,
    /// Which backend is wanted.
    pub datapath: Choice,
    /// Whether it was made by API, and is not in the file.
    pub made_by_api: bool,
    /// What the datapath says.
    pub report: PeerReport,
    /// Its sessions.
    pub sessions: Vec<Session>,
    /// Its keys.
    pub keys: Keys,
    /// What was seen on the wire; absent when it was not listened to.
    pub evidence: Option<PeerEvidence>,
    /// What this host knows; absent when that cannot be read.
    pub host: Option<PeerLocal>,
    /// Whether a program tried to connect to it while it was looked at.
    pub tried: bool,
}

/// Where keys come from, and how they are.
#[derive(Clone, Debug)]
pub enum Keys {
    /// A key chain.
    Chain(ChainFacts),
    /// They are agreed with the far end's sidecar.
    Agreed {
        /// How that stands; absent while the peer is not known to the key manager yet.
        rollover: Option<Box<RolloverReport>>,
        /// Generations that the datapath may have.
        keys: Vec<KeyFacts>,
    },
}

/// A key chain at the moment in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFacts {
    /// Its name.
    pub name: String,
    /// Its keys.
    pub keys: Vec<KeyFacts>,
    /// What happens without a key to send with.
    pub on_expiry: OnExpiry,
    /// Since when there is no key to send with, though there was one.
    pub expired: Option<SystemTime>,
    /// When there is no key to send with any more, for good.
    pub ends: Option<SystemTime>,
    /// When the next key begins.
    pub next: Option<SystemTime>,
    /// Whether any of its keys has a lifetime.
    pub has_lifetimes: bool,
}

/// A key, without its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    /// KeyID this end sends.
    pub send_id: u8,
    /// KeyID this end expects.
    pub recv_id: u8,
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// Whether the MAC covers the other TCP options.
    pub include_options: bool,
    /// Whether it is accepted at the moment in question.
    pub active: bool,
    /// Whether it was made by API, and is not in the file.
    pub made_by_api: bool,
}

impl KeyFacts {
    pub(super) fn of(mkt: &Mkt, active: bool, made_by_api: bool) -> Self {
        Self {
            send_id: mkt.send_id,
            recv_id: mkt.recv_id,
            algorithm: mkt.algorithm,
            include_options: mkt.include_options,
            active,
            made_by_api,
        }
    }
}

impl ChainFacts {
    /// The chain at `now`. `origins` has where its keys were made, in their order.
    pub(super) fn of(chain: &KeyChain, origins: &[Origin], now: SystemTime) -> Self {
        let wanted = chain.at(now);
        let place = |mkt: &Arc<Mkt>| wanted.keys.iter().position(|other| Arc::ptr_eq(mkt, other));
        let mut keys: Vec<_> = (chain.keys().iter().enumerate())
            .map(|(index, key)| {
                let by_api = origins.get(index) == Some(&Origin::Api);
                let place = place(&key.mkt);
                (place, KeyFacts::of(&key.mkt, place.is_some(), by_api))
            })
            .collect();
        // Those wanted come first, in their order of preference.
        keys.sort_by_key(|(place, _)| place.unwrap_or(usize::MAX));
        let sends = || chain.keys().iter().map(|key| key.send);
        let next = sends()
            .filter_map(|send| send.start())
            .filter(|start| *start > now)
            .min();
        let past = sends()
            .filter_map(|send| send.end())
            .filter(|end| *end <= now);
        let bounded = |key: &Key| key.send != Lifetime::ALWAYS || key.accept != Lifetime::ALWAYS;
        Self {
            name: chain.name().to_owned(),
            keys: keys.into_iter().map(|(_, key)| key).collect(),
            on_expiry: chain.rules().on_expiry,
            expired: wanted.expired.map(|_| past.max().unwrap_or(now)),
            ends: chain.expires(),
            next,
            has_lifetimes: chain.keys().iter().any(bounded),
        }
    }
}

impl Keys {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[KeyFacts] {
        match self {
            Self::Chain(chain) => &chain.keys,
            Self::Agreed { keys, .. } => keys,
        }
    }

    /// The key that new sessions begin with.
    #[must_use]
    pub fn first(&self) -> Option<&KeyFacts> {
        self.all().iter().find(|key| key.active)
    }
}

impl PeerFacts {
    /// Sessions on which segments have verified under both ISNs, and which the local TCP has, too:
    /// it may never have got what verified.
    pub fn established(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter().filter(|session| {
            session.state == SessionState::Established
                && self.host.as_ref().is_none_or(|host| {
                    let mut sockets = host.sockets.iter();
                    sockets.any(|socket| is_of(socket, session))
                })
        })
    }

    /// Whether it has a session.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.established().next().is_some()
    }

    /// Whether it has a session of before a restart, which has not been heard since.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        let restored = |session: &Session| session.state == SessionState::Restored;
        self.sessions.iter().any(restored)
    }

    /// Whether it stands for any number of far ends, which may be away.
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        !self.remote.is_host()
    }

    /// Its address with interface and VRF, as people write it.
    #[must_use]
    pub fn address(&self) -> String {
        let mut text = self.remote.to_string();
        if let Some(interface) = &self.interface {
            text.push('%');
            text.push_str(interface);
        }
        text
    }
}

/// Whether a socket is the local end of a session.
fn is_of(socket: &Socket, session: &Session) -> bool {
    let same = |one: SocketAddr, other: SocketAddr| {
        (one.ip().to_canonical(), one.port()) == (other.ip().to_canonical(), other.port())
    };
    socket.state == TcpState::Established
        && same(socket.local, session.local)
        && same(socket.remote, session.remote)
}
