//! What happened to the nodes, for those who watch.
//!
//! Every change of a visible node becomes one [`Event`], in the order in which it was applied. The
//! primitives that change nodes emit them ([`Tree::insert`], [`Tree::overwrite`], [`Tree::bury`]),
//! so that no operation can forget to. A directory that moves its index because something below it
//! changed, and the renewal of a TTL or lease, are no changes in this sense.

use super::Tree;
use super::node::{Body, Node};
use std::sync::Arc;

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// A value was created or overwritten.
    Put = 1,
    /// A node was removed, by whatever operation.
    Remove = 2,
    /// A node was removed because its time, or that of a directory above it, was over.
    Expire = 3,
    /// A directory or a lock was created.
    Mkdir = 4,
}

/// One change of one node. Its index and time are those of the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Whether the node is, or was, a directory.
    pub dir: bool,
    /// The full key.
    pub key: Arc<[u8]>,
    /// The new value; puts only.
    pub value: Option<Arc<[u8]>>,
    /// Update index of the node before this change; 0 when it did not exist.
    pub prev_index: u64,
}

/// Events that nobody has taken yet.
#[derive(Default)]
pub(super) struct Events {
    pending: Vec<Event>,
    taken_before: usize,
}

impl Events {
    /// `node` is as it is after the change.
    #[inline]
    pub(super) fn written(&mut self, node: &Node, prev_index: u64) {
        let (kind, value) = match &node.body {
            Body::Value(value) => (EventKind::Put, Some(Arc::clone(value))),
            Body::Dir(_) => (EventKind::Mkdir, None),
        };
        let dir = value.is_none();
        self.push(Event { kind, dir, key: Arc::clone(&node.key), value, prev_index });
    }

    /// `node` is as it was before its removal.
    pub(super) fn removed(&mut self, kind: EventKind, node: &Node) {
        let prev_index = node.meta.update_index;
        self.push(Event { kind, dir: node.is_dir(), key: Arc::clone(&node.key), value: None, prev_index });
    }

    #[inline]
    fn push(&mut self, event: Event) {
        if self.pending.capacity() == 0 {
            // Entries resemble the ones before them.
            self.pending.reserve(self.taken_before.max(1));
        }
        self.pending.push(event);
    }
}

impl Tree {
    /// Takes the events of everything applied since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.taken_before = self.events.pending.len();
        std::mem::take(&mut self.events.pending)
    }

    /// How many events wait to be taken.
    pub fn event_count(&self) -> usize {
        self.events.pending.len()
    }

    /// Forgets the latest events until only `count` wait: what they told of was undone.
    pub fn truncate_events(&mut self, count: usize) {
        self.events.pending.truncate(count);
    }
}
