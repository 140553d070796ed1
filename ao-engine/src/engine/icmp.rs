//! ICMP errors about protected connections (RFC 5925 §7.8).
//!
//! Anybody can send one. Those that would end a synchronized connection are ignored; news of a
//! smaller path MTU is believed if the segment it quotes is in flight, which an attacker off the
//! path has to guess.

use super::connection::Connection;
use super::inbound::inserted_room;
use super::{Engine, Link, Refusal, Verdict, connection_id};
use crate::crypto::MacProvider;
use crate::policy::ConnectionId;
use crate::reason::DropReason;
use crate::time::Instant;
use crate::wire::{
    IcmpError, PacketBuf, ParseError, icmp_checksum_ok, parse_icmp_error, set_icmp_mtu,
};

/// The smallest path MTU believed: what Linux believes (net.ipv4.route.min_pmtu), and the least
/// an IPv6 link may have (RFC 8200 §5).
const MIN_MTU_V4: u32 = 552;
const MIN_MTU_V6: u32 = 1280;
/// What to believe of a router that does not say which MTU it needs (RFC 1191 §5).
const UNSAID_MTU_V4: u32 = 576;

impl<P: MacProvider> Engine<P> {
    /// Decides on an ICMP error that may quote a segment to a configured peer. One that is about
    /// no protected port or no TCP at all passes. `None` if the quoted connection is protected,
    /// but not one of this engine's.
    pub fn process_icmp(
        &mut self,
        now: Instant,
        link: Link,
        buf: &mut PacketBuf<'_>,
    ) -> Option<Verdict> {
        let error = match parse_icmp_error(buf.bytes()) {
            Ok(error) => error,
            Err(ParseError::Protocol) => return Some(Verdict::Accept),
            Err(_) => return None,
        };
        let quoted = error.quoted;
        let id = connection_id(
            link,
            (quoted.src, quoted.src_port),
            (quoted.dst, quoted.dst_port),
        );
        if self.policy.find(&id).is_none() {
            return Some(Verdict::Accept);
        }
        let handle = self.table.live(&id).or_else(|| {
            self.table
                .find_opening(&id, |entry| entry.local_isn == Some(quoted.seq))
        })?;
        let entry = self.table.get_mut(handle)?;
        let peer_index = entry.peer;
        let decision = judge(entry, &id, &error, icmp_checksum_ok(buf.bytes(), &error));
        let peer = self.policy.peers().get(peer_index)?;
        let reason = match decision {
            Decision::Pass => return Some(Verdict::Accept),
            Decision::Shrink(mtu) => {
                entry.learn_path_mtu(mtu, now);
                // The local TCP knows nothing of the option it is to leave room for.
                set_icmp_mtu(
                    buf.bytes_mut(),
                    &error,
                    mtu.saturating_sub(inserted_room(peer)),
                );
                return Some(Verdict::Modified);
            }
            Decision::Refuse(reason) => reason,
        };
        let refusal = Refusal {
            reason,
            peer: Some(peer_index),
            connection: Some(id),
            key_id: None,
            key: None,
        };
        Some(Verdict::Drop(self.refuse(now, &refusal)))
    }
}

enum Decision {
    Pass,
    /// The path carries no more than this many octets.
    Shrink(u32),
    Refuse(DropReason),
}

fn judge<K>(entry: &Connection<K>, id: &ConnectionId, error: &IcmpError, intact: bool) -> Decision {
    let quoted = error.quoted;
    if !intact {
        return Decision::Refuse(DropReason::Checksum);
    }
    if !entry.proven {
        // Not synchronized: an unreachable host may end the attempt (RFC 5925 §7.8).
        return match entry.local_isn == Some(quoted.seq) {
            true => Decision::Pass,
            false => Decision::Refuse(DropReason::IcmpUnmatched),
        };
    }
    if error.is_hard() || error.outer_src == id.local {
        // This host's own complaint is about the route's MTU, which the option may exceed.
        return Decision::Refuse(DropReason::IcmpIgnored);
    }
    if !entry.in_flight(quoted.seq) {
        return Decision::Refuse(DropReason::IcmpUnmatched);
    }
    if !error.is_too_big() {
        return Decision::Pass;
    }
    let least = if id.remote.is_ipv4() {
        MIN_MTU_V4
    } else {
        MIN_MTU_V6
    };
    Decision::Shrink(error.mtu.unwrap_or(UNSAID_MTU_V4).max(least))
}
