//! The answers as they are shown. The JSON of each is stable: fields are added, never renamed.

use std::collections::BTreeMap;
use std::io::{self, Write};

use grpc_api::v1;
use serde::Serialize;

use super::Answer;
use super::table::{Column, Table};
use super::time::duration;

#[derive(Serialize)]
pub(super) struct StatusView {
    version: String,
    uptime_seconds: u64,
    datapath: String,
    queue_rules: String,
    guard: String,
    strips: bool,
    rules_restored: u64,
    overruns: u64,
    queues: Vec<Queue>,
    peers: Vec<Peer>,
    kernel: Option<Kernel>,
}

#[derive(Serialize)]
struct Kernel {
    tcp_ao: bool,
    daemons: Vec<Daemon>,
    listeners: u32,
    optmem_max: u64,
    optmem_raised_from: Option<u64>,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Daemon {
    name: String,
    pid: u32,
}

#[derive(Serialize)]
struct Queue {
    number: u32,
    packets: u64,
    overruns: u64,
}

#[derive(Serialize)]
struct Peer {
    name: String,
    address: String,
    sessions: u32,
    state: &'static str,
    key_chain: String,
    keys: u32,
    ports: String,
    segments_good: u64,
    segments_sent: u64,
    segments_dropped: u64,
    datapath: String,
    datapath_reason: String,
}

#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Peers(Vec<Peer>);

#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Sessions(Vec<Session>);

#[derive(Serialize)]
struct Session {
    peer: String,
    local: String,
    remote: String,
    vrf: Option<String>,
    state: &'static str,
    current_key: u32,
    rnext_key: u32,
    segments_good: u64,
    segments_bad: u64,
    segments_unsigned: u64,
    segments_sent: u64,
    snd_sne: Option<u32>,
    rcv_sne: Option<u32>,
    datapath: String,
    keys: Vec<KeyUse>,
    key_not_found: u64,
    dropped_icmp: u64,
}

#[derive(Serialize)]
struct KeyUse {
    send_id: u32,
    recv_id: u32,
    good: u64,
    bad: u64,
    sent: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Counters {
    peers: Vec<PeerCounters>,
    drops: BTreeMap<String, u64>,
    firewall_drops: BTreeMap<String, u64>,
    queues: Vec<Queue>,
    rules_restored: u64,
}

#[derive(Serialize)]
struct PeerCounters {
    name: String,
    segments_good: u64,
    segments_sent: u64,
    drops: BTreeMap<String, u64>,
}

impl Answer for StatusView {
    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "ao-sidecar {}, up {}",
            self.version,
            duration(self.uptime_seconds)
        )?;
        writeln!(out, "datapath        {}", self.datapath)?;
        writeln!(out, "queue rules     {}", self.queue_rules)?;
        writeln!(out, "guard           {}", self.guard)?;
        writeln!(
            out,
            "strips TCP-AO   {}",
            if self.strips { "yes" } else { "no" }
        )?;
        writeln!(out, "rules restored  {}", self.rules_restored)?;
        writeln!(out, "queue overruns  {}", self.overruns)?;
        if let Some(kernel) = &self.kernel {
            write_kernel(kernel, out)?;
        }
        writeln!(out)?;
        write_peers(&self.peers, out)
    }
}

impl Answer for Peers {
    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        write_peers(&self.0, out)
    }
}

impl Answer for Sessions {
    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&[
            Column::Text("PEER"),
            Column::Text("LOCAL"),
            Column::Text("REMOTE"),
            Column::Text("VRF"),
            Column::Text("DATAPATH"),
            Column::Text("STATE"),
            Column::Number("CURRENT"),
            Column::Number("RNEXT"),
            Column::Number("GOOD"),
            Column::Number("BAD"),
            Column::Number("UNSIGNED"),
            Column::Number("SENT"),
            Column::Number("SND-SNE"),
            Column::Number("RCV-SNE"),
        ]);
        for session in &self.0 {
            table.row([
                &session.peer,
                &session.local,
                &session.remote,
                &session.vrf.as_deref().unwrap_or("-"),
                &session.datapath,
                &session.state,
                &session.current_key,
                &session.rnext_key,
                &session.segments_good,
                &session.segments_bad,
                &session.segments_unsigned,
                &session.segments_sent,
                &or_dash(session.snd_sne),
                &or_dash(session.rcv_sne),
            ]);
        }
        table.write("no sessions", out)
    }
}

