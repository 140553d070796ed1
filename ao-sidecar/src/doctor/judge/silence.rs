//! Why there is no session although nothing is wrong with what arrives, or nothing does.

use std::net::IpAddr;

use datapath::evidence::{Examined, IcmpSeen, PeerEvidence, Step, Stranger};
use datapath::settings::Backend;
use grpc_api::operator::administration::FindingSeverity;

use super::{Draft, host, segments};
use crate::doctor::code::Code;
use crate::doctor::facts::{Facts, PeerFacts};
use crate::doctor::text::{count, mirrored, set_peer, span};

/// Why there is no session.
pub(super) fn cause(facts: &Facts, peer: &PeerFacts) -> Draft {
    let found = match &peer.evidence {
        None => idle(facts, peer),
        Some(evidence) => match segments::verified(&evidence.received).next() {
            Some(_) => after_verified(facts, peer, evidence),
            None => silent(facts, peer, evidence),
        },
    };
    found.unwrap_or_else(|| no_session(facts, peer)).of(peer)
}

/// SYNs that are nobody's, as far as no peer was blamed for them.
pub(super) fn strangers(facts: &Facts) -> Option<Draft> {
    let blamed = |stranger: &Stranger| {
        facts.peers.iter().any(|peer| {
            !peer.is_up() && stranger_of(facts, peer).is_some_and(|found| found == stranger)
        })
    };
    let others: Vec<&Stranger> = facts
        .strangers
        .examples
        .iter()
        .filter(|stranger| !blamed(stranger))
        .collect();
    let first = others.first()?;
    let total: u64 = others.iter().map(|stranger| stranger.count).sum();
    let draft = Draft::new(
        Code::Stranger,
        format!(
            "{} for protected ports came from addresses that no peer has, such as {}",
            count(total, "SYN"),
            first.from
        ),
        "They are not the sidecar's: the daemon answers them as it is configured. One of them may be \
         a peer that comes from another address than it should.",
        "nothing, unless you know the address",
    );
    Some(draft.at(FindingSeverity::Note))
}

/// Nobody listens for the peer, and nobody connects to it.
pub(super) fn idle(facts: &Facts, peer: &PeerFacts) -> Option<Draft> {
    let host = peer.host.as_ref()?;
    let sent = peer.evidence.as_ref().map_or(0, PeerEvidence::sent_count);
    let somebody = !host.listeners.is_empty() || peer.tried || sent > 0;
    (!somebody).then(|| nobody_listens(facts, peer).of(peer))
}

fn nobody_listens(facts: &Facts, peer: &PeerFacts) -> Draft {
    let ports = ports(peer);
    let place = match (&peer.local, &peer.vrf) {
        (Some(local), _) => format!(" at {local}"),
        (None, Some(vrf)) => format!(" in VRF {vrf}"),
        (None, None) => String::new(),
    };
    let arrived = peer
        .evidence
        .as_ref()
        .map_or(0, PeerEvidence::received_count);
    let asked = match arrived {
        0 => String::new(),
        arrived => format!(", and {} of the peer arrived", count(arrived, "SYN")),
    };
    Draft::new(
        Code::NobodyListens,
        format!("no program listens on port {ports}{place} or connects to the peer{asked}"),
        "The sidecar protects the sessions of a daemon; it opens none itself.",
        format!(
            "start the BGP daemon, and see that it has a neighbor {} that is not shut down; `ss -ltnp` \
             shows who listens. If it uses another port: {}",
            peer.remote.address(),
            set_peer(facts, peer, "port", "PORT"),
        ),
    )
}

/// The far end's segments verify, and still there is no session.
fn after_verified(facts: &Facts, peer: &PeerFacts, evidence: &PeerEvidence) -> Option<Draft> {
    segments::ttl_low(facts, peer)
        .or_else(|| idle(facts, peer))
        .or_else(|| unknown_rnext(peer, evidence))
        .or_else(|| daemon_closes(evidence).filter(|_| !peer.tried))
        .or_else(|| not_accepted(peer, evidence))
        .or_else(|| local_drop(peer, evidence))
}

