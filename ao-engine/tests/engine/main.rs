//! The engine from outside: scenarios of time-stamped packets, properties, and pairs of engines
//! joined by a simulated path.
//!
//! The far end of a scenario signs and verifies by an implementation of its own
//! (`support/signer.rs`), so that engine and test cannot be wrong in the same way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod examine;
mod handshake;
mod icmp;
mod keys;
mod mtu;
mod options;
mod pair;
mod properties;
mod refusals;
mod restart;
mod rollover;
mod sne;
mod support;
mod table;
