//! A node of the tree, and what readers see of it.

use super::dirty::Mark;
use super::lease::Lease;
use super::record::NodeRecord;
use super::segment::Children;
use super::slab::Slot;
use bytes::Bytes;
use dtkv_client::packed::PackedNode;
use dtkv_client::v1;
use std::sync::Arc;

/// Raft index and leader's wall clock of a node's creation and of its last change. For a directory
/// the last change is the last one anywhere below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Meta {
    pub create_index: u64,
    pub create_time_ms: u64,
    pub update_index: u64,
    pub update_time_ms: u64,
}

pub(super) enum Body {
    Value(Arc<[u8]>),
    Dir(Box<Children>),
}

impl Body {
    pub(super) fn value(value: &[u8]) -> Body {
        Body::Value(Arc::from(value))
    }

    pub(super) fn dir() -> Body {
        Body::Dir(Box::default())
    }

    fn value_len(&self) -> usize {
        match self {
            Body::Value(value) => value.len(),
            Body::Dir(_) => 0,
        }
    }
}

/// A node that is about to be made.
pub(super) struct NewNode {
    pub(super) body: Body,
    pub(super) lock: bool,
    pub(super) lease: Option<Box<Lease>>,
}

impl NewNode {
    #[inline]
    pub(super) fn permanent(body: Body) -> NewNode {
        NewNode { body, lock: false, lease: None }
    }

    pub(super) fn temporary(body: Body, lease: Lease) -> NewNode {
        NewNode { body, lock: false, lease: Some(Box::new(lease)) }
    }

    /// A lock directory, or an entry of one, which has a lease.
    pub(super) fn lock(body: Body, lease: Option<Lease>) -> NewNode {
        NewNode { body, lock: true, lease: lease.map(Box::new) }
    }
}

pub(super) struct Node {
    pub(super) key: Arc<[u8]>,
    pub(super) parent: Slot,
    /// Whether the node waits to be handed out.
    pub(super) mark: Mark,
    /// A record of this key was handed out or loaded, so its removal must be handed out too.
    pub(super) stored: bool,
    /// False: removed, and kept only until that is handed out.
    pub(super) live: bool,
    /// A lock directory, or an entry in one.
    pub(super) lock: bool,
    pub(super) meta: Meta,
    pub(super) body: Body,
    pub(super) lease: Option<Box<Lease>>,
}

/// What a node costs beside its key and its value: itself, the headers of its two allocations,
/// its places in the key index and in its parent's child map.
const NODE_BYTES: u64 = (size_of::<Node>() + 2 * 16 + 16 + 40) as u64;

/// What a lease costs: itself, and its places in the orders of the leases.
const LEASE_BYTES: u64 = (size_of::<Lease>() + 16 + 2 * 32 + 24) as u64;

impl Node {
    #[inline]
    pub(super) fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }

    pub(super) fn children(&self) -> Option<&Children> {
        match &self.body {
            Body::Dir(children) => Some(children),
            Body::Value(_) => None,
        }
    }

    pub(super) fn child_count(&self) -> usize {
        self.children().map_or(0, Children::len)
    }

    /// True when somebody else owns the node.
    pub(super) fn is_foreign(&self, caller: Option<[u8; 16]>) -> bool {
        self.lease.as_ref().is_some_and(|lease| Some(lease.owner) != caller)
    }

    /// Approximate heap bytes.
    pub(super) fn heap_bytes(&self) -> u64 {
        let lease = if self.lease.is_some() { LEASE_BYTES } else { 0 };
        NODE_BYTES + lease + (self.key.len() + self.body.value_len()) as u64
    }

    /// Replaces the value; in place when nobody else looks at it and it has the same length.
    #[inline]
    pub(super) fn set_value(&mut self, value: &[u8]) {
        if let Body::Value(current) = &mut self.body {
            match Arc::get_mut(current) {
                Some(bytes) if bytes.len() == value.len() => bytes.copy_from_slice(value),
                _ => *current = Arc::from(value),
            }
        }
    }

    pub(super) fn record(&self) -> NodeRecord {
        let value = match &self.body {
            Body::Value(value) => Some(Arc::clone(value)),
            Body::Dir(_) => None,
        };
        NodeRecord { meta: self.meta, lock: self.lock, lease: self.lease.clone(), value }
    }
}