/// The kernel answers a SYN with the key that its RNextKeyID names, or not at all.
fn unknown_rnext(peer: &PeerFacts, evidence: &PeerEvidence) -> Option<Draft> {
    let (seen, rnext) =
        segments::verified(&evidence.received).find_map(|seen| match seen.examined {
            Examined::Verified {
                rnext_key_id,
                rnext_known: false,
                ..
            } => Some((seen, rnext_key_id)),
            _ => None,
        })?;
    if peer.report.backend != Backend::Kernel || segments::sent(evidence, Step::SynAck) > 0 {
        return None;
    }
    Some(Draft::new(
        Code::UnknownRnextKeyId,
        format!(
            "{}, with a MAC that verifies and RNextKeyID {rnext}, which no key of this end has as its \
             SendID",
            segments::arrived(seen)
        ),
        "The far end asks for a key that this end does not have, and Linux answers such a SYN with \
         nothing.",
        format!(
            "at the far end, let the key that new sessions begin with have a RecvID that is a SendID \
             here; or add a key with send_id = {rnext} here, before the far end prefers it"
        ),
    ))
}

/// A handshake that succeeded, at least as far as this end is concerned.
fn daemon_closes(evidence: &PeerEvidence) -> Option<Draft> {
    let answered = segments::verified(&evidence.received).find(|seen| seen.step == Step::SynAck)?;
    Some(Draft::new(
        Code::DaemonCloses,
        format!(
            "{}, with a MAC that verifies: the connection comes up, and is closed again",
            segments::arrived(answered)
        ),
        "TCP-AO works in both directions: what ends the session is above TCP.",
        "read the BGP daemons' logs at both ends (`birdc show protocols all`, `vtysh -c 'show bgp \
         neighbors'`): often a wrong AS number, router ID or address family, or a neighbor that is \
         not configured",
    ))
}

/// We answer, and the far end repeats its SYN.
fn not_accepted(peer: &PeerFacts, evidence: &PeerEvidence) -> Option<Draft> {
    let answers = segments::sent(evidence, Step::SynAck);
    let syn = segments::verified(&evidence.received).find(|seen| seen.step == Step::Syn)?;
    (answers > 0).then(|| {
        let expected = peer.keys.first().map_or_else(String::new, |key| {
            format!(": the key of this end has to be there as {}", mirrored(key))
        });
        Draft::new(
            Code::NotAccepted,
            format!(
                "{}, with a MAC that verifies; {} left for it, and no session came of that",
                segments::arrived(syn),
                count(answers, "signed SYN-ACK")
            ),
            "The far end's segments are right and it does not take ours: its key may not be accepted \
             there (accept lifetime, another RecvID), it may have TTL security, or our answers are \
             lost on the way.",
            format!(
                "at the far end, look at its counters of TCP-AO (Linux: `nstat -az | grep TCPAO`) \
                 and its key's accept lifetime{expected}"
            ),
        )
    })
}

/// What verifies does not reach the daemon.
fn local_drop(peer: &PeerFacts, evidence: &PeerEvidence) -> Option<Draft> {
    let arrived = segments::verified(&evidence.received).next()?;
    let then = match arrived.step {
        Step::Syn => "nothing was answered",
        Step::SynAck => "the daemon's attempt goes on as if nothing had come",
    };
    let (reason, remedy) = match host::recent(peer) {
        Some(refused) => (
            format!(
                "; the sidecar refused its last packet {} ago: {}",
                span(refused.ago),
                refused.reason
            ),
            "docs/OPERATIONS.md has a line for each reason of a refusal",
        ),
        None => (
            String::new(),
            "look for rules of your own that drop it (`nft list ruleset`, `iptables-save -c`), for \
             reverse-path filtering (`nstat -az TcpExtIPReversePathFilter`), and for a listener with \
             a full backlog (`ss -ltn`)",
        ),
    };
    Some(Draft::new(
        Code::LocalDrop,
        format!(
            "{}, with a MAC that verifies, and {then}{reason}",
            segments::arrived(arrived)
        ),
        "They arrive at this host's device, and are lost before the daemon answers.",
        remedy,
    ))
}

/// Nothing arrives that TCP-AO could be judged by.
fn silent(facts: &Facts, peer: &PeerFacts, evidence: &PeerEvidence) -> Option<Draft> {
    if evidence.unexamined > 0 {
        return None;
    }
    let sent = evidence.sent_count();
    stranger(facts, peer)
        .or_else(|| refused(peer, evidence).filter(|_| sent > 0))
        .or_else(|| unresolved(peer, evidence))
        .or_else(|| idle(facts, peer))
        .or_else(|| {
            Some(match (sent, peer.tried) {
                _ if peer.is_dynamic() => return None,
                (0, false) => no_attempts(facts, peer),
                (0, true) => not_leaving(facts, peer),
                (_, _) => no_segments(facts, peer, evidence),
            })
        })
}

