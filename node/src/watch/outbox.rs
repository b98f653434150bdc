//! What one stream of watches has yet to send.
//!
//! A state watch is either marked or not; its state is read when it is sent, so that it costs the
//! same however often it changes. An event watch is *live*: the hub queues each of its events here;
//! or it *catches up*: the hub passes it over, and the stream reads the history. It begins catching
//! up, and does so again when the queue is full.
//!
//! From catching up to live without a gap: the hub says which entry it has begun to give out before
//! it takes the lock of any outbox. If, under that lock, everything up to there has been read from
//! the history, whatever is given out later comes here.

mod build;

use crate::failure::Failure;
use crate::ids::GroupId;
use crate::watch::history::{Batch, event_bytes};
use crate::watch::{Hub, Source};
use dtkv_client::packed::delivery::DELIVERY_BYTES;
use dtkv_client::v1;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// What one stream may take.
#[derive(Clone, Debug)]
pub struct OutboxOptions {
    /// Bytes that are sent before the client must acknowledge some.
    pub window_bytes: u64,
    /// Bytes of events that wait here, beyond which watches fall back to the history.
    pub queue_bytes_max: usize,
    /// Watches on the stream.
    pub watches_max: usize,
    /// A response is sent at least this often.
    pub progress_interval: Duration,
}

/// A watch that a client asks for; the request has been checked.
#[derive(Clone)]
pub struct WatchRequest {
    /// Chosen by the client.
    pub id: u32,
    /// The key; empty for the root.
    pub key: Arc<[u8]>,
    /// State or events.
    pub mode: v1::WatchMode,
    /// See `WatchCreate.index`.
    pub index: Option<u64>,
    /// Leaves values out.
    pub keys_only: bool,
    /// Kinds of events; empty = all.
    pub kinds: Vec<v1::EventKind>,
}

/// Where a stream's deliveries wait.
pub struct Outbox {
    options: OutboxOptions,
    state: Mutex<State>,
    /// Wakes the stream.
    waker: AtomicWaker,
}

#[derive(Default)]
struct State {
    watches: FxHashMap<u32, Watch>,
    /// Marked state watches, each once.
    marked: VecDeque<u32>,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    catching_up: FxHashMap<GroupId, CatchUp>,
    created: Vec<v1::WatchCreated>,
    ended: Vec<v1::WatchEnded>,
    /// Watches that ended here and that their hub has yet to forget.
    orphans: Vec<(u32, Watch)>,
    is_opened: bool,
    is_finished: bool,
    is_progress_due: bool,
    sent_bytes: u64,
    acknowledged_bytes: u64,
}

struct Watch {
    hub: Arc<Hub>,
    source: Arc<dyn Source>,
    key: Arc<[u8]>,
    keys_only: bool,
    mode: Mode,
}

enum Mode {
    State {
        known: Option<u64>,
        is_marked: bool,
    },
    Events {
        /// First index that is still wanted.
        next: u64,
        /// The entry whose events were queued last.
        queued: u64,
        is_live: bool,
        /// A bit for each kind.
        kinds: u8,
    },
}

/// An event for a watch.
struct Queued {
    id: u32,
    at: u32,
    batch: Arc<Batch>,
}

/// The watches of one group that catch up, with one scan of the history for all.
struct CatchUp {
    hub: Arc<Hub>,
    /// First index that has not been scanned.
    cursor: u64,
    by_key: HashMap<Arc<[u8]>, Vec<u32>>,
}

fn bit(kind: i32) -> u8 {
    1u8.checked_shl(kind as u32).unwrap_or(0)
}

fn kinds_wanted(kinds: &[v1::EventKind]) -> u8 {
    if kinds.is_empty() { u8::MAX } else { kinds.iter().fold(0, |all, kind| all | bit(*kind as i32)) }
}

fn queued_bytes(batch: &Batch, at: u32) -> usize {
    DELIVERY_BYTES + event_bytes(&batch.events[at as usize])
}

impl Outbox {
    /// An empty one.
    pub fn new(options: OutboxOptions) -> Arc<Outbox> {
        Arc::new(Outbox { options, state: Mutex::default(), waker: AtomicWaker::new() })
    }

