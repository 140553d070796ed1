//! A sidecar with three peers.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use datapath::report::{PeerReport, QueueReport, Report, Session, SessionState};
use datapath::settings::Backend;
use grpc_api::operator::administration::Origin;
use grpc_api::{PeerFacts, Snapshot};

pub(crate) fn facts(name: &str, ports: (u16, u16)) -> PeerFacts {
    PeerFacts {
        name: name.into(),
        key_chain: "transit".into(),
        ports,
        origin: Origin::File(1),
    }
}

pub(crate) fn peer(
    (name, address): (&str, &str),
    keys: u32,
    sessions: u32,
    drops: &[(&'static str, u64)],
) -> PeerReport {
    PeerReport {
        name: name.into(),
        address: address.into(),
        backend: Backend::Userspace,
        backend_reason: "configured".into(),
        keys,
        sessions,
        segments_good: u64::from(sessions) * 1000,
        segments_sent: u64::from(sessions) * 900,
        drops: drops.iter().copied().collect(),
        last_refused: None,
    }
}

pub(crate) fn session(
    peer: &str,
    local: SocketAddr,
    remote: SocketAddr,
    state: SessionState,
) -> Session {
    Session {
        peer: peer.into(),
        local,
        remote,
        vrf: None,
        backend: Backend::Userspace,
        state,
        current_key: 1,
        rnext_key: 2,
        segments_good: 1000,
        segments_bad: 3,
        segments_unsigned: 4,
        segments_sent: 900,
        key_not_found: 0,
        dropped_icmp: 0,
        keys: Vec::new(),
        snd_sne: Some(0),
        rcv_sne: Some(1),
    }
}

pub(crate) fn snapshot() -> Snapshot {
    let link_local = |host: &str, port| SocketAddrV6::new(host.parse().unwrap(), port, 0, 1).into();
    let in_vrf = session(
        "as64502",
        "10.0.0.1:40123".parse().unwrap(),
        "10.0.0.2:179".parse().unwrap(),
        SessionState::Restored,
    );
    Snapshot {
        version: "1.2.3",
        uptime: Duration::from_secs(93_784),
        datapath: "userspace",
        peers: Arc::from([
            facts("as64502", (179, 179)),
            facts("ix", (179, 180)),
            facts("new", (179, 179)),
        ]),
        report: Report {
            queue_rules: "iptables",
            guard: "nftables",
            strips: true,
            rules_restored: 2,
            rules_trouble: None,
            partial: false,
            queues: vec![
                QueueReport {
                    number: 7900,
                    packets: 1900,
                    overruns: 5,
                    ..QueueReport::default()
                },
                QueueReport {
                    number: 7901,
                    packets: 0,
                    overruns: 1,
                    ..QueueReport::default()
                },
            ],
            peers: vec![
                peer(
                    ("as64502", "10.0.0.2"),
                    1,
                    1,
                    &[("bad-mac", 3), ("unsigned", 4)],
                ),
                peer(("ix", "2001:db8::/64"), 2, 0, &[]),
                peer(("new", "fe80::1%eth0"), 0, 0, &[]),
            ],
            sessions: vec![
                session(
                    "ix",
                    link_local("fe80::2", 179),
                    link_local("fe80::1", 40001),
                    SessionState::Opening,
                ),
                session(
                    "ix",
                    "[2001:db8::1]:179".parse().unwrap(),
                    "[2001:db8::2]:5000".parse().unwrap(),
                    SessionState::Closing,
                ),
                session(
                    "as64502",
                    "10.0.0.1:179".parse().unwrap(),
                    "10.0.0.2:40002".parse().unwrap(),
                    SessionState::Established,
                ),
                Session {
                    vrf: Some("blue".into()),
                    ..in_vrf
                },
            ],
            drops: BTreeMap::from([("no-peer", 7)]),
            firewall_drops: BTreeMap::from([("guard", 1), ("unsigned", 100_000)]),
            macs: 0,
            mac_time: Duration::ZERO,
            kernel: None,
        },
        alarms: Vec::new(),
        config_file: "/etc/ao-sidecar/config.toml".into(),
        config_loaded_at: UNIX_EPOCH + Duration::from_secs(1_798_156_800),
        api_made: 0,
    }
}