fn stranger(facts: &Facts, peer: &PeerFacts) -> Option<Draft> {
    let found = stranger_of(facts, peer)?;
    let Stranger {
        from,
        to,
        interface,
        vrf,
        count: syns,
        ..
    } = found;
    let proof = match &found.verifies_as {
        Some(_) => ", with a MAC that verifies with the peer's key",
        None => "",
    };
    let seen = format!(
        "nothing arrives from {}; {} came from {from} to {to} by {interface}{proof}",
        peer.address(),
        count(*syns, "SYN"),
    );
    let here = if !peer.remote.contains(*from) {
        set_peer(facts, peer, "address", &from.to_string())
    } else if peer.local.is_some_and(|local| local != to.ip()) {
        set_peer(facts, peer, "local_address", &to.ip().to_string())
    } else if peer.vrf != *vrf {
        match vrf {
            Some(vrf) => set_peer(facts, peer, "vrf", vrf),
            None => format!(
                "no `vrf` for the peer in {}, then `aoctl config reload`",
                facts.config_file.display()
            ),
        }
    } else {
        set_peer(facts, peer, "interface", interface)
    };
    Some(Draft::new(
        Code::Stranger,
        seen,
        "A peer is known by its address, by the address and VRF it calls, and, if link-local, by the \
         interface. Segments of nobody else get its keys.",
        format!(
            "let the far end call from {} (Junos: `local-address`; IOS-XR, FRR: `update-source`; \
             BIRD: `source address`); or here: {here}",
            peer.address()
        ),
    ))
}

/// Who may be this peer, coming from elsewhere.
fn stranger_of<'f>(facts: &'f Facts, peer: &PeerFacts) -> Option<&'f Stranger> {
    let received = peer
        .evidence
        .as_ref()
        .is_some_and(|seen| seen.received_count() > 0);
    if received {
        return None;
    }
    let examples = || facts.strangers.examples.iter();
    let is_known = |stranger: &&Stranger| stranger.verifies_as.as_ref() == Some(&peer.name);
    let is_address = |stranger: &&Stranger| peer.remote.contains(stranger.from);
    // On the peer's network, and signed: who else would do that?
    let is_near = |stranger: &&Stranger| {
        stranger.verifies_as.is_none()
            && (stranger.key_id.is_some() || stranger.md5)
            && peer.remote.is_host()
            && same_network(stranger.from, peer.remote.address())
    };
    examples()
        .find(is_known)
        .or_else(|| examples().find(is_address))
        .or_else(|| examples().find(is_near))
}

/// Whether both are in one /24 or /64.
fn same_network(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one.octets()[..3] == other.octets()[..3],
        (IpAddr::V6(one), IpAddr::V6(other)) => one.octets()[..8] == other.octets()[..8],
        _ => false,
    }
}

/// The far end, or a router, says no.
fn refused(peer: &PeerFacts, evidence: &PeerEvidence) -> Option<Draft> {
    let icmp = evidence.icmp.iter().find(|icmp| !is_too_big(icmp));
    let answer = match (icmp, evidence.resets_received) {
        (_, 1..) => format!(
            "{} arrived in answer",
            count(evidence.resets_received, "RST")
        ),
        (Some(icmp), 0) => format!(
            "{} said \"{}\" in answer ({})",
            icmp.from,
            icmp.meaning,
            count(icmp.count, "ICMP error")
        ),
        (None, 0) => return None,
    };
    let (matters, remedy) = match evidence.resets_received {
        0 => (
            "A router, or the far end, does not let our segments through. Keys have nothing to do \
             with it.",
            "look for the route and the packet filters on the way that sent it".to_owned(),
        ),
        _ => (
            "The far end can be reached, and does not want the connection. The RST says nothing \
             about keys: it is ignored, and told here only.",
            format!(
                "at the far end, is the BGP daemon running, does it listen on port {}, and has it a \
                 neighbor with our address?",
                ports(peer)
            ),
        ),
    };
    Some(Draft::new(
        Code::PeerRefuses,
        format!(
            "{} left for {}, and {answer}",
            sent(evidence),
            peer.address()
        ),
        matters,
        remedy,
    ))
}

/// Path-MTU discovery, which is no refusal.
fn is_too_big(icmp: &IcmpSeen) -> bool {
    match icmp.from {
        IpAddr::V4(_) => (icmp.kind, icmp.code) == (3, 4),
        IpAddr::V6(_) => icmp.kind == 2,
    }
}

