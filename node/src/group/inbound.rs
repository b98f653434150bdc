//! The answering half of a group's network: requests of peers, handed to openraft.

use super::raft::{
    Entry, LogId, TypeConfig, Vote, entry_from_pb, log_id_from_pb, log_id_to_pb, vote_from_pb, vote_to_pb,
};
use super::snapshot::SnapshotHandle;
use crate::ids::{GroupId, NodeId};
use crate::peer_v1 as pb;
use crate::peer_v1::message::Body;
use crate::transport::ReplySender;
use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::entry::RaftEntry;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
};
use openraft::storage::RaftStateMachine;
use openraft::{Raft, ReadPolicy};
use parking_lot::Mutex;
use prost::Message;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Append requests that wait for this replica; a peer sends no more than its session's bound.
const QUEUE_REQUESTS_MAX: usize = 256;
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Append requests inside openraft.
const PIPELINE: usize = 64;
/// Answers after which the worker lets others run.
const ANSWERS_PER_TURN: usize = 128;
/// Operations up to this size are copied out of the batch that they came in: the log's cache would
/// keep the whole batch of all groups in memory otherwise.
const COPY_BYTES_MAX: usize = 16 << 10;

/// Takes in the messages of one group. Cheap to clone.
pub struct GroupInbound<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    inner: Arc<Inner<SM>>,
}

struct Inner<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    group: GroupId,
    generation: u64,
    raft: Raft<TypeConfig, SM>,
    queue: Mutex<Queue>,
}

/// Append requests in the order in which they came.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    bytes: usize,
    /// A worker runs exactly while there is something to do.
    running: bool,
    worker: Option<Waker>,
}

struct Request {
    append: pb::AppendRequest,
    bytes: usize,
    call: u64,
    reply: ReplySender,
}

impl<SM> Clone for GroupInbound<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    fn clone(&self) -> Self {
        GroupInbound { inner: self.inner.clone() }
    }
}

impl<SM> fmt::Debug for GroupInbound<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupInbound({})", self.inner.group)
    }
}

impl<SM> GroupInbound<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    /// Takes in messages for `raft`, which is this generation of the group.
    pub fn new(raft: Raft<TypeConfig, SM>, group: GroupId, generation: u64) -> Self {
        GroupInbound { inner: Arc::new(Inner { group, generation, raft, queue: Mutex::default() }) }
    }

    /// Handles a message; never blocks. Must be called on a tokio runtime. Parking is the group's
    /// own affair and refused here.
    pub fn message(&self, _from: NodeId, message: pb::Message, reply: ReplySender) {
        let call = message.call;
        match message.body {
            Some(Body::Append(append)) if reply.lane() == pb::Lane::Append => {
                self.append(append, call, reply)
            }
            Some(Body::Append(append)) => self.answer(call, reply, |inner| inner.heartbeat(append)),
            Some(Body::Vote(vote)) => self.answer(call, reply, |inner| inner.vote(vote)),
            Some(Body::PreVote(vote)) => self.answer(call, reply, |inner| inner.pre_vote(vote)),
            Some(Body::Transfer(request)) => self.answer(call, reply, |inner| inner.transfer(request)),
            Some(Body::ReadIndex(_)) => self.answer(call, reply, |inner| inner.read_index()),
            _ => {
                let refusal = Body::Refused("this is no question to a replica".into());
                reply.send(self.inner.message(call, refusal));
            }
        }
    }

    /// Answers a rare question from a task of its own.
    fn answer<F>(&self, call: u64, reply: ReplySender, ask: impl FnOnce(Arc<Inner<SM>>) -> F)
    where
        F: Future<Output = Result<Body, Refusal>> + Send + 'static,
    {
        let inner = self.inner.clone();
        let answer = ask(inner.clone());
        tokio::spawn(async move {
            let body = answer.await.unwrap_or_else(|refusal| Body::Refused(refusal.0));
            reply.send(inner.message(call, body));
        });
    }

    fn append(&self, append: pb::AppendRequest, call: u64, reply: ReplySender) {
        let bytes = append.encoded_len();
        let start = {
            let mut queue = self.inner.queue.lock();
            if queue.waiting.len() >= QUEUE_REQUESTS_MAX || queue.bytes >= QUEUE_BYTES_MAX {
                drop(queue);
                let refusal = Body::Refused("too many append requests wait for this replica".into());
                return reply.send(self.inner.message(call, refusal));
            }
            queue.waiting.push_back(Request { append, bytes, call, reply });
            queue.bytes += bytes;
            if let Some(worker) = queue.worker.take() {
                worker.wake();
            }
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            let inner = self.inner.clone();
            // The order of requests must be the order of first polls, so the worker must not be
            // stopped half way by the runtime's budget; it yields by itself.
            tokio::spawn(tokio::task::unconstrained(async move {
                let mut worker = Worker { inner, pipeline: VecDeque::new() };
                poll_fn(|cx| worker.poll(cx)).await;
            }));
        }
    }
}

