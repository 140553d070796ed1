//! Agreement on a generation: offer, answer, and the key that comes of them.
//!
//! Each end has one offer outstanding at most, and numbers are used once: what an end offered or
//! agreed is the floor for what it accepts. So the numbers that an end agrees ascend, and a view
//! that has a higher number but lacks a lower one will never have it.

use std::sync::Arc;

use ao_engine::crypto::Algorithm;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::message::{Answer, CONTRIBUTION_LEN, IdSet, Instance, Offer, Refusal, Stage};
use super::record::{Generation, OwnOffer};
use super::{Alarm, Now, Random, Rollover, Step};
use crate::secret::Secret;

/// Separates these keys from all others, and this derivation from later ones.
const LABEL: &[u8] = b"ao-sidecar rollover 1";
/// Octets that show the peer which key was derived.
const CONFIRMATION_LEN: usize = 16;
/// Most generations above the active one that the peer's offers are answered for.
const MOST_AHEAD: usize = 16;
/// Most generations kept, those at rest included; well below what a message can tell.
const MOST_KEPT: usize = 48;
/// After the ends derived different keys: time before the next offer, in seconds.
pub(super) const PAUSE_AFTER_MISMATCH: u64 = 60;

impl Rollover {
    /// Offers the next generation when the runway is short.
    pub(super) fn offer_if_wanted(&mut self, now: Now, random: Random<'_>) {
        if self.record.offer.is_some() || !self.wants_generation() {
            return;
        }
        // What keeps us from answering the peer's offer would keep it from answering ours.
        if self.standing_offer > Some(self.record.last_number) {
            return;
        }
        if now.steady < self.offer_not_before {
            return self.wake_at(self.offer_not_before);
        }
        if self.record.generations.len() >= MOST_KEPT || self.free_ids() == IdSet::default() {
            return;
        }
        let number = self.record.last_number.max(self.told_number) + 1;
        self.record.last_number = number;
        self.record.offer = Some(OwnOffer {
            number,
            algorithms: self.parameters.algorithms.clone(),
            since: super::unix_seconds(now.wall),
            contribution: Some(contribution(random)),
        });
        self.offered_at = now.steady;
    }

    fn wants_generation(&self) -> bool {
        let runway = usize::from(self.parameters.runway.clamp(1, 8));
        let target = runway + usize::from(self.record.active.is_none());
        let fresh = self
            .record
            .pending
            .is_none_or(|pending| self.ahead().any(|g| g.number > pending.above));
        self.ahead().count() < target || !fresh
    }

    /// Generations that can still become the active one.
    fn ahead(&self) -> impl Iterator<Item = &Generation> {
        let active = self.record.active.unwrap_or(0);
        self.record.generations.iter().filter(move |g| {
            g.number > active
                && !matches!(g.stage, Stage::Revoked | Stage::Deleted)
                && !matches!(g.there, Some(Stage::Revoked | Stage::Deleted))
                && !g.mismatch
        })
    }

    /// KeyIDs that no segment we may still see has.
    pub(super) fn free_ids(&self) -> IdSet {
        let mut free = IdSet::default();
        for id in 0..=self.parameters.highest_id {
            if !self.record.generations.iter().any(|g| g.id == id) {
                free.insert(id);
            }
        }
        free
    }

    /// The first KeyID behind the last one used, in cyclic order, that is free at both ends.
    fn choose_id(&self, theirs: &IdSet, random: Random<'_>) -> Option<u8> {
        let ours = self.free_ids();
        let first = self.record.last_id.map_or_else(
            || {
                // After the loss of both stores, ids of former keys are unlikely to come first.
                let mut octet = [0];
                random(&mut octet);
                octet[0] % self.parameters.highest_id.saturating_add(1).max(1)
            },
            |last| last.wrapping_add(1),
        );
        (0..=u8::MAX)
            .map(|step| first.wrapping_add(step))
            .find(|&id| ours.contains(id) && theirs.contains(id))
    }

