//! Log output and the metrics registry.

use crate::clock;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, IntGauge, Registry, TextEncoder};
use std::io::IsTerminal;
use std::time::Instant;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts the log output, once for the process; a later call changes nothing. openraft tells every
/// step of every group at `info` and every message that a lost peer did not get at `warn`, so it has
/// a level of its own: `openraft=info` in `filter` raises it.
///
/// # Errors
/// When `filter` is no log filter.
pub fn init_log(filter: &str, json: bool) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter: EnvFilter = format!("openraft=error,{filter}").parse()?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    // A subscriber that is already there (a test, an embedding program) stays.
    let _ = if json { builder.json().finish().try_init() } else { builder.finish().try_init() };
    Ok(())
}

/// A registry that already knows the process: memory, open files, time since the start.
pub fn registry() -> Registry {
    let registry = Registry::new();
    register(&registry, Box::new(ProcessCollector::new()));
    registry
}

/// Registers a collector whose name is fixed in the code: a second one of the same name is a defect
/// that costs the metric, not the node.
pub fn register(registry: &Registry, collector: Box<dyn Collector>) {
    if let Err(error) = registry.register(collector) {
        tracing::error!(%error, "a metric could not be registered");
    }
}

/// Everything registered, in Prometheus' text format.
pub fn render(registry: &Registry) -> Vec<u8> {
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut text) {
        tracing::error!(%error, "metrics could not be encoded");
    }
    text
}

/// What the operating system says about this process.
struct ProcessCollector {
    started: Instant,
    resident_bytes: IntGauge,
    open_files: IntGauge,
    threads: IntGauge,
    uptime_seconds: IntGauge,
}

impl ProcessCollector {
    fn new() -> ProcessCollector {
        ProcessCollector {
            started: clock::now(),
            resident_bytes: gauge("dtkv_process_resident_bytes", "Memory that the process holds."),
            open_files: gauge("dtkv_process_open_files", "Open file descriptors."),
            threads: gauge("dtkv_process_threads", "Threads."),
            uptime_seconds: gauge("dtkv_process_uptime_seconds", "Time since the start."),
        }
    }

    fn gauges(&self) -> [&IntGauge; 4] {
        [&self.resident_bytes, &self.open_files, &self.threads, &self.uptime_seconds]
    }
}

/// A gauge whose name is fixed in the code.
fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("a metric's name and help are constants")
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        self.resident_bytes.set(status_number(&status, "VmRSS:") * 1024);
        self.threads.set(status_number(&status, "Threads:"));
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        self.open_files.set(files as i64);
        self.uptime_seconds.set(clock::now().duration_since(self.started).as_secs() as i64);
        self.gauges().into_iter().flat_map(Collector::collect).collect()
    }
}

/// The number behind a name in `/proc/self/status`; 0 where there is none.
fn status_number(status: &str, name: &str) -> i64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_shows_the_process() {
        let text = String::from_utf8(render(&registry())).expect("text");
        let line =
            text.lines().find(|line| line.starts_with("dtkv_process_resident_bytes ")).expect("a line");
        let bytes: i64 = line.split(' ').nth(1).expect("a number").parse().expect("a number");
        assert!(bytes > 1 << 20, "{line}");
    }

    #[test]
    fn a_bad_filter_is_refused() {
        assert!(init_log("dtkv=loud", false).is_err());
    }
}
