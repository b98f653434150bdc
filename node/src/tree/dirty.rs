//! What waits to be written behind: each changed node once, however often it changed.
//!
//! Changes are taken in two steps. [`Tree::freeze_dirty`] fixes the set in an instant, at one
//! applied index. [`Tree::drain_frozen`] hands it out in pieces, so that a large set does not stop
//! the group; operations may be applied between the pieces, because a frozen node that is about to
//! change is first put aside as it was.

use super::Tree;
use super::node::Node;
use super::record::NodeRecord;
use super::slab::Slot;
use std::sync::Arc;

/// What to write in one batch with the applied index: records, and keys whose records to delete.
/// It shares keys and values with the tree; encode the records after letting go of it.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Each key once, as it was at the applied index.
    pub changed: Vec<(Arc<[u8]>, NodeRecord)>,
    /// Keys that were handed out as changed, or loaded, before.
    pub removed: Vec<Arc<[u8]>>,
    /// Bytes of all keys and records.
    pub bytes: u64,
}

impl Dirty {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }

    fn append(&mut self, mut other: Dirty) {
        self.changed.append(&mut other.changed);
        self.removed.append(&mut other.removed);
        self.bytes += other.bytes;
    }

    fn push_changed(&mut self, node: &mut Node) {
        node.stored = true;
        let record = node.record();
        self.bytes += (node.key.len() + record.encoded_len()) as u64;
        self.changed.push((Arc::clone(&node.key), record));
    }

    fn push_removed(&mut self, key: Arc<[u8]>) {
        self.bytes += key.len() as u64;
        self.removed.push(key);
    }
}

/// Clean, or waiting in one of two sets that take turns in being the frozen one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u8);

impl Mark {
    pub(super) const CLEAN: Mark = Mark(0);
}

pub(super) struct Changes {
    /// Mark of the nodes in `dirty`; any other than clean belongs to `frozen`.
    current: Mark,
    dirty: Vec<Slot>,
    /// May name nodes that have changed since and wait in `dirty` now.
    frozen: Vec<Slot>,
    /// Frozen nodes as they were, put aside because they changed.
    aside: Dirty,
}

/// How much waited at some instant.
pub(super) struct ChangesLen {
    dirty: usize,
    aside_changed: usize,
    aside_removed: usize,
    aside_bytes: u64,
}

impl Changes {
    pub(super) fn len(&self) -> ChangesLen {
        ChangesLen {
            dirty: self.dirty.len(),
            aside_changed: self.aside.changed.len(),
            aside_removed: self.aside.removed.len(),
            aside_bytes: self.aside.bytes,
        }
    }

    /// Forgets what came after that instant. Nothing has been handed out since.
    pub(super) fn truncate(&mut self, len: ChangesLen) {
        self.dirty.truncate(len.dirty);
        self.aside.changed.truncate(len.aside_changed);
        self.aside.removed.truncate(len.aside_removed);
        self.aside.bytes = len.aside_bytes;
    }
}

impl Default for Changes {
    fn default() -> Changes {
        Changes { current: Mark(1), dirty: Vec::new(), frozen: Vec::new(), aside: Dirty::default() }
    }
}

impl Tree {
    /// Everything that changed since the last call, at once.
    pub fn take_dirty(&mut self) -> Dirty {
        let mut dirty = Dirty::default();
        self.freeze_dirty();
        self.drain_frozen(usize::MAX, &mut dirty);
        dirty
    }

    /// Fixes what [`Tree::drain_frozen`] hands out: everything that changed since the last call,
    /// as it is now, and whatever was not drained before.
    pub fn freeze_dirty(&mut self) {
        self.thaw();
        let changes = &mut self.changes;
        changes.frozen = std::mem::take(&mut changes.dirty);
        changes.current = Mark(3 - changes.current.0);
    }

    /// Returns what is still frozen to the dirty nodes. What was put aside is among them already.
    fn thaw(&mut self) {
        self.changes.aside = Dirty::default();
        for slot in std::mem::take(&mut self.changes.frozen) {
            if self.is_frozen(slot) {
                self.slab[slot].mark = self.changes.current;
                self.changes.dirty.push(slot);
            }
        }
    }

    /// Hands out about `limit` frozen nodes; true when none are left.
    pub fn drain_frozen(&mut self, limit: usize, into: &mut Dirty) -> bool {
        into.append(std::mem::take(&mut self.changes.aside));
        let kept = self.changes.frozen.len().saturating_sub(limit);
        let slots = self.changes.frozen.split_off(kept);
        into.changed.reserve(slots.len());
        for slot in slots {
            if self.is_frozen(slot) {
                self.hand_out(slot, into);
            }
        }
        self.changes.frozen.is_empty()
    }

    /// How many nodes wait to be handed out, at most.
    pub fn dirty_count(&self) -> u64 {
        (self.changes.dirty.len() + self.changes.frozen.len()) as u64
    }

    fn is_frozen(&self, slot: Slot) -> bool {
        let mark = self.slab[slot].mark;
        mark != Mark::CLEAN && mark != self.changes.current
    }

    fn hand_out(&mut self, slot: Slot, into: &mut Dirty) {
        let node = &mut self.slab[slot];
        node.mark = Mark::CLEAN;
        if node.live {
            return into.push_changed(node);
        }
        let key = std::mem::take(&mut node.key);
        let stored = node.stored;
        self.index.remove(&key, slot);
        self.slab.release(slot);
        if stored {
            into.push_removed(key);
        }
    }

    /// Every change of what a record holds goes through here.
    #[inline]
    pub(super) fn change(&mut self, slot: Slot) -> &mut Node {
        if self.undo.is_open() {
            self.undo.changed(slot, &self.slab[slot]);
        }
        if self.slab[slot].mark != self.changes.current {
            self.mark_dirty(slot);
        }
        &mut self.slab[slot]
    }

    fn mark_dirty(&mut self, slot: Slot) {
        if self.is_frozen(slot) {
            self.put_aside(slot);
        }
        self.slab[slot].mark = self.changes.current;
        self.changes.dirty.push(slot);
    }

    fn put_aside(&mut self, slot: Slot) {
        let node = &mut self.slab[slot];
        if node.live {
            self.changes.aside.push_changed(node);
        } else if node.stored {
            // It stays marked as stored: if this set is thawed, its removal is still due.
            self.changes.aside.push_removed(Arc::clone(&node.key));
        }
    }
}
