//! Which keys which socket should have, by the policy.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ao_engine::policy::{Mkt, Peer, Policy};
use ao_sys::links::Links;
use ao_sys::tcp_ao::Scope;
use ao_sys::tcp_socket::Facts;

use super::plan::Wanted;
use crate::sockets::connection_between;

/// Peers, those of them that are the kernel's, and the devices they refer to. Never changed in
/// place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    /// All peers: the one that is preferred may be the other backend's.
    pub(super) policy: Arc<Policy>,
    /// Names of those whose sessions the kernel signs.
    pub(super) ours: HashSet<Arc<str>>,
    pub(super) links: Arc<Links>,
    /// Whom keys of ours are or were for, of whichever backend: what a listener has for others,
    /// its daemon has set.
    scopes: HashSet<Scope>,
}

/// What is known of a socket that listens or connects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) local: SocketAddr,
    /// Interface it is bound to, 0 if none.
    pub(super) interface: u32,
    /// Whether it is an IPv6 socket, and takes IPv4 connections as well.
    pub(super) v6: bool,
    pub(super) v6_only: bool,
}

impl Place {
    pub(super) fn of(facts: &Facts) -> Self {
        Self {
            local: facts.local,
            interface: facts.interface,
            v6: facts.domain_v6,
            v6_only: facts.ipv6_only,
        }
    }
}

impl Target {
    /// The target after `former`; `ours` names the kernel's peers.
    pub(crate) fn after(
        former: &Self,
        policy: Arc<Policy>,
        ours: HashSet<Arc<str>>,
        links: Arc<Links>,
    ) -> Self {
        let mut scopes = former.scopes.clone();
        scopes.extend(policy.peers().iter().map(|peer| listener_scope(peer)));
        Self {
            policy,
            ours,
            links,
            scopes,
        }
    }

    /// Whether keys for these addresses are for us to add and delete.
    pub(super) fn is_ours(&self, scope: &Scope) -> bool {
        self.scopes.contains(scope)
    }

    /// Name of a device.
    pub(super) fn device(&self, index: u32) -> Option<&str> {
        self.links.get(index).map(|link| link.name.as_str())
    }

    /// The kernel's peers.
    pub(super) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        let peers = self.policy.peers().iter();
        peers.filter(|peer| self.ours.contains(&peer.name))
    }

    /// Whether any peer is the kernel's.
    pub(super) fn has_peers(&self) -> bool {
        !self.ours.is_empty()
    }

    /// Whether a listener on this port may have keys of ours, or keys that were ours.
    pub(super) fn has_port(&self, port: u16) -> bool {
        let mut peers = self.policy.peers().iter();
        peers.any(|peer| peer.selector.ports.contains(&port))
    }

    /// The peer a connection belongs to, if that is one of ours.
    pub(super) fn find(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        interface: u32,
    ) -> Option<&Arc<Peer>> {
        let id = connection_between(local, remote, interface, &self.links);
        let peer = self.policy.peers().get(self.policy.find(&id)?)?;
        self.ours.contains(&peer.name).then_some(peer)
    }

    /// Keys of a listener: of every peer that may connect to it.
    pub(super) fn of_listener(&self, place: &Place) -> Vec<Wanted> {
        self.peers()
            .filter(|peer| self.may_connect(peer, place))
            .flat_map(|peer| wanted(peer, listener_scope(peer)))
            .collect()
    }

    fn may_connect(&self, peer: &Peer, place: &Place) -> bool {
        let selector = &peer.selector;
        let v4_peer = selector.remote.address().is_ipv4();
        let local = place.local.ip().to_canonical();
        let family_fits = match (v4_peer, place.v6) {
            (true, false) => true,
            // An IPv6 socket takes IPv4 connections unless it says otherwise or has an IPv6 address.
            (true, true) => !place.v6_only && (local.is_ipv4() || local.is_unspecified()),
            (false, v6) => v6 && local.is_ipv6(),
        };
        let domain = self.links.domain_of(place.interface);
        let bound_to_link = place.interface != 0 && place.interface != domain;
        family_fits
            && selector.ports.contains(&place.local.port())
            && (local.is_unspecified() || selector.local.is_none_or(|wanted| wanted == local))
            // A socket that is bound to nothing may take connections of VRFs (tcp_l3mdev_accept).
            && selector
                .domain
                .is_none_or(|wanted| match place.interface {
                    0 => self.links.get(wanted).is_some_and(|link| link.vrf),
                    _ => wanted == domain,
                })
            && selector
                .interface
                .is_none_or(|wanted| !bound_to_link || wanted == place.interface)
    }
}

/// Whom a peer's keys on a listener are for.
fn listener_scope(peer: &Peer) -> Scope {
    let remote = peer.selector.remote;
    Scope {
        address: remote.address(),
        prefix: remote.length(),
        // None: in whichever VRF. The kernel wants the L3 master itself.
        vrf: peer.selector.domain,
    }
}

