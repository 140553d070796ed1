//! The way to the far ends' sidecars: who we are, whom we trust, and calls in either direction.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use grpc_api::operator::IdentityReport;
use grpc_api::peer::{
    Authority, Caller as PeerCaller, Handler, Partner, Partners, PeerIdentity, Refused, Trust,
    TrustError, exchange,
};
use keymgr::identity::Identity;
use keymgr::rollover::message::Message;

use super::manager::{Call, Caller, Handle, Named, NoAnswer};
use crate::config::{
    Certificates, Config, Files, IdentityConfig, Peer, RolloverConfig, TrustConfig,
};

/// Longest time for a call, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why peers cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum PeeringError {
    /// There is no usable identity.
    #[error(transparent)]
    Identity(#[from] keymgr::identity::IdentityError),
    /// The identity does not serve TLS.
    #[error("the identity cannot be used: {0}")]
    Tls(#[from] grpc_api::peer::IdentityError),
    /// An authority's file cannot be read.
    #[error("peer {peer:?}: {} cannot be read: {source}", file.display())]
    AuthorityFile {
        /// The peer.
        peer: Arc<str>,
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An authority's file does not serve.
    #[error("peer {peer:?}: {source}")]
    Trust {
        /// The peer.
        peer: Arc<str>,
        /// Why.
        source: TrustError,
    },
}

/// Everything a call needs.
pub(super) struct Peering {
    pub(super) identity: PeerIdentity,
    pub(super) partners: Arc<Partners>,
    pub(super) report: IdentityReport,
    directory: RwLock<Arc<Directory>>,
    /// Given to the next peer that is begun.
    incarnation: AtomicU64,
}

/// The far ends, by the names of their peers.
pub(super) type Directory = BTreeMap<Arc<str>, FarEnd>;

pub(super) struct FarEnd {
    pub(super) config: RolloverConfig,
    /// See [`Planned::incarnation`](super::manager::Planned::incarnation).
    pub(super) incarnation: u64,
    trust: Trust,
    /// The certificates of `trust`, if it is an authority.
    roots: Option<Certificates>,
    /// Where calls are expected from.
    addresses: Vec<IpAddr>,
    /// The first edition of the partners that had this trust.
    since: u64,
}

impl FarEnd {
    /// Whether a state machine would notice the difference.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.config == other.config && self.roots == other.roots
    }
}

impl Peering {
    /// An identity, and no peers yet.
    pub(super) fn new(config: &Config) -> Result<Self, PeeringError> {
        let (identity, certificate) = match &config.identity {
            IdentityConfig::Own => (
                Identity::load_or_create(&config.state_dir)?,
                config.state_dir.join("identity.crt"),
            ),
            IdentityConfig::Files {
                cert_file,
                key_file,
            } => (Identity::load(cert_file, key_file)?, cert_file.clone()),
        };
        Ok(Self {
            report: report(&identity, &certificate, &config.listen),
            identity: PeerIdentity::new(identity.chain().to_vec(), identity.key())?,
            partners: Arc::new(Partners::new(Vec::new())),
            directory: RwLock::default(),
            incarnation: AtomicU64::new(0),
        })
    }

    /// The far ends of this moment.
    pub(super) fn directory(&self) -> Arc<Directory> {
        Arc::clone(
            &self
                .directory
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// What the far ends of a configuration need, for [`Peering::set`]. Nothing is changed.
    pub(super) fn directory_of(&self, config: &Config) -> Result<Directory, PeeringError> {
        let former = self.directory();
        let next_edition = self.partners.edition() + 1;
        let mut directory = Directory::new();
        let files = config.files();
        for (peer, config) in automatic(&config.peers) {
            let name = &peer.spec.name;
            let (trust, roots) = trust(name, &config.trust, files)?;
            let former = former.get(name);
            let same_trust = former
                .filter(|former| former.config.trust == config.trust && former.roots == roots);
            // Keys that another far end may have are not gone on with.
            let same_end = former.filter(|former| far_end(&former.config) == far_end(config));
            let addresses = [Some(peer.spec.remote.address()), config.endpoint.address()];
            let far_end = FarEnd {
                config: config.clone(),
                incarnation: same_end.map_or_else(|| self.next_incarnation(), |it| it.incarnation),
                trust,
                roots,
                addresses: addresses.into_iter().flatten().collect(),
                since: same_trust.map_or(next_edition, |former| former.since),
            };
            directory.insert(Arc::clone(name), far_end);
        }
        Ok(directory)
    }

    fn next_incarnation(&self) -> u64 {
        self.incarnation.fetch_add(1, Ordering::Relaxed)
    }

    /// From now on these are the far ends that are called. Those whose trust is new cannot call
    /// before [`Peering::admit`].
    pub(super) fn set(&self, directory: Directory) {
        let mut current = self
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(directory);
    }

    /// From now on the far ends that are called may call.
    pub(super) fn admit(&self) {
        let directory = self.directory();
        let partner = |(name, far_end): (&Arc<str>, &FarEnd)| Partner {
            name: Arc::clone(name),
            trust: far_end.trust.clone(),
            addresses: far_end.addresses.clone(),
        };
        self.partners
            .replace(directory.iter().map(partner).collect());
    }
}

/// With whom keys are agreed, as the records have it.
pub(super) fn far_end(config: &RolloverConfig) -> String {
    config.trust.to_string()
}

/// Peers whose keys are agreed.
pub(super) fn automatic(peers: &[Peer]) -> impl Iterator<Item = (&Peer, &RolloverConfig)> {
    peers
        .iter()
        .filter_map(|peer| Some((peer, peer.keys.rollover()?)))
}

fn report(identity: &Identity, certificate: &Path, listen: &[SocketAddr]) -> IdentityReport {
    IdentityReport {
        fingerprint: identity.fingerprint().to_string(),
        certificate_file: certificate.display().to_string(),
        expires: Some(identity.not_after()).filter(|end| *end > SystemTime::UNIX_EPOCH),
        listen: listen.iter().map(SocketAddr::to_string).collect(),
    }
}

/// How a far end is recognised.
fn trust(
    peer: &Arc<str>,
    config: &TrustConfig,
    files: &Files,
) -> Result<(Trust, Option<Certificates>), PeeringError> {
    let (ca_file, name) = match config {
        TrustConfig::Pinned(fingerprint) => return Ok((Trust::Pinned(*fingerprint), None)),
        TrustConfig::Authority { ca_file, name } => (ca_file, name),
    };
    let roots = files
        .certificates(ca_file)
        .map_err(|source| PeeringError::AuthorityFile {
            peer: Arc::clone(peer),
            file: ca_file.clone(),
            source,
        })?;
    let authority = Authority::new(&roots, name).map_err(|source| PeeringError::Trust {
        peer: Arc::clone(peer),
        source,
    })?;
    Ok((Trust::Authority(authority), Some(roots)))
}

impl Caller for Peering {
    fn call(self: Arc<Self>, peer: Named, message: Message) -> Call {
        Box::pin(async move {
            let directory = self.directory();
            let far_end = directory.get(&peer.name);
            let Some(far_end) = far_end.filter(|it| it.incarnation == peer.incarnation) else {
                return Err("the configuration has changed".to_owned());
            };
            let RolloverConfig {
                endpoint, label, ..
            } = &far_end.config;
            let (identity, trust) = (&self.identity, &far_end.trust);
            let answer = exchange(endpoint, identity, trust, label, &message, CALL_TIMEOUT);
            answer.await.map_err(|error| error.to_string())
        })
    }
}

/// Takes calls in.
pub(super) struct Door {
    pub(super) handle: Handle,
    pub(super) peering: Arc<Peering>,
}

impl Door {
    /// The peer that a call is about: its certificate may be that of several.
    fn peer(&self, caller: &PeerCaller) -> Result<Named, Refused> {
        let directory = self.peering.directory();
        let mut meant = caller.partners.iter().filter_map(|name| {
            let far_end = directory.get(name)?;
            (far_end.config.label == caller.label).then_some((name, far_end))
        });
        match (meant.next(), meant.next()) {
            // Recognised by what was trusted before, and is not any more.
            (Some((_, far_end)), None) if caller.edition < far_end.since => {
                let reason = "the configuration has just changed; connect again";
                Err(Refused::Unavailable(reason.to_owned()))
            }
            (Some((name, far_end)), None) => Ok(Named {
                name: Arc::clone(name),
                incarnation: far_end.incarnation,
            }),
            (None, _) => Err(Refused::Denied(format!(
                "no peering with you has the label {:?}: compare `label` of [peer.rollover]",
                caller.label
            ))),
            (Some(_), Some(_)) => Err(Refused::Denied(
                "your certificate is that of several peers".to_owned(),
            )),
        }
    }
}

impl Handler for Door {
    async fn exchange(&self, caller: PeerCaller, message: Message) -> Result<Message, Refused> {
        let peer = self.peer(&caller)?;
        let answer = self.handle.exchange(peer, message).await;
        answer.map_err(|why| match why {
            NoAnswer::Rejected(reason) => Refused::Invalid(reason),
            NoAnswer::NotNow => Refused::Unavailable("not now; call again".to_owned()),
        })
    }
}
