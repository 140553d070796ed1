//! The rules as chains of legacy iptables and ip6tables (x_tables).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ao_sys::xtables::Family;

use super::ruleset::{Peer, Ruleset, port_range};
use super::tool::Tool;
use super::{Error, Role, UNSIGNED_PER_SECOND, drop_name};

/// Attempts at a restore when somebody else changes the tables between reading and writing.
const ATTEMPTS: usize = 3;
/// A multiport match takes this many ports, a range counting as two.
const MULTIPORT: usize = 15;
/// With more single addresses than this, they are spread over buckets by their low bits.
const LINEAR: usize = 64;
const BUCKETS: u32 = 32;

/// The tables one role uses in one family.
pub(super) fn table_names(role: Role) -> [&'static str; 2] {
    match role {
        Role::Queue => ["raw", "mangle"],
        Role::Guard => ["raw", "filter"],
    }
}

/// Replaces the chains by those of these rules, each table in one step, and puts the jumps to
/// them first. Without peers of the family this removes what there is.
pub(super) fn install(role: Role, family: Family, ruleset: &Ruleset) -> Result<(), Error> {
    replace(role, family, &render(role, family, ruleset))
}

/// Removes chains and jumps if they are there.
pub(super) fn remove(role: Role, family: Family) -> Result<(), Error> {
    replace(role, family, &Vec::new())
}

fn replace(role: Role, family: Family, wanted: &[Table]) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let present = match save(family, false) {
            // Nothing of ours can be in a family that this host does not have.
            Err(Error::Tool { .. }) if wanted.is_empty() => return Ok(()),
            other => other?,
        };
        let script = restore_script(role, wanted, &present);
        if script.is_empty() {
            return Ok(());
        }
        match restore_tool(family).run(&["-w", "5", "--noflush"], &script) {
            Err(Error::Tool { .. }) if attempt < ATTEMPTS => attempt += 1,
            other => return other.map(drop),
        }
    }
}

/// Our chains and the jumps to them as the kernel has them, without counts; a jump that is not
/// the first rule of its chain, or is there twice, shows as such.
pub(super) fn observe(role: Role, family: Family) -> Result<String, Error> {
    Ok(ours(role, &save(family, false)?))
}

/// Packets dropped, by name.
pub(super) fn drops(role: Role, family: Family) -> Result<BTreeMap<&'static str, u64>, Error> {
    match save(family, true) {
        Ok(text) => Ok(parse_drops(role, &text)),
        Err(Error::Tool { .. }) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

/// Number of rules in our chains, as rendered and as observed: the proof that an observation is
/// of these rules.
pub(super) fn rendered_rules(role: Role, family: Family, ruleset: &Ruleset) -> usize {
    render(role, family, ruleset)
        .iter()
        .flat_map(|table| &table.chains)
        .map(|(_, rules)| rules.len())
        .sum()
}

/// Number of rules in an observation.
pub(super) fn observed_rules(role: Role, observed: &str) -> usize {
    let ours = format!("-A {}", prefix(role));
    observed
        .lines()
        .filter(|line| line.starts_with(&ours))
        .count()
}

fn prefix(role: Role) -> &'static str {
    match role {
        Role::Queue => "AO-SIDECAR-",
        Role::Guard => "AO-GUARD-",
    }
}

fn save(family: Family, counters: bool) -> Result<String, Error> {
    let tool = Tool {
        name: match family {
            Family::V4 => "iptables-legacy-save",
            Family::V6 => "ip6tables-legacy-save",
        },
        package: "iptables",
    };
    tool.run(if counters { &["-c"] } else { &[] }, "")
}

fn restore_tool(family: Family) -> Tool {
    Tool {
        name: match family {
            Family::V4 => "iptables-legacy-restore",
            Family::V6 => "ip6tables-legacy-restore",
        },
        package: "iptables",
    }
}

