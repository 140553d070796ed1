//! What differs between two configurations.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::SystemTime;

use grpc_api::operator::administration::{ChangeKind, ConfigChange};
use keymgr::chain::{Key, KeyChain};

use super::effect;
use super::effective::{Settings, chain_settings, key_settings, peer_settings, rollover_settings};
use super::{Config, KeySource, Peer};

/// What `fresh` would change about `running` at `now`, in the order of the configuration; removed key chains
/// and peers come last among theirs. Never tells a secret. A change with `needs_restart` cannot be
/// taken over by a running daemon.
///
/// Where something stands, and whether it is the file's or was made by API, is no difference.
#[must_use]
pub fn diff(running: &Config, fresh: &Config, now: SystemTime) -> Vec<ConfigChange> {
    let mut changes = tables(running, fresh);
    let (former, chains) = (chains_of(running), chains_of(fresh));
    let users = users(running, fresh);
    changes.extend(objects("key chain", &former, &chains, |former, fresh| {
        chain(former, fresh, &users, now)
    }));
    let (former, peers) = (peers_of(running), peers_of(fresh));
    changes.extend(objects("peer", &former, &peers, |former, fresh| {
        peer(former, fresh, now)
    }));
    changes
}

/// Whether a setting is read at the start only.
fn needs_restart(table: &str, key: &str) -> bool {
    match table {
        "[api]" => false,
        "[api.tcp]" => !["viewers", "operators", "admins"].contains(&key),
        "[log]" => key != "level",
        _ => true,
    }
}

fn tables(running: &Config, fresh: &Config) -> Vec<ConfigChange> {
    let mut changes = Vec::new();
    for ((title, former), (_, settings)) in running.tables().iter().zip(fresh.tables()) {
        if *title == "[peering]" && (former.is_empty() || settings.is_empty()) {
            // The first automatic peer comes, or the last one goes.
            continue;
        }
        let differing = differing(former, &settings);
        if title.is_empty() {
            let each = differing.into_iter();
            changes.extend(each.map(|(key, detail)| setting_changed(key, vec![detail], true)));
            continue;
        }
        let (cold, hot): (Vec<_>, Vec<_>) = differing
            .into_iter()
            .partition(|(key, _)| needs_restart(title, key));
        for (part, restart) in [(cold, true), (hot, false)] {
            if !part.is_empty() {
                let details = part.into_iter().map(|(_, detail)| detail).collect();
                changes.push(setting_changed(title, details, restart));
            }
        }
    }
    changes
}

fn setting_changed(subject: &str, details: Vec<String>, needs_restart: bool) -> ConfigChange {
    ConfigChange {
        subject: subject.to_owned(),
        kind: ChangeKind::Changed,
        details,
        effect: String::new(),
        needs_restart,
    }
}

/// Names of the settings that differ, and how they do.
fn differing(former: &Settings, settings: &Settings) -> Vec<(&'static str, String)> {
    let value = |settings: &Settings, key: &str| {
        let found = settings.iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| value.clone())
    };
    let gone = |key: &&str| value(settings, key).is_none();
    let gone = former.iter().map(|(key, _)| *key).filter(gone);
    let keys = settings.iter().map(|(key, _)| *key).chain(gone);
    keys.filter_map(|key| {
        let (one, other) = (value(former, key), value(settings, key));
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
        (one != other).then(|| {
            (
                key,
                format!("{key} {} becomes {}", text(&one), text(&other)),
            )
        })
    })
    .collect()
}

/// Objects by name, in the order of the configuration.
type Objects<'c, T> = Vec<(&'c str, &'c T)>;

fn chains_of(config: &Config) -> Objects<'_, KeyChain> {
    let chains = config.chains.iter().map(|chain| &*chain.keys);
    chains.map(|chain| (chain.name(), chain)).collect()
}

fn peers_of(config: &Config) -> Objects<'_, Peer> {
    let peers = config.peers.iter();
    peers.map(|peer| (&*peer.spec.name, peer)).collect()
}

/// What is new, gone or another one among objects. `compare` tells how the former one and the new
/// one differ, of which one may be absent, and what that does to sessions.
fn objects<T>(
    kind: &str,
    former: &Objects<'_, T>,
    fresh: &Objects<'_, T>,
    compare: impl Fn(Option<&T>, Option<&T>) -> Option<(Vec<String>, String)>,
) -> Vec<ConfigChange> {
    let before: HashMap<&str, &T> = former.iter().copied().collect();
    let after: HashMap<&str, &T> = fresh.iter().copied().collect();
    let change = |name: &str, one: Option<&T>, other: Option<&T>| {
        let (details, effect) = compare(one, other)?;
        Some(ConfigChange {
            subject: format!("{kind} {name}"),
            kind: match (one, other) {
                (None, _) => ChangeKind::Added,
                (_, None) => ChangeKind::Removed,
                (Some(_), Some(_)) => ChangeKind::Changed,
            },
            details,
            effect,
            needs_restart: false,
        })
    };
    let there = fresh.iter();
    let there =
        there.filter_map(|(name, object)| change(name, before.get(name).copied(), Some(object)));
    let gone = former.iter().filter(|(name, _)| !after.contains_key(name));
    let gone = gone.filter_map(|(name, object)| change(name, Some(object), None));
    there.chain(gone).collect()
}

/// The peers that have each key chain before and after.
fn users<'c>(running: &'c Config, fresh: &'c Config) -> HashMap<&'c str, Vec<&'c str>> {
    let name = |peer: &'c Peer| Some((&*peer.spec.name, peer.keys.chain()?.name()));
    let before: HashMap<&str, &str> = running.peers.iter().filter_map(name).collect();
    let mut users: HashMap<&str, Vec<&str>> = HashMap::new();
    for (peer, chain) in fresh.peers.iter().filter_map(name) {
        if before.get(peer) == Some(&chain) {
            users.entry(chain).or_default().push(peer);
        }
    }
    users
}

