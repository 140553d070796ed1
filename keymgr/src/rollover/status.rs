//! What operators see of a rollover. No secrets.

use std::time::{Duration, SystemTime};

use ao_engine::crypto::Algorithm;

use super::message::Stage;
use super::step::Alarm;

/// One generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationStatus {
    /// Its number.
    pub number: u64,
    /// SendID and RecvID of its key.
    pub id: u8,
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// How far it is here.
    pub stage: Stage,
    /// How far it is at the peer, as last told; `None`: the peer does not have it.
    pub there: Option<Stage>,
    /// Whether either end may select it at any time.
    pub ready: bool,
    /// When it got to its stage.
    pub since: SystemTime,
    /// When it was agreed, if in this process.
    pub agreed_at: Option<SystemTime>,
    /// Segments verified with it here, on the sessions last seen.
    pub verified_here: u64,
    /// Segments verified with it at the peer, as last told.
    pub verified_there: u64,
    /// When verified segments were last seen to grow, in this process.
    pub last_use: Option<SystemTime>,
}

/// One automatic peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The generation in use; `None`: the peer is blocked until there is one.
    pub active: Option<u64>,
    /// Whether the active one is in use in both directions on every session.
    pub proven: bool,
    /// Generations that have a key or had one lately, by ascending number.
    pub generations: Vec<GenerationStatus>,
    /// Whether an offer waits for the peer's answer.
    pub offering: bool,
    /// Whether an operator's start waits for a generation to be ready.
    pub start_pending: bool,
    /// Until the schedule selects the next generation; zero: it is due.
    pub next_rollover: Option<Duration>,
    /// Since the peer was last heard, in this process.
    pub last_heard: Option<Duration>,
    /// What needs an operator's eye.
    pub alarms: Vec<Alarm>,
}
