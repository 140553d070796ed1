//! What a change would make of what is there.

use grpc_api::operator::ControlError;
use grpc_api::operator::administration::{Change, KeyChainSpec, KeySpec, Origin, PeerSpec};

use super::MOST_OBJECTS;
use super::record::Row;
use crate::config::{Config, MadeChain, Overlay, checked_name};

/// A change that was checked against what is there, and is not kept yet.
#[derive(Clone, Debug)]
pub struct Staged {
    pub(super) row: Row,
    pub(super) overlay: Overlay,
    former: Overlay,
}

impl Staged {
    /// What there would be.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// The change that takes this one back.
    #[must_use]
    pub fn undo(&self) -> Self {
        Self {
            row: self.row.clone(),
            overlay: self.former.clone(),
            former: self.overlay.clone(),
        }
    }
}

/// What `former` would be after `change`, beside the file of `running`.
pub(super) fn stage(
    former: &Overlay,
    change: Change,
    running: &Config,
) -> Result<Staged, ControlError> {
    let mut stage = Stage {
        overlay: former.clone(),
        running,
    };
    let row = match change {
        Change::PutPeer { peer, replace, .. } if replace => stage.replace_peer(peer),
        Change::PutPeer { peer, .. } => stage.create_peer(peer),
        Change::DeletePeer { name } => stage.delete_peer(name),
        Change::CreateKeyChain { chain, keys } => stage.create_chain(chain, keys),
        Change::UpdateKeyChain { chain } => stage.update_chain(chain),
        Change::DeleteKeyChain { name } => stage.delete_chain(name),
        Change::PutKey {
            chain,
            key,
            replace,
        } if replace => stage.replace_key(chain, key),
        Change::PutKey { chain, key, .. } => stage.create_key(chain, key),
        Change::DeleteKey {
            chain,
            send_id,
            recv_id,
        } => stage.delete_key(chain, send_id, recv_id),
    }?;
    let objects = stage.overlay.len();
    if objects > MOST_OBJECTS && objects > former.len() {
        return Err(ControlError::Refused(format!(
            "{MOST_OBJECTS} peers, key chains and keys were made by API, and there cannot be more: \
             delete some, or write them into the configuration file"
        )));
    }
    Ok(Staged {
        row,
        overlay: stage.overlay,
        former: former.clone(),
    })
}

struct Stage<'c> {
    overlay: Overlay,
    running: &'c Config,
}

