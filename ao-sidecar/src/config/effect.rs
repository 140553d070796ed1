//! What another key chain does to the sessions of its peers.

use std::sync::Arc;
use std::time::SystemTime;

use ao_engine::policy::Mkt;
use keymgr::chain::KeyChain;

/// Most peers that are named.
const NAMED: usize = 5;

/// What becomes of the sessions of `peers` when `fresh` takes the place of `former` at `now`. Empty
/// when they go on: every key that is accepted stays accepted.
pub(super) fn of_chain(
    former: &KeyChain,
    fresh: &KeyChain,
    peers: &[&str],
    now: SystemTime,
) -> String {
    let (former, wanted) = (former.at(now).keys, fresh.at(now));
    if peers.is_empty() || former.is_empty() {
        return String::new();
    }
    let peers = named(peers);
    if wanted.keys.is_empty() {
        return format!("sessions of {peers} are closed: there is no key that is accepted now");
    }
    let told = former.iter().enumerate().filter_map(|(position, key)| {
        let lost = Lost::of(key, &wanted.keys)?;
        let in_use = position == 0;
        let told = lost.told(if in_use { "in use" } else { "accepted now" }, key);
        Some(match lost {
            _ if !in_use => format!("{told}: sessions of {peers} that use it are cut"),
            Lost::Gone => {
                format!("{told}: sessions of {peers} are cut until the far end uses another")
            }
            Lost::Another(_) => {
                format!("{told}: sessions of {peers} are cut until the far end has it, too")
            }
        })
    });
    told.collect::<Vec<_>>().join("; ")
}

/// What becomes of a key that does not stay.
enum Lost {
    Gone,
    /// Its IDs stay, and this is different.
    Another(&'static str),
}

impl Lost {
    /// What becomes of `key` when `wanted` are those that are accepted. Nothing if it stays.
    fn of(key: &Mkt, wanted: &[Arc<Mkt>]) -> Option<Self> {
        let ids = |key: &Mkt| (key.send_id, key.recv_id);
        let Some(other) = wanted.iter().find(|other| ids(other) == ids(key)) else {
            return Some(Self::Gone);
        };
        if other.is_same(key) {
            None
        } else if other.master_key != key.master_key {
            Some(Self::Another("secret"))
        } else if other.algorithm != key.algorithm {
            Some(Self::Another("algorithm"))
        } else {
            Some(Self::Another("include_tcp_options"))
        }
    }

    fn told(&self, state: &str, key: &Mkt) -> String {
        let ids = format!("(send {}, recv {})", key.send_id, key.recv_id);
        match self {
            Self::Gone => format!("the key {state} {ids} goes"),
            Self::Another(what) => format!("another {what} under the IDs {state} {ids}"),
        }
    }
}

/// `a, b and 3 more`.
fn named(peers: &[&str]) -> String {
    let first = peers
        .iter()
        .take(NAMED)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    match peers.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
