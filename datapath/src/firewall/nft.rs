//! The rules as nftables tables.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::net::IpAddr;

use ao_sys::xtables::Family;

use super::ruleset::{Peer, Queues, Ruleset, port_range};
use super::tool::Tool;
use super::{Error, FAMILIES, NEVER_TCP, Role, UNSIGNED_PER_SECOND, drop_name};
use crate::settings::Backend;

const NFT: Tool = Tool {
    name: "nft",
    package: "nftables",
};

/// Drops an ICMPv6 error that is a fragment: what it quotes may be in a later one, which no rule
/// sees, and no real one is that long (RFC 4443 §2.4 c).
const FRAGMENTED_ERROR: &str = "exthdr frag exists counter name fragment drop";

/// IPv4 fragments that may be of a segment: each carries the protocol.
const IPV4_FRAGMENT: &str = "ip protocol tcp ip frag-off & 0x3fff != 0";

/// IPv6 fragments that may be of a segment; TCP may follow extension headers.
fn ipv6_fragment() -> String {
    format!("meta nfproto ipv6 frag nexthdr != {{ {NEVER_TCP} }}")
}

/// Name of the table.
pub(super) fn table(role: Role) -> &'static str {
    match role {
        Role::Queue => "ao_sidecar",
        Role::Guard => "ao_sidecar_guard",
    }
}

