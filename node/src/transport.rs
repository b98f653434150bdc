//! What nodes say to each other: one stream of each lane between two nodes carries the messages of
//! all groups; snapshots have connections of their own. Knows addresses, not what a group is.

pub mod book;
mod call;
mod hello;
mod liveness;
mod metrics;
mod peer_stream;
mod queue;
mod server;
mod snapshot_stream;
#[cfg(test)]
mod tests;

pub use book::{AddressBook, NodeAddress};
pub use call::Session;
pub use hello::Identity;
pub use metrics::TransportMetrics;
pub use server::{PeerServer, PeerService, ReplySender};
pub use snapshot_stream::{Records, unpack_records};

use crate::accept::{self, AcceptLimits};
use crate::clock;
use crate::failure::Failure;
use crate::ids::{GroupId, NodeId};
use crate::peer_v1 as pb;
use bytes::Bytes;
use futures::future::BoxFuture;
use hello::Refusal;
use liveness::Contact;
use parking_lot::{Mutex, RwLock};
use peer_stream::Link;
use queue::QueueLimits;
use rustc_hash::FxHashMap;
use snapshot_stream::RateLimit;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Bounds and intervals of the transport.
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// How often two nodes ping each other.
    pub ping_interval: Duration,
    /// A peer is lost after so many intervals of silence.
    pub silent_pings_max: u32,
    /// For a connection and its hello.
    pub connect_timeout: Duration,
    /// For an answer, where the caller names no other time.
    pub call_timeout: Duration,
    /// Between two attempts to connect.
    pub reconnect_delay_max: Duration,
    /// A gRPC message is closed at this size ...
    pub batch_bytes_max: usize,
    /// ... or at so many messages.
    pub batch_messages_max: usize,
    /// Bytes that may wait in the queue of one stream.
    pub queue_bytes_max: usize,
    /// Bytes of append requests on their way to one peer.
    pub append_bytes_max: usize,
    /// Append requests of one group on their way to one peer.
    pub session_requests_max: usize,
    /// Bytes of them.
    pub session_bytes_max: usize,
    /// Largest gRPC message.
    pub message_bytes_max: usize,
    /// Snapshots sent, all together; 0 = no limit.
    pub snapshot_bytes_per_second: u64,
    /// Snapshots received at the same time; more are refused and tried again.
    pub snapshots_incoming_max: usize,
    /// A snapshot that does not move is given up.
    pub snapshot_idle_timeout: Duration,
    /// HTTP/2 flow control window of a connection.
    pub connection_window_bytes: u32,
    /// HTTP/2 flow control window of a stream.
    pub stream_window_bytes: u32,
    /// Largest HTTP/2 frame.
    pub frame_bytes_max: u32,
    /// HTTP/2 keep-alive.
    pub keep_alive_interval: Duration,
    /// Connections that the peer port takes, and how long each may take to introduce itself.
    pub accept: AcceptLimits,
}

impl Default for TransportOptions {
    fn default() -> Self {
        TransportOptions {
            ping_interval: Duration::from_millis(300),
            silent_pings_max: 5,
            connect_timeout: Duration::from_secs(1),
            call_timeout: Duration::from_secs(30),
            reconnect_delay_max: Duration::from_secs(1),
            batch_bytes_max: 1 << 20,
            batch_messages_max: 1024,
            queue_bytes_max: 64 << 20,
            append_bytes_max: 64 << 20,
            session_requests_max: 64,
            session_bytes_max: 8 << 20,
            message_bytes_max: 64 << 20,
            snapshot_bytes_per_second: 64 << 20,
            snapshots_incoming_max: 4,
            snapshot_idle_timeout: Duration::from_secs(60),
            connection_window_bytes: 16 << 20,
            stream_window_bytes: 8 << 20,
            frame_bytes_max: 1 << 20,
            keep_alive_interval: Duration::from_secs(5),
            accept: AcceptLimits {
                connections_max: 1_000,
                handshakes_max: 100,
                handshake_timeout: Duration::from_secs(5),
            },
        }
    }
}

impl TransportOptions {
    fn queue_limits(&self) -> QueueLimits {
        QueueLimits {
            bytes_max: self.queue_bytes_max,
            batch_bytes_max: self.batch_bytes_max,
            batch_messages_max: self.batch_messages_max,
        }
    }
}

/// What the transport hands upward. Nothing here may block.
pub trait Inbound: Send + Sync + 'static {
    /// A message of a peer; `reply` sends answers back on the stream it came from.
    fn message(&self, from: NodeId, message: pb::Message, reply: ReplySender);
    /// A peer wants to send a snapshot.
    fn snapshot(
        &self,
        from: NodeId,
        header: pb::SnapshotHeader,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Failure>>;
    /// Nothing came from the peer for some time.
    fn peer_lost(&self, peer: NodeId);
    /// The lost peer is back.
    fn peer_found(&self, peer: NodeId);
    /// A hello taught something new about a node; to be persisted.
    fn address_changed(&self, node: NodeAddress);
}

