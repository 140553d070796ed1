//! What was made by API, as the readers of the configuration see it.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use datapath::settings::Choice;
use grpc_api::operator::Lifetime;
use grpc_api::operator::administration::{KeyChainSpec, KeySpec, PeerSpec, Secret};
use jiff::Timestamp;
use toml::de::DeTable;

use super::MADE;
use super::effective::quoted;
use super::peer::{PEER, covered};
use super::problem::Problems;
use super::section::Section;

/// Peers, key chains and keys that were made by API, in the order in which they were made.
///
/// Secrets are in it, and are wiped with it.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    pub(crate) peers: Vec<PeerSpec>,
    pub(crate) chains: Vec<MadeChain>,
}

/// A key chain made by API, or keys that were added to one of the file.
#[derive(Clone, Debug)]
pub(crate) struct MadeChain {
    /// Its name.
    pub(crate) name: String,
    /// Its rules; nothing when the chain is the file's.
    pub(crate) rules: Option<KeyChainSpec>,
    /// Its keys, each with its secret.
    pub(crate) keys: Vec<KeySpec>,
}

/// Tolerances from here on are for ever: the longest duration that the API can tell.
pub(crate) const FOREVER: Duration = Duration::from_secs(315_576_000_000);

impl Overlay {
    /// Whether nothing was made by API.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.chains.is_empty()
    }

    /// What it has, such as `peer as64502`, `key chain ix`, `key 1/1 of key chain transit`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let peers = self.peers.iter().map(|peer| format!("peer {}", peer.name));
        let chains = self.chains.iter().flat_map(|chain| {
            let made = chain.rules.iter();
            let made = made.map(|rules| format!("key chain {}", rules.name));
            made.chain(chain.keys.iter().map(|key| key_name(&chain.name, key)))
        });
        peers.chain(chains).collect()
    }

    /// How many peers, key chains and keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let chains = self.chains.iter();
        let in_chains = chains.map(|chain| usize::from(chain.rules.is_some()) + chain.keys.len());
        self.peers.len() + in_chains.sum::<usize>()
    }

    pub(crate) fn peer(&self, name: &str) -> Option<&PeerSpec> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    pub(crate) fn chain(&self, name: &str) -> Option<&MadeChain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    pub(crate) fn chain_mut(&mut self, name: &str) -> Option<&mut MadeChain> {
        self.chains.iter_mut().find(|chain| chain.name == name)
    }

    /// What can be left out by itself, what others are in need of first: key chains with their
    /// keys, keys beside the file's chains, peers.
    pub(crate) fn subjects(&self) -> Vec<String> {
        let of_chain = |chain: &MadeChain| match &chain.rules {
            Some(rules) => vec![chain_subject(&rules.name)],
            None => {
                let keys = chain.keys.iter();
                keys.map(|key| key_subject(&chain.name, key)).collect()
            }
        };
        let chains = self.chains.iter().flat_map(of_chain);
        let peers = self.peers.iter().map(|peer| peer_subject(&peer.name));
        chains.chain(peers).collect()
    }

    /// The same without some subjects. A key chain goes with all its keys.
    pub(crate) fn without(&self, subjects: &HashSet<String>) -> Self {
        let stays = |subject: String| !subjects.contains(&subject);
        let chain = |chain: &MadeChain| MadeChain {
            keys: chain
                .keys
                .iter()
                .filter(|key| stays(key_subject(&chain.name, key)))
                .cloned()
                .collect(),
            ..chain.clone()
        };
        let chains = self.chains.iter();
        let chains =
            chains.filter(|chain| chain.rules.is_none() || stays(chain_subject(&chain.name)));
        let peers = self
            .peers
            .iter()
            .filter(|peer| stays(peer_subject(&peer.name)));
        Self {
            peers: peers.cloned().collect(),
            chains: chains
                .map(chain)
                .filter(|chain| chain.rules.is_some() || !chain.keys.is_empty())
                .collect(),
        }
    }

    /// What its peers cover, without keys.
    pub(crate) fn covered(&self) -> Vec<datapath::settings::PeerSpec> {
        let document = self.document();
        let problems = Problems::of_api(&document);
        let Ok(table) = DeTable::parse(&document.text) else {
            return Vec::new();
        };
        let mut made = Section::new(&MADE, table.into_inner(), 0..0, &problems);
        let sections = made.tables("peer", &PEER);
        let peer = |section: &Section<'_, '_>| covered(section, Choice::Auto);
        sections.iter().filter_map(peer).collect()
    }

    /// The same as a text that is read like the file. Its secrets are beside it.
    pub(super) fn document(&self) -> Document<'_> {
        let mut document = Document::default();
        for chain in &self.chains {
            if let Some(rules) = &chain.rules {
                document.chain(rules);
            }
            for key in &chain.keys {
                document.key(&chain.name, key);
            }
        }
        for peer in &self.peers {
            document.peer(peer);
        }
        document
    }
}

