//! Waiting for a condition with a deadline.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(50);

/// Polls `probe` until it gives a value.
///
/// # Panics
/// When `limit` has passed; the message says what was awaited and the probe's last answer.
pub fn poll<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > limit => {
                panic!("{what}: not within {limit:?}; last seen: {last}")
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// Polls `condition` until it holds.
///
/// # Panics
/// When `limit` has passed.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    poll(what, limit, || {
        if condition() {
            Ok(())
        } else {
            Err("not yet".into())
        }
    });
}

/// Watches for the whole of `span` that `invariant` holds, and says so when it does not.
///
/// # Panics
/// When the invariant returns an error.
pub fn hold(what: &str, span: Duration, mut invariant: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(broken) = invariant() {
            panic!("{what}: broken after {:?}: {broken}", start.elapsed());
        }
        std::thread::sleep(INTERVAL);
    }
}