/// Takes a snapshot in. Dropped without `finish`, it must leave nothing behind.
pub trait SnapshotSink: Send {
    /// The next records, see [`unpack_records`]; the sender waits until it is done.
    fn records(&mut self, chunk: Bytes) -> BoxFuture<'_, Result<(), Failure>>;
    /// Everything has arrived unchanged.
    fn finish(
        self: Box<Self>,
        end: pb::SnapshotEnd,
    ) -> BoxFuture<'static, Result<pb::SnapshotReply, Failure>>;
}

/// The network of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Transport(Arc<Shared>);

pub(crate) struct Shared {
    identity: RwLock<Identity>,
    options: TransportOptions,
    book: AddressBook,
    metrics: TransportMetrics,
    inbound: RwLock<Option<Arc<dyn Inbound>>>,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    stop: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
    snapshot_rate: RateLimit,
    snapshots_incoming: Semaphore,
    /// How many are on their way; one as a rule.
    snapshots_outgoing: Mutex<FxHashMap<(NodeId, GroupId), usize>>,
    log_limit: LogLimit,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({})", self.identity.read().node)
    }
}

/// A peer that this node has to do with.
#[derive(Debug)]
struct Peer {
    node: NodeId,
    append: Arc<Link>,
    control: Arc<Link>,
    contact: Contact,
}

impl Peer {
    fn cut(&self) {
        self.append.cut();
        self.control.cut();
    }
}

impl Transport {
    /// A transport that connects to peers as they are spoken to. Must be called on a tokio runtime.
    pub fn new(
        identity: Identity,
        options: TransportOptions,
        book: AddressBook,
        metrics: TransportMetrics,
    ) -> Transport {
        let shared = Arc::new(Shared {
            identity: RwLock::new(identity),
            snapshot_rate: RateLimit::new(options.snapshot_bytes_per_second),
            snapshots_incoming: Semaphore::new(options.snapshots_incoming_max),
            snapshots_outgoing: Mutex::default(),
            options,
            book,
            metrics,
            inbound: RwLock::new(None),
            peers: RwLock::default(),
            stop: CancellationToken::new(),
            tasks: Mutex::new(JoinSet::new()),
            log_limit: LogLimit::default(),
        });
        shared.spawn(liveness::run(shared.clone()));
        Transport(shared)
    }

    /// Says who takes in what peers send; until then peers are told that the node is starting.
    pub fn set_inbound(&self, inbound: Arc<dyn Inbound>) {
        *self.0.inbound.write() = Some(inbound);
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.0.identity()
    }

    /// The node has joined a cluster, or its addresses changed; every stream opens anew.
    pub fn set_identity(&self, identity: Identity) {
        *self.0.identity.write() = identity;
        self.0.book.touch();
    }

    /// The node has joined this cluster.
    pub fn set_cluster_id(&self, cluster_id: &str) {
        self.0.identity.write().cluster_id = cluster_id.to_owned();
        self.0.book.touch();
    }

    /// Every known node.
    pub fn book(&self) -> &AddressBook {
        &self.0.book
    }

    /// Bounds and intervals.
    pub fn options(&self) -> &TransportOptions {
        &self.0.options
    }

    /// Watches whether this peer is alive, although there may be nothing to say to it.
    pub fn watch(&self, peer: NodeId) {
        self.0.watch(peer);
    }

    /// Queues a message that needs no answer.
    ///
    /// # Errors
    /// When the queue is full or the peer cannot be reached; nothing was sent.
    pub fn send(&self, to: NodeId, lane: pb::Lane, message: pb::Message) -> Result<(), Failure> {
        self.0.link(to, lane)?.send(message)
    }

    /// Asks and waits for the answer; `call` of the message is overwritten.
    ///
    /// # Errors
    /// As [`Transport::call_within`], with `call_timeout` of the options.
    pub fn call(
        &self,
        to: NodeId,
        lane: pb::Lane,
        message: pb::Message,
    ) -> impl Future<Output = Result<pb::Message, Failure>> + Send + use<> {
        self.call_within(self.0.options.call_timeout, to, lane, message)
    }

    /// Asks and waits for the answer at most so long.
    ///
    /// # Errors
    /// When the peer cannot be reached, refuses, or gives no answer in time (outcome unknown).
    pub fn call_within(
        &self,
        timeout: Duration,
        to: NodeId,
        lane: pb::Lane,
        message: pb::Message,
    ) -> impl Future<Output = Result<pb::Message, Failure>> + Send + use<> {
        let link = self.0.link(to, lane);
        async move { call::call(link?, message, timeout).await }
    }

    /// A session of append requests of this generation of a group.
    ///
    /// # Errors
    /// When the peer cannot be reached.
    pub fn session(&self, to: NodeId, group: GroupId, generation: u64) -> Result<Session, Failure> {
        Session::open(&self.0.link(to, pb::Lane::Append)?, group, generation)
    }

    /// Sends a snapshot and waits until the peer has installed it. `hello` of the header is
    /// overwritten. Dropping the future cancels it.
    ///
    /// # Errors
    /// When the peer cannot be reached or refuses, when reading fails, and when nothing moves any
    /// more.
    pub fn send_snapshot(
        &self,
        to: NodeId,
        header: pb::SnapshotHeader,
        records: Records,
    ) -> impl Future<Output = Result<pb::SnapshotReply, Failure>> + Send + use<> {
        snapshot_stream::send(self.0.clone(), to, header, records)
    }

