//! openraft's types as this store uses them, and their encodings. What openraft itself would
//! serialize never reaches the disk or the wire: entries, votes, log ids and memberships are
//! written as the protobuf messages of `dtkv.peer.v1`.

use crate::ids::NodeId;
use crate::machine::Repeat;
use crate::peer_v1 as pb;
use bytes::Bytes;
use openraft::EmptyNode;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A leader of a term; one at most for each term.
pub type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>;
/// A vote.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// A log id: term and index.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A membership without its log id.
pub type Membership = openraft::Membership<NodeId, EmptyNode>;
/// A membership and where it stands in the log.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// Describes a snapshot.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// What a proposal carries: packed operations, applied in one step.
#[derive(Clone, PartialEq)]
pub struct Commands {
    /// Leader's wall clock when it accepted them, ms since the Unix epoch.
    pub time_ms: u64,
    /// Group clock when it accepted them, in ms.
    pub clock_ms: u64,
    /// How many operations.
    pub count: u32,
    /// The packed operations, see `dtkv_client::packed`.
    pub ops: Bytes,
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commands({} operations, {} bytes)", self.count, self.ops.len())
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry gives back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Index at which the entry was applied.
    pub index: u64,
    /// Packed results, one for each operation.
    pub results: Bytes,
    /// The frames in it that had been applied before, in the order of their results.
    pub repeats: Vec<Repeat>,
}

impl Applied {
    /// The index at which the frame was applied whose results begin at `offset`.
    pub fn index_at(&self, offset: usize) -> u64 {
        let found = self.repeats.binary_search_by_key(&offset, |repeat| repeat.offset);
        found.ok().and_then(|at| self.repeats.get(at)).map_or(self.index, |repeat| repeat.index)
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "applied at {}", self.index)
    }
}

/// The types of every group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Commands;
    type R = Applied;
    type NodeId = NodeId;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = EntryPayload<Commands, NodeId, EmptyNode>;
    type Entry = Entry;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type Responder<T>
        = Responder<T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// One log entry.
pub type Entry = openraft::Entry<
    <LeaderId as openraft::vote::RaftLeaderId>::Committed,
    EntryPayload<Commands, NodeId, EmptyNode>,
>;

/// Called with the outcome of a proposal, on the task that applied it: no task and no channel for
/// each request.
pub struct Responder<T>(pub Box<dyn FnOnce(T) + Send + 'static>);

impl<T> openraft::raft::responder::Responder<TypeConfig, T> for Responder<T>
where
    T: Send + 'static,
{
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// Encodes a log id.
pub fn log_id_to_pb(id: &LogId) -> pb::LogId {
    pb::LogId { term: id.committed_leader_id().term, index: id.index() }
}

/// Decodes a log id.
pub fn log_id_from_pb(id: &pb::LogId) -> LogId {
    LogId::new(openraft::vote::leader_id_std::CommittedLeaderId { term: id.term }, id.index)
}

/// Encodes a vote.
pub fn vote_to_pb(vote: &Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term, node_id: vote.leader_id.voted_for.0, committed: vote.committed }
}

/// Decodes a vote.
pub fn vote_from_pb(vote: &pb::Vote) -> Vote {
    let leader_id = LeaderId { term: vote.term, voted_for: NodeId(vote.node_id) };
    Vote { leader_id, committed: vote.committed }
}

/// Encodes a membership.
pub fn membership_to_pb(membership: &Membership) -> pb::Membership {
    let set = |nodes: &BTreeSet<NodeId>| pb::NodeSet { nodes: nodes.iter().map(|n| n.0).collect() };
    pb::Membership {
        configs: membership.get_joint_config().iter().map(set).collect(),
        learners: membership.learner_ids().map(|n| n.0).collect(),
    }
}

/// Decodes a membership.
///
/// # Errors
/// When openraft refuses it (an empty voter set).
pub fn membership_from_pb(membership: &pb::Membership) -> Result<Membership, std::io::Error> {
    let ids = |nodes: &[u64]| nodes.iter().map(|n| NodeId(*n)).collect::<BTreeSet<_>>();
    let configs: Vec<_> = membership.configs.iter().map(|set| ids(&set.nodes)).collect();
    let nodes: BTreeMap<NodeId, EmptyNode> = configs
        .iter()
        .flatten()
        .copied()
        .chain(membership.learners.iter().map(|n| NodeId(*n)))
        .map(|n| (n, EmptyNode::new()))
        .collect();
    Membership::new(configs, nodes).map_err(std::io::Error::other)
}

/// Encodes a membership with its log id.
pub fn stored_membership_to_pb(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_pb),
        membership: Some(membership_to_pb(stored.membership())),
    }
}

/// Decodes a membership with its log id.
///
/// # Errors
/// As [`membership_from_pb`].
pub fn stored_membership_from_pb(stored: &pb::StoredMembership) -> Result<StoredMembership, std::io::Error> {
    let log_id = stored.log_id.as_ref().map(log_id_from_pb);
    let membership = match &stored.membership {
        Some(membership) if !membership.configs.is_empty() => membership_from_pb(membership)?,
        _ => return Ok(StoredMembership::default()),
    };
    Ok(StoredMembership::new(log_id, membership))
}

/// An entry as a message; the operations stay shared.
pub fn entry_to_pb(entry: &Entry) -> pb::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => pb::entry::Payload::Blank(true),
        EntryPayload::Normal(commands) => pb::entry::Payload::Commands(pb::Commands {
            time_ms: commands.time_ms,
            clock_ms: commands.clock_ms,
            count: commands.count,
            ops: commands.ops.clone(),
        }),
        EntryPayload::Membership(membership) => pb::entry::Payload::Membership(membership_to_pb(membership)),
    };
    pb::Entry { log_id: Some(log_id_to_pb(&entry.log_id())), payload: Some(payload) }
}

/// Encodes an entry, as it stands on disk and on the wire.
pub fn encode_entry(entry: &Entry) -> Bytes {
    entry_to_pb(entry).encode_to_vec().into()
}

/// Decodes an entry; the operations stay a slice of `bytes`.
///
/// # Errors
/// When the bytes are not an entry.
pub fn decode_entry(bytes: Bytes) -> Result<Entry, std::io::Error> {
    entry_from_pb(pb::Entry::decode(bytes).map_err(|e| broken_entry(&e.to_string()))?)
}

fn broken_entry(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("log entry: {what}"))
}

/// The entry of a message; the operations stay shared.
///
/// # Errors
/// When parts are missing.
pub fn entry_from_pb(entry: pb::Entry) -> Result<Entry, std::io::Error> {
    let log_id = entry.log_id.as_ref().map(log_id_from_pb).ok_or_else(|| broken_entry("no log id"))?;
    let payload = match entry.payload.ok_or_else(|| broken_entry("no payload"))? {
        pb::entry::Payload::Blank(_) => EntryPayload::Blank,
        pb::entry::Payload::Commands(c) => EntryPayload::Normal(Commands {
            time_ms: c.time_ms,
            clock_ms: c.clock_ms,
            count: c.count,
            ops: c.ops,
        }),
        pb::entry::Payload::Membership(m) => EntryPayload::Membership(membership_from_pb(&m)?),
    };
    Ok(Entry::new(log_id, payload))
}