/// Segments do not even leave.
fn unresolved(peer: &PeerFacts, evidence: &PeerEvidence) -> Option<Draft> {
    if evidence.unresolved == 0 {
        return None;
    }
    let route = peer.host.as_ref()?.route.as_ref()?.as_ref().ok()?;
    let next = route.gateway.unwrap_or(peer.remote.address());
    let (how, device) = match next {
        IpAddr::V4(_) => ("ARP", &route.device),
        IpAddr::V6(_) => ("neighbor discovery", &route.device),
    };
    Some(Draft::new(
        Code::NoSegments,
        format!(
            "segments for {} cannot be sent: {next} does not answer {how} on {device}; nothing \
             arrived from there, either",
            peer.address()
        ),
        "The far end, or the next hop on the way to it, is not on the link: keys have nothing to do \
         with it.",
        format!(
            "is {next} up, on the same link or VLAN, and has it that address? `ip neigh show {next}`, \
             `ip link show {device}`"
        ),
    ))
}

fn no_segments(facts: &Facts, peer: &PeerFacts, evidence: &PeerEvidence) -> Draft {
    let expected = peer.keys.first().map_or_else(String::new, |key| {
        format!(" the key there has to be {};", mirrored(key))
    });
    Draft::new(
        Code::NoSegments,
        format!(
            "{} left for {}, and nothing at all arrived from there in {}",
            sent(evidence),
            peer.address(),
            span(facts.listened)
        ),
        "The far end is away, a filter or a route on the path loses segments, or the far end drops \
         what we sign: that looks the same from here, as routers drop what does not verify without \
         an answer.",
        format!(
            "ping {} first; then ask the far end for its TCP-AO counters (Linux: `nstat -az | grep \
             TCPAO`; a sidecar there: `aoctl doctor`):{expected} are options of kind 29 filtered on \
             the way?",
            peer.remote.address()
        ),
    )
}

/// A connect that no SYN leaves for.
fn not_leaving(facts: &Facts, peer: &PeerFacts) -> Draft {
    Draft::new(
        Code::NoSegments,
        format!(
            "the daemon calls {}, and in {} no SYN has left this host for it, nor has anything arrived \
             from there",
            peer.address(),
            span(facts.listened)
        ),
        "Its next attempt may be due later, or a rule of this host's drops what the daemon sends.",
        format!(
            "listen longer: `aoctl doctor {} --listen 150s`; look for rules of your own (`nft list \
             ruleset`, `iptables-save -c`), and whether the next hop answers (`ip neigh`)",
            peer.name
        ),
    )
}

fn no_attempts(facts: &Facts, peer: &PeerFacts) -> Draft {
    let listener = peer.host.as_ref().and_then(|host| host.listeners.first());
    let program = listener
        .and_then(|listener| listener.program.as_deref())
        .unwrap_or("the daemon");
    Draft::new(
        Code::NoAttempts,
        format!(
            "{program} does not call {}, and nothing arrived from there in {}",
            peer.address(),
            span(facts.listened)
        ),
        "One end has to open the session. Both may be passive, wait for a retry timer, or have the \
         neighbor shut down.",
        format!(
            "has {program} a neighbor {}, is it enabled, and is one end not passive? Its retry timer \
             may be longer than this: `aoctl doctor {} --listen 150s`",
            peer.remote.address(),
            peer.name
        ),
    )
}

fn no_session(facts: &Facts, peer: &PeerFacts) -> Draft {
    let listened = match peer.evidence {
        Some(_) => format!("in {} of listening", span(facts.listened)),
        None => "without listening".to_owned(),
    };
    let severity = match peer.is_dynamic() {
        true => FindingSeverity::Note,
        false => FindingSeverity::Problem,
    };
    Draft::new(
        Code::NoSession,
        format!(
            "there is no session with {}; {listened} nothing told why",
            peer.address()
        ),
        match peer.is_dynamic() {
            true => "The peer is a prefix: its far ends may be away.",
            false => "Nothing is exchanged with the peer.",
        },
        format!("listen longer: `aoctl doctor {} --listen 150s`", peer.name),
    )
    .at(severity)
}

/// `3 SYNs signed with KeyID 1`.
fn sent(evidence: &PeerEvidence) -> String {
    let key_id = evidence.sent.iter().find_map(|seen| match seen.examined {
        Examined::Verified { key_id, .. } => Some(key_id),
        _ => None,
    });
    let syns = count(evidence.sent_count(), "SYN");
    match key_id {
        Some(key_id) => format!("{syns} signed with KeyID {key_id}"),
        None => syns,
    }
}

fn ports(peer: &PeerFacts) -> String {
    match (peer.ports.start(), peer.ports.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first} to {last}"),
    }
}
