//! The sidecar on a kernel that has TCP-AO, native `nft queue`, VRF and netem.
//!
//! Most machines' kernels have none of these, so the tests run in the kernel lab
//! (`tests/kernel-lab/sidecar-tests`, `make kernel-lab`) and are passed over by a plain `cargo test`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod kernel_ao;
mod kernel_backend;
mod lifetimes;
mod native_rules;
mod netem;
mod vrf;
