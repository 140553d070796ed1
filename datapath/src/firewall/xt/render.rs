//! The rules as chains.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ao_sys::xtables::Family;

use super::{Table, prefix};
use crate::firewall::ruleset::{Peer, Ruleset, port_range};
use crate::firewall::{NEVER_TCP, Role, UNSIGNED_PER_SECOND};
use crate::settings::Backend;

/// A multiport match takes this many ports, a range counting as two.
const MULTIPORT: usize = 15;
/// With more single addresses than this, they are spread over buckets by their low bits.
const LINEAR: usize = 64;
const BUCKETS: u32 = 32;

/// All chains of one role in one family, none without peers of it.
pub(super) fn render(role: Role, family: Family, ruleset: &Ruleset) -> Vec<Table> {
    if ruleset.of(family).next().is_none() {
        return Vec::new();
    }
    let render = Render {
        role,
        family,
        ruleset,
    };
    match role {
        Role::Queue => vec![render.raw(), render.mangle()],
        Role::Guard => vec![render.raw(), render.filter()],
    }
}

/// Which address of a packet is the peer's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

struct Render<'a> {
    role: Role,
    family: Family,
    ruleset: &'a Ruleset,
}

impl Render<'_> {
    fn chain(&self, name: &str) -> String {
        format!("{}{name}", prefix(self.role))
    }

    fn peers(&self) -> impl Iterator<Item = (usize, &Peer)> {
        self.ruleset.of(self.family)
    }

    /// Fragments, as early as x_tables can see them. Where connection tracking has put IPv4
    /// fragments together before, the engine verifies the whole.
    fn raw(&self) -> Table {
        Table {
            name: "raw",
            jumps: vec![("PREROUTING", self.chain("EARLY"))],
            chains: vec![
                (self.chain("EARLY"), vec![self.if_fragment("FRAGMENT")]),
                self.fragments("FRAGMENT", Side::Source),
            ],
        }
    }

    fn mangle(&self) -> Table {
        let mut input = Vec::new();
        let mut chains = Vec::new();
        if self.family == Family::V6 {
            // LOCAL_IN comes before reassembly.
            input.push(self.if_fragment("FRAGMENT"));
            chains.push(self.fragments("FRAGMENT", Side::Source));
        }
        input.extend(self.to_peers("FROM"));
        let (protocol, option, types) = match self.family {
            Family::V4 => ("icmp", "-m icmp --icmp-type", [3, 11, 12].as_slice()),
            Family::V6 => (
                "ipv6-icmp",
                "-m icmp6 --icmpv6-type",
                [1, 2, 3, 4].as_slice(),
            ),
        };
        let icmp = self.chain("ICMP");
        let errors = self.icmp_errors();
        if !errors.is_empty() {
            input.extend(
                types
                    .iter()
                    .map(|kind| format!("-p {protocol} {option} {kind} -j {icmp}")),
            );
        }
        let mut output: Vec<String> = self.unless_l3_master();
        // The engine's own. The mark alone is not enough: sockets inherit it from a verified SYN
        // with net.ipv4.tcp_fwmark_accept.
        output.push(format!(
            "{} -p tcp -m tcp --tcp-option 29 -j RETURN",
            self.marked()
        ));
        output.extend(self.to_peers("TO"));
        let workers = self.workers();
        chains.extend(self.verify());
        chains.push((self.chain("SIGNED"), vec![unsigned("unsigned", "")]));
        chains.extend(self.dispatch("FROM", Side::Source, |chain, index, _| {
            format!("-g {chain}VERIFY-{index}")
        }));
        chains.extend(
            self.dispatch("TO", Side::Destination, |chain, _, backend| match backend {
                Backend::Kernel => format!("-g {chain}SIGNED"),
                Backend::Userspace => workers.clone(),
            }),
        );
        chains.push((icmp, errors));
        chains.push((self.chain("IN"), input));
        chains.push((self.chain("OUT"), output));
        Table {
            name: "mangle",
            jumps: self.local_jumps(),
            chains,
        }
    }

    fn filter(&self) -> Table {
        let unsigned = unsigned("guard", "");
        let unverified = format!("{} -j DROP", comment("guard-unverified", ""));
        let mut chains = vec![
            (self.chain("SIGNED"), vec![unsigned.clone()]),
            (self.chain("VERIFIED"), vec![unsigned, unverified]),
            self.fragments("FRAGMENT-OUT", Side::Destination),
        ];
        chains.extend(
            self.dispatch("FROM", Side::Source, |chain, _, backend| match backend {
                Backend::Kernel => format!("-g {chain}SIGNED"),
                Backend::Userspace => format!("-g {chain}VERIFIED"),
            }),
        );
        chains.extend(self.dispatch("TO", Side::Destination, |chain, _, _| {
            format!("-g {chain}SIGNED")
        }));
        let mut input = Vec::new();
        if self.family == Family::V6 {
            input.push(self.if_fragment("FRAGMENT"));
            chains.push(self.fragments("FRAGMENT", Side::Source));
        }
        input.push(format!("{} -j RETURN", self.marked()));
        input.extend(self.to_peers("FROM"));
        let mut output = self.unless_l3_master();
        output.push(self.if_fragment("FRAGMENT-OUT"));
        output.extend(self.to_peers("TO"));
        chains.push((self.chain("IN"), input));
        chains.push((self.chain("OUT"), output));
        Table {
            name: "filter",
            jumps: self.local_jumps(),
            chains,
        }
    }

    fn local_jumps(&self) -> Vec<(&'static str, String)> {
        vec![("INPUT", self.chain("IN")), ("OUTPUT", self.chain("OUT"))]
    }

    /// With a VRF, packets pass OUTPUT twice; only the pass on the real device counts.
    fn unless_l3_master(&self) -> Vec<String> {
        self.ruleset
            .vrfs
            .iter()
            .map(|vrf| format!("-o {vrf} -j RETURN"))
            .collect()
    }

    fn marked(&self) -> String {
        let bit = self.ruleset.mark_bit;
        format!("-m mark --mark 0x{bit:x}/0x{bit:x}")
    }

    fn workers(&self) -> String {
        let queues = self.ruleset.queues;
        if queues.workers <= 1 {
            format!("-j NFQUEUE --queue-num {}", queues.first)
        } else {
            format!(
                "-j NFQUEUE --queue-balance {}:{}",
                queues.first,
                queues.last()
            )
        }
    }

    fn if_fragment(&self, chain: &str) -> String {
        let chain = self.chain(chain);
        match self.family {
            // More fragments, or an offset: `-f` would leave out the first one. Each carries the
            // protocol.
            Family::V4 => format!("-p tcp -m u32 --u32 \"4&0x3FFF=1:0x3FFF\" -j {chain}"),
            Family::V6 => format!("-m frag -j {chain}"),
        }
    }

    /// Drops every packet of the peers that may be of a segment; reached by fragments only. Those
    /// of kernel peers, too: a fragment beyond the first has no header in which to look for
    /// TCP-AO, and though the kernel verifies the whole segment, one to a socket without keys
    /// would pass. BGP speakers do not fragment.
    fn fragments(&self, chain: &str, side: Side) -> (String, Vec<String>) {
        let mut rules = Vec::new();
        if self.family == Family::V6 {
            // The fragment header right after the IPv6 header, and its next header.
            rules.push(format!(
                "-m u32 --u32 \"3&0xFF=44&&37&0xFF={NEVER_TCP}\" -j RETURN"
            ));
        }
        rules.extend(self.peers().map(|(_, peer)| {
            let comment = comment("fragment", &peer.name);
            format!(
                "{}{}{comment} -j DROP",
                address(side, peer),
                device(side, peer)
            )
        }));
        (self.chain(chain), rules)
    }

    /// Leaves traffic on other ports alone at the cost of one match.
    fn to_peers(&self, chain: &str) -> Vec<String> {
        let chain = self.chain(chain);
        multiport(&self.ruleset.ports(Some(self.family)))
            .into_iter()
            .map(|ports| format!("-p tcp -m multiport --ports {ports} -j {chain}"))
            .collect()
    }

    /// What happens to a segment of one peer before the backend sees it. The kernel verifies by
    /// itself; the end of the chain leads back to before the dispatch.
    fn verify(&self) -> Vec<(String, Vec<String>)> {
        let workers = self.workers();
        let hops = match self.family {
            Family::V4 => "-m ttl --ttl-lt",
            Family::V6 => "-m hl --hl-lt",
        };
        self.peers()
            .map(|(index, peer)| {
                let mut rules = Vec::new();
                if peer.ttl_min > 0 {
                    let comment = comment("ttl", &peer.name);
                    rules.push(format!("{hops} {} {comment} -j DROP", peer.ttl_min));
                }
                let dropped = unsigned("unsigned", &peer.name);
                match peer.backend {
                    Backend::Kernel => rules.push(dropped),
                    Backend::Userspace => rules.extend([
                        format!(
                            "{UNSIGNED} -m limit --limit {UNSIGNED_PER_SECOND}/sec --limit-burst \
                             {UNSIGNED_PER_SECOND} {workers}"
                        ),
                        dropped,
                        workers.clone(),
                    ]),
                }
                (self.chain(&format!("VERIFY-{index}")), rules)
            })
            .collect()
    }

    /// Finds the peer of a segment, the most specific first, and goes to its target. Nothing but
    /// the way in is a jump, so that the end of a target leads back to before the dispatch: no
    /// shorter prefix is tried then.
    fn dispatch(
        &self,
        name: &str,
        side: Side,
        target: impl Fn(&str, usize, Backend) -> String,
    ) -> Vec<(String, Vec<String>)> {
        let rule = |(index, peer): (usize, &Peer)| {
            format!(
                "{}{}{}-p tcp -m multiport --ports {} {}",
                address(side, peer),
                local(side, peer),
                device(side, peer),
                port_range(&peer.ports, ':'),
                target(prefix(self.role), index, peer.backend),
            )
        };
        let (hosts, nets): (Vec<_>, Vec<_>) =
            self.peers().partition(|(_, peer)| peer.remote.is_host());
        if hosts.len() <= LINEAR {
            let rules = hosts.into_iter().chain(nets).map(rule).collect();
            return vec![(self.chain(name), rules)];
        }
        let mut buckets: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (index, peer) in hosts {
            let bucket = low_bits(peer.remote.address()) % BUCKETS;
            buckets.entry(bucket).or_default().push(rule((index, peer)));
        }
        let networks = self.chain(&format!("{name}-NETS"));
        let mut top = Vec::new();
        let mut chains = vec![(networks.clone(), nets.into_iter().map(rule).collect())];
        for (bucket, mut rules) in buckets {
            let chain = self.chain(&format!("{name}-{bucket}"));
            let (value, mask) = bucket_match(self.family, bucket);
            top.push(format!("{} {value}/{mask} -g {chain}", flag(side)));
            rules.push(format!("-g {networks}"));
            chains.push((chain, rules));
        }
        top.push(format!("-g {networks}"));
        chains.push((self.chain(name), top));
        chains
    }

    /// Queues ICMP errors that quote a segment of ours to a peer.
    fn icmp_errors(&self) -> Vec<String> {
        let queue = format!("-j NFQUEUE --queue-num {}", self.ruleset.queues.icmp());
        let mut rules = Vec::new();
        let peers = self.ruleset.quoted(self.family);
        if self.family == Family::V6 && !peers.is_empty() {
            // What a fragment quotes may be in a later one, which no rule sees; no real error is
            // that long (RFC 4443 §2.4 c). Behind other extension headers the quoted packet is
            // not at its place: the engine finds it.
            rules.push(format!("-m frag {} -j DROP", comment("fragment", "")));
            rules.push(format!("-m u32 ! --u32 \"4>>8&0xFF=58\" {queue}"));
            // UDP and ICMPv6 need none of our care; TCP may follow quoted extension headers.
            rules.push("-m u32 --u32 \"52>>8&0xFF=17,58\" -j RETURN".to_owned());
        }
        for peer in peers {
            let device = device(Side::Source, peer);
            let quoted = quoted_destination(peer);
            let quoted = if quoted.is_empty() {
                quoted
            } else {
                format!("-m u32 --u32 \"{quoted}\" ")
            };
            let rule = match peer.backend {
                Backend::Kernel => format!("{device}{quoted}-j RETURN"),
                Backend::Userspace => format!("{device}{quoted}{queue}"),
            };
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules
    }
}

