//! The way to the far ends' sidecars: who we are, whom we trust, and calls in either direction.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use grpc_api::operator::IdentityReport;
use grpc_api::peer::{
    Authority, Caller as PeerCaller, Endpoint, Handler, Partner, Partners, PeerIdentity, Refused,
    Trust, TrustError, exchange,
};
use keymgr::identity::Identity;
use keymgr::rollover::message::Message;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::manager::{Call, Caller, Handle, NoAnswer};
use crate::config::{Config, IdentityConfig, Peer, RolloverConfig, TrustConfig};

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
    far_ends: HashMap<Arc<str>, FarEnd>,
}

struct FarEnd {
    endpoint: Endpoint,
    trust: Trust,
    label: String,
}

impl Peering {
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
        let mut far_ends = HashMap::new();
        let mut partners = Vec::new();
        for (peer, rollover) in automatic(&config.peers) {
            let name = &peer.spec.name;
            let trust = trust(name, &rollover.trust)?;
            let endpoint = &rollover.endpoint;
            let address: IpAddr = peer.spec.remote.address();
            partners.push(Partner {
                name: Arc::clone(name),
                trust: trust.clone(),
                addresses: [Some(address), endpoint.address()]
                    .into_iter()
                    .flatten()
                    .collect(),
            });
            let far_end = FarEnd {
                endpoint: endpoint.clone(),
                trust,
                label: rollover.label.clone(),
            };
            far_ends.insert(Arc::clone(name), far_end);
        }
        Ok(Self {
            report: report(&identity, &certificate, &config.listen),
            identity: PeerIdentity::new(identity.chain().to_vec(), identity.key())?,
            partners: Arc::new(Partners::new(partners)),
            far_ends,
        })
    }
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

fn trust(peer: &Arc<str>, config: &TrustConfig) -> Result<Trust, PeeringError> {
    match config {
        TrustConfig::Pinned(fingerprint) => Ok(Trust::Pinned(*fingerprint)),
        TrustConfig::Authority { ca_file, name } => {
            let roots = certificates(ca_file).map_err(|source| PeeringError::AuthorityFile {
                peer: Arc::clone(peer),
                file: ca_file.clone(),
                source,
            })?;
            let authority = Authority::new(&roots, name).map_err(|source| PeeringError::Trust {
                peer: Arc::clone(peer),
                source,
            })?;
            Ok(Trust::Authority(authority))
        }
    }
}

fn certificates(file: &Path) -> io::Result<Vec<Vec<u8>>> {
    let text = fs::read(file)?;
    CertificateDer::pem_slice_iter(&text)
        .map(|certificate| {
            let certificate = certificate.map_err(|e| io::Error::other(e.to_string()))?;
            Ok(certificate.to_vec())
        })
        .collect()
}

impl Caller for Peering {
    fn call(self: Arc<Self>, peer: Arc<str>, message: Message) -> Call {
        Box::pin(async move {
            let Some(FarEnd {
                endpoint,
                trust,
                label,
            }) = self.far_ends.get(&peer)
            else {
                return Err("the peer has no endpoint".to_owned());
            };
            let identity = &self.identity;
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
    fn peer(&self, caller: &PeerCaller) -> Result<Arc<str>, Refused> {
        let is_meant = |peer: &&Arc<str>| {
            let far_end = self.peering.far_ends.get(&***peer);
            far_end.is_some_and(|far_end| far_end.label == caller.label)
        };
        let mut meant = caller.partners.iter().filter(is_meant);
        match (meant.next(), meant.next()) {
            (Some(peer), None) => Ok(Arc::clone(peer)),
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
