//! Whether the sidecar does its work, for grpc.health.v1.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether the sidecar does its work. Clones are the same. It does not until it is told.
#[derive(Clone, Debug)]
pub struct Health {
    serving: Arc<watch::Sender<bool>>,
}

impl Health {
    /// Not serving yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            serving: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Tells whether it does.
    pub fn set(&self, serving: bool) {
        self.serving.send_if_modified(|told| {
            let differs = *told != serving;
            *told = serving;
            differs
        });
    }

    /// Whether it does.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        *self.serving.borrow()
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}
