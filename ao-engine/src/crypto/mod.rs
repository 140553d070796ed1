//! Algorithms, key derivation (RFC 5926 §3.1) and MACs (RFC 5926 §3.2).