/// One table's worth of rules.
struct Table {
    name: &'static str,
    /// Built-in chain and the chain of ours it jumps to.
    jumps: Vec<(&'static str, String)>,
    chains: Vec<(String, Vec<String>)>,
}

/// What is in a table already.
#[derive(Default)]
struct Present {
    chains: BTreeSet<String>,
    /// Jumps from built-in chains, `INPUT -j AO-…`.
    jumps: Vec<String>,
}

/// Input for `iptables-restore --noflush`; empty when there is nothing to do.
fn restore_script(role: Role, wanted: &[Table], saved: &str) -> String {
    let mut script = String::new();
    for name in table_names(role) {
        let present = present(role, name, saved);
        let wanted = wanted.iter().find(|table| table.name == name);
        let no_chains = Vec::new();
        let chains = wanted.map_or(&no_chains, |table| &table.chains);
        if chains.is_empty() && present.chains.is_empty() {
            continue;
        }
        let _ = writeln!(script, "*{name}");
        // Naming a chain empties it, or makes it.
        let new: BTreeSet<&String> = chains.iter().map(|(chain, _)| chain).collect();
        for chain in present.chains.iter().chain(new.iter().copied()) {
            let _ = writeln!(script, ":{chain} - [0:0]");
        }
        for jump in &present.jumps {
            let _ = writeln!(script, "-D {jump}");
        }
        for (chain, rules) in chains {
            for rule in rules {
                let _ = writeln!(script, "-A {chain} {rule}");
            }
        }
        for (built_in, chain) in wanted.iter().flat_map(|table| &table.jumps) {
            let _ = writeln!(script, "-I {built_in} 1 -j {chain}");
        }
        for stale in present.chains.iter().filter(|chain| !new.contains(chain)) {
            let _ = writeln!(script, "-X {stale}");
        }
        script.push_str("COMMIT\n");
    }
    script
}

fn present(role: Role, table: &str, saved: &str) -> Present {
    let mut present = Present::default();
    for line in lines_of(table, saved) {
        if let Some(chain) = line.strip_prefix(':') {
            let chain = chain.split(' ').next().unwrap_or_default();
            if chain.starts_with(prefix(role)) {
                present.chains.insert(chain.to_owned());
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let is_jump = jump_target(rule).is_some_and(|chain| chain.starts_with(prefix(role)));
            if is_jump && !rule.starts_with(prefix(role)) {
                present.jumps.push(rule.to_owned());
            }
        }
    }
    present
}

/// Target of an unconditional jump, `INPUT -j TARGET`.
fn jump_target(rule: &str) -> Option<&str> {
    match rule.split(' ').collect::<Vec<_>>()[..] {
        [_, "-j", target] => Some(target),
        _ => None,
    }
}

fn lines_of<'a>(table: &str, saved: &'a str) -> impl Iterator<Item = &'a str> {
    let header = format!("*{table}");
    saved
        .lines()
        .skip_while(move |line| *line != header)
        .skip(1)
        .take_while(|line| *line != "COMMIT")
}

fn ours(role: Role, saved: &str) -> String {
    let mut text = String::new();
    for table in table_names(role) {
        let _ = writeln!(text, "*{table}");
        let mut last_chain = "";
        for line in lines_of(table, saved) {
            let rule = line.strip_prefix("-A ").unwrap_or_default();
            let chain = rule.split(' ').next().unwrap_or_default();
            let first = chain != last_chain;
            last_chain = chain;
            if chain.starts_with(prefix(role)) {
                let _ = writeln!(text, "{line}");
            } else if jump_target(rule).is_some_and(|to| to.starts_with(prefix(role))) {
                let place = if first { "first" } else { "not first" };
                let _ = writeln!(text, "{line} # {place}");
            }
        }
    }
    text
}

fn parse_drops(role: Role, saved: &str) -> BTreeMap<&'static str, u64> {
    let mut drops = BTreeMap::new();
    let ours = format!("-A {}", prefix(role));
    for line in saved.lines() {
        let Some((counts, rule)) = line.split_once(' ') else {
            continue;
        };
        let packets = counts
            .strip_prefix('[')
            .and_then(|counts| counts.split(':').next())
            .and_then(|packets| packets.parse::<u64>().ok());
        let name = rule
            .split_once("--comment ")
            .and_then(|(_, comment)| comment.trim_start_matches('"').strip_prefix("ao:"))
            .and_then(|comment| comment.split([':', ' ', '"']).next())
            .and_then(drop_name);
        if let (true, Some(packets), Some(name)) = (rule.starts_with(&ours), packets, name) {
            *drops.entry(name).or_default() += packets;
        }
    }
    drops
}

/// What `iptables-restore` is given on a fresh host.
#[cfg(test)]
fn render_text(role: Role, family: Family, ruleset: &Ruleset) -> String {
    restore_script(role, &render(role, family, ruleset), "")
}

