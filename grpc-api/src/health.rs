//! Whether the sidecar does its work, for grpc.health.v1.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Services that may be asked for: all, and the operator service.
const SERVICES: [&str; 2] = ["", "aosidecar.v1.OperatorService"];

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

/// Answers health checks until the server stops.
pub(crate) struct HealthService {
    health: Health,
    stop: watch::Receiver<bool>,
}

impl HealthService {
    pub(crate) fn new(health: Health, stop: watch::Receiver<bool>) -> Self {
        Self { health, stop }
    }

    pub(crate) fn server(self) -> HealthServer<Self> {
        HealthServer::new(self).max_decoding_message_size(1 << 10)
    }
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !SERVICES.contains(&&*request.get_ref().service) {
            return Err(Status::not_found("there is no such service"));
        }
        Ok(Response::new(answer(self.health.is_serving())))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&&*request.get_ref().service);
        let (mut serving, mut stop) = (self.health.serving.subscribe(), self.stop.clone());
        let (sender, receiver) = mpsc::channel(1);
        let told = sender.clone();
        let tell = async move {
            loop {
                let now = match known {
                    true => answer(*serving.borrow_and_update()),
                    false => response(ServingStatus::ServiceUnknown),
                };
                // The caller or all health is gone.
                if told.send(Ok(now)).await.is_err() || serving.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = tell => {}
                () = sender.closed() => {}
                // A sender that is gone stops as well.
                _ = stop.wait_for(|&stop| stop) => {
                    // A caller that does not read learns it from the end of the stream.
                    let _ = sender.try_send(Err(Status::unavailable("the sidecar is stopping")));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn answer(serving: bool) -> HealthCheckResponse {
    response(match serving {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    })
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