impl Answer for Counters {
    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&[
            Column::Text("WHERE"),
            Column::Text("COUNTER"),
            Column::Number("VALUE"),
        ]);
        for peer in &self.peers {
            let place = format!("peer {}", peer.name);
            table.row([&place, &"segments-good", &peer.segments_good]);
            table.row([&place, &"segments-sent", &peer.segments_sent]);
            for (reason, count) in &peer.drops {
                table.row([&place, &format!("drop {reason}"), count]);
            }
        }
        for (reason, count) in &self.drops {
            table.row([&"no peer", &format!("drop {reason}"), count]);
        }
        for (rule, count) in &self.firewall_drops {
            table.row([&"firewall", &format!("drop {rule}"), count]);
        }
        table.row([&"firewall", &"rules-restored", &self.rules_restored]);
        for queue in &self.queues {
            let place = format!("queue {}", queue.number);
            table.row([&place, &"packets", &queue.packets]);
            table.row([&place, &"overruns", &queue.overruns]);
        }
        table.write("no counters", out)
    }
}

fn write_kernel(kernel: &Kernel, out: &mut dyn Write) -> io::Result<()> {
    let daemons: Vec<String> = kernel
        .daemons
        .iter()
        .map(|daemon| format!("{} ({})", daemon.name, daemon.pid))
        .collect();
    let daemons = match daemons.is_empty() {
        true => "none".to_owned(),
        false => daemons.join(", "),
    };
    let has_tcp_ao = if kernel.tcp_ao { "yes" } else { "no" };
    writeln!(out, "kernel TCP-AO   {has_tcp_ao}")?;
    writeln!(out, "daemons         {daemons}")?;
    writeln!(out, "listeners       {}", kernel.listeners)?;
    write!(out, "option memory   {} octets", kernel.optmem_max)?;
    if let Some(before) = kernel.optmem_raised_from {
        write!(out, ", raised from {before}")?;
    }
    writeln!(out)?;
    for problem in &kernel.problems {
        writeln!(out, "problem         {problem}")?;
    }
    Ok(())
}

fn or_dash(number: Option<u32>) -> String {
    number.map_or("-".to_owned(), |number| number.to_string())
}

fn write_peers(peers: &[Peer], out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(&[
        Column::Text("PEER"),
        Column::Text("ADDRESS"),
        Column::Text("PORTS"),
        Column::Text("DATAPATH"),
        Column::Text("STATE"),
        Column::Number("SESSIONS"),
        Column::Text("KEY-CHAIN"),
        Column::Number("KEYS"),
        Column::Number("GOOD"),
        Column::Number("SENT"),
        Column::Number("DROPPED"),
        Column::Text("REASON"),
    ]);
    for peer in peers {
        let key_chain = match peer.key_chain.as_str() {
            "" => "(rollover)",
            name => name,
        };
        table.row([
            &peer.name,
            &peer.address,
            &peer.ports,
            &peer.datapath,
            &peer.state,
            &peer.sessions,
            &key_chain,
            &peer.keys,
            &peer.segments_good,
            &peer.segments_sent,
            &peer.segments_dropped,
            &peer.datapath_reason,
        ]);
    }
    table.write("no peers", out)
}

impl From<v1::GetStatusResponse> for StatusView {
    fn from(answer: v1::GetStatusResponse) -> Self {
        Self {
            version: answer.version,
            uptime_seconds: answer.uptime_seconds,
            datapath: answer.datapath,
            queue_rules: answer.queue_rules,
            guard: answer.guard,
            strips: answer.strips,
            rules_restored: answer.rules_restored,
            overruns: answer.queues.iter().map(|queue| queue.overruns).sum(),
            queues: all(answer.queues),
            peers: all(answer.peers),
            kernel: answer.kernel.map(Kernel::from),
        }
    }
}

