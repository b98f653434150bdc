//! Groups of openraft over real sockets on loopback, with logs in memory.

use super::*;
use crate::group::inbound::GroupInbound;
use crate::group::raft::{Applied, Commands, Entry, Membership, StoredMembership, stored_membership_from_pb};
use crate::transport::{
    AddressBook, Identity, Inbound, NodeAddress, Records, ReplySender, SnapshotSink, TransportMetrics,
    TransportOptions, unpack_records,
};
use bytes::Bytes;
use futures::FutureExt;
use openraft::async_runtime::WatchReceiver;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder,
    RaftStateMachine, Snapshot,
};
use openraft::{ChangeMembers, EntryPayload, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, OnceLock};

type TestRaft = Raft<TypeConfig, State>;

const PATIENCE: Duration = Duration::from_secs(30);

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<LogParts>>);

#[derive(Default)]
struct LogParts {
    entries: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        Ok(self.0.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let parts = self.0.lock();
        let last = parts.entries.last_key_value().map(|(_, entry)| entry.log_id());
        Ok(LogState { last_purged_log_id: parts.purged, last_log_id: last.or(parts.purged) })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.0.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
    {
        self.0.lock().entries.extend(entries.into_iter().map(|entry| (entry.log_id().index(), entry)));
        flushed.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.0.lock().entries.retain(|index, _| last.is_some_and(|last| *index <= last.index()));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mut parts = self.0.lock();
        parts.entries.retain(|index, _| *index > upto.index());
        parts.purged = Some(upto);
        Ok(())
    }
}

/// Keeps the operations of every proposal.
#[derive(Clone, Default)]
struct State(Arc<Mutex<StateParts>>);

#[derive(Clone, Default)]
struct StateParts {
    applied: Option<LogId>,
    membership: StoredMembership,
    ops: Vec<Bytes>,
    /// What a snapshot brought that is not installed yet.
    received: Vec<Bytes>,
}

impl State {
    fn ops(&self) -> Vec<Bytes> {
        self.0.lock().ops.clone()
    }