/// A node as readers see it, borrowed from the tree.
#[derive(Clone, Copy)]
pub struct NodeView<'a>(pub(super) &'a Node);

impl<'a> NodeView<'a> {
    /// The full key; empty for the root.
    pub fn key(&self) -> &'a Arc<[u8]> {
        &self.0.key
    }

    /// Indexes and times.
    pub fn meta(&self) -> Meta {
        self.0.meta
    }

    /// None for a directory.
    pub fn value(&self) -> Option<&'a Arc<[u8]>> {
        match &self.0.body {
            Body::Value(value) => Some(value),
            Body::Dir(_) => None,
        }
    }

    /// A directory, or a value.
    pub fn is_dir(&self) -> bool {
        self.0.is_dir()
    }

    /// A lock directory, or an entry in one.
    pub fn is_lock(&self) -> bool {
        self.0.lock
    }

    /// Temporary nodes only.
    pub fn lease(&self) -> Option<&'a Lease> {
        self.0.lease.as_deref()
    }

    /// Number of direct children; 0 for values.
    pub fn child_count(&self) -> u32 {
        u32::try_from(self.0.child_count()).unwrap_or(u32::MAX)
    }

    /// Appends the packed result of a get; what is left of a TTL is counted from `clock_ms`.
    #[inline]
    pub fn pack(&self, clock_ms: u64, out: &mut Vec<u8>) {
        let meta = self.meta();
        let node = PackedNode {
            dir: self.is_dir(),
            temp: self.lease().is_some(),
            lock: self.is_lock(),
            create_index: meta.create_index,
            create_time_ms: meta.create_time_ms,
            update_index: meta.update_index,
            update_time_ms: meta.update_time_ms,
            child_count: self.child_count(),
            value: self.value().map_or(&[], |value| value),
            lease: self.lease().map(|lease| (lease.remaining_ms(clock_ms), lease.owner)),
        };
        node.pack(out);
    }

    /// A copy that outlives the tree's lock; it shares key and value.
    pub fn to_listed(&self, keys_only: bool) -> ListedNode {
        ListedNode {
            key: Arc::clone(&self.0.key),
            meta: self.0.meta,
            dir: self.is_dir(),
            lock: self.is_lock(),
            lease: self.lease().cloned(),
            child_count: self.child_count(),
            value: self.value().filter(|_| !keys_only).cloned(),
        }
    }
}

/// A node in a page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedNode {
    /// The full key.
    pub key: Arc<[u8]>,
    /// Indexes and times.
    pub meta: Meta,
    /// A directory, or a value.
    pub dir: bool,
    /// A lock directory, or an entry in one.
    pub lock: bool,
    /// Temporary nodes only.
    pub lease: Option<Lease>,
    /// Number of direct children; 0 for values.
    pub child_count: u32,
    /// None for directories and in keys-only listings.
    pub value: Option<Arc<[u8]>>,
}

impl ListedNode {
    /// As a message; what is left of a TTL is counted from `clock_ms`.
    pub fn into_message(self, clock_ms: u64) -> v1::Node {
        let node = self;
        v1::Node {
            key: Bytes::from_owner(node.key),
            value: node.value.map(Bytes::from_owner),
            create_index: node.meta.create_index,
            create_time_ms: node.meta.create_time_ms,
            update_index: node.meta.update_index,
            update_time_ms: node.meta.update_time_ms,
            dir: node.dir,
            temp: node.lease.is_some(),
            lock: node.lock,
            child_count: node.child_count,
            ttl_remaining_ms: node.lease.as_ref().map(|lease| lease.remaining_ms(clock_ms)),
            owner: node.lease.map(|lease| Bytes::copy_from_slice(&lease.owner)),
        }
    }
}
