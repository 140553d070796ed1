//! The doctor: finds out what is wrong, and says what was seen, why it matters and what to do.
//!
//! Read in this order: [`Facts`] (what is known of one moment), [`judge`] (what follows from it,
//! pure), `gather` (how a running daemon comes by the facts), [`local`] (what is left when it does
//! not answer). All codes are in `docs/DOCTOR.md`.

mod code;
mod facts;
mod gather;
mod judge;
mod local;
mod text;

pub use self::code::Code;
pub use self::facts::{Before, ChainFacts, Facts, KeyFacts, Keys, PeerFacts};
pub(crate) use self::gather::{Parts, diagnose};
pub use self::judge::judge;
pub use self::local::local;
