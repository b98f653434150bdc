//! What operations answer with, and the options that they take.

use crate::packed::{Kind, Op, PackedNode};
use crate::v1::{self, Code};
use bytes::Bytes;

/// A node of the tree, as a read saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Full dotted key; empty for the root directory.
    pub key: Bytes,
    /// None for directories and in keys-only listings. It shares the buffer of the answer that it
    /// came with, up to a frame of nodes: copy what is to be kept for long.
    pub value: Option<Bytes>,
    /// Raft index of the operation that created the node; 0 for the root.
    pub create_index: u64,
    /// Leader's wall clock at that operation, in ms since the Unix epoch.
    pub create_time_ms: u64,
    /// Raft index of the last change of the value, or of anything in the subtree.
    pub update_index: u64,
    /// Leader's wall clock at that change, in ms since the Unix epoch.
    pub update_time_ms: u64,
    /// It is a directory.
    pub dir: bool,
    /// It has an owner and a time to live.
    pub temp: bool,
    /// It is a lock.
    pub lock: bool,
    /// Number of direct children; 0 for values.
    pub child_count: u32,
    /// Temporary nodes: the time that is left.
    pub ttl_remaining_ms: Option<u64>,
    /// Temporary nodes: the client id of the owner.
    pub owner: Option<[u8; 16]>,
}

impl Node {
    /// Copies a packed node; the value stays a slice of `reply`.
    pub(crate) fn from_packed(key: Bytes, packed: &PackedNode<'_>, reply: &Bytes) -> Node {
        Node {
            key,
            value: (!packed.dir).then(|| reply.slice_ref(packed.value)),
            create_index: packed.create_index,
            create_time_ms: packed.create_time_ms,
            update_index: packed.update_index,
            update_time_ms: packed.update_time_ms,
            dir: packed.dir,
            temp: packed.temp,
            lock: packed.lock,
            child_count: packed.child_count,
            ttl_remaining_ms: packed.lease.map(|(ttl, _)| ttl),
            owner: packed.lease.map(|(_, owner)| owner),
        }
    }
}

impl From<v1::Node> for Node {
    fn from(node: v1::Node) -> Node {
        Node {
            key: node.key,
            value: node.value,
            create_index: node.create_index,
            create_time_ms: node.create_time_ms,
            update_index: node.update_index,
            update_time_ms: node.update_time_ms,
            dir: node.dir,
            temp: node.temp,
            lock: node.lock,
            child_count: node.child_count,
            ttl_remaining_ms: node.ttl_remaining_ms,
            owner: node.owner.and_then(|owner| owner.as_ref().try_into().ok()),
        }
    }
}

/// A put that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Raft index at which it was applied.
    pub index: u64,
    /// False when an older value was replaced.
    pub created: bool,
}

/// A remove that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Raft index at which it was applied.
    pub index: u64,
    /// False when there was nothing to remove.
    pub existed: bool,
}

/// A mkdir that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Raft index at which it was applied.
    pub index: u64,
    /// False when the directory was there already.
    pub created: bool,
}

/// What a compare-and-set came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CasOutcome {
    /// It was as expected and was replaced, created or deleted.
    Swapped {
        /// Raft index at which that was applied.
        index: u64,
    },
    /// It was not as expected; nothing changed.
    Mismatch {
        /// Raft index at which that was found.
        index: u64,
    },
}

/// What a compare-and-set expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect<'a> {
    /// The key must not exist.
    Absent,
    /// The key must hold this value.
    Value(&'a [u8]),
    /// The node's update index must be this one: the same value written again does not pass.
    Index(u64),
}

/// What a compare-and-set leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum New<'a> {
    /// This value.
    Value(&'a [u8]),
    /// Nothing: the key is deleted.
    Delete,
}

/// One read and the point at which it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadAnswer {
    /// Applied index that the read saw.
    pub index: u64,
    /// STALE reads: time since the replica last heard from its leader, in ms.
    pub lag_ms: Option<u64>,
    /// None when the key does not exist.
    pub node: Option<Node>,
}

