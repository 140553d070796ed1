//! Firewall rules in network namespaces of their own. Must run as root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod packets;
mod support;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use datapath::firewall::{Firewall, Mechanism, Queues, Watcher};
use datapath::settings::PeerSpec;

use support::{
    FarEnd, all_rules, connect, in_namespace, in_tables, listen, peers, ruleset, ruleset_with, run,
    spec, start_connect, wait_for,
};

#[test]
fn rules_are_installed_once_and_removed_without_a_trace() {
    in_namespace(|| {
        let clean = all_rules();
        let firewall = Firewall::probe().unwrap();
        assert_eq!(all_rules(), clean);
        let rules = ruleset(&peers());
        firewall.install(&rules).unwrap();
        let once = all_rules();
        for name in ["inet ao_sidecar", "AO-"] {
            assert!(once.contains(name), "{name} not in {once}");
        }
        firewall.install(&rules).unwrap();
        assert_eq!(all_rules(), once);
        // Another process with fewer peers leaves nothing of the others.
        let fewer = Firewall::probe().unwrap();
        fewer.install(&ruleset(&peers()[..1])).unwrap();
        assert!(!all_rules().contains("2001:db8"));
        assert_eq!(fewer.restore().unwrap(), []);
        fewer.remove().unwrap();
        assert_eq!(all_rules(), clean);
        fewer.remove().unwrap();
        assert_eq!(all_rules(), clean);
    });
}

