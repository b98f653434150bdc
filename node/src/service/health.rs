//! The standard health service. `""` and `dtkv.v1.Kv` serve when every group of this node does,
//! `group/7` when that group does, `dtkv.v1.Admin` always.

use crate::ids::GroupId;
use crate::service::Service;
use std::pin::Pin;
use std::time::Duration;
use tokio_stream::wrappers::IntervalStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// How often a watcher's service is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.serving(&service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found(format!(
                "there is no service {service:?} here; known are \"\", dtkv.v1.Kv, dtkv.v1.Admin and group/ID"
            ))),
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (service, name, stop) = (self.clone(), request.into_inner().service, self.0.stop.clone());
        let mut last = None;
        let changes = IntervalStream::new(tokio::time::interval(WATCH_INTERVAL))
            .map(move |_| service.serving(&name))
            .filter(move |status| last.replace(*status) != Some(*status))
            .map(|status| Ok(response(status)));
        let until_stop = futures::StreamExt::take_until(changes, stop.cancelled_owned());
        Ok(Response::new(Box::pin(until_stop)))
    }
}

impl Service {
    fn serving(&self, service: &str) -> ServingStatus {
        let of = |is_serving| if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        match service {
            "" | "dtkv.v1.Kv" => of(self.is_ready()),
            "dtkv.v1.Admin" => ServingStatus::Serving,
            _ => match service.strip_prefix("group/").and_then(|id| id.parse().ok()) {
                Some(id) => match self.0.store.group(GroupId(id)) {
                    Ok(group) => of(group.is_ready()),
                    Err(_) => ServingStatus::ServiceUnknown,
                },
                None => ServingStatus::ServiceUnknown,
            },
        }
    }
}
