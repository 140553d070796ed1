//! Who this sidecar is towards the sidecars at the far ends.

mod fingerprint;

pub use fingerprint::{Fingerprint, FingerprintError, spki_fingerprint};
