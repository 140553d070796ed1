//! The sidecar as a whole and its peers as they are shown. The JSON of each is stable: fields are
//! added, never renamed.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use grpc_api::v1;
use serde::Serialize;

use super::chains::origin;
use super::keys::filled;
use super::output::{Answer, Paint, Tone};
use super::table::{Column, Table, printable, shortened};
use super::time::{At, duration};
use super::view::{Queue, all};

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
    alarms: Vec<Alarm>,
    config_file: Option<String>,
    config_loaded_at: At,
    api_made: u32,
    role: Option<String>,
}

#[derive(Serialize)]
struct Alarm {
    peer: Option<String>,
    text: String,
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
    origin: &'static str,
    last_refused: Option<String>,
    last_refused_at: At,
    last_refused_key_id: Option<u32>,
}

#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Peers(Vec<Peer>);

impl Answer for StatusView {
    /// What is wrong comes first, then the sidecar, then its peers.
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        self.write_troubles(paint, out)?;
        writeln!(out)?;
        self.write_facts(out)?;
        writeln!(out)?;
        write_peers(&self.peers, paint, out)?;
        write_advice(&self.peers, out)
    }
}

impl StatusView {
    fn write_troubles(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        let mut troubles = self.troubles();
        if troubles.is_empty() {
            let all = match self.peers.len() {
                0 => "no peers are configured".to_owned(),
                1 => "the peer is established".to_owned(),
                peers => format!("all {peers} peers are established"),
            };
            troubles.push((Tone::Good, "OK", all));
        }
        for (tone, word, text) in troubles {
            let word = paint.paint(tone, &format!("{word:<8}"));
            writeln!(out, "{word} {}", printable(&text))?;
        }
        Ok(())
    }

    /// What an operator should look at, the worst first.
    fn troubles(&self) -> Vec<(Tone, &'static str, String)> {
        let mut troubles = Vec::new();
        for (text, peers) in self.alarms_by_text() {
            let text = match listed(&peers) {
                Some(peers) => format!("{peers}: {text}"),
                None => text.to_owned(),
            };
            troubles.push((Tone::Bad, "ALARM", text));
        }
        for problem in self.kernel.iter().flat_map(|kernel| &kernel.problems) {
            troubles.push((Tone::Bad, "PROBLEM", problem.clone()));
        }
        let in_state = |state: &str| {
            let names = self.peers.iter().filter(|peer| peer.state == state);
            names.map(|peer| peer.name.as_str()).collect::<Vec<_>>()
        };
        // Those that an alarm tells of are told.
        let alarmed: HashSet<&str> = self.alarms.iter().filter_map(Alarm::blocked).collect();
        let mut blocked = in_state("blocked");
        blocked.retain(|peer| !alarmed.contains(peer));
        if let Some(names) = listed(&blocked) {
            let text = format!("{names}: no key, so nothing is let through");
            troubles.push((Tone::Bad, "BLOCKED", text));
        }
        if let Some(names) = listed(&in_state("down")) {
            let text = format!("{names}: no session is established");
            troubles.push((Tone::Doubtful, "DOWN", text));
        }
        troubles
    }

    /// The alarms with the peers that each is about, in the order of the first of them.
    fn alarms_by_text(&self) -> Vec<(&str, Vec<&str>)> {
        let mut places = HashMap::new();
        let mut alarms: Vec<(&str, Vec<&str>)> = Vec::new();
        for Alarm { peer, text } in &self.alarms {
            // What concerns all is never put together with what concerns a peer.
            let place = *places
                .entry((peer.is_some(), text.as_str()))
                .or_insert_with(|| {
                    alarms.push((text, Vec::new()));
                    alarms.len() - 1
                });
            if let Some((_, peers)) = alarms.get_mut(place) {
                peers.extend(peer.as_deref());
            }
        }
        alarms
    }

    fn write_facts(&self, out: &mut dyn Write) -> io::Result<()> {
        let up = duration(self.uptime_seconds);
        writeln!(out, "ao-sidecar {}, up {up}", printable(&self.version))?;
        let strips = if self.strips { "yes" } else { "no" };
        let mut fact = |name: &str, value: &dyn ToString| {
            writeln!(out, "{name:<14}  {}", printable(&value.to_string()))
        };
        fact("datapath", &self.datapath)?;
        fact("queue rules", &self.queue_rules)?;
        fact("guard", &self.guard)?;
        fact("strips TCP-AO", &strips)?;
        fact("rules restored", &self.rules_restored)?;
        fact("queue overruns", &self.overruns)?;
        if let Some(file) = &self.config_file {
            let since = self.config_loaded_at;
            fact("configuration", &format!("{file}, in use since {since}"))?;
        }
        if self.api_made > 0 {
            fact("made by API", &self.api_made)?;
        }
        self.kernel
            .as_ref()
            .map_or(Ok(()), |kernel| kernel.write(out))
    }
}

