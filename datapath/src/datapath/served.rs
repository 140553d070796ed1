//! Peers with who serves them, and what follows from that for each backend.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ao_engine::policy::{Mkt, Policy, PolicyError};
use ao_sys::links::Links;

use crate::choice::Decision;
use crate::kernel::Target;
use crate::keys::KeyError;
use crate::policy::{self, Keyed};
use crate::report::PeerReport;
use crate::settings::{Backend, Choice, PeerSpec};

/// A peer, and who serves it.
#[derive(Clone)]
pub(super) struct Served {
    /// As configured, with the keys it has now.
    pub(super) spec: PeerSpec,
    /// SendIDs of keys that nothing is to be signed with.
    pub(super) accept_only: Vec<u8>,
    pub(super) decision: Decision,
}

impl Served {
    /// A peer that is new; its backend is still to be decided.
    pub(super) fn undecided(spec: PeerSpec) -> Self {
        Self {
            spec,
            accept_only: Vec::new(),
            decision: Decision {
                backend: Backend::Userspace,
                reason: String::new(),
            },
        }
    }

    /// Whether its sessions are to be found where those of `spec` are.
    pub(super) fn has_place_of(&self, spec: &PeerSpec) -> bool {
        let one = (
            &self.spec.remote,
            &self.spec.local,
            &self.spec.interface,
            &self.spec.vrf,
        );
        one == (&spec.remote, &spec.local, &spec.interface, &spec.vrf)
    }

    /// Whether it is configured as `spec` is, but for keys.
    pub(super) fn has_settings_of(&self, spec: &PeerSpec) -> bool {
        let one = (&self.spec.ports, self.spec.ttl_min, self.spec.datapath);
        self.has_place_of(spec) && one == (&spec.ports, spec.ttl_min, spec.datapath)
    }

    /// Configures it as `spec` is, but for keys.
    pub(super) fn take_settings(&mut self, spec: &PeerSpec) {
        let keys = std::mem::take(&mut self.spec.keys);
        self.spec = PeerSpec {
            keys,
            ..spec.clone()
        };
    }

    /// Adds a key behind those there are; one that is there already stays where it is.
    pub(super) fn install(&mut self, mkt: &Arc<Mkt>) -> Result<(), KeyError> {
        let keys = &mut self.spec.keys;
        if keys.iter().any(|key| key.is_same(mkt)) {
            return Ok(());
        }
        let collides = |key: &Arc<Mkt>| key.send_id == mkt.send_id || key.recv_id == mkt.recv_id;
        if keys.iter().any(collides) {
            return Err(KeyError::Taken {
                send_id: mkt.send_id,
                recv_id: mkt.recv_id,
            });
        }
        keys.push(Arc::clone(mkt));
        Ok(())
    }

    /// Makes a key the first.
    pub(super) fn select(&mut self, send_id: u8) -> Result<(), KeyError> {
        let place = self.place(send_id)?;
        if let Some(newer) = self.spec.keys.get_mut(..=place) {
            newer.rotate_right(1);
        }
        self.accept_only.retain(|&id| id != send_id);
        Ok(())
    }

    /// Lets a key accept only.
    pub(super) fn retire(&mut self, send_id: u8) -> Result<(), KeyError> {
        if self.place(send_id)? == 0 {
            return Err(KeyError::First(send_id));
        }
        if !self.accept_only.contains(&send_id) {
            self.accept_only.push(send_id);
        }
        Ok(())
    }

    /// Removes a key, if it is there.
    pub(super) fn delete(&mut self, send_id: u8) {
        self.spec.keys.retain(|key| key.send_id != send_id);
        self.accept_only_what_is_there();
    }

    /// Replaces all keys; whether that changes anything. Keys that stay go on accepting only.
    pub(super) fn replace(&mut self, keys: &[Arc<Mkt>]) -> bool {
        let changed = !same_keys(&self.spec.keys, keys);
        if changed {
            let before = std::mem::replace(&mut self.spec.keys, keys.to_vec());
            let stays = |id: &u8| {
                let of = |keys: &[Arc<Mkt>]| keys.iter().find(|key| key.send_id == *id).cloned();
                matches!((of(&before), of(keys)), (Some(a), Some(b)) if a.is_same(&b))
            };
            self.accept_only.retain(stays);
            self.accept_only_what_is_there();
        }
        changed
    }

    /// The first key is to be sent with, whatever it was before.
    fn accept_only_what_is_there(&mut self) {
        let keys = &self.spec.keys;
        let others = || keys.iter().skip(1);
        self.accept_only
            .retain(|&id| others().any(|key| key.send_id == id));
    }

    fn place(&self, send_id: u8) -> Result<usize, KeyError> {
        let mut keys = self.spec.keys.iter();
        keys.position(|key| key.send_id == send_id)
            .ok_or(KeyError::UnknownKey(send_id))
    }

    pub(super) fn keyed(&self) -> Keyed<'_> {
        Keyed {
            spec: &self.spec,
            keys: &self.spec.keys,
            accept_only: &self.accept_only,
        }
    }
}

pub(super) fn served(peers: &[PeerSpec], decisions: Vec<Decision>) -> Vec<Served> {
    let decided = peers.iter().cloned().zip(decisions);
    decided
        .map(|(spec, decision)| Served {
            spec,
            accept_only: Vec::new(),
            decision,
        })
        .collect()
}

