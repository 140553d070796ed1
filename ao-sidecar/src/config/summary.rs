//! What key chains with lifetimes will do, for people.

use std::time::SystemTime;

use keymgr::chain::{KeyChain, OnExpiry};
use keymgr::lifetime::Lifetime;

use super::Config;
use super::lifetime::shown;

impl Config {
    /// One line for each key chain that has lifetimes: which key is in use at `now`, when the next
    /// one is, and when the chain runs out.
    #[must_use]
    pub fn chain_summaries(&self, now: SystemTime) -> Vec<String> {
        self.chains
            .iter()
            .map(|chain| &*chain.keys)
            .filter(|chain| chain.keys().iter().any(|key| key.send != Lifetime::ALWAYS))
            .map(|chain| summary(chain, now))
            .collect()
    }
}

fn summary(chain: &KeyChain, now: SystemTime) -> String {
    let first = state(chain, now);
    let mut text = format!("key chain {:?}: {first}", chain.name());
    let mut time = now;
    while let Some(change) = chain.at(time).next_change {
        time = change;
        let next = state(chain, time);
        if next != first {
            text.push_str(&format!(", from {} {next}", shown(time)));
            break;
        }
    }
    match chain.expires() {
        Some(end) if end > now => text.push_str(&format!("; runs out at {}", shown(end))),
        Some(end) => text.push_str(&format!("; ran out at {}", shown(end))),
        None => text.push_str("; never runs out"),
    }
    text
}

/// What peers of a chain do at an instant.
fn state(chain: &KeyChain, time: SystemTime) -> String {
    let wanted = chain.at(time);
    match (wanted.keys.first(), wanted.expired) {
        (None, _) => "blocked".to_owned(),
        (Some(mkt), Some(OnExpiry::Keep)) => format!("still sends with ID {}", mkt.send_id),
        (Some(mkt), _) => format!("sends with ID {}", mkt.send_id),
    }
}
