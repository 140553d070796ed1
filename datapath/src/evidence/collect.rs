//! From packets to evidence: whose they are, and what is wrong with them. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ao_engine::examine::{self, Examined, Keys, Sender};
use ao_engine::policy::{ConnectionId, Mkt, Peer};
use ao_engine::wire::{IcmpError, Segment, parse_icmp_error, summarize_options};

use super::listen::Question;
use super::{Evidence, IcmpSeen, MAX_KINDS, PeerEvidence, Seen, Step, Stranger};
use crate::sockets::connection_between;

/// Segments of a peer that are examined, at most: each may cost some hundred MACs.
const MAX_EXAMINED: u32 = 64;
/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;

/// Gathers evidence.
pub(super) struct Collector<'a> {
    question: Question<'a>,
    peers: Vec<Gathered>,
    /// Place in `peers` of those asked about, by their place in the policy.
    asked: HashMap<usize, usize>,
    evidence: Evidence,
}

/// What there is of one peer.
struct Gathered {
    evidence: PeerEvidence,
    inactive: Vec<Arc<Mkt>>,
    examined: u32,
}

/// A segment with the end it came from.
#[derive(Clone, Copy)]
struct Sighted<'p> {
    packet: &'p [u8],
    segment: Segment,
    sender: Sender,
    device: u32,
}

impl<'a> Collector<'a> {
    pub(super) fn new(question: Question<'a>) -> Self {
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (place, peer) in question.policy.peers().iter().enumerate() {
            places.insert(&peer.name, place);
        }
        let mut asked = HashMap::new();
        let mut peers = Vec::new();
        for name in question.asked {
            let Some(&place) = places.get(&**name) else {
                continue;
            };
            if asked.contains_key(&place) {
                continue;
            }
            asked.insert(place, peers.len());
            let extra = question.extra.iter().filter(|(peer, _)| peer == name);
            peers.push(Gathered {
                evidence: PeerEvidence::nothing(Arc::clone(name)),
                inactive: extra.map(|(_, key)| Arc::clone(key)).collect(),
                examined: 0,
            });
        }
        Self {
            question,
            peers,
            asked,
            evidence: Evidence::default(),
        }
    }

    /// Takes in a packet that was seen on these devices.
    pub(super) fn take(&mut self, packet: &[u8], devices: &[u32]) {
        match Segment::parse(packet) {
            Ok(segment) => self.take_segment(packet, &segment, devices),
            Err(_) => {
                if let Ok(error) = parse_icmp_error(packet) {
                    self.take_icmp(&error, devices);
                }
            }
        }
    }

    /// Whether there is something to tell of each peer.
    pub(super) fn is_conclusive(&self) -> bool {
        self.peers.iter().all(|peer| is_conclusive(&peer.evidence))
    }

    pub(super) fn finish(mut self, listened: Duration, missed: u64) -> Evidence {
        self.evidence.peers = self.peers.into_iter().map(|peer| peer.evidence).collect();
        self.evidence.listened = listened;
        self.evidence.missed = missed;
        self.evidence
    }

    fn take_segment(&mut self, packet: &[u8], segment: &Segment, devices: &[u32]) {
        let here = |address: &IpAddr| self.question.addresses.contains(address);
        // Between two addresses of this host it is either end's.
        let mut ways = Vec::new();
        if here(&segment.dst) {
            ways.push(Sender::FarEnd);
        }
        if here(&segment.src) {
            ways.push(Sender::ThisEnd);
        }
        for &sender in &ways {
            for &device in devices {
                let sighted = Sighted {
                    packet,
                    segment: *segment,
                    sender,
                    device,
                };
                if let Some(place) = self.peer_of(&self.connection(&sighted)) {
                    self.note(place, &sighted);
                    return;
                }
            }
        }
        // The device next to the socket is the last to see what arrives.
        let device = devices.iter().rfind(|&&device| device != LOOPBACK);
        if let (Some(Sender::FarEnd), Some(&device)) = (ways.first(), device)
            && segment.flags.syn()
            && !segment.flags.ack()
        {
            self.note_stranger(packet, segment, device);
        }
    }

