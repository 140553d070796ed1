//! What is wrong with the segments that arrive from a peer.

use datapath::evidence::{Examined, Hint, PeerEvidence, Seen, Step};

use super::Draft;
use super::far_end::{ALGORITHM, IDS, OPTIONS, SIGN};
use crate::doctor::code::Code;
use crate::doctor::facts::{Facts, KeyFacts, Keys, PeerFacts};
use crate::doctor::text::{count, covered, key_here, mirrored, set_peer, take_over};

/// Why it matters that a MAC does not verify.
const NOT_VERIFIED: &str = "A segment whose MAC does not verify is dropped without an answer, so \
                            the session looks like a time-out at both ends.";

/// What is wrong with them; nothing when one of them verified, or none arrived.
pub(super) fn cause(facts: &Facts, peer: &PeerFacts) -> Option<Draft> {
    let received = &peer.evidence.as_ref()?.received;
    if verified(received).next().is_some() {
        return comes_and_goes(received).map(|draft| draft.of(peer));
    }
    // What verifies somehow was made by somebody who knows a secret; the rest may be anybody's.
    let seen = received
        .iter()
        .max_by_key(|seen| (is_proof(&seen.examined), seen.count))?;
    let draft = Case { facts, peer, seen }.judge()?;
    Some(draft.of(peer))
}

/// Segments come from too far away, whatever else is wrong with them.
pub(super) fn ttl_low(facts: &Facts, peer: &PeerFacts) -> Option<Draft> {
    let received = &peer.evidence.as_ref()?.received;
    let lowest = received.iter().min_by_key(|seen| seen.ttl)?;
    (lowest.ttl < peer.ttl_min).then(|| {
        let draft = Draft::new(
            Code::TtlLow,
            format!(
                "{} with a TTL of {}, and ttl_min of the peer is {}",
                arrived(lowest),
                lowest.ttl,
                peer.ttl_min
            ),
            "Segments below ttl_min are dropped before anything else (RFC 5082): they come from \
             further away than the peer is meant to be.",
            format!(
                "let the far end send with TTL 255 (its TTL security, `ttl-security hops`, GTSM); or \
                 allow the distance here: {}",
                set_peer(facts, peer, "ttl_min", &lowest.ttl.to_string())
            ),
        );
        draft.of(peer)
    })
}

/// Segments that verify.
pub(super) fn verified(received: &[Seen]) -> impl Iterator<Item = &Seen> {
    let verified = |seen: &&Seen| matches!(seen.examined, Examined::Verified { .. });
    received.iter().filter(verified)
}

/// Whether any SYN-ACK or SYN left this host for the peer.
pub(super) fn sent(evidence: &PeerEvidence, step: Step) -> u64 {
    let of_step = evidence.sent.iter().filter(|seen| seen.step == step);
    of_step.map(|seen| seen.count).sum()
}

/// `3 SYNs arrived from 10.0.0.2 for port 179`, or SYN-ACKs.
pub(super) fn arrived(seen: &Seen) -> String {
    match seen.step {
        Step::Syn => format!(
            "{} arrived from {} for port {}",
            count(seen.count, "SYN"),
            seen.remote,
            seen.port
        ),
        Step::SynAck => format!(
            "{} arrived from {} in answer to our SYNs to port {}",
            count(seen.count, "SYN-ACK"),
            seen.remote,
            seen.port
        ),
    }
}

/// Some segments have TCP-AO and verify, others of the same far end have none.
fn comes_and_goes(received: &[Seen]) -> Option<Draft> {
    let signed = verified(received).next()?;
    let bare = received.iter().find(|seen| {
        matches!(seen.examined, Examined::NoAo)
            && seen.remote == signed.remote
            && seen.step != signed.step
    })?;
    Some(Draft::new(
        Code::ForeignOption,
        format!(
            "{}, with a MAC that verifies; {}, without TCP-AO",
            arrived(signed),
            arrived(bare)
        ),
        "The far end knows the key, and yet does not sign all of its segments: something on the path \
         takes the option away, or its listening socket has no key for this router.",
        "look for firewalls, load balancers and TCP proxies on the path that remove TCP options, and \
         exempt this session; capture at the far end whether the segment leaves it with option kind \
         29 (`tcpdump -v`)",
    ))
}