/// u32 tests of the quoted packet, which begins 8 octets into the ICMP message; empty when any
/// will do.
fn quoted_destination(peer: &Peer) -> String {
    let length = u32::from(peer.remote.length());
    match peer.remote.address() {
        IpAddr::V4(v4) => {
            let tcp = "0>>22&0x3C@14&0xFF=6";
            match word_test(u32::from(v4), length) {
                Some((mask, value)) => {
                    format!("{tcp}&&0>>22&0x3C@24&{mask:#x}={value:#x}")
                }
                None => tcp.to_owned(),
            }
        }
        IpAddr::V6(v6) => {
            let value = u128::from(v6);
            let tests: Vec<String> = (0..4_u32)
                .filter_map(|word| {
                    #[allow(clippy::cast_possible_truncation)] // the wanted 32 of 128 bits
                    let bits = (value >> (96 - 32 * word)) as u32;
                    let (mask, value) = word_test(bits, length.saturating_sub(32 * word))?;
                    Some(format!("{}&{mask:#x}={value:#x}", 72 + 4 * word))
                })
                .collect();
            tests.join("&&")
        }
    }
}

/// Mask and value for the first `length` bits of a word.
fn word_test(word: u32, length: u32) -> Option<(u32, u32)> {
    let mask = u32::MAX.checked_shl(32 - length.min(32))?;
    Some((mask, word & mask))
}

