//! The HTTP port: metrics and probes for machines, the status page for people.

use crate::service::Service;
use crate::service::admin::statuses;
use crate::service::group_metrics::GroupMetrics;
use crate::service::page::Page;
use crate::telemetry;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::Registry;
use std::sync::Arc;
use tokio::net::TcpListener;

/// What the HTTP port shows.
pub struct Http {
    service: Service,
    registry: Registry,
    groups: GroupMetrics,
    notices: Vec<String>,
}

type Shared = State<Arc<Http>>;

impl Http {
    /// `notices` are shown on the status page: what an operator must not overlook.
    pub fn new(service: Service, registry: Registry, groups: GroupMetrics, notices: Vec<String>) -> Http {
        Http { service, registry, groups, notices }
    }

    /// Every path.
    pub fn router(self) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/status.json", get(status_json))
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .fallback(|| async {
                (StatusCode::NOT_FOUND, "try /, /status.json, /metrics, /healthz or /readyz\n")
            })
            .with_state(Arc::new(self))
    }

    /// Serves the port until the service is stopped.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let stop = self.service.0.stop.clone();
        axum::serve(listener, self.router()).with_graceful_shutdown(stop.cancelled_owned()).await
    }

    fn view(&self) -> Page {
        let store = &self.service.0.store;
        let nodes = store.list_nodes().nodes;
        let mut notices = self.notices.clone();
        notices.extend(store.check_space().err().map(|failure| failure.message));
        Page::new(&store.identity(), &nodes, &statuses(store), self.service.is_ready(), notices)
    }
}

fn typed(content_type: &'static str) -> [(HeaderName, &'static str); 2] {
    [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store")]
}

async fn page(State(http): Shared) -> impl IntoResponse {
    // The page is one file: nothing from elsewhere runs in it.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'";
    ([(CONTENT_SECURITY_POLICY, policy)], typed("text/html; charset=utf-8"), http.view().html())
}

async fn status_json(State(http): Shared) -> impl IntoResponse {
    (typed("application/json"), serde_json::to_string_pretty(&http.view()).unwrap_or_default())
}

async fn metrics(State(http): Shared) -> impl IntoResponse {
    let service = &http.service.0;
    service.metrics.inflight_bytes.set(service.budget.used() as i64);
    let (identity, groups) = (service.store.identity(), statuses(&service.store));
    let text = http.groups.look(&identity, &groups, || telemetry::render(&http.registry));
    (typed("text/plain; version=0.0.4; charset=utf-8"), text)
}

async fn ready(State(http): Shared) -> impl IntoResponse {
    if http.service.is_ready() {
        // A node whose disk is nearly full serves reads and removes: nobody must turn away from it.
        let space = http.service.0.store.check_space().err();
        let warning = space.map_or_else(String::new, |failure| format!("warning: {}\n", failure.message));
        return (StatusCode::OK, format!("ready\n{warning}"));
    }
    let waiting = statuses(&http.service.0.store).into_iter().filter(|status| !status.ready);
    let waiting: Vec<String> = waiting.map(|status| format!("g{}", status.group_id)).take(20).collect();
    let why =
        if waiting.is_empty() { "stopping".to_owned() } else { format!("waiting for {}", waiting.join(" ")) };
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n"))
}
