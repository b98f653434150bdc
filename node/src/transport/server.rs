//! The answering side of the peer port.

use super::hello::{Refusal, hello, judge};
use super::queue::{BatchStream, Outbound, Replies};
use super::{Shared, snapshot_stream};
use crate::ids::NodeId;
use crate::peer_v1 as pb;
use crate::peer_v1::message::Body;
use crate::peer_v1::peer_server::{Peer, PeerServer as Generated};
use prost::Message;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The tonic service of the peer port.
pub type PeerServer = Generated<PeerService>;

/// Implements the peer protocol.
#[derive(Clone, Debug)]
pub struct PeerService(pub(super) Arc<Shared>);

/// Sends answers back on the stream that a message came from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReplySender(Arc<Connection>, #[cfg(test)] Option<Tap>);

#[derive(Debug)]
struct Connection {
    from: NodeId,
    lane: pb::Lane,
    outbound: Arc<Outbound>,
    /// Cancelled to cut the stream.
    cut: CancellationToken,
}

impl ReplySender {
    /// Who asked.
    pub fn peer(&self) -> NodeId {
        self.0.from
    }

    /// The lane of the stream that the question came on.
    pub fn lane(&self) -> pb::Lane {
        self.0.lane
    }

    /// Sends an answer; silently nothing when the stream is gone. A peer that asks and does not
    /// read the answers is cut off.
    pub fn send(&self, message: pb::Message) {
        #[cfg(test)]
        if let Some(tap) = &self.1 {
            return (tap.0)(message);
        }
        if self.0.outbound.push(message).is_err() {
            self.0.cut.cancel();
        }
    }
}

/// Stands between an answer and its stream, for a simulated network.
#[cfg(test)]
#[derive(Clone)]
struct Tap(Arc<dyn Fn(pb::Message) + Send + Sync>);

#[cfg(test)]
impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tap")
    }
}

#[cfg(test)]
impl ReplySender {
    /// The same stream, with all answers going to `take` instead.
    pub fn tapped(&self, take: impl Fn(pb::Message) + Send + Sync + 'static) -> ReplySender {
        ReplySender(self.0.clone(), Some(Tap(Arc::new(take))))
    }

    /// Breaks the stream, as a network does that loses something of it.
    pub fn cut(&self) {
        self.0.cut.cancel();
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ExchangeStream = Replies;

    async fn exchange(&self, request: Request<Streaming<pb::Batch>>) -> Result<Response<Replies>, Status> {
        let mut stream = request.into_inner();
        let said = tokio::time::timeout(self.0.options.accept.handshake_timeout, stream.message())
            .await
            .map_err(|_| Status::deadline_exceeded("a stream opens with a hello"))??;
        let Some(pb::Batch { hello: Some(theirs), .. }) = said else {
            return Err(Status::invalid_argument("a stream opens with a hello"));
        };
        let connection = self.admit(&theirs)?;
        let replies = Replies(BatchStream(connection.outbound.clone()));
        self.0.spawn(read(self.0.clone(), connection, theirs, stream));
        Ok(Response::new(replies))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        let shared = self.0.clone();
        snapshot_stream::receive(&shared, request.into_inner()).await.map(Response::new)
    }
}

impl PeerService {
    /// Judges the hello and introduces this node.
    fn admit(&self, theirs: &pb::Hello) -> Result<Arc<Connection>, Status> {
        let shared = &self.0;
        shared.admit(theirs)?;
        let from = NodeId(theirs.node_id);
        let lane = pb::Lane::try_from(theirs.lane)
            .map_err(|_| Status::invalid_argument(format!("there is no lane {}", theirs.lane)))?;
        let outbound = Outbound::new(shared.options.queue_limits(), shared.metrics.lane(lane).clone());
        outbound.greet(hello(&shared.identity(), from, lane));
        outbound.open();
        // Liveness is watched from both ends.
        shared.watch(from);
        Ok(Arc::new(Connection { from, lane, outbound, cut: shared.stop.child_token() }))
    }
}

impl Shared {
    /// Judges the hello of a peer that opens a stream; a refusal is counted and, now and then,
    /// logged.
    pub(super) fn admit(&self, theirs: &pb::Hello) -> Result<(), Status> {
        self.meet(theirs).map_err(|Refusal { reason, message }| {
            self.metrics.refused_hello(reason);
            if self.log_limit.allows(NodeId(theirs.node_id)) {
                tracing::warn!(peer = theirs.node_id, reason, "refused a peer: {message}");
            }
            Status::failed_precondition(message)
        })
    }
}

/// Takes in messages until the stream ends.
async fn read(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    theirs: pb::Hello,
    mut stream: Streaming<pb::Batch>,
) {
    let mut changes = shared.book.changes();
    loop {
        tokio::select! {
            batch = stream.message() => match batch {
                Ok(Some(batch)) => deliver(&shared, &connection, batch.messages),
                Ok(None) | Err(_) => break,
            },
            () = connection.cut.cancelled() => break,
            _ = changes.changed() => {
                if judge(&shared.identity(), &shared.book, &theirs).is_err() {
                    break;
                }
            }
        }
    }
    connection.outbound.close();
}

fn deliver(shared: &Shared, connection: &Arc<Connection>, messages: Vec<pb::Message>) {
    let bytes = messages.iter().map(Message::encoded_len).sum();
    shared.metrics.lane(connection.lane).received.batch(messages.len(), bytes);
    shared.heard(connection.from);
    let reply = ReplySender(
        connection.clone(),
        #[cfg(test)]
        None,
    );
    let inbound = shared.inbound();
    for message in messages {
        match (&message.body, &inbound) {
            (Some(Body::Ping(nonce)), _) => reply.send(with_body(&message, Body::Pong(*nonce))),
            (_, Some(inbound)) => inbound.message(connection.from, message, reply.clone()),
            (_, None) => reply.send(with_body(&message, Body::Refused("the node is starting".into()))),
        }
    }
}

fn with_body(question: &pb::Message, body: Body) -> pb::Message {
    let pb::Message { group_id, call, generation, .. } = *question;
    pb::Message { group_id, call, generation, body: Some(body) }
}
