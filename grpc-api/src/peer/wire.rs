//! Between a [`Message`] and what goes over the wire.

use std::fmt;
use std::time::Duration;

use ao_engine::crypto::Algorithm;
use keymgr::rollover::message::{
    Answer, CONTRIBUTION_LEN, IdSet, Instance, MAX_TOLD, Message, Offer, Refusal, Stage, Told,
};
use keymgr::secret::Secret;
use zeroize::Zeroize;

use crate::v1;

/// Most algorithms that an offer may list.
const MAX_ALGORITHMS: usize = 32;

/// Why a view is not one: in words, without anything of its secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(String);

impl Malformed {
    fn new(what: &str, problem: impl fmt::Display) -> Self {
        Self(format!("{what} {problem}"))
    }
}

pub(crate) fn to_wire(message: &Message) -> v1::View {
    v1::View {
        instance: message.instance.0.to_vec(),
        yours: message.yours.map(|instance| instance.0.to_vec()).unwrap_or_default(),
        generations: message.generations.iter().map(told_to_wire).collect(),
        offer: message.offer.as_ref().map(offer_to_wire),
        answer: message.answer.as_ref().map(answer_to_wire),
        refusal: refusal_to_wire(message.refusal).into(),
        overlap_ms: u64::try_from(message.overlap.as_millis()).unwrap_or(u64::MAX),
    }
}

pub(crate) fn from_wire(view: Option<&v1::View>) -> Result<Message, Malformed> {
    let view = view.ok_or_else(|| Malformed::new("the view", "is missing"))?;
    let yours = match view.yours.as_slice() {
        [] => None,
        octets => Some(Instance(exactly("the receiver's instance", octets)?)),
    };
    Ok(Message {
        instance: Instance(exactly("the instance", &view.instance)?),
        yours,
        generations: generations(&view.generations)?,
        offer: view.offer.as_ref().map(offer).transpose()?,
        answer: view.answer.as_ref().map(answer).transpose()?,
        refusal: refusal(view.refusal)?,
        overlap: Duration::from_millis(view.overlap_ms),
    })
}

fn told_to_wire(told: &Told) -> v1::ToldGeneration {
    v1::ToldGeneration {
        number: told.number,
        id: told.id.into(),
        algorithm: algorithm_to_wire(told.algorithm).into(),
        stage: stage_to_wire(told.stage).into(),
        confirmation: told.confirmation.to_vec(),
        segments_verified: told.segments_verified,
    }
}

fn offer_to_wire(offer: &Offer) -> v1::KeyOffer {
    let algorithms = offer.algorithms.iter().take(MAX_ALGORITHMS);
    v1::KeyOffer {
        number: offer.number,
        contribution: offer.contribution.expose().to_vec(),
        algorithms: algorithms.map(|&algorithm| algorithm_to_wire(algorithm).into()).collect(),
        free_ids: offer.free_ids.0.to_vec(),
    }
}

fn answer_to_wire(answer: &Answer) -> v1::KeyAnswer {
    v1::KeyAnswer {
        number: answer.number,
        offer: answer.offer.to_vec(),
        contribution: answer.contribution.expose().to_vec(),
        algorithm: algorithm_to_wire(answer.algorithm).into(),
        id: answer.id.into(),
    }
}

fn generations(all: &[v1::ToldGeneration]) -> Result<Vec<Told>, Malformed> {
    if all.len() > MAX_TOLD {
        let problem = format!("are {}, more than {MAX_TOLD}", all.len());
        return Err(Malformed::new("the generations", problem));
    }
    if !all.is_sorted_by(|a, b| a.number < b.number) {
        return Err(Malformed::new("the generations", "do not ascend"));
    }
    all.iter().map(told).collect()
}

fn told(told: &v1::ToldGeneration) -> Result<Told, Malformed> {
    Ok(Told {
        number: number(told.number)?,
        id: key_id(told.id)?,
        algorithm: algorithm(told.algorithm)?,
        stage: stage(told.stage)?,
        confirmation: exactly("a confirmation", &told.confirmation)?,
        segments_verified: told.segments_verified,
    })
}

fn offer(offer: &v1::KeyOffer) -> Result<Offer, Malformed> {
    if offer.algorithms.len() > MAX_ALGORITHMS {
        let problem = format!("lists more than {MAX_ALGORITHMS} algorithms");
        return Err(Malformed::new("the offer", problem));
    }
    // A later release may offer what this one does not know; it is no reason to refuse the rest.
    let known = offer.algorithms.iter().filter_map(|&wire| algorithm(wire).ok());
    Ok(Offer {
        number: number(offer.number)?,
        contribution: contribution(&offer.contribution)?,
        algorithms: known.collect(),
        free_ids: IdSet(exactly("the set of free KeyIDs", &offer.free_ids)?),
    })
}

fn answer(answer: &v1::KeyAnswer) -> Result<Answer, Malformed> {
    Ok(Answer {
        number: number(answer.number)?,
        offer: exactly("the digest of the answered offer", &answer.offer)?,
        contribution: contribution(&answer.contribution)?,
        algorithm: algorithm(answer.algorithm)?,
        id: key_id(answer.id)?,
    })
}

fn number(number: u64) -> Result<u64, Malformed> {
    if number == 0 {
        return Err(Malformed::new("a generation", "has the number 0"));
    }
    Ok(number)
}

