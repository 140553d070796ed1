//! Sessions that are up, and what may become of them.

use std::net::IpAddr;

use grpc_api::operator::administration::FindingSeverity;

use super::{Draft, host};
use crate::doctor::code::Code;
use crate::doctor::facts::PeerFacts;
use crate::doctor::text::{count, span};

/// Below these Linux does not believe that a path is narrow.
const LEAST_MTU: [u32; 2] = [552, 1280];
/// Octets of the longest TCP-AO option.
const LONGEST_OPTION: u32 = 20;

/// Refusals after which a live session may not go on: the far end has other keys by now.
const DANGEROUS: [&str; 3] = ["bad-mac", "unknown-key-id", "mac-length"];

/// A peer with a session.
pub(super) fn ok(peer: &PeerFacts) -> Draft {
    let mut sessions = peer.established();
    let seen = match (sessions.next(), sessions.count()) {
        (Some(session), 0) => format!(
            "{} with {}, signed by {} with KeyID {}, RNextKeyID {}; {} verified",
            session.local,
            session.remote,
            match session.backend {
                datapath::settings::Backend::Kernel => "the kernel",
                datapath::settings::Backend::Userspace => "the sidecar's engine",
            },
            session.current_key,
            session.rnext_key,
            count(session.segments_good, "segment"),
        ),
        (_, others) => format!(
            "{} are established; {} verified",
            count(others as u64 + 1, "session"),
            count(peer.report.segments_good, "segment")
        ),
    };
    Draft::new(Code::SessionOk, seen, "", "").of(peer)
}

/// A peer whose session was alive when the sidecar stopped.
pub(super) fn restored(peer: &PeerFacts) -> Draft {
    let draft = Draft::new(
        Code::SessionOk,
        "the session of before the sidecar's start was found again, and nothing was heard on it yet",
        "It goes on if both ends still have it: BGP speaks at least every keepalive interval.",
        "ask again in a minute",
    );
    draft.at(FindingSeverity::Note).of(peer)
}

/// Whether segments of a peer with a session were refused lately.
fn is_attacked(peer: &PeerFacts) -> bool {
    host::recent(peer).is_some_and(|refused| DANGEROUS.contains(&refused.reason))
}

/// What does not end a session, or not yet.
pub(super) fn warnings(peer: &PeerFacts) -> Vec<Draft> {
    let found = [mtu_small(peer), refused(peer).filter(|_| peer.is_up())];
    found.into_iter().flatten().collect()
}

fn mtu_small(peer: &PeerFacts) -> Option<Draft> {
    let route = peer.host.as_ref()?.route.as_ref()?.as_ref().ok()?;
    let [v4, v6] = LEAST_MTU;
    let is_v4 = matches!(peer.remote.address(), IpAddr::V4(_));
    let least = if is_v4 { v4 } else { v6 };
    let known = [route.mtu, route.device_mtu]
        .into_iter()
        .filter(|mtu| *mtu > 0);
    let mtu = known.min()?;
    if mtu >= least + LONGEST_OPTION {
        return None;
    }
    let draft = Draft::new(
        Code::MtuSmall,
        format!(
            "the way to {} by {} has an MTU of {mtu} octets",
            peer.address(),
            route.device
        ),
        match is_v4 {
            true => format!(
                "Linux does not believe that a path is narrower than {least} octets, and TCP-AO adds \
                 up to {LONGEST_OPTION}: full segments are sent in two by the engine, and lost if the \
                 kernel signs."
            ),
            false => format!(
                "IPv6 needs {least} octets on every link (RFC 8200 §5), and TCP-AO adds up to \
                 {LONGEST_OPTION}: full segments are sent in two by the engine, and lost if the \
                 kernel signs."
            ),
        },
        format!(
            "raise the MTU of {} (`ip link set {} mtu 1500`) or of the tunnel it stands for; or lower \
             the MSS: `ip route change … advmss {}`",
            route.device,
            route.device,
            mtu.saturating_sub(if is_v4 { 40 } else { 60 } + LONGEST_OPTION)
        ),
    );
    Some(draft.of(peer))
}

/// Segments of a live session, or in its name, that were refused.
fn refused(peer: &PeerFacts) -> Option<Draft> {
    let total: u64 = peer.report.drops.values().sum();
    if total == 0 {
        return None;
    }
    let by_reason: Vec<String> = (peer.report.drops.iter())
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let last = peer.report.last_refused.map_or_else(String::new, |last| {
        let key_id = last
            .key_id
            .map_or_else(String::new, |id| format!(", KeyID {id}"));
        format!(
            "; the last one {} ago: {}{key_id}",
            span(last.ago),
            last.reason
        )
    });
    let in_danger = is_attacked(peer);
    let draft = Draft::new(
        Code::SegmentsRefused,
        format!(
            "{} of the peer refused since the start ({}){last}",
            count(total, "packet"),
            by_reason.join(", ")
        ),
        match in_danger {
            true => {
                "The session is up, and somebody sends segments in the peer's name that do not \
                 verify: an attacker, or the far end with a key that this end does not have, in \
                 which case the session ends with its hold timer."
            }
            false => "They were not let in, and the session is up.",
        },
        match in_danger {
            true => {
                "does the session's count of verified segments still grow (`aoctl sessions`)? If not, \
                 compare the keys of both ends; if it does, find out who sends"
            }
            false => "nothing; docs/OPERATIONS.md has a line for each reason",
        },
    );
    let severity = match in_danger {
        true => FindingSeverity::Warning,
        false => FindingSeverity::Note,
    };
    Some(draft.at(severity).of(peer))
}
