//! What outlives the process.

use std::sync::Arc;

use ao_engine::crypto::Algorithm;
use ao_engine::policy::Mkt;
use serde::{Deserialize, Serialize};

use super::message::{CONTRIBUTION_LEN, Instance, Stage};
use super::parameters::Now;
use super::step::Label;
use crate::secret::{Secret, SecretKind, SecretName};

/// Version of the serialized form.
const FORMAT: u32 = 1;

/// Everything of one peer that must be on disk before the actions are carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// Whom the keys were agreed with: the fingerprint or name that the peer had to show.
    pub(super) far_end: Option<String>,
    /// The peer's store.
    pub(super) peer: Option<Instance>,
    /// The highest number agreed or offered here. No lower one is agreed or offered any more.
    pub(super) last_number: u64,
    /// The KeyID chosen last; the search for a free one begins behind it.
    pub(super) last_id: Option<u8>,
    /// By ascending number.
    pub(super) generations: Vec<Generation>,
    /// Offered to the peer, not answered yet.
    pub(super) offer: Option<OwnOffer>,
    /// The highest generation selected here: decided, and carried out once its stage says so.
    pub(super) active: Option<u64>,
    /// When that was decided, in seconds of the UNIX epoch.
    pub(super) selected_at: u64,
    /// The operator's start that waits for a generation to be ready.
    pub(super) pending: Option<Pending>,
    /// Generations up to this one may be known to others: they go without overlap.
    pub(super) compromised: u64,
}

/// An operator's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// Only a generation above this one will do.
    pub(super) above: u64,
    pub(super) compromised: bool,
}

/// An offer that waits for the peer's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnOffer {
    pub(super) number: u64,
    /// As sent: the derivation binds them.
    #[serde(with = "algorithm_names")]
    pub(super) algorithms: Vec<Algorithm>,
    /// When it was made, in seconds of the UNIX epoch.
    pub(super) since: u64,
    #[serde(skip)]
    pub(super) contribution: Option<Arc<Secret>>,
}

/// One generation at this end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) id: u8,
    #[serde(with = "algorithm_name")]
    pub(super) algorithm: Algorithm,
    pub(super) confirmation: [u8; 16],
    pub(super) stage: Stage,
    /// When it got there, in seconds of the UNIX epoch.
    pub(super) since: u64,
    /// How far it is at the peer, as told.
    pub(super) there: Option<Stage>,
    /// The peer's confirmation differs.
    pub(super) mismatch: bool,
    /// The operator wants it gone whether or not its successor is proven.
    pub(super) forced: bool,
    /// SHA-256 of the peer's offer, until the peer has the answer.
    pub(super) answers: Option<[u8; 32]>,
    /// Our contribution, until the peer has the answer.
    #[serde(skip)]
    pub(super) contribution: Option<Arc<Secret>>,
    /// The master key, until it is deleted.
    #[serde(skip)]
    pub(super) master_key: Option<Arc<Secret>>,
}

/// Why a record could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not what [`Record::to_meta`] writes.
    #[error("the record is not readable: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by another release.
    #[error("the record has format {0}, this release reads {FORMAT}")]
    Format(u32),
    /// The parts do not fit each other.
    #[error("the record of generation {number} {what}")]
    Inconsistent {
        /// The generation.
        number: u64,
        /// What does not fit.
        what: &'static str,
    },
}

impl Default for Record {
    fn default() -> Self {
        Self {
            format: FORMAT,
            far_end: None,
            peer: None,
            last_number: 0,
            last_id: None,
            generations: Vec::new(),
            offer: None,
            active: None,
            selected_at: 0,
            pending: None,
            compromised: 0,
        }
    }
}

