//! Packets: what is read, what is refused, and what the edits leave behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod examples;
mod icmp;
mod packets;
mod properties;
