//! Several nodes in one process: own directories, own ports, short timeouts.

use bytes::Bytes;
use dtkv_client::packed::delivery::{DeliveryKind, deliveries};
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use dtkv_client::v1::{self, Code, Consistency};
use dtkv_node::engine::{Engine, EngineMetrics, EngineOptions};
use dtkv_node::failure::Failure;
use dtkv_node::group::metrics::GroupMetrics;
use dtkv_node::group::propose::WriteFrame;
use dtkv_node::group::read::ReadFrame;
use dtkv_node::group::reply::Answer;
use dtkv_node::group::{Group, GroupOptions};
use dtkv_node::ids::{GroupId, NodeId};
use dtkv_node::store::{Store, StoreOptions, identity, records};
use dtkv_node::transport::{AddressBook, Identity, Transport, TransportMetrics, TransportOptions};
use dtkv_node::watch::{Outbox, OutboxOptions, WatchRequest};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(3);

/// How the groups of a test behave.
#[derive(Clone)]
pub struct Options(GroupOptions);

impl Default for Options {
    fn default() -> Options {
        Options(GroupOptions {
            election_timeout_min_ms: 400,
            election_timeout_max_ms: 800,
            heartbeat_interval_ms: 100,
            park_after: None,
            ..GroupOptions::default()
        })
    }
}

impl Options {
    /// Checkpoints often and keeps little log.
    pub fn small_log() -> Options {
        let group = GroupOptions {
            checkpoint_log_bytes: 64 << 10,
            checkpoint_interval: Duration::from_millis(100),
            log_bytes_max: 128 << 10,
            log_tail_bytes: 32 << 10,
            ..Options::default().0
        };
        Options(group)
    }

    /// Checkpoints often and keeps log behind the checkpoints.
    pub fn keeps_a_tail() -> Options {
        let group = GroupOptions { checkpoint_interval: Duration::from_millis(100), ..Options::default().0 };
        Options(group)
    }

    /// Elects only where somebody asks for it.
    pub fn no_elections() -> Options {
        let group = GroupOptions {
            election_timeout_min_ms: 30_000,
            election_timeout_max_ms: 60_000,
            ..Options::default().0
        };
        Options(group)
    }

    /// Parks soon.
    pub fn parking() -> Options {
        let group = GroupOptions {
            checkpoint_interval: Duration::from_millis(100),
            park_after: Some(Duration::from_millis(500)),
            ..Options::default().0
        };
        Options(group)
    }
}

struct Node {
    metrics: GroupMetrics,
    store: Store,
    engine: Engine,
    transport: Transport,
    server: tokio::task::JoinHandle<()>,
}

/// Some nodes that know each other.
pub struct Cluster {
    options: Options,
    dirs: BTreeMap<u64, TempDir>,
    ports: BTreeMap<u64, u16>,
    nodes: BTreeMap<u64, Node>,
    deaf: Vec<(Transport, tokio::task::JoinHandle<()>)>,
}

/// Waits until a condition holds, for a while.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn transport(
    identity: &identity::NodeIdentity,
    address: &v1::NodeAddress,
    engine: &Engine,
    registry: &prometheus::Registry,
) -> Transport {
    Transport::new(
        Identity {
            cluster_id: identity.cluster_id.clone(),
            node: identity.node_id,
            incarnation: identity.incarnation.clone(),
            peer_address: address.peer_address.clone(),
            client_address: address.client_address.clone(),
        },
        TransportOptions { ping_interval: Duration::from_millis(100), ..TransportOptions::default() },
        AddressBook::new(records::addresses(engine).unwrap()),
        TransportMetrics::register(registry),
    )
}

