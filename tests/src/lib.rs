//! Harness of the workspace-level tests: network namespaces, real BGP daemons, sidecars, captures
//! and attacks.
//!
//! Everything a test makes carries the process id in its name and is removed when it goes out of
//! scope; what a killed test leaves behind is removed by its janitor ([`netns`]).

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::needless_pass_by_value,
    reason = "a test harness reports by panicking and talks on stderr"
)]

pub mod attack;
pub mod capture;
pub mod daemon;
pub mod doctor;
pub mod netns;
pub mod process;
pub mod random;
pub mod rollover;
pub mod scene;
pub mod scratch;
pub mod settings;
pub mod sidecar;
pub mod simulated_peers;
pub mod stream;
pub mod topology;
pub mod wait;

/// Tells how far a test has come; shown when it fails, or at once with `--no-capture`.
#[macro_export]
macro_rules! progress {
    ($($words:tt)*) => { $crate::say(format_args!($($words)*)) };
}

#[doc(hidden)]
pub fn say(line: std::fmt::Arguments<'_>) {
    eprintln!("{line}");
}
