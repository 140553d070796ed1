//! From the datapath's report to the messages of the API.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use datapath::report::{KernelReport, KeyUse, PeerReport, QueueReport, SessionState};

use crate::operator::administration::Role;
use crate::operator::convert::administration::origin;
use crate::operator::convert::timestamp;
use crate::service::{Alarm, PeerFacts, Snapshot};
use crate::v1;

/// As a caller with `role` sees it.
pub(crate) fn status(snapshot: &Snapshot, role: Role) -> v1::GetStatusResponse {
    let report = &snapshot.report;
    v1::GetStatusResponse {
        version: snapshot.version.to_owned(),
        uptime_seconds: snapshot.uptime.as_secs(),
        datapath: snapshot.datapath.to_owned(),
        queue_rules: report.queue_rules.to_owned(),
        guard: report.guard.to_owned(),
        strips: report.strips,
        rules_restored: report.rules_restored,
        queues: queues(&report.queues),
        peers: peers(snapshot).peers,
        kernel: report.kernel.as_ref().map(kernel),
        alarms: snapshot.alarms.iter().map(alarm).collect(),
        config_file: snapshot.config_file.clone(),
        config_loaded_at: Some(timestamp(snapshot.config_loaded_at)),
        api_made: snapshot.api_made,
        role: role.as_str().to_owned(),
    }
}

fn alarm(alarm: &Alarm) -> v1::Alarm {
    v1::Alarm {
        peer: alarm.peer.as_deref().unwrap_or_default().to_owned(),
        text: alarm.text.clone(),
    }
}

pub(crate) fn peers(snapshot: &Snapshot) -> v1::ListPeersResponse {
    let facts = snapshot.peers.iter();
    let facts: HashMap<&str, &PeerFacts> = facts.map(|facts| (&*facts.name, facts)).collect();
    let reports = snapshot.report.peers.iter();
    let peers = reports.map(|report| peer(report, facts.get(&*report.name).copied()));
    v1::ListPeersResponse {
        peers: peers.collect(),
    }
}

pub(crate) fn sessions(snapshot: &Snapshot) -> v1::ListSessionsResponse {
    let sessions = snapshot.report.sessions.iter().map(|session| v1::Session {
        peer: session.peer.to_string(),
        local: endpoint(session.local),
        remote: endpoint(session.remote),
        vrf: session.vrf.clone().unwrap_or_default(),
        state: session_state(session.state).into(),
        current_key: session.current_key.into(),
        rnext_key: session.rnext_key.into(),
        segments_good: session.segments_good,
        segments_bad: session.segments_bad,
        segments_unsigned: session.segments_unsigned,
        segments_sent: session.segments_sent,
        snd_sne: session.snd_sne,
        rcv_sne: session.rcv_sne,
        datapath: session.backend.as_str().to_owned(),
        keys: session.keys.iter().map(key_use).collect(),
        key_not_found: session.key_not_found,
        dropped_icmp: session.dropped_icmp,
    });
    v1::ListSessionsResponse {
        sessions: sessions.collect(),
    }
}

pub(crate) fn counters(snapshot: &Snapshot) -> v1::GetCountersResponse {
    let report = &snapshot.report;
    let peers = report.peers.iter().map(|peer| v1::PeerCounters {
        name: peer.name.to_string(),
        segments_good: peer.segments_good,
        segments_sent: peer.segments_sent,
        drops: named(&peer.drops),
    });
    v1::GetCountersResponse {
        peers: peers.collect(),
        drops: named(&report.drops),
        firewall_drops: named(&report.firewall_drops),
        queues: queues(&report.queues),
        rules_restored: report.rules_restored,
        macs: report.macs,
        mac_time: report.mac_time.try_into().ok(),
    }
}

