//! Sessions and counters as they are shown. The JSON of each is stable: fields are added, never renamed.

use std::collections::BTreeMap;
use std::io::{self, Write};

use grpc_api::v1;
use serde::Serialize;

use super::output::{Answer, Paint};
use super::table::{Column, Table};
use super::time::microseconds;

#[derive(Serialize)]
pub(super) struct Queue {
    number: u32,
    packets: u64,
    overruns: u64,
    waiting: u32,
    dropped: u64,
}

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
    macs: u64,
    mac_time_us: u64,
}

#[derive(Serialize)]
struct PeerCounters {
    name: String,
    segments_good: u64,
    segments_sent: u64,
    drops: BTreeMap<String, u64>,
}

impl Answer for Sessions {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(&[
            Column::Text("PEER"),
            Column::Text("LOCAL"),
            Column::Text("REMOTE"),
            Column::Text("VRF"),
            Column::Text("DATAPATH"),
            Column::State("STATE"),
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
        table.write("no sessions", paint, out)
    }
}

impl Answer for Counters {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
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
            table.row([&place, &"waiting", &queue.waiting]);
            table.row([&place, &"dropped", &queue.dropped]);
        }
        table.row([&"userspace", &"macs", &self.macs]);
        table.row([&"userspace", &"mac-time-us", &self.mac_time_us]);
        table.write("no counters", paint, out)
    }
}

fn or_dash(number: Option<u32>) -> String {
    number.map_or("-".to_owned(), |number| number.to_string())
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
            macs: answer.macs,
            mac_time_us: answer.mac_time.as_ref().map_or(0, microseconds),
        }
    }
}

impl From<v1::Queue> for Queue {
    fn from(
        v1::Queue {
            number,
            packets,
            overruns,
            waiting,
            dropped,
        }: v1::Queue,
    ) -> Self {
        Self {
            number,
            packets,
            overruns,
            waiting,
            dropped,
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

pub(super) fn all<A, B: From<A>>(items: Vec<A>) -> Vec<B> {
    items.into_iter().map(B::from).collect()
}
