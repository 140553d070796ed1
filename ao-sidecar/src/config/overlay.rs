//! What was made by API, as the readers of the configuration see it.

use grpc_api::operator::administration::{KeyChainSpec, KeySpec, PeerSpec};

/// Peers, key chains and keys that were made by API, in the order in which they were made.
///
/// Secrets are in it, and are wiped with it.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    pub(crate) peers: Vec<PeerSpec>,
    pub(crate) chains: Vec<OverlayChain>,
}

/// A key chain made by API, or keys that were added to one of the file.
#[derive(Clone, Debug)]
pub(crate) struct OverlayChain {
    /// Its name.
    pub(crate) name: String,
    /// Its rules; nothing when the chain is the file's.
    pub(crate) rules: Option<KeyChainSpec>,
    /// Its keys, each with its secret.
    pub(crate) keys: Vec<KeySpec>,
}

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
            let made = chain
                .rules
                .as_ref()
                .map(|_| format!("key chain {}", chain.name));
            let keys = chain.keys.iter().map(|key| {
                format!(
                    "key {}/{} of key chain {}",
                    key.send_id, key.recv_id, chain.name
                )
            });
            made.into_iter().chain(keys)
        });
        peers.chain(chains).collect()
    }
}
