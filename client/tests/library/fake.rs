//! Nodes that speak the public contract over loopback, with a map for a state machine. Each runs
//! in its own runtime, so that it can be killed with all its connections.

use crate::fake_watch::{WatchScript, Watching, serve_watches};
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::txn::{Txn, TxnResult};
use dtkv_client::packed::{self, Kind, Op, PackedNode};
use dtkv_client::v1::admin_server::{Admin, AdminServer};
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::kv_server::{Kv, KvServer};
use dtkv_client::v1::*;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use prost::Message;
use sessions::Verdict;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

#[path = "fake/owners.rs"]
mod owners;
#[path = "fake/sessions.rs"]
mod sessions;

/// What a node does with a frame.
pub enum Act {
    Serve,
    /// Carries the frame out and ends the stream without an answer.
    ServeAndBreak,
    /// Carries the frame out, and fails nevertheless.
    ServeAndFail(Failure),
    Delay(Duration),
    Fail(Failure),
    /// Answers that all went well and does nothing.
    Accept,
    /// Never answers.
    Swallow,
    /// Ends the stream without an answer.
    Break,
    /// Carries the frame out, but answers with bytes that make no sense.
    Garble,
}

type Script = Arc<dyn Fn(&Frame) -> Act + Send + Sync>;

/// A frame that a node has seen.
#[derive(Clone, Debug)]
pub struct Seen {
    pub group: u32,
    pub count: u32,
    pub bytes: usize,
    pub read: bool,
    pub timeout_ms: u32,
    pub scope: Option<Scope>,
}

/// Group and key to value and update index.
type Data = BTreeMap<(u32, Vec<u8>), (Vec<u8>, u64)>;

/// Group, index, key and value of a put.
pub type Logged = (u32, u64, Vec<u8>, Vec<u8>);

/// What all nodes know: where each other are, who leads what, and all data.
#[derive(Default)]
pub struct World {
    pub addresses: Mutex<BTreeMap<u64, SocketAddr>>,
    pub leaders: Mutex<BTreeMap<u32, u64>>,
    /// Leaders that nodes claim in listings, when that differs.
    pub rumours: Mutex<BTreeMap<u32, u64>>,
    pub members: Mutex<BTreeMap<u32, Vec<u64>>>,
    pub data: Mutex<Data>,
    pub sessions: Mutex<sessions::Sessions>,
    pub owners: Mutex<owners::Owners>,
    /// How often each key was put.
    pub puts: Mutex<BTreeMap<Vec<u8>, usize>>,
    pub index: AtomicU64,
    /// Every put.
    pub log: Mutex<Vec<Logged>>,
    pub cluster_ids: Mutex<BTreeMap<u64, String>>,
    pub bootstrapped: Mutex<BTreeSet<(u32, u64)>>,
}

pub struct Node {
    pub id: u64,
    pub world: Arc<World>,
    pub watching: Mutex<Watching>,
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
    /// Operations received and not answered yet, and the most there ever were.
    pending: AtomicUsize,
    pending_max: AtomicUsize,
    unary_batches: AtomicUsize,
    /// So many answers to unary batches get lost.
    lost_answers: AtomicUsize,
}

