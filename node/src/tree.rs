//! The state machine of a group: a tree of keys with values, directories and their metadata.
//!
//! It does no I/O, reads no clock and starts nothing. What it answers and what it becomes depend
//! only on the operations applied, never on hash order or memory layout; [`Tree::digest`] shows
//! it.
//!
//! Nodes live in a slab. A hash index takes a full key to its node, so that reading and
//! overwriting cost one look-up however deep the key is; each directory keeps its children
//! sorted. A removed node stays in its slot until its removal is handed out for writing, so that a
//! key which is removed and made again before that is handed out once, as changed.

mod ahead;
mod apply;
mod digest;
mod dirty;
mod event;
mod lease;
mod list;
mod lock;
mod node;
mod owner;
mod place;
mod record;
mod segment;
mod slab;
mod temp;
#[cfg(test)]
mod tests;
mod txn;
mod undo;
mod walk;

pub use ahead::Ahead;
pub use digest::Digest;
pub use dirty::Dirty;
pub use event::{Event, EventKind};
pub use lease::{ClientId, Due, Lease};
pub use list::{ListPage, ListQuery};
pub use node::{ListedNode, Meta, NodeView};
pub use owner::OwnedQuery;
pub use record::{BadRecord, NodeRecord};

use dirty::{Changes, Mark};
use dtkv_client::limits::{check_key, check_key_or_root};
use dtkv_client::packed::lock::LockEntry;
use dtkv_client::v1::Code;
use event::Events;
use lease::Leases;
use node::{Body, NewNode, Node};
use slab::{KeyHash, KeyIndex, Slab, Slot};
use std::sync::Arc;
use undo::Undo;

/// The root directory. It is not in the key index: no write can name it.
const ROOT: Slot = Slot(0);

/// Where in the log an entry stands, and when its leader accepted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ApplyContext {
    pub index: u64,
    pub time_ms: u64,
    /// Group clock, in ms; leases are measured with it.
    pub clock_ms: u64,
}

/// What the tree knows beside its nodes. It belongs to the state: whoever restores the nodes
/// restores this too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Highest group clock of any entry applied, in ms.
    pub clock_ms: u64,
    /// Last fencing token given out.
    pub last_token: u64,
    /// Last place in a lock's queue given out.
    pub last_ticket: u64,
}

/// The tree of one group.
pub struct Tree {
    slab: Slab,
    index: KeyIndex,
    changes: Changes,
    events: Events,
    /// What removals are told as; other than `Remove` only while an expiry is applied.
    removal: EventKind,
    leases: Leases,
    counters: Counters,
    undo: Undo,
    nodes: u64,
    bytes: u64,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::new()
    }
}

impl Tree {
    /// A tree with an empty root.
    pub fn new() -> Tree {
        let root = Node {
            key: Arc::default(),
            parent: ROOT,
            mark: Mark::CLEAN,
            stored: true,
            live: true,
            lock: false,
            meta: Meta::default(),
            body: Body::dir(),
            lease: None,
        };
        let bytes = root.heap_bytes();
        let mut slab = Slab::default();
        slab.insert(root);
        Tree {
            slab,
            index: KeyIndex::new(),
            changes: Changes::default(),
            events: Events::default(),
            removal: EventKind::Remove,
            leases: Leases::default(),
            counters: Counters::default(),
            undo: Undo::default(),
            nodes: 1,
            bytes,
        }
    }

