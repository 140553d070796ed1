//! The MACs the datapath computes with.

use ao_engine::crypto::RustCrypto;

/// The provider in use.
pub type Provider = RustCrypto;
