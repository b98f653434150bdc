//! The nodes of a simulation: real stores on real engines, each in a directory of its own.

use super::network::{Door, Network};
use crate::clock;
use crate::engine::{Engine, EngineMetrics, EngineOptions};
use crate::failure::Failure;
use crate::group::metrics::GroupMetrics;
use crate::group::propose::WriteFrame;
use crate::group::read::ReadFrame;
use crate::group::reply::Answer;
use crate::group::{Group, GroupOptions};
use crate::ids::{GroupId, NodeId};
use crate::keyspace::{self, Family};
use crate::planted::Plot;
use crate::store::inbound::StoreInbound;
use crate::store::{Store, StoreOptions, identity, records};
use crate::transport::{AddressBook, Identity, Transport, TransportMetrics, TransportOptions};
use crate::watch::WatchOptions;
use bytes::Bytes;
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use dtkv_client::v1::{self, Code, Consistency};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// The group that is looked at.
pub const GROUP: GroupId = GroupId(1);
/// How long whatever must happen may take: it says nothing about the product.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Keys that fill the tree, so that a snapshot has several chunks.
const BALLAST: usize = 3;
const BALLAST_BYTES: usize = 150_000;

/// What to simulate.
#[derive(Clone)]
pub struct Setup {
    pub seed: u64,
    /// How many nodes; the first three hold the group.
    pub nodes: u64,
    pub group: GroupOptions,
}

impl Setup {
    /// As [`Setup::new`], with more time for a follower before it stands for election: for scripts,
    /// in which a certain node leads.
    pub fn script() -> Setup {
        let mut setup = Setup::new(0, 4);
        setup.group.election_timeout_min_ms = 1_000;
        setup.group.election_timeout_max_ms = 1_500;
        setup.group.heartbeat_interval_ms = 100;
        setup
    }

    /// Short times and little log, so that much happens soon.
    pub fn new(seed: u64, nodes: u64) -> Setup {
        let group = GroupOptions {
            election_timeout_min_ms: 200,
            election_timeout_max_ms: 400,
            heartbeat_interval_ms: 50,
            checkpoint_log_bytes: 32 << 10,
            checkpoint_interval: Duration::from_millis(80),
            log_bytes_max: 16 << 10,
            log_tail_bytes: 4 << 10,
            park_after: None,
            watch: WatchOptions::default(),
        };
        Setup { seed, nodes, group }
    }
}

struct Node {
    store: Store,
    transport: Transport,
    server: tokio::task::JoinHandle<()>,
    alive: Arc<AtomicBool>,
    directory: PathBuf,
}

/// Some nodes and the network between them.
pub struct Cluster {
    pub plot: Plot,
    pub network: Arc<Network>,
    setup: Setup,
    root: TempDir,
    addresses: BTreeMap<u64, String>,
    nodes: Mutex<BTreeMap<u64, Node>>,
    /// Counts the lives of all nodes.
    lives: AtomicU64,
    directories: Mutex<BTreeMap<u64, PathBuf>>,
}