fn low_bits(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => u32::from(v6.segments()[7]),
    }
}

/// Address and mask that match one bucket; x_tables takes any mask.
fn bucket_match(family: Family, bucket: u32) -> (IpAddr, IpAddr) {
    match family {
        Family::V4 => (
            Ipv4Addr::from(bucket).into(),
            Ipv4Addr::from(BUCKETS - 1).into(),
        ),
        Family::V6 => (
            Ipv6Addr::from(u128::from(bucket)).into(),
            Ipv6Addr::from(u128::from(BUCKETS - 1)).into(),
        ),
    }
}

fn multiport(ports: &[RangeInclusive<u16>]) -> Vec<String> {
    let mut lists: Vec<(usize, String)> = Vec::new();
    for range in ports {
        let slots = if range.start() == range.end() { 1 } else { 2 };
        let text = port_range(range, ':');
        match lists.last_mut() {
            Some((used, list)) if *used + slots <= MULTIPORT => {
                *used += slots;
                let _ = write!(list, ",{text}");
            }
            _ => lists.push((slots, text)),
        }
    }
    lists.into_iter().map(|(_, list)| list).collect()
}

fn flag(side: Side) -> &'static str {
    match side {
        Side::Source => "-s",
        Side::Destination => "-d",
    }
}

