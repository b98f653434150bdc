//! Taking back what operations did: all or nothing.
//!
//! While a savepoint is open, whatever changes a node first notes how it was. Rolling back undoes the
//! notes from the last to the first, so the tree becomes what it was in every respect: nodes, orders,
//! events, and what waits to be written behind. Only free slots may be others, and they decide nothing.

use super::dirty::{ChangesLen, Mark};
use super::node::{Body, Meta, Node};
use super::slab::Slot;
use super::{Counters, Lease, Tree};
use std::sync::Arc;

/// How a node was. The children of a directory are noted one by one.
struct Image {
    parent: Slot,
    mark: Mark,
    stored: bool,
    live: bool,
    lock: bool,
    meta: Meta,
    value: Option<Arc<[u8]>>,
    lease: Option<Box<Lease>>,
}

enum Note {
    /// About to change.
    Changed(Slot, Image),
    /// Was made and took a slot.
    Linked(Slot),
    /// Came into a directory.
    Adopted(Slot, Arc<[u8]>),
    /// Went out of a directory.
    Disowned(Slot, Arc<[u8]>, Slot),
    /// Lost what it held, children included.
    Emptied(Slot, Body),
}

/// The notes of the open savepoint; none while there is none.
#[derive(Default)]
pub(super) struct Undo(Option<Vec<Note>>);

/// Where to go back to.
pub(super) struct Savepoint {
    counters: Counters,
    nodes: u64,
    bytes: u64,
    events: usize,
    changes: ChangesLen,
}

impl Undo {
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.0.is_some()
    }

    fn note(&mut self, note: Note) {
        if let Some(notes) = &mut self.0 {
            notes.push(note);
        }
    }

    #[cold]
    pub(super) fn changed(&mut self, slot: Slot, node: &Node) {
        let value = match &node.body {
            Body::Value(value) => Some(Arc::clone(value)),
            Body::Dir(_) => None,
        };
        let Node { parent, mark, stored, live, lock, meta, .. } = *node;
        let lease = node.lease.clone();
        self.note(Note::Changed(slot, Image { parent, mark, stored, live, lock, meta, value, lease }));
    }

    #[inline]
    pub(super) fn linked(&mut self, slot: Slot) {
        if self.is_open() {
            self.note(Note::Linked(slot));
        }
    }

    #[inline]
    pub(super) fn adopted(&mut self, dir: Slot, key: &Arc<[u8]>) {
        if self.is_open() {
            self.note(Note::Adopted(dir, Arc::clone(key)));
        }
    }

    #[inline]
    pub(super) fn disowned(&mut self, dir: Slot, key: &Arc<[u8]>, slot: Slot) {
        if self.is_open() {
            self.note(Note::Disowned(dir, Arc::clone(key), slot));
        }
    }

    #[inline]
    pub(super) fn emptied(&mut self, slot: Slot, body: Body) {
        if self.is_open() {
            self.note(Note::Emptied(slot, body));
        }
    }
}

impl Tree {
    /// Begins to take notes. There is one savepoint at a time.
    pub(super) fn open_savepoint(&mut self) -> Savepoint {
        self.undo.0 = Some(Vec::new());
        let changes = self.changes.len();
        Savepoint {
            counters: self.counters,
            nodes: self.nodes,
            bytes: self.bytes,
            events: self.event_count(),
            changes,
        }
    }

    /// Keeps what was done since.
    pub(super) fn keep(&mut self, _savepoint: Savepoint) {
        self.undo.0 = None;
    }

    /// Takes back what was done since.
    pub(super) fn roll_back(&mut self, savepoint: Savepoint) {
        let notes = self.undo.0.take().unwrap_or_default();
        notes.into_iter().rev().for_each(|note| self.take_back(note));
        self.counters = savepoint.counters;
        self.nodes = savepoint.nodes;
        self.bytes = savepoint.bytes;
        self.truncate_events(savepoint.events);
        self.changes.truncate(savepoint.changes);
    }

    fn take_back(&mut self, note: Note) {
        match note {
            Note::Changed(slot, image) => self.restore(slot, image),
            Note::Linked(slot) => self.discard(slot),
            Note::Adopted(dir, key) => {
                if let Body::Dir(children) = &mut self.slab[dir].body {
                    children.remove(&key);
                }
            }
            Note::Disowned(dir, key, slot) => {
                if let Body::Dir(children) = &mut self.slab[dir].body {
                    children.insert(&key, slot);
                }
            }
            Note::Emptied(slot, body) => self.slab[slot].body = body,
        }
    }

    fn restore(&mut self, slot: Slot, image: Image) {
        self.withdraw(slot);
        let node = &mut self.slab[slot];
        node.parent = image.parent;
        node.mark = image.mark;
        node.stored = image.stored;
        node.live = image.live;
        node.lock = image.lock;
        node.meta = image.meta;
        node.lease = image.lease;
        if let Some(value) = image.value {
            node.body = Body::Value(value);
        }
        self.enroll(slot);
    }

    /// Gives the slot of a node back that never was.
    fn discard(&mut self, slot: Slot) {
        self.withdraw(slot);
        let node = &mut self.slab[slot];
        node.live = false;
        node.lease = None;
        node.body = Body::Value(Arc::default());
        let key = std::mem::take(&mut node.key);
        self.index.remove(&key, slot);
        self.slab.release(slot);
    }
}