    /// Takes a watch in. True when the hub has to be run.
    ///
    /// # Errors
    /// When the id is taken, there are too many, or the replica is gone; nothing has changed then.
    pub fn watch(
        self: &Arc<Self>,
        request: WatchRequest,
        hub: &Arc<Hub>,
        source: Arc<dyn Source>,
    ) -> Result<bool, Failure> {
        let WatchRequest { id, key, .. } = request.clone();
        self.insert(&request, hub, source)?;
        match hub.register(&key, self, id) {
            Ok((applied, must_run)) => {
                self.begin(id, applied, request.index);
                Ok(must_run)
            }
            Err(failure) => {
                self.state.lock().watches.remove(&id);
                hub.metrics().watches.dec();
                Err(failure)
            }
        }
    }

    fn insert(&self, request: &WatchRequest, hub: &Arc<Hub>, source: Arc<dyn Source>) -> Result<(), Failure> {
        let mut state = self.state.lock();
        if state.watches.contains_key(&request.id) {
            return Err(Failure::invalid(format!("watch id {} is in use on this stream", request.id)));
        }
        let limit = self.options.watches_max;
        if state.watches.len() >= limit {
            let message = format!("the stream has {limit} watches, which is the limit; open another one");
            return Err(Failure::invalid(message));
        }
        let mode = match request.mode {
            // Marked, but not in line yet: nothing is sent before it is registered.
            v1::WatchMode::WatchState => Mode::State { known: request.index, is_marked: true },
            v1::WatchMode::WatchEvents => {
                let kinds = kinds_wanted(&request.kinds);
                Mode::Events { next: u64::MAX, queued: 0, is_live: false, kinds }
            }
        };
        let (hub, key) = (hub.clone(), request.key.clone());
        hub.metrics().watches.inc();
        let watch = Watch { hub, source, key, keys_only: request.keys_only, mode };
        state.watches.insert(request.id, watch);
        Ok(())
    }

    /// The hub tells of every change after `applied`.
    fn begin(&self, id: u32, applied: u64, from: Option<u64>) {
        let mut state = self.state.lock();
        state.created.push(v1::WatchCreated { watch_id: id, index: applied });
        let Some(watch) = state.watches.get_mut(&id) else { return };
        match &mut watch.mode {
            Mode::State { .. } => state.marked.push_back(id),
            Mode::Events { next, .. } => {
                *next = from.unwrap_or(applied + 1).max(1);
                state.catch_up(id);
            }
        }
        drop(state);
        self.waker.wake();
    }

    /// Tells that a watch was refused.
    pub fn refuse(&self, id: u32, failure: v1::Failure) {
        let ended = v1::WatchEnded { watch_ids: vec![id], failure: Some(failure), ..Default::default() };
        self.state.lock().ended.push(ended);
        self.waker.wake();
    }

    /// Ends a watch without a word.
    pub fn cancel(self: &Arc<Self>, id: u32) {
        let watch = self.state.lock().watches.remove(&id);
        if let Some(watch) = watch {
            self.forget(id, &watch);
        }
    }

    fn forget(self: &Arc<Self>, id: u32, watch: &Watch) {
        watch.hub.metrics().watches.dec();
        watch.hub.unregister(&watch.key, self, id);
    }

    /// Ends all watches: the stream is gone.
    pub fn close(self: &Arc<Self>) {
        let state = std::mem::take(&mut *self.state.lock());
        for (id, watch) in state.watches.into_iter().chain(state.orphans) {
            self.forget(id, &watch);
        }
    }

    /// The client wants nothing more: the stream is to end.
    pub fn finish(&self) {
        self.state.lock().is_finished = true;
        self.waker.wake();
    }

    /// The client has dealt with so many bytes since the stream began.
    pub fn acknowledge(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.acknowledged_bytes = state.acknowledged_bytes.max(bytes).min(state.sent_bytes);
        drop(state);
        self.waker.wake();
    }

    /// It is time for a sign of life.
    pub fn progress_due(&self) {
        self.state.lock().is_progress_due = true;
    }