fn peer(report: &PeerReport, facts: Option<&PeerFacts>) -> v1::Peer {
    let last_refused = report.last_refused;
    let refused_at = last_refused.and_then(|last| SystemTime::now().checked_sub(last.ago));
    let (first_port, last_port) = facts.map_or((0, 0), |facts| facts.ports);
    v1::Peer {
        name: report.name.to_string(),
        address: report.address.clone(),
        sessions: report.sessions,
        state: peer_state(report.keys, report.sessions).into(),
        segments_good: report.segments_good,
        segments_sent: report.segments_sent,
        segments_dropped: report.drops.values().sum(),
        key_chain: facts
            .map(|facts| facts.key_chain.clone())
            .unwrap_or_default(),
        keys: report.keys,
        first_port: first_port.into(),
        last_port: last_port.into(),
        datapath: report.backend.as_str().to_owned(),
        datapath_reason: report.backend_reason.clone(),
        origin: facts
            .map_or(v1::Origin::Unspecified, |facts| origin(facts.origin))
            .into(),
        last_refused: last_refused.map_or_else(String::new, |last| last.reason.to_owned()),
        last_refused_at: refused_at.map(timestamp),
        last_refused_key_id: last_refused.and_then(|last| last.key_id).map(u32::from),
    }
}

fn kernel(report: &KernelReport) -> v1::Kernel {
    let daemons = report.daemons.iter().map(|daemon| v1::Daemon {
        name: daemon.name.clone(),
        pid: daemon.pid,
    });
    v1::Kernel {
        tcp_ao: report.tcp_ao,
        daemons: daemons.collect(),
        listeners: report.listeners,
        optmem_max: report.optmem_max,
        optmem_raised_from: report.optmem_raised_from,
        problems: report.problems.clone(),
    }
}

fn key_use(key: &KeyUse) -> v1::KeyUse {
    v1::KeyUse {
        send_id: key.send_id.into(),
        recv_id: key.recv_id.into(),
        good: key.good,
        bad: key.bad,
        sent: key.sent,
    }
}

fn peer_state(keys: u32, sessions: u32) -> v1::PeerState {
    match (keys, sessions) {
        (0, _) => v1::PeerState::Blocked,
        (_, 0) => v1::PeerState::Down,
        _ => v1::PeerState::Established,
    }
}

fn session_state(state: SessionState) -> v1::SessionState {
    match state {
        SessionState::Opening => v1::SessionState::Opening,
        SessionState::Established => v1::SessionState::Established,
        SessionState::Closing => v1::SessionState::Closing,
        SessionState::Restored => v1::SessionState::Restored,
    }
}

fn queues(queues: &[QueueReport]) -> Vec<v1::Queue> {
    let queue = |queue: &QueueReport| v1::Queue {
        number: queue.number.into(),
        packets: queue.packets,
        overruns: queue.overruns,
        waiting: queue.waiting,
        dropped: queue.dropped,
    };
    queues.iter().map(queue).collect()
}

fn named(counters: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    counters
        .iter()
        .map(|(&name, &count)| (name.to_owned(), count))
        .collect()
}

/// An address with its port, a link-local one with the name of its interface (RFC 4007 §11).
fn endpoint(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            format!(
                "[{}%{}]:{}",
                v6.ip(),
                interface_name(v6.scope_id()),
                v6.port()
            )
        }
        _ => match address.ip() {
            IpAddr::V4(ip) => format!("{ip}:{}", address.port()),
            IpAddr::V6(ip) => format!("[{ip}]:{}", address.port()),
        },
    }
}

/// The interface's name, or its index when it is gone.
fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        // nix answers an unknown index with an empty name instead of an error.
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| index.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;

    #[test]
    fn endpoints_are_written_as_operators_do() {
        assert_eq!(endpoint("10.0.0.1:179".parse().unwrap()), "10.0.0.1:179");
        assert_eq!(
            endpoint("[2001:db8::1]:179".parse().unwrap()),
            "[2001:db8::1]:179"
        );
        let scoped = |index| SocketAddrV6::new("fe80::1".parse().unwrap(), 179, 0, index).into();
        assert_eq!(endpoint(scoped(1)), "[fe80::1%lo]:179");
        assert_eq!(endpoint(scoped(u32::MAX)), "[fe80::1%4294967295]:179");
    }

    #[test]
    fn a_peer_without_keys_is_blocked_whatever_else() {
        assert_eq!(peer_state(0, 0), v1::PeerState::Blocked);
        assert_eq!(peer_state(0, 1), v1::PeerState::Blocked);
        assert_eq!(peer_state(1, 0), v1::PeerState::Down);
        assert_eq!(peer_state(2, 3), v1::PeerState::Established);
    }
}