fn key_name(chain: &str, key: &KeySpec) -> String {
    format!("key {}/{} of key chain {chain}", key.send_id, key.recv_id)
}

fn chain_subject(name: &str) -> String {
    format!("key chain {name:?}")
}

fn key_subject(chain: &str, key: &KeySpec) -> String {
    format!("key {}/{} of key chain {chain:?}", key.send_id, key.recv_id)
}

fn peer_subject(name: &str) -> String {
    format!("peer {name:?}")
}

/// What was made by API, in the language of the file. Other than there, keys stand beside their
/// chains and name them (`[[key]]`), and `secret` is a position in `secrets`.
#[derive(Debug, Default)]
pub(super) struct Document<'o> {
    pub(super) text: String,
    /// What begins where, in the order of the text.
    subjects: Vec<(usize, String)>,
    /// Nothing for a key without a secret.
    secrets: Vec<Option<&'o Secret>>,
}

impl<'o> Document<'o> {
    /// What the text is about at an offset.
    pub(super) fn subject(&self, offset: usize) -> &str {
        let after = self.subjects.partition_point(|(start, _)| *start <= offset);
        let subject = after.checked_sub(1).and_then(|at| self.subjects.get(at));
        subject.map_or("", |(_, subject)| subject)
    }

    /// The secret at a position.
    pub(super) fn secret(&self, position: u32) -> Option<&'o Secret> {
        let position = usize::try_from(position).ok()?;
        *self.secrets.get(position)?
    }

    fn begin(&mut self, title: &str, subject: String) {
        self.subjects.push((self.text.len(), subject));
        self.text.push_str(title);
        self.text.push('\n');
    }

    fn set(&mut self, key: &str, value: impl std::fmt::Display) {
        self.text.push_str(&format!("{key} = {value}\n"));
    }

    fn set_text(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.set(key, quoted(text));
        }
    }

    fn chain(&mut self, rules: &KeyChainSpec) {
        self.begin("[[key_chain]]", chain_subject(&rules.name));
        self.set("name", quoted(&rules.name));
        let tolerance = rules.tolerance.unwrap_or_default();
        let tolerance = if tolerance < FOREVER {
            humantime::format_duration(tolerance).to_string()
        } else {
            "forever".to_owned()
        };
        self.set("accept_tolerance", quoted(&tolerance));
        self.set("allow_gaps", rules.allow_gaps);
        self.set_text("on_expiry", rules.on_expiry.as_deref());
    }

    fn key(&mut self, chain: &str, key: &'o KeySpec) {
        let KeySpec {
            send_id,
            recv_id,
            algorithm,
            include_tcp_options,
            secret,
            send,
            accept,
        } = key;
        self.begin("[[key]]", key_subject(chain, key));
        self.set("key_chain", quoted(chain));
        self.set("send_id", send_id);
        self.set("recv_id", recv_id);
        self.set("algorithm", quoted(algorithm));
        self.set("include_tcp_options", include_tcp_options);
        self.set("secret", self.secrets.len());
        self.secrets.push(secret.as_ref());
        self.set("send_lifetime", lifetime_text(*send));
        if let Some(accept) = accept {
            self.set("accept_lifetime", lifetime_text(*accept));
        }
    }

    fn peer(&mut self, peer: &PeerSpec) {
        let PeerSpec {
            name,
            address,
            key_chain,
            ports,
            local_address,
            interface,
            vrf,
            ttl_min,
            datapath,
        } = peer;
        self.begin("[[peer]]", peer_subject(name));
        self.set("name", quoted(name));
        self.set("address", quoted(address));
        self.set("key_chain", quoted(key_chain));
        if let Some((first, last)) = ports {
            self.set("ports", quoted(&format!("{first}-{last}")));
        }
        self.set_text("local_address", local_address.as_deref());
        self.set_text("interface", interface.as_deref());
        self.set_text("vrf", vrf.as_deref());
        self.set("ttl_min", ttl_min);
        self.set_text("datapath", datapath.as_deref());
    }
}

/// A lifetime as it is written.
pub(super) fn lifetime_text(lifetime: Lifetime) -> String {
    let bounds = [("start", lifetime.start), ("end", lifetime.end)];
    let bounds: Vec<String> = bounds
        .into_iter()
        .filter_map(|(name, bound)| Some(format!("{name} = {}", quoted(&instant_text(bound?)))))
        .collect();
    if bounds.is_empty() {
        quoted("always")
    } else {
        format!("{{ {} }}", bounds.join(", "))
    }
}

/// Beyond the calendar it is a text that is refused as no date-time.
fn instant_text(instant: SystemTime) -> String {
    Timestamp::try_from(instant).map_or_else(
        |_| "beyond the calendar".to_owned(),
        |instant| instant.to_string(),
    )
}
