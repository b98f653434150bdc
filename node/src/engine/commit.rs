//! The way of every write: queue, batch, sync, completion. Two threads share two roles. Whoever
//! holds *write* puts what waits into one batch; whoever holds *sync* makes durable what was
//! written until then. So the next batch is built while the disk syncs, and with a single write in
//! flight the thread that takes it also syncs it and tells the caller.

use super::rocks::Rocks;
use super::{Completion, Durability, EngineMetrics, EngineOptions, FailStop, Write, WriteOp};
use crate::planted::{self, Fault, Plot};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

const THREADS: usize = 2;
/// While a sync runs, up to this many full batches are written behind it.
const BATCHES_AHEAD: usize = 4;

pub(super) struct Commit {
    rocks: Arc<Rocks>,
    metrics: EngineMetrics,
    durability: Durability,
    batch_bytes_max: usize,
    queue_bytes_max: usize,
    fail_stop: FailStop,
    state: Mutex<State>,
    wake: Condvar,
    /// Held while completions run, taken before the sync role is given back: keeps their order.
    completing: Mutex<()>,
    queue_bytes: AtomicUsize,
    durable: AtomicU64,
    room: tokio::sync::Notify,
    #[cfg(test)]
    pub(super) faults: faults::Faults,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    /// Written and not synced.
    written: Written,
    writing: bool,
    syncing: bool,
    /// Threads that wait and have not been woken.
    idle: usize,
    stopping: bool,
    failed: bool,
}

struct Queued {
    write: Write,
    bytes: usize,
}

#[derive(Default)]
struct Written {
    done: Vec<Completion>,
    writes: usize,
    bytes: usize,
    sequence: u64,
}

enum Role {
    Write(Vec<Write>, usize),
    Sync(Written),
}

/// What a write gets that comes too late.
pub(super) fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the engine has stopped: the write was not done")
}

fn failed(cause: &str) -> io::Error {
    io::Error::other(format!("the disk failed, whether the write was done is unknown: {cause}"))
}

impl Commit {
    pub(super) fn new(
        options: &EngineOptions,
        rocks: Arc<Rocks>,
        metrics: EngineMetrics,
        durable: u64,
    ) -> Commit {
        Commit {
            rocks,
            metrics,
            durability: options.durability,
            batch_bytes_max: options.batch_bytes_max,
            queue_bytes_max: options.queue_bytes_max,
            fail_stop: options.fail_stop.clone(),
            state: Mutex::default(),
            wake: Condvar::new(),
            completing: Mutex::new(()),
            queue_bytes: AtomicUsize::new(0),
            durable: AtomicU64::new(durable),
            room: tokio::sync::Notify::new(),
            #[cfg(test)]
            faults: faults::Faults::default(),
        }
    }

    pub(super) fn submit(&self, write: Write) {
        let bytes = write.ops.iter().map(WriteOp::bytes).sum();
        let mut state = self.state.lock();
        if state.stopping || state.failed {
            drop(state);
            complete(write.done, || Err(stopped()));
            return;
        }
        self.queue_bytes.fetch_add(bytes, Ordering::Relaxed);
        state.queue.push_back(Queued { write, bytes });
        self.wake_one(&mut state);
    }

    pub(super) fn queue_bytes(&self) -> usize {
        self.queue_bytes.load(Ordering::Relaxed)
    }

    pub(super) async fn room(&self) {
        loop {
            let freed = self.room.notified();
            if self.queue_bytes() < self.queue_bytes_max {
                return;
            }
            freed.await;
        }
    }

    /// Number of the last operation that is known to be durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Refuses new writes; the threads end when the queue is empty.
    pub(super) fn stop(&self) {
        self.state.lock().stopping = true;
        self.wake.notify_all();
    }

    fn can_sync(&self, state: &State) -> bool {
        !state.syncing && state.written.writes > 0
    }

    fn can_write(&self, state: &State) -> bool {
        let ahead = state.written.bytes < BATCHES_AHEAD * self.batch_bytes_max;
        !state.writing && !state.queue.is_empty() && ahead
    }

    /// Wakes a waiting thread when there is a role for it.
    fn wake_one(&self, state: &mut MutexGuard<'_, State>) {
        if state.idle > 0 && (self.can_sync(state) || self.can_write(state)) {
            state.idle -= 1;
            self.wake.notify_one();
        }
    }

    /// Waits for something to do. None: the engine stops.
    fn next_role(&self) -> Option<Role> {
        let mut state = self.state.lock();
        loop {
            if state.failed {
                return None;
            }
            if let Some(role) = self.take_role(&mut state) {
                self.wake_one(&mut state);
                return Some(role);
            }
            if state.stopping {
                return None;
            }
            state.idle += 1;
            self.wake.wait(&mut state);
        }
    }

    fn take_role(&self, state: &mut State) -> Option<Role> {
        if self.can_sync(state) {
            state.syncing = true;
            return Some(Role::Sync(std::mem::take(&mut state.written)));
        }
        if self.can_write(state) {
            state.writing = true;
            let (batch, bytes) = self.take_batch(&mut state.queue);
            return Some(Role::Write(batch, bytes));
        }
        None
    }

