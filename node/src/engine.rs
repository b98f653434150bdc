//! The disk: one RocksDB for all groups of the node, behind one queue of writes. What waits in the
//! queue goes in one batch, one sync makes it durable, and then everybody is told, in order.

use crate::keyspace::Family;
use crate::planted::{self, Fault};
use bytes::Bytes;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

pub mod checkpoint;
mod commit;
mod error;
mod format;
mod metrics;
mod rocks;
mod scan;
mod space;
mod watermark;

pub use error::EngineError;
pub use format::FORMAT_VERSION;
pub use metrics::EngineMetrics;
pub use scan::SnapshotScan;
pub use space::{DiskProbe, DiskSize, DiskSpace, disk_size};

use commit::Commit;
use rocks::Rocks;
use space::SpaceWatch;
use watermark::WatermarkKeeper;

/// When a write counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it is synced to the disk.
    #[default]
    Fsync,
    /// Once the operating system has it; synced right after, without waiting. A power failure can
    /// take back what was acknowledged.
    Os,
}

/// Called with the cause when a write or a sync failed. Must not let the node go on.
pub type FailStop = Arc<dyn Fn(&str) + Send + Sync>;

/// How the engine runs.
#[derive(Clone)]
pub struct EngineOptions {
    /// The data directory; created when missing.
    pub path: PathBuf,
    /// When a write counts as done.
    pub durability: Durability,
    /// Memtable of the log in bytes; write-ahead log files become about as large.
    pub write_buffer_bytes: usize,
    /// No more than this goes into one batch, except a single write that is larger.
    pub batch_bytes_max: usize,
    /// Above this, [`Engine::room`] waits.
    pub queue_bytes_max: usize,
    /// Below so many free bytes the disk counts as low; None: 512 MiB or a twentieth of the disk,
    /// whichever is less; 0: never.
    pub disk_reserve_bytes: Option<u64>,
    /// How to look at the free space.
    pub disk_probe: DiskProbe,
    /// What to do when the disk fails.
    pub fail_stop: FailStop,
}

impl EngineOptions {
    /// The defaults, on this directory.
    pub fn new(path: impl Into<PathBuf>) -> EngineOptions {
        EngineOptions {
            path: path.into(),
            durability: Durability::Fsync,
            write_buffer_bytes: 128 << 20,
            batch_bytes_max: 1 << 20,
            queue_bytes_max: 64 << 20,
            disk_reserve_bytes: None,
            disk_probe: Arc::new(disk_size),
            fail_stop: Arc::new(|cause| {
                let advice = space::advice(cause);
                tracing::error!(
                    cause,
                    advice,
                    "the disk failed; the node stops before it could break a promise"
                );
                eprintln!(
                    "the disk failed; the node stops before it could break a promise: {cause}. {advice}."
                );
                std::process::abort();
            }),
        }
    }
}

/// Called when a write is done, on a thread of the engine, in the order of the writes. Must be
/// cheap.
pub type Completion = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Operations that go to the disk together or not at all.
pub struct Write {
    /// What to do, in this order. Empty: done when everything before it is.
    pub ops: Vec<WriteOp>,
    /// Whom to tell.
    pub done: Option<Completion>,
}

/// One operation of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOp {
    /// Sets a key.
    Put {
        /// Where.
        family: Family,
        /// Key, from `keyspace`.
        key: Vec<u8>,
        /// Record, from `keyspace` or a codec of its own.
        value: Bytes,
    },
    /// Removes a key.
    Delete {
        /// Where.
        family: Family,
        /// Key, from `keyspace`.
        key: Vec<u8>,
    },
    /// Removes the keys `from..to`.
    DeleteRange {
        /// Where.
        family: Family,
        /// First key.
        from: Vec<u8>,
        /// First key that stays.
        to: Vec<u8>,
    },
}

impl WriteOp {
    /// Sets a key.
    pub fn put(family: Family, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) -> WriteOp {
        WriteOp::Put { family, key: key.into(), value: value.into() }
    }

    /// Removes a key.
    pub fn delete(family: Family, key: impl Into<Vec<u8>>) -> WriteOp {
        WriteOp::Delete { family, key: key.into() }
    }

    /// Removes a range of keys.
    pub fn delete_range(family: Family, (from, to): crate::keyspace::KeyRange) -> WriteOp {
        WriteOp::DeleteRange { family, from, to }
    }

    /// About what it takes in a batch.
    pub fn bytes(&self) -> usize {
        // Tag, column family and the lengths.
        const OVERHEAD: usize = 12;
        OVERHEAD
            + match self {
                WriteOp::Put { key, value, .. } => key.len() + value.len(),
                WriteOp::Delete { key, .. } => key.len(),
                WriteOp::DeleteRange { from, to, .. } => from.len() + to.len(),
            }
    }
}

/// The node's one disk. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    options: EngineOptions,
    rocks: Arc<Rocks>,
    commit: Arc<Commit>,
    keeper: Arc<WatermarkKeeper>,
    space: Arc<SpaceWatch>,
    threads: parking_lot::Mutex<Vec<JoinHandle<()>>>,
    stopped: AtomicBool,
}

