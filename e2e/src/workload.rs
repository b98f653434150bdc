//! Clients that read and write all the time, and remember what they were told.
//!
//! Two things are kept of each group: a history of operations on a few keys for the checker, and the
//! names of keys that were written once and must be there for ever once acknowledged.

mod client;
mod verify;

pub use verify::Verdict;

use crate::history::{History, Operation};
use anyhow::{Result, bail};
use dtkv_client::Client;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What to do.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// Groups to work on.
    pub groups: Vec<u32>,
    /// Clients of each group.
    pub clients: u32,
    /// Keys of each group for the checker.
    pub keys: u32,
    /// Size of each value.
    pub value_bytes: usize,
    /// Deadline of each operation.
    pub timeout: Duration,
    /// Time between two operations of a client.
    pub pause: Duration,
    /// Whether half of the clients read by lease; the checker makes no difference.
    pub lease_reads: bool,
}

impl WorkloadOptions {
    /// Eight clients, twenty keys, small values, two seconds for each operation.
    pub fn new(groups: Vec<u32>) -> WorkloadOptions {
        WorkloadOptions {
            groups,
            clients: 8,
            keys: 20,
            value_bytes: 64,
            timeout: Duration::from_secs(2),
            pause: Duration::from_millis(2),
            lease_reads: false,
        }
    }
}

impl WorkloadOptions {
    /// Half of the clients read by lease.
    #[must_use]
    pub fn with_lease_reads(mut self) -> WorkloadOptions {
        self.lease_reads = true;
        self
    }
}

/// What one group's clients were told.
#[derive(Debug, Default)]
struct Records {
    history: History,
    inserted: Vec<String>,
    insert_unknown: Vec<String>,
}

/// What all clients share.
struct Shared {
    options: WorkloadOptions,
    origin: Instant,
    stop: AtomicBool,
    next_value: AtomicU64,
    acknowledged: AtomicU64,
    definite_failures: AtomicU64,
    records: BTreeMap<u32, Mutex<Records>>,
    last_failures: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Clients at work.
pub struct Workload {
    shared: Arc<Shared>,
    tasks: JoinSet<Result<()>>,
}

impl Workload {
    /// Makes the directories that the workload needs, and lets the clients begin.
    ///
    /// # Errors
    /// When the cluster cannot be reached.
    pub async fn start(endpoints: Vec<String>, options: WorkloadOptions) -> Result<Workload> {
        let client = Client::connect(endpoints.clone()).await?;
        for &group in &options.groups {
            let group = client.group(group).with_timeout(Duration::from_secs(20));
            group.mkdir(client::REGISTERS).await?;
            group.mkdir(client::INSERTS).await?;
        }
        let shared = Arc::new(Shared::new(options));
        let mut tasks = JoinSet::new();
        for number in 0..shared.options.clients {
            // Half of the clients share a connection, half have another one.
            let client =
                if number % 2 == 0 { client.clone() } else { Client::connect(endpoints.clone()).await? };
            for &group in &shared.options.groups {
                tasks.spawn(client::run(shared.clone(), client.clone(), group, number));
            }
        }
        Ok(Workload { shared, tasks })
    }

    /// Operations acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until this many more operations were acknowledged.
    ///
    /// # Errors
    /// When that takes longer than half a minute.
    pub async fn progress(&self, more: u64) -> Result<()> {
        let (start, since) = (self.acknowledged(), Instant::now());
        while self.acknowledged() < start + more {
            if since.elapsed() > Duration::from_secs(30) {
                let failures = self.shared.last_failures.lock().clone();
                bail!("no progress: {} of {more} operations; {failures:#?}", self.acknowledged() - start);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Stops the clients and collects what they were told.
    ///
    /// # Errors
    /// When a client got an answer that no right store gives.
    pub async fn stop(mut self) -> Result<Verdict> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.tasks.join_next().await {
            done??;
        }
        Ok(Verdict::new(self.shared))
    }
}

impl Shared {
    fn new(options: WorkloadOptions) -> Shared {
        Shared {
            origin: Instant::now(),
            stop: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            acknowledged: AtomicU64::new(0),
            definite_failures: AtomicU64::new(0),
            records: options.groups.iter().map(|&group| (group, Mutex::default())).collect(),
            last_failures: Mutex::default(),
            options,
        }
    }

    fn record(&self, group: u32, operation: Operation) {
        self.records[&group].lock().history.operations.push(operation);
    }
}
