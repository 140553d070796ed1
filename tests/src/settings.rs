//! Figures of the tests, in one place: short ones for every run, full ones with `AO_SOAK=1`.

use std::time::Duration;

/// Whether the full figures are wanted.
#[must_use]
pub fn soak() -> bool {
    std::env::var_os("AO_SOAK").is_some_and(|value| value != "0")
}

fn either<T>(short: T, full: T) -> T {
    if soak() { full } else { short }
}

/// How long a session may take to come up with all its (few) routes.
pub const CONVERGENCE: Duration = Duration::from_secs(30);

/// How long a sidecar may take until its API answers, and to stop: it runs firewall programs,
/// which take a second each in the kernel lab.
pub const SIDECAR_START: Duration = Duration::from_secs(30);

/// How long a refused session is watched to stay down: several connection attempts.
#[must_use]
pub fn refusal_watch() -> Duration {
    Duration::from_secs(either(6, 30))
}

/// A blackout of the sidecar under a live transfer.
#[derive(Clone, Copy, Debug)]
pub struct Blackout {
    /// How often.
    pub rounds: u32,
    /// How long the sidecar is dead.
    pub length: Duration,
}

/// Blackouts under bulk transfer.
#[must_use]
pub fn blackouts() -> Blackout {
    either(
        Blackout {
            rounds: 3,
            length: Duration::from_secs(3),
        },
        Blackout {
            rounds: 20,
            length: Duration::from_secs(10),
        },
    )
}

/// The long blackout of a BGP session whose hold time is 90 s.
#[must_use]
pub fn long_blackouts() -> Blackout {
    either(
        Blackout {
            rounds: 1,
            length: Duration::from_secs(5),
        },
        Blackout {
            rounds: 20,
            length: Duration::from_secs(25),
        },
    )
}

/// Blackouts while a connection is being opened, for each end and each moment.
#[must_use]
pub fn opening_blackouts() -> Blackout {
    either(
        Blackout {
            rounds: 1,
            length: Duration::from_secs(1),
        },
        Blackout {
            rounds: 5,
            length: Duration::from_secs(10),
        },
    )
}

/// How many changes of keys there are under route churn, and how long they may take: `interval` is
/// 10 s.
#[must_use]
pub fn rolling() -> (u64, Duration) {
    either((8, Duration::from_secs(90)), (60, Duration::from_secs(600)))
}

/// How often a sidecar is killed at a random moment while keys roll over.
#[must_use]
pub fn rolling_kills() -> u32 {
    either(3, 30)
}

/// Routes of the full-table transfer.
#[must_use]
pub fn table_routes() -> u32 {
    either(50_000, 500_000)
}

/// How long the full-table transfer may take.
#[must_use]
pub fn table_limit() -> Duration {
    Duration::from_secs(either(60, 300))
}

/// Bad segments per second of the flood.
pub const FLOOD_RATE: u32 = 100_000;

/// How long the flood lasts.
#[must_use]
pub fn flood_length() -> Duration {
    Duration::from_secs(either(5, 60))
}