    fn connection(&self, sighted: &Sighted<'_>) -> ConnectionId {
        let segment = &sighted.segment;
        let src = SocketAddr::new(segment.src, segment.src_port);
        let dst = SocketAddr::new(segment.dst, segment.dst_port);
        let (local, remote) = match sighted.sender {
            Sender::FarEnd => (dst, src),
            Sender::ThisEnd => (src, dst),
        };
        connection_between(local, remote, sighted.device, &self.question.links)
    }

    fn peer_of(&self, connection: &ConnectionId) -> Option<usize> {
        self.question.policy.find(connection)
    }

    /// Takes note of a peer's segment, if it was asked about.
    fn note(&mut self, place: usize, sighted: &Sighted<'_>) {
        let interface = self.name_of(sighted.device);
        let Some(peer) = self.question.policy.peers().get(place) else {
            return;
        };
        let gathered = self.asked.get(&place);
        if let Some(gathered) = gathered.and_then(|&at| self.peers.get_mut(at)) {
            gathered.note(peer, sighted, interface);
        }
    }

    fn note_stranger(&mut self, packet: &[u8], segment: &Segment, device: u32) {
        let peers = self.question.policy.peers();
        let is_protected = |peer: &Arc<Peer>| peer.selector.ports.contains(&segment.dst_port);
        if !peers.iter().any(is_protected) {
            return;
        }
        let strangers = &mut self.evidence.strangers;
        strangers.count += 1;
        let to = SocketAddr::new(segment.dst, segment.dst_port);
        let same = |one: &&mut Stranger| one.from == segment.src && one.to == to;
        if let Some(known) = strangers.examples.iter_mut().find(same) {
            known.count += 1;
            return;
        }
        if strangers.examples.len() >= MAX_KINDS {
            return;
        }
        let options = summarize_options(packet, segment).unwrap_or_default();
        let verifies_as = options.ao.and_then(|_| {
            let mut asked = self.asked.keys().filter_map(|&place| peers.get(place));
            asked.find(|peer| examine::verifies(packet, Sender::FarEnd, &peer.keys))
        });
        let links = &self.question.links;
        let domain = links.domain_of(device);
        strangers.examples.push(Stranger {
            from: segment.src,
            to,
            interface: links
                .get(device)
                .map_or_else(String::new, |link| link.name.clone()),
            vrf: links.get(domain).map(|link| link.name.clone()),
            key_id: options.ao.map(|ao| ao.key_id),
            md5: options.md5,
            verifies_as: verifies_as.map(|peer| Arc::clone(&peer.name)),
            count: 1,
        });
    }

    /// Takes note of an error about what this host has sent to a peer.
    fn take_icmp(&mut self, error: &IcmpError, devices: &[u32]) {
        let quoted = &error.quoted;
        if !self.question.addresses.contains(&quoted.src) {
            return;
        }
        let local = SocketAddr::new(quoted.src, quoted.src_port);
        let remote = SocketAddr::new(quoted.dst, quoted.dst_port);
        let place = devices.iter().find_map(|&device| {
            let links = &self.question.links;
            self.peer_of(&connection_between(local, remote, device, links))
        });
        let own = self.question.addresses.contains(&error.outer_src);
        let gathered = place.and_then(|place| self.asked.get(&place));
        let Some(gathered) = gathered.and_then(|&at| self.peers.get_mut(at)) else {
            return;
        };
        match (own, error.version, error.kind, error.code) {
            (true, 4, 3, 1) | (true, 6, 1, 3) => gathered.evidence.unresolved += 1,
            _ => gathered.note_icmp(error),
        }
    }

    fn name_of(&self, device: u32) -> String {
        let link = self.question.links.get(device);
        link.map_or_else(String::new, |link| link.name.clone())
    }
}

