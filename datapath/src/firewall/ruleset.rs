//! What the firewall is to do, without saying how: peers by address, ports, queues.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ao_engine::policy::Prefix;
use ao_sys::xtables::Family;

use super::Error;
use crate::settings::{Backend, PeerSpec};

/// IFNAMSIZ without the terminator.
const DEVICE_NAME_LENGTH: usize = 15;
/// Longest peer name carried into a rule's comment.
const COMMENT_LENGTH: usize = 64;

/// The netfilter queues of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Number of the first worker's queue.
    pub first: u16,
    /// Number of workers, at least 1; the queue after theirs is for ICMP errors.
    pub workers: u8,
}

impl Queues {
    /// Number of the last worker's queue.
    #[must_use]
    pub fn last(self) -> u16 {
        self.first
            .saturating_add(u16::from(self.workers.saturating_sub(1)))
    }

    /// Number of the queue for ICMP errors.
    #[must_use]
    pub fn icmp(self) -> u16 {
        self.first.saturating_add(u16::from(self.workers.max(1)))
    }
}

/// All rules for all peers; a pure description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Most specific first, in the order in which the policy prefers them.
    pub(super) peers: Vec<Peer>,
    pub(super) queues: Queues,
    pub(super) mark_bit: u32,
    /// Names of the L3 masters: x_tables cannot recognise one by its kind.
    pub(super) vrfs: Vec<String>,
}

/// What the rules need to know of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its name, fit for a comment.
    pub(super) name: String,
    pub(super) remote: Prefix,
    pub(super) local: Option<IpAddr>,
    /// Input device at LOCAL_IN: the link for link-local addresses, else the L3 master.
    pub(super) device_in: Option<String>,
    /// Output device, on the pass that is not the L3 master's. Members of a VRF are not told
    /// apart from other devices here: they may be enslaved at any moment, and a rule that does
    /// not know of it yet would let segments out unsigned.
    pub(super) device_out: Option<String>,
    pub(super) ports: RangeInclusive<u16>,
    pub(super) ttl_min: u8,
    pub(super) backend: Backend,
}

impl Ruleset {
    /// Describes the rules for these peers, each with the backend that serves it. `mark_bit` is the
    /// bit of the packet mark that tells verified and engine-made packets from others.
    ///
    /// # Errors
    /// When a device's name is none.
    pub fn new<'a>(
        peers: impl IntoIterator<Item = (&'a PeerSpec, Backend)>,
        queues: Queues,
        mark_bit: u32,
    ) -> Result<Self, Error> {
        let mut peers: Vec<(&PeerSpec, Backend)> = peers.into_iter().collect();
        peers.sort_by_key(|(spec, _)| {
            let details = (
                spec.local.is_some(),
                spec.interface.is_some(),
                spec.vrf.is_some(),
            );
            (
                Reverse(spec.remote.length()),
                spec.remote.address(),
                Reverse(details),
            )
        });
        let peers = peers
            .into_iter()
            .map(|(spec, backend)| peer(spec, backend))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            peers,
            queues,
            mark_bit,
            vrfs: Vec::new(),
        })
    }

    /// The same rules where these devices are L3 masters.
    #[must_use]
    pub fn with_vrfs(mut self, mut vrfs: Vec<String>) -> Self {
        // A name that reads as a pattern would exempt other devices from signing.
        vrfs.retain(|name| is_device_name(name));
        vrfs.sort();
        self.vrfs = vrfs;
        self
    }

    /// The peers of one address family with their numbers; those with the same remote prefix are
    /// neighbours.
    pub(super) fn of(&self, family: Family) -> impl Iterator<Item = (usize, &Peer)> {
        self.peers
            .iter()
            .enumerate()
            .filter(move |(_, peer)| peer.family() == family)
    }

    /// The peers of one address family about which ICMP errors concern the engine, most specific
    /// first, and between them those of the kernel whose errors it is to leave alone.
    pub(super) fn quoted(&self, family: Family) -> Vec<&Peer> {
        let of_family = || self.of(family).map(|(_, peer)| peer);
        let queued: Vec<&Peer> = of_family()
            .filter(|peer| peer.backend == Backend::Userspace)
            .collect();
        of_family()
            .filter(|peer| match peer.backend {
                Backend::Userspace => true,
                Backend::Kernel => peer.hides_any(&queued),
            })
            .collect()
    }

    /// Protected ports of all peers of a family, merged and sorted.
    pub(super) fn ports(&self, family: Option<Family>) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<_> = self
            .peers
            .iter()
            .filter(|peer| family.is_none_or(|family| peer.family() == family))
            .map(|peer| peer.ports.clone())
            .collect();
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        merged
    }
}

