//! Keys of the peers: key chains in the terms of RFC 8177 with lifetimes, automated rollover with
//! the far end's sidecar, and where secrets are kept.
//!
//! [`chain`] and [`rollover`] are pure; [`secret_file`] touches the system.
#![forbid(unsafe_code)]

pub mod chain;
pub mod identity;
pub mod rollover;
pub mod secret;
pub mod secret_file;
