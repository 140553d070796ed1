//! Keys that are not there, or soon will not be.

use std::time::Duration;

use grpc_api::operator::administration::FindingSeverity;
use keymgr::chain::OnExpiry;

use super::{Draft, peering};
use crate::doctor::code::Code;
use crate::doctor::facts::{ChainFacts, Facts, Keys, PeerFacts};
use crate::doctor::text::{span, time};

/// How long before its end a chain is warned of.
const SOON: Duration = Duration::from_secs(30 * 86_400);

const BLOCKED: &str = "Without a key the peer is blocked: nothing is sent or accepted unsigned.";

/// A peer without any key to send with.
pub(super) fn missing(facts: &Facts, peer: &PeerFacts) -> Option<Draft> {
    let draft = match &peer.keys {
        Keys::Chain(chain) if chain.keys.iter().all(|key| !key.active) => match chain.expired {
            Some(since) => expired(facts, chain, since),
            None => not_begun(facts, chain),
        },
        Keys::Agreed {
            rollover: Some(rollover),
            ..
        } if rollover.active.is_none() => peering::first_contact(peer, rollover),
        _ if peer.report.keys == 0 => Draft::new(
            Code::Blocked,
            "the datapath has no key for the peer",
            BLOCKED,
            "see `aoctl keys list` and the sidecar's log for why no key was installed",
        ),
        _ => return None,
    };
    Some(draft.of(peer))
}

/// Chains that end, or are kept beyond their end.
pub(super) fn warnings(facts: &Facts, peer: &PeerFacts) -> Option<Draft> {
    let Keys::Chain(chain) = &peer.keys else {
        return None;
    };
    let has_key = chain.keys.iter().any(|key| key.active);
    if let (Some(since), OnExpiry::Keep, true) = (chain.expired, chain.on_expiry, has_key) {
        let kept = Draft {
            matters: "The last key stays in use (on_expiry = \"keep\"), as long as the far end \
                      accepts it: most routers do not after its lifetime."
                .to_owned(),
            ..expired(facts, chain, since)
        };
        return Some(kept.at(FindingSeverity::Warning).of(peer));
    }
    let ends = chain.ends?;
    let left = ends.duration_since(now(facts)).ok()?;
    if left > SOON || chain.expired.is_some() {
        return None;
    }
    let then = match chain.on_expiry {
        OnExpiry::Keep => {
            "Its last key will stay in use here (on_expiry = \"keep\"); most routers do not accept \
             a key after its lifetime."
        }
        OnExpiry::Close => {
            "Then the sessions are closed and the peer is blocked (on_expiry = \"close\")."
        }
    };
    let seen = format!(
        "key chain {:?} ends in {}, at {}",
        chain.name,
        span(left),
        time(ends)
    );
    Some(Draft::new(Code::ChainEnding, seen, then, add_key(facts, chain)).of(peer))
}

fn expired(facts: &Facts, chain: &ChainFacts, since: std::time::SystemTime) -> Draft {
    let mut seen = format!(
        "key chain {:?} has had no key to send with since {}",
        chain.name,
        time(since)
    );
    if let Some(next) = chain.next {
        seen.push_str(&format!("; its next key begins at {}", time(next)));
    }
    let matters = format!("{BLOCKED} Sessions were closed (on_expiry = \"close\").");
    Draft::new(Code::ChainExpired, seen, matters, add_key(facts, chain))
}

fn not_begun(facts: &Facts, chain: &ChainFacts) -> Draft {
    let mut seen = format!("no key of key chain {:?} has begun", chain.name);
    if let Some(next) = chain.next {
        seen.push_str(&format!(
            ": the first one begins at {}, and it is {}",
            time(next),
            time(now(facts))
        ));
    }
    let remedy = format!(
        "if the clock is right, wait, or let a key begin earlier: its `lifetime` in {}, the same at \
         the far end; else set the clock, then `aoctl config reload`",
        facts.config_file.display()
    );
    Draft::new(Code::ChainNotBegun, seen, BLOCKED, remedy)
}

fn add_key(facts: &Facts, chain: &ChainFacts) -> String {
    format!(
        "add a key with IDs of its own and a later end, here as [[key_chain.key]] of chain {:?} in \
         {} (then `aoctl config reload`) or by `aoctl keys add`, and mirrored at the far end",
        chain.name,
        facts.config_file.display()
    )
}

/// The time that chains go by.
fn now(facts: &Facts) -> std::time::SystemTime {
    facts.trusted.unwrap_or(facts.now)
}
