//! The watches of one group: finds out whom an event concerns.

use crate::clock;
use crate::failure::Failure;
use crate::ids::GroupId;
use crate::tree::Event;
use crate::watch::history::{Batch, Compacted, History};
use crate::watch::outbox::Outbox;
use crate::watch::{WatchMetrics, WatchOptions, ancestors};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// Entries that are given out between two chances for others to take part.
const DISPATCHED_AT_ONCE: usize = 256;

/// History and watches of one replica.
///
/// Locks are taken in this order: registry, an outbox, history. The applies take the history's
/// alone, and only for a moment.
pub struct Hub {
    group: GroupId,
    history: Mutex<History>,
    registry: Mutex<Registry>,
    /// A task gives events out; without one nobody need be woken.
    is_running: AtomicBool,
    /// Index of the last entry that has begun to be given out ...
    dispatching: AtomicU64,
    /// ... and up to which everything has been.
    completed: AtomicU64,
    woken: Notify,
    metrics: WatchMetrics,
}

#[derive(Default)]
struct Registry {
    by_key: HashMap<Arc<[u8]>, Vec<Subscriber>>,
    closed: Option<Failure>,
}

/// The watches of one stream on one key.
struct Subscriber {
    outbox: Arc<Outbox>,
    ids: Vec<u32>,
}

