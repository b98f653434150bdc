//! What the engine tells about itself.

use crate::keyspace::Family;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

/// Metrics of one engine.
#[derive(Clone)]
pub struct EngineMetrics {
    pub(super) sync_seconds: Histogram,
    pub(super) write_seconds: Histogram,
    pub(super) sync_bytes: Histogram,
    pub(super) sync_writes: Histogram,
    pub(super) queue_bytes: IntGauge,
    pub(super) writes: IntCounter,
    pub(super) wal_bytes: IntCounter,
    pub(super) memtable_bytes: IntGaugeVec,
    pub(super) sst_bytes: IntGaugeVec,
    pub(super) disk_free_bytes: IntGauge,
    pub(super) disk_reserve_bytes: IntGauge,
    pub(super) disk_low: IntGauge,
}

impl EngineMetrics {
    /// Registers them.
    ///
    /// # Panics
    /// When the registry has them already.
    pub fn register(registry: &Registry) -> EngineMetrics {
        let seconds = vec![
            0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1,
            0.25, 0.5, 1.0, 5.0,
        ];
        let bytes = vec![256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0];
        let counts = vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
        EngineMetrics {
            sync_seconds: histogram(
                registry,
                "dtkv_engine_sync_seconds",
                "Time of one sync of the write-ahead log.",
                seconds.clone(),
            ),
            write_seconds: histogram(
                registry,
                "dtkv_engine_write_seconds",
                "Time to put one batch into the write-ahead log and the memtables.",
                seconds,
            ),
            sync_bytes: histogram(
                registry,
                "dtkv_engine_sync_bytes",
                "Bytes made durable by one sync.",
                bytes,
            ),
            sync_writes: histogram(
                registry,
                "dtkv_engine_sync_writes",
                "Writes made durable by one sync.",
                counts,
            ),
            queue_bytes: registered(
                registry,
                IntGauge::new("dtkv_engine_queue_bytes", "Bytes submitted and not durable yet."),
            ),
            writes: registered(registry, IntCounter::new("dtkv_engine_writes_total", "Writes done.")),
            wal_bytes: registered(
                registry,
                IntCounter::new("dtkv_engine_wal_bytes_total", "Bytes written to the write-ahead log."),
            ),
            memtable_bytes: families(registry, "dtkv_engine_memtable_bytes", "Memory of the memtables."),
            sst_bytes: families(registry, "dtkv_engine_sst_bytes", "Table files on the disk."),
            disk_free_bytes: registered(
                registry,
                IntGauge::new(
                    "dtkv_engine_disk_free_bytes",
                    "Free space of the disk under the data directory.",
                ),
            ),
            disk_reserve_bytes: registered(
                registry,
                IntGauge::new(
                    "dtkv_engine_disk_reserve_bytes",
                    "Writes that grow are refused while less than this is free.",
                ),
            ),
            disk_low: registered(
                registry,
                IntGauge::new(
                    "dtkv_engine_disk_low",
                    "1 while writes that grow are refused for want of disk space.",
                ),
            ),
        }
    }
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
    registered(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
}

fn families(registry: &Registry, name: &str, help: &str) -> IntGaugeVec {
    let gauges = registered(registry, IntGaugeVec::new(Opts::new(name, help), &["family"]));
    for family in Family::ALL {
        gauges.with_label_values(&[family.name()]);
    }
    gauges
}

fn registered<M>(registry: &Registry, metric: prometheus::Result<M>) -> M
where
    M: Collector + Clone + 'static,
{
    let metric = metric.expect("the metric is well formed");
    registry.register(Box::new(metric.clone())).expect("the metric is registered once");
    metric
}
