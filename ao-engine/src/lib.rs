//! TCP-AO (RFC 5925, RFC 5926) as a pure protocol engine.
//!
//! The engine takes the time and batches of IP packets and returns a verdict for each: no socket,
//! no clock, no randomness, no allocation it cannot bound. Everything it knows arrives as an
//! argument, which is what makes every behaviour reproducible in a test.
//!
//! Read in this order: [`wire`] (what a segment is), [`crypto`] (traffic keys and MACs),
//! [`policy`] (which MKTs protect whom), [`sne`] (64-bit sequence numbers), then [`engine`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod crypto;
pub mod engine;
pub mod examine;
pub mod policy;
pub mod reason;
pub mod record;
pub mod sne;
pub mod time;
pub mod wire;
