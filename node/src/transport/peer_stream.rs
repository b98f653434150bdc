//! One lane to one peer: keeps a stream open, sends what waits, hands answers to who asked.

use super::call::{Pending, SessionLimits, push_failure, unreachable};
use super::hello::{Identity, Refusal, hello};
use super::metrics::LaneMetrics;
use super::queue::{BatchStream, Budget, Outbound, QueueLimits};
use super::{Shared, TransportOptions};
use crate::clock;
use crate::failure::Failure;
use crate::ids::NodeId;
use crate::peer_v1 as pb;
use crate::peer_v1::message::Body;
use crate::peer_v1::peer_client::PeerClient;
use parking_lot::Mutex;
use prost::Message;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// A stream that stood this long was a good one: try again at once when it breaks.
const GOOD_STREAM: Duration = Duration::from_secs(1);
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);

/// One lane to one peer.
#[derive(Debug)]
pub(super) struct Link {
    pub peer: NodeId,
    pub lane: pb::Lane,
    pub budget: Budget,
    pub session_limits: SessionLimits,
    queue_limits: QueueLimits,
    metrics: LaneMetrics,
    state: Mutex<LinkState>,
    /// Ends the wait before the next attempt.
    retry: Notify,
}

#[derive(Debug)]
struct LinkState {
    phase: Phase,
    /// Belongs to one connection, like everything that waits in it.
    outbound: Arc<Outbound>,
    pending: FxHashMap<u64, Pending>,
    next_call: u64,
    /// Cancelled to cut the stream.
    cut: CancellationToken,
}

#[derive(Debug)]
enum Phase {
    /// Messages wait in the queue.
    Connecting,
    Connected,
    /// The last attempt failed; messages are refused until one succeeds.
    Down(Failure),
}

/// What a stream was opened with; it is cut when this is no longer true.
#[derive(Debug, PartialEq)]
struct Basis {
    identity: Identity,
    address: Option<String>,
}

