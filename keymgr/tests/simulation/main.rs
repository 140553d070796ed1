//! The two ends of a rollover over a channel and a network that lose, repeat, delay and reorder,
//! in processes that crash at any step.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says what led there"
)]

mod explore;
mod regressions;
mod scenarios;
mod wire;
mod world;