    /// The next response; None after the last.
    pub fn poll(self: &Arc<Self>, context: &Context<'_>) -> Poll<Option<v1::WatchResponse>> {
        self.waker.register(context.waker());
        let mut state = self.state.lock();
        if state.is_finished {
            return Poll::Ready(None);
        }
        let (response, again) = state.build(&self.options);
        let orphans = std::mem::take(&mut state.orphans);
        drop(state);
        for (id, watch) in &orphans {
            self.forget(*id, watch);
        }
        match response {
            Some(response) => Poll::Ready(Some(response)),
            None => {
                if again {
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }

    /// The hub has an event for these watches.
    pub(super) fn offer(&self, batch: &Arc<Batch>, at: u32, ids: &[u32]) {
        let mut state = self.state.lock();
        let mut is_new = false;
        for id in ids {
            is_new |= state.offer(&self.options, batch, at, *id);
        }
        drop(state);
        if is_new {
            self.waker.wake();
        }
    }

    /// The hub has lost events below `oldest`. Event watches that needed them are over and are
    /// taken from `ids`.
    pub(super) fn lose(&self, ids: &mut Vec<u32>, oldest: u64) {
        let mut state = self.state.lock();
        ids.retain(|id| {
            let Some(watch) = state.watches.get_mut(id) else { return false };
            let hub = watch.hub.clone();
            match &mut watch.mode {
                Mode::State { .. } => {
                    state.mark(*id);
                    true
                }
                // It reads the history itself, and will see.
                Mode::Events { is_live: false, .. } => true,
                Mode::Events { next, .. } if *next >= oldest => true,
                Mode::Events { .. } => {
                    state.watches.remove(id);
                    hub.metrics().watches.dec();
                    hub.metrics().compacted.inc();
                    state.ended.push(compacted(*id, oldest));
                    false
                }
            }
        });
        drop(state);
        self.waker.wake();
    }

    /// The replica is gone, and its hub has forgotten these watches.
    pub(super) fn end(&self, ids: &[u32], failure: &Failure) {
        let mut state = self.state.lock();
        let mut watch_ids = Vec::new();
        for id in ids {
            if let Some(watch) = state.watches.remove(id) {
                watch.hub.metrics().watches.dec();
                state.catching_up.remove(&watch.hub.group());
                watch_ids.push(*id);
            }
        }
        let failure = v1::Failure {
            reason: failure.reason.into(),
            message: failure.message.clone(),
            ..Default::default()
        };
        if !watch_ids.is_empty() {
            state.ended.push(v1::WatchEnded { watch_ids, failure: Some(failure), ..Default::default() });
        }
        drop(state);
        self.waker.wake();
    }
}

fn compacted(id: u32, oldest: u64) -> v1::WatchEnded {
    let code = v1::Code::Compacted.into();
    v1::WatchEnded { watch_ids: vec![id], code, oldest_index: oldest, failure: None }
}

impl State {
    fn mark(&mut self, id: u32) -> bool {
        match self.watches.get_mut(&id).map(|watch| &mut watch.mode) {
            Some(Mode::State { is_marked, .. }) if !*is_marked => {
                *is_marked = true;
                self.marked.push_back(id);
                true
            }
            _ => false,
        }
    }

    /// True when there is something new to send.
    fn offer(&mut self, options: &OutboxOptions, batch: &Arc<Batch>, at: u32, id: u32) -> bool {
        let is_full = self.queue_bytes > options.queue_bytes_max;
        let Some(watch) = self.watches.get_mut(&id) else { return false };
        match &mut watch.mode {
            Mode::State { .. } => self.mark(id),
            Mode::Events { is_live: false, .. } => false,
            Mode::Events { next, kinds, .. }
                if batch.index < *next || *kinds & bit(batch.events[at as usize].kind as i32) == 0 =>
            {
                false
            }
            // The events of one entry stay together.
            Mode::Events { queued, is_live, next, .. } if is_full && *queued != batch.index => {
                *is_live = false;
                *next = batch.index;
                watch.hub.metrics().fallbacks.inc();
                self.catch_up(id);
                false
            }
            Mode::Events { queued, .. } => {
                *queued = batch.index;
                self.queue_bytes += queued_bytes(batch, at);
                self.queue.push_back(Queued { id, at, batch: batch.clone() });
                true
            }
        }
    }

    /// Adds an event watch to those that read the history, from its next index on.
    fn catch_up(&mut self, id: u32) {
        let Some(watch) = self.watches.get(&id) else { return };
        let Mode::Events { next, .. } = watch.mode else { return };
        let group = self.catching_up.entry(watch.hub.group());
        let catch_up =
            group.or_insert_with(|| CatchUp { hub: watch.hub.clone(), cursor: next, by_key: HashMap::new() });
        catch_up.cursor = catch_up.cursor.min(next);
        catch_up.by_key.entry(watch.key.clone()).or_default().push(id);
    }
}
