//! The userspace backend in network namespaces of its own. Must run as root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod backend;
mod evidence;
mod kernel;
mod reconfigure;
mod rollover;
mod scale;
mod support;