fn key_id(id: u32) -> Result<u8, Malformed> {
    u8::try_from(id).map_err(|_| Malformed::new("a KeyID", format!("is {id}, beyond 255")))
}

fn contribution(octets: &[u8]) -> Result<Secret, Malformed> {
    check_length("a contribution", octets, CONTRIBUTION_LEN)?;
    Ok(Secret::new(octets))
}

fn exactly<const N: usize>(what: &str, octets: &[u8]) -> Result<[u8; N], Malformed> {
    check_length(what, octets, N)?;
    octets.try_into().map_err(|_| Malformed::new(what, "has a wrong length"))
}

fn check_length(what: &str, octets: &[u8], wanted: usize) -> Result<(), Malformed> {
    if octets.len() == wanted {
        return Ok(());
    }
    Err(Malformed::new(what, format!("has {} octets instead of {wanted}", octets.len())))
}

fn algorithm_to_wire(algorithm: Algorithm) -> v1::MacAlgorithm {
    match algorithm {
        Algorithm::HmacSha1_96 => v1::MacAlgorithm::HmacSha196,
        Algorithm::Aes128Cmac96 => v1::MacAlgorithm::Aes128Cmac96,
        Algorithm::HmacSha256_96 => v1::MacAlgorithm::HmacSha25696,
        Algorithm::HmacSha256_128 => v1::MacAlgorithm::HmacSha256128,
    }
}

fn algorithm(wire: i32) -> Result<Algorithm, Malformed> {
    Ok(match v1::MacAlgorithm::try_from(wire) {
        Ok(v1::MacAlgorithm::HmacSha196) => Algorithm::HmacSha1_96,
        Ok(v1::MacAlgorithm::Aes128Cmac96) => Algorithm::Aes128Cmac96,
        Ok(v1::MacAlgorithm::HmacSha25696) => Algorithm::HmacSha256_96,
        Ok(v1::MacAlgorithm::HmacSha256128) => Algorithm::HmacSha256_128,
        Ok(v1::MacAlgorithm::Unspecified) | Err(_) => return Err(unknown("algorithm", wire)),
    })
}

fn stage_to_wire(stage: Stage) -> v1::KeyStage {
    match stage {
        Stage::Agreed => v1::KeyStage::Agreed,
        Stage::Installed => v1::KeyStage::Installed,
        Stage::Selected => v1::KeyStage::Selected,
        Stage::Proven => v1::KeyStage::Proven,
        Stage::Retiring => v1::KeyStage::Retiring,
        Stage::Deleted => v1::KeyStage::Deleted,
        Stage::Revoked => v1::KeyStage::Revoked,
    }
}

fn stage(wire: i32) -> Result<Stage, Malformed> {
    Ok(match v1::KeyStage::try_from(wire) {
        Ok(v1::KeyStage::Agreed) => Stage::Agreed,
        Ok(v1::KeyStage::Installed) => Stage::Installed,
        Ok(v1::KeyStage::Selected) => Stage::Selected,
        Ok(v1::KeyStage::Proven) => Stage::Proven,
        Ok(v1::KeyStage::Retiring) => Stage::Retiring,
        Ok(v1::KeyStage::Deleted) => Stage::Deleted,
        Ok(v1::KeyStage::Revoked) => Stage::Revoked,
        Ok(v1::KeyStage::Unspecified) | Err(_) => return Err(unknown("stage", wire)),
    })
}

fn refusal_to_wire(refusal: Option<Refusal>) -> v1::OfferRefusal {
    match refusal {
        None => v1::OfferRefusal::Unspecified,
        Some(Refusal::NoCommonAlgorithm) => v1::OfferRefusal::NoCommonAlgorithm,
        Some(Refusal::NoFreeId) => v1::OfferRefusal::NoFreeId,
        Some(Refusal::NotNext) => v1::OfferRefusal::NotNext,
        Some(Refusal::OfferCrossed) => v1::OfferRefusal::OfferCrossed,
        Some(Refusal::Enough) => v1::OfferRefusal::Enough,
    }
}

fn refusal(wire: i32) -> Result<Option<Refusal>, Malformed> {
    Ok(match v1::OfferRefusal::try_from(wire) {
        Ok(v1::OfferRefusal::Unspecified) => None,
        Ok(v1::OfferRefusal::NoCommonAlgorithm) => Some(Refusal::NoCommonAlgorithm),
        Ok(v1::OfferRefusal::NoFreeId) => Some(Refusal::NoFreeId),
        Ok(v1::OfferRefusal::NotNext) => Some(Refusal::NotNext),
        Ok(v1::OfferRefusal::OfferCrossed) => Some(Refusal::OfferCrossed),
        Ok(v1::OfferRefusal::Enough) => Some(Refusal::Enough),
        Err(_) => return Err(unknown("refusal", wire)),
    })
}

fn unknown(what: &str, value: i32) -> Malformed {
    Malformed::new(what, format!("{value} is unknown"))
}

impl Drop for v1::KeyOffer {
    fn drop(&mut self) {
        self.contribution.zeroize();
    }
}

impl Drop for v1::KeyAnswer {
    fn drop(&mut self) {
        self.contribution.zeroize();
    }
}

impl fmt::Debug for v1::KeyOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyOffer")
            .field("number", &self.number)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::KeyAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAnswer")
            .field("number", &self.number)
            .field("algorithm", &self.algorithm)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
