//! This host: capabilities, clock, firewall, queues, the way to a peer, the daemon's sockets.

use std::sync::Arc;
use std::time::Duration;

use datapath::report::LastRefused;
use grpc_api::operator::administration::FindingSeverity;

use super::Draft;
use crate::VERSION;
use crate::doctor::code::Code;
use crate::doctor::facts::{Facts, Keys, PeerFacts};
use crate::doctor::text::{count, span, time};

/// Restored parts that may come of one flush: nftables, and iptables of either family.
const ONE_FLUSH: u64 = 3;
/// How long ago a refusal is still about what is now.
const RECENT: Duration = Duration::from_secs(60);

/// What concerns all peers.
pub(super) fn findings(facts: &Facts) -> Vec<Draft> {
    let unknown = facts.unknown.iter().map(|what| {
        Draft::new(
            Code::NotFoundOut,
            what.clone(),
            "What depends on it could not be judged.",
            "",
        )
    });
    [
        capability(facts),
        clock_jumped(facts),
        clock_unsynchronised(facts),
        rules_missing(facts),
        rules_flushed(facts),
        queue_overrun(facts),
    ]
    .into_iter()
    .flatten()
    .chain(facts.left_out.iter().map(left_out))
    .chain(unknown)
    .chain([ok(facts)])
    .collect()
}

fn left_out(name: &Arc<str>) -> Draft {
    let draft = Draft::new(
        Code::LeftOut,
        "a session with it was alive and unprotected when the sidecar started",
        "It is not protected, and not blocked either: others did not have to wait for it. As soon as \
         it has no such session, which is looked at every 3 s, it is taken in.",
        "Close that session: `aoctl config reload --replace-sessions`, or shut it down in the daemon.",
    );
    Draft {
        peer: Some(Arc::clone(name)),
        ..draft
    }
}

fn ok(facts: &Facts) -> Draft {
    let report = &facts.report;
    let rules = match report.rules_trouble {
        None => format!(
            "queue rules in {}, guard in {}",
            report.queue_rules, report.guard
        ),
        Some(_) => "its firewall rules are not all in place".to_owned(),
    };
    let kernel = match facts.host.kernel_tcp_ao {
        true => "this kernel has TCP-AO",
        false => "this kernel has no TCP-AO, so the sidecar's engine signs",
    };
    let seen = format!(
        "ao-sidecar {VERSION} has run for {}; {rules}; {kernel}",
        span(facts.uptime),
    );
    Draft::new(Code::SidecarOk, seen, "", "")
}

fn capability(facts: &Facts) -> Option<Draft> {
    let host = &facts.host;
    let kernel_wanted = host.kernel_tcp_ao && facts.report.kernel.is_some();
    let missing: Vec<&str> = [
        (host.net_admin, "CAP_NET_ADMIN"),
        (host.net_raw, "CAP_NET_RAW"),
        (host.sys_ptrace || !kernel_wanted, "CAP_SYS_PTRACE"),
    ]
    .into_iter()
    .filter_map(|(there, name)| (!there).then_some(name))
    .collect();
    (!missing.is_empty()).then(|| {
        Draft::new(
            Code::CapabilityMissing,
            format!("the sidecar lacks {}", missing.join(" and ")),
            "CAP_NET_ADMIN is for firewall, queues and the sockets of other programs, CAP_NET_RAW \
             for segments it sends itself, CAP_SYS_PTRACE for keys on a daemon's sockets.",
            "run it as root, or add them to AmbientCapabilities= and CapabilityBoundingSet= of its \
             unit, and restart it",
        )
    })
}

fn clock_jumped(facts: &Facts) -> Option<Draft> {
    let trusted = facts.trusted?;
    has_lifetimes(facts).then(|| {
        Draft::new(
            Code::ClockJumped,
            format!(
                "the wall clock says {}, and key chains go by {}: it jumped",
                time(facts.now),
                time(trusted)
            ),
            "A clock that jumps must not end a key. Key chains go by the steady clock until the \
             wall clock has been even for an hour.",
            "set the clock right (`timedatectl`, `chronyc tracking`); if the new time is right, \
             `aoctl config reload` makes it believed at once",
        )
    })
}

fn clock_unsynchronised(facts: &Facts) -> Option<Draft> {
    (facts.host.clock_synchronised == Some(false) && has_lifetimes(facts)).then(|| {
        Draft::new(
            Code::ClockUnsynchronised,
            "the kernel's clock follows no source of time, and key chains have lifetimes",
            "When both ends' clocks differ by more than accept_tolerance, one end uses a key that \
             the other does not accept.",
            "run a time service (`timedatectl set-ntp true`, chrony, ntpd); `chronyc tracking` \
             shows the offset",
        )
    })
}

fn has_lifetimes(facts: &Facts) -> bool {
    let of_peer =
        |peer: &PeerFacts| matches!(&peer.keys, Keys::Chain(chain) if chain.has_lifetimes);
    facts.peers.iter().any(of_peer)
}

fn rules_missing(facts: &Facts) -> Option<Draft> {
    let trouble = facts.report.rules_trouble.as_ref()?;
    Some(Draft::new(
        Code::RulesMissing,
        format!("the sidecar's firewall rules are not all in place: {trouble}"),
        "Without the queue rules the guard in the other firewall blocks the peers; without either \
         what they send is let in unsigned.",
        "do the tools work (`nft list ruleset`, `iptables-legacy-save`), or does another program \
         manage these rules? The sidecar goes on trying; the journal says what fails",
    ))
}