pub struct FakeNode {
    pub address: String,
    node: Arc<Node>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl World {
    /// A cluster whose groups are all led by the first node.
    pub fn start(nodes: u64, groups: u32) -> (Arc<World>, Vec<FakeNode>) {
        let world = Arc::new(World::default());
        let started: Vec<FakeNode> = (1..=nodes).map(|id| FakeNode::start(id, &world, 0)).collect();
        for group in 1..=groups {
            world.leaders.lock().insert(group, 1);
            world.members.lock().insert(group, (1..=nodes).collect());
        }
        (world, started)
    }

    pub fn lead(&self, group: u32, node: u64) {
        self.leaders.lock().insert(group, node);
    }

    fn address(&self, node: u64) -> Option<NodeAddress> {
        let address = self.addresses.lock().get(&node)?.to_string();
        Some(NodeAddress { node_id: node, client_address: address, ..NodeAddress::default() })
    }

    fn apply(&self, group: u32, ops: &[u8], results: &mut Vec<u8>) -> u64 {
        let mut first = packed::ops(ops);
        let scope = first.next().and_then(|op| Scope::read(&op.unwrap()));
        let Some(scope) = scope else { return self.apply_all(group, None, ops, results) };
        let ops = &ops[first.offset()..];
        assert_eq!(usize::from(scope.operations), packed::ops(ops).count());
        match self.sessions.lock().begin(group, &scope) {
            Verdict::Fresh => {}
            Verdict::Repeated(index, again) => {
                results.extend_from_slice(&again);
                return index;
            }
            Verdict::Expired => {
                let refuse = |op: Op<'_>| packed::pack_refusal(op.kind, Code::SessionExpired, results);
                packed::ops(ops).flatten().for_each(refuse);
                return self.index.load(Ordering::SeqCst);
            }
        }
        let index = self.apply_all(group, Some(scope.client_id), ops, results);
        self.sessions.lock().record(group, &scope, index, results);
        index
    }

    fn apply_all(&self, group: u32, client: Option<[u8; 16]>, ops: &[u8], results: &mut Vec<u8>) -> u64 {
        let index = self.index.fetch_add(1, Ordering::SeqCst) + 1;
        for op in packed::ops(ops) {
            let op = op.unwrap();
            let client = op.session.map(|(client, _)| client).or(client);
            self.apply_one(At { group, index, client }, &op, results);
        }
        index
    }

    fn apply_one(&self, at: At, op: &Op<'_>, results: &mut Vec<u8>) {
        let At { group, index, client } = at;
        let is_done = self.owners.lock().apply(group, index, client, op, results);
        let granted = self.owners.lock().take_granted();
        self.log.lock().extend(granted.into_iter().map(|(group, key, value)| (group, index, key, value)));
        if is_done {
            return;
        }
        if op.guard.is_some_and(|(token, lock)| self.owners.lock().token(group, lock) != token) {
            return packed::pack_refusal(op.kind, Code::Fenced, results);
        }
        let mut data = self.data.lock();
        let key = (group, op.key.to_vec());
        let code = match op.kind {
            Kind::Put
                if op.expect_index.is_some_and(|want| data.get(&key).map_or(0, |(_, at)| *at) != want) =>
            {
                Code::CasMismatch
            }
            Kind::Put => {
                *self.puts.lock().entry(op.key.to_vec()).or_default() += 1;
                self.log.lock().push((group, index, op.key.to_vec(), op.value.to_vec()));
                match data.insert(key, (op.value.to_vec(), index)) {
                    Some(_) => Code::SuccessOverwrite,
                    None => Code::Success,
                }
            }
            Kind::Remove => data.remove(&key).map_or(Code::NotFound, |_| Code::Success),
            Kind::Mkdir => data.get(&key).map_or(Code::Success, |_| Code::DirExists),
            Kind::CompareAndSet => {
                if data.get(&key).map(|(value, _)| value.as_slice()) == op.expect {
                    data.insert(key, (op.value.to_vec(), index));
                    Code::Success
                } else {
                    Code::CasMismatch
                }
            }
            Kind::Batch => {
                drop(data);
                let mut codes = Vec::new();
                for op in packed::ops(op.value) {
                    self.apply_one(at, &op.unwrap(), &mut codes);
                }
                return packed::pack_batch_result(Code::Success, &codes, results);
            }
            Kind::Get => match data.get(&key) {
                Some((value, index)) => {
                    let node = PackedNode { value, update_index: *index, ..PackedNode::default() };
                    return node.pack(results);
                }
                None => Code::NotFound,
            },
            Kind::Txn => {
                drop(data);
                return self.apply_txn(at, op.value, results);
            }
            other => panic!("the scripted node does not know {other:?}"),
        };
        results.push(code as u8);
    }

    /// Compares equal update indexes only; a branch fails with its first directory that exists.
    fn apply_txn(&self, at: At, value: &[u8], results: &mut Vec<u8>) {
        let txn = Txn::read(value).unwrap();
        let index =
            |key: &[u8]| self.data.lock().get(&(at.group, key.to_vec())).map_or(0, |(_, index)| *index);
        let succeeded = txn.compares.iter().all(|compare| compare.number() == Some(index(compare.key)));
        let mut inner = Vec::new();
        for (number, op) in txn.branch(succeeded).flatten().enumerate() {
            if op.kind == Kind::Mkdir && index(op.key) > 0 {
                let failed_op = Some(number as u16);
                let failed = TxnResult { code: Code::ValueExists, succeeded, failed_op, results: b"" };
                return failed.pack(results);
            }
            self.apply_one(at, &op, &mut inner);
        }
        TxnResult { code: Code::Success, succeeded, failed_op: None, results: &inner }.pack(results);
    }
}

/// Where an operation is applied, and who sent it.
#[derive(Clone, Copy)]
struct At {
    group: u32,
    index: u64,
    client: Option<[u8; 16]>,
}

impl FakeNode {
    pub fn start(id: u64, world: &Arc<World>, port: u16) -> FakeNode {
        let script: Script = Arc::new(|_| Act::Serve);
        let node = Arc::new(Node {
            id,
            world: world.clone(),
            watching: Mutex::default(),
            script: Mutex::new(script),
            seen: Mutex::default(),
            pending: AtomicUsize::new(0),
            pending_max: AtomicUsize::new(0),
            unary_batches: AtomicUsize::new(0),
            lost_answers: AtomicUsize::new(0),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        world.addresses.lock().insert(id, address);
        let service = Service(node.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let kv = KvServer::new(service.clone()).max_decoding_message_size(8 << 20);
            let server = tonic::transport::Server::builder();
            let router = { server }.add_service(kv).add_service(AdminServer::new(service));
            router.serve_with_incoming(incoming).await.unwrap();
        });
        FakeNode { address: address.to_string(), node, runtime: Some(runtime) }
    }

    pub fn script(&self, script: impl Fn(&Frame) -> Act + Send + Sync + 'static) {
        *self.node.script.lock() = Arc::new(script);
    }

    pub fn serve(&self) {
        self.script(|_| Act::Serve);
    }

    /// How the node treats streams of watches from now on.
    pub fn script_watches(&self, script: WatchScript) {
        self.node.watching.lock().script = script;
    }

    /// The watches that the node was asked for.
    pub fn watches_seen(&self) -> Vec<WatchCreate> {
        self.node.watching.lock().seen.clone()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.node.seen.lock().clone()
    }

    pub fn pending_max(&self) -> usize {
        self.node.pending_max.load(Ordering::SeqCst)
    }

    pub fn unary_batches(&self) -> usize {
        self.node.unary_batches.load(Ordering::SeqCst)
    }

    pub fn lose_answers_to_batches(&self, answers: usize) {
        self.node.lost_answers.store(answers, Ordering::SeqCst);
    }

    /// Cuts all connections and stops listening.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn failure(reason: Reason) -> Failure {
    Failure { reason: reason.into(), message: format!("told to fail: {reason:?}"), ..Failure::default() }
}

impl Node {
    fn leads(&self, group: u32) -> Result<(), Failure> {
        match self.world.leaders.lock().get(&group) {
            Some(&leader) if leader == self.id => Ok(()),
            Some(&leader) => {
                Err(Failure { leader: self.world.address(leader), ..failure(Reason::NotLeader) })
            }
            None => Err(failure(Reason::GroupNotReady)),
        }
    }

