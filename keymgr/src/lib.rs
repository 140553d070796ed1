//! Keys of the peers: key chains in the terms of RFC 8177 with lifetimes, automated rollover with
//! the far end's sidecar, and where secrets are kept.
//!
//! [`chain`], [`clock`], [`lifetime`] and [`rollover`] are pure; [`secret_file`] touches the system.
#![forbid(unsafe_code)]

pub mod backend;
pub mod chain;
pub mod clock;
pub mod identity;
pub mod lifetime;
mod private_file;
pub mod rollover;
pub mod secret;
pub mod secret_file;
pub mod store;
