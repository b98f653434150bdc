//! Watches: from what the trees say has changed to whoever asked to be told.
//!
//! Each replica has a [`Hub`]: the recent history of its group, and who watches which key. The
//! applies put events into the history and go on; one task for each hub that has watches takes
//! them from there, finds the watches of a key by looking up the key and each directory above it,
//! and notes the event in the [`Outbox`] of each stream that has one. A stream packs what its
//! outbox holds whenever the connection can take something and the client's window is open.
//!
//! Nobody waits for anybody. A state watch is only marked, and its state is read when it is sent.
//! An event watch whose stream is full falls back to the history, which the stream reads again when
//! there is room; when the history is gone by then, the watch ends and the client is told from
//! where on there is one.

mod history;
mod hub;
mod metrics;
mod outbox;
mod pack;
#[cfg(test)]
mod tests;

pub use history::{Batch, NodeHistory};
pub use hub::Hub;
pub use metrics::WatchMetrics;
pub use outbox::{Outbox, OutboxOptions, WatchRequest};

use crate::tree::Tree;
use std::sync::Arc;
use std::time::Duration;

/// How the watches of every group of a node behave.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// History kept for one group, in bytes.
    pub history_bytes_max: u64,
    /// History older than this is dropped.
    pub history_age_max: Duration,
    /// What the histories of all groups of the node may take together.
    pub node: Arc<NodeHistory>,
    /// The node's counters.
    pub metrics: WatchMetrics,
}

impl Default for WatchOptions {
    fn default() -> WatchOptions {
        let metrics = WatchMetrics::default();
        WatchOptions {
            history_bytes_max: 16 << 20,
            history_age_max: Duration::from_secs(300),
            node: Arc::new(NodeHistory::new(256 << 20, metrics.history_bytes.clone())),
            metrics,
        }
    }
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    NotExists,
    /// A value.
    Value(Arc<[u8]>),
    /// A directory or a lock.
    Directory,
}

/// What a key holds, and since when: its update index, or where nothing is that of the nearest
/// directory above, which moved when the key was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// What is there.
    pub presence: Presence,
    /// Since which index.
    pub index: u64,
}

impl KeyState {
    /// The state of a key in a tree.
    pub fn of(tree: &Tree, key: &[u8]) -> KeyState {
        if let Ok(node) = tree.get(key) {
            let presence = node.value().map_or(Presence::Directory, |value| Presence::Value(value.clone()));
            return KeyState { presence, index: node.meta().update_index };
        }
        let nearest = ancestors(key).skip(1).find_map(|above| tree.get(above).ok());
        let index = nearest.map_or(0, |node| node.meta().update_index);
        KeyState { presence: Presence::NotExists, index }
    }
}

/// A replica, as watches see it.
pub trait Source: Send + Sync {
    /// What a key holds now.
    fn state(&self, key: &[u8]) -> KeyState;
    /// Time since the replica last heard from its leader, or as leader from a quorum.
    fn lag(&self) -> Duration;
}

/// A key and each directory above it, up to the root, which is the empty key.
fn ancestors(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(key), |key| match key.iter().rposition(|byte| *byte == b'.') {
        Some(dot) => Some(&key[..dot]),
        None => (!key.is_empty()).then_some(&[]),
    })
}