/// Keys of a connection with `peer`, or of a socket about to open one.
pub(super) fn of_connection(peer: &Peer, remote: IpAddr) -> Vec<Wanted> {
    let address = remote.to_canonical();
    let scope = Scope {
        address,
        prefix: if address.is_ipv4() { 32 } else { 128 },
        vrf: None,
    };
    wanted(peer, scope)
}

fn wanted(peer: &Peer, scope: Scope) -> Vec<Wanted> {
    let key = |mkt: &Arc<Mkt>| Wanted {
        peer: Arc::clone(&peer.name),
        scope,
        mkt: Arc::clone(mkt),
        accept_only: peer.accept_only.contains(&mkt.send_id),
    };
    peer.keys.iter().map(key).collect()
}

#[cfg(test)]
mod tests {
    use ao_engine::crypto::{Algorithm, MasterKey};
    use ao_engine::policy::{Prefix, Selector};

    use super::*;

    fn peer(name: &str, remote: &str, length: u8) -> Peer {
        let mkt = Mkt {
            send_id: 1,
            recv_id: 2,
            algorithm: Algorithm::HmacSha1_96,
            master_key: MasterKey::new(name.as_bytes()).unwrap(),
            include_options: true,
        };
        Peer {
            name: name.into(),
            selector: Selector {
                remote: Prefix::new(remote.parse().unwrap(), length).unwrap(),
                local: None,
                ports: 179..=179,
                interface: None,
                domain: None,
            },
            keys: vec![Arc::new(mkt)],
            accept_only: Vec::new(),
            ttl_min: 0,
        }
    }

    fn target(peers: Vec<Peer>, not_ours: &[&str]) -> Target {
        let names = peers.iter().map(|peer| peer.name.clone());
        let ours = names.filter(|name| !not_ours.contains(&&**name)).collect();
        let policy = Arc::new(Policy::new(peers).unwrap());
        Target::after(&Target::default(), policy, ours, Arc::default())
    }

    fn place(local: &str, v6_only: bool) -> Place {
        let local: SocketAddr = local.parse().unwrap();
        Place {
            local,
            interface: 0,
            v6: local.is_ipv6(),
            v6_only,
        }
    }

    fn addresses(target: &Target, place: &Place) -> Vec<IpAddr> {
        let wanted = target.of_listener(place);
        wanted.iter().map(|want| want.scope.address).collect()
    }

    #[test]
    fn a_listener_gets_the_peers_that_can_reach_it() {
        let peers = vec![peer("v4", "10.0.0.2", 32), peer("v6", "2001:db8::2", 128)];
        let target = target(peers, &[]);
        let v4: IpAddr = "10.0.0.2".parse().unwrap();
        let v6: IpAddr = "2001:db8::2".parse().unwrap();
        let of = |local, v6_only| {
            let mut addresses = addresses(&target, &place(local, v6_only));
            addresses.sort();
            addresses
        };
        assert_eq!(of("0.0.0.0:179", false), [v4]);
        assert_eq!(of("[::]:179", false), [v4, v6]);
        assert_eq!(of("[::]:179", true), [v6]);
        assert_eq!(of("[2001:db8::1]:179", false), [v6]);
        assert_eq!(of("[::]:180", false), [] as [IpAddr; 0]);
    }

    #[test]
    fn a_peer_of_the_other_backend_gets_no_key_even_inside_a_prefix_of_ours() {
        let peers = vec![peer("host", "10.0.0.2", 32), peer("net", "10.0.0.0", 24)];
        let target = target(peers, &["host"]);
        let find = |remote: &str| {
            let local = "10.0.0.1:40000".parse().unwrap();
            let found = target.find(local, remote.parse().unwrap(), 0);
            found.map(|peer| peer.name.to_string())
        };
        assert_eq!(find("10.0.0.2:179"), None);
        assert_eq!(find("10.0.0.3:179").as_deref(), Some("net"));
        assert_eq!(find("[::ffff:10.0.0.3]:179").as_deref(), Some("net"));
        assert_eq!(find("10.0.0.3:180"), None);
    }

    #[test]
    fn a_listener_on_one_address_is_for_the_peers_of_that_address() {
        let mut here = peer("here", "10.0.0.2", 32);
        here.selector.local = Some("10.0.0.1".parse().unwrap());
        let mut there = peer("there", "10.0.0.2", 32);
        there.selector.local = Some("10.0.0.9".parse().unwrap());
        let target = target(vec![here, there], &[]);
        let wanted = target.of_listener(&place("10.0.0.1:179", false));
        let secrets: Vec<&[u8]> = wanted
            .iter()
            .map(|want| want.mkt.master_key.expose())
            .collect();
        assert_eq!(secrets, [b"here"]);
    }

    #[test]
    fn a_connection_has_keys_for_its_far_end_alone() {
        let wanted = of_connection(
            &peer("net", "10.0.0.0", 24),
            "::ffff:10.0.0.7".parse().unwrap(),
        );
        let scope = wanted[0].scope;
        let far: IpAddr = "10.0.0.7".parse().unwrap();
        assert_eq!((scope.address, scope.prefix, scope.vrf), (far, 32, None));
    }
}
