//! The API over a real Unix socket, asked by the real `aoctl`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod administration;
mod errors;
mod events;
mod fixture;
mod keys;
mod server;
mod sessions;
mod status;
