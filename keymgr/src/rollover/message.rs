//! What two sidecars tell each other.
//!
//! A message is the sender's whole view, not a command: stages only ever advance, so a message
//! that is lost, repeated or overtaken by a later one does no harm.

use std::time::Duration;

use ao_engine::crypto::Algorithm;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// Most generations a message may tell of.
pub const MAX_TOLD: usize = 64;
/// Octets of each side's contribution to a master key.
pub const CONTRIBUTION_LEN: usize = 32;

/// Names a store. A sidecar that has lost its store has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance(pub [u8; 16]);

/// How far a generation is at one end. It only ever advances, in this order; `Revoked` may be
/// reached, and left, without `Installed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its master key is known.
    Agreed,
    /// Every socket of the peer has it.
    Installed,
    /// It is given up before its selection: the sender selects it only if the receiver has done
    /// so already. When both ends say this, it is deleted.
    Revoked,
    /// It is advertised as RNextKeyID, and new sessions begin with it.
    Selected,
    /// It is in use in both directions on every session.
    Proven,
    /// A later one is proven; late segments still verify with it.
    Retiring,
    /// It is gone, and so is its master key.
    Deleted,
}

impl Stage {
    /// Whether it was selected and is not gone: the other end may follow.
    #[must_use]
    pub fn in_use(self) -> bool {
        matches!(self, Self::Selected | Self::Proven | Self::Retiring)
    }
}

/// The sender's word on one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its number; the first one is 1.
    pub number: u64,
    /// SendID and RecvID of its MKT, at both ends.
    pub id: u8,
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// How far it is at the sender.
    pub stage: Stage,
    /// Shows that the sender derived the same master key, and tells nothing about it.
    pub confirmation: [u8; 16],
    /// Segments that the sender has verified with it.
    pub segments_verified: u64,
}

/// Set of KeyIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IdSet(pub [u8; 32]);

impl IdSet {
    /// Whether `id` is in the set.
    #[must_use]
    pub fn contains(&self, id: u8) -> bool {
        self.0[usize::from(id / 8)] & (1 << (id % 8)) != 0
    }

    /// Puts `id` into the set.
    pub fn insert(&mut self, id: u8) {
        self.0[usize::from(id / 8)] |= 1 << (id % 8);
    }
}

/// Opens the agreement on the next generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The generation: one above all that either end knows.
    pub number: u64,
    /// The sender's contribution to the master key, [`CONTRIBUTION_LEN`] octets.
    pub contribution: Secret,
    /// Algorithms the sender accepts, the preferred one first.
    pub algorithms: Vec<Algorithm>,
    /// KeyIDs that no segment the sender may still see has.
    pub free_ids: IdSet,
}

/// Completes the agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The generation.
    pub number: u64,
    /// SHA-256 of the offer's contribution: tells which offer is answered.
    pub offer: [u8; 32],
    /// The answering side's contribution, [`CONTRIBUTION_LEN`] octets.
    pub contribution: Secret,
    /// The chosen algorithm.
    pub algorithm: Algorithm,
    /// The chosen KeyID.
    pub id: u8,
}

/// Why an offer was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// None of the offered algorithms is accepted here.
    NoCommonAlgorithm,
    /// No KeyID is free at both ends.
    NoFreeId,
    /// It is not the next number, by the view that comes along.
    NotNext,
    /// The receiver's own offer takes precedence, and comes along.
    OfferCrossed,
    /// As many generations as wanted are agreed already.
    Enough,
}

/// One side's whole view: the request and the response of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's store.
    pub instance: Instance,
    /// The receiver's store, as the sender knows it.
    pub yours: Option<Instance>,
    /// Generations, by ascending number; [`MAX_TOLD`] at most.
    pub generations: Vec<Told>,
    /// An offer that the receiver has not answered yet.
    pub offer: Option<Offer>,
    /// The answer to the receiver's offer.
    pub answer: Option<Answer>,
    /// Why there is no answer.
    pub refusal: Option<Refusal>,
    /// How long the sender keeps the former key after the proof.
    pub overlap: Duration,
}