fn render(role: Role, family: Family, ruleset: &Ruleset) -> Vec<Table> {
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
        input.extend(
            types
                .iter()
                .map(|kind| format!("-p {protocol} {option} {kind} -j {icmp}")),
        );
        let mut output: Vec<String> = self.unless_l3_master();
        output.push(format!("{} -j RETURN", self.marked()));
        output.extend(self.to_peers("TO"));
        let workers = self.workers();
        chains.extend(self.verify());
        chains.extend(self.dispatch("FROM", Side::Source, |chain, index| {
            format!("-g {chain}VERIFY-{index}")
        }));
        chains.extend(self.dispatch("TO", Side::Destination, |_, _| workers.clone()));
        chains.push((icmp, self.icmp_errors()));
        chains.push((self.chain("IN"), input));
        chains.push((self.chain("OUT"), output));
        Table {
            name: "mangle",
            jumps: self.local_jumps(),
            chains,
        }
    }

    fn filter(&self) -> Table {
        let unsigned = format!(
            "-p tcp -m tcp ! --tcp-option 29 {} -j DROP",
            comment("guard", "")
        );
        let unverified = format!("{} -j DROP", comment("guard-unverified", ""));
        let mut chains = vec![
            (self.chain("LEAVE"), vec![unsigned.clone()]),
            (self.chain("ENTER"), vec![unsigned, unverified]),
            self.fragments("FRAGMENT-OUT", Side::Destination),
        ];
        chains.extend(self.dispatch("FROM", Side::Source, |chain, _| format!("-g {chain}ENTER")));
        chains.extend(self.dispatch("TO", Side::Destination, |chain, _| {
            format!("-g {chain}LEAVE")
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
            // More fragments, or an offset: `-f` would leave out the first one.
            Family::V4 => format!("-m u32 --u32 \"4&0x3FFF=1:0x3FFF\" -j {chain}"),
            Family::V6 => format!("-m frag -j {chain}"),
        }
    }

    /// Drops every packet of the peers; reached by fragments only.
    fn fragments(&self, chain: &str, side: Side) -> (String, Vec<String>) {
        let rules = self
            .peers()
            .map(|(_, peer)| {
                let comment = comment("fragment", &peer.name);
                format!(
                    "{}{}{comment} -j DROP",
                    address(side, peer),
                    device(side, peer)
                )
            })
            .collect();
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

    /// What happens to a segment of one peer before the engine sees it.
    fn verify(&self) -> Vec<(String, Vec<String>)> {
        let workers = self.workers();
        let unsigned = "-p tcp -m tcp ! --tcp-option 29";
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
                rules.push(format!(
                    "{unsigned} -m limit --limit {UNSIGNED_PER_SECOND}/sec --limit-burst \
                     {UNSIGNED_PER_SECOND} {workers}"
                ));
                rules.push(format!(
                    "{unsigned} {} -j DROP",
                    comment("unsigned", &peer.name)
                ));
                rules.push(workers.clone());
                (self.chain(&format!("VERIFY-{index}")), rules)
            })
            .collect()
    }

    /// Finds the peer of a segment, the most specific first.
    fn dispatch(
        &self,
        name: &str,
        side: Side,
        target: impl Fn(&str, usize) -> String,
    ) -> Vec<(String, Vec<String>)> {
        let rule = |(index, peer): (usize, &Peer)| {
            format!(
                "{}{}{}-p tcp -m multiport --ports {} {}",
                address(side, peer),
                local(side, peer),
                device(side, peer),
                port_range(&peer.ports, ':'),
                target(prefix(self.role), index),
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
        let mut top = Vec::new();
        let mut chains = Vec::new();
        for (bucket, rules) in buckets {
            let chain = self.chain(&format!("{name}-{bucket}"));
            let (value, mask) = bucket_match(self.family, bucket);
            top.push(format!("{} {value}/{mask} -j {chain}", flag(side)));
            chains.push((chain, rules));
        }
        top.extend(nets.into_iter().map(rule));
        chains.push((self.chain(name), top));
        chains
    }

    /// Queues ICMP errors that quote a segment of ours to a peer.
    fn icmp_errors(&self) -> Vec<String> {
        let queue = format!("-j NFQUEUE --queue-num {}", self.ruleset.queues.icmp());
        let mut rules = Vec::new();
        if self.family == Family::V6 {
            // What a fragment quotes may be in a later one, which no rule sees; no real error is
            // that long (RFC 4443 §2.4 c). Behind other extension headers the quoted packet is
            // not at its place: the engine finds it.
            rules.push(format!("-m frag {} -j DROP", comment("fragment", "")));
            rules.push(format!("-m u32 ! --u32 \"4>>8&0xFF=58\" {queue}"));
            // UDP and ICMPv6 need none of our care; TCP may follow quoted extension headers.
            rules.push("-m u32 --u32 \"52>>8&0xFF=17,58\" -j RETURN".to_owned());
        }
        for (_, peer) in self.peers() {
            let device = device(Side::Source, peer);
            let quoted = quoted_destination(peer);
            let quoted = if quoted.is_empty() {
                quoted
            } else {
                format!("-m u32 --u32 \"{quoted}\" ")
            };
            let rule = format!("{device}{quoted}{queue}");
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

/// A comment by which a rule's count is found again.
fn comment(name: &str, peer: &str) -> String {
    let separator = if peer.is_empty() { "" } else { ":" };
    format!("-m comment --comment ao:{name}{separator}{peer}")
}