    fn serve(&self, frame: &Frame) -> FrameReply {
        let mut reply = FrameReply { id: frame.id, ..FrameReply::default() };
        let stale = frame.read && frame.consistency() == Consistency::Stale;
        if let (Err(failure), false) = (self.leads(frame.group_id), stale) {
            reply.failure = Some(failure);
            return reply;
        }
        let mut results = Vec::new();
        reply.index = self.world.apply(frame.group_id, &frame.ops, &mut results);
        reply.results = results.into();
        reply.lag_ms = stale.then_some(self.id);
        reply
    }

    fn arrived(&self, frame: &Frame) {
        let (group, count, read) = (frame.group_id, frame.count, frame.read);
        let (bytes, timeout_ms) = (frame.ops.len(), frame.timeout_ms);
        let scope = packed::ops(&frame.ops).next().and_then(|op| Scope::read(&op.unwrap()));
        self.seen.lock().push(Seen { group, count, bytes, read, timeout_ms, scope });
        let pending = self.pending.fetch_add(count as usize, Ordering::SeqCst) + count as usize;
        self.pending_max.fetch_max(pending, Ordering::SeqCst);
    }

    async fn answer(self: &Arc<Self>, frame: Frame, out: &mpsc::Sender<Result<FrameReply, Status>>) -> bool {
        self.arrived(&frame);
        let act = { self.script.lock().clone() }(&frame);
        let mut reply = match act {
            Act::Break => return false,
            Act::Swallow => return true,
            Act::Fail(failure) => FrameReply { id: frame.id, failure: Some(failure), ..Default::default() },
            Act::Serve => self.serve(&frame),
            Act::ServeAndBreak => {
                self.serve(&frame);
                return false;
            }
            Act::ServeAndFail(failure) => {
                self.serve(&frame);
                FrameReply { id: frame.id, failure: Some(failure), ..Default::default() }
            }
            Act::Accept => FrameReply { results: vec![0; frame.count as usize].into(), ..Default::default() },
            Act::Garble => FrameReply { results: vec![99].into(), ..self.serve(&frame) },
            Act::Delay(delay) => {
                let (node, out) = (self.clone(), out.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let reply = node.serve(&frame);
                    node.pending.fetch_sub(frame.count as usize, Ordering::SeqCst);
                    let _ = out.send(Ok(reply)).await;
                });
                return true;
            }
        };
        reply.id = frame.id;
        self.pending.fetch_sub(frame.count as usize, Ordering::SeqCst);
        out.send(Ok(reply)).await.is_ok()
    }
}

#[derive(Clone)]
struct Service(Arc<Node>);

fn status(failure: Failure) -> Status {
    let bytes = failure.encode_to_vec();
    Status::with_details(tonic::Code::Unavailable, failure.message, bytes.into())
}

#[tonic::async_trait]
impl Kv for Service {
    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<futures::stream::BoxStream<'static, Result<WatchResponse, Status>>>, Status> {
        let (out, responses) = mpsc::channel(1024);
        tokio::spawn(serve_watches(self.0.clone(), request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn pipe(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<BoxStream<'static, Result<FrameReply, Status>>>, Status> {
        let (out, replies) = mpsc::channel(1024);
        let node = self.0.clone();
        let mut frames = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                if !node.answer(frame, &out).await {
                    let _ = out.send(Err(Status::unavailable("told to break"))).await;
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    async fn batch_put(
        &self,
        request: Request<BatchPutRequest>,
    ) -> Result<Response<BatchWriteResponse>, Status> {
        let request = request.into_inner();
        self.0.leads(request.group_id).map_err(status)?;
        self.0.unary_batches.fetch_add(1, Ordering::SeqCst);
        let mut ops = sessions::scope_of(request.session.as_ref(), request.items.len());
        request.items.iter().for_each(|item| Op::new(Kind::Put, &item.key, &item.value).pack(&mut ops));
        let mut codes = Vec::new();
        let index = self.0.world.apply(request.group_id, &ops, &mut codes);
        if self.0.lost_answers.load(Ordering::SeqCst) > 0 {
            self.0.lost_answers.fetch_sub(1, Ordering::SeqCst);
            return Err(Status::unavailable("told to lose the answer"));
        }
        let codes = codes.into_iter().map(i32::from).collect();
        Ok(Response::new(BatchWriteResponse { index, codes, ..Default::default() }))
    }

    async fn batch_get(
        &self,
        request: Request<BatchGetRequest>,
    ) -> Result<Response<BatchGetResponse>, Status> {
        let request = request.into_inner();
        self.0.leads(request.group_id).map_err(status)?;
        self.0.unary_batches.fetch_add(1, Ordering::SeqCst);
        let data = self.0.world.data.lock();
        let item = |key: &bytes::Bytes| match data.get(&(request.group_id, key.to_vec())) {
            Some((value, _)) => BatchGetItem {
                code: Code::Success.into(),
                node: Some(TreeNode {
                    key: key.clone(),
                    value: Some(value.clone().into()),
                    ..Default::default()
                }),
            },
            None => BatchGetItem { code: Code::NotFound.into(), node: None },
        };
        let items = request.keys.iter().map(item).collect();
        Ok(Response::new(BatchGetResponse { index: 1, items, lag_ms: None }))
    }

    async fn list_owned(&self, request: Request<ListOwnedRequest>) -> Result<Response<ListResponse>, Status> {
        let request = request.into_inner();
        self.0.leads(request.group_id).map_err(status)?;
        let nodes = self.0.world.owners.lock().owned(request.group_id, &request.client_id);
        Ok(Response::new(ListResponse { index: 1, nodes, ..Default::default() }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let request = request.into_inner();
        self.0.leads(request.group_id).map_err(status)?;
        let data = self.0.world.data.lock();
        let from = (request.group_id, request.continuation.to_vec());
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let mut rest = data.range(from..).filter(|((group, _), _)| *group == request.group_id);
        let page = rest.by_ref().take(limit);
        let nodes = page
            .map(|((_, key), (value, _))| TreeNode {
                key: key.clone().into(),
                value: (!request.keys_only).then(|| value.clone().into()),
                ..Default::default()
            })
            .collect();
        let continuation = rest.next().map(|((_, key), _)| key.clone().into()).unwrap_or_default();
        Ok(Response::new(ListResponse { index: 1, nodes, continuation, ..Default::default() }))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<WriteResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn remove(&self, _: Request<RemoveRequest>) -> Result<Response<WriteResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn mkdir(&self, _: Request<MkdirRequest>) -> Result<Response<WriteResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn batch_remove(
        &self,
        _: Request<BatchRemoveRequest>,
    ) -> Result<Response<BatchWriteResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn compare_and_set(
        &self,
        _: Request<CompareAndSetRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

use dtkv_client::v1::Node as TreeNode;

#[tonic::async_trait]
impl Admin for Service {
    async fn identity(&self, _: Request<IdentityRequest>) -> Result<Response<IdentityResponse>, Status> {
        let node = &self.0;
        let cluster_id = node.world.cluster_ids.lock().get(&node.id).cloned().unwrap_or_default();
        let address = node.world.address(node.id);
        Ok(Response::new(IdentityResponse { cluster_id, node_id: node.id, address, ..Default::default() }))
    }

    async fn list_groups(
        &self,
        _: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let world = &self.0.world;
        let members = world.members.lock().clone();
        let status = |(group, members): (u32, Vec<u64>)| {
            let leader = world.leaders.lock().get(&group).copied();
            let told = world.rumours.lock().get(&group).copied().or(leader);
            let role = if told == Some(self.0.id) { Role::Leader } else { Role::Follower };
            members.contains(&self.0.id).then(|| GroupStatus {
                group_id: group,
                node_id: self.0.id,
                role: role.into(),
                term: 1,
                leader_id: told.unwrap_or(0),
                voters: members,
                ready: told.is_some(),
                ..Default::default()
            })
        };
        let groups = members.into_iter().filter_map(status).collect();
        Ok(Response::new(ListGroupsResponse { groups }))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesResponse>, Status> {
        let world = &self.0.world;
        let ids: Vec<u64> = world.addresses.lock().keys().copied().collect();
        let status = |id: u64| NodeStatus {
            address: world.address(id),
            self_: id == self.0.id,
            connected: true,
            ..Default::default()
        };
        Ok(Response::new(ListNodesResponse { nodes: ids.into_iter().map(status).collect() }))
    }

    async fn group_status(
        &self,
        request: Request<GroupStatusRequest>,
    ) -> Result<Response<GroupStatus>, Status> {
        let request = request.into_inner();
        self.0.leads(request.group_id).map_err(status)?;
        let (group_id, node_id) = (request.group_id, self.0.id);
        let role = Role::Leader.into();
        Ok(Response::new(GroupStatus {
            group_id,
            node_id,
            role,
            confirmed: request.confirm,
            ..Default::default()
        }))
    }

    async fn join_cluster(
        &self,
        request: Request<JoinClusterRequest>,
    ) -> Result<Response<JoinClusterResponse>, Status> {
        let request = request.into_inner();
        self.0.world.cluster_ids.lock().insert(self.0.id, request.cluster_id);
        Ok(Response::new(JoinClusterResponse {}))
    }

    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<BootstrapResponse>, Status> {
        let request = request.into_inner();
        let world = &self.0.world;
        let mut members = world.members.lock();
        if members.get(&request.group_id).is_some_and(|known| *known != request.members) {
            return Err(status(failure(Reason::Precondition)));
        }
        members.insert(request.group_id, request.members.clone());
        let created = world.bootstrapped.lock().insert((request.group_id, self.0.id));
        world.leaders.lock().entry(request.group_id).or_insert(request.preferred_leader);
        Ok(Response::new(BootstrapResponse { created }))
    }

    async fn destroy_group(
        &self,
        request: Request<DestroyGroupRequest>,
    ) -> Result<Response<DestroyGroupResponse>, Status> {
        let group = request.into_inner().group_id;
        let destroyed = self.0.world.bootstrapped.lock().remove(&(group, self.0.id));
        self.0.world.members.lock().remove(&group);
        Ok(Response::new(DestroyGroupResponse { destroyed }))
    }

    async fn limits(&self, _: Request<LimitsRequest>) -> Result<Response<LimitsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn add_nodes(&self, _: Request<AddNodesRequest>) -> Result<Response<AddNodesResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn add_learner(
        &self,
        _: Request<AddLearnerRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn change_membership(
        &self,
        _: Request<ChangeMembershipRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        self.0.leads(request.group_id).map_err(status)?;
        self.0.world.lead(request.group_id, request.to);
        Ok(Response::new(TransferLeaderResponse { leader_id: request.to, term: 2 }))
    }
    async fn set_leader_eviction(
        &self,
        _: Request<SetLeaderEvictionRequest>,
    ) -> Result<Response<SetLeaderEvictionResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn set_draining(
        &self,
        _: Request<SetDrainingRequest>,
    ) -> Result<Response<SetDrainingResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn destroy_replica(
        &self,
        _: Request<DestroyReplicaRequest>,
    ) -> Result<Response<DestroyReplicaResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn tombstone(&self, _: Request<TombstoneRequest>) -> Result<Response<TombstoneResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
    async fn tree_digest(
        &self,
        _: Request<TreeDigestRequest>,
    ) -> Result<Response<TreeDigestResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}
