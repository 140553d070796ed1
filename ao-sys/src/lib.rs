//! The kernel's interfaces: every `unsafe` of the project is in this crate.

pub mod capabilities;
pub mod links;
mod netlink;
pub mod nfqueue;
pub mod nftables;
pub mod probe;
pub mod raw;
pub mod route;
pub mod sock_diag;
mod socket;
pub mod xtables;
