//! The configuration as text.

use grpc_api::operator::administration::Origin;

use super::effective::{Settings, chain_settings, key_settings, peer_settings, rollover_settings};
use super::{Chain, Config, Peer};

/// What stands in the place of a secret.
pub(super) const LEFT_OUT: &str = "# The secret is left out.\n";

const MADE_BY_API: &str = "# Made by API.\n";

impl Config {
    /// The whole configuration as TOML, defaults included. Secrets are left out: a comment stands
    /// in the place of each, and another one marks what was made by API.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (title, settings) in self.tables() {
            if !settings.is_empty() {
                table(&mut text, title, &settings);
            }
        }
        for chain in &self.chains {
            key_chain(&mut text, chain);
        }
        for peer in &self.peers {
            self::peer(&mut text, peer);
        }
        text
    }
}

fn key_chain(text: &mut String, chain: &Chain) {
    let Chain {
        keys,
        origin,
        key_origins,
    } = chain;
    mark(text, *origin);
    table(text, "[[key_chain]]", &chain_settings(keys));
    for (key, key_origin) in keys.keys().iter().zip(key_origins) {
        if key_origin != origin {
            mark(text, *key_origin);
        }
        table(text, "[[key_chain.key]]", &key_settings(key));
        text.push_str(LEFT_OUT);
    }
}

fn peer(text: &mut String, peer: &Peer) {
    mark(text, peer.origin);
    table(text, "[[peer]]", &peer_settings(peer));
    if peer.keys.rollover().is_some() {
        table(text, "[peer.rollover]", &rollover_settings(&peer.keys));
    }
}

/// Says above a table that it was made by API, if it was.
fn mark(text: &mut String, origin: Origin) {
    if origin == Origin::Api {
        text.push('\n');
        text.push_str(MADE_BY_API);
    }
}

fn table(text: &mut String, title: &str, settings: &Settings) {
    if !title.is_empty() {
        if !text.ends_with(MADE_BY_API) {
            text.push('\n');
        }
        text.push_str(title);
        text.push('\n');
    }
    for (key, value) in settings {
        text.push_str(&format!("{key} = {value}\n"));
    }
}