/// Who serves each peer, by its name.
pub(super) fn backends(peers: &[Served]) -> HashMap<Arc<str>, Backend> {
    let backend = |peer: &Served| (Arc::clone(&peer.spec.name), peer.decision.backend);
    peers.iter().map(backend).collect()
}

/// Whether any peer may ever be the userspace backend's.
pub(super) fn needs_queues<'a>(peers: impl IntoIterator<Item = &'a PeerSpec>) -> bool {
    let mut peers = peers.into_iter().peekable();
    peers.peek().is_none() || peers.any(|peer| peer.datapath != Choice::Kernel)
}

/// The policy of the userspace engine. The kernel's peers are in it without keys: it serves none
/// of their connections, nor takes one for that of a peer with a shorter prefix.
pub(super) fn engine_policy(peers: &[Served], links: &Links) -> Result<Policy, PolicyError> {
    let keyed = peers.iter().map(|peer| match peer.decision.backend {
        Backend::Userspace => peer.keyed(),
        Backend::Kernel => Keyed {
            spec: &peer.spec,
            keys: &[],
            accept_only: &[],
        },
    });
    policy::resolve_keyed(keyed, links)
}

/// What the kernel's sockets should have.
pub(super) fn kernel_target(
    former: &Target,
    peers: &[Served],
    links: &Arc<Links>,
) -> Result<Target, PolicyError> {
    let policy = policy::resolve_keyed(peers.iter().map(Served::keyed), links)?;
    let ours = peers
        .iter()
        .filter(|peer| peer.decision.backend == Backend::Kernel)
        .map(|peer| Arc::clone(&peer.spec.name));
    Ok(Target::after(
        former,
        Arc::new(policy),
        ours.collect(),
        Arc::clone(links),
    ))
}

fn same_keys(one: &[Arc<Mkt>], other: &[Arc<Mkt>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a.is_same(b))
}

pub(super) fn peer_report(peer: &Served) -> PeerReport {
    let Served { spec, decision, .. } = peer;
    let address = match &spec.interface {
        Some(interface) => format!("{}%{interface}", spec.remote),
        None => spec.remote.to_string(),
    };
    PeerReport {
        name: Arc::clone(&spec.name),
        address,
        backend: decision.backend,
        backend_reason: decision.reason.clone(),
        keys: u32::try_from(spec.keys.len()).unwrap_or(u32::MAX),
        sessions: 0,
        segments_good: 0,
        segments_sent: 0,
        drops: BTreeMap::new(),
        last_refused: None,
    }
}

#[cfg(test)]
mod tests {
    use ao_engine::crypto::{Algorithm, MasterKey};
    use ao_engine::policy::{ConnectionId, Prefix};

    use super::*;

    fn served_by(backend: Backend, name: &str, remote: Prefix) -> Served {
        let key = Mkt {
            send_id: 1,
            recv_id: 1,
            algorithm: Algorithm::HmacSha1_96,
            master_key: MasterKey::new(b"secret").unwrap(),
            include_options: true,
        };
        Served {
            spec: PeerSpec {
                name: name.into(),
                remote,
                local: None,
                ports: 179..=179,
                interface: None,
                vrf: None,
                keys: vec![Arc::new(key)],
                algorithms: Vec::new(),
                ttl_min: 0,
                datapath: Choice::Auto,
            },
            accept_only: Vec::new(),
            decision: Decision {
                backend,
                reason: String::new(),
            },
        }
    }

    /// Its connections are not the wider peer's, whose keys they would be signed with.
    #[test]
    fn a_kernel_peer_hides_the_wider_userspace_peer_from_the_engine() {
        let address = "10.0.0.2".parse().unwrap();
        let wide = Prefix::new("10.0.0.0".parse().unwrap(), 24).unwrap();
        let peers = [
            served_by(Backend::Kernel, "host", Prefix::host(address)),
            served_by(Backend::Userspace, "net", wide),
        ];
        let policy = engine_policy(&peers, &Links::default()).unwrap();
        let connection = ConnectionId {
            domain: 0,
            interface: 0,
            local: "10.0.0.1".parse().unwrap(),
            remote: address,
            local_port: 40000,
            remote_port: 179,
        };
        let found = &policy.peers()[policy.find(&connection).unwrap()];
        assert_eq!((&*found.name, found.keys.len()), ("host", 0));
        let other = ConnectionId {
            remote: "10.0.0.3".parse().unwrap(),
            ..connection
        };
        let found = &policy.peers()[policy.find(&other).unwrap()];
        assert_eq!((&*found.name, found.keys.len()), ("net", 1));
    }

    #[test]
    fn queues_are_needed_unless_all_peers_are_the_kernels_by_configuration() {
        let remote = Prefix::host("10.0.0.2".parse().unwrap());
        let peer = |datapath| PeerSpec {
            datapath,
            ..served_by(Backend::Kernel, "p", remote).spec
        };
        assert!(!needs_queues(&[peer(Choice::Kernel), peer(Choice::Kernel)]));
        assert!(needs_queues(&[peer(Choice::Kernel), peer(Choice::Auto)]));
        assert!(needs_queues(&[peer(Choice::Userspace)]));
    }
}
