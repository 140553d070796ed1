//! The API over a real Unix socket, asked by the real `aoctl`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod administration;
mod changes;
mod configuration;
mod doctor;
mod errors;
mod events;
mod fixture;
mod help;
mod keys;
mod memory;
mod roles;
mod server;
mod sessions;
mod status;
mod tcp;
mod terminal;
