//! Which master key tuples (MKTs) protect which peers.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::ops::RangeInclusive;

use crate::crypto::{Algorithm, MasterKey};

/// A master key tuple (RFC 5925 §3.1), without its connection identifier: that is the peer's.
#[derive(Debug)]
pub struct Mkt {
    /// KeyID this end puts into segments it sends with this MKT.
    pub send_id: u8,
    /// KeyID this end expects in segments it receives with this MKT.
    pub recv_id: u8,
    /// Algorithm for both the KDF and the MAC.
    pub algorithm: Algorithm,
    /// The secret that the traffic keys are derived from.
    pub master_key: MasterKey,
    /// Whether TCP options other than TCP-AO are covered by the MAC.
    pub include_options: bool,
}

impl Mkt {
    /// Whether it is the same MKT: the same IDs, and the same MACs.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        core::ptr::eq(self, other)
            || (self.send_id == other.send_id
                && self.recv_id == other.recv_id
                && self.algorithm == other.algorithm
                && self.include_options == other.include_options
                && self.master_key == other.master_key)
    }
}

/// An address prefix. Host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Why a prefix was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Longer than the address.
    #[error("prefix length {0} is above {1}")]
    TooLong(u8, u8),
    /// Bits are set beyond the prefix length.
    #[error("address bits are set beyond the prefix length")]
    HostBits,
}

impl Prefix {
    /// A prefix of `length` bits.
    ///
    /// # Errors
    /// When the length exceeds the address, or address bits beyond it are set.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let bits = bits_of(address);
        if length > bits {
            return Err(PrefixError::TooLong(length, bits));
        }
        let prefix = Self { address, length };
        if prefix.masked(value_of(address)) != value_of(address) {
            return Err(PrefixError::HostBits);
        }
        Ok(prefix)
    }

    /// The prefix that holds exactly one address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self {
            address,
            length: bits_of(address),
        }
    }

    /// The network address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Prefix length in bits.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the prefix holds one address only.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.length == bits_of(self.address)
    }

    /// Whether `address` lies in the prefix.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && self.masked(value_of(address)) == value_of(self.address)
    }

    fn masked(&self, value: u128) -> u128 {
        let free = u32::from(bits_of(self.address) - self.length);
        value
            .checked_shr(free)
            .and_then(|kept| kept.checked_shl(free))
            .unwrap_or(0)
    }
}

impl core::fmt::Display for Prefix {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_host() {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn value_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// Which connections a peer entry is about: the connection identifier of an MKT with its
/// wildcards (RFC 5925 §3.1), plus the L3 domain and link that RFC 5925 leaves to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Addresses of the far end.
    pub remote: Prefix,
    /// Address of this end; any when absent.
    pub local: Option<IpAddr>,
    /// Protected ports, matched as source or destination port.
    pub ports: RangeInclusive<u16>,
    /// Interface index of the link, for link-local peers; any when absent.
    pub interface: Option<u32>,
    /// Interface index of the L3 master (VRF); any domain when absent, 0 is the default one.
    pub domain: Option<u32>,
}

impl Selector {
    /// Whether the selector covers a connection.
    #[must_use]
    pub fn matches(&self, connection: &ConnectionId) -> bool {
        self.remote.contains(connection.remote)
            && self.local.is_none_or(|local| local == connection.local)
            && (self.ports.contains(&connection.remote_port)
                || self.ports.contains(&connection.local_port))
            && self
                .interface
                .is_none_or(|index| index == connection.interface)
            && self.domain.is_none_or(|domain| domain == connection.domain)
    }

    /// Whether some connection is covered by both selectors with equal precedence, so that
    /// neither could be preferred.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        self.remote == other.remote
            && self.local == other.local
            && self.ports.start() <= other.ports.end()
            && other.ports.start() <= self.ports.end()
            && self.interface == other.interface
            && self.domain == other.domain
    }

    /// Order of precedence among selectors that cover the same connection: the longest prefix
    /// first, then the one that says more.
    fn precedence(&self) -> (u8, bool, bool, bool) {
        (
            self.remote.length(),
            self.local.is_some(),
            self.interface.is_some(),
            self.domain.is_some(),
        )
    }
}

/// Identifies one TCP connection, seen from this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// Interface index of the L3 master (VRF) the connection lives in; 0 is the default domain.
    pub domain: u32,
    /// Interface index of the link when an address is link-local, else 0.
    pub interface: u32,
    /// Address of this end.
    pub local: IpAddr,
    /// Address of the far end.
    pub remote: IpAddr,
    /// Port of this end.
    pub local_port: u16,
    /// Port of the far end.
    pub remote_port: u16,
}

