//! The asking half of a group's network: openraft's requests as messages of the transport.

use super::raft::{
    self, LogId, SnapshotMeta, TypeConfig, Vote, entry_to_pb, log_id_from_pb, log_id_to_pb, vote_from_pb,
    vote_to_pb,
};
use super::snapshot::SnapshotHandle;
use crate::clock;
use crate::failure::Failure;
use crate::ids::{GroupId, NodeId};
use crate::peer_v1 as pb;
use crate::peer_v1::message::Body;
use crate::transport::{Session, Transport};
use dtkv_client::v1::failure::Reason;
use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::entry::RaftEntry;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

type RpcError = RPCError<TypeConfig>;

/// A follower whose disk stalls for less is not worth the resending of everything on its way. A
/// broken connection is noticed otherwise.
const APPEND_PROGRESS_MIN: Duration = Duration::from_secs(2);

/// Makes the clients of one group.
#[derive(Clone, Debug)]
pub struct GroupNetwork {
    transport: Transport,
    group: GroupId,
    generation: u64,
    me: NodeId,
}

impl GroupNetwork {
    /// The network of this generation of `group` on this node.
    pub fn new(transport: Transport, group: GroupId, generation: u64) -> GroupNetwork {
        let me = transport.identity().node;
        GroupNetwork { transport, group, generation, me }
    }

    fn client(&self, target: NodeId, appends: Appends) -> NetworkClient {
        NetworkClient { network: self.clone(), target, appends }
    }
}

impl RaftNetworkFactory<TypeConfig> for GroupNetwork {
    type Network = NetworkClient;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> NetworkClient {
        self.client(target, Appends::Pipelined)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _node: &EmptyNode) -> NetworkClient {
        self.client(target, Appends::Heartbeats)
    }
}

/// How append requests travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Appends {
    /// In sessions on the lane of appends.
    Pipelined,
    /// One by one on the control lane, where entries of other groups are not in the way.
    Heartbeats,
}

/// Speaks to one replica of the group.
#[derive(Debug)]
pub struct NetworkClient {
    network: GroupNetwork,
    target: NodeId,
    appends: Appends,
}

impl NetworkClient {
    async fn ask(&self, action: RPCTypes, body: Body, patience: Duration) -> Result<Body, RpcError> {
        let GroupNetwork { transport, group, generation, .. } = &self.network;
        let message = pb::Message { group_id: group.0, generation: *generation, call: 0, body: Some(body) };
        let answer = transport.call_within(patience, self.target, pb::Lane::Control, message).await;
        let answer = answer.map_err(|failure| self.error(action, patience, &failure))?;
        answer.body.ok_or_else(|| nonsense("a question"))
    }

