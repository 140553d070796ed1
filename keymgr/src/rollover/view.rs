//! The two views: what we tell the peer, and what its message changes here.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::message::{CONTRIBUTION_LEN, Instance, MAX_TOLD, Message, Refusal, Stage, Told};
use super::{Dropped, Now, Random, Rollover, Step};

/// Farthest that a number may be above all that is known here: more is not a rollover, but
/// somebody who wants to use the numbers up.
const MOST_SKIPPED: u64 = 1 << 32;
/// Most algorithms that an offer may have.
const MOST_ALGORITHMS: usize = 16;
/// Shortest time between two stores of the peer.
const BETWEEN_STORES: Duration = Duration::from_secs(10);

impl Rollover {
    /// Our whole view.
    pub(super) fn message(&self, refusal: Option<Refusal>) -> Message {
        let generations = self.record.generations.iter().map(|g| Told {
            number: g.number,
            id: g.id,
            algorithm: g.algorithm,
            stage: g.stage,
            confirmation: g.confirmation,
            segments_verified: self.verified(g.number),
        });
        Message {
            instance: self.instance,
            yours: self.record.peer,
            generations: generations.take(MAX_TOLD).collect(),
            offer: self.open_offer(),
            answer: self.open_answer(),
            refusal,
            overlap: self.told_overlap(),
        }
    }

    /// While keys that may be known to others are anywhere, the peer is told not to keep them.
    fn told_overlap(&self) -> Duration {
        let exposed = self
            .record
            .generations
            .iter()
            .any(|g| g.number <= self.record.compromised && g.there != Some(Stage::Deleted));
        if exposed {
            Duration::ZERO
        } else {
            self.parameters.overlap
        }
    }

    /// Stands for all of the view that the peer should hear of at once.
    pub(super) fn tidings(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.record.peer.hash(&mut hasher);
        for g in &self.record.generations {
            (g.number, g.stage, g.answers).hash(&mut hasher);
        }
        let offer = self.record.offer.as_ref().map(|offer| offer.number);
        offer.hash(&mut hasher);
        hasher.finish()
    }

    /// Takes in a message. `fresh`: it answers our call, so it is not of a store that has been
    /// lost since.
    ///
    /// # Errors
    /// When the message is malformed, or its answer is. Nothing of it is taken over then, but of
    /// which store it is.
    pub(super) fn take_message(
        &mut self,
        now: Now,
        message: &Message,
        fresh: bool,
        random: Random<'_>,
    ) -> Result<Option<Refusal>, String> {
        self.check(message)?;
        if !self.recognize(now, message, fresh) {
            if fresh {
                return Err("it has another store again so soon".into());
            }
            self.exchange.call_back = true;
            return Ok(None);
        }
        self.heard(now);
        if let Some(answer) = &message.answer {
            self.take_answer(now, answer, message.instance)?;
        }
        self.peer_overlap = Some(message.overlap);
        self.refused = message.refusal;
        self.merge(now, message);
        let refusal = match &message.offer {
            Some(offer) => self.take_offer(now, offer, message.instance, random),
            None => None,
        };
        self.standing_offer = match refusal {
            None | Some(Refusal::NotNext | Refusal::OfferCrossed) => None,
            Some(_) => message.offer.as_ref().map(|offer| offer.number),
        };
        if refusal == Some(Refusal::NoCommonAlgorithm) {
            self.refused = refusal;
        }
        self.drop_overtaken_offer(message);
        Ok(refusal)
    }