    fn take_batch(&self, queue: &mut VecDeque<Queued>) -> (Vec<Write>, usize) {
        let mut bytes = 0;
        let fits = |queued: &&Queued| {
            let first = bytes == 0;
            bytes += queued.bytes;
            first || bytes <= self.batch_bytes_max
        };
        let count = queue.iter().take_while(fits).count();
        let mut taken = 0;
        let batch = queue.drain(..count).map(|queued| {
            taken += queued.bytes;
            queued.write
        });
        (batch.collect(), taken)
    }

    fn run(&self) {
        while let Some(role) = self.next_role() {
            match role {
                Role::Write(batch, bytes) => self.write(batch, bytes),
                Role::Sync(written) => self.sync(written),
            }
        }
    }

    fn write(&self, batch: Vec<Write>, bytes: usize) {
        let timer = self.metrics.write_seconds.start_timer();
        let result = self.write_batch(&batch, bytes);
        timer.observe_duration();
        let writes = batch.len();
        let mut done: Vec<_> = batch.into_iter().filter_map(|write| write.done).collect();
        if let Err(cause) = result {
            return self.fail(&format!("write of {bytes} bytes: {cause}"), done);
        }
        self.metrics.writes.inc_by(writes as u64);
        if self.durability == Durability::Os || planted::has(Fault::SyncSkipped) {
            done.drain(..).for_each(|done| done(Ok(())));
        }
        let sequence = self.rocks.latest_sequence();
        let mut state = self.state.lock();
        state.writing = false;
        let written = &mut state.written;
        written.done.append(&mut done);
        written.writes += writes;
        written.bytes += bytes;
        written.sequence = sequence;
    }

    fn write_batch(&self, batch: &[Write], bytes: usize) -> io::Result<()> {
        #[cfg(test)]
        self.faults.write()?;
        let size = self.rocks.write(batch, bytes)?;
        self.metrics.wal_bytes.inc_by(size as u64);
        match self.durability {
            Durability::Fsync => Ok(()),
            Durability::Os => self.rocks.flush_log(false),
        }
    }

    fn sync(&self, written: Written) {
        let timer = self.metrics.sync_seconds.start_timer();
        let result = self.sync_log();
        timer.observe_duration();
        if let Err(cause) = result {
            return self.fail(&format!("sync of the write-ahead log: {cause}"), written.done);
        }
        self.metrics.sync_bytes.observe(written.bytes as f64);
        self.metrics.sync_writes.observe(written.writes as f64);
        if !planted::has(Fault::SyncSkipped) {
            self.durable.store(written.sequence, Ordering::Release);
        }
        let in_order = self.completing.lock();
        self.end_sync();
        written.done.into_iter().for_each(|done| done(Ok(())));
        drop(in_order);
        self.release(written.bytes);
    }

    fn sync_log(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.sync()?;
        if planted::has(Fault::SyncSkipped) {
            return Ok(());
        }
        self.rocks.flush_log(true)
    }

    /// The other thread may sync while this one still tells the callers.
    fn end_sync(&self) {
        let mut state = self.state.lock();
        state.syncing = false;
        self.wake_one(&mut state);
    }

    fn release(&self, bytes: usize) {
        let before = self.queue_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.queue_bytes.set(before.saturating_sub(bytes) as i64);
        self.room.notify_waiters();
    }

    /// The disk cannot be trusted any more, and a sync must not be tried again: what it failed to
    /// write may be gone from the page cache.
    pub(super) fn fail(&self, cause: &str, done: Vec<Completion>) {
        let mut state = self.state.lock();
        let first = !std::mem::replace(&mut state.failed, true);
        let queue = std::mem::take(&mut state.queue);
        let written = std::mem::take(&mut state.written);
        drop(state);
        if first {
            (self.fail_stop)(cause);
        }
        // Only a hook that lets the process live comes to here.
        self.wake.notify_all();
        let queued = queue.into_iter().filter_map(|queued| queued.write.done);
        for done in done.into_iter().chain(written.done).chain(queued) {
            done(Err(failed(cause)));
        }
        self.queue_bytes.store(0, Ordering::Relaxed);
        self.room.notify_waiters();
    }
}

fn complete(done: Option<Completion>, result: impl FnOnce() -> io::Result<()>) {
    if let Some(done) = done {
        done(result());
    }
}

/// Starts the threads.
pub(super) fn spawn(commit: &Arc<Commit>) -> Vec<JoinHandle<()>> {
    let one = |number| {
        let (commit, plot) = (commit.clone(), Plot::here());
        let run = move || {
            plot.enter();
            if catch_unwind(AssertUnwindSafe(|| commit.run())).is_err() {
                commit.fail("a thread of the engine panicked", Vec::new());
            }
        };
        let thread = std::thread::Builder::new().name(format!("engine-{number}"));
        thread.spawn(run).expect("the operating system starts a thread at the start of the node")
    };
    (0..THREADS).map(one).collect()
}

#[cfg(test)]
pub(super) mod faults {
    //! Disks that fail when a test says so.

    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    pub(in super::super) struct Faults {
        pub(in super::super) fail_write: AtomicBool,
        pub(in super::super) fail_sync: AtomicBool,
    }

    impl Faults {
        pub(super) fn write(&self) -> io::Result<()> {
            check(&self.fail_write)
        }

        pub(super) fn sync(&self) -> io::Result<()> {
            check(&self.fail_sync)
        }
    }

    fn check(fault: &AtomicBool) -> io::Result<()> {
        if fault.load(Ordering::SeqCst) { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}
