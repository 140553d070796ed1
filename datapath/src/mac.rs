//! The MACs the datapath computes with.
//!
//! Chosen by measurement (`make bench` repeats it): for a segment of 1,440 octets RustCrypto's
//! HMACs and the engine's AES-CMAC over RustCrypto's AES are as fast as aws-lc's and OpenSSL's or
//! faster, and CMACs in batches run in lanes, several times as fast as any library's.

pub use ao_engine::crypto::RustCrypto as Provider;