    /// The tonic service of the peer port.
    pub fn server(&self) -> PeerServer {
        PeerServer::new(PeerService(self.0.clone()))
            .max_decoding_message_size(self.0.options.message_bytes_max)
            .max_encoding_message_size(self.0.options.message_bytes_max)
    }

    /// Serves the peer port until the transport is shut down.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(&self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let options = &self.0.options;
        let incoming = accept::incoming(listener, options.accept, self.0.metrics.accept.clone());
        tonic::transport::Server::builder()
            .initial_connection_window_size(options.connection_window_bytes)
            .initial_stream_window_size(options.stream_window_bytes)
            .max_frame_size(options.frame_bytes_max)
            .http2_keepalive_interval(Some(options.keep_alive_interval))
            .http2_keepalive_timeout(Some(options.keep_alive_interval))
            .add_service(self.server())
            .serve_with_incoming_shutdown(incoming, self.0.stop.clone().cancelled_owned())
            .await
    }

    /// Is a snapshot of this group on its way to this peer?
    pub fn is_sending_snapshot(&self, to: NodeId, group: GroupId) -> bool {
        self.0.snapshots_outgoing.lock().contains_key(&(to, group))
    }

    /// Does the control stream to this peer stand?
    pub fn is_connected(&self, peer: NodeId) -> bool {
        self.0.peer(peer).is_some_and(|peer| peer.control.is_connected())
    }

    /// How long ago something came from this peer.
    pub fn last_contact(&self, peer: NodeId) -> Option<Duration> {
        self.0.peer(peer)?.contact.last()
    }

    /// Ends every stream; questions without an answer fail.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock());
        while tasks.join_next().await.is_some() {}
        *self.0.inbound.write() = None;
        self.0.peers.write().clear();
    }
}

impl Shared {
    fn identity(&self) -> Identity {
        self.identity.read().clone()
    }

    fn inbound(&self) -> Option<Arc<dyn Inbound>> {
        self.inbound.read().clone()
    }

    fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().values().cloned().collect()
    }

    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().get(&node).cloned()
    }

    /// Runs a task that ends by itself when the transport stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn link(self: &Arc<Self>, to: NodeId, lane: pb::Lane) -> Result<Arc<Link>, Failure> {
        if self.stop.is_cancelled() {
            return Err(Failure::stopping("this node"));
        }
        if to == self.identity.read().node {
            return Err(Failure::internal(format!("{to} has nothing to say to itself")));
        }
        let peer = self.watch(to);
        Ok(match lane {
            pb::Lane::Append => peer.append.clone(),
            pb::Lane::Control => peer.control.clone(),
        })
    }

    /// The peer, with its streams on their way up.
    fn watch(self: &Arc<Self>, node: NodeId) -> Arc<Peer> {
        if let Some(peer) = self.peer(node) {
            return peer;
        }
        let mut peers = self.peers.write();
        if let Some(peer) = peers.get(&node) {
            return peer.clone();
        }
        let peer = Arc::new(Peer {
            node,
            append: Link::new(node, pb::Lane::Append, self),
            control: Link::new(node, pb::Lane::Control, self),
            contact: Contact::new(),
        });
        if !self.stop.is_cancelled() {
            self.spawn(peer.append.clone().run(self.clone()));
            self.spawn(peer.control.clone().run(self.clone()));
        }
        peers.insert(node, peer.clone());
        peer
    }

    /// A sign of life.
    fn heard(&self, node: NodeId) {
        let Some(peer) = self.peer(node) else { return };
        if peer.contact.heard() {
            tracing::info!(peer = %node, "back");
            if let Some(inbound) = self.inbound() {
                inbound.peer_found(node);
            }
        }
    }

    /// Judges a hello and learns from it.
    fn meet(&self, theirs: &pb::Hello) -> Result<(), Refusal> {
        let learned = hello::judge(&self.identity(), &self.book, theirs)?;
        let node = NodeId(theirs.node_id);
        self.heard(node);
        if let Some(peer) = self.peer(node) {
            peer.append.retry();
            peer.control.retry();
        }
        if let (Some(node), Some(inbound)) = (learned, self.inbound()) {
            inbound.address_changed(node);
        }
        Ok(())
    }
}

/// One line a minute for each peer.
#[derive(Debug, Default)]
struct LogLimit(Mutex<FxHashMap<NodeId, Instant>>);

impl LogLimit {
    const EVERY: Duration = Duration::from_secs(60);
    /// Node ids come from the network; more than this are forgotten together.
    const PEERS_MAX: usize = 1024;

    fn allows(&self, node: NodeId) -> bool {
        let mut seen = self.0.lock();
        let now = clock::now();
        if seen.len() >= Self::PEERS_MAX {
            seen.clear();
        }
        match seen.get(&node) {
            Some(last) if now - *last < Self::EVERY => false,
            _ => {
                seen.insert(node, now);
                true
            }
        }
    }
}
