//! From peers by name to a policy by interface index.

use std::net::IpAddr;
use std::sync::Arc;

use ao_engine::policy::{Mkt, Peer, Policy, PolicyError, Selector};
use ao_sys::links::Links;

use crate::settings::PeerSpec;

/// A peer with the keys it has at the moment.
#[derive(Clone, Copy)]
pub(crate) struct Keyed<'a> {
    pub(crate) spec: &'a PeerSpec,
    /// In order of preference.
    pub(crate) keys: &'a [Arc<Mkt>],
    /// SendIDs of those that nothing is to be signed with.
    pub(crate) accept_only: &'a [u8],
}

/// Builds the policy for the devices there are.
pub(crate) fn resolve(peers: &[PeerSpec], links: &Links) -> Result<Policy, PolicyError> {
    let keyed = peers.iter().map(|spec| Keyed {
        spec,
        keys: &spec.keys,
        accept_only: &[],
    });
    resolve_keyed(keyed, links)
}

/// The same, for keys that are no longer those of the start.
pub(crate) fn resolve_keyed<'a>(
    peers: impl Iterator<Item = Keyed<'a>>,
    links: &Links,
) -> Result<Policy, PolicyError> {
    let mut absent = Vec::new();
    let mut index = |name: &String| {
        links
            .index_of(name)
            .unwrap_or_else(|| index_of_absent(&mut absent, name))
    };
    let peer = |keyed: Keyed<'a>| {
        let Keyed {
            spec,
            keys,
            accept_only,
        } = keyed;
        Peer {
            name: spec.name.clone(),
            selector: Selector {
                remote: spec.remote,
                local: spec.local,
                ports: spec.ports.clone(),
                interface: spec
                    .interface
                    .as_ref()
                    .filter(|_| is_link_local(spec))
                    .map(&mut index),
                domain: spec.vrf.as_ref().map(&mut index),
            },
            keys: keys.to_vec(),
            accept_only: accept_only.to_vec(),
            ttl_min: spec.ttl_min,
        }
    };
    Policy::new(peers.map(peer).collect())
}

/// A device that does not exist has an index that no device has: its peer matches nothing until it
/// does. Each name has its own, since peers on different devices may share an address.
fn index_of_absent(absent: &mut Vec<String>, name: &str) -> u32 {
    let known = absent.iter().position(|other| other == name);
    let place = known.unwrap_or_else(|| {
        absent.push(name.to_owned());
        absent.len() - 1
    });
    u32::MAX.saturating_sub(u32::try_from(place).unwrap_or(u32::MAX))
}

fn is_link_local(spec: &PeerSpec) -> bool {
    matches!(spec.remote.address(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}
