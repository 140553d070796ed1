//! The MACs the datapath computes with.
//!
//! Chosen by measurement (`make bench` repeats it): for a segment of 1,440 octets RustCrypto's
//! HMACs and the engine's AES-CMAC over RustCrypto's AES are as fast as aws-lc's and OpenSSL's or
//! faster, and CMACs in batches run in lanes, several times as fast as any library's.

use std::cell::Cell;
use std::time::{Duration, Instant};

use ao_engine::crypto::{Algorithm, MacJob, MacProvider, TrafficKey};

pub use ao_engine::crypto::RustCrypto as Provider;

/// The same, counting MACs and the time they take: by two readings of the clock per batch.
#[derive(Debug, Default)]
pub(crate) struct Timed {
    macs: Cell<u64>,
    time: Cell<Duration>,
}

impl Timed {
    /// MACs computed so far.
    pub(crate) fn macs(&self) -> u64 {
        self.macs.get()
    }

    /// Time they have taken.
    pub(crate) fn time(&self) -> Duration {
        self.time.get()
    }
}

impl MacProvider for Timed {
    type Key = <Provider as MacProvider>::Key;

    fn prepare(&self, algorithm: Algorithm, key: &TrafficKey) -> Self::Key {
        Provider.prepare(algorithm, key)
    }

    fn compute(&self, jobs: &mut [MacJob<'_, Self::Key>]) {
        if jobs.is_empty() {
            return;
        }
        let begun = Instant::now();
        Provider.compute(jobs);
        self.time.set(self.time.get() + begun.elapsed());
        self.macs.set(self.macs.get() + jobs.len() as u64);
    }
}