    fn check(&self, message: &Message) -> Result<(), String> {
        if message.instance == self.instance {
            return Err("the peer has a copy of this sidecar's store".into());
        }
        if message.generations.len() > MAX_TOLD {
            return Err(format!("more than {MAX_TOLD} generations"));
        }
        let mut numbers = message.generations.iter().map(|told| told.number);
        if !message.generations.is_sorted_by(|a, b| a.number < b.number) || numbers.any(|n| n == 0)
        {
            return Err("generations are not in ascending order from 1".into());
        }
        let known = self.record.last_number.max(self.told_number);
        if highest(message) > known.saturating_add(MOST_SKIPPED) {
            return Err(format!("generation {} is too far ahead", highest(message)));
        }
        if let Some(offer) = &message.offer {
            if offer.number == 0 || offer.contribution.expose().len() != CONTRIBUTION_LEN {
                return Err("the offer is malformed".into());
            }
            if offer.algorithms.len() > MOST_ALGORITHMS {
                return Err(format!("more than {MOST_ALGORITHMS} algorithms offered"));
            }
        }
        match &message.answer {
            Some(answer) if answer.contribution.expose().len() != CONTRIBUTION_LEN => {
                Err("the answer is malformed".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether the message is of the store that the peer has now. A peer that has lost its store
    /// is believed when it answers us, and not twice in a row: calls may be old, and a hostile peer
    /// could have us begin anew with each.
    fn recognize(&mut self, now: Now, message: &Message, fresh: bool) -> bool {
        let told = message.instance;
        match self.record.peer {
            None => self.record.peer = Some(told),
            Some(known) if known == told => {}
            Some(_) if !fresh || now.steady < self.anew_not_before => return false,
            Some(_) => {
                self.anew_not_before = now.steady + BETWEEN_STORES;
                self.peer_started_anew(told);
            }
        }
        true
    }

    /// Nothing is left there. What we use stays in use, until there is something better.
    fn peer_started_anew(&mut self, instance: Instance) {
        self.record.peer = Some(instance);
        self.record.offer = None;
        for g in &mut self.record.generations {
            g.there = Some(Stage::Deleted);
            g.answers = None;
            g.contribution = None;
        }
        self.tell(Step::PeerStartedAnew);
    }

    /// Advances what we know of the peer. Older messages than the last one change nothing:
    /// stages advance only, and a lower number that is absent beside a higher one is absent for
    /// ever.
    fn merge(&mut self, now: Now, message: &Message) {
        let highest = highest(message);
        self.told_number = self.told_number.max(highest);
        let mut installed = Vec::new();
        for g in &mut self.record.generations {
            let told = message
                .generations
                .iter()
                .find(|told| told.number == g.number);
            let before = g.there;
            match told {
                Some(told) => {
                    g.there = g.there.max(Some(told.stage));
                    g.mismatch |= told.confirmation != g.confirmation
                        || told.id != g.id
                        || told.algorithm != g.algorithm;
                    let local = self.locals.entry(g.number).or_default();
                    local.verified_there = local.verified_there.max(told.segments_verified);
                }
                None if g.number < highest => g.there = Some(Stage::Deleted),
                None => {}
            }
            if g.there.is_some() {
                g.answers = None;
                g.contribution = None;
            }
            if before < Some(Stage::Installed) && g.there == Some(Stage::Installed) {
                installed.push(g.label());
            }
        }
        for generation in installed {
            let agreed = self.local(generation.number).agreed;
            self.tell(Step::InstalledThere {
                generation,
                took: now.steady.saturating_sub(agreed.unwrap_or(now).steady),
            });
        }
    }

    /// Our offer is void when the peer has passed its number without answering it.
    fn drop_overtaken_offer(&mut self, message: &Message) {
        let Some(own) = &self.record.offer else {
            return;
        };
        let told = message.generations.last().map_or(0, |told| told.number);
        let offered = message.offer.as_ref().map_or(0, |offer| offer.number);
        if told >= own.number || offered > own.number {
            self.record.offer = None;
        }
    }

    /// Gives up what cannot become a common key. Lower ones than the active one may have been
    /// selected, and go after its proof.
    pub(super) fn give_up_hopeless(&mut self, now: Now) {
        let active = self.record.active.unwrap_or(0);
        let mut dropped = Vec::new();
        for g in &mut self.record.generations {
            let why = if g.mismatch {
                Dropped::Mismatch
            } else if g.there == Some(Stage::Deleted) {
                Dropped::Unknown
            } else if g.there == Some(Stage::Revoked) {
                Dropped::Aborted
            } else {
                continue;
            };
            if g.stage < Stage::Revoked && g.number > active {
                g.advance(Stage::Revoked, now);
                dropped.push((g.label(), why));
            }
        }
        for (generation, why) in dropped {
            if why == Dropped::Mismatch {
                self.offer_not_before =
                    now.steady + Duration::from_secs(super::agree::PAUSE_AFTER_MISMATCH);
            }
            self.tell(Step::Dropped { generation, why });
        }
    }
}

/// The highest number that the message shows its sender to know.
fn highest(message: &Message) -> u64 {
    let told = message.generations.last().map_or(0, |told| told.number);
    let offered = message.offer.as_ref().map_or(0, |offer| offer.number);
    told.max(offered)
}