fn address(side: Side, peer: &Peer) -> String {
    format!("{} {} ", flag(side), peer.remote)
}

fn local(side: Side, peer: &Peer) -> String {
    let other = match side {
        Side::Source => "-d",
        Side::Destination => "-s",
    };
    peer.local
        .map_or(String::new(), |local| format!("{other} {local} "))
}

fn device(side: Side, peer: &Peer) -> String {
    match side {
        Side::Source => peer
            .device_in
            .as_ref()
            .map(|device| format!("-i {device} ")),
        Side::Destination => peer
            .device_out
            .as_ref()
            .map(|device| format!("-o {device} ")),
    }
    .unwrap_or_default()
}

/// Segments without TCP-AO.
const UNSIGNED: &str = "-p tcp -m tcp ! --tcp-option 29";

/// Drops and counts segments without TCP-AO.
fn unsigned(counter: &str, peer: &str) -> String {
    format!("{UNSIGNED} {} -j DROP", comment(counter, peer))
}

/// A comment by which a rule's count is found again.
fn comment(name: &str, peer: &str) -> String {
    let separator = if peer.is_empty() { "" } else { ":" };
    format!("-m comment --comment ao:{name}{separator}{peer}")
}

#[cfg(test)]
mod tests {
    use super::super::render_text;
    use super::*;
    use crate::firewall::ruleset::tests::{ruleset, spec};

    #[test]
    fn ports_are_packed_into_matches_of_fifteen() {
        let ports: Vec<_> = (0..16).map(|n| n * 10..=n * 10).collect();
        let lists = multiport(&ports);
        assert_eq!(lists.len(), 2);
        assert_eq!(lists[1], "150");
        let ranges: Vec<_> = (0..8).map(|n| n * 10..=n * 10 + 5).collect();
        assert_eq!(multiport(&ranges)[1], "70:75");
    }

    #[test]
    fn many_hosts_are_spread_over_buckets() {
        let peers: Vec<_> = (0..100)
            .map(|n| spec("p", &format!("10.0.0.{n}")))
            .chain([spec("net", "10.0.0.0/24")])
            .collect();
        let ruleset = ruleset(&peers, Backend::Userspace);
        let text = render_text(Role::Guard, Family::V4, &ruleset);
        assert!(text.contains("-A AO-GUARD-FROM -s 0.0.0.7/0.0.0.31 -g AO-GUARD-FROM-7\n"));
        assert!(text.contains("-A AO-GUARD-FROM-7 -s 10.0.0.39 "));
        // Whatever the bucket, the networks come last.
        assert!(text.contains("-A AO-GUARD-FROM-NETS -s 10.0.0.0/24 "));
        for chain in ["AO-GUARD-FROM", "AO-GUARD-FROM-7"] {
            let mut rules = text
                .lines()
                .filter(|line| line.starts_with(&format!("-A {chain} ")));
            assert_eq!(
                rules.next_back().unwrap(),
                format!("-A {chain} -g AO-GUARD-FROM-NETS")
            );
        }
    }

    #[test]
    fn prefixes_are_tested_word_by_word() {
        let quoted = |remote| {
            let ruleset = ruleset(&[spec("p", remote)], Backend::Userspace);
            quoted_destination(&ruleset.peers[0])
        };
        assert_eq!(
            quoted("2001:db8::/33"),
            "72&0xffffffff=0x20010db8&&76&0x80000000=0x0"
        );
        assert_eq!(quoted("::/0"), "");
        assert_eq!(quoted("0.0.0.0/0"), "0>>22&0x3C@14&0xFF=6");
        assert_eq!(
            quoted("10.0.0.0/8"),
            "0>>22&0x3C@14&0xFF=6&&0>>22&0x3C@24&0xff000000=0xa000000"
        );
    }
}