    fn snapshot(&self) -> Snapshot<CommittedLeader, NodeId, EmptyNode, SnapshotHandle> {
        let parts = self.0.lock().clone();
        let record = |(i, ops): (usize, Bytes)| {
            Ok((Box::from((i as u32).to_be_bytes()), ops.to_vec().into_boxed_slice()))
        };
        let records: Records = Box::new(parts.ops.into_iter().enumerate().map(record));
        let meta = SnapshotMeta { last_log_id: parts.applied, last_membership: parts.membership };
        Snapshot { meta, snapshot: SnapshotHandle::Outgoing(records) }
    }
}

type CommittedLeader = openraft::vote::leader_id_std::CommittedLeaderId<u64>;

impl RaftStateMachine<TypeConfig> for State {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = State;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let parts = self.0.lock();
        Ok((parts.applied, parts.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let id = entry.log_id();
            {
                let mut parts = self.0.lock();
                parts.applied = Some(id);
                match entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Normal(commands) => parts.ops.push(commands.ops),
                    EntryPayload::Membership(membership) => {
                        parts.membership = StoredMembership::new(Some(id), membership);
                    }
                }
            }
            if let Some(responder) = responder {
                responder.send(Applied { index: id.index(), ..Applied::default() });
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> State {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotHandle,
    ) -> Result<(), io::Error> {
        assert!(matches!(snapshot, SnapshotHandle::Received { epoch: 9 }));
        let mut parts = self.0.lock();
        parts.applied = meta.last_log_id;
        parts.membership = meta.last_membership.clone();
        parts.ops = std::mem::take(&mut parts.received);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotHandle>>, io::Error> {
        Ok(Some(self.snapshot()))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for State {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotHandle>, io::Error> {
        Ok(self.snapshot())
    }
}

/// One node with one replica.
struct Node {
    id: NodeId,
    transport: Transport,
    address: String,
    raft: TestRaft,
    state: State,
}

/// Hands messages to the replica, once it is there.
#[derive(Default)]
struct Door(OnceLock<(GroupInbound<State>, TestRaft, State)>);

impl Inbound for Door {
    fn message(&self, from: NodeId, message: pb::Message, reply: ReplySender) {
        if let Some((inbound, ..)) = self.0.get() {
            inbound.message(from, message, reply);
        }
    }

    fn snapshot(
        &self,
        _from: NodeId,
        header: pb::SnapshotHeader,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Failure>> {
        let (_, raft, state) = self.0.get().unwrap().clone();
        async move { Ok(Box::new(Sink { raft, state, header }) as Box<dyn SnapshotSink>) }.boxed()
    }

    fn peer_lost(&self, _: NodeId) {}
    fn peer_found(&self, _: NodeId) {}
    fn address_changed(&self, _: NodeAddress) {}
}

struct Sink {
    raft: TestRaft,
    state: State,
    header: pb::SnapshotHeader,
}

impl SnapshotSink for Sink {
    fn records(&mut self, chunk: Bytes) -> BoxFuture<'_, Result<(), Failure>> {
        let ops = unpack_records(chunk).unwrap().into_iter().map(|(_, ops)| ops);
        self.state.0.lock().received.extend(ops);
        async { Ok(()) }.boxed()
    }

    fn finish(
        self: Box<Self>,
        _end: pb::SnapshotEnd,
    ) -> BoxFuture<'static, Result<pb::SnapshotReply, Failure>> {
        async move {
            let meta = SnapshotMeta {
                last_log_id: self.header.last_log_id.as_ref().map(log_id_from_pb),
                last_membership: stored_membership_from_pb(&self.header.last_membership.unwrap()).unwrap(),
            };
            let vote = vote_from_pb(&self.header.vote.unwrap());
            let snapshot = Snapshot { meta, snapshot: SnapshotHandle::Received { epoch: 9 } };
            let reply = self.raft.install_full_snapshot(vote, snapshot).await.unwrap();
            Ok(pb::SnapshotReply { vote: Some(vote_to_pb(&reply.vote)) })
        }
        .boxed()
    }
}

impl Node {
    async fn start(id: u64) -> Node {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let id = NodeId(id);
        let identity = Identity {
            cluster_id: "c".into(),
            node: id,
            incarnation: id.to_string(),
            peer_address: address.clone(),
            client_address: String::new(),
        };
        let metrics = TransportMetrics::register(&prometheus::Registry::new());
        let transport =
            Transport::new(identity, TransportOptions::default(), AddressBook::default(), metrics);
        let server = transport.clone();
        tokio::spawn(async move { server.serve(listener).await });
        let door = Arc::new(Door::default());
        transport.set_inbound(door.clone());
        let config = openraft::Config {
            heartbeat_interval: 300,
            election_timeout_min: 1000,
            election_timeout_max: 2000,
            enable_pre_vote: Some(true),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            ..Default::default()
        };
        let network = GroupNetwork::new(transport.clone(), GroupId(1), 5);
        let state = State::default();
        let raft = Raft::new(id, Arc::new(config), network, Log::default(), state.clone()).await.unwrap();
        let inbound = GroupInbound::new(raft.clone(), GroupId(1), 5);
        assert!(door.0.set((inbound, raft.clone(), state.clone())).is_ok());
        Node { id, transport, address, raft, state }
    }

    fn entry(&self) -> NodeAddress {
        NodeAddress { node: self.id, peer_address: self.address.clone(), ..NodeAddress::default() }
    }

    /// All operations as soon as there are so many.
    async fn applied(&self, count: usize) -> Vec<Bytes> {
        let since = clock::now();
        while self.state.ops().len() < count {
            assert!(since.elapsed() < PATIENCE, "{} of {count} at {}", self.state.ops().len(), self.id);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.state.ops()
    }
}

async fn nodes<const N: usize>() -> [Node; N] {
    let nodes = futures::future::join_all((1..=N as u64).map(Node::start)).await;
    for node in &nodes {
        for other in nodes.iter().filter(|other| other.id != node.id) {
            node.transport.book().put(other.entry()).unwrap();
        }
    }
    nodes.try_into().unwrap_or_else(|_| panic!("{N} nodes"))
}

fn ids(nodes: &[&Node]) -> BTreeSet<NodeId> {
    nodes.iter().map(|node| node.id).collect()
}

async fn elect(nodes: &[&Node]) -> NodeId {
    let members: BTreeMap<_, _> = ids(nodes).into_iter().map(|id| (id, EmptyNode::new())).collect();
    nodes[0].raft.initialize(members).await.unwrap();
    let metrics = nodes[0].raft.wait(Some(PATIENCE)).metrics(|m| m.current_leader.is_some(), "leader").await;
    let leader = metrics.unwrap().current_leader.unwrap();
    serves(&nodes.iter().find(|node| node.id == leader).unwrap().raft).await;
    leader
}

/// A leader takes writes once a majority has answered it.
async fn serves(leader: &TestRaft) {
    let since = clock::now();
    while leader.ensure_linearizable(openraft::ReadPolicy::LeaseRead).await.is_err() {
        assert!(since.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn op(i: usize) -> Bytes {
    // Small ones are copied on arrival, large ones are not.
    let padding = if i.is_multiple_of(50) { 30_000 } else { 100 };
    Bytes::from(format!("{i:06}{}", "x".repeat(padding)))
}

/// Proposes without waiting between two, then waits for all.
async fn propose(leader: &TestRaft, range: std::ops::Range<usize>) {
    let writes =
        range.map(|i| leader.client_write(Commands { time_ms: 0, clock_ms: 0, count: 1, ops: op(i) }));
    for result in futures::future::join_all(writes).await {
        result.unwrap();
    }
}

fn check(ops: &[Bytes], count: usize) {
    assert_eq!(ops.len(), count);
    let mut sorted = ops.to_vec();
    sorted.sort();
    assert!(sorted.iter().enumerate().all(|(i, got)| *got == op(i)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_elect_replicate_and_hand_leadership_over() {
    let nodes: [Node; 3] = nodes().await;
    let leader = elect(&nodes.each_ref()).await;
    let at = |id: NodeId| &nodes[id.0 as usize - 1];
    propose(&at(leader).raft, 0..1000).await;
    let expected = at(leader).applied(1000).await;
    check(&expected, 1000);
    for node in &nodes {
        assert_eq!(node.applied(1000).await, expected, "{}", node.id);
    }
    let next = nodes.iter().map(|node| node.id).find(|id| *id != leader).unwrap();
    at(leader).raft.trigger().transfer_leader(next).await.unwrap();
    let moved = at(leader).raft.wait(Some(PATIENCE)).current_leader(next, "moved").await.unwrap();
    assert!(moved.current_term > 1);
    at(next).raft.wait(Some(PATIENCE)).current_leader(next, "leads").await.unwrap();
    serves(&at(next).raft).await;
    propose(&at(next).raft, 1000..1200).await;
    for node in &nodes {
        check(&node.applied(1200).await, 1200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_cut_off_catches_up() {
    let nodes: [Node; 3] = nodes().await;
    let leader = elect(&nodes.each_ref()).await;
    let leader = &nodes[leader.0 as usize - 1];
    let cut = nodes.iter().find(|node| node.id != leader.id).unwrap();
    propose(&leader.raft, 0..100).await;
    cut.applied(100).await;
    // As if this node had left the cluster's network and come back.
    cut.transport.set_cluster_id("elsewhere");
    propose(&leader.raft, 100..400).await;
    assert!(cut.state.ops().len() < 400);
    cut.transport.set_cluster_id("c");
    check(&cut.applied(400).await, 400);
    let term = leader.raft.metrics().borrow_watched().current_term;
    assert_eq!(cut.raft.metrics().borrow_watched().current_term, term, "pre-vote disturbs nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_without_the_log_gets_a_snapshot() {
    let nodes: [Node; 2] = nodes().await;
    let [first, learner] = &nodes;
    elect(&[first]).await;
    propose(&first.raft, 0..500).await;
    first.raft.trigger().snapshot().await.unwrap();
    let purged = |m: &openraft::RaftMetrics<TypeConfig>| m.purged.is_some_and(|id| id.index() >= 500);
    first.raft.wait(Some(PATIENCE)).metrics(purged, "purged").await.unwrap();
    first.raft.add_learner(learner.id, EmptyNode::new(), true).await.unwrap();
    check(&learner.applied(500).await, 500);
    propose(&first.raft, 500..600).await;
    check(&learner.applied(600).await, 600);
    let voters = ChangeMembers::AddVoterIds(ids(&[learner]));
    first.raft.change_membership(voters, false).await.unwrap();
    let members: Membership = first.state.0.lock().membership.membership().clone();
    assert_eq!(members.voter_ids().count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_answers_a_read_index_question_and_a_follower_does_not() {
    let nodes: [Node; 2] = nodes().await;
    let leader = elect(&nodes.each_ref()).await;
    let [leader, follower] = {
        let id = leader;
        let [first, second] = nodes;
        if first.id == id { [first, second] } else { [second, first] }
    };
    propose(&leader.raft, 0..10).await;
    let ask = |from: &Node, to: NodeId| {
        let body = Some(Body::ReadIndex(pb::ReadIndexRequest {}));
        let question = pb::Message { group_id: 1, generation: 5, call: 0, body };
        from.transport.call(to, pb::Lane::Control, question)
    };
    let answer = ask(&follower, leader.id).await.unwrap().body.unwrap();
    let Body::ReadIndexReply(reply) = answer else { panic!() };
    assert!(reply.read_log_id.unwrap().index >= 10);
    let answer = ask(&leader, follower.id).await.unwrap().body.unwrap();
    assert_eq!(answer, Body::ReadIndexReply(pb::ReadIndexReply { read_log_id: None }));
}
