//! What is counted about watches, on the whole node.

use crate::telemetry::register;
use prometheus::{IntCounter, IntGauge, Registry};

/// Shared by every hub and every stream of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WatchMetrics {
    /// Open streams of watches.
    pub streams: IntGauge,
    /// Watches on them.
    pub watches: IntGauge,
    /// Bytes that the histories of all groups take.
    pub history_bytes: IntGauge,
    /// Deliveries packed; one for several watches of a stream counts once.
    pub deliveries: IntCounter,
    /// Bytes of them.
    pub bytes: IntCounter,
    /// Times that an event watch fell back to the history because its stream was full.
    pub fallbacks: IntCounter,
    /// Watches that ended because the history they had yet to get was gone.
    pub compacted: IntCounter,
}

impl Default for WatchMetrics {
    fn default() -> WatchMetrics {
        let gauge = |name, help| IntGauge::new(name, help).expect("a metric's name is a constant");
        let counter = |name, help| IntCounter::new(name, help).expect("a metric's name is a constant");
        WatchMetrics {
            streams: gauge("dtkv_watch_streams", "Open streams of watches."),
            watches: gauge("dtkv_watch_watches", "Watches on open streams."),
            history_bytes: gauge("dtkv_watch_history_bytes", "Bytes of events kept for event watches."),
            deliveries: counter("dtkv_watch_deliveries_total", "Events and states sent, per stream."),
            bytes: counter("dtkv_watch_bytes_total", "Bytes of deliveries sent."),
            fallbacks: counter(
                "dtkv_watch_fallbacks_total",
                "Times that an event watch fell back to the history because its stream was full.",
            ),
            compacted: counter(
                "dtkv_watch_compacted_total",
                "Event watches ended because the history they had yet to get was gone.",
            ),
        }
    }
}

impl WatchMetrics {
    /// Creates the metrics and registers them.
    pub fn register(registry: &Registry) -> WatchMetrics {
        let metrics = WatchMetrics::default();
        for gauge in [&metrics.streams, &metrics.watches, &metrics.history_bytes] {
            register(registry, Box::new(gauge.clone()));
        }
        for counter in [&metrics.deliveries, &metrics.bytes, &metrics.fallbacks, &metrics.compacted] {
            register(registry, Box::new(counter.clone()));
        }
        metrics
    }
}