    /// Answers the peer's offer, or says why not. The answer goes out with every message until
    /// the peer tells that it has it.
    pub(super) fn take_offer(
        &mut self,
        now: Now,
        offer: &Offer,
        peer: Instance,
        random: Random<'_>,
    ) -> Option<Refusal> {
        let digest: [u8; 32] = Sha256::digest(offer.contribution.expose()).into();
        if self
            .record
            .get(offer.number)
            .is_some_and(|g| g.answers == Some(digest))
        {
            return None;
        }
        let own = self
            .record
            .offer
            .as_ref()
            .filter(|own| own.number == offer.number);
        let crossed = own.is_some();
        if crossed && self.instance.0 < peer.0 {
            return Some(Refusal::OfferCrossed);
        }
        if offer.number <= self.record.last_number && !crossed {
            return Some(Refusal::NotNext);
        }
        if self.ahead().count() >= MOST_AHEAD || self.record.generations.len() >= MOST_KEPT {
            return Some(Refusal::Enough);
        }
        let Some(&algorithm) = offer
            .algorithms
            .iter()
            .find(|algorithm| self.parameters.algorithms.contains(algorithm))
        else {
            return Some(Refusal::NoCommonAlgorithm);
        };
        // A contribution's name is its number: the one that was offered serves as the answer.
        let ours = own
            .and_then(|own| own.contribution.clone())
            .unwrap_or_else(|| contribution(random));
        let Some(id) = self.choose_id(&offer.free_ids, random) else {
            return Some(Refusal::NoFreeId);
        };
        let transcript = Transcript {
            number: offer.number,
            id,
            algorithm,
            offered: &offer.algorithms,
            offerer: peer,
            answerer: self.instance,
        };
        let (master_key, confirmation) = transcript.derive(&offer.contribution, &ours);
        self.record.offer = None;
        self.agree(
            now,
            Generation {
                number: offer.number,
                id,
                algorithm,
                confirmation,
                stage: Stage::Agreed,
                since: super::unix_seconds(now.wall),
                there: None,
                mismatch: false,
                forced: false,
                answers: Some(digest),
                contribution: Some(ours),
                master_key: Some(master_key),
            },
            now.steady,
        );
        None
    }

    /// Completes the agreement on our own offer. An answer to any other offer changes nothing.
    ///
    /// # Errors
    /// When the answer is not what was offered.
    pub(super) fn take_answer(
        &mut self,
        now: Now,
        answer: &Answer,
        peer: Instance,
    ) -> Result<(), String> {
        let Some(own) = self.answered(answer) else {
            return Ok(());
        };
        if !own.algorithms.contains(&answer.algorithm) {
            return Err(format!("{} was not offered", answer.algorithm));
        }
        if !self.free_ids().contains(answer.id) {
            return Err(format!("KeyID {} is not free", answer.id));
        }
        let Some(ours) = own.contribution.clone() else {
            return Ok(());
        };
        let transcript = Transcript {
            number: own.number,
            id: answer.id,
            algorithm: answer.algorithm,
            offered: &own.algorithms,
            offerer: self.instance,
            answerer: peer,
        };
        let (master_key, confirmation) = transcript.derive(&ours, &answer.contribution);
        let began = self.offered_at;
        self.record.offer = None;
        self.agree(
            now,
            Generation {
                number: answer.number,
                id: answer.id,
                algorithm: answer.algorithm,
                confirmation,
                stage: Stage::Agreed,
                since: super::unix_seconds(now.wall),
                there: Some(Stage::Agreed),
                mismatch: false,
                forced: false,
                answers: None,
                contribution: None,
                master_key: Some(master_key),
            },
            began,
        );
        Ok(())
    }

    /// Our offer, if this answers it.
    fn answered(&self, answer: &Answer) -> Option<&OwnOffer> {
        self.record.offer.as_ref().filter(|own| {
            own.number == answer.number
                && own.contribution.as_ref().is_some_and(|contribution| {
                    let digest: [u8; 32] = Sha256::digest(contribution.expose()).into();
                    digest == answer.offer
                })
        })
    }

    fn agree(&mut self, now: Now, generation: Generation, began: std::time::Duration) {
        self.record.last_number = generation.number;
        self.record.last_id = Some(generation.id);
        self.tell(Step::Agreed {
            generation: generation.label(),
            took: now.steady.saturating_sub(began),
        });
        self.local(generation.number).agreed = Some(now);
        self.record.generations.push(generation);
    }

    /// The answer that the peer does not have yet.
    pub(super) fn open_answer(&self) -> Option<Answer> {
        self.record.generations.iter().find_map(|g| {
            Some(Answer {
                number: g.number,
                offer: g.answers?,
                contribution: g.contribution.as_deref()?.clone(),
                algorithm: g.algorithm,
                id: g.id,
            })
        })
    }

    /// Our offer, as a message tells it.
    pub(super) fn open_offer(&self) -> Option<Offer> {
        let own = self.record.offer.as_ref()?;
        Some(Offer {
            number: own.number,
            contribution: own.contribution.as_deref()?.clone(),
            algorithms: own.algorithms.clone(),
            free_ids: self.free_ids(),
        })
    }

