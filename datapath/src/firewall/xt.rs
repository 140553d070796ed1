//! The rules as chains of legacy iptables and ip6tables (x_tables).

mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use ao_sys::xtables::Family;

use super::ruleset::Ruleset;
use super::tool::Tool;
use super::{Error, FAMILIES, Role, drop_name};
use render::render;

/// Attempts at a restore when somebody else changes the tables between reading and writing.
const ATTEMPTS: usize = 3;

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
    save_tool(family).run(if counters { &["-c"] } else { &[] }, "")
}

/// Whether the tools are installed.
pub(super) fn check_tools() -> Result<(), Error> {
    FAMILIES
        .into_iter()
        .flat_map(|family| [save_tool(family), restore_tool(family)])
        .try_for_each(Tool::check)
}

fn save_tool(family: Family) -> Tool {
    iptables(match family {
        Family::V4 => "iptables-legacy-save",
        Family::V6 => "ip6tables-legacy-save",
    })
}

fn restore_tool(family: Family) -> Tool {
    iptables(match family {
        Family::V4 => "iptables-legacy-restore",
        Family::V6 => "ip6tables-legacy-restore",
    })
}

fn iptables(name: &'static str) -> Tool {
    Tool {
        name,
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
        for chain in present.chains.iter().collect::<BTreeSet<_>>().union(&new) {
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
pub(super) fn render_text(role: Role, family: Family, ruleset: &Ruleset) -> String {
    restore_script(role, &render(role, family, ruleset), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-save
*mangle
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:AO-SIDECAR-IN - [0:0]
:AO-SIDECAR-OLD - [0:0]
:OTHER - [0:0]
[5:300] -A INPUT -j OTHER
[5:300] -A INPUT -j AO-SIDECAR-IN
[1:60] -A INPUT -j AO-SIDECAR-IN
[7:1] -A AO-SIDECAR-IN -m comment --comment \"ao:unsigned:a b\" -j DROP
[2:1] -A AO-SIDECAR-IN -m comment --comment ao:unsigned:b -j DROP
[3:1] -A AO-SIDECAR-IN -m comment --comment ao:ttl -j DROP
[9:1] -A OTHER -m comment --comment ao:ttl -j DROP
COMMIT
";

    fn without_counts() -> String {
        SAVED
            .lines()
            .map(|line| match line.strip_prefix('[') {
                Some(counted) => counted.split_once(' ').unwrap().1,
                None => line,
            })
            .map(|line| format!("{line}\n"))
            .collect()
    }

    #[test]
    fn replacement_takes_away_every_trace_of_the_old() {
        let wanted = [Table {
            name: "mangle",
            jumps: vec![("INPUT", "AO-SIDECAR-IN".to_owned())],
            chains: vec![("AO-SIDECAR-IN".to_owned(), vec!["-j DROP".to_owned()])],
        }];
        assert_eq!(
            restore_script(Role::Queue, &wanted, &without_counts()),
            "*mangle\n:AO-SIDECAR-IN - [0:0]\n:AO-SIDECAR-OLD - [0:0]\n\
             -D INPUT -j AO-SIDECAR-IN\n-D INPUT -j AO-SIDECAR-IN\n\
             -A AO-SIDECAR-IN -j DROP\n-I INPUT 1 -j AO-SIDECAR-IN\n\
             -X AO-SIDECAR-OLD\nCOMMIT\n"
        );
        assert_eq!(restore_script(Role::Guard, &[], &without_counts()), "");
    }

    #[test]
    fn observation_tells_the_place_of_the_jumps() {
        let observed = ours(Role::Queue, &without_counts());
        assert!(observed.contains("-A INPUT -j AO-SIDECAR-IN # not first"));
        assert!(!observed.contains("OTHER"));
        assert_eq!(observed_rules(Role::Queue, &observed), 3);
    }

    #[test]
    fn drops_of_our_chains_are_summed_by_name() {
        let expected = BTreeMap::from([("unsigned", 9), ("ttl", 3)]);
        assert_eq!(parse_drops(Role::Queue, SAVED), expected);
        assert!(parse_drops(Role::Guard, SAVED).is_empty());
        assert!(parse_drops(Role::Queue, "[x] -A AO-SIDECAR-\n[\n--comment ao:").is_empty());
    }
}