    fn error(&self, action: RPCTypes, patience: Duration, failure: &Failure) -> RpcError {
        if failure.reason == Reason::Timeout {
            return self.timeout(action, patience);
        }
        RPCError::Unreachable(Unreachable::from_string(failure))
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RpcError {
        RPCError::Timeout(Timeout { action, id: self.network.me, target: self.target, timeout })
    }

    async fn ask_vote(
        &self,
        body: impl FnOnce(pb::VoteRequest) -> Body,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let request = pb::VoteRequest {
            vote: Some(vote_to_pb(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(log_id_to_pb),
            leader_transfer: rpc.leadership_transfer,
        };
        match self.ask(RPCTypes::Vote, body(request), option.soft_ttl()).await? {
            Body::VoteReply(reply) => Ok(VoteResponse {
                vote: vote_of(reply.vote.as_ref())?,
                vote_granted: reply.granted,
                last_log_id: reply.last_log_id.as_ref().map(log_id_from_pb),
            }),
            _ => Err(nonsense("a vote request")),
        }
    }

    async fn append_once(
        &self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: &RPCOption,
    ) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
        let sent = Sent::of(&rpc);
        let body = Body::Append(append_to_pb(&rpc));
        match self.ask(RPCTypes::AppendEntries, body, option.soft_ttl()).await? {
            Body::AppendReply(reply) => append_result(&sent, &reply),
            _ => Err(nonsense("an append request")),
        }
    }

    async fn open_session<S>(&self, mut input: S, option: &RPCOption) -> Result<AppendStream<'_, S>, RpcError>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    {
        let patience = option.soft_ttl().max(APPEND_PROGRESS_MIN);
        let GroupNetwork { transport, group, generation, .. } = &self.network;
        let session = match transport.session(self.target, *group, *generation) {
            Ok(session) => session,
            Err(failure) => {
                // openraft waits out its backoff in the stream of requests and nowhere else: without
                // this look at it, a peer that is down would be tried a hundred thousand times a second.
                input.next().await;
                return Err(self.error(RPCTypes::AppendEntries, patience, &failure));
            }
        };
        Ok(AppendStream {
            client: self,
            session,
            input: Some(input),
            sent: VecDeque::new(),
            patience,
            progress: clock::now(),
            alarm: None,
            ended: false,
        })
    }
}

impl RaftNetworkV2<TypeConfig> for NetworkClient {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        self.append_once(rpc, &option).await.map(AppendEntriesResponse::from)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let client = &*self;
        Box::pin(async move {
            let answers: BoxStream<'s, _> = match client.appends {
                Appends::Pipelined => Box::pin(client.open_session(input, &option).await?),
                Appends::Heartbeats => Box::pin(input.then(move |rpc| {
                    let option = option.clone();
                    async move { client.append_once(rpc, &option).await }
                })),
            };
            Ok(answers)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(Body::Vote, rpc, option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.ask_vote(Body::PreVote, rpc, option).await
    }

    /// `option` bounds no more than the transport's own watch over progress: a snapshot may take
    /// long.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotHandle>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotHandle::Outgoing(records) = snapshot.snapshot else {
            let text = format!("{:?} holds no records to send", snapshot.snapshot);
            return Err(StreamingError::Unreachable(Unreachable::from_string(text)));
        };
        let header = snapshot_header(&self.network, &vote, &snapshot.meta);
        let sending = self.network.transport.send_snapshot(self.target, header, records);
        let reply = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = sending => reply,
        };
        let reply = reply.map_err(|f| StreamingError::Unreachable(Unreachable::from_string(f)))?;
        Ok(SnapshotResponse::new(vote_of(reply.vote.as_ref()).map_err(StreamingError::from)?))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let body = Body::Transfer(pb::TransferRequest {
            from_leader: Some(vote_to_pb(req.from_leader())),
            to_node_id: req.to_node_id().0,
            last_log_id: req.last_log_id().map(log_id_to_pb),
        });
        match self.ask(RPCTypes::TransferLeader, body, option.soft_ttl()).await? {
            Body::TransferReply(pb::TransferReply { accepted: true, .. }) => Ok(Ok(())),
            Body::TransferReply(pb::TransferReply { vote: Some(vote), .. }) => {
                let (expected, actual) = (*req.from_leader(), vote_from_pb(&vote));
                Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
            }
            Body::TransferReply(_) => {
                let expected = req.last_log_id().cloned();
                Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual: None }))
            }
            _ => Err(nonsense("a transfer request")),
        }
    }

    /// The transport answers at once while a peer is down, and connects again by itself: knocking
    /// often is cheap.
    fn backoff(&self) -> Option<Backoff> {
        let delays = [20, 50, 100, 200].into_iter().chain(std::iter::repeat(300));
        Some(Backoff::new(delays.map(Duration::from_millis)))
    }
}

/// What a request without an answer covers.
#[derive(Debug)]
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
}

impl Sent {
    fn of(rpc: &AppendEntriesRequest<TypeConfig>) -> Sent {
        let last = rpc.entries.last().map(RaftEntry::log_id).or(rpc.prev_log_id);
        Sent { prev: rpc.prev_log_id, last }
    }
}