    /// Alarms about agreements.
    pub(super) fn agreement_alarms(&self) -> impl Iterator<Item = Alarm> {
        let refused = self
            .refused
            .filter(|_| self.wants_generation())
            .and_then(|refusal| match refusal {
                Refusal::NoCommonAlgorithm => Some(Alarm::NoCommonAlgorithm),
                _ => None,
            });
        let mismatch = self
            .record
            .generations
            .iter()
            .filter(|g| g.mismatch && g.stage != Stage::Deleted)
            .map(|g| Alarm::ConfirmationMismatch { number: g.number });
        refused.into_iter().chain(mismatch)
    }
}

fn contribution(random: Random<'_>) -> Arc<Secret> {
    let mut octets = Zeroizing::new([0; CONTRIBUTION_LEN]);
    random(octets.as_mut_slice());
    Arc::new(Secret::new(octets.as_slice()))
}

/// Everything but the contributions that both ends must have seen alike.
///
/// The ends are named by their stores, not by their certificates: both know both stores, while an
/// end that trusts an authority may not know the certificate beforehand. Mutual TLS has vouched
/// for whoever told the store's name.
struct Transcript<'a> {
    number: u64,
    id: u8,
    algorithm: Algorithm,
    offered: &'a [Algorithm],
    offerer: Instance,
    answerer: Instance,
}

impl Transcript<'_> {
    /// HKDF-SHA-256 (RFC 5869): the master key, of the traffic key's length, and the octets that
    /// confirm it.
    fn derive(&self, offerer: &Secret, answerer: &Secret) -> (Arc<Secret>, [u8; CONFIRMATION_LEN]) {
        let material = Zeroizing::new([offerer.expose(), answerer.expose()].concat());
        let hkdf = Hkdf::<Sha256>::new(Some(LABEL), &material);
        let key_len = self.algorithm.traffic_key_len();
        let mut octets = Zeroizing::new(vec![0; key_len + CONFIRMATION_LEN]);
        // Fails above 8160 octets only.
        let expanded = hkdf.expand(&self.encoded(), &mut octets);
        debug_assert!(expanded.is_ok());
        let (key, shown) = octets.split_at(key_len);
        let mut confirmation = [0; CONFIRMATION_LEN];
        confirmation.copy_from_slice(shown);
        (Arc::new(Secret::new(key)), confirmation)
    }

    /// Fields of fixed length first, then the list: no two transcripts encode alike.
    fn encoded(&self) -> Vec<u8> {
        let mut info = Vec::with_capacity(128);
        info.extend_from_slice(&self.number.to_be_bytes());
        info.push(self.id);
        info.extend_from_slice(&self.offerer.0);
        info.extend_from_slice(&self.answerer.0);
        for algorithm in [self.algorithm].iter().chain(self.offered) {
            info.extend_from_slice(algorithm.name().as_bytes());
            info.push(0);
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_transcript_changes_key_and_confirmation() {
        let a = Secret::new(&[1; 32]);
        let b = Secret::new(&[2; 32]);
        let base = || Transcript {
            number: 1,
            id: 2,
            algorithm: Algorithm::Aes128Cmac96,
            offered: &[Algorithm::Aes128Cmac96],
            offerer: Instance([3; 16]),
            answerer: Instance([4; 16]),
        };
        let mut seen = vec![base().derive(&a, &b), base().derive(&b, &a)];
        for changed in [
            Transcript {
                number: 2,
                ..base()
            },
            Transcript { id: 3, ..base() },
            Transcript {
                algorithm: Algorithm::HmacSha1_96,
                ..base()
            },
            Transcript {
                offered: &[Algorithm::Aes128Cmac96, Algorithm::HmacSha1_96],
                ..base()
            },
            Transcript {
                offerer: Instance([5; 16]),
                ..base()
            },
            Transcript {
                answerer: Instance([5; 16]),
                ..base()
            },
        ] {
            seen.push(changed.derive(&a, &b));
        }
        for (index, (key, confirmation)) in seen.iter().enumerate() {
            for (other_key, other_confirmation) in seen.iter().take(index) {
                assert_ne!(key.expose(), other_key.expose());
                assert_ne!(confirmation, other_confirmation);
            }
        }
        assert_eq!(base().derive(&a, &b), seen[0]);
    }

    #[test]
    fn a_master_key_has_its_algorithms_length() {
        let secret = Secret::new(&[1; 32]);
        for algorithm in Algorithm::ALL {
            let transcript = Transcript {
                number: 1,
                id: 2,
                algorithm,
                offered: &[algorithm],
                offerer: Instance([3; 16]),
                answerer: Instance([4; 16]),
            };
            assert_eq!(
                transcript.derive(&secret, &secret).0.expose().len(),
                algorithm.traffic_key_len()
            );
        }
    }
}
