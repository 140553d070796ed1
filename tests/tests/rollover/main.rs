//! Keys that change under live sessions: agreed by the two sidecars, or by the calendar.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod first_contact;
mod lifetimes;
mod operator;
mod refusals;
mod rolling;

use ao_tests::rollover::{Pair, Session};
use ao_tests::settings::CONVERGENCE;
use ao_tests::sidecar::Terms;

/// The engine at both ends.
const ENGINE: (&str, &str) = ("userspace", "userspace");

/// Keys change when somebody asks for it only.
fn by_hand() -> Terms {
    Terms {
        interval: "24h",
        overlap: "1h",
        ..Terms::default()
    }
}

/// BIRD and FRR with a sidecar each.
fn session(terms: Terms) -> Session {
    let pair = Pair::start(ENGINE, terms, CONVERGENCE);
    Session::bird_frr(pair, |_| (), CONVERGENCE)
}
