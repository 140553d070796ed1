//! Metrics in the OpenMetrics text format, for Prometheus and whatever else scrapes.
//!
//! Read in this order: [`families`] (what there is to see), `page` (how a moment becomes text),
//! `totals` (counters that do not fall when a session ends), `history` (counters made of events),
//! [`Endpoint`] (who is answered, and how often).
//!
//! The number of series is bounded: peers, their live keys, key chains and queues, each times
//! fixed sets. Addresses and ports of sessions never become labels.

mod endpoint;
pub mod families;
mod history;
mod page;
mod totals;

#[cfg(test)]
mod tests;

pub use endpoint::{Endpoint, MetricsError};

/// Stands before each name.
pub const PREFIX: &str = "ao_sidecar";
