//! What the service counts. Labels are methods and reasons: both sets are fixed.

use crate::accept::AcceptMetrics;
use crate::clock;
use crate::failure::Failure;
use crate::service::admission::Access;
use crate::service::status;
use crate::telemetry::register;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use std::time::Instant;

/// Answers after 50 us to 10 s.
const SECONDS: [f64; 14] =
    [0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0, 5.0, 10.0];

/// Metrics of the service. Cheap to clone.
#[derive(Clone)]
pub struct ServiceMetrics {
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    frames: [FrameMetrics; 2],
    frames_refused: IntCounterVec,
    streams: IntGauge,
    /// Connections of clients.
    pub accept: AcceptMetrics,
    /// Bytes of requests and answers in flight; set when somebody looks.
    pub inflight_bytes: IntGauge,
}

#[derive(Clone)]
struct FrameMetrics {
    frames: IntCounter,
    operations: IntCounter,
    seconds: Histogram,
}

/// One more, until dropped.
pub struct Gauged(IntGauge);

impl Gauged {
    fn new(gauge: &IntGauge) -> Gauged {
        gauge.inc();
        Gauged(gauge.clone())
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a unary call when it ends; one that the client gave up counts as cancelled.
pub struct Call<'a> {
    metrics: &'a ServiceMetrics,
    method: &'static str,
    started: Instant,
    outcome: &'static str,
}

impl Call<'_> {
    /// Notes how it ended.
    pub fn ended<T>(&mut self, result: &Result<T, Failure>) {
        self.outcome = result.as_ref().map_or_else(|failure| status::label(failure.reason), |_| "ok");
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let seconds = clock::now().duration_since(self.started).as_secs_f64();
        self.metrics.requests.with_label_values(&[self.method, self.outcome]).inc();
        self.metrics.request_seconds.with_label_values(&[self.method]).observe(seconds);
    }
}

impl ServiceMetrics {
    /// Creates the metrics and registers them.
    pub fn register(registry: &Registry) -> ServiceMetrics {
        let frames = counters("dtkv_service_frames_total", "Frames answered, by access.", &["access"]);
        let operations = counters(
            "dtkv_service_operations_total",
            "Operations in frames answered, by access.",
            &["access"],
        );
        let seconds =
            histograms("dtkv_service_frame_seconds", "From a frame's arrival to its answer.", "access");
        let of = |access: &str| FrameMetrics {
            frames: frames.with_label_values(&[access]),
            operations: operations.with_label_values(&[access]),
            seconds: seconds.with_label_values(&[access]),
        };
        let metrics = ServiceMetrics {
            requests: counters(
                "dtkv_service_requests_total",
                "Unary calls by method and outcome: ok, or the reason of the failure.",
                &["method", "outcome"],
            ),
            request_seconds: histograms("dtkv_service_request_seconds", "Time of unary calls.", "method"),
            frames: [of("write"), of("read")],
            frames_refused: counters(
                "dtkv_service_frames_refused_total",
                "Frames that got no answer from the store, by reason.",
                &["reason"],
            ),
            streams: gauge("dtkv_service_streams", "Open streams of frames."),
            accept: AcceptMetrics {
                open: gauge("dtkv_service_connections", "Open client connections."),
                refused: counter(
                    "dtkv_service_connections_refused_total",
                    "Client connections closed because there were too many, or their handshake took too long.",
                ),
            },
            inflight_bytes: gauge("dtkv_service_inflight_bytes", "Bytes of requests and answers in flight."),
        };
        register(registry, Box::new(frames));
        register(registry, Box::new(operations));
        register(registry, Box::new(seconds));
        metrics.register_own(registry);
        metrics
    }

    fn register_own(&self, registry: &Registry) {
        let all: [Box<dyn Collector>; 7] = [
            Box::new(self.requests.clone()),
            Box::new(self.request_seconds.clone()),
            Box::new(self.frames_refused.clone()),
            Box::new(self.streams.clone()),
            Box::new(self.accept.open.clone()),
            Box::new(self.accept.refused.clone()),
            Box::new(self.inflight_bytes.clone()),
        ];
        for collector in all {
            register(registry, collector);
        }
    }

    /// A unary call begins.
    pub fn call(&self, method: &'static str) -> Call<'_> {
        Call { metrics: self, method, started: clock::now(), outcome: "cancelled" }
    }

    /// A frame is answered.
    pub fn frame(&self, access: Access, count: u32, started: Instant, failure: Option<&Failure>) {
        if let Some(failure) = failure {
            self.frames_refused.with_label_values(&[status::label(failure.reason)]).inc();
            return;
        }
        let metrics = &self.frames[usize::from(access == Access::Read)];
        metrics.frames.inc();
        metrics.operations.inc_by(count.into());
        metrics.seconds.observe(clock::now().duration_since(started).as_secs_f64());
    }

    /// A stream is open until this is dropped.
    pub fn stream(&self) -> Gauged {
        Gauged::new(&self.streams)
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("a metric's name and labels are constants")
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("a metric's name is a constant")
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("a metric's name is a constant")
}

fn histograms(name: &str, help: &str, label: &str) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
    HistogramVec::new(options, &[label]).expect("a metric's name and labels are constants")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::render;

    #[test]
    fn calls_and_frames_are_counted_by_outcome() {
        let registry = Registry::new();
        let metrics = ServiceMetrics::register(&registry);
        let mut call = metrics.call("Put");
        call.ended(&Ok::<(), Failure>(()));
        drop(call);
        drop(metrics.call("Put"));
        metrics.frame(Access::Read, 64, clock::now(), None);
        metrics.frame(Access::Write, 64, clock::now(), Some(&Failure::overloaded("full", 1)));
        let _stream = metrics.stream();
        let text = String::from_utf8(render(&registry)).expect("text");
        for line in [
            "dtkv_service_requests_total{method=\"Put\",outcome=\"ok\"} 1",
            "dtkv_service_requests_total{method=\"Put\",outcome=\"cancelled\"} 1",
            "dtkv_service_operations_total{access=\"read\"} 64",
            "dtkv_service_operations_total{access=\"write\"} 0",
            "dtkv_service_frames_refused_total{reason=\"overloaded\"} 1",
            "dtkv_service_streams 1",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }
}
