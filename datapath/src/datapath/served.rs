//! Peers with who serves them, and what follows from that for each backend.

use std::sync::Arc;

use ao_engine::policy::{Mkt, Policy, PolicyError};
use ao_sys::links::Links;

use crate::choice::Decision;
use crate::kernel::Target;
use crate::policy;
use crate::report::PeerReport;
use crate::settings::{Backend, Choice, PeerSpec};

/// A peer, and who serves it.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) spec: PeerSpec,
    pub(super) decision: Decision,
}

pub(super) fn served(peers: &[PeerSpec], decisions: Vec<Decision>) -> Vec<Served> {
    let decided = peers.iter().cloned().zip(decisions);
    decided
        .map(|(spec, decision)| Served { spec, decision })
        .collect()
}

pub(super) fn backend_of(peers: &[Served], name: &str) -> Backend {
    let found = peers.iter().find(|peer| &*peer.spec.name == name);
    found.map_or(Backend::Userspace, |peer| peer.decision.backend)
}

/// Whether any peer may ever be the userspace backend's.
pub(super) fn needs_queues(peers: &[PeerSpec]) -> bool {
    peers.is_empty() || peers.iter().any(|peer| peer.datapath != Choice::Kernel)
}

/// The policy of the userspace engine. The kernel's peers are in it without keys: it serves none
/// of their connections, nor takes one for that of a peer with a shorter prefix.
pub(super) fn engine_policy(peers: &[Served], links: &Links) -> Result<Policy, PolicyError> {
    let spec = |peer: &Served| {
        let mut spec = peer.spec.clone();
        if peer.decision.backend == Backend::Kernel {
            spec.keys.clear();
        }
        spec
    };
    let specs: Vec<PeerSpec> = peers.iter().map(spec).collect();
    policy::resolve(&specs, links)
}

/// What the kernel's sockets should have.
pub(super) fn kernel_target(
    former: &Target,
    peers: &[Served],
    links: &Arc<Links>,
) -> Result<Target, PolicyError> {
    let specs: Vec<PeerSpec> = peers.iter().map(|peer| peer.spec.clone()).collect();
    let ours = peers
        .iter()
        .filter(|peer| peer.decision.backend == Backend::Kernel)
        .map(|peer| Arc::clone(&peer.spec.name));
    Ok(Target::after(
        former,
        Arc::new(policy::resolve(&specs, links)?),
        ours.collect(),
        Arc::clone(links),
    ))
}

/// What differs between the peers served and those wanted, other than keys.
pub(super) fn differences(served: &[Served], wanted: &[PeerSpec]) -> Vec<String> {
    let named = |name: &str| served.iter().find(|peer| &*peer.spec.name == name);
    let mut differences = Vec::new();
    for new in wanted {
        match named(&new.name) {
            None => differences.push(format!("peer {:?} is new", new.name)),
            Some(Served { spec, .. }) => differences.extend(
                differing_settings(spec, new)
                    .map(|setting| format!("peer {:?} has another {setting}", new.name)),
            ),
        }
    }
    for Served { spec, .. } in served {
        if !wanted.iter().any(|new| new.name == spec.name) {
            differences.push(format!("peer {:?} is gone", spec.name));
        }
    }
    differences
}

fn differing_settings(old: &PeerSpec, new: &PeerSpec) -> impl Iterator<Item = &'static str> {
    let PeerSpec {
        name: _,
        remote,
        local,
        ports,
        interface,
        vrf,
        keys: _,
        ttl_min,
        datapath,
    } = old;
    [
        ("address", *remote != new.remote),
        ("local_address", *local != new.local),
        ("port", *ports != new.ports),
        ("interface", *interface != new.interface),
        ("vrf", *vrf != new.vrf),
        ("ttl_min", *ttl_min != new.ttl_min),
        ("datapath", *datapath != new.datapath),
    ]
    .into_iter()
    .filter_map(|(setting, differs)| differs.then_some(setting))
}

pub(super) fn same_keys(one: &[Arc<Mkt>], other: &[Arc<Mkt>]) -> bool {
    let same = |(a, b): (&Arc<Mkt>, &Arc<Mkt>)| {
        (a.send_id, a.recv_id, a.algorithm, a.include_options)
            == (b.send_id, b.recv_id, b.algorithm, b.include_options)
            && a.master_key == b.master_key
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

pub(super) fn peer_report(peer: &Served) -> PeerReport {
    let Served { spec, decision } = peer;
    let address = match &spec.interface {
        Some(interface) => format!("{}%{interface}", spec.remote),
        None => spec.remote.to_string(),
    };
    PeerReport {
        name: Arc::clone(&spec.name),
        address,
        backend: decision.backend,
        backend_reason: decision.reason.clone(),
        sessions: 0,
        segments_good: 0,
        segments_sent: 0,
        drops: std::collections::BTreeMap::new(),
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
                ttl_min: 0,
                datapath: Choice::Auto,
            },
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