impl Peer {
    /// Whether the prefix is part of another peer's, all of whose connections to it are this one's
    /// instead. Rules see no more of a quoted segment than its addresses: where that does not tell
    /// the two apart, the engine gets the error and finds out.
    fn hides_any(&self, others: &[&Self]) -> bool {
        let wider: Vec<_> = others
            .iter()
            .filter(|other| {
                other.remote.length() <= self.remote.length()
                    && other.remote.contains(self.remote.address())
            })
            .collect();
        let all_ports = |other: &Self| {
            self.ports.start() <= other.ports.start() && other.ports.end() <= self.ports.end()
        };
        !wider.is_empty()
            && self.local.is_none()
            && wider.iter().all(|other| {
                all_ports(other) && (self.device_in.is_none() || self.device_in == other.device_in)
            })
    }

    pub(super) fn family(&self) -> Family {
        if self.remote.address().is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

fn peer(spec: &PeerSpec, backend: Backend) -> Result<Peer, Error> {
    for name in spec.interface.iter().chain(&spec.vrf) {
        if !is_device_name(name) {
            return Err(Error::DeviceName {
                peer: spec.name.to_string(),
                device: name.clone(),
            });
        }
    }
    // A VRF replaces the input device by itself, except for IPv6 link-local addresses.
    let link = match spec.remote.address() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => spec.interface.clone(),
        _ => None,
    };
    let device_in = link.clone().or_else(|| spec.vrf.clone());
    Ok(Peer {
        name: comment(&spec.name),
        remote: spec.remote,
        local: spec.local,
        device_in,
        device_out: link,
        ports: spec.ports.clone(),
        ttl_min: spec.ttl_min,
        backend,
    })
}

/// A name the kernel allows, without the characters that either tool takes for a pattern.
fn is_device_name(name: &str) -> bool {
    (1..=DEVICE_NAME_LENGTH).contains(&name.len())
        && name
            .bytes()
            .all(|octet| octet.is_ascii_alphanumeric() || b"._-@:~#=,".contains(&octet))
        && !name.starts_with('-')
}

fn comment(name: &str) -> String {
    name.chars()
        .take(COMMENT_LENGTH)
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// `179` or `1790-1799`, with the separator of the tool.
pub(super) fn port_range(range: &RangeInclusive<u16>, separator: char) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}{separator}{}", range.start(), range.end())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::settings::Choice;

    /// Rules for peers that all have the same backend.
    pub(in crate::firewall) fn ruleset(specs: &[PeerSpec], backend: Backend) -> Ruleset {
        let peers = specs.iter().map(|spec| (spec, backend));
        Ruleset::new(peers, QUEUES, 1).unwrap()
    }

    pub(in crate::firewall) fn spec(name: &str, remote: &str) -> PeerSpec {
        let (address, length) = remote.split_once('/').unwrap_or((remote, ""));
        let address: IpAddr = address.parse().unwrap();
        let remote = length.parse().map_or(Prefix::host(address), |length| {
            Prefix::new(address, length).unwrap()
        });
        PeerSpec {
            name: name.into(),
            remote,
            local: None,
            ports: 179..=179,
            interface: None,
            vrf: None,
            keys: Vec::new(),
            algorithms: Vec::new(),
            ttl_min: 0,
            datapath: Choice::Auto,
        }
    }