/// Why a question gets no answer.
struct Refusal(String);

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal(error.to_string())
    }
}

fn missing(what: &str) -> Refusal {
    Refusal(format!("the message has no {what}"))
}

/// Feeds append requests to openraft, in order, several at a time. It keeps nothing between
/// requests: each one carries what openraft needs to judge it, so that sessions, lost connections
/// and changes of leader need no bookkeeping here.
struct Worker<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    inner: Arc<Inner<SM>>,
    pipeline: VecDeque<Step>,
}

/// A request inside openraft. Its answer waits for those of the requests before it.
enum Step {
    Asked(BoxFuture<'static, Answer>),
    Answered(Answer),
}

struct Answer {
    message: pb::Message,
    reply: ReplySender,
}

impl<SM> Worker<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    /// Ready when there is nothing left to do.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ANSWERS_PER_TURN {
            if self.feed(cx) {
                return Poll::Ready(());
            }
            let answer = match self.pipeline.pop_front() {
                None => return Poll::Pending,
                Some(Step::Answered(answer)) => answer,
                Some(Step::Asked(mut asked)) => match asked.as_mut().poll(cx) {
                    Poll::Ready(answer) => answer,
                    Poll::Pending => {
                        self.pipeline.push_front(Step::Asked(asked));
                        return Poll::Pending;
                    }
                },
            };
            answer.reply.send(answer.message);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Fills the pipeline; the first poll of a request sends it. True when all is done.
    fn feed(&mut self, cx: &mut Context<'_>) -> bool {
        while self.pipeline.len() < PIPELINE {
            let Some(request) = self.next(cx) else { break };
            let mut asked: BoxFuture<'static, Answer> = Box::pin(self.inner.clone().serve(request));
            self.pipeline.push_back(match asked.as_mut().poll(cx) {
                Poll::Ready(answer) => Step::Answered(answer),
                Poll::Pending => Step::Asked(asked),
            });
        }
        self.pipeline.is_empty() && !self.inner.queue.lock().running
    }

    fn next(&self, cx: &Context<'_>) -> Option<Request> {
        let mut queue = self.inner.queue.lock();
        let request = queue.waiting.pop_front();
        match &request {
            Some(request) => queue.bytes -= request.bytes,
            None if self.pipeline.is_empty() => queue.running = false,
            None => queue.worker = Some(cx.waker().clone()),
        }
        request
    }
}

