//! Firewall rules in network namespaces of their own. Must run as root.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ao_engine::policy::Prefix;
use datapath::firewall::{Firewall, Mechanism, Queues, Ruleset, Watcher};
use datapath::settings::PeerSpec;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use nix::unistd::{geteuid, gettid};

const QUEUES: Queues = Queues {
    first: 300,
    workers: 2,
};
const MARK: u32 = 0x0400_0000;

/// Runs a test in a network namespace of its own, which ends with it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    assert!(geteuid().is_root(), "this test must run as root");
    let outcome = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        // The built-in chains of a table appear with the first look at it.
        run(&in_tables("-L >/dev/null"));
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A shell command that does something to every x_tables table.
fn in_tables(arguments: &str) -> String {
    format!(
        "for t in raw mangle filter; do iptables-legacy -w -t $t {arguments}; \
         ip6tables-legacy -w -t $t {arguments}; done"
    )
}

/// Everything both firewalls hold, without counts and times.
fn all_rules() -> String {
    run("nft -s list ruleset; iptables-legacy-save; ip6tables-legacy-save")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

fn spec(name: &str, remote: &str) -> PeerSpec {
    let (address, length) = remote.split_once('/').unwrap_or((remote, ""));
    let address: IpAddr = address.parse().unwrap();
    PeerSpec {
        name: name.into(),
        remote: length.parse().map_or(Prefix::host(address), |length| {
            Prefix::new(address, length).unwrap()
        }),
        local: None,
        ports: 179..=179,
        interface: None,
        vrf: None,
        keys: Vec::new(),
        ttl_min: 0,
    }
}

/// Peers of every kind.
fn peers() -> Vec<PeerSpec> {
    let mut link_local = spec("link local", "fe80::1");
    link_local.interface = Some("eth0".into());
    let mut in_vrf = spec("vrf", "10.0.0.2");
    in_vrf.vrf = Some("red".into());
    let mut hops = spec("hops", "2001:db8::2");
    hops.ttl_min = 255;
    let mut ports = spec("ports", "10.2.0.0/16");
    ports.ports = 1790..=1799;
    ports.local = Some("10.0.0.1".parse().unwrap());
    ports.ttl_min = 254;
    vec![
        spec("plain", "10.0.0.2"),
        link_local,
        in_vrf,
        hops,
        ports,
        spec("net6", "2001:db8:1::/48"),
    ]
}

fn ruleset(peers: &[PeerSpec]) -> Ruleset {
    Ruleset::new(peers, QUEUES, MARK).unwrap()
}

fn wait_for(what: &str, within: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    TcpStream::connect_timeout(&address, Duration::from_millis(700))
}

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
            "ip6tables-legacy -w -t raw -F; ip6tables-legacy -w -t raw -X".to_owned(),
            format!("{}; {}", in_tables("-F"), in_tables("-X")),
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

/// A second namespace joined by a veth pair: 10.0.0.1 and 2001:db8::1 here, 2 and 3 there.
struct FarEnd {
    stop: mpsc::Sender<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FarEnd {
    /// Returns when `there` has run in it.
    fn new(there: impl FnOnce() + Send + 'static) -> Self {
        let (tell, told) = mpsc::channel();
        let (joined, ready) = mpsc::channel::<()>();
        let (finish, finished) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(gettid()).unwrap();
            ready.recv().unwrap();
            run("ip link set lo up; ip link set eth0 up
                 ip addr add 10.0.0.2/24 dev eth0; ip addr add 10.0.0.3/24 dev eth0
                 ip addr add 2001:db8::2/64 dev eth0 nodad
                 ip addr add 2001:db8::3/64 dev eth0 nodad");
            there();
            finish.send(()).unwrap();
            let _ = stopped.recv();
        });
        let tid = told.recv().unwrap();
        run(&format!(
            "ip link add eth0 type veth peer name eth0 netns {tid}; ip link set eth0 up
             ip addr add 10.0.0.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad"
        ));
        joined.send(()).unwrap();
        finished.recv().expect("the far end failed");
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts connections over both families, to port 179 and to an unprotected one.
fn listen() {
    for port in [179, 180] {
        let listener = TcpListener::bind(("::", port)).unwrap();
        thread::spawn(move || for _ in listener.incoming() {});
    }
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
fn fragments_low_ttl_and_floods_are_dropped_and_counted() {
    in_namespace(|| {
        let firewall = Firewall::probe().unwrap();
        let mut v4 = spec("v4", "10.0.0.2");
        v4.ttl_min = 2;
        let peers = [v4, spec("v6", "2001:db8::2"), spec("flood", "10.0.0.3")];
        firewall.install(&ruleset(&peers)).unwrap();
        let _far = FarEnd::new(|| {
            // 3,000 octets leave as three fragments; the answers do not matter.
            for target in ["-I 10.0.0.2 10.0.0.1", "-I 2001:db8::2 2001:db8::1"] {
                run(&format!("! ping -c1 -W1 -s3000 {target}"));
            }
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
        for (name, least) in BTreeMap::from([("fragment", 6), ("ttl", 1), ("unsigned", 300)]) {
            let found = drops.get(name).copied().unwrap_or_default();
            assert!(found >= least, "{name} in {drops:?}");
        }
        // Counts survive what replaces the rules.
        firewall.install(&ruleset(&peers)).unwrap();
        assert!(firewall.drops().unwrap()["unsigned"] >= drops["unsigned"]);
    });
}

/// A socket that has sent its SYN.
fn start_connect(from: &str, to: &str) -> OwnedFd {
    let socket = socket::socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK,
        None,
    )
    .unwrap();
    let address = |text: &str| text.parse::<SockaddrIn>().unwrap();
    socket::bind(socket.as_raw_fd(), &address(&format!("{from}:0"))).unwrap();
    let started = socket::connect(socket.as_raw_fd(), &address(to));
    assert_eq!(started, Err(nix::errno::Errno::EINPROGRESS));
    socket
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
