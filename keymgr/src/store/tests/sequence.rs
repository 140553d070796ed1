//! Saves as two peers' rollovers make them.

use super::*;
use crate::secret::SecretKind;

/// All states of the store, from empty on. Each differs from the one before by one save.
pub(super) fn saved_states() -> Vec<Vec<Stored>> {
    let mut states = vec![Vec::new()];
    let mut peers = [Peer::new("as64501"), Peer::new("as64502")];
    let mut push = |peers: &[Peer]| {
        let present = peers.iter().filter(|peer| !peer.stages.is_empty());
        states.push(present.map(Peer::stored).collect());
    };
    for round in 1..=5 {
        for peer in 0..2 {
            // Own contribution, before it is offered; then the agreed key; then its installation.
            peers[peer].add(round, SecretKind::Contribution);
            push(&peers);
            peers[peer].add(round, SecretKind::MasterKey);
            push(&peers);
            peers[peer].stages.push("installed");
            push(&peers);
        }
        if round > 2 {
            // Both at once.
            peers.iter_mut().for_each(|peer| peer.drop_below(round - 1));
            push(&peers);
        } else {
            peers
                .iter_mut()
                .for_each(|peer| peer.stages.push("selected"));
            push(&peers);
        }
    }
    peers[0].drop_below(6);
    push(&peers);
    states
}

struct Peer {
    name: &'static str,
    stages: Vec<&'static str>,
    secrets: Vec<(SecretName, Secret)>,
}

impl Peer {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            stages: Vec::new(),
            secrets: Vec::new(),
        }
    }

    fn add(&mut self, number: u64, kind: SecretKind) {
        let octet = u8::try_from(number).unwrap() * 8 + kind as u8;
        let secret = Secret::new(&[self.name.as_bytes(), &[octet; 20]].concat());
        self.stages.push("agreed");
        self.secrets.push((SecretName { number, kind }, secret));
    }

    fn drop_below(&mut self, number: u64) {
        self.stages.push("deleted");
        self.secrets.retain(|(name, _)| name.number >= number);
    }

    fn stored(&self) -> Stored {
        Stored {
            peer: self.name.to_owned(),
            meta: self.stages.join(" ").into_bytes(),
            secrets: self.secrets.clone(),
        }
    }
}

/// Saves the peers that differ.
pub(super) fn save(
    store: &mut Store,
    before: &[Stored],
    after: &[Stored],
) -> Result<(), StoreError> {
    let differing = after.iter().filter(|peer| !before.contains(peer));
    store.save(&differing.map(entry_of).collect::<Vec<_>>())
}

pub(super) fn entry_of(stored: &Stored) -> Entry<'_> {
    Entry {
        peer: &stored.peer,
        meta: &stored.meta,
        secrets: stored
            .secrets
            .iter()
            .map(|(name, secret)| (*name, secret))
            .collect(),
    }
}
