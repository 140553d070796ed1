//! ao-sys
