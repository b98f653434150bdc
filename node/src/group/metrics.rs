//! Counters of all replicas of a node together; what is told per group is gathered at the scrape.

use prometheus::{Histogram, HistogramOpts, IntCounter, Registry};

/// Shared by every replica of a node.
#[derive(Clone)]
pub struct GroupMetrics {
    /// Proposals handed to Raft.
    pub proposals: IntCounter,
    /// Commands in them.
    pub commands: IntCounter,
    /// Writes whose deadline passed before they were committed.
    pub proposals_expired: IntCounter,
    /// Time from the proposal to its answer, in seconds.
    pub proposal_seconds: Histogram,
    /// Time to apply one entry, in seconds.
    pub apply_seconds: Histogram,
    /// Read rounds (read index).
    pub read_rounds: IntCounter,
    /// Checkpoints written.
    pub checkpoints: IntCounter,
    /// Snapshots received and installed.
    pub snapshots_installed: IntCounter,
    /// Nodes removed because their time was over.
    pub expired: IntCounter,
    /// How long after its time a node was removed, in seconds.
    pub expiry_lag_seconds: Histogram,
    /// Groups put to sleep, and woken.
    pub parked: IntCounter,
    /// Woken.
    pub woken: IntCounter,
}

impl GroupMetrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> Result<GroupMetrics, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let histogram = |name: &str, help: &str, first: f64| {
            let buckets = prometheus::exponential_buckets(first, 2.0, 18)?;
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        Ok(GroupMetrics {
            proposals: counter("dtkv_group_proposals_total", "Proposals handed to Raft")?,
            commands: counter("dtkv_group_commands_total", "Commands in the proposals")?,
            proposals_expired: counter(
                "dtkv_group_proposals_expired_total",
                "Writes whose deadline passed before they were committed",
            )?,
            proposal_seconds: histogram(
                "dtkv_group_proposal_seconds",
                "Time from a proposal to its answer",
                0.000_05,
            )?,
            apply_seconds: histogram("dtkv_group_apply_seconds", "Time to apply one entry", 0.000_001)?,
            read_rounds: counter("dtkv_group_read_rounds_total", "Rounds that confirmed a leader for reads")?,
            checkpoints: counter("dtkv_group_checkpoints_total", "Checkpoints written")?,
            snapshots_installed: counter(
                "dtkv_group_snapshots_installed_total",
                "Snapshots received from a leader and installed",
            )?,
            expired: counter(
                "dtkv_group_expired_nodes_total",
                "Nodes removed because their time was over, by this node as the leader",
            )?,
            expiry_lag_seconds: histogram(
                "dtkv_group_expiry_lag_seconds",
                "Time from the end of a node's lease to its removal",
                0.001,
            )?,
            parked: counter("dtkv_group_parked_total", "Times that an idle group went to sleep")?,
            woken: counter("dtkv_group_woken_total", "Times that a sleeping group was woken")?,
        })
    }
}
