//! Memory for keys: Linux charges each to its socket, up to net.core.optmem_max.

use std::io;
use std::sync::{Mutex, PoisonError};

use ao_sys::optmem;

/// Far more than keys of any real number of peers take, and no danger to the machine.
const HIGHEST: u64 = 256 << 20;

/// The limit in this network namespace, raised as needed and never lowered: sockets may hold more
/// than the earlier one.
#[derive(Debug, Default)]
pub(super) struct OptionMemory {
    raised_from: Mutex<Option<u64>>,
}

impl OptionMemory {
    /// Doubles the limit.
    ///
    /// Fails with the present limit and the reason when it cannot be raised.
    pub(super) fn raise(&self) -> Result<(), (u64, io::Error)> {
        let mut raised_from = self
            .raised_from
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let limit = optmem::read().map_err(|error| (0, error))?;
        let wanted = limit.saturating_mul(2);
        if wanted > HIGHEST {
            let error = io::Error::other("more than 256 MiB for keys are not sensible");
            return Err((limit, error));
        }
        optmem::raise(wanted).map_err(|error| (limit, error))?;
        raised_from.get_or_insert(limit);
        tracing::info!(
            from = limit,
            to = wanted,
            "net.core.optmem_max raised, for keys"
        );
        Ok(())
    }

    /// The present limit, and what it was before we raised it.
    pub(super) fn limits(&self) -> (u64, Option<u64>) {
        let raised_from = self
            .raised_from
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (optmem::read().unwrap_or(0), *raised_from)
    }
}