/// A configured peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Name given by the operator.
    pub name: Arc<str>,
    /// Its connections.
    pub selector: Selector,
    /// Its MKTs in order of preference: the first is current_key and rnext_key of a new
    /// connection.
    pub keys: Vec<Arc<Mkt>>,
    /// SendIDs of keys past the end of their time to send: they still verify, and nothing is
    /// signed with them any more, whatever the far end asks for. Never that of the first key.
    pub accept_only: Vec<u8>,
    /// Lowest TTL or hop limit accepted from it (RFC 5082); 0 accepts all.
    pub ttl_min: u8,
}

/// Why a policy was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Two MKTs of one peer share a SendID.
    #[error("peer {peer:?} has two keys with send_id {id}")]
    DuplicateSendId {
        /// The peer.
        peer: Arc<str>,
        /// The SendID.
        id: u8,
    },
    /// Two MKTs of one peer share a RecvID.
    #[error("peer {peer:?} has two keys with recv_id {id}")]
    DuplicateRecvId {
        /// The peer.
        peer: Arc<str>,
        /// The RecvID.
        id: u8,
    },
    /// Two peers cover the same connections with the same precedence.
    #[error("peers {first:?} and {second:?} cover the same connections")]
    Ambiguous {
        /// The one named first.
        first: Arc<str>,
        /// The one named later.
        second: Arc<str>,
    },
}

/// All configured peers. Cheap to share, never changed in place.
#[derive(Debug, Default)]
pub struct Policy {
    /// Sorted by precedence, highest first.
    peers: Vec<Arc<Peer>>,
    /// Indexes of the peers with one address, so that a look-up costs the same with 1 and with
    /// 10,000 of them. In order of precedence.
    hosts: BTreeMap<IpAddr, Vec<usize>>,
    /// Indexes of the peers given by a shorter prefix, in order of precedence.
    networks: Vec<usize>,
}

impl Policy {
    /// Builds the policy.
    ///
    /// # Errors
    /// When IDs within a peer or selectors of two peers overlap (RFC 5925 §3.1: "MKTs that match
    /// the same connection MUST NOT share a KeyID").
    pub fn new(peers: Vec<Peer>) -> Result<Self, PolicyError> {
        // Only peers of the same prefix can be in each other's way.
        let mut alike: BTreeMap<Prefix, Vec<&Peer>> = BTreeMap::new();
        for peer in &peers {
            check_ids(peer)?;
            let earlier = alike.entry(peer.selector.remote).or_default();
            let rival = earlier
                .iter()
                .find(|earlier| earlier.selector.conflicts(&peer.selector));
            if let Some(first) = rival {
                return Err(PolicyError::Ambiguous {
                    first: first.name.clone(),
                    second: peer.name.clone(),
                });
            }
            earlier.push(peer);
        }
        let mut peers: Vec<Arc<Peer>> = peers.into_iter().map(Arc::new).collect();
        peers.sort_by_key(|peer| core::cmp::Reverse(peer.selector.precedence()));
        let mut hosts: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
        let mut networks = Vec::new();
        for (index, peer) in peers.iter().enumerate() {
            if peer.selector.remote.is_host() {
                hosts
                    .entry(peer.selector.remote.address())
                    .or_default()
                    .push(index);
            } else {
                networks.push(index);
            }
        }
        Ok(Self {
            peers,
            hosts,
            networks,
        })
    }

    /// Index in [`peers`](Self::peers) of the entry a connection belongs to: the longest prefix,
    /// then the one that says more.
    #[must_use]
    pub fn find(&self, connection: &ConnectionId) -> Option<usize> {
        let hosts = self.hosts.get(&connection.remote).into_iter().flatten();
        hosts.chain(&self.networks).copied().find(|&index| {
            self.peers
                .get(index)
                .is_some_and(|peer| peer.selector.matches(connection))
        })
    }

    /// All peers, by precedence.
    #[must_use]
    pub fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }
}