#[test]
fn rules_of_others_stay_as_they_are() {
    in_namespace(|| {
        run("iptables-legacy -w -A INPUT -p tcp --dport 22 -j ACCEPT
             iptables-legacy -w -t mangle -N OTHER
             iptables-legacy -w -t mangle -A INPUT -j OTHER
             ip6tables-legacy -w -t raw -A PREROUTING -s 2001:db8::7 -j DROP
             nft add table inet other
             nft add chain inet other input '{ type filter hook input priority 0; }'
             nft add rule inet other input tcp dport 23 drop");
        let before = all_rules();
        let firewall = Firewall::probe().unwrap();
        firewall.install(&ruleset(&peers())).unwrap();
        let with_ours = all_rules();
        for line in before.lines() {
            assert!(with_ours.contains(line), "{line} is gone");
        }
        firewall.remove().unwrap();
        assert_eq!(all_rules(), before);
    });
}

#[test]
fn rules_of_the_other_arrangement_are_cleared_away() {
    in_namespace(|| {
        // As a process on a kernel with the opposite abilities would have left them.
        let firewall = Firewall::probe().unwrap();
        run(
            "nft add table inet ao_sidecar; nft add table inet ao_sidecar_guard
             iptables-legacy -w -t mangle -N AO-SIDECAR-IN
             iptables-legacy -w -t mangle -A INPUT -j AO-SIDECAR-IN
             iptables-legacy -w -N AO-GUARD-IN
             iptables-legacy -w -A INPUT -j AO-GUARD-IN",
        );
        firewall.install(&ruleset(&peers())).unwrap();
        let rules = all_rules();
        let (gone, there) = match firewall.queue_rules() {
            Mechanism::Iptables => (
                ["inet ao_sidecar {", "AO-GUARD"],
                ["inet ao_sidecar_guard {", "AO-SIDECAR-IN"],
            ),
            Mechanism::Nftables => (
                ["inet ao_sidecar_guard {", "AO-SIDECAR"],
                ["inet ao_sidecar {", "AO-GUARD-IN"],
            ),
        };
        for name in gone {
            assert!(!rules.contains(name), "{name} in {rules}");
        }
        for name in there {
            assert!(rules.contains(name), "{name} not in {rules}");
        }
    });
}

#[test]
fn flushed_rules_are_back_within_a_second() {
    in_namespace(|| {
        let firewall = Arc::new(Firewall::probe().unwrap());
        firewall.install(&ruleset(&peers())).unwrap();
        let watcher = Watcher::spawn(Arc::clone(&firewall), |_| {}).unwrap();
        let whole = all_rules();
        let everything = format!("nft flush ruleset; {}", in_tables("-F"));
        let attacks = [
            "nft flush ruleset".to_owned(),
            "for t in ao_sidecar ao_sidecar_guard; do nft flush chain inet $t input || true; done"
                .to_owned(),
            "iptables-legacy -w -t mangle -F".to_owned(),
            "iptables-legacy -w -F".to_owned(),
            "for t in mangle filter; do ip6tables-legacy -w -t $t -F INPUT; done".to_owned(),
            // The watcher may be back between the two: then the chains are in use again.
            "ip6tables-legacy -w -t raw -F; ip6tables-legacy -w -t raw -X || true".to_owned(),
            format!("{}; ({}) || true", in_tables("-F"), in_tables("-X")),
            everything,
        ];
        let mut restored = 0;
        for attack in attacks {
            run(&attack);
            let flushed = Instant::now();
            let tables_were_ours =
                attack != "iptables-legacy -w -F" || firewall.guard() == Mechanism::Iptables;
            if attack == "iptables-legacy -w -t mangle -F"
                && firewall.queue_rules() != Mechanism::Iptables
                || !tables_were_ours
            {
                // This kernel has the other arrangement: nothing of ours was there.
                continue;
            }
            wait_for(&attack, Duration::from_secs(1), || {
                firewall.restored() > restored && all_rules() == whole
            });
            println!("{:?} after {attack}", flushed.elapsed());
            restored = firewall.restored();
        }
        drop(watcher);
        run("nft flush ruleset");
        assert_eq!(firewall.restored(), restored);
    });
}

#[test]
fn a_rule_put_before_ours_loses_its_place() {
    in_namespace(|| {
        let firewall = Arc::new(Firewall::probe().unwrap());
        firewall.install(&ruleset(&peers())).unwrap();
        let _watcher = Watcher::spawn(Arc::clone(&firewall), |_| {}).unwrap();
        let table = match firewall.queue_rules() {
            Mechanism::Iptables => "mangle",
            Mechanism::Nftables => "filter",
        };
        run(&format!("iptables-legacy -w -t {table} -I INPUT -j ACCEPT"));
        wait_for("first place", Duration::from_secs(1), || {
            let rules = run(&format!("iptables-legacy -w -t {table} -S INPUT"));
            let rules: Vec<&str> = rules.lines().skip(1).collect();
            rules.len() == 2
                && rules[0].starts_with("-A INPUT -j AO-")
                && rules[1] == "-A INPUT -j ACCEPT"
        });
    });
}

#[test]
fn changes_of_others_are_no_reason_to_write() {
    in_namespace(|| {
        let firewall = Arc::new(Firewall::probe().unwrap());
        firewall.install(&ruleset(&peers())).unwrap();
        let _watcher = Watcher::spawn(Arc::clone(&firewall), |_| {}).unwrap();
        run("iptables-legacy -w -A INPUT -p tcp --dport 22 -j ACCEPT
             iptables-legacy -w -t mangle -A OUTPUT -p tcp --dport 22 -j ACCEPT
             nft add table inet other");
        // Two looks later nothing has happened, for which there is no event.
        thread::sleep(Duration::from_millis(1000));
        assert_eq!(firewall.restored(), 0);
    });
}

#[test]
fn a_failed_installation_leaves_the_earlier_rules_watched() {
    in_namespace(|| {
        let firewall = Firewall::probe().unwrap();
        firewall.install(&ruleset(&peers())).unwrap();
        let whole = all_rules();
        let mut backwards = spec("refused by both firewalls", "10.0.0.9");
        backwards.ports = RangeInclusive::new(300, 200);
        let mut backwards6 = spec("refused by both firewalls", "2001:db8::9");
        backwards6.ports = backwards.ports.clone();
        let refused = ruleset(&[backwards, backwards6]);
        firewall.install(&refused).unwrap_err();
        firewall.install_guard(&refused).unwrap_err();
        assert_eq!(all_rules(), whole);
        run(&format!("nft flush ruleset; {}", in_tables("-F")));
        assert_eq!(firewall.restore().unwrap().len(), 3);
        assert_eq!(all_rules(), whole);
        assert_eq!(firewall.restore().unwrap(), []);
    });
}

/// Whether rules are the same but for the order of chains.
fn same(one: &str, other: &str) -> bool {
    let sorted = |rules: &str| {
        let mut lines: Vec<String> = rules.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    sorted(one) == sorted(other)
}

#[test]
fn a_replacement_counts_on_and_looks_as_if_it_had_always_been_there() {
    in_namespace(|| {
        let mut v4 = spec("v4", "10.0.0.2");
        v4.ttl_min = 255;
        let few = [v4.clone(), spec("v6", "2001:db8::2")];
        let mut moved = spec("v4", "10.0.3.0/24");
        moved.ports = 1790..=1799;
        let others = [spec("new", "10.0.0.1"), moved, v4];
        let rules_of = |peers: &[PeerSpec]| {
            let firewall = Firewall::probe().unwrap();
            firewall.install(&ruleset(peers)).unwrap();
            let rules = all_rules();
            firewall.remove().unwrap();
            rules
        };
        let (with_few, with_others) = (rules_of(&few), rules_of(&others));
        let firewall = Firewall::probe().unwrap();
        firewall.install(&ruleset(&few)).unwrap();
        let _far = FarEnd::new(|| {
            drop(start_connect("10.0.0.2", "10.0.0.1:179"));
        });
        let mut drops = firewall.drops().unwrap();
        assert!(drops.values().sum::<u64>() > 0, "{drops:?}");
        for (peers, whole) in [(&others[..], &with_others), (&few, &with_few)] {
            firewall.replace(&ruleset(peers)).unwrap();
            assert!(same(&all_rules(), whole));
            let now = firewall.drops().unwrap();
            for (name, count) in &drops {
                assert!(now[name] >= *count, "{name}: {drops:?}, then {now:?}");
            }
            // What is put back looks the same, though its chains are in another order.
            run(&format!("nft flush ruleset; {}", in_tables("-F")));
            assert!(!firewall.restore().unwrap().is_empty());
            assert_eq!(firewall.restore().unwrap(), []);
            assert_eq!(firewall.trouble(), None);
            // What a flushed table had counted stays.
            drops = firewall.drops().unwrap();
            for (name, count) in &now {
                assert!(drops[name] >= *count, "{name}: {now:?}, then {drops:?}");
            }
        }
        // A table that is no longer as it was is made anew.
        run(
            "nft list tables | while read -r table; do nft add chain $(echo $table | cut -d' ' -f2-) \
             mine '{ type filter hook input priority 300; policy drop; }'; done",
        );
        firewall.replace(&ruleset(&others)).unwrap();
        assert!(same(&all_rules(), &with_others));
        firewall.remove().unwrap();
    });
}

#[test]
fn a_replacement_that_is_refused_half_way_is_taken_back() {
    in_namespace(|| {
        let firewall = Firewall::probe().unwrap();
        firewall.install(&ruleset(&peers())).unwrap();
        let whole = all_rules();
        // The guard, which is put in place first, knows nothing of queues. iptables takes no range
        // of one queue; nftables does.
        let beyond = Queues {
            first: u16::MAX,
            workers: 2,
        };
        let outcome = firewall.replace(&ruleset_with(beyond, &[spec("new", "10.0.0.9")], &[]));
        if firewall.queue_rules() == Mechanism::Nftables {
            outcome.unwrap();
            firewall.replace(&ruleset(&peers())).unwrap();
        } else {
            outcome.unwrap_err();
        }
        assert!(same(&all_rules(), &whole));
        assert_eq!(firewall.restore().unwrap(), []);
        firewall.replace(&ruleset(&peers()[..1])).unwrap();
        assert!(!all_rules().contains("2001:db8"));
    });
}

#[test]
fn removal_is_not_undone() {
    in_namespace(|| {
        let firewall = Arc::new(Firewall::probe().unwrap());
        firewall.install(&ruleset(&peers())).unwrap();
        let _watcher = Watcher::spawn(Arc::clone(&firewall), |_| {}).unwrap();
        firewall.remove().unwrap();
        thread::sleep(Duration::from_millis(1000));
        let rules = all_rules();
        assert!(!rules.contains("AO-") && !rules.contains("ao_sidecar"));
        assert_eq!(firewall.restored(), 0);
    });
}

#[test]
fn guard_alone_lets_nothing_unsigned_out() {
    in_namespace(|| {
        let _far = FarEnd::new(listen);
        for address in ["10.0.0.2:179", "[2001:db8::2]:179"] {
            connect(address).unwrap();
        }
        let firewall = Firewall::probe().unwrap();
        let peers = [spec("v4", "10.0.0.2"), spec("v6", "2001:db8::2")];
        firewall.install_guard(&ruleset(&peers)).unwrap();
        for address in ["10.0.0.2:179", "[2001:db8::2]:179"] {
            connect(address).unwrap_err();
        }
        assert!(firewall.drops().unwrap()["guard"] >= 2);
        for address in [
            "10.0.0.2:180",
            "[2001:db8::2]:180",
            "10.0.0.3:179",
            "[2001:db8::3]:179",
        ] {
            connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        firewall.remove_guard().unwrap();
        for address in ["10.0.0.2:179", "[2001:db8::2]:179"] {
            connect(address).unwrap();
        }
    });
}

#[test]
fn guard_alone_lets_nothing_unsigned_in() {
    in_namespace(|| {
        listen();
        let firewall = Firewall::probe().unwrap();
        let peers = [spec("v4", "10.0.0.0/30"), spec("v6", "2001:db8::/126")];
        firewall.install_guard(&ruleset(&peers)).unwrap();
        let _far = FarEnd::new(|| {
            for address in ["10.0.0.1:179", "[2001:db8::1]:179"] {
                connect(address).unwrap_err();
            }
            connect("10.0.0.1:180").unwrap();
            connect("[2001:db8::1]:180").unwrap();
        });
        assert!(firewall.drops().unwrap()["guard"] >= 2);
    });
}

#[test]
fn queue_rules_without_an_engine_let_nothing_through() {
    in_namespace(|| {
        let _far = FarEnd::new(listen);
        let firewall = Firewall::probe().unwrap();
        let peers = [spec("v4", "10.0.0.2"), spec("v6", "2001:db8::2")];
        firewall.install(&ruleset(&peers)).unwrap();
        firewall.remove_guard().unwrap();
        for address in ["10.0.0.2:179", "[2001:db8::2]:179"] {
            connect(address).unwrap_err();
        }
        connect("10.0.0.3:179").unwrap();
        connect("[2001:db8::2]:180").unwrap();
    });
}

#[test]
fn low_ttl_and_floods_are_dropped_and_counted() {
    in_namespace(|| {
        let firewall = Firewall::probe().unwrap();
        let mut v4 = spec("v4", "10.0.0.2");
        v4.ttl_min = 2;
        let peers = [v4, spec("v6", "2001:db8::2"), spec("flood", "10.0.0.3")];
        firewall.install(&ruleset(&peers)).unwrap();
        let _far = FarEnd::new(|| {
            run("sysctl -qw net.ipv4.ip_default_ttl=1");
            let low = start_connect("10.0.0.2", "10.0.0.1:179");
            run("sysctl -qw net.ipv4.ip_default_ttl=64");
            // 200 unsigned SYNs reach the queue, which nobody reads; the firewall drops the rest.
            let flood: Vec<OwnedFd> = (0..600)
                .map(|_| start_connect("10.0.0.3", "10.0.0.1:179"))
                .collect();
            drop((low, flood));
        });
        let drops = firewall.drops().unwrap();
        println!("{drops:?}");
        for (name, least) in BTreeMap::from([("ttl", 1), ("unsigned", 300)]) {
            let found = drops.get(name).copied().unwrap_or_default();
            assert!(found >= least, "{name} in {drops:?}");
        }
        // Counts survive what replaces the rules.
        firewall.install(&ruleset(&peers)).unwrap();
        assert!(firewall.drops().unwrap()["unsigned"] >= drops["unsigned"]);
    });
}

#[test]
fn a_thousand_peers_are_installed_quickly() {
    in_namespace(|| {
        let peers: Vec<PeerSpec> = (0..500_u32)
            .flat_map(|number| {
                let v4 = Ipv4Addr::from(0x0a00_0000 + number * 3);
                [
                    spec(&format!("v4-{number}"), &v4.to_string()),
                    spec(
                        &format!("v6-{number}"),
                        &format!("2001:db8::{number:x}:{number:x}"),
                    ),
                ]
            })
            .collect();
        let firewall = Firewall::probe().unwrap();
        for round in ["fresh", "again"] {
            let start = Instant::now();
            firewall.install(&ruleset(&peers)).unwrap();
            let took = start.elapsed();
            println!("1000 peers, {round}: {took:?}");
            assert!(took < Duration::from_secs(10), "{took:?}");
        }
        run(&format!("nft flush ruleset; {}", in_tables("-F")));
        assert_eq!(firewall.restore().unwrap().len(), 3);
        let start = Instant::now();
        assert_eq!(firewall.restore().unwrap(), []);
        println!("comparison: {:?}", start.elapsed());
        let start = Instant::now();
        firewall.drops().unwrap();
        println!("counts: {:?}", start.elapsed());
        firewall.remove().unwrap();
        let rules = all_rules();
        assert!(!rules.contains("AO-") && !rules.contains("ao_sidecar"));
    });
}