impl<SM> Inner<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    fn message(&self, call: u64, body: Body) -> pb::Message {
        pb::Message { group_id: self.group.0, generation: self.generation, call, body: Some(body) }
    }

    async fn serve(self: Arc<Self>, request: Request) -> Answer {
        let Request { append, call, reply, .. } = request;
        let body = self.append(append).await.unwrap_or_else(|refusal| Body::Refused(refusal.0));
        Answer { message: self.message(call, body), reply }
    }

    async fn append(&self, append: pb::AppendRequest) -> Result<Body, Refusal> {
        let rpc = append_from_pb(append)?;
        let last = rpc.entries.last().map(RaftEntry::log_id).or(rpc.prev_log_id);
        let answer = self.raft.append_entries(rpc).await?;
        Ok(Body::AppendReply(append_reply(&answer, last)))
    }

    async fn heartbeat(self: Arc<Self>, append: pb::AppendRequest) -> Result<Body, Refusal> {
        self.append(append).await
    }

    async fn vote(self: Arc<Self>, request: pb::VoteRequest) -> Result<Body, Refusal> {
        let answer = self.raft.vote(vote_request(&request)?).await?;
        Ok(vote_reply(&answer.vote, answer.last_log_id.as_ref(), answer.vote_granted))
    }

    async fn pre_vote(self: Arc<Self>, request: pb::VoteRequest) -> Result<Body, Refusal> {
        let answer = self.raft.pre_vote(vote_request(&request)?).await?;
        Ok(vote_reply(&answer.vote, answer.last_log_id.as_ref(), answer.vote_granted))
    }

    async fn transfer(self: Arc<Self>, request: pb::TransferRequest) -> Result<Body, Refusal> {
        let from_leader = vote_from_pb(request.from_leader.as_ref().ok_or_else(|| missing("vote"))?);
        let last_log_id = request.last_log_id.as_ref().map(log_id_from_pb);
        let request = TransferLeaderRequest::new(from_leader, NodeId(request.to_node_id), last_log_id);
        let (accepted, vote) = match self.raft.handle_transfer_leader(request).await? {
            Ok(()) => (true, None),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => (false, Some(vote_to_pb(&actual))),
            Err(TransferLeaderError::LogNotFlushed { .. }) => (false, None),
        };
        Ok(Body::TransferReply(pb::TransferReply { accepted, vote }))
    }

    /// What a follower's read must wait for; nothing when this replica does not lead.
    async fn read_index(self: Arc<Self>) -> Result<Body, Refusal> {
        let read = self.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
        let read_log_id = read.ok().map(|(read, _)| log_id_to_pb(read.log_id()));
        Ok(Body::ReadIndexReply(pb::ReadIndexReply { read_log_id }))
    }
}

fn append_from_pb(append: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Refusal> {
    let entries = append.entries.into_iter().map(entry).collect::<Result<Vec<Entry>, _>>()?;
    Ok(AppendEntriesRequest {
        vote: vote_from_pb(append.vote.as_ref().ok_or_else(|| missing("vote"))?),
        prev_log_id: append.prev_log_id.as_ref().map(log_id_from_pb),
        leader_commit: append.leader_commit.as_ref().map(log_id_from_pb),
        entries,
    })
}

fn entry(mut entry: pb::Entry) -> std::io::Result<Entry> {
    if let Some(pb::entry::Payload::Commands(commands)) = &mut entry.payload
        && commands.ops.len() <= COPY_BYTES_MAX
    {
        commands.ops = Bytes::copy_from_slice(&commands.ops);
    }
    entry_from_pb(entry)
}

fn append_reply(answer: &AppendEntriesResponse<TypeConfig>, last: Option<LogId>) -> pb::AppendReply {
    use pb::append_reply::Kind;
    let (kind, log_id, vote) = match answer {
        AppendEntriesResponse::Success => (Kind::Accepted, last, None),
        AppendEntriesResponse::PartialSuccess(matching) => (Kind::Accepted, *matching, None),
        AppendEntriesResponse::Conflict => (Kind::Conflict, None, None),
        AppendEntriesResponse::HigherVote(vote) => (Kind::HigherVote, None, Some(vote_to_pb(vote))),
    };
    pb::AppendReply { kind: kind.into(), log_id: log_id.as_ref().map(log_id_to_pb), vote }
}

fn vote_request(request: &pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, Refusal> {
    Ok(VoteRequest {
        vote: vote_from_pb(request.vote.as_ref().ok_or_else(|| missing("vote"))?),
        last_log_id: request.last_log_id.as_ref().map(log_id_from_pb),
        leadership_transfer: request.leader_transfer,
    })
}

fn vote_reply(vote: &Vote, last_log_id: Option<&LogId>, granted: bool) -> Body {
    Body::VoteReply(pb::VoteReply {
        vote: Some(vote_to_pb(vote)),
        last_log_id: last_log_id.map(log_id_to_pb),
        granted,
    })
}