impl Stage<'_> {
    fn create_peer(&mut self, peer: PeerSpec) -> Result<Row, ControlError> {
        check_name(&peer.name)?;
        if self.overlay.peer(&peer.name).is_some() {
            return Err(exists(&peer_named(&peer.name)));
        }
        if let Some(line) = self.peer_in_file(&peer.name) {
            return Err(self.exists_in_file(&peer_named(&peer.name), line));
        }
        let row = Row::Peer(peer.name.clone());
        self.overlay.peers.push(peer);
        Ok(row)
    }

    fn replace_peer(&mut self, peer: PeerSpec) -> Result<Row, ControlError> {
        let name = peer.name.clone();
        match self.overlay.peers.iter_mut().find(|one| one.name == name) {
            Some(former) => *former = peer,
            None => return Err(self.not_made(&peer_named(&name), self.peer_in_file(&name))),
        }
        Ok(Row::Peer(name))
    }

    fn delete_peer(&mut self, name: String) -> Result<Row, ControlError> {
        if self.overlay.peer(&name).is_none() {
            return Err(self.not_made(&peer_named(&name), self.peer_in_file(&name)));
        }
        self.overlay.peers.retain(|peer| peer.name != name);
        Ok(Row::Peer(name))
    }

    fn create_chain(
        &mut self,
        rules: KeyChainSpec,
        keys: Vec<KeySpec>,
    ) -> Result<Row, ControlError> {
        let name = rules.name.clone();
        check_name(&name)?;
        if let Some(line) = self.chain_in_file(&name) {
            return Err(self.exists_in_file(&chain_named(&name), line));
        }
        if self.overlay.chain(&name).is_some() {
            return Err(exists(&chain_named(&name)));
        }
        if keys.is_empty() {
            return Err(ControlError::Invalid(format!(
                "{} has no keys: give it at least one",
                chain_named(&name)
            )));
        }
        self.overlay.chains.push(MadeChain {
            name: name.clone(),
            rules: Some(rules),
            keys: Vec::new(),
        });
        for key in keys {
            let ids = (key.send_id, key.recv_id);
            self.add_key(&name, key).map_err(|error| match error {
                // What exists is in the same request.
                ControlError::Exists(_) => ControlError::Invalid(format!(
                    "{} shares an ID with a key before it: choose other IDs",
                    key_named(&name, ids.0, ids.1)
                )),
                other => other,
            })?;
        }
        Ok(Row::Chain(name))
    }

    fn update_chain(&mut self, rules: KeyChainSpec) -> Result<Row, ControlError> {
        let name = rules.name.clone();
        match self.overlay.chain_mut(&name) {
            Some(MadeChain {
                rules: Some(former),
                ..
            }) => *former = rules,
            _ => return Err(self.not_made(&chain_named(&name), self.chain_in_file(&name))),
        }
        Ok(Row::Chain(name))
    }

    fn delete_chain(&mut self, name: String) -> Result<Row, ControlError> {
        let made = self.overlay.chain(&name);
        if made.is_none_or(|chain| chain.rules.is_none()) {
            return Err(self.not_made(&chain_named(&name), self.chain_in_file(&name)));
        }
        let has_it = |peer: &&crate::config::Peer| {
            let chain = peer.keys.chain();
            chain.is_some_and(|chain| chain.name() == name)
        };
        let peers = self.running.peers.iter().filter(has_it);
        let peers: Vec<String> = peers.map(|peer| peer_named(&peer.spec.name)).collect();
        if !peers.is_empty() {
            return Err(ControlError::Refused(format!(
                "{} is in use by {}: give them another one first",
                chain_named(&name),
                in_few_words(&peers)
            )));
        }
        self.overlay.chains.retain(|chain| chain.name != name);
        Ok(Row::Chain(name))
    }

    fn create_key(&mut self, chain: String, key: KeySpec) -> Result<Row, ControlError> {
        if self.overlay.chain(&chain).is_none() {
            if self.chain_in_file(&chain).is_none() {
                return Err(not_found(&chain_named(&chain)));
            }
            self.overlay.chains.push(MadeChain {
                name: chain.clone(),
                rules: None,
                keys: Vec::new(),
            });
        }
        self.add_key(&chain, key)?;
        Ok(Row::Chain(chain))
    }

    /// Adds a key to a chain that is there.
    fn add_key(&mut self, name: &str, key: KeySpec) -> Result<(), ControlError> {
        let subject = key_named(name, key.send_id, key.recv_id);
        if key.secret.is_none() {
            let text = format!("{subject} has no secret: give it one");
            return Err(ControlError::Invalid(text));
        }
        let Some(chain) = self.overlay.chain_mut(name) else {
            return Err(not_found(&chain_named(name)));
        };
        let clashes =
            |other: &&KeySpec| other.send_id == key.send_id || other.recv_id == key.recv_id;
        if let Some(other) = chain.keys.iter().find(clashes) {
            let other = key_named(name, other.send_id, other.recv_id);
            return Err(ControlError::Exists(format!(
                "{other} was made by API already, and {subject} would share an ID with it: choose \
                 other IDs, or delete that one"
            )));
        }
        chain.keys.push(key);
        Ok(())
    }

    fn replace_key(&mut self, chain: String, key: KeySpec) -> Result<Row, ControlError> {
        let (send_id, recv_id) = (key.send_id, key.recv_id);
        let former = self.overlay.chain_mut(&chain).and_then(|chain| {
            let mut keys = chain.keys.iter_mut();
            keys.find(|one| (one.send_id, one.recv_id) == (send_id, recv_id))
        });
        let Some(former) = former else {
            return Err(self.key_not_made(&chain, send_id, recv_id));
        };
        let secret = key.secret.clone().or_else(|| former.secret.take());
        *former = KeySpec { secret, ..key };
        Ok(Row::Chain(chain))
    }

    fn delete_key(&mut self, name: String, send_id: u8, recv_id: u8) -> Result<Row, ControlError> {
        let is_it = |key: &KeySpec| (key.send_id, key.recv_id) == (send_id, recv_id);
        match self.overlay.chain_mut(&name) {
            Some(chain) if chain.keys.iter().any(is_it) => {
                chain.keys.retain(|key| !is_it(key));
                if chain.keys.is_empty() && chain.rules.is_some() {
                    return Err(ControlError::Refused(format!(
                        "{} is the last one: delete the key chain, or add another key first",
                        key_named(&name, send_id, recv_id)
                    )));
                }
            }
            _ => return Err(self.key_not_made(&name, send_id, recv_id)),
        }
        let nothing = |chain: &MadeChain| chain.rules.is_none() && chain.keys.is_empty();
        self.overlay.chains.retain(|chain| !nothing(chain));
        Ok(Row::Chain(name))
    }

    /// Why a key that was not made by API can be neither changed nor deleted.
    fn key_not_made(&self, name: &str, send_id: u8, recv_id: u8) -> ControlError {
        let subject = key_named(name, send_id, recv_id);
        let chain = self
            .running
            .chains
            .iter()
            .find(|chain| chain.keys.name() == name);
        let Some(chain) = chain else {
            return not_found(&chain_named(name));
        };
        let is_it =
            |key: &keymgr::chain::Key| (key.mkt.send_id, key.mkt.recv_id) == (send_id, recv_id);
        let position = chain.keys.keys().iter().position(is_it);
        let origin = position.and_then(|position| chain.key_origins.get(position));
        self.not_made(&subject, line_of(origin.copied()))
    }

    /// Why something that was not made by API can be neither changed nor deleted.
    fn not_made(&self, subject: &str, line: Option<u32>) -> ControlError {
        match line {
            Some(line) => ControlError::Refused(format!(
                "{subject} is in {}:{line}: change it there, and reload",
                self.running.file().display()
            )),
            None => not_found(subject),
        }
    }

    fn exists_in_file(&self, subject: &str, line: u32) -> ControlError {
        ControlError::Exists(format!(
            "{subject} is in {}:{line} already, so it cannot be made by API: change it there, or \
             choose another name",
            self.running.file().display()
        ))
    }

    /// The line of the file that a peer is in.
    fn peer_in_file(&self, name: &str) -> Option<u32> {
        let mut peers = self.running.peers.iter().chain(&self.running.left_out);
        let peer = peers.find(|peer| *peer.spec.name == *name);
        line_of(peer.map(|peer| peer.origin))
    }

    /// The line of the file that a key chain is in.
    fn chain_in_file(&self, name: &str) -> Option<u32> {
        let mut chains = self.running.chains.iter();
        let chain = chains.find(|chain| chain.keys.name() == name);
        line_of(chain.map(|chain| chain.origin))
    }
}

fn line_of(origin: Option<Origin>) -> Option<u32> {
    match origin? {
        Origin::File(line) => Some(line),
        Origin::Api => None,
    }
}

fn check_name(name: &str) -> Result<(), ControlError> {
    match checked_name(name) {
        Ok(_) => Ok(()),
        Err(text) => Err(ControlError::Invalid(text)),
    }
}

fn peer_named(name: &str) -> String {
    format!("peer {name:?}")
}

fn chain_named(name: &str) -> String {
    format!("key chain {name:?}")
}

fn key_named(chain: &str, send_id: u8, recv_id: u8) -> String {
    format!("key {send_id}/{recv_id} of key chain {chain:?}")
}

fn exists(subject: &str) -> ControlError {
    ControlError::Exists(format!(
        "{subject} was made by API already: change that one, or choose another name"
    ))
}

fn not_found(subject: &str) -> ControlError {
    ControlError::NotFound(format!("there is no {subject}"))
}

/// The first few, and how many others there are.
fn in_few_words(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => {
            let first = names.get(..SHOWN).unwrap_or(names);
            format!("{} and {more} more", first.join(", "))
        }
    }
}
