//! From facts to findings: pure.

use grpc_api::operator::administration::Finding;

use super::Facts;

/// What follows from `facts`: what matters most first. Never empty.
#[must_use]
pub fn judge(_facts: &Facts) -> Vec<Finding> {
    Vec::new()
}