/// Whether its sender has shown that it knows a secret of this end.
fn is_proof(examined: &Examined) -> bool {
    match examined {
        Examined::UnknownKeyId { hint, .. }
        | Examined::MacLength { hint, .. }
        | Examined::WrongMac { hint, .. } => *hint != Hint::Nothing,
        _ => false,
    }
}

/// Segments of a peer that are not as they should be.
struct Case<'c> {
    facts: &'c Facts,
    peer: &'c PeerFacts,
    seen: &'c Seen,
}

impl Case<'_> {
    fn judge(&self) -> Option<Draft> {
        match self.seen.examined {
            Examined::Verified { .. } => None,
            Examined::NoAo => Some(self.unsigned()),
            Examined::Md5 => Some(self.md5()),
            Examined::Malformed(reason) => Some(self.malformed(reason.as_str())),
            Examined::UnknownKeyId {
                key_id,
                rnext_key_id,
                hint,
            } => Some(self.unknown_key_id(key_id, rnext_key_id, hint)),
            Examined::MacLength {
                key_id,
                got,
                expected,
                hint,
                ..
            } => Some(self.mac_length(key_id, got, expected, hint)),
            Examined::WrongMac { key_id, hint, .. } => Some(self.wrong_mac(key_id, hint)),
        }
    }

    fn unsigned(&self) -> Draft {
        let matters = match self.seen.step {
            Step::Syn => {
                "Anybody could have sent them, so they are never let in. The far end does not sign \
                 this session."
            }
            Step::SynAck => {
                "Our SYNs are signed, and the far end answers as if they were not: it has no key for \
                 this router, or something on the path removes the option. Unsigned answers are \
                 never let in."
            }
        };
        let remedy = format!(
            "configure TCP-AO for this session at the far end{}",
            self.entry(SIGN)
        );
        let seen = format!("{}, without TCP-AO", arrived(self.seen));
        Draft::new(Code::NoAo, seen, matters, remedy)
    }

    fn md5(&self) -> Draft {
        let remedy = format!(
            "at the far end, replace the neighbor's MD5 password by TCP-AO{}",
            self.entry(SIGN)
        );
        Draft::new(
            Code::Md5Instead,
            format!(
                "{}, with TCP-MD5 (RFC 2385) instead of TCP-AO",
                arrived(self.seen)
            ),
            "MD5 is what TCP-AO replaces; a peer has one or the other (RFC 5925 §2.2), so they are \
             dropped.",
            remedy,
        )
    }

    fn malformed(&self, reason: &str) -> Draft {
        Draft::new(
            Code::MalformedOption,
            format!(
                "{}, with options that cannot be taken: {reason}",
                arrived(self.seen)
            ),
            "RFC 5925 §2.2 has such segments discarded.",
            "capture one (`tcpdump -vvX`), and report it to the far end's vendor; a middlebox on the \
             path may have done it",
        )
    }

    fn unknown_key_id(&self, key_id: u8, rnext: u8, hint: Hint) -> Draft {
        let seen = format!(
            "{}, with KeyID {key_id}, RNextKeyID {rnext}",
            arrived(self.seen)
        );
        if let Some(swapped) = self.swapped(key_id, rnext, hint) {
            return self.ids_swapped(&seen, &swapped, hint);
        }
        let Hint::OtherKey {
            send_id,
            recv_id,
            active,
            algorithm,
            include_options,
        } = hint
        else {
            return self.nobodys_key(&seen, key_id);
        };
        let key = KeyFacts {
            algorithm,
            include_options,
            ..self.key(send_id, recv_id)
        };
        if !active && recv_id == key_id {
            return self.out_of_time(&seen, &key);
        }
        let seen = format!(
            "{seen}; the MAC verifies with the secret of SendID {send_id}, RecvID {recv_id} of this \
             end"
        );
        Draft::new(
            Code::UnknownKeyId,
            seen,
            format!(
                "The secret is right, the IDs are not: KeyIDs of the far end must be RecvIDs of this \
                 end, which has {}.",
                self.recv_ids()
            ),
            format!(
                "at the far end, give the key SendID {recv_id} and RecvID {send_id} ({IDS}); or \
                 change send_id and recv_id of {} to {rnext} and {key_id}, {}",
                key_here(self.facts, self.peer, &key),
                take_over(&key)
            ),
        )
    }

    fn nobodys_key(&self, seen: &str, key_id: u8) -> Draft {
        let add = match (&self.peer.keys, self.peer.keys.first()) {
            (Keys::Chain(chain), Some(key)) => format!(
                "at the far end, use a key that this end has: {} ({IDS}); or add a key with recv_id = \
                 {key_id} to key chain {:?} here",
                mirrored(key),
                chain.name
            ),
            _ => {
                "the far end must not have keys of its own for this session: its sidecar agrees on \
                  them with this one. See `aoctl keys list` at both ends"
                    .to_owned()
            }
        };
        Draft::new(
            Code::UnknownKeyId,
            format!("{seen}; no key of this end has that RecvID"),
            format!(
                "Segments with a KeyID that no key has as its RecvID are dropped. RecvIDs of this end \
                 are {}.",
                self.recv_ids()
            ),
            add,
        )
    }

    fn ids_swapped(&self, seen: &str, key: &KeyFacts, hint: Hint) -> Draft {
        let proof = match hint {
            Hint::Nothing => "",
            _ => ", and the MAC verifies with that key's secret",
        };
        Draft::new(
            Code::IdsSwapped,
            format!("{seen}: these are SendID and RecvID of this end{proof}"),
            "Both ends have the same numbers. They must be mirrored: what one end sends (SendID), the \
             other expects (RecvID).",
            format!(
                "at the far end, exchange the IDs of the key: {} ({IDS}); or here: send_id = {}, \
                 recv_id = {} for {}, {}",
                mirrored(key),
                key.recv_id,
                key.send_id,
                key_here(self.facts, self.peer, key),
                take_over(key)
            ),
        )
    }

    fn out_of_time(&self, seen: &str, key: &KeyFacts) -> Draft {
        Draft::new(
            Code::KeyOutOfTime,
            format!("{seen}; that key is known here, and not accepted at this time"),
            "The ends disagree which key is in use: their clocks or the key's lifetimes differ by \
             more than accept_tolerance.",
            format!(
                "compare the clocks of both ends (`chronyc tracking`, `date -u`), and the lifetimes \
                 of {} with those at the far end",
                key_here(self.facts, self.peer, key)
            ),
        )
    }

    fn mac_length(&self, key_id: u8, got: u8, expected: u8, hint: Hint) -> Draft {
        if let Hint::Algorithm { .. } | Hint::OtherKey { .. } = hint {
            return self.wrong_mac(key_id, hint);
        }
        let key = self.key_received(key_id);
        Draft::new(
            Code::MacLength,
            format!(
                "{}, with KeyID {key_id} and a MAC of {got} octets instead of {expected}",
                arrived(self.seen)
            ),
            format!(
                "{} has MACs of {expected} octets. The far end has another algorithm, or cuts MACs to \
                 another length; the secret may differ, too.",
                key.algorithm
            ),
            format!("at the far end: {} ({ALGORITHM})", mirrored(&key)),
        )
    }

    fn wrong_mac(&self, key_id: u8, hint: Hint) -> Draft {
        let key = self.key_received(key_id);
        let seen = format!(
            "{}, with KeyID {key_id} and a MAC that does not verify",
            arrived(self.seen)
        );
        let here = key_here(self.facts, self.peer, &key);
        let take_over = take_over(&key);
        match hint {
            Hint::OptionsFlag { include_options } => Draft::new(
                Code::OptionsFlag,
                format!(
                    "{seen}; it does with TCP options {} instead of {}",
                    covered(include_options),
                    covered(!include_options)
                ),
                format!(
                    "Secret, IDs and algorithm are right: only this flag differs. {NOT_VERIFIED}"
                ),
                format!(
                    "at the far end, have TCP options {} ({OPTIONS}); or here: include_tcp_options = \
                     {include_options} for {here}, {take_over}",
                    covered(!include_options)
                ),
            ),
            Hint::Algorithm {
                algorithm,
                include_options,
            } => {
                let also = match include_options == key.include_options {
                    true => String::new(),
                    false => format!(", TCP options {}", covered(include_options)),
                };
                Draft::new(
                    Code::WrongAlgorithm,
                    format!(
                        "{seen}; it does with {algorithm}{also} instead of {}",
                        key.algorithm
                    ),
                    format!("Secret and IDs are right. {NOT_VERIFIED}"),
                    format!(
                        "at the far end: {} ({ALGORITHM}); or here: algorithm = \"{algorithm}\"{} for \
                         {here}, {take_over}",
                        mirrored(&key),
                        match also.is_empty() {
                            true => String::new(),
                            false => format!(", include_tcp_options = {include_options}"),
                        }
                    ),
                )
            }
            Hint::OtherKey {
                send_id,
                recv_id,
                active: false,
                ..
            } if recv_id == key_id => self.out_of_time(&seen, &self.key(send_id, recv_id)),
            Hint::OtherKey {
                send_id, recv_id, ..
            } => Draft::new(
                Code::SecretOfOtherKey,
                format!("{seen}; it does with the secret of SendID {send_id}, RecvID {recv_id}"),
                format!(
                    "The far end has the secret of one key under the IDs of another. {NOT_VERIFIED}"
                ),
                format!(
                    "at the far end, exchange the secrets of its keys, or give the key with this \
                     secret SendID {recv_id} and RecvID {send_id} ({IDS})"
                ),
            ),
            Hint::Nothing => Draft::new(
                Code::WrongSecret,
                format!("{seen}, whatever algorithm, options flag or key of this end is tried"),
                format!("The ends have other secrets under this ID. {NOT_VERIFIED}"),
                format!(
                    "write the same secret at both ends. Common slips: hexadecimal digits taken as \
                     text (`secret_hex` here), blanks or quotes in it, a secret pasted encrypted. \
                     Here it is {here}, {take_over}"
                ),
            ),
        }
    }

    /// A key whose IDs the far end has as they are here.
    fn swapped(&self, key_id: u8, rnext: u8, hint: Hint) -> Option<KeyFacts> {
        let keys = self.peer.keys.all().iter();
        let mut same = keys.filter(|key| key.send_id == key_id && key.send_id != key.recv_id);
        match hint {
            Hint::OtherKey {
                send_id, recv_id, ..
            } => same.find(|key| (key.send_id, key.recv_id) == (send_id, recv_id)),
            _ => same.find(|key| key.recv_id == rnext),
        }
        .copied()
    }

    /// The key that a KeyID of the far end names.
    fn key_received(&self, key_id: u8) -> KeyFacts {
        let keys = self.peer.keys.all();
        let named = |key: &&KeyFacts| key.recv_id == key_id;
        let found = keys.iter().filter(|key| key.active).find(named);
        let found = found.or_else(|| keys.iter().find(named));
        found.copied().unwrap_or_else(|| unknown(key_id, key_id))
    }

    fn key(&self, send_id: u8, recv_id: u8) -> KeyFacts {
        let mut keys = self.peer.keys.all().iter();
        keys.find(|key| (key.send_id, key.recv_id) == (send_id, recv_id))
            .copied()
            .unwrap_or_else(|| unknown(send_id, recv_id))
    }

    fn recv_ids(&self) -> String {
        let active = self.peer.keys.all().iter().filter(|key| key.active);
        let ids: Vec<String> = active.map(|key| key.recv_id.to_string()).collect();
        ids.join(", ")
    }

    /// What the far end has to have, to be put behind a remedy.
    fn entry(&self, how: &str) -> String {
        match self.peer.keys.first() {
            Some(key) => format!(", towards {}: {} ({how})", self.seen.local, mirrored(key)),
            None => format!(" ({how})"),
        }
    }
}

/// A key that has gone since the segment was examined.
fn unknown(send_id: u8, recv_id: u8) -> KeyFacts {
    KeyFacts {
        send_id,
        recv_id,
        algorithm: ao_engine::crypto::Algorithm::HmacSha1_96,
        include_options: true,
        active: false,
        made_by_api: false,
    }
}