/// A batch of writes that was applied in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchWritten {
    /// Raft index at which it was applied.
    pub index: u64,
    /// One for each item, in order.
    pub codes: Vec<Code>,
}

impl BatchWritten {
    /// True when every item was written or removed.
    pub fn is_all_done(&self) -> bool {
        self.codes.iter().all(|code| matches!(code, Code::Success | Code::SuccessOverwrite))
    }
}

/// Many nodes read at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRead {
    /// Applied index that the reads saw.
    pub index: u64,
    /// STALE reads: time since the replica last heard from its leader, in ms.
    pub lag_ms: Option<u64>,
    /// One for each key, in order; None where nothing exists.
    pub nodes: Vec<Option<Node>>,
}

/// A time to live that began anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Raft index at which that was applied.
    pub index: u64,
}

/// A change of everything that a client owns in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Raft index at which it was applied.
    pub index: u64,
    /// How many nodes and locks were renewed or removed; a directory counts once.
    pub count: u32,
}

/// How to put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Make missing parents permanent directories in the same step.
    pub create_parents: bool,
    /// Only while the node has this update index, else CAS_MISMATCH; 0 = while it does not exist. Not
    /// in batches.
    pub expect_index: Option<u64>,
}

impl PutOptions {
    pub(crate) fn op<'a>(&self, key: &'a [u8], value: &'a [u8]) -> Op<'a> {
        let PutOptions { create_parents, expect_index } = *self;
        Op { create_parents, expect_index, ..Op::new(Kind::Put, key, value) }
    }
}

/// How to make a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MkdirOptions {
    /// Make missing parents permanent directories in the same step.
    pub create_parents: bool,
}

/// How to remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Remove the whole subtree of a directory.
    pub recursive: bool,
    /// Only while the node has this update index, else CAS_MISMATCH.
    pub expect_index: Option<u64>,
}

/// What to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// At most this many nodes in a page; 0 = as many as fit into 1 MiB.
    pub limit: u32,
    /// Leave the values out.
    pub keys_only: bool,
    /// Every node below the directory, depth first, instead of its direct children.
    pub recursive: bool,
    /// The `continuation` of the page before; None for the first page.
    pub continuation: Option<Bytes>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Applied index that this page saw; another page may see a later one.
    pub index: u64,
    /// STALE reads: time since the replica last heard from its leader, in ms.
    pub lag_ms: Option<u64>,
    /// Sorted by segment.
    pub nodes: Vec<Node>,
    /// Where the next page begins; None when this is the last.
    pub continuation: Option<Bytes>,
}

/// The plain answer to one operation of [`crate::Group::submit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpResult {
    /// Raft index at which a write was applied, or applied index that a read saw.
    pub index: u64,
    /// STALE reads: time since the replica last heard from its leader, in ms.
    pub lag_ms: Option<u64>,
    /// The answer itself.
    pub answer: OpAnswer,
}

/// The answer to one operation, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpAnswer {
    /// Put, remove, mkdir, compare-and-set, update-ttl, unlock; a get that found nothing.
    Code(Code),
    /// A batch: the code of the whole and a code byte for each item.
    Batch(Code, Bytes),
    /// Try-lock and update-lease: the fencing token of the grant, 0 when the caller holds none.
    Token(Code, u64),
    /// Keep-alive and drop-owner: how many nodes were renewed or removed.
    Count(Code, u32),
    /// A transaction: its packed result, for [`crate::packed::results`].
    Txn(Code, Bytes),
    /// A get that found a node. Its `key` is left empty: the caller knows it.
    Node(Node),
}

impl OpAnswer {
    /// The code of the operation as a whole.
    pub fn code(&self) -> Code {
        match self {
            OpAnswer::Code(code)
            | OpAnswer::Batch(code, _)
            | OpAnswer::Token(code, _)
            | OpAnswer::Count(code, _)
            | OpAnswer::Txn(code, _) => *code,
            OpAnswer::Node(_) => Code::Success,
        }
    }
}

impl OpResult {
    /// The code of the operation as a whole.
    pub fn code(&self) -> Code {
        self.answer.code()
    }
}