impl Alarm {
    /// The peer that it says is blocked.
    fn blocked(&self) -> Option<&str> {
        let peer = self.peer.as_deref()?;
        self.text.starts_with("blocked").then_some(peer)
    }
}

/// Names in a row, as many as a line takes; nothing when there are none.
fn listed(names: &[&str]) -> Option<String> {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names
        .iter()
        .take(SHOWN)
        .map(|name| shortened(name))
        .collect();
    let shown = shown.join(", ");
    match names.len() {
        0 => None,
        1..=SHOWN => Some(shown),
        all => Some(format!("{shown} and {} more", all - SHOWN)),
    }
}

impl Answer for Peers {
    fn text(&self, paint: Paint, out: &mut dyn Write) -> io::Result<()> {
        write_peers(&self.0, paint, out)?;
        write_advice(&self.0, out)
    }
}

/// How to find out why peers have no session.
fn write_advice(peers: &[Peer], out: &mut dyn Write) -> io::Result<()> {
    let mut troubled = peers
        .iter()
        .filter(|peer| matches!(peer.state, "down" | "blocked"));
    let Some(first) = troubled.next() else {
        return Ok(());
    };
    let name = quoted(&shortened(&first.name));
    match troubled.count() {
        0 => writeln!(
            out,
            "\n`aoctl doctor {name}` tells why {name} has no session"
        ),
        more => writeln!(
            out,
            "\n`aoctl doctor {name}` tells why {name} has no session, `aoctl doctor` why it and \
             {more} more have none"
        ),
    }
}

/// A name as a shell takes it for one word.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_.:/@%+".contains(c);
    match !name.is_empty() && name.chars().all(plain) {
        true => name.to_owned(),
        false => format!("'{}'", printable(name).replace('\'', r"'\''")),
    }
}

impl Peer {
    /// Why and when a packet was refused last, with the KeyID it named.
    fn last_refusal(&self) -> String {
        let Some(reason) = &self.last_refused else {
            return "-".to_owned();
        };
        let at = self.last_refused_at;
        match self.last_refused_key_id {
            Some(id) => format!("{reason} (KeyID {id}) at {at}"),
            None => format!("{reason} at {at}"),
        }
    }
}

impl Kernel {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let daemons: Vec<String> = self
            .daemons
            .iter()
            .map(|daemon| format!("{} ({})", printable(&daemon.name), daemon.pid))
            .collect();
        let daemons = match daemons.is_empty() {
            true => "none".to_owned(),
            false => daemons.join(", "),
        };
        let has_tcp_ao = if self.tcp_ao { "yes" } else { "no" };
        writeln!(out, "kernel TCP-AO   {has_tcp_ao}")?;
        writeln!(out, "daemons         {daemons}")?;
        writeln!(out, "listeners       {}", self.listeners)?;
        write!(out, "option memory   {} octets", self.optmem_max)?;
        if let Some(before) = self.optmem_raised_from {
            write!(out, ", raised from {before}")?;
        }
        writeln!(out)
    }
}

fn write_peers(peers: &[Peer], paint: Paint, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(&[
        Column::Text("PEER"),
        Column::Text("ADDRESS"),
        Column::Text("PORTS"),
        Column::Text("DATAPATH"),
        Column::State("STATE"),
        Column::Number("SESSIONS"),
        Column::Text("KEY-CHAIN"),
        Column::Number("KEYS"),
        Column::Number("GOOD"),
        Column::Number("SENT"),
        Column::Number("DROPPED"),
        Column::Text("ORIGIN"),
        Column::Text("LAST-REFUSED"),
        Column::Text("DATAPATH-REASON"),
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
            &peer.origin,
            &peer.last_refusal(),
            &peer.datapath_reason,
        ]);
    }
    table.write("no peers", paint, out)
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
            alarms: all(answer.alarms),
            config_file: filled(answer.config_file),
            config_loaded_at: At(answer.config_loaded_at),
            api_made: answer.api_made,
            role: filled(answer.role),
        }
    }
}

impl From<v1::Alarm> for Alarm {
    fn from(v1::Alarm { peer, text }: v1::Alarm) -> Self {
        Self {
            peer: filled(peer),
            text,
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

impl From<v1::ListPeersResponse> for Peers {
    fn from(answer: v1::ListPeersResponse) -> Self {
        Self(all(answer.peers))
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
            origin: origin(peer.origin()),
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
            last_refused: filled(peer.last_refused),
            last_refused_at: At(peer.last_refused_at),
            last_refused_key_id: peer.last_refused_key_id,
        }
    }
}
