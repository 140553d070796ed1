//! The two ends of a rollover over a channel and a network that lose, repeat, delay and reorder,
//! in processes that crash at any step.

mod explore;
mod regressions;
mod scenarios;
mod wire;
mod world;