fn chain(
    former: Option<&KeyChain>,
    fresh: Option<&KeyChain>,
    users: &HashMap<&str, Vec<&str>>,
    now: SystemTime,
) -> Option<(Vec<String>, String)> {
    let (Some(former), Some(fresh)) = (former, fresh) else {
        let there = former.or(fresh)?;
        let keys = there.keys().iter().map(id_text);
        return Some((keys.collect(), String::new()));
    };
    let rules = differing(&chain_settings(former), &chain_settings(fresh));
    let mut details: Vec<String> = rules.into_iter().map(|(_, detail)| detail).collect();
    details.extend(keys(former.keys(), fresh.keys()));
    (!details.is_empty()).then(|| {
        let peers = users.get(fresh.name()).map_or(&[][..], Vec::as_slice);
        (details, effect::of_chain(former, fresh, peers, now))
    })
}

/// How the keys of a chain differ. Those with the same IDs are compared in their order.
fn keys(former: &[Key], fresh: &[Key]) -> Vec<String> {
    let mut by_id: BTreeMap<(u8, u8), VecDeque<&Key>> = BTreeMap::new();
    for key in former {
        by_id.entry(ids(key)).or_default().push_back(key);
    }
    let mut details = Vec::new();
    let mut same_keys = true;
    for key in fresh {
        let before = by_id.get_mut(&ids(key)).and_then(VecDeque::pop_front);
        let Some(before) = before else {
            same_keys = false;
            details.push(format!("{} is new", id_text(key)));
            continue;
        };
        if before.mkt.master_key != key.mkt.master_key {
            details.push(format!("{} has another secret", id_text(key)));
        }
        let settings = differing(&key_settings(before), &key_settings(key));
        let told = settings.into_iter();
        details.extend(told.map(|(_, detail)| format!("{}: {detail}", id_text(key))));
    }
    for key in by_id.values().flatten() {
        same_keys = false;
        details.push(format!("{} is gone", id_text(key)));
    }
    if same_keys && !former.iter().map(ids).eq(fresh.iter().map(ids)) {
        details.push("its keys have another order".to_owned());
    }
    details
}

fn ids(key: &Key) -> (u8, u8) {
    (key.mkt.send_id, key.mkt.recv_id)
}

fn id_text(key: &Key) -> String {
    format!("key {}/{}", key.mkt.send_id, key.mkt.recv_id)
}

fn peer(
    former: Option<&Peer>,
    fresh: Option<&Peer>,
    now: SystemTime,
) -> Option<(Vec<String>, String)> {
    let (Some(former), Some(fresh)) = (former, fresh) else {
        let there = former.or(fresh)?;
        let effect = match fresh {
            Some(_) => "sessions with it are refused unless they are signed",
            None => "its sessions are closed, and not protected any more",
        };
        let settings = peer_settings(there).into_iter();
        let address = settings.filter(|(key, _)| ["address", "key_chain"].contains(key));
        let endpoint = rollover_settings(&there.keys).into_iter().take(1);
        let told = address.chain(endpoint);
        let details = told.map(|(key, value)| format!("{key} {value}"));
        return Some((details.collect(), effect.to_owned()));
    };
    let settings = differing(&peer_settings(former), &peer_settings(fresh));
    let mut agreed = differing(
        &rollover_settings(&former.keys),
        &rollover_settings(&fresh.keys),
    );
    let effect = effect_of(former, fresh, &settings, &agreed, now);
    if former.keys.rollover().is_some() != fresh.keys.rollover().is_some() {
        // The endpoint says enough of the rest.
        agreed.truncate(1);
    }
    let agreed = agreed.into_iter();
    let agreed = agreed.map(|(_, detail)| format!("rollover: {detail}"));
    let details: Vec<String> = settings.into_iter().map(|(_, detail)| detail).collect();
    let details = [details, agreed.collect()].concat();
    (!details.is_empty()).then_some((details, effect))
}

/// What a change of a peer does to its sessions.
fn effect_of(
    former: &Peer,
    fresh: &Peer,
    settings: &[(&str, String)],
    agreed: &[(&str, String)],
    now: SystemTime,
) -> String {
    let differs = |wanted: &[&str], among: &[(&str, String)]| {
        among.iter().any(|(key, _)| wanted.contains(key))
    };
    let closing = ["address", "local_address", "interface", "vrf"];
    let (ports, fresh_ports) = (&former.spec.ports, &fresh.spec.ports);
    let covered = fresh_ports.contains(ports.start()) && fresh_ports.contains(ports.end());
    let effect = if differs(&closing, settings) {
        "its sessions are closed"
    } else if !covered {
        "sessions with ports that it has no more are closed, and not protected any more"
    } else if differs(&["datapath"], settings) {
        "its sessions are closed if another backend serves it from then on"
    } else {
        match (&former.keys, &fresh.keys) {
            (KeySource::Static(_), KeySource::Rollover(_)) => {
                "it is blocked until keys are agreed with its sidecar"
            }
            (KeySource::Rollover(_), KeySource::Static(_)) => {
                "its agreed keys are destroyed: the far end needs the key chain, too"
            }
            _ if differs(&["fingerprint", "name"], agreed) => {
                "keys that were agreed with another far end are not used any more"
            }
            (KeySource::Static(one), KeySource::Static(other))
                if differs(&["key_chain"], settings) =>
            {
                return effect::of_chain(one, other, &[&fresh.spec.name], now);
            }
            _ => "",
        }
    };
    effect.to_owned()
}