impl Record {
    /// Everything but the secrets, as octets for a file.
    #[must_use]
    pub fn to_meta(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The secrets that belong to it. What is not named here any more must be destroyed.
    pub fn secrets(&self) -> impl Iterator<Item = (SecretName, &Secret)> {
        let offered = self
            .offer
            .iter()
            .map(|offer| (offer.number, SecretKind::Contribution, &offer.contribution));
        let agreed = self.generations.iter().flat_map(|generation| {
            [
                (
                    generation.number,
                    SecretKind::Contribution,
                    &generation.contribution,
                ),
                (
                    generation.number,
                    SecretKind::MasterKey,
                    &generation.master_key,
                ),
            ]
        });
        offered.chain(agreed).filter_map(|(number, kind, secret)| {
            Some((SecretName { number, kind }, secret.as_deref()?))
        })
    }

    /// Puts a record together again.
    ///
    /// # Errors
    /// When `meta` is not readable, or the secrets do not fit it.
    pub fn from_parts(
        meta: &[u8],
        secrets: Vec<(SecretName, Secret)>,
    ) -> Result<Self, RecordError> {
        let mut record: Self = serde_json::from_slice(meta)?;
        if record.format != FORMAT {
            return Err(RecordError::Format(record.format));
        }
        for (name, secret) in secrets {
            *record
                .slot(name)
                .ok_or_else(|| inconsistent(name.number, "is missing, its secret is there"))? =
                Some(Arc::new(secret));
        }
        record.check()?;
        Ok(record)
    }

    fn slot(&mut self, name: SecretName) -> Option<&mut Option<Arc<Secret>>> {
        if self
            .offer
            .as_ref()
            .is_some_and(|offer| offer.number == name.number)
        {
            return match name.kind {
                SecretKind::Contribution => {
                    self.offer.as_mut().map(|offer| &mut offer.contribution)
                }
                SecretKind::MasterKey => None,
            };
        }
        let generation = self.get_mut(name.number)?;
        Some(match name.kind {
            SecretKind::Contribution => &mut generation.contribution,
            SecretKind::MasterKey => &mut generation.master_key,
        })
    }

    fn check(&self) -> Result<(), RecordError> {
        let mut above = 0;
        for generation in &self.generations {
            let number = generation.number;
            if number <= above || number > self.last_number {
                return Err(inconsistent(number, "is out of order"));
            }
            above = number;
            let has = |secret: &Option<Arc<Secret>>, len| match secret {
                Some(secret) => secret.expose().len() == len,
                None => false,
            };
            if generation.stage != Stage::Deleted
                && !has(
                    &generation.master_key,
                    generation.algorithm.traffic_key_len(),
                )
            {
                return Err(inconsistent(number, "has no master key of its length"));
            }
            if generation.answers.is_some() != generation.contribution.is_some() {
                return Err(inconsistent(number, "has no contribution"));
            }
        }
        if let Some(offer) = &self.offer
            && offer
                .contribution
                .as_ref()
                .is_none_or(|secret| secret.expose().len() != CONTRIBUTION_LEN)
        {
            return Err(inconsistent(
                offer.number,
                "is offered without contribution",
            ));
        }
        match self.active {
            Some(number) if self.get(number).is_none() => {
                Err(inconsistent(number, "is missing, and it is the active one"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<&Generation> {
        self.generations.iter().find(|g| g.number == number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Generation> {
        self.generations.iter_mut().find(|g| g.number == number)
    }
}

fn inconsistent(number: u64, what: &'static str) -> RecordError {
    RecordError::Inconsistent { number, what }
}

impl Generation {
    pub(super) fn label(&self) -> Label {
        Label {
            number: self.number,
            id: self.id,
            algorithm: self.algorithm,
        }
    }

    /// Moves to a later stage; an earlier one changes nothing.
    pub(super) fn advance(&mut self, stage: Stage, now: Now) {
        if stage > self.stage {
            self.stage = stage;
            self.since = super::unix_seconds(now.wall);
        }
    }

    /// Its MKT; `None` once its master key is gone.
    pub(super) fn mkt(&self) -> Option<Arc<Mkt>> {
        let master_key = self.master_key.as_ref()?;
        Some(Arc::new(Mkt {
            send_id: self.id,
            recv_id: self.id,
            algorithm: self.algorithm,
            master_key: ao_engine::crypto::MasterKey::new(master_key.expose()).ok()?,
            include_options: true,
        }))
    }
}

mod algorithm_name {
    use std::borrow::Cow;

    use ao_engine::crypto::Algorithm;
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(
        algorithm: &Algorithm,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(algorithm.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Algorithm, D::Error> {
        Cow::<str>::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

mod algorithm_names {
    use ao_engine::crypto::Algorithm;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        algorithms: &[Algorithm],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(algorithms.iter().map(|algorithm| algorithm.name()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Algorithm>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|name| name.parse().map_err(de::Error::custom))
            .collect()
    }
}