impl Link {
    pub fn new(peer: NodeId, lane: pb::Lane, shared: &Shared) -> Arc<Link> {
        let options = &shared.options;
        let metrics = shared.metrics.lane(lane).clone();
        let queue_limits = options.queue_limits();
        let state = LinkState {
            phase: Phase::Connecting,
            outbound: Outbound::new(queue_limits, metrics.clone()),
            pending: FxHashMap::default(),
            next_call: 1,
            cut: CancellationToken::new(),
        };
        Arc::new(Link {
            peer,
            lane,
            budget: Budget::new(options.append_bytes_max),
            session_limits: SessionLimits {
                requests_max: options.session_requests_max,
                bytes_max: options.session_bytes_max,
            },
            queue_limits,
            metrics,
            state: Mutex::new(state),
            retry: Notify::new(),
        })
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Connected)
    }

    /// Takes a call id; answers with it go to `pending`.
    pub fn attach(&self, pending: Pending) -> Result<(u64, Arc<Outbound>), Failure> {
        let mut state = self.state.lock();
        if let Phase::Down(failure) = &state.phase {
            return Err(failure.clone());
        }
        let id = state.next_call;
        state.next_call += 1;
        state.pending.insert(id, pending);
        Ok((id, state.outbound.clone()))
    }

    pub fn detach(&self, id: u64) {
        let pending = self.state.lock().pending.remove(&id);
        drop(pending);
    }

    /// Queues a message that needs no answer.
    pub fn send(&self, message: pb::Message) -> Result<(), Failure> {
        let outbound = {
            let state = self.state.lock();
            if let Phase::Down(failure) = &state.phase {
                return Err(failure.clone());
            }
            state.outbound.clone()
        };
        outbound.push(message).map_err(|e| push_failure(self.peer, e))
    }

    /// Cuts the stream that stands, if one does.
    pub fn cut(&self) {
        self.state.lock().cut.cancel();
    }

    /// The peer showed a sign of life: a link that could not reach it tries again at once. One whose
    /// streams break as soon as they stand keeps its delays.
    pub fn retry(&self) {
        if matches!(self.state.lock().phase, Phase::Down(_)) {
            self.retry.notify_waiters();
        }
    }

    /// Keeps the stream up until the transport stops.
    pub async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut delays = Delays::new(shared.options.reconnect_delay_max);
        let mut changes = shared.book.changes();
        while !shared.stop.is_cancelled() {
            changes.mark_unchanged();
            let wait = self.round(&shared, &mut delays).await;
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                () = self.retry.notified() => {}
                _ = changes.changed() => {}
            }
        }
        self.fail(|failure| Phase::Down(failure.clone()), Failure::stopping("this node"));
    }

    /// Connects once and serves until the stream ends; says how long to wait before the next time.
    async fn round(&self, shared: &Shared, delays: &mut Delays) -> Duration {
        let basis = self.basis(shared);
        let connected = tokio::select! {
            () = shared.stop.cancelled() => return Duration::ZERO,
            connected = self.connect(shared, &basis) => connected,
        };
        let stream = match connected {
            Ok(stream) => stream,
            Err(failure) => {
                if shared.log_limit.allows(self.peer) {
                    tracing::warn!(peer = %self.peer, lane = ?self.lane, "{failure}");
                }
                self.fail(|failure| Phase::Down(failure.clone()), failure);
                return delays.next();
            }
        };
        let cut = self.connected(shared);
        let since = clock::now();
        let why = self.serve(stream, shared, &basis, &cut).await;
        shared.metrics.link_down(self.peer, self.lane);
        tracing::info!(peer = %self.peer, lane = ?self.lane, "stream ended: {why}");
        self.fail(|_| Phase::Connecting, unreachable(self.peer, why).unknown());
        if since.elapsed() < GOOD_STREAM {
            return delays.next();
        }
        delays.reset();
        Duration::ZERO
    }

    fn basis(&self, shared: &Shared) -> Basis {
        Basis { identity: shared.identity(), address: shared.book.peer_address(self.peer) }
    }

    async fn connect(&self, shared: &Shared, basis: &Basis) -> Result<Streaming<pb::Batch>, Failure> {
        let Some(address) = &basis.address else {
            let why = if shared.book.is_tombstone(self.peer) {
                "it was removed from the cluster"
            } else {
                "its peer address is not known; add the node to the address book"
            };
            return Err(unreachable(self.peer, why));
        };
        if basis.identity.cluster_id.is_empty() {
            return Err(unreachable(self.peer, "this node has not joined a cluster yet"));
        }
        let patience = shared.options.connect_timeout;
        match tokio::time::timeout(patience, self.open(shared, &basis.identity, address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(why)) => Err(unreachable(self.peer, format!("{address}: {why}"))),
            Err(_) => Err(unreachable(self.peer, format!("{address}: no answer within {patience:?}"))),
        }
    }

    async fn open(
        &self,
        shared: &Shared,
        identity: &Identity,
        address: &str,
    ) -> Result<Streaming<pb::Batch>, String> {
        let mut client = dial(&shared.options, address).await?;
        let outbound = self.state.lock().outbound.clone();
        outbound.greet(hello(identity, self.peer, self.lane));
        let answer = client.exchange(BatchStream(outbound)).await.map_err(|s| said(&s))?;
        let mut stream = answer.into_inner();
        let first = stream.message().await.map_err(|s| said(&s))?;
        let Some(pb::Batch { hello: Some(theirs), .. }) = first else {
            return Err("it did not introduce itself".into());
        };
        if theirs.node_id != self.peer.0 {
            return Err(format!("n{} answers there; correct the address of {}", theirs.node_id, self.peer));
        }
        shared.meet(&theirs).map_err(|Refusal { message, .. }| message)?;
        Ok(stream)
    }

    fn connected(&self, shared: &Shared) -> CancellationToken {
        shared.metrics.link_up(self.peer, self.lane);
        tracing::info!(peer = %self.peer, lane = ?self.lane, "connected");
        let mut state = self.state.lock();
        state.phase = Phase::Connected;
        state.cut = CancellationToken::new();
        state.outbound.open();
        state.cut.clone()
    }

    /// Takes in answers; returns why the stream ended.
    async fn serve(
        &self,
        mut stream: Streaming<pb::Batch>,
        shared: &Shared,
        basis: &Basis,
        cut: &CancellationToken,
    ) -> String {
        let mut changes = shared.book.changes();
        loop {
            tokio::select! {
                batch = stream.message() => match batch {
                    Ok(Some(batch)) => {
                        shared.heard(self.peer);
                        self.dispatch(batch.messages);
                    }
                    Ok(None) => return "the peer closed it".into(),
                    Err(status) => return said(&status),
                },
                () = cut.cancelled() => return "the peer is silent".into(),
                () = shared.stop.cancelled() => return "this node is stopping".into(),
                _ = changes.changed() => if self.basis(shared) != *basis {
                    return "its address or this node's identity changed".into();
                },
            }
        }
    }

    fn dispatch(&self, messages: Vec<pb::Message>) {
        let bytes = messages.iter().map(Message::encoded_len).sum();
        self.metrics.received.batch(messages.len(), bytes);
        let mut state = self.state.lock();
        for message in messages {
            match state.pending.get(&message.call) {
                Some(Pending::Session(inbox)) => inbox.push(message.body),
                Some(Pending::Call(_)) => {
                    if let Some(Pending::Call(asker)) = state.pending.remove(&message.call) {
                        // The asker may have given up meanwhile.
                        drop(asker.send(Ok(message)));
                    }
                }
                // A pong, or an answer that nobody waits for any more.
                None => {}
            }
        }
    }

    /// Fails everything that waits on this connection and makes room for the next one.
    fn fail(&self, phase: impl FnOnce(&Failure) -> Phase, failure: Failure) {
        let (outbound, pending) = {
            let mut state = self.state.lock();
            state.phase = phase(&failure);
            let fresh = Outbound::new(self.queue_limits, self.metrics.clone());
            (std::mem::replace(&mut state.outbound, fresh), std::mem::take(&mut state.pending))
        };
        outbound.close();
        pending.into_values().for_each(|waiting| waiting.fail(failure.clone()));
    }
}

