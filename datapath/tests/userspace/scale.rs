//! A thousand peers.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ao_engine::crypto::Algorithm;
use ao_engine::policy::Prefix;
use datapath::settings::{PeerSpec, Settings, Strip};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::backend::{ends, listen};
use crate::support::PORT;

const PEERS: u16 = 1000;

fn address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 1, high, low).into()
}

#[test]
fn a_report_of_a_thousand_peers_and_two_thousand_sessions_is_quick() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (mut one, mut two) = ends(Algorithm::Aes128Cmac96, Strip::Never, false);
    one.namespace.shell("ip route add 10.1.0.0/16 dev eth0");
    two.namespace.shell(
        "ip route add local 10.1.0.0/16 dev lo; sysctl -qw net.core.somaxconn=4096
         sysctl -qw net.ipv4.tcp_max_syn_backlog=4096",
    );
    let settings = one.settings();
    let peer = |number| PeerSpec {
        name: format!("peer-{number}").into(),
        remote: Prefix::host(address(number)),
        ..settings.peers[0].clone()
    };
    let peers: Vec<PeerSpec> = (0..PEERS).map(peer).collect();
    one.start_with(Settings {
        peers: peers.clone(),
        max_connections: 4096,
        ..settings
    });
    two.start_with(Settings {
        max_connections: 4096,
        ..two.settings()
    });
    let listener = listen(&two);
    let mut sessions = Vec::new();
    for number in (0..PEERS).chain(0..PEERS) {
        let far = SocketAddr::new(address(number), PORT);
        let connect = move || TcpStream::connect_timeout(&far, Duration::from_secs(10)).unwrap();
        sessions.push((one.namespace.run(connect), listener.accept().unwrap()));
    }
    let mut costs = Vec::new();
    for _ in 0..9 {
        let (cost, report) = one.ask(|datapath| {
            let begun = Instant::now();
            let report = datapath.report();
            (begun.elapsed(), report)
        });
        costs.push(cost);
        assert_eq!(report.sessions.len(), usize::from(PEERS) * 2);
        assert!(report.peers.iter().all(|peer| peer.sessions == 2));
    }
    let first = costs[0];
    costs.sort();
    let median = costs[costs.len() / 2];
    println!("a report: {median:?}; the first: {first:?}");
    assert!(median < Duration::from_millis(100), "{costs:?}");

    let begun = Instant::now();
    let mut others = peers;
    others.reverse();
    others[0].ttl_min = 1;
    let done = one
        .ask(move |datapath| datapath.reconfigure(&others, &HashSet::new(), false))
        .unwrap();
    assert_eq!((done.changed, done.closed), (1, 0));
    println!("one peer of {PEERS} changed: {:?}", begun.elapsed());
    drop(sessions);
    one.stop();
    two.stop();
}
