//! What is in the rows of the store: JSON, and the secrets beside it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use grpc_api::operator::Lifetime;
use grpc_api::operator::administration::{KeyChainSpec, KeySpec, PeerSpec, Secret};
use jiff::Timestamp;
use keymgr::secret::{Secret as Stored, SecretKind, SecretName};
use keymgr::store::{self, Entry, Store};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{ChangesError, Kept};
use crate::config::{MadeChain, Overlay};

/// A row of the store: what is changed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// A peer.
    Peer(String),
    /// A key chain and its keys, or the keys that were added to one of the file.
    Chain(String),
}

impl Row {
    fn name(&self) -> String {
        match self {
            Self::Peer(name) => format!("peer {name}"),
            Self::Chain(name) => format!("key chain {name}"),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    rank: u64,
    object: Object,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Object {
    Peer(#[serde(with = "PeerRecord")] PeerSpec),
    KeyChain(ChainRecord),
}

/// How a peer is written: its fields have the names and the order of the API's type.
#[derive(Serialize, Deserialize)]
#[serde(remote = "PeerSpec", deny_unknown_fields)]
struct PeerRecord {
    name: String,
    address: String,
    key_chain: String,
    ports: Option<(u16, u16)>,
    local_address: Option<String>,
    interface: Option<String>,
    vrf: Option<String>,
    ttl_min: u8,
    datapath: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChainRecord {
    name: String,
    rules: Option<RulesRecord>,
    keys: Vec<KeyRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesRecord {
    tolerance: Option<Duration>,
    allow_gaps: bool,
    on_expiry: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    send_id: u8,
    recv_id: u8,
    algorithm: String,
    include_tcp_options: bool,
    /// Number of the secret beside the record.
    secret: Option<u64>,
    send: Span,
    accept: Option<Span>,
}

/// A lifetime.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    start: Option<String>,
    end: Option<String>,
}

/// A record is refused with its name and what is wrong with it.
type Refused = (String, String);

impl Kept {
    /// Takes over a row of the store.
    pub(super) fn read(&mut self, stored: store::Stored) -> Result<(), Refused> {
        let store::Stored {
            peer: name,
            meta,
            secrets,
        } = stored;
        let refused = |what: String| (name.clone(), what);
        let record: Record =
            serde_json::from_slice(&meta).map_err(|error| refused(error.to_string()))?;
        let row = match record.object {
            Object::Peer(peer) => {
                let row = Row::Peer(peer.name.clone());
                self.overlay.peers.push(peer);
                row
            }
            Object::KeyChain(chain) => {
                let chain = made_chain(chain, &secrets).map_err(refused)?;
                let row = Row::Chain(chain.name.clone());
                self.overlay.chains.push(chain);
                row
            }
        };
        if row.name() != name {
            return Err(refused("it has another name inside".to_owned()));
        }
        self.ranks.insert(name, record.rank);
        Ok(())
    }

    /// Puts objects into the order in which they were made.
    pub(super) fn order(&mut self) {
        let rank = |row: Row| self.ranks.get(&row.name()).copied().unwrap_or(u64::MAX);
        let Overlay { peers, chains } = &mut self.overlay;
        peers.sort_by_key(|peer| rank(Row::Peer(peer.name.clone())));
        chains.sort_by_key(|chain| rank(Row::Chain(chain.name.clone())));
    }

    /// Makes the row in the store be as `overlay` has it.
    pub(super) fn save(
        &mut self,
        store: &mut Store,
        row: &Row,
        overlay: &Overlay,
    ) -> Result<(), ChangesError> {
        let name = row.name();
        let next = || self.ranks.values().max().map_or(0, |last| last + 1);
        let rank = self.ranks.get(&name).copied().unwrap_or_else(next);
        let unwritable = |what: String| ChangesError::Unwritable {
            name: name.clone(),
            what,
        };
        let mut secrets = Vec::new();
        let object = match row {
            Row::Peer(name) => overlay.peer(name).cloned().map(Object::Peer),
            Row::Chain(name) => match overlay.chain(name) {
                Some(chain) => {
                    let numbers = self.numbers(store, &row.name())?;
                    let record = chain_record(chain, &numbers, &mut secrets);
                    Some(Object::KeyChain(record.map_err(unwritable)?))
                }
                None => None,
            },
        };
        let Some(object) = object else {
            store.remove(&name)?;
            self.ranks.remove(&name);
            return Ok(());
        };
        let meta = serde_json::to_vec(&Record { rank, object });
        let meta = meta.map_err(|error| unwritable(error.to_string()))?;
        store.save(&[Entry {
            peer: &name,
            meta: &meta,
            secrets: secrets
                .iter()
                .map(|(name, secret)| (*name, secret))
                .collect(),
        }])?;
        self.ranks.insert(name, rank);
        Ok(())
    }

    /// Has the row be as `overlay` has it. Other rows stay: they may have changed since it was
    /// staged.
    pub(super) fn take_over(&mut self, row: &Row, overlay: &Overlay) {
        let Overlay { peers, chains } = &mut self.overlay;
        match row {
            Row::Peer(name) => put(peers, overlay.peer(name), |peer| peer.name == *name),
            Row::Chain(name) => put(chains, overlay.chain(name), |chain| chain.name == *name),
        }
    }

    /// The secrets that a row has, with their numbers.
    fn numbers(&self, store: &mut Store, name: &str) -> Result<Vec<(u64, Stored)>, ChangesError> {
        if !self.ranks.contains_key(name) {
            return Ok(Vec::new());
        }
        let rows = store.load()?;
        let row = rows.into_iter().find(|row| row.peer == name);
        let secrets = row.map(|row| row.secrets).unwrap_or_default();
        let numbered = |(name, secret): (SecretName, Stored)| (name.number, secret);
        Ok(secrets.into_iter().map(numbered).collect())
    }
}

/// Replaces the one object that `is_it` finds: by a new one, or by nothing.
fn put<T: Clone>(objects: &mut Vec<T>, fresh: Option<&T>, is_it: impl Fn(&T) -> bool) {
    match objects.iter().position(is_it) {
        Some(at) => drop(objects.splice(at..=at, fresh.cloned())),
        None => objects.extend(fresh.cloned()),
    }
}

/// The record of a chain. Secrets that are in `known` keep their numbers, others get fresh ones.
fn chain_record(
    chain: &MadeChain,
    known: &[(u64, Stored)],
    secrets: &mut Vec<(SecretName, Stored)>,
) -> Result<ChainRecord, String> {
    let mut keys = Vec::with_capacity(chain.keys.len());
    for key in &chain.keys {
        let number = match &key.secret {
            None => None,
            Some(Secret(octets)) => {
                let taken = |number: u64| secrets.iter().any(|(name, _)| name.number == number);
                let same = |(number, secret): &&(u64, Stored)| {
                    secret.expose() == octets.as_slice() && !taken(*number)
                };
                let number = match known.iter().find(same) {
                    Some((number, _)) => *number,
                    None => getrandom::u64().map_err(|error| error.to_string())?,
                };
                let name = SecretName {
                    number,
                    kind: SecretKind::MasterKey,
                };
                secrets.push((name, Stored::new(octets)));
                Some(number)
            }
        };
        keys.push(KeyRecord {
            send_id: key.send_id,
            recv_id: key.recv_id,
            algorithm: key.algorithm.clone(),
            include_tcp_options: key.include_tcp_options,
            secret: number,
            send: span(key.send)?,
            accept: key.accept.map(span).transpose()?,
        });
    }
    Ok(ChainRecord {
        name: chain.name.clone(),
        rules: chain.rules.as_ref().map(|rules| RulesRecord {
            tolerance: rules.tolerance,
            allow_gaps: rules.allow_gaps,
            on_expiry: rules.on_expiry.clone(),
        }),
        keys,
    })
}

fn made_chain(record: ChainRecord, secrets: &[(SecretName, Stored)]) -> Result<MadeChain, String> {
    let secrets: HashMap<u64, &Stored> = secrets
        .iter()
        .map(|(name, secret)| (name.number, secret))
        .collect();
    let key = |key: KeyRecord| {
        let secret = match key.secret {
            None => None,
            Some(number) => {
                let stored = secrets.get(&number).ok_or("it lacks a secret")?;
                Some(Secret(Zeroizing::new(stored.expose().to_vec())))
            }
        };
        Ok::<_, String>(KeySpec {
            send_id: key.send_id,
            recv_id: key.recv_id,
            algorithm: key.algorithm,
            include_tcp_options: key.include_tcp_options,
            secret,
            send: lifetime(&key.send)?,
            accept: key.accept.as_ref().map(lifetime).transpose()?,
        })
    };
    Ok(MadeChain {
        rules: record.rules.map(|rules| KeyChainSpec {
            name: record.name.clone(),
            tolerance: rules.tolerance,
            allow_gaps: rules.allow_gaps,
            on_expiry: rules.on_expiry,
        }),
        name: record.name,
        keys: record.keys.into_iter().map(key).collect::<Result<_, _>>()?,
    })
}

fn span(lifetime: Lifetime) -> Result<Span, String> {
    let text = |instant: SystemTime| {
        let instant = Timestamp::try_from(instant);
        instant.map_or_else(
            |_| Err("a lifetime is beyond the calendar".to_owned()),
            |instant| Ok(instant.to_string()),
        )
    };
    Ok(Span {
        start: lifetime.start.map(text).transpose()?,
        end: lifetime.end.map(text).transpose()?,
    })
}

fn lifetime(span: &Span) -> Result<Lifetime, String> {
    let instant = |text: &String| match text.parse::<Timestamp>() {
        Ok(instant) => Ok(SystemTime::from(instant)),
        Err(_) => Err("a lifetime is none".to_owned()),
    };
    Ok(Lifetime {
        start: span.start.as_ref().map(instant).transpose()?,
        end: span.end.as_ref().map(instant).transpose()?,
    })
}
