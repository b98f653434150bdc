//! The recent events of one group, shared by everybody who watches it.

use crate::clock;
use crate::tree::Event;
use prometheus::IntGauge;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an event costs besides its key and its value.
const EVENT_BYTES: u64 = 96;

/// The events of one log entry.
#[derive(Debug)]
pub struct Batch {
    /// Index of the entry.
    pub index: u64,
    /// When its leader accepted it.
    pub time_ms: u64,
    /// In the order in which they were applied.
    pub events: Vec<Event>,
    bytes: u64,
    at: Instant,
}

impl Batch {
    pub(super) fn new(index: u64, time_ms: u64, events: Vec<Event>) -> Batch {
        let bytes = events.iter().map(|event| EVENT_BYTES + event_bytes(event) as u64).sum();
        Batch { index, time_ms, events, bytes, at: clock::now() }
    }
}

/// Bytes of an event's key and value.
pub(super) fn event_bytes(event: &Event) -> usize {
    event.key.len() + event.value.as_ref().map_or(0, |value| value.len())
}

/// Bytes that the histories of all groups of a node take.
#[derive(Debug)]
pub struct NodeHistory {
    bytes: IntGauge,
    bytes_max: u64,
}

impl NodeHistory {
    /// Room for this many bytes; what is taken is kept in the gauge.
    pub fn new(bytes_max: u64, bytes: IntGauge) -> NodeHistory {
        NodeHistory { bytes, bytes_max }
    }

    fn is_full(&self) -> bool {
        u64::try_from(self.bytes.get()).is_ok_and(|bytes| bytes > self.bytes_max)
    }
}

/// History is asked for that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compacted {
    /// First index from which there is history.
    pub oldest: u64,
}

/// The events above `floor`, none missing.
pub(super) struct History {
    batches: VecDeque<Arc<Batch>>,
    bytes: u64,
    floor: u64,
    applied: u64,
    bytes_max: u64,
    age_max: Duration,
    node: Arc<NodeHistory>,
}

impl History {
    /// The history of a tree that stands at `applied`.
    pub(super) fn new(applied: u64, bytes_max: u64, age_max: Duration, node: Arc<NodeHistory>) -> History {
        History { batches: VecDeque::new(), bytes: 0, floor: applied, applied, bytes_max, age_max, node }
    }

    pub(super) fn push(&mut self, batch: Batch) {
        self.applied = batch.index;
        self.bytes += batch.bytes;
        self.node.bytes.add(batch.bytes as i64);
        let now = batch.at;
        self.batches.push_back(Arc::new(batch));
        self.trim(now);
    }

    /// An entry without events.
    pub(super) fn note_applied(&mut self, index: u64) {
        self.applied = index;
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Drops what is beyond the bounds.
    pub(super) fn trim(&mut self, now: Instant) {
        while let Some(first) = self.batches.front() {
            let is_old = now.saturating_duration_since(first.at) > self.age_max;
            if !is_old && self.bytes <= self.bytes_max && !self.node.is_full() {
                return;
            }
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.batches.pop_front() {
            self.floor = first.index;
            self.bytes -= first.bytes;
            self.node.bytes.sub(first.bytes as i64);
        }
    }

    /// The tree was replaced by one that stands at `applied`.
    pub(super) fn reset(&mut self, applied: u64) {
        while !self.batches.is_empty() {
            self.drop_first();
        }
        (self.floor, self.applied) = (applied, applied);
    }

    /// Up to `limit` entries from an index on.
    pub(super) fn read(&self, from: u64, limit: usize) -> Result<Vec<Arc<Batch>>, Compacted> {
        if from <= self.floor {
            return Err(Compacted { oldest: self.floor + 1 });
        }
        let start = self.batches.partition_point(|batch| batch.index < from);
        Ok(self.batches.range(start..).take(limit).cloned().collect())
    }

    /// Index up to which everything is known to whoever has seen all events up to `seen`.
    pub(super) fn known_through(&self, seen: u64) -> u64 {
        let is_all = self.batches.back().is_none_or(|last| last.index <= seen) && seen >= self.floor;
        if is_all { seen.max(self.applied) } else { seen }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.node.bytes.sub(self.bytes as i64);
    }
}