/// Whether this kernel has nftables' own queue expression: asks it by a rule in a table that the
/// same transaction removes.
pub(super) fn has_queue() -> Result<bool, Error> {
    let table = format!("inet ao_sidecar_probe_{}", std::process::id());
    let script = format!(
        "add table {table}\nadd chain {table} probe\nadd rule {table} probe queue num 0\n\
         delete table {table}\n"
    );
    match NFT.run(&["-f", "-"], &script) {
        Ok(_) => Ok(true),
        Err(Error::Tool { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts the table in place of the one there may be, in one transaction.
pub(super) fn install(role: Role, ruleset: &Ruleset) -> Result<(), Error> {
    NFT.run(&["-f", "-"], &render(role, ruleset)).map(drop)
}

/// Changes the rules of a table that has those of `former`, in one transaction. The hooks stay: when
/// one goes, the kernel drops what waits in any queue. So do the counters.
pub(super) fn update(role: Role, former: &Ruleset, ruleset: &Ruleset) -> Result<(), Error> {
    NFT.run(&["-f", "-"], &update_script(role, former, ruleset))
        .map(drop)
}

fn update_script(role: Role, former: &Ruleset, ruleset: &Ruleset) -> String {
    let table = table(role);
    let (former, wanted) = (chains(role, former), chains(role, ruleset));
    let stay: HashSet<&str> = wanted.names().collect();
    let mut script = format!("flush table inet {table}\n");
    for stale in former.names().filter(|name| !stay.contains(name)) {
        let _ = writeln!(script, "delete chain inet {table} {stale}");
    }
    describe(&mut script, role, wanted);
    script
}

/// Removes the table if it is there.
pub(super) fn remove(role: Role) -> Result<(), Error> {
    let table = table(role);
    let script = format!("add table inet {table}\ndelete table inet {table}\n");
    NFT.run(&["-f", "-"], &script).map(drop)
}

/// The table as the kernel has it, without counts; empty when it is missing.
pub(super) fn observe(role: Role) -> Result<String, Error> {
    match NFT.run(&["-s", "list", "table", "inet", table(role)], "") {
        Err(error) if is_missing(&error) => Ok(String::new()),
        other => Ok(sorted(&other?)),
    }
}

/// Whether nft says that there is no such table: whatever else it says is no reason to take ours for
/// gone.
fn is_missing(error: &Error) -> bool {
    let says_so = |reason: &str| {
        reason.starts_with("Error: ") && reason.contains("No such file or directory")
    };
    matches!(error, Error::Tool { reason, .. } if says_so(reason))
}

/// A listing with its chains in the order of their names: the kernel has them in that of their age.
fn sorted(listing: &str) -> String {
    let mut parts: Vec<&str> = listing.split_inclusive("\n\t}\n").map(str::trim).collect();
    if let Some(rest) = parts.get_mut(1..) {
        rest.sort_unstable();
    }
    parts.join("\n")
}

/// Packets dropped, by name; nothing when the table is missing.
pub(super) fn drops(role: Role) -> Result<BTreeMap<&'static str, u64>, Error> {
    // Not the whole table: a thousand peers' rules are a megabyte, and twenty once they are parsed.
    let counters = ["-j", "list", "counters", "table", "inet", table(role)];
    match NFT.run(&counters, "") {
        Ok(json) => Ok(parse_counters(&json)),
        Err(error) if is_missing(&error) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

fn parse_counters(json: &str) -> BTreeMap<&'static str, u64> {
    let listing: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let objects = listing.get("nftables").and_then(|all| all.as_array());
    objects
        .into_iter()
        .flatten()
        .filter_map(|object| {
            let counter = object.get("counter")?;
            let name = drop_name(&counter.get("name")?.as_str()?.replace('_', "-"))?;
            Some((name, counter.get("packets")?.as_u64()?))
        })
        .collect()
}

/// The script that replaces the table by one with these rules.
pub(super) fn render(role: Role, ruleset: &Ruleset) -> String {
    let table = table(role);
    let mut script = format!("add table inet {table}\ndelete table inet {table}\n");
    describe(&mut script, role, chains(role, ruleset));
    script
}

fn chains(role: Role, ruleset: &Ruleset) -> Chains {
    let mut chains = Chains::default();
    match role {
        Role::Queue => queue_chains(&mut chains, ruleset),
        Role::Guard => guard_chains(&mut chains, ruleset),
    }
    chains
}

/// Adds to a script what is to be in the table.
fn describe(script: &mut String, role: Role, chains: Chains) {
    let counters: &[&str] = match role {
        Role::Queue => &["fragment", "ttl", "unsigned"],
        Role::Guard => &["fragment", "guard", "guard_unverified"],
    };
    let _ = writeln!(script, "table inet {} {{", table(role));
    for counter in counters {
        let _ = writeln!(script, "\tcounter {counter} {{ }}");
    }
    for (name, rules) in chains.list {
        let _ = writeln!(
            script,
            "\tchain {name} {{\n\t\t{}\n\t}}",
            rules.join("\n\t\t")
        );
    }
    script.push_str("}\n");
}

#[derive(Default)]
struct Chains {
    list: Vec<(String, Vec<String>)>,
}

impl Chains {
    fn add(&mut self, name: impl Into<String>, rules: Vec<String>) {
        self.list.push((name.into(), rules));
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|(name, _)| name.as_str())
    }
}

/// Which address of a packet is the peer's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

fn queue_chains(chains: &mut Chains, ruleset: &Ruleset) {
    let Queues { first, .. } = ruleset.queues;
    let workers = port_range(&(first..=ruleset.queues.last()), '-');
    let icmp = ruleset.queues.icmp();
    for (index, peer) in ruleset.peers.iter().enumerate() {
        chains.add(format!("verify_{index}"), verify(peer, &workers));
    }
    chains.add("sign", vec![format!("queue num {workers}")]);
    chains.add("signed", signed("unsigned"));
    dispatch(chains, ruleset, Side::Source, |index, _| {
        format!("verify_{index}")
    });
    dispatch(
        chains,
        ruleset,
        Side::Destination,
        |_, backend| match backend {
            Backend::Kernel => "signed".to_owned(),
            Backend::Userspace => "sign".to_owned(),
        },
    );
    chains.add("fragments", fragments(ruleset, Side::Source));
    for family in FAMILIES {
        chains.add(icmp_chain(family), icmp_errors(ruleset, family, icmp));
    }
    chains.add("early", early());
    let mut input = vec![
        "type filter hook input priority -150; policy accept;".to_owned(),
        format!("{} jump fragments", ipv6_fragment()),
    ];
    input.extend(to_peers(ruleset, "from_peers"));
    input.push("meta nfproto ipv4 icmp type { 3, 11, 12 } @th,136,8 6 jump icmp_errors".to_owned());
    input.push("meta nfproto ipv6 icmpv6 type { 1, 2, 3, 4 } jump icmpv6_errors".to_owned());
    chains.add("input", input);
    let mut output = vec![
        "type filter hook output priority -150; policy accept;".to_owned(),
        "meta oifkind \"vrf\" return".to_owned(),
        // The engine's own. The mark alone is not enough: sockets inherit it from a verified SYN
        // with net.ipv4.tcp_fwmark_accept.
        format!("{} tcp option 29 exists return", marked(ruleset)),
    ];
    output.extend(to_peers(ruleset, "to_peers"));
    chains.add("output", output);
}

fn guard_chains(chains: &mut Chains, ruleset: &Ruleset) {
    chains.add("signed", signed("guard"));
    chains.add(
        "verified",
        vec![
            "tcp option 29 missing counter name guard drop".to_owned(),
            "counter name guard_unverified drop".to_owned(),
        ],
    );
    dispatch(chains, ruleset, Side::Source, |_, backend| match backend {
        Backend::Kernel => "signed".to_owned(),
        Backend::Userspace => "verified".to_owned(),
    });
    dispatch(chains, ruleset, Side::Destination, |_, _| {
        "signed".to_owned()
    });
    chains.add("fragments", fragments(ruleset, Side::Source));
    chains.add("fragments_out", fragments(ruleset, Side::Destination));
    chains.add("early", early());
    let mut input = vec![
        "type filter hook input priority 200; policy accept;".to_owned(),
        format!("{} jump fragments", ipv6_fragment()),
        format!("{} return", marked(ruleset)),
    ];
    input.extend(to_peers(ruleset, "from_peers"));
    chains.add("input", input);
    let mut output = vec![
        "type filter hook output priority 300; policy accept;".to_owned(),
        "meta oifkind \"vrf\" return".to_owned(),
        format!("{IPV4_FRAGMENT} jump fragments_out"),
        format!("{} jump fragments_out", ipv6_fragment()),
    ];
    output.extend(to_peers(ruleset, "to_peers"));
    chains.add("output", output);
}

/// Fragments, before connection tracking puts them together at -400.
fn early() -> Vec<String> {
    vec![
        "type filter hook prerouting priority -450; policy accept;".to_owned(),
        format!("{IPV4_FRAGMENT} jump fragments"),
        format!("{} jump fragments", ipv6_fragment()),
    ]
}

fn marked(ruleset: &Ruleset) -> String {
    let bit = ruleset.mark_bit;
    format!("meta mark & 0x{bit:08x} == 0x{bit:08x}")
}

/// Leaves traffic on other ports alone at the cost of two lookups.
fn to_peers(ruleset: &Ruleset, chain: &str) -> Vec<String> {
    let ports: Vec<String> = ruleset
        .ports(None)
        .iter()
        .map(|range| port_range(range, '-'))
        .collect();
    if ports.is_empty() {
        return Vec::new();
    }
    let ports = ports.join(", ");
    ["sport", "dport"]
        .map(|field| format!("tcp {field} {{ {ports} }} jump {chain}"))
        .to_vec()
}

/// Demands TCP-AO and no more: the kernel verifies. Acceptance ends these rules alone, so that
/// those of a shorter prefix with the other backend do not follow.
fn signed(counter: &str) -> Vec<String> {
    vec![
        format!("tcp option 29 missing counter name {counter} drop"),
        "accept".to_owned(),
    ]
}

/// What happens to a segment of one peer before the backend sees it.
fn verify(peer: &Peer, workers: &str) -> Vec<String> {
    let mut rules = Vec::new();
    if peer.ttl_min > 0 {
        let field = match peer.family() {
            Family::V4 => "ip ttl",
            Family::V6 => "ip6 hoplimit",
        };
        rules.push(format!("{field} < {} counter name ttl drop", peer.ttl_min));
    }
    if peer.backend == Backend::Kernel {
        rules.extend(signed("unsigned"));
        return rules;
    }
    let limit =
        format!("limit rate {UNSIGNED_PER_SECOND}/second burst {UNSIGNED_PER_SECOND} packets");
    rules.push(format!("tcp option 29 missing {limit} queue num {workers}"));
    rules.push("tcp option 29 missing counter name unsigned drop".to_owned());
    rules.push(format!("queue num {workers}"));
    rules
}

/// Finds the peer of a segment: single addresses in a map, then prefixes from long to short.
fn dispatch(
    chains: &mut Chains,
    ruleset: &Ruleset,
    side: Side,
    target: impl Fn(usize, Backend) -> String,
) {
    let (prefix, name) = match side {
        Side::Source => ("from", "from_peers"),
        Side::Destination => ("to", "to_peers"),
    };
    let mut rules = Vec::new();
    for family in FAMILIES {
        let mut hosts = Vec::new();
        let mut nets = Vec::new();
        let peers: Vec<(usize, &Peer)> = ruleset.of(family).collect();
        for same in peers.chunk_by(|(_, a), (_, b)| a.remote == b.remote) {
            let Some((number, Peer { remote, .. })) = same.first() else {
                continue;
            };
            let chain = format!("{prefix}_{number}");
            let selected = same
                .iter()
                .flat_map(|&(index, peer)| select(peer, side, &target(index, peer.backend)))
                .collect();
            chains.add(chain.clone(), selected);
            if remote.is_host() {
                hosts.push(format!("{remote} : jump {chain}"));
            } else {
                nets.push(format!("{} {remote} jump {chain}", address(family, side)));
            }
        }
        if !hosts.is_empty() {
            let map = hosts.join(", ");
            rules.push(format!("{} vmap {{ {map} }}", address(family, side)));
        }
        rules.append(&mut nets);
    }
    chains.add(name, rules);
}

/// The conditions of one peer beyond its address.
fn select(peer: &Peer, side: Side, target: &str) -> Vec<String> {
    let mut conditions = String::new();
    let (device, field) = match side {
        Side::Source => (&peer.device_in, "iifname"),
        Side::Destination => (&peer.device_out, "oifname"),
    };
    if let Some(device) = device {
        let _ = write!(conditions, "{field} \"{device}\" ");
    }
    if let Some(local) = peer.local {
        let other = match side {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        };
        let _ = write!(conditions, "{} {local} ", address(peer.family(), other));
    }
    let ports = port_range(&peer.ports, '-');
    ["sport", "dport"]
        .map(|field| format!("{conditions}tcp {field} {ports} goto {target}"))
        .to_vec()
}

/// Drops every packet of the peers; reached by fragments that may be of a segment. Those of
/// kernel peers, too: a fragment beyond the first has no header in which to look for TCP-AO, and
/// though the kernel verifies the whole segment, one to a socket without keys would pass. BGP
/// speakers do not fragment.
fn fragments(ruleset: &Ruleset, side: Side) -> Vec<String> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        let address = address(family, side);
        let mut hosts = Vec::new();
        for (_, peer) in ruleset.of(family) {
            let (device, field) = match side {
                Side::Source => (&peer.device_in, "iifname"),
                Side::Destination => (&peer.device_out, "oifname"),
            };
            let remote = peer.remote;
            let rule = match device {
                Some(device) => format!("{field} \"{device}\" {address} {remote}"),
                None if remote.is_host() => {
                    hosts.push(remote.to_string());
                    continue;
                }
                None => format!("{address} {remote}"),
            };
            let rule = format!("{rule} counter name fragment drop");
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        hosts.dedup();
        if !hosts.is_empty() {
            rules.push(format!(
                "{address} {{ {} }} counter name fragment drop",
                hosts.join(", ")
            ));
        }
    }
    rules
}

/// Queues ICMP errors that quote a segment of ours to a peer. The offsets count from the ICMP
/// header; the quoted packet begins 8 octets into it.
fn icmp_errors(ruleset: &Ruleset, family: Family, queue: u16) -> Vec<String> {
    let mut rules = Vec::new();
    let peers = ruleset.quoted(family);
    if family == Family::V6 && !peers.is_empty() {
        rules.push(FRAGMENTED_ERROR.to_owned());
        // The quoted packet may have extension headers before its TCP header; UDP and ICMPv6
        // need none of our care.
        rules.push("@th,112,8 { 17, 58 } return".to_owned());
    }
    for peer in peers {
        let device = peer
            .device_in
            .as_ref()
            .map_or(String::new(), |device| format!("iifname \"{device}\" "));
        let verdict = match peer.backend {
            Backend::Kernel => "return".to_owned(),
            Backend::Userspace => format!("queue num {queue}"),
        };
        let rule = format!("{device}{} {verdict}", quoted_destination(peer));
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules
}

fn quoted_destination(peer: &Peer) -> String {
    let length = u32::from(peer.remote.length());
    match peer.remote.address() {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let value = u32::from(v4);
            if length == 32 {
                format!("@th,192,32 0x{value:08x}")
            } else {
                format!("@th,192,32 & 0x{mask:08x} == 0x{value:08x}")
            }
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            let value = u128::from(v6);
            if length == 128 {
                format!("@th,256,128 0x{value:032x}")
            } else {
                format!("@th,256,128 & 0x{mask:032x} == 0x{value:032x}")
            }
        }
    }
}

fn icmp_chain(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp_errors",
        Family::V6 => "icmpv6_errors",
    }
}

fn protocol(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn address(family: Family, side: Side) -> String {
    let field = match side {
        Side::Source => "saddr",
        Side::Destination => "daddr",
    };
    format!("{} {field}", protocol(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_name() {
        let json = r#"{"nftables": [{"metainfo": {}}, {"table": {"name": "x"}},
            {"counter": {"name": "guard_unverified", "packets": 7, "bytes": 9}},
            {"counter": {"name": "fragment", "packets": 2}},
            {"counter": {"name": "foreign", "packets": 1}}, {"counter": {}}]}"#;
        let expected = BTreeMap::from([("guard-unverified", 7), ("fragment", 2)]);
        assert_eq!(parse_counters(json), expected);
        assert!(parse_counters("no json").is_empty());
    }
}