    pub(in crate::firewall) const QUEUES: Queues = Queues {
        first: 100,
        workers: 2,
    };

    #[test]
    fn the_more_specific_peer_comes_first() {
        let mut exact = spec("exact", "10.0.0.2");
        exact.local = Some("10.0.0.1".parse().unwrap());
        let specs = [spec("net", "10.0.0.0/24"), spec("host", "10.0.0.2"), exact];
        let ruleset = ruleset(&specs, Backend::Userspace);
        let names: Vec<_> = ruleset
            .peers
            .iter()
            .map(|peer| peer.name.as_str())
            .collect();
        assert_eq!(names, ["exact", "host", "net"]);
    }

    #[test]
    fn errors_about_a_kernel_peer_are_left_alone_where_rules_can_tell() {
        let quoted = |kernel: PeerSpec| {
            let mut wide = spec("wide", "10.0.0.0/24");
            wide.ports = 179..=179;
            let peers = [(&wide, Backend::Userspace), (&kernel, Backend::Kernel)];
            let ruleset = Ruleset::new(peers, QUEUES, 1).unwrap();
            let quoted = ruleset.quoted(Family::V4);
            quoted
                .iter()
                .map(|peer| peer.name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(quoted(spec("host", "10.0.0.2")), ["host", "wide"]);
        assert_eq!(quoted(spec("elsewhere", "10.0.1.2")), ["wide"]);
        assert_eq!(quoted(spec("wider", "10.0.0.0/16")), ["wide"]);
        let mut local = spec("local", "10.0.0.2");
        local.local = Some("10.0.0.1".parse().unwrap());
        assert_eq!(quoted(local), ["wide"]);
        let mut ports = spec("ports", "10.0.0.2");
        ports.ports = 1790..=1799;
        assert_eq!(quoted(ports), ["wide"]);
        let mut vrf = spec("vrf", "10.0.0.2");
        vrf.vrf = Some("red".into());
        assert_eq!(quoted(vrf), ["wide"]);
    }

    #[test]
    fn ports_are_merged() {
        let specs = [(179, 179), (180, 200), (100, 120), (110, 111)].map(|(low, high)| {
            let mut spec = spec("p", "10.0.0.2");
            spec.ports = low..=high;
            spec
        });
        let ruleset = ruleset(&specs, Backend::Userspace);
        assert_eq!(ruleset.ports(None), [100..=120, 179..=200]);
        assert!(ruleset.ports(Some(Family::V6)).is_empty());
    }

    #[test]
    fn vrf_replaces_the_input_device_except_for_link_local() {
        let mut global = spec("global", "2001:db8::1");
        global.interface = Some("eth0".into());
        global.vrf = Some("red".into());
        let mut local = global.clone();
        local.remote = Prefix::host("fe80::1".parse().unwrap());
        let ruleset = ruleset(&[global, local], Backend::Userspace);
        let devices: Vec<_> = ruleset
            .peers
            .iter()
            .map(|peer| peer.device_in.as_deref().unwrap())
            .collect();
        assert_eq!(devices, ["red", "eth0"]);
    }

    #[test]
    fn names_that_are_patterns_or_options_are_refused() {
        for name in ["eth+", "eth*", "-j", "", "a b", "a\"b", "sixteen-letters-"] {
            let mut spec = spec("p", "fe80::1");
            spec.interface = Some(name.to_owned());
            let peers = [(&spec, Backend::Userspace)];
            assert!(Ruleset::new(peers, QUEUES, 1).is_err(), "{name}");
        }
        let ruleset = ruleset(&[], Backend::Kernel);
        let vrfs = ruleset
            .with_vrfs(vec!["red".into(), "r+".into(), "blue".into()])
            .vrfs;
        assert_eq!(vrfs, ["blue", "red"]);
    }

    #[test]
    fn comments_are_tame() {
        assert_eq!(comment("AS 64502 \"x\"\nü"), "AS_64502__x___");
    }
}
