//! The answers about keys of a sidecar whose peers all have key chains.

use std::sync::Arc;

use grpc_api::operator::{
    ControlError, IdentityReport, KeyControl, KeyReport, PeerKeys, RolloverReport,
};

/// Names of the peers; none of them is automatic.
pub(super) struct NoRollover(pub(super) Vec<Arc<str>>);

impl KeyControl for NoRollover {
    fn peers(&self) -> Vec<PeerKeys> {
        let peer = |name: &Arc<str>| PeerKeys {
            name: Arc::clone(name),
            automatic: false,
        };
        self.0.iter().map(peer).collect()
    }

    async fn keys(&self, _: Option<&str>) -> Result<Vec<KeyReport>, ControlError> {
        Err(refused())
    }

    async fn rollovers(&self, _: Option<&str>) -> Result<Vec<RolloverReport>, ControlError> {
        Ok(Vec::new())
    }

    async fn start(&self, _: &str, _: bool) -> Result<String, ControlError> {
        Err(refused())
    }

    async fn abort(&self, _: &str) -> Result<String, ControlError> {
        Err(refused())
    }

    async fn force(&self, _: &str) -> Result<String, ControlError> {
        Err(refused())
    }

    async fn identity(&self) -> Result<IdentityReport, ControlError> {
        Err(refused())
    }
}

fn refused() -> ControlError {
    ControlError::Refused("no peer has automatic keys".to_owned())
}