/// Pulls requests as long as there is room and yields the answers in order.
struct AppendStream<'c, S> {
    client: &'c NetworkClient,
    session: Session,
    input: Option<S>,
    sent: VecDeque<Sent>,
    patience: Duration,
    /// Last answer, or the first request after silence.
    progress: Instant,
    alarm: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl<S> AppendStream<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// Sends what the input has, as far as there is room.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while let Some(input) = &mut self.input {
            if self.session.poll_room(cx).is_pending() {
                return Ok(());
            }
            match input.poll_next_unpin(cx) {
                Poll::Ready(Some(rpc)) => {
                    if self.sent.is_empty() {
                        self.progress = clock::now();
                    }
                    self.session.send(append_to_pb(&rpc))?;
                    self.sent.push_back(Sent::of(&rpc));
                }
                Poll::Ready(None) => self.input = None,
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamAppendResult<TypeConfig>, RpcError>> {
        let failed =
            |failure: &Failure| Err(self.client.error(RPCTypes::AppendEntries, self.patience, failure));
        match self.session.poll_reply(cx) {
            Poll::Ready(Ok(reply)) => {
                self.progress = clock::now();
                let Some(sent) = self.sent.pop_front() else { return Poll::Ready(Err(nonsense("nothing"))) };
                Poll::Ready(append_result(&sent, &reply))
            }
            Poll::Ready(Err(failure)) => Poll::Ready(failed(&failure)),
            Poll::Pending if self.sent.is_empty() => Poll::Pending,
            Poll::Pending => self.poll_alarm(cx),
        }
    }

    /// One timer for the whole session: it is set again only when it rings too early.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<Result<StreamAppendResult<TypeConfig>, RpcError>> {
        loop {
            let due = self.progress + self.patience;
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            std::task::ready!(alarm.as_mut().poll(cx));
            if clock::now() >= due {
                return Poll::Ready(Err(self.client.timeout(RPCTypes::AppendEntries, self.patience)));
            }
            alarm.as_mut().reset(due.into());
        }
    }
}

impl<S> Stream for AppendStream<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = Result<StreamAppendResult<TypeConfig>, RpcError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if let Err(failure) = this.send(cx) {
            this.ended = true;
            let error = this.client.error(RPCTypes::AppendEntries, this.patience, &failure);
            return Poll::Ready(Some(Err(error)));
        }
        if this.input.is_none() && this.sent.is_empty() {
            this.ended = true;
            return Poll::Ready(None);
        }
        let answer = std::task::ready!(this.poll_answer(cx));
        this.ended = !matches!(answer, Ok(Ok(_)));
        Poll::Ready(Some(answer))
    }
}

fn append_to_pb(rpc: &AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    pb::AppendRequest {
        vote: Some(vote_to_pb(&rpc.vote)),
        prev_log_id: rpc.prev_log_id.as_ref().map(log_id_to_pb),
        leader_commit: rpc.leader_commit.as_ref().map(log_id_to_pb),
        entries: rpc.entries.iter().map(entry_to_pb).collect(),
    }
}

fn append_result(sent: &Sent, reply: &pb::AppendReply) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
    match reply.kind() {
        pb::append_reply::Kind::Accepted => {
            let accepted = reply.log_id.as_ref().map(log_id_from_pb);
            if accepted != sent.last {
                return Err(nonsense("an append request, with another log id"));
            }
            Ok(Ok(accepted))
        }
        pb::append_reply::Kind::Conflict => match sent.prev {
            Some(prev) => Ok(Err(StreamAppendError::Conflict(prev))),
            None => Err(nonsense("an append request at the start of the log, with a conflict")),
        },
        pb::append_reply::Kind::HigherVote => {
            Ok(Err(StreamAppendError::HigherVote(vote_of(reply.vote.as_ref())?)))
        }
    }
}

fn snapshot_header(network: &GroupNetwork, vote: &Vote, meta: &SnapshotMeta) -> pb::SnapshotHeader {
    pb::SnapshotHeader {
        hello: None,
        group_id: network.group.0,
        generation: network.generation,
        vote: Some(vote_to_pb(vote)),
        last_log_id: meta.last_log_id.as_ref().map(log_id_to_pb),
        last_membership: Some(raft::stored_membership_to_pb(&meta.last_membership)),
    }
}

fn vote_of(vote: Option<&pb::Vote>) -> Result<Vote, RpcError> {
    vote.map(vote_from_pb).ok_or_else(|| nonsense("a question, without a vote"))
}

/// The peer broke the protocol.
fn nonsense(question: &str) -> RpcError {
    RPCError::Network(NetworkError::from_string(format!("the peer answered something else to {question}")))
}

#[cfg(test)]
mod tests;
