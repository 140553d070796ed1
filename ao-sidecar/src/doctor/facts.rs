//! What is known of one moment: plain data, without secrets.

use std::time::SystemTime;

use datapath::report::Report;

/// Everything a diagnosis is judged by.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The moment, by the wall clock.
    pub now: SystemTime,
    /// What the datapath says.
    pub report: Report,
}
