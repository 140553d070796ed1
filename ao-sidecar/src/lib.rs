//! TCP-AO (RFC 5925) for unmodified BGP daemons: what the binaries `ao-sidecar` and `aoctl` are
//! made of.
#![forbid(unsafe_code)]

pub mod audit;
pub mod changes;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod identity;
mod keys;
pub mod launch;
mod logging;
pub mod metrics;
#[cfg(test)]
mod small_disk;

/// Version of both binaries.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