/// A question of the transport itself.
pub(super) fn ping(nonce: u64) -> pb::Message {
    pb::Message { body: Some(Body::Ping(nonce)), ..pb::Message::default() }
}

/// A connection of its own to a peer's listener.
pub(super) async fn dial(options: &TransportOptions, address: &str) -> Result<PeerClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
    let channel = endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .initial_connection_window_size(options.connection_window_bytes)
        .initial_stream_window_size(options.stream_window_bytes)
        .max_frame_size(options.frame_bytes_max)
        .http2_keep_alive_interval(options.keep_alive_interval)
        .keep_alive_timeout(options.keep_alive_interval)
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(|e| chain(&e))?;
    Ok(PeerClient::new(channel)
        .max_decoding_message_size(options.message_bytes_max)
        .max_encoding_message_size(options.message_bytes_max))
}

pub(super) fn said(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None => status.message().to_owned(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Delays between attempts: at once, then doubling up to the bound, with jitter.
#[derive(Debug)]
struct Delays {
    next: Duration,
    max: Duration,
}

impl Delays {
    fn new(max: Duration) -> Delays {
        Delays { next: RECONNECT_DELAY_MIN, max }
    }

    fn reset(&mut self) {
        self.next = RECONNECT_DELAY_MIN;
    }

    fn next(&mut self) -> Duration {
        let delay = self.next.min(self.max);
        self.next = (self.next * 2).min(self.max);
        delay.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_bound_and_start_again() {
        let mut delays = Delays::new(Duration::from_millis(200));
        let mut all = || delays.next().as_millis();
        let seen = [all(), all(), all(), all()];
        for (delay, bound) in seen.into_iter().zip([50, 100, 200, 200]) {
            assert!((bound / 2..=bound).contains(&delay), "{delay} for {bound}");
        }
        delays.reset();
        assert!(delays.next() <= RECONNECT_DELAY_MIN);
    }
}
