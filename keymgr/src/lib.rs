//! Keys of the peers: key chains in the terms of RFC 8177, and the files their secrets stand in.
//!
//! [`chain`] is pure; [`secret_file`] is the only part that touches the system.
#![forbid(unsafe_code)]

pub mod chain;
pub mod secret_file;