fn check_ids(peer: &Peer) -> Result<(), PolicyError> {
    for (index, key) in peer.keys.iter().enumerate() {
        for earlier in peer.keys.iter().take(index) {
            if earlier.send_id == key.send_id {
                return Err(PolicyError::DuplicateSendId {
                    peer: peer.name.clone(),
                    id: key.send_id,
                });
            }
            if earlier.recv_id == key.recv_id {
                return Err(PolicyError::DuplicateRecvId {
                    peer: peer.name.clone(),
                    id: key.recv_id,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn peer(name: &str, remote: Prefix) -> Peer {
        Peer {
            name: name.into(),
            selector: Selector {
                remote,
                local: None,
                ports: 179..=179,
                interface: None,
                domain: None,
            },
            keys: vec![],
            accept_only: vec![],
            ttl_min: 0,
        }
    }

    fn prefix(text: &str, length: u8) -> Prefix {
        Prefix::new(text.parse().unwrap(), length).unwrap()
    }

    fn connection(remote: &str) -> ConnectionId {
        ConnectionId {
            domain: 0,
            interface: 0,
            local: "10.0.0.1".parse().unwrap(),
            remote: remote.parse().unwrap(),
            local_port: 40000,
            remote_port: 179,
        }
    }

    fn found<'a>(policy: &'a Policy, remote: &str) -> Option<&'a str> {
        policy
            .find(&connection(remote))
            .map(|index| &*policy.peers()[index].name)
    }

    #[test]
    fn the_longest_prefix_wins() {
        let policy = Policy::new(vec![
            peer("all", prefix("0.0.0.0", 0)),
            peer("net", prefix("10.0.0.0", 24)),
            peer("host", prefix("10.0.0.2", 32)),
        ])
        .unwrap();
        assert_eq!(found(&policy, "10.0.0.2"), Some("host"));
        assert_eq!(found(&policy, "10.0.0.3"), Some("net"));
        assert_eq!(found(&policy, "192.0.2.1"), Some("all"));
        assert_eq!(found(&policy, "2001:db8::1"), None);
    }

    #[test]
    fn other_ports_are_nobodys() {
        let policy = Policy::new(vec![peer("host", prefix("10.0.0.2", 32))]).unwrap();
        let other = ConnectionId {
            remote_port: 180,
            ..connection("10.0.0.2")
        };
        assert_eq!(policy.find(&other), None);
        let passive = ConnectionId {
            local_port: 179,
            ..other
        };
        assert_eq!(policy.find(&passive), Some(0));
    }

    #[test]
    fn equal_selectors_are_refused_and_named() {
        let error = Policy::new(vec![
            peer("a", prefix("10.0.0.2", 32)),
            peer("b", prefix("10.0.0.2", 32)),
        ])
        .unwrap_err();
        assert_eq!(
            alloc::format!("{error}"),
            r#"peers "a" and "b" cover the same connections"#
        );
    }

    #[test]
    fn a_vrf_of_its_own_tells_equal_addresses_apart() {
        let mut red = peer("red", prefix("10.0.0.2", 32));
        red.selector.domain = Some(7);
        let mut blue = red.clone();
        blue.name = "blue".into();
        blue.selector.domain = Some(8);
        let policy = Policy::new(vec![red, blue]).unwrap();
        let in_blue = ConnectionId {
            domain: 8,
            ..connection("10.0.0.2")
        };
        assert_eq!(
            policy.find(&in_blue).map(|i| &*policy.peers()[i].name),
            Some("blue")
        );
        assert_eq!(policy.find(&connection("10.0.0.2")), None);
    }

    #[test]
    fn shared_ids_within_a_peer_are_refused() {
        let key = |send_id, recv_id| {
            Arc::new(Mkt {
                send_id,
                recv_id,
                algorithm: Algorithm::HmacSha1_96,
                master_key: MasterKey::new(b"secret").unwrap(),
                include_options: true,
            })
        };
        let mut twice = peer("a", prefix("10.0.0.2", 32));
        twice.keys = vec![key(1, 1), key(2, 1)];
        assert_eq!(
            Policy::new(vec![twice.clone()]).unwrap_err(),
            PolicyError::DuplicateRecvId {
                peer: "a".into(),
                id: 1
            }
        );
        twice.keys = vec![key(3, 1), key(3, 2)];
        assert_eq!(
            Policy::new(vec![twice]).unwrap_err(),
            PolicyError::DuplicateSendId {
                peer: "a".into(),
                id: 3
            }
        );
    }

    #[test]
    fn prefixes_with_host_bits_or_too_long_are_refused() {
        assert_eq!(
            Prefix::new("10.0.0.1".parse().unwrap(), 24),
            Err(PrefixError::HostBits)
        );
        assert_eq!(
            Prefix::new("10.0.0.1".parse().unwrap(), 33),
            Err(PrefixError::TooLong(33, 32))
        );
        assert!(
            Prefix::new("::".parse().unwrap(), 0)
                .unwrap()
                .contains("2001::1".parse().unwrap())
        );
    }
}