impl Engine {
    /// Opens the data directory, or makes one.
    ///
    /// # Errors
    /// When the directory cannot be used: of a newer format, in use by another process, damaged,
    /// or come back without writes that were acknowledged. The error says what to do.
    pub fn open(options: EngineOptions, metrics: EngineMetrics) -> Result<Engine, EngineError> {
        std::fs::create_dir_all(&options.path).map_err(|e| EngineError::io(&options.path, e))?;
        let fresh = format::check(&options.path)?;
        let rocks = Arc::new(Rocks::open(&options)?);
        let found = rocks.latest_sequence();
        if fresh && found > 0 {
            return Err(EngineError::NoFormat { path: options.path });
        }
        let file = watermark::WatermarkFile::open(&options.path, fresh)?;
        if found < file.durable() && !planted::has(Fault::LossIgnored) {
            return Err(EngineError::LostWrites { path: options.path, found, durable: file.durable() });
        }
        if fresh {
            format::write(&options.path, FORMAT_VERSION).map_err(|e| EngineError::io(&options.path, e))?;
        }
        Ok(Engine::start(options, metrics, rocks, file))
    }

    fn start(
        options: EngineOptions,
        metrics: EngineMetrics,
        rocks: Arc<Rocks>,
        file: watermark::WatermarkFile,
    ) -> Engine {
        let commit = Arc::new(Commit::new(&options, rocks.clone(), metrics.clone(), file.durable()));
        let (probe, reserve) = (options.disk_probe.clone(), options.disk_reserve_bytes);
        let space = Arc::new(SpaceWatch::new(&options.path, probe, reserve, metrics.clone()));
        let keeper = WatermarkKeeper::new(commit.clone(), rocks.clone(), space.clone(), metrics);
        let keeper = Arc::new(keeper);
        let mut threads = commit::spawn(&commit);
        threads.push(watermark::spawn(&keeper, file));
        Engine(Arc::new(Inner {
            options,
            rocks,
            commit,
            keeper,
            space,
            threads: parking_lot::Mutex::new(threads),
            stopped: AtomicBool::new(false),
        }))
    }

    /// Queues a write; from any thread, never waits. Writes are done in the order of these calls.
    pub fn submit(&self, write: Write) {
        self.0.commit.submit(write);
    }

    /// Queues a write and waits until it is done.
    ///
    /// # Errors
    /// When the disk failed or the engine was shut down.
    pub async fn write(&self, ops: Vec<WriteOp>) -> io::Result<()> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let done: Completion = Box::new(move |result| {
            let _ = tell.send(result);
        });
        self.submit(Write { ops, done: Some(done) });
        told.await.unwrap_or_else(|_| Err(commit::stopped()))
    }

    /// The same for threads that may block: start and stop of the node.
    ///
    /// # Errors
    /// As [`Engine::write`].
    pub fn write_blocking(&self, ops: Vec<WriteOp>) -> io::Result<()> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let done: Completion = Box::new(move |result| {
            let _ = tell.send(result);
        });
        self.submit(Write { ops, done: Some(done) });
        told.recv().unwrap_or_else(|_| Err(commit::stopped()))
    }

    /// Bytes that were submitted and are not durable yet.
    pub fn queue_bytes(&self) -> usize {
        self.0.commit.queue_bytes()
    }

    /// Waits until the queue is below `queue_bytes_max`.
    pub async fn room(&self) {
        self.0.commit.room().await;
    }

    /// Whether the disk has too little space for anything to grow.
    pub fn is_disk_low(&self) -> bool {
        self.0.space.is_low()
    }

    /// The free space of the disk, as it was at most some 100 ms ago.
    pub fn disk_space(&self) -> DiskSpace {
        self.0.space.state()
    }

    /// When a write counts as done.
    pub fn durability(&self) -> Durability {
        self.0.options.durability
    }

    /// The value of a key. Sees every write that reached the batch, durable or not.
    ///
    /// # Errors
    /// When RocksDB cannot read.
    pub fn get(&self, family: Family, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.0.rocks.get(family, key)
    }

    /// The records `from..to` in key order.
    pub fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
    ) -> impl Iterator<Item = io::Result<scan::Record>> + use<'_> {
        self.0.rocks.scan(family, from, to)
    }

    /// The records `from..to` in key order as they are now, however long the reading takes.
    ///
    /// # Errors
    /// When no thread can be started for it.
    pub fn snapshot_scan(&self, family: Family, from: Vec<u8>, to: Vec<u8>) -> io::Result<SnapshotScan> {
        SnapshotScan::start(self.0.rocks.clone(), family, from, to)
    }

    /// Deletes whole table files that lie within `from..to`, after the keys were deleted by a
    /// write that is done: frees the space of a large range at once.
    ///
    /// # Errors
    /// When RocksDB refuses.
    pub fn free_files(&self, family: Family, from: &[u8], to: &[u8]) -> io::Result<()> {
        self.0.rocks.free_files(family, from, to)
    }

    /// Does what is queued, syncs, and stops. Later writes are refused.
    pub fn shutdown(&self) {
        self.0.shutdown();
    }
}

impl Inner {
    fn shutdown(&self) {
        if self.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        self.commit.stop();
        let mut threads = std::mem::take(&mut *self.threads.lock());
        let keeper_thread = threads.pop();
        let own = std::thread::current().id();
        let join = |thread: JoinHandle<()>| {
            // The last handle can be dropped by a completion, on a thread of the engine itself.
            if thread.thread().id() != own && thread.join().is_err() {
                tracing::error!("a thread of the engine panicked");
            }
        };
        threads.into_iter().for_each(join);
        self.keeper.stop();
        keeper_thread.into_iter().for_each(join);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests;