impl From<v1::Kernel> for Kernel {
    fn from(
        v1::Kernel {
            tcp_ao,
            daemons,
            listeners,
            optmem_max,
            optmem_raised_from,
            problems,
        }: v1::Kernel,
    ) -> Self {
        Self {
            tcp_ao,
            daemons: all(daemons),
            listeners,
            optmem_max,
            optmem_raised_from,
            problems,
        }
    }
}

impl From<v1::Daemon> for Daemon {
    fn from(v1::Daemon { name, pid }: v1::Daemon) -> Self {
        Self { name, pid }
    }
}

impl From<v1::KeyUse> for KeyUse {
    fn from(
        v1::KeyUse {
            send_id,
            recv_id,
            good,
            bad,
            sent,
        }: v1::KeyUse,
    ) -> Self {
        Self {
            send_id,
            recv_id,
            good,
            bad,
            sent,
        }
    }
}

impl From<v1::ListPeersResponse> for Peers {
    fn from(answer: v1::ListPeersResponse) -> Self {
        Self(all(answer.peers))
    }
}

impl From<v1::ListSessionsResponse> for Sessions {
    fn from(answer: v1::ListSessionsResponse) -> Self {
        let mut sessions: Vec<Session> = all(answer.sessions);
        sessions
            .sort_by(|a, b| (&a.peer, &a.local, &a.remote).cmp(&(&b.peer, &b.local, &b.remote)));
        Self(sessions)
    }
}

impl From<v1::GetCountersResponse> for Counters {
    fn from(answer: v1::GetCountersResponse) -> Self {
        Self {
            peers: all(answer.peers),
            drops: answer.drops,
            firewall_drops: answer.firewall_drops,
            queues: all(answer.queues),
            rules_restored: answer.rules_restored,
        }
    }
}

impl From<v1::Queue> for Queue {
    fn from(
        v1::Queue {
            number,
            packets,
            overruns,
            ..
        }: v1::Queue,
    ) -> Self {
        Self {
            number,
            packets,
            overruns,
        }
    }
}

impl From<v1::Peer> for Peer {
    fn from(peer: v1::Peer) -> Self {
        let ports = if peer.first_port == peer.last_port {
            peer.first_port.to_string()
        } else {
            format!("{}-{}", peer.first_port, peer.last_port)
        };
        Self {
            state: match peer.state() {
                v1::PeerState::Unspecified => "unknown",
                v1::PeerState::Down => "down",
                v1::PeerState::Established => "established",
                v1::PeerState::Blocked => "blocked",
            },
            name: peer.name,
            address: peer.address,
            sessions: peer.sessions,
            key_chain: peer.key_chain,
            keys: peer.keys,
            ports,
            segments_good: peer.segments_good,
            segments_sent: peer.segments_sent,
            segments_dropped: peer.segments_dropped,
            datapath: peer.datapath,
            datapath_reason: peer.datapath_reason,
        }
    }
}

impl From<v1::Session> for Session {
    fn from(session: v1::Session) -> Self {
        Self {
            state: match session.state() {
                v1::SessionState::Unspecified => "unknown",
                v1::SessionState::Opening => "opening",
                v1::SessionState::Established => "established",
                v1::SessionState::Closing => "closing",
                v1::SessionState::Restored => "restored",
            },
            peer: session.peer,
            local: session.local,
            remote: session.remote,
            vrf: Some(session.vrf).filter(|vrf| !vrf.is_empty()),
            current_key: session.current_key,
            rnext_key: session.rnext_key,
            segments_good: session.segments_good,
            segments_bad: session.segments_bad,
            segments_unsigned: session.segments_unsigned,
            segments_sent: session.segments_sent,
            snd_sne: session.snd_sne,
            rcv_sne: session.rcv_sne,
            datapath: session.datapath,
            keys: all(session.keys),
            key_not_found: session.key_not_found,
            dropped_icmp: session.dropped_icmp,
        }
    }
}

impl From<v1::PeerCounters> for PeerCounters {
    fn from(peer: v1::PeerCounters) -> Self {
        let v1::PeerCounters {
            name,
            segments_good,
            segments_sent,
            drops,
        } = peer;
        Self {
            name,
            segments_good,
            segments_sent,
            drops,
        }
    }
}

fn all<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}