/// A runtime whose threads know the plot.
pub fn runtime(plot: &Plot) -> tokio::runtime::Runtime {
    let enter = plot.clone();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(move || enter.enter())
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Waits until a condition holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

impl Cluster {
    /// Starts the nodes and makes the group on the first three.
    pub async fn start(setup: Setup, plot: Plot) -> Arc<Cluster> {
        let network = Network::new(setup.seed, tokio::runtime::Handle::current());
        let mut addresses = BTreeMap::new();
        for id in 1..=setup.nodes {
            // An address of its own for each node: nobody takes its port while it is down.
            let (a, b) = (rand::random_range(1..255), rand::random_range(0..255));
            addresses.insert(id, format!("127.{a}.{b}.{id}:{}", rand::random_range(21_000..31_000)));
        }
        let cluster = Arc::new(Cluster {
            plot,
            network,
            root: tempfile::tempdir().expect("a directory"),
            addresses,
            nodes: Mutex::default(),
            lives: AtomicU64::new(0),
            directories: Mutex::default(),
            setup,
        });
        for id in 1..=cluster.setup.nodes {
            cluster.directories.lock().insert(id, cluster.root.path().join(format!("n{id}")));
            cluster.restart(id).await.expect("a new node starts");
            let nodes = cluster.ids().into_iter().map(|other| cluster.address(other)).collect();
            let join = v1::JoinClusterRequest { epoch: 0, cluster_id: "c".into(), nodes };
            cluster.store(id).expect("it runs").join_cluster(join).await.expect("a new node joins");
        }
        cluster.bootstrap("layout").await;
        cluster.lead(1).await;
        cluster.fill().await;
        cluster
    }

    /// Makes the group on the first three nodes; the first leads first.
    pub async fn bootstrap(&self, layout: &str) {
        for node in (1..=3).rev() {
            let request = v1::BootstrapRequest {
                epoch: 0,
                cluster_id: "c".into(),
                group_id: GROUP.0,
                members: vec![1, 2, 3],
                layout_hash: layout.into(),
                preferred_leader: 1,
            };
            self.store(node).expect("it runs").bootstrap(request).await.expect("a new group");
        }
    }

    async fn fill(&self) {
        for number in 0..BALLAST {
            let value = vec![b'x'; BALLAST_BYTES];
            self.put_somewhere(&format!("ballast{number}"), &value).await;
        }
    }

    pub fn ids(&self) -> Vec<u64> {
        (1..=self.setup.nodes).collect()
    }

    pub fn running(&self) -> Vec<u64> {
        self.nodes.lock().keys().copied().collect()
    }

    pub fn address(&self, id: u64) -> v1::NodeAddress {
        let address = self.addresses[&id].clone();
        v1::NodeAddress { node_id: id, client_address: address.clone(), peer_address: address }
    }

    pub fn store(&self, id: u64) -> Option<Store> {
        self.nodes.lock().get(&id).map(|node| node.store.clone())
    }

    pub fn group(&self, id: u64) -> Option<Group> {
        self.store(id)?.group(GROUP).ok()
    }

    /// Where the data of a node is now.
    pub fn directory(&self, id: u64) -> PathBuf {
        self.directories.lock()[&id].clone()
    }

    /// The node loses its power: nothing that it does from now on is seen, and what it did not sync
    /// is gone.
    pub async fn crash(&self, id: u64) {
        let Some(node) = self.nodes.lock().remove(&id) else { return };
        node.alive.store(false, Ordering::SeqCst);
        self.network.set_dead(id, true);
        let life = self.lives.fetch_add(1, Ordering::SeqCst) + 1;
        let copy = self.root.path().join(format!("n{id}-{life}"));
        let (from, to) = (node.directory.clone(), copy.clone());
        tokio::task::spawn_blocking(move || copy_unsynced_lost(&from, &to)).await.expect("a copy");
        self.directories.lock().insert(id, copy);
        node.transport.shutdown().await;
        node.server.abort();
        let _ = node.server.await;
        // What is left of it ends in its own time, in a directory that nobody looks into any more.
        tokio::spawn(async move { node.store.shutdown(Duration::ZERO).await });
    }

    /// Starts a node on the data that it has.
    ///
    /// # Errors
    /// When it refuses to start.
    pub async fn restart(&self, id: u64) -> Result<(), String> {
        let directory = self.directory(id);
        let listener = TcpListener::bind(&self.addresses[&id]).await.map_err(|e| e.to_string())?;
        let registry = prometheus::Registry::new();
        let options = EngineOptions::new(directory.clone());
        let metrics = EngineMetrics::register(&registry);
        let engine = tokio::task::spawn_blocking(move || Engine::open(options, metrics));
        let engine = engine.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let identity = identity::load(&engine, NodeId(id)).await.map_err(|e| e.to_string())?;
        let address = self.address(id);
        let transport = Transport::new(
            Identity {
                cluster_id: identity.cluster_id.clone(),
                node: identity.node_id,
                incarnation: identity.incarnation.clone(),
                peer_address: address.peer_address.clone(),
                client_address: address.client_address.clone(),
            },
            TransportOptions {
                ping_interval: Duration::from_millis(200),
                reconnect_delay_max: Duration::from_millis(50),
                ..TransportOptions::default()
            },
            AddressBook::new(records::addresses(&engine).map_err(|e| e.to_string())?),
            TransportMetrics::register(&registry),
        );
        let options = StoreOptions {
            group: self.setup.group.clone(),
            tick_interval: Duration::from_millis(10),
            durability: "fsync",
            address,
        };
        let metrics = GroupMetrics::register(&registry).map_err(|e| e.to_string())?;
        self.network.set_dead(id, false);
        let store = Store::open(options, identity, engine, transport.clone(), metrics).await;
        let store = store.map_err(|e| e.to_string())?;
        if let Some((group, error)) = store.failed_groups().first() {
            return Err(format!("{group} cannot be opened: {error}"));
        }
        let alive = Arc::new(AtomicBool::new(true));
        let door = Door::new(id, StoreInbound::new(&store), self.network.clone(), alive.clone());
        transport.set_inbound(door);
        let serving = transport.clone();
        let server = tokio::spawn(async move { drop(serving.serve(listener).await) });
        self.nodes.lock().insert(id, Node { store, transport, server, alive, directory });
        Ok(())
    }

    /// Ends everything in order.
    pub async fn stop(&self) {
        let nodes = std::mem::take(&mut *self.nodes.lock());
        for (_, node) in nodes {
            node.transport.shutdown().await;
            node.server.abort();
            node.store.shutdown(Duration::ZERO).await;
        }
    }

    /// Waits for a leader that a quorum confirms.
    pub async fn leader(&self) -> u64 {
        self.leader_among(&self.ids()).await
    }

    /// The same, one of these.
    pub async fn leader_among(&self, nodes: &[u64]) -> u64 {
        let end = Instant::now() + PATIENCE;
        loop {
            for &id in nodes {
                let Some(group) = self.group(id) else { continue };
                if group.is_leader() && group.status(true).await.is_ok_and(|status| status.confirmed) {
                    return id;
                }
            }
            assert!(Instant::now() < end, "no leader among {nodes:?} in time");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets this node lead.
    pub async fn lead(&self, id: u64) {
        loop {
            let leader = self.leader().await;
            if leader == id {
                return;
            }
            if let Some(group) = self.group(leader) {
                let _ = group.transfer_leader(Some(NodeId(id)), Duration::from_secs(2)).await;
            }
        }
    }

    /// Sends writes to a node. An answer of a life that is over was never heard.
    pub async fn write(&self, id: u64, op: Op<'_>, patience: Duration) -> Result<Answer, Failure> {
        let mut ops = Vec::new();
        op.pack(&mut ops);
        let (ops, count, deadline) = (Bytes::from(ops), 1, clock::now() + patience);
        self.ask(id, |group, reply| group.propose(WriteFrame { ops, count, deadline, reply })).await
    }

    async fn ask(
        &self,
        id: u64,
        send: impl FnOnce(&Group, crate::group::reply::Reply),
    ) -> Result<Answer, Failure> {
        let Some((group, alive)) = self
            .nodes
            .lock()
            .get(&id)
            .and_then(|node| Some((node.store.group(GROUP).ok()?, node.alive.clone())))
        else {
            return Err(Failure::stopping(NodeId(id)));
        };
        let (tell, told) = tokio::sync::oneshot::channel();
        send(&group, Box::new(move |answer| drop(tell.send(answer))));
        let answer = told.await.unwrap_or_else(|_| Err(Failure::stopping(NodeId(id)).unknown()));
        if !alive.load(Ordering::SeqCst) {
            return Err(Failure::stopping(NodeId(id)).unknown());
        }
        answer
    }

    pub async fn put(&self, id: u64, key: &str, value: &str) -> Result<u64, Failure> {
        let op = Op::new(Kind::Put, key.as_bytes(), value.as_bytes());
        self.write(id, op, Duration::from_secs(2)).await.map(|answer| answer.index)
    }

    /// Puts, wherever the leader is, until it was acknowledged.
    pub async fn put_somewhere(&self, key: &str, value: &[u8]) {
        let op = Op::new(Kind::Put, key.as_bytes(), value);
        loop {
            let leader = self.leader().await;
            if self.write(leader, op, Duration::from_secs(5)).await.is_ok() {
                return;
            }
        }
    }

    /// What a key holds, and the index at which it was read.
    pub async fn read(
        &self,
        id: u64,
        key: &str,
        consistency: Consistency,
        patience: Duration,
    ) -> Result<(Answer, Option<Vec<u8>>), Failure> {
        let mut ops = Vec::new();
        Op::new(Kind::Get, key.as_bytes(), b"").pack(&mut ops);
        let (ops, count, deadline) = (Bytes::from(ops), 1, clock::now() + patience);
        let answer =
            self.ask(id, |group, reply| group.read(ReadFrame { ops, count, consistency, deadline, reply }));
        let answer = answer.await?;
        let value = match packed::results(&answer.results).next(Kind::Get) {
            Ok(PackedResult::Node(node)) => Some(node.value.to_vec()),
            Ok(PackedResult::Code(Code::NotFound)) => None,
            other => panic!("{other:?}"),
        };
        Ok((answer, value))
    }

    pub async fn get(&self, id: u64, key: &str, consistency: Consistency) -> Result<Option<String>, Failure> {
        let (_, value) = self.read(id, key, consistency, Duration::from_secs(2)).await?;
        Ok(value.map(|bytes| String::from_utf8(bytes).expect("text")))
    }

    /// Writes so much that nobody keeps the log of it, and waits until that is so at all of these.
    pub async fn outgrow_log(&self, nodes: &[u64]) {
        let before = self.group(self.leader().await).map_or(0, |group| group.status_now().last_index);
        for number in 0..100 {
            self.put_somewhere(&format!("filler{}", number % 7), &[b'f'; 400]).await;
        }
        eventually("the log is purged", || async {
            let purged = |id: &u64| self.group(*id).is_some_and(|g| g.status_now().purged_index > before);
            nodes.iter().all(purged)
        })
        .await;
    }

    /// Waits until the members have applied the same, and compares their trees.
    pub async fn wait_equal(&self, nodes: &[u64]) {
        eventually("the replicas are equal", || async {
            let groups: Vec<Group> = nodes.iter().filter_map(|id| self.group(*id)).collect();
            groups.iter().for_each(|group| self.network.audit.sample(group));
            let digests: Vec<_> = groups.iter().map(Group::digest).collect();
            groups.len() == nodes.len() && digests.windows(2).all(|pair| pair[0].0 == pair[1].0)
                || !self.network.audit.violations().is_empty()
        })
        .await;
    }

    /// Epochs under which a node has records of the group.
    pub fn epochs(&self, id: u64) -> Vec<u64> {
        let Some(store) = self.store(id) else { return Vec::new() };
        let (from, to) = keyspace::group_state_range(GROUP);
        let records = store.0.engine.scan(Family::State, &from, &to);
        let epoch = |key: &[u8]| keyspace::decode_state_key(key).map(|(_, epoch, _)| epoch);
        let mut epochs: Vec<u64> = records.filter_map(|record| epoch(&record.ok()?.0)).collect();
        epochs.dedup();
        epochs
    }

    /// Looks at all replicas now and then, for ever.
    pub async fn watch(self: Arc<Self>) {
        loop {
            for id in self.running() {
                if let Some(group) = self.group(id) {
                    self.network.audit.sample(&group);
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Copies a data directory as the disk has it at one moment. RocksDB keeps what was not synced in its
/// own memory, so nothing of it is in the files. The watermark goes first: it never promises more
/// than what is in the files that are copied after it.
fn copy_unsynced_lost(from: &Path, to: &Path) {
    // RocksDB may write out a memtable meanwhile and drop the log behind it; its manifest tells.
    loop {
        let _ = std::fs::remove_dir_all(to);
        std::fs::create_dir_all(to.join("db")).expect("a directory");
        let before = files(from);
        let copied = before.keys().all(|name| std::fs::copy(from.join(name), to.join(name)).is_ok());
        if copied && files(from) == before {
            return;
        }
    }
}

/// The files of a data directory, those of the directory itself first, and the sizes of manifests.
fn files(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for inner in ["", "db"] {
        let entries = std::fs::read_dir(directory.join(inner)).expect("a data directory");
        for path in entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()) {
            let name = path.strip_prefix(directory).expect("it is inside").to_owned();
            let is_manifest = name.to_string_lossy().contains("MANIFEST");
            let size = std::fs::metadata(&path).map_or(0, |file| file.len());
            found.insert(name, if is_manifest { size } else { 0 });
        }
    }
    found
}