impl Cluster {
    /// Starts nodes 1 to `count` as members of cluster "c".
    pub async fn start(count: u64, options: Options) -> Cluster {
        let mut cluster = Cluster {
            options,
            dirs: BTreeMap::new(),
            ports: BTreeMap::new(),
            nodes: BTreeMap::new(),
            deaf: Vec::new(),
        };
        let mut listeners = BTreeMap::new();
        for id in 1..=count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            cluster.ports.insert(id, listener.local_addr().unwrap().port());
            cluster.dirs.insert(id, TempDir::new().unwrap());
            listeners.insert(id, listener);
        }
        for (id, listener) in listeners {
            cluster.start_node(id, listener).await;
            let nodes = (1..=count).map(|other| cluster.address(other)).collect();
            let join = v1::JoinClusterRequest { epoch: 0, cluster_id: "c".into(), nodes };
            cluster.store(id).join_cluster(join).await.unwrap();
        }
        cluster
    }

    async fn start_node(&mut self, id: u64, listener: TcpListener) {
        let registry = prometheus::Registry::new();
        let path = self.dirs[&id].path().to_owned();
        let engine = Engine::open(EngineOptions::new(path), EngineMetrics::register(&registry)).unwrap();
        let identity = identity::load(&engine, NodeId(id)).await.unwrap();
        let address = self.address(id);
        let transport = transport(&identity, &address, &engine, &registry);
        let options = StoreOptions {
            group: self.options.0.clone(),
            tick_interval: Duration::from_millis(20),
            durability: "fsync",
            address,
        };
        let metrics = GroupMetrics::register(&registry).unwrap();
        let store =
            Store::open(options, identity, engine.clone(), transport.clone(), metrics.clone()).await.unwrap();
        let serving = transport.clone();
        let server = tokio::spawn(async move { serving.serve(listener).await.unwrap() });
        self.nodes.insert(id, Node { metrics, store, engine, transport, server });
    }

    /// Ends a node without handing anything over.
    pub async fn kill(&mut self, id: u64) {
        let node = self.nodes.remove(&id).unwrap();
        node.transport.shutdown().await;
        node.server.abort();
        let _ = node.server.await;
        node.store.shutdown(Duration::ZERO).await;
        drop(node.store);
        node.engine.shutdown();
        drop(node.engine);
        // Whatever still holds the engine lets go of it soon; only then can it be opened again.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    /// Starts a killed node again on its directory.
    pub async fn revive(&mut self, id: u64) {
        let listener = TcpListener::bind(("127.0.0.1", self.ports[&id])).await.unwrap();
        self.start_node(id, listener).await;
    }

    /// Starts only the streams of a killed node: it is connected, and no replica answers.
    pub async fn revive_deaf(&mut self, id: u64) {
        let listener = TcpListener::bind(("127.0.0.1", self.ports[&id])).await.unwrap();
        let registry = prometheus::Registry::new();
        let path = self.dirs[&id].path().to_owned();
        let engine = Engine::open(EngineOptions::new(path), EngineMetrics::register(&registry)).unwrap();
        let identity = identity::load(&engine, NodeId(id)).await.unwrap();
        let transport = transport(&identity, &self.address(id), &engine, &registry);
        let serving = transport.clone();
        let server = tokio::spawn(async move { serving.serve(listener).await.unwrap() });
        self.deaf.push((transport, server));
    }

    /// The streams of a node.
    pub fn transport(&self, id: u64) -> &Transport {
        &self.nodes[&id].transport
    }

    /// Both.
    pub async fn restart(&mut self, id: u64) {
        self.kill(id).await;
        self.revive(id).await;
    }

    /// Ends everything.
    pub async fn stop(mut self) {
        for (transport, server) in std::mem::take(&mut self.deaf) {
            transport.shutdown().await;
            server.abort();
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.kill(id).await;
        }
    }

    /// The store of a node.
    pub fn store(&self, id: u64) -> &Store {
        &self.nodes[&id].store
    }

    /// Where a node is.
    pub fn address(&self, id: u64) -> v1::NodeAddress {
        let address = format!("127.0.0.1:{}", self.ports[&id]);
        v1::NodeAddress { node_id: id, client_address: address.clone(), peer_address: address }
    }

    /// What makes a group.
    pub fn bootstrap_request(&self, group: u32, members: &[u64], layout: &str) -> v1::BootstrapRequest {
        v1::BootstrapRequest {
            epoch: 0,
            cluster_id: "c".into(),
            group_id: group,
            members: members.to_vec(),
            layout_hash: layout.into(),
            preferred_leader: members[0],
        }
    }

    /// Makes a group on its members.
    pub async fn bootstrap(&self, group: u32, members: &[u64]) {
        for node in members.iter().rev() {
            self.store(*node).bootstrap(self.bootstrap_request(group, members, "layout")).await.unwrap();
        }
    }

    /// The node that leads, as soon as it answers for a quorum.
    pub async fn leader(&self, group: u32) -> u64 {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            for (id, node) in &self.nodes {
                let Ok(replica) = node.store.group(GroupId(group)) else { continue };
                if replica.is_leader() && replica.status(true).await.is_ok_and(|status| status.confirmed) {
                    return *id;
                }
            }
            assert!(tokio::time::Instant::now() < end, "g{group} has no leader in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What a replica says of itself.
    pub fn status(&self, node: u64, group: u32) -> v1::GroupStatus {
        self.store(node).group(GroupId(group)).unwrap().status_now()
    }

    /// How many snapshots a node has received and installed.
    pub fn snapshots_installed(&self, node: u64) -> u64 {
        self.nodes[&node].metrics.snapshots_installed.get()
    }

    async fn write(&self, node: u64, group: u32, op: Op<'_>) -> Result<Answer, Failure> {
        let mut ops = Vec::new();
        op.pack(&mut ops);
        self.frame(node, group, ops, 1).await
    }

    /// Proposes packed operations.
    pub async fn frame(&self, node: u64, group: u32, ops: Vec<u8>, count: u32) -> Result<Answer, Failure> {
        let (send, receive) = tokio::sync::oneshot::channel();
        self.store(node).group(GroupId(group))?.propose(WriteFrame {
            ops: Bytes::from(ops),
            count,
            deadline: dtkv_node::clock::now() + DEADLINE,
            reply: Box::new(move |answer| drop(send.send(answer))),
        });
        receive.await.expect("every frame gets a reply")
    }

    /// Puts a value.
    pub async fn put(&self, node: u64, group: u32, key: &str, value: &str) -> Result<Code, Failure> {
        let answer = self.write(node, group, Op::new(Kind::Put, key.as_bytes(), value.as_bytes())).await?;
        match packed::results(&answer.results).next(Kind::Put) {
            Ok(PackedResult::Code(code)) => Ok(code),
            other => panic!("{other:?}"),
        }
    }

    /// Gets a value.
    pub async fn get(
        &self,
        node: u64,
        group: u32,
        key: &str,
        consistency: Consistency,
    ) -> Result<Option<String>, Failure> {
        let (send, receive) = tokio::sync::oneshot::channel();
        let mut ops = Vec::new();
        Op::new(Kind::Get, key.as_bytes(), b"").pack(&mut ops);
        self.store(node).group(GroupId(group))?.read(ReadFrame {
            ops: Bytes::from(ops),
            count: 1,
            consistency,
            deadline: dtkv_node::clock::now() + DEADLINE,
            reply: Box::new(move |answer| drop(send.send(answer))),
        });
        let answer = receive.await.expect("every frame gets a reply")?;
        match packed::results(&answer.results).next(Kind::Get) {
            Ok(PackedResult::Node(node)) => Ok(Some(String::from_utf8(node.value.to_vec()).unwrap())),
            Ok(PackedResult::Code(Code::NotFound)) => Ok(None),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the trees of these replicas are equal at one index.
    pub async fn wait_equal(&self, group: u32, nodes: &[u64]) {
        eventually("the replicas are equal", || async {
            let mut digests = Vec::new();
            for node in nodes {
                let request = v1::TreeDigestRequest { group_id: group };
                digests.push(self.store(*node).tree_digest(request).await.unwrap());
            }
            digests.windows(2).all(|pair| pair[0] == pair[1])
        })
        .await;
    }

    /// Waits until these replicas sleep.
    pub async fn wait_parked(&self, group: u32, nodes: &[u64]) {
        eventually("the replicas are parked", || async {
            nodes.iter().all(|node| self.status(*node, group).parked)
        })
        .await;
    }
}

/// A stream of watches without a network.
pub struct Watches {
    outbox: Arc<Outbox>,
    acknowledged: u64,
    /// Of the registration that came last.
    pub created_index: u64,
    pub states: Vec<(DeliveryKind, u64)>,
    pub events: usize,
    pub ended: Vec<v1::WatchEnded>,
}

impl Watches {
    pub fn new() -> Watches {
        let outbox = Outbox::new(OutboxOptions {
            window_bytes: 1 << 20,
            queue_bytes_max: 1 << 20,
            watches_max: 100,
            progress_interval: DEADLINE,
        });
        let (states, ended) = (Vec::new(), Vec::new());
        Watches { outbox, acknowledged: 0, created_index: 0, states, events: 0, ended }
    }

    pub fn add(&mut self, group: &Group, id: u32, key: &str, mode: v1::WatchMode) {
        let key = Arc::from(key.as_bytes());
        let request = WatchRequest { id, key, mode, index: None, keys_only: true, kinds: Vec::new() };
        group.watch(request, &self.outbox).unwrap();
    }

    /// Takes what has come.
    pub fn take(&mut self) {
        let waker = futures::task::noop_waker();
        while let Poll::Ready(Some(response)) = self.outbox.poll(&Context::from_waker(&waker)) {
            self.acknowledged += u64::from(response.bytes);
            self.outbox.acknowledge(self.acknowledged);
            self.created_index = response.created.last().map_or(self.created_index, |created| created.index);
            for delivery in deliveries(&response.deliveries) {
                let (_, delivery) = delivery.unwrap();
                match delivery.kind.is_state() {
                    true => self.states.push((delivery.kind, delivery.index)),
                    false => self.events += 1,
                }
            }
            self.ended.extend(response.ended);
        }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.outbox.close();
    }
}