impl Gathered {
    fn note(&mut self, peer: &Peer, sighted: &Sighted<'_>, interface: String) {
        let segment = &sighted.segment;
        let of_far_end = sighted.sender == Sender::FarEnd;
        if segment.flags.rst() {
            match of_far_end {
                true => self.evidence.resets_received += 1,
                false => self.evidence.resets_sent += 1,
            }
            return;
        }
        if !segment.flags.syn() {
            return;
        }
        if self.examined >= MAX_EXAMINED {
            self.evidence.unexamined += u64::from(of_far_end);
            return;
        }
        self.examined += 1;
        let keys = Keys {
            active: &peer.keys,
            inactive: &self.inactive,
        };
        let (remote, local) = match of_far_end {
            true => (segment.src, segment.dst),
            false => (segment.dst, segment.src),
        };
        let (step, port) = match segment.flags.ack() {
            true => (Step::SynAck, segment.src_port),
            false => (Step::Syn, segment.dst_port),
        };
        let seen = Seen {
            examined: examine::examine(sighted.packet, sighted.sender, keys),
            step,
            remote,
            local,
            port,
            ttl: segment.ttl,
            interface,
            count: 1,
        };
        let kinds = match of_far_end {
            true => &mut self.evidence.received,
            false => &mut self.evidence.sent,
        };
        if !add(kinds, seen) {
            self.evidence.unexamined += u64::from(of_far_end);
        }
    }

    fn note_icmp(&mut self, error: &IcmpError) {
        let kinds = &mut self.evidence.icmp;
        let same = |one: &&mut IcmpSeen| {
            (one.from, one.kind, one.code) == (error.outer_src, error.kind, error.code)
        };
        if let Some(known) = kinds.iter_mut().find(same) {
            known.count += 1;
        } else if kinds.len() < MAX_KINDS {
            kinds.push(IcmpSeen {
                from: error.outer_src,
                kind: error.kind,
                code: error.code,
                meaning: meaning(error.version, error.kind, error.code),
                count: 1,
            });
        }
    }
}

/// Counts a segment with those of its kind; whether there was room for it.
fn add(kinds: &mut Vec<Seen>, seen: Seen) -> bool {
    let kind = |one: &Seen| (one.examined, one.step, one.remote, one.local, one.port);
    if let Some(known) = kinds.iter_mut().find(|known| kind(known) == kind(&seen)) {
        known.count += 1;
        known.ttl = known.ttl.min(seen.ttl);
        return true;
    }
    let room = kinds.len() < MAX_KINDS;
    if room {
        kinds.push(seen);
    }
    room
}

/// Whether what was seen tells why there is no session. A SYN that verifies does not, until it
/// comes again: then the far end was not satisfied with the answer.
fn is_conclusive(peer: &PeerEvidence) -> bool {
    let verified = |seen: &&Seen| matches!(seen.examined, Examined::Verified { .. });
    let good: u64 = peer
        .received
        .iter()
        .filter(verified)
        .map(|seen| seen.count)
        .sum();
    let answered = peer
        .received
        .iter()
        .filter(verified)
        .any(|seen| seen.step == Step::SynAck);
    !peer.received.iter().all(|seen| verified(&seen))
        || answered
        || good >= 2
        || peer.resets_received > 0
        || peer.resets_sent > 0
        || !peer.icmp.is_empty()
}

/// What an ICMP error says (RFC 792, RFC 1812 §5.2.7.1, RFC 4443).
fn meaning(version: u8, kind: u8, code: u8) -> &'static str {
    match (version, kind, code) {
        (4, 3, 0) | (6, 1, 0) => "no route to the network",
        (4, 3, 1) => "host unreachable",
        (4, 3, 2) => "protocol unreachable",
        (4, 3, 3) | (6, 1, 4) => "port unreachable",
        (4, 3, 4) | (6, 2, _) => "packet too big",
        (4, 3, 9 | 10 | 13) | (6, 1, 1) => "administratively prohibited",
        (6, 1, 3) => "address unreachable",
        (6, 1, 5) => "source address refused by policy",
        (6, 1, 6) => "route refused",
        (4, 3, _) | (6, 1, _) => "destination unreachable",
        (4, 11, _) | (6, 3, _) => "time exceeded",
        (4, 12, _) | (6, 4, _) => "parameter problem",
        _ => "another error",
    }
}

#[cfg(test)]
mod tests;
