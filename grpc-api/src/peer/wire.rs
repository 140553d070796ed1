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
        yours: message
            .yours
            .map(|instance| instance.0.to_vec())
            .unwrap_or_default(),
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
        algorithms: algorithms
            .map(|&algorithm| algorithm_to_wire(algorithm).into())
            .collect(),
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
    let known = offer
        .algorithms
        .iter()
        .filter_map(|&wire| algorithm(wire).ok());
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
    octets
        .try_into()
        .map_err(|_| Malformed::new(what, "has a wrong length"))
}

fn check_length(what: &str, octets: &[u8], wanted: usize) -> Result<(), Malformed> {
    if octets.len() == wanted {
        return Ok(());
    }
    Err(Malformed::new(
        what,
        format!("has {} octets instead of {wanted}", octets.len()),
    ))
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const STAGES: [Stage; 7] = [
        Stage::Agreed,
        Stage::Installed,
        Stage::Selected,
        Stage::Proven,
        Stage::Retiring,
        Stage::Deleted,
        Stage::Revoked,
    ];
    const REFUSALS: [Refusal; 5] = [
        Refusal::NoCommonAlgorithm,
        Refusal::NoFreeId,
        Refusal::NotNext,
        Refusal::OfferCrossed,
        Refusal::Enough,
    ];

    fn any_algorithm() -> impl Strategy<Value = Algorithm> {
        select(&Algorithm::ALL[..])
    }

    fn any_told() -> impl Strategy<Value = Told> {
        let stage = select(&STAGES[..]);
        (
            1_u64..,
            any::<u8>(),
            any_algorithm(),
            stage,
            any::<[u8; 16]>(),
            any::<u64>(),
        )
            .prop_map(
                |(number, id, algorithm, stage, confirmation, segments_verified)| Told {
                    number,
                    id,
                    algorithm,
                    stage,
                    confirmation,
                    segments_verified,
                },
            )
    }

    fn any_offer() -> impl Strategy<Value = Offer> {
        let algorithms = vec(any_algorithm(), 0..=MAX_ALGORITHMS);
        (1_u64.., any::<[u8; 32]>(), algorithms, any::<[u8; 32]>()).prop_map(
            |(number, contribution, algorithms, free_ids)| Offer {
                number,
                contribution: Secret::new(&contribution),
                algorithms,
                free_ids: IdSet(free_ids),
            },
        )
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        (
            1_u64..,
            any::<[u8; 32]>(),
            any::<[u8; 32]>(),
            any_algorithm(),
            any::<u8>(),
        )
            .prop_map(|(number, offer, contribution, algorithm, id)| Answer {
                number,
                offer,
                contribution: Secret::new(&contribution),
                algorithm,
                id,
            })
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let told = vec(any_told(), 0..=MAX_TOLD).prop_map(|mut told| {
            told.sort_by_key(|told| told.number);
            told.dedup_by_key(|told| told.number);
            told
        });
        (
            any::<[u8; 16]>().prop_map(Instance),
            option::of(any::<[u8; 16]>().prop_map(Instance)),
            told,
            option::of(any_offer()),
            option::of(any_answer()),
            option::of(select(&REFUSALS[..])),
            any::<u64>().prop_map(Duration::from_millis),
        )
            .prop_map(
                |(instance, yours, generations, offer, answer, refusal, overlap)| Message {
                    instance,
                    yours,
                    generations,
                    offer,
                    answer,
                    refusal,
                    overlap,
                },
            )
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire(message in any_message()) {
            let octets = prost::Message::encode_to_vec(&to_wire(&message));
            prop_assert!(octets.len() < crate::peer::MAX_MESSAGE);
            let view: v1::View = prost::Message::decode(octets.as_slice()).unwrap();
            prop_assert_eq!(from_wire(Some(&view)), Ok(message));
        }

        #[test]
        fn no_octets_make_it_panic(octets in vec(any::<u8>(), 0..600)) {
            if let Ok(view) = <v1::View as prost::Message>::decode(octets.as_slice()) {
                // Whatever it is taken for comes out the same again.
                if let Ok(message) = from_wire(Some(&view)) {
                    prop_assert_eq!(from_wire(Some(&to_wire(&message))), Ok(message));
                }
            }
        }
    }

    fn good() -> v1::View {
        let contribution = vec![1; CONTRIBUTION_LEN];
        let told = |number| v1::ToldGeneration {
            number,
            id: 255,
            algorithm: v1::MacAlgorithm::Aes128Cmac96.into(),
            stage: v1::KeyStage::Proven.into(),
            confirmation: vec![2; 16],
            segments_verified: 9,
        };
        v1::View {
            instance: vec![3; 16],
            yours: vec![4; 16],
            generations: vec![told(1), told(2)],
            offer: Some(v1::KeyOffer {
                number: 3,
                contribution: contribution.clone(),
                algorithms: vec![v1::MacAlgorithm::HmacSha196.into()],
                free_ids: vec![0xff; 32],
            }),
            answer: Some(v1::KeyAnswer {
                number: 3,
                offer: vec![5; 32],
                contribution,
                algorithm: v1::MacAlgorithm::HmacSha196.into(),
                id: 0,
            }),
            refusal: v1::OfferRefusal::Unspecified.into(),
            overlap_ms: 1,
        }
    }

    /// What the view is refused for, after `change`.
    fn refused(change: impl Fn(&mut v1::View)) -> String {
        let mut view = good();
        assert!(from_wire(Some(&view)).is_ok());
        change(&mut view);
        from_wire(Some(&view)).unwrap_err().to_string()
    }

    fn told(view: &mut v1::View) -> &mut v1::ToldGeneration {
        view.generations.first_mut().unwrap()
    }

    fn offered(view: &mut v1::View) -> &mut v1::KeyOffer {
        view.offer.as_mut().unwrap()
    }

    fn answered(view: &mut v1::View) -> &mut v1::KeyAnswer {
        view.answer.as_mut().unwrap()
    }

    #[test]
    fn what_is_malformed_is_named() {
        assert_eq!(
            from_wire(None).unwrap_err().to_string(),
            "the view is missing"
        );
        let says = |reason: String, words: &str| assert!(reason.contains(words), "{reason}");
        says(
            refused(|v| v.instance.truncate(15)),
            "the instance has 15 octets instead of 16",
        );
        says(
            refused(|v| v.yours.push(0)),
            "the receiver's instance has 17",
        );
        says(refused(|v| v.generations.swap(0, 1)), "do not ascend");
        says(refused(|v| told(v).number = 2), "do not ascend");
        says(refused(|v| told(v).number = 0), "has the number 0");
        says(refused(|v| told(v).id = 256), "a KeyID is 256");
        says(
            refused(|v| told(v).algorithm = 99),
            "algorithm 99 is unknown",
        );
        says(refused(|v| told(v).stage = 0), "stage 0 is unknown");
        says(refused(|v| told(v).stage = 8), "stage 8 is unknown");
        says(
            refused(|v| told(v).confirmation.clear()),
            "a confirmation has 0 octets",
        );
        says(refused(|v| v.refusal = -1), "refusal -1 is unknown");
        says(
            refused(|v| offered(v).contribution.truncate(31)),
            "a contribution has 31 octets",
        );
        says(
            refused(|v| offered(v).free_ids.truncate(1)),
            "free KeyIDs has 1 octets",
        );
        says(refused(|v| offered(v).number = 0), "has the number 0");
        says(
            refused(|v| offered(v).algorithms = vec![1; 33]),
            "more than 32 algorithms",
        );
        says(
            refused(|v| answered(v).contribution.push(0)),
            "a contribution has 33 octets",
        );
        says(
            refused(|v| answered(v).offer.clear()),
            "answered offer has 0 octets",
        );
        says(
            refused(|v| answered(v).algorithm = 0),
            "algorithm 0 is unknown",
        );
        says(refused(|v| answered(v).id = u32::MAX), "beyond 255");
        let many = |v: &mut v1::View| {
            let one = told(v).clone();
            let numbered = |number| v1::ToldGeneration {
                number,
                ..one.clone()
            };
            v.generations = (1..=65).map(numbered).collect();
        };
        says(refused(many), "the generations are 65, more than 64");
    }

    #[test]
    fn algorithms_of_later_releases_are_passed_over_in_an_offer() {
        let mut view = good();
        offered(&mut view).algorithms = vec![77, v1::MacAlgorithm::HmacSha25696.into(), 0];
        let message = from_wire(Some(&view)).unwrap();
        assert_eq!(
            message.offer.unwrap().algorithms,
            [Algorithm::HmacSha256_96]
        );
    }

    #[test]
    fn contributions_do_not_show() {
        let request = v1::ExchangeRequest {
            version: 1,
            label: "ipv4".to_owned(),
            view: Some(good()),
        };
        let shown = format!("{request:?}");
        assert!(
            shown.contains("KeyOffer") && shown.contains("KeyAnswer"),
            "{shown}"
        );
        assert!(!shown.contains("contribution"), "{shown}");
    }
}