fn rules_flushed(facts: &Facts) -> Option<Draft> {
    let restored = facts.report.rules_restored;
    let now = facts
        .before
        .is_some_and(|before| before.rules_restored < restored);
    let again = now || restored > 2 * ONE_FLUSH;
    (restored > 0).then(|| {
        let draft = Draft::new(
            Code::RulesFlushed,
            format!(
                "the sidecar's firewall rules were gone or changed and put back {} since its start \
                 {} ago{}",
                times(restored),
                span(facts.uptime),
                if now {
                    ", and while this was looked at"
                } else {
                    ""
                },
            ),
            "Until they are back, within a second, the guard in the other firewall blocks the \
             peers; a program that flushes both firewalls opens them for that time.",
            "find what flushes: often `nft -f` of a file that begins with `flush ruleset`, or a \
             firewall service's reload. Let it flush its own tables only, or load it before the \
             sidecar",
        );
        draft.at(match again {
            true => FindingSeverity::Warning,
            false => FindingSeverity::Note,
        })
    })
}

fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    }
}

fn queue_overrun(facts: &Facts) -> Option<Draft> {
    let queues = || facts.report.queues.iter();
    let dropped: u64 = queues().map(|queue| queue.dropped).sum();
    let overruns: u64 = queues().map(|queue| queue.overruns).sum();
    let waiting: u64 = queues().map(|queue| u64::from(queue.waiting)).sum();
    let lost = dropped + overruns;
    let now = facts.before.is_some_and(|before| before.lost < lost);
    (lost > 0).then(|| {
        let draft = Draft::new(
            Code::QueueOverrun,
            format!(
                "netfilter queues dropped {} and overran {}{}; in them now: {}",
                count(dropped, "packet"),
                times(overruns),
                if now { ", some of it while this was looked at" } else { "" },
                count(waiting, "packet"),
            ),
            "Segments of any peer may be among them. TCP repeats what is lost; a hold timer may not \
             wait that long.",
            "is there a flood (`aoctl counters`)? Else raise `workers` and `queue_length` of \
             [userspace], and restart the sidecar",
        );
        draft.at(match now {
            true => FindingSeverity::Problem,
            false => FindingSeverity::Note,
        })
    })
}

/// There is no way to the peer.
pub(super) fn no_route(facts: &Facts, peer: &PeerFacts) -> Option<Draft> {
    let reason = peer.host.as_ref()?.route.as_ref()?.as_ref().err()?;
    let vrf = match &peer.vrf {
        Some(vrf) => format!(" in VRF {vrf}"),
        None => String::new(),
    };
    let draft = Draft::new(
        Code::NoRoute,
        format!("this host has no way to {}{vrf}: {reason}", peer.address()),
        "Segments can neither be sent nor answered.",
        format!(
            "is the device up and has it an address (`ip address`)? Has the routing table a route \
             (`ip route get {}`)? Are `vrf`, `interface` and `local_address` of the peer right in \
             {}?",
            peer.remote.address(),
            facts.config_file.display()
        ),
    );
    Some(draft.of(peer))
}

/// The daemon has a TCP-MD5 password for the peer.
pub(super) fn local_md5(peer: &PeerFacts) -> Option<Draft> {
    let keys = peer.host.as_ref().map_or(&[][..], |host| &host.md5_keys);
    let refused = recently_refused(peer, "local-md5");
    let seen = match (keys.first(), refused) {
        (Some(key), _) => format!(
            "{} has a TCP-MD5 password for {} on its socket {}",
            key.program.as_deref().unwrap_or("the daemon"),
            key.remote,
            key.socket
        ),
        (None, Some(refused)) => format!(
            "the daemon's segments carry TCP-MD5, the last one {} ago",
            span(refused.ago)
        ),
        (None, None) => return None,
    };
    let draft = Draft::new(
        Code::LocalMd5,
        seen,
        "A segment has TCP-MD5 or TCP-AO, never both (RFC 5925 §2.2): what the daemon sends is \
         dropped, and it drops what arrives without MD5.",
        "remove the password from the daemon's neighbor (BIRD: `password`; FRR: `no neighbor … \
         password`; GoBGP: `auth-password`; OpenBGPD: `tcp md5sig`), and reload the daemon; the \
         same at the far end",
    );
    Some(draft.of(peer))
}

/// Somebody else on this host signs for the peer.
pub(super) fn already_signed(peer: &PeerFacts) -> Option<Draft> {
    let refused = recently_refused(peer, "already-signed")?;
    let draft = Draft::new(
        Code::AlreadySigned,
        format!(
            "the daemon's segments carry TCP-AO already, the last one {} ago",
            span(refused.ago)
        ),
        "A segment has one TCP-AO option (RFC 5925 §2.2). The daemon has keys of its own for the \
         peer, and the sidecar's engine drops what it would sign twice.",
        "remove the keys from the daemon (BIRD: `authentication ao`), or the peer from the \
         sidecar's configuration",
    );
    Some(draft.of(peer))
}

/// The last refusal, if it was for this reason and not long ago.
fn recently_refused(peer: &PeerFacts, reason: &str) -> Option<LastRefused> {
    recent(peer).filter(|refused| refused.reason == reason)
}

/// The last refusal, if it was not long ago.
pub(super) fn recent(peer: &PeerFacts) -> Option<LastRefused> {
    peer.report
        .last_refused
        .filter(|refused| refused.ago <= RECENT)
}
