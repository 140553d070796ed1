//! From peers by name to a policy by interface index.

use std::net::IpAddr;

use ao_engine::policy::{Peer, Policy, PolicyError, Selector};
use ao_sys::links::Links;

use crate::settings::PeerSpec;

/// The index of a device that does not exist: its peer matches nothing until it does.
const NO_DEVICE: u32 = u32::MAX;

/// Builds the policy for the devices there are.
pub(super) fn resolve(peers: &[PeerSpec], links: &Links) -> Result<Policy, PolicyError> {
    let index = |name: &String| links.index_of(name).unwrap_or(NO_DEVICE);
    let peer = |spec: &PeerSpec| Peer {
        name: spec.name.clone(),
        selector: Selector {
            remote: spec.remote,
            local: spec.local,
            ports: spec.ports.clone(),
            interface: spec
                .interface
                .as_ref()
                .filter(|_| is_link_local(spec))
                .map(index),
            domain: spec.vrf.as_ref().map(index),
        },
        keys: spec.keys.clone(),
        ttl_min: spec.ttl_min,
    };
    Policy::new(peers.iter().map(peer).collect())
}

fn is_link_local(spec: &PeerSpec) -> bool {
    matches!(spec.remote.address(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}