impl Hub {
    /// The hub of a replica whose tree stands at `applied`.
    pub fn new(group: GroupId, applied: u64, options: &WatchOptions) -> Hub {
        let (bytes, age) = (options.history_bytes_max, options.history_age_max);
        Hub {
            group,
            history: Mutex::new(History::new(applied, bytes, age, options.node.clone())),
            registry: Mutex::default(),
            is_running: AtomicBool::new(false),
            dispatching: AtomicU64::new(applied),
            completed: AtomicU64::new(applied),
            woken: Notify::new(),
            metrics: options.metrics.clone(),
        }
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The counters of the node.
    pub(super) fn metrics(&self) -> &WatchMetrics {
        &self.metrics
    }

    /// An entry was applied. Called in order, and never waits for a watch.
    pub fn publish(&self, index: u64, time_ms: u64, events: Vec<Event>) {
        if events.is_empty() {
            return self.history.lock().note_applied(index);
        }
        let batch = Batch::new(index, time_ms, events);
        self.history.lock().push(batch);
        if self.is_running.load(Ordering::SeqCst) {
            self.woken.notify_one();
        }
    }

    /// The tree was replaced by one that stands at `applied`: what lies between is not known.
    pub fn reset(&self, applied: u64) {
        self.history.lock().reset(applied);
        self.woken.notify_one();
    }

    /// Drops history that is too old.
    pub fn trim(&self) {
        self.history.lock().trim(clock::now());
    }

    /// Bytes of history.
    pub fn history_bytes(&self) -> u64 {
        self.history.lock().bytes()
    }

    /// Ends all watches, now and for ever: the replica is gone.
    pub fn close(&self, failure: Failure) {
        let mut registry = self.registry.lock();
        for subscriber in registry.by_key.drain().flat_map(|(_, subscribers)| subscribers) {
            subscriber.outbox.end(&subscriber.ids, &failure);
        }
        registry.closed = Some(failure);
        drop(registry);
        self.woken.notify_one();
    }

    /// Takes a watch in; from the returned applied index on it misses nothing. True when
    /// [`Hub::run`] has to be started.
    ///
    /// # Errors
    /// When the replica is gone.
    pub(super) fn register(
        &self,
        key: &Arc<[u8]>,
        outbox: &Arc<Outbox>,
        id: u32,
    ) -> Result<(u64, bool), Failure> {
        let mut registry = self.registry.lock();
        if let Some(failure) = &registry.closed {
            return Err(failure.clone());
        }
        let applied = self.history.lock().applied();
        let must_start = !self.is_running.swap(true, Ordering::SeqCst);
        if must_start {
            // Nobody was there for whom anything had to be given out.
            self.dispatching.store(applied, Ordering::SeqCst);
            self.completed.store(applied, Ordering::SeqCst);
        }
        let subscribers = registry.by_key.entry(key.clone()).or_default();
        match subscribers.iter_mut().find(|known| Arc::ptr_eq(&known.outbox, outbox)) {
            Some(known) => known.ids.push(id),
            None => subscribers.push(Subscriber { outbox: outbox.clone(), ids: vec![id] }),
        }
        Ok((applied, must_start))
    }

    /// Forgets a watch.
    pub(super) fn unregister(&self, key: &Arc<[u8]>, outbox: &Arc<Outbox>, id: u32) {
        let mut registry = self.registry.lock();
        let Some(subscribers) = registry.by_key.get_mut(key) else { return };
        if let Some(known) = subscribers.iter_mut().find(|known| Arc::ptr_eq(&known.outbox, outbox)) {
            known.ids.retain(|known| *known != id);
        }
        subscribers.retain(|known| !known.ids.is_empty());
        if subscribers.is_empty() {
            registry.by_key.remove(key);
        }
        if registry.by_key.is_empty() {
            self.woken.notify_one();
        }
    }

    /// Gives events out while there are watches.
    pub async fn run(self: Arc<Hub>) {
        loop {
            while self.dispatch() {
                tokio::task::yield_now().await;
            }
            if self.retire() {
                return;
            }
            self.woken.notified().await;
        }
    }

    fn retire(&self) -> bool {
        let registry = self.registry.lock();
        if registry.by_key.is_empty() {
            self.is_running.store(false, Ordering::SeqCst);
        }
        registry.by_key.is_empty()
    }

    /// Gives out what has come; true when there is more.
    pub(super) fn dispatch(&self) -> bool {
        let mut registry = self.registry.lock();
        let from = self.completed.load(Ordering::SeqCst) + 1;
        let batches = match self.read(from, DISPATCHED_AT_ONCE) {
            Ok(batches) => batches,
            Err(Compacted { oldest }) => {
                self.dispatching.store(oldest - 1, Ordering::SeqCst);
                registry.lose(oldest);
                self.completed.store(oldest - 1, Ordering::SeqCst);
                return true;
            }
        };
        for batch in &batches {
            // Before any outbox is touched: see `Outbox`, catching up.
            self.dispatching.store(batch.index, Ordering::SeqCst);
            registry.fan_out(batch);
            self.completed.store(batch.index, Ordering::SeqCst);
        }
        batches.len() == DISPATCHED_AT_ONCE
    }

    pub(super) fn read(&self, from: u64, limit: usize) -> Result<Vec<Arc<Batch>>, Compacted> {
        self.history.lock().read(from, limit)
    }

    pub(super) fn dispatching(&self) -> u64 {
        self.dispatching.load(Ordering::SeqCst)
    }

    /// Index up to which every event has reached the outboxes.
    pub(super) fn completed(&self) -> u64 {
        // In this order: what is completed later is not claimed.
        let completed = self.completed.load(Ordering::SeqCst);
        self.history.lock().known_through(completed)
    }
}

impl Registry {
    fn fan_out(&self, batch: &Arc<Batch>) {
        for (at, event) in (0..).zip(&batch.events) {
            for key in ancestors(&event.key) {
                let subscribers = self.by_key.get(key).into_iter().flatten();
                subscribers.for_each(|subscriber| subscriber.outbox.offer(batch, at, &subscriber.ids));
            }
        }
    }

    /// Events were lost before they could be given out; there is history from `oldest` on again.
    fn lose(&mut self, oldest: u64) {
        self.by_key.retain(|_, subscribers| {
            for subscriber in subscribers.iter_mut() {
                subscriber.outbox.lose(&mut subscriber.ids, oldest);
            }
            subscribers.retain(|subscriber| !subscriber.ids.is_empty());
            !subscribers.is_empty()
        });
    }
}
