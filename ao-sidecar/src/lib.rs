//! ao-sidecar
