//! The kernel's interfaces: every `unsafe` of the project is in this crate.

pub mod capabilities;
pub mod clock;
pub mod descriptors;
pub mod links;
pub mod memory;
mod netlink;
pub mod nfqueue;
pub mod nftables;
pub mod optmem;
pub mod packet;
pub mod pidfd;
pub mod probe;
pub mod process;
pub mod raw;
pub mod route;
pub mod seccomp;
pub mod sock_diag;
mod socket;
pub mod tcp_ao;
pub mod tcp_socket;
#[cfg(test)]
mod test_support;
pub mod unix;
pub mod xtables;