    /// One node; the empty key names the root.
    ///
    /// # Errors
    /// `INVALID_KEY`, `KEY_TOO_LONG`, `NOT_FOUND`.
    #[inline]
    pub fn get(&self, key: &[u8]) -> Result<NodeView<'_>, Code> {
        if let Some(slot) = self.find(key) {
            return Ok(NodeView(&self.slab[slot]));
        }
        check_key_or_root(key)?;
        if key.is_empty() { Ok(NodeView(&self.slab[ROOT])) } else { Err(Code::NotFound) }
    }

    /// Appends the packed result of a get; what is left of a TTL is counted from `clock_ms`.
    #[inline]
    pub fn pack_get(&self, key: &[u8], clock_ms: u64, out: &mut Vec<u8>) {
        match self.get(key) {
            Ok(node) => node.pack(clock_ms, out),
            Err(code) => out.push(code as u8),
        }
    }

    /// Restores one node. Keys arrive in byte order, so parents come first.
    ///
    /// # Errors
    /// When the record is damaged, its key is there already, or its parent is not.
    pub fn load(&mut self, key: &[u8], record: &[u8]) -> Result<(), BadRecord> {
        let loaded = NodeRecord::decode(record).and_then(|record| match key {
            [] => self.load_root(record),
            _ => self.load_node(key, record),
        });
        loaded.map_err(|what| BadRecord { key: key.to_vec(), what })
    }

    /// What the tree knows beside its nodes.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Restores what the tree knew beside its nodes.
    pub fn restore_counters(&mut self, counters: Counters) {
        self.counters = counters;
    }

    fn load_root(&mut self, record: NodeRecord) -> Result<(), &'static str> {
        if record.value.is_some() || record.lease.is_some() || record.lock {
            return Err("the root is a plain directory");
        }
        self.slab[ROOT].meta = record.meta;
        Ok(())
    }

    fn load_node(&mut self, key: &[u8], record: NodeRecord) -> Result<(), &'static str> {
        check_key(key).map_err(|_| "the key breaks the syntax")?;
        let hash = self.index.hash(key);
        if self.index.find(&self.slab, hash, key).is_some() {
            return Err("the key is there already");
        }
        let parent = match &key[..segment::last_segment_start(key)] {
            [] => ROOT,
            [parent @ .., _dot] => self.find(parent).ok_or("its parent is not there")?,
        };
        if !self.slab[parent].is_dir() {
            return Err("its parent is not a directory");
        }
        if record.lock {
            self.check_lock_record(parent, &record)?;
        }
        let node = Node {
            key: Arc::from(key),
            parent,
            mark: Mark::CLEAN,
            stored: true,
            live: true,
            lock: record.lock,
            meta: record.meta,
            body: record.value.map_or_else(Body::dir, Body::Value),
            lease: record.lease,
        };
        self.link(hash, node);
        Ok(())
    }

    fn check_lock_record(&self, parent: Slot, record: &NodeRecord) -> Result<(), &'static str> {
        let Some(value) = &record.value else {
            return if record.lease.is_none() { Ok(()) } else { Err("it is a lock with a lease of its own") };
        };
        if !self.slab[parent].lock || record.lease.is_none() || LockEntry::read(value).is_none() {
            return Err("it is no sound entry of a lock");
        }
        Ok(())
    }

    /// Digest of the whole tree, equal on all replicas at the same index. Reads everything.
    pub fn digest(&self) -> Digest {
        digest::digest(self)
    }

    /// Number of nodes, the root included.
    pub fn node_count(&self) -> u64 {
        self.nodes
    }

    /// Approximate heap bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[inline]
    fn find(&self, key: &[u8]) -> Option<Slot> {
        let slot = self.index.find(&self.slab, self.index.hash(key), key)?;
        self.slab[slot].live.then_some(slot)
    }

    /// Makes a node under a directory, where none is.
    fn insert(&mut self, at: ApplyContext, parent: Slot, key: &[u8], new: NewNode) -> Slot {
        let meta = Meta {
            create_index: at.index,
            create_time_ms: at.time_ms,
            update_index: at.index,
            update_time_ms: at.time_ms,
        };
        let hash = self.index.hash(key);
        let slot = match self.index.find(&self.slab, hash, key) {
            Some(slot) => self.revive(slot, parent, meta, new),
            None => {
                let key = Arc::from(key);
                let node = Node {
                    key,
                    parent,
                    mark: Mark::CLEAN,
                    stored: false,
                    live: true,
                    lock: new.lock,
                    meta,
                    body: new.body,
                    lease: new.lease,
                };
                let slot = self.link(hash, node);
                self.change(slot);
                slot
            }
        };
        self.events.written(&self.slab[slot], 0);
        self.touch(at, parent);
        slot
    }

    /// Takes a new node in.
    fn link(&mut self, hash: KeyHash, node: Node) -> Slot {
        let (key, parent) = (Arc::clone(&node.key), node.parent);
        self.nodes += 1;
        self.bytes += node.heap_bytes();
        let slot = self.slab.insert(node);
        self.index.insert(hash, slot);
        self.undo.linked(slot);
        self.adopt(parent, &key, slot);
        slot
    }

    /// Makes a removed node anew that still has its slot.
    fn revive(&mut self, slot: Slot, parent: Slot, meta: Meta, new: NewNode) -> Slot {
        let node = self.change(slot);
        node.live = true;
        node.parent = parent;
        node.lock = new.lock;
        node.meta = meta;
        node.body = new.body;
        node.lease = new.lease;
        let (key, bytes) = (Arc::clone(&node.key), node.heap_bytes());
        self.nodes += 1;
        self.bytes += bytes;
        self.adopt(parent, &key, slot);
        slot
    }

    fn adopt(&mut self, parent: Slot, key: &Arc<[u8]>, slot: Slot) {
        if let Body::Dir(children) = &mut self.slab[parent].body {
            children.insert(key, slot);
            self.undo.adopted(parent, key);
        }
        if self.slab[slot].lease.is_some() {
            self.enroll(slot);
        }
    }

    /// Gives a value node a new value.
    #[inline]
    fn overwrite(&mut self, at: ApplyContext, slot: Slot, value: &[u8]) {
        let node = self.change(slot);
        let before = node.heap_bytes();
        node.set_value(value);
        let prev_index = std::mem::replace(&mut node.meta.update_index, at.index);
        node.meta.update_time_ms = at.time_ms;
        let (parent, after) = (node.parent, node.heap_bytes());
        self.events.written(&self.slab[slot], prev_index);
        self.bytes = self.bytes - before + after;
        self.touch(at, parent);
    }

    /// Removes a node from its directory. The caller has buried what is below it.
    fn unlink(&mut self, at: ApplyContext, slot: Slot) {
        let node = &self.slab[slot];
        let (parent, key) = (node.parent, Arc::clone(&node.key));
        if let Body::Dir(children) = &mut self.slab[parent].body {
            children.remove(&key);
            self.undo.disowned(parent, &key, slot);
        }
        self.bury(slot);
        self.touch(at, parent);
    }

    /// Empties a node that nothing leads to any more.
    fn bury(&mut self, slot: Slot) {
        self.events.removed(self.removal, &self.slab[slot]);
        if self.slab[slot].lease.is_some() {
            self.withdraw(slot);
        }
        let node = self.change(slot);
        let bytes = node.heap_bytes();
        node.live = false;
        let body = std::mem::replace(&mut node.body, Body::Value(Arc::default()));
        node.lock = false;
        node.lease = None;
        self.undo.emptied(slot, body);
        self.nodes -= 1;
        self.bytes -= bytes;
    }

    /// Moves index and time of a directory and of all above it. One that stands at this index
    /// already has moved those above it too.
    #[inline]
    fn touch(&mut self, at: ApplyContext, dir: Slot) {
        let mut slot = dir;
        loop {
            if self.slab[slot].meta.update_index == at.index {
                return;
            }
            let node = self.change(slot);
            node.meta.update_index = at.index;
            node.meta.update_time_ms = at.time_ms;
            if slot == ROOT {
                return;
            }
            slot = node.parent;
        }
    }
}
