//! A cluster of real processes on loopback, and the faults that can be done to it.
//!
//! Every node is a `dtkv-node run` of its own, with its own directory, ports, configuration file and
//! log. Whatever happens, the processes end with the [`Cluster`]. A test that succeeds calls
//! [`Cluster::finish`]; otherwise the directory is kept and the ends of the logs are printed.

pub mod cut;
mod observe;
pub mod place;
mod process;
mod program;

pub use observe::{http_get, wait_until};
pub use process::{NodeProcess, Ports};
pub use program::{Output, run_program};

use anyhow::{Context, Result, bail};
use cut::{Cuts, Proxied};
use dtkv_client::Client;
use dtkv_client::admin::{ClusterInit, NodeAdmin};
use dtkv_client::v1::NodeAddress;
use dtkv_client::v1::kv_client::KvClient;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

const START_TIMEOUT: Duration = Duration::from_secs(30);
const GRPC_BYTES_MAX: usize = 64 << 20;

/// What cluster to start.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How many nodes, with the ids from 1.
    pub nodes: u64,
    /// How many groups, with the ids from 1.
    pub groups: u32,
    /// Voters of each group.
    pub replicas: usize,
    /// Settings of every node: `section.key` and a TOML value.
    pub settings: Vec<(String, String)>,
    /// Whether the network between the nodes can be cut, see [`Cluster::cuts`].
    pub can_be_cut: bool,
}

impl ClusterOptions {
    /// Every node holds every group, up to three replicas.
    pub fn new(nodes: u64, groups: u32) -> ClusterOptions {
        ClusterOptions {
            nodes,
            groups,
            replicas: nodes.min(3) as usize,
            settings: Vec::new(),
            can_be_cut: false,
        }
    }

    /// With a network between the first nodes that can be cut.
    #[must_use]
    pub fn with_cuts(mut self) -> ClusterOptions {
        self.can_be_cut = true;
        self
    }

    /// Followers wait so long for their leader that a test can tell an election from anything else
    /// that takes its time on a busy machine.
    #[must_use]
    pub fn with_long_elections(self) -> ClusterOptions {
        let longest = ELECTION_MS_MIN + 1_000;
        self.with("raft.election_timeout_min_ms", ELECTION_MS_MIN)
            .with("raft.election_timeout_max_ms", longest)
    }

    /// With a setting.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> ClusterOptions {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }
}

/// See [`ClusterOptions::with_long_elections`].
pub const ELECTION_MS_MIN: u64 = 3_000;

/// A running cluster.
pub struct Cluster {
    name: String,
    options: ClusterOptions,
    nodes: BTreeMap<u64, NodeProcess>,
    client: Client,
    cluster_id: String,
    directory: Option<TempDir>,
    cuts: Option<Cuts>,
    _only: File,
}

impl Cluster {
    /// Starts the nodes, makes a cluster of them and waits until every group has a leader.
    ///
    /// # Errors
    /// When a program is missing, a node does not start, or the groups do not get ready.
    pub async fn start(name: &str, options: ClusterOptions) -> Result<Cluster> {
        let only = tokio::task::spawn_blocking(place::only_cluster).await??;
        let directory = tempfile::Builder::new().prefix(&format!("dtkv-e2e-{name}-")).tempdir()?;
        let mut nodes = BTreeMap::new();
        let mut proxied = Vec::new();
        for id in 1..=options.nodes {
            let mut settings = options.settings.clone();
            let proxy_port = place::free_ports(1)?[0];
            if options.can_be_cut {
                settings.push(("listen.advertised_peer".into(), format!("\"127.0.0.1:{proxy_port}\"")));
            }
            let node = start_node(id, directory.path(), &settings)?;
            proxied.push(Proxied { node: id, proxy_port, peer_port: node.ports.peer });
            nodes.insert(id, node);
        }
        let cuts = if options.can_be_cut { Some(Cuts::start(&proxied).await?) } else { None };
        let started = connect_all(&mut nodes).await;
        let client = started.inspect_err(|_| keep(name, &nodes, directory.path()))?;
        let mut cluster = Cluster {
            name: name.to_owned(),
            options,
            nodes,
            client,
            cluster_id: String::new(),
            directory: Some(directory),
            cuts,
            _only: only,
        };
        cluster.nodes.values().for_each(|node| cluster.know_process(node));
        cluster.init().await?;
        Ok(cluster)
    }

    async fn init(&mut self) -> Result<()> {
        if self.options.groups == 0 {
            return Ok(());
        }
        let init = ClusterInit::new(self.options.groups, self.options.replicas);
        let report = self.client.admin().cluster_init(init, |_| {}).await.context("cluster init")?;
        self.cluster_id = report.cluster_id;
        Ok(())
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// When the cluster was started without [`ClusterOptions::with_cuts`].
    pub fn cuts(&self) -> &Cuts {
        self.cuts.as_ref().expect("the cluster was started with cuts")
    }

    fn know_process(&self, node: &NodeProcess) {
        if let (Some(cuts), Some(process)) = (&self.cuts, node.pid()) {
            cuts.know(node.id, process);
        }
    }

    /// Ends a test that succeeded: every node that should run still does, and none has panicked.
    ///
    /// # Errors
    /// When that is not so.
    pub fn finish(mut self) -> Result<()> {
        for node in self.nodes.values_mut().filter(|node| node.is_running()) {
            node.check_alive()?;
        }
        for node in self.nodes.values() {
            if let Some(line) = node.log().lines().find(|line| line.contains("panicked at")) {
                bail!("n{} panicked: {line}", node.id);
            }
        }
        self.nodes.clear();
        self.directory = None;
        Ok(())
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Another client, with connections of its own.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn new_client(&self) -> Result<Client> {
        Ok(Client::connect(self.endpoints()).await?)
    }

    /// Client addresses of all nodes.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.values().map(NodeProcess::client_address).collect()
    }

    /// All groups.
    pub fn groups(&self) -> Vec<u32> {
        (1..=self.options.groups).collect()
    }

    /// Ids of all nodes.
    pub fn node_ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// One node.
    ///
    /// # Panics
    /// When there is none with this id.
    pub fn node(&self, id: u64) -> &NodeProcess {
        self.nodes.get(&id).unwrap_or_else(|| panic!("there is no n{id}"))
    }

    /// One node, to do something to it.
    ///
    /// # Panics
    /// When there is none with this id.
    pub fn node_mut(&mut self, id: u64) -> &mut NodeProcess {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no n{id}"))
    }

    /// Administration of one node, by its address.
    pub fn admin(&self, id: u64) -> NodeAdmin {
        self.client.admin().node(self.node(id).client_address())
    }

    /// The plain generated stub to one node, without the client library's checks.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn kv(&self, id: u64) -> Result<KvClient<Channel>> {
        let channel = self.channel(id).await?;
        let stub = KvClient::new(channel).max_decoding_message_size(GRPC_BYTES_MAX);
        Ok(stub.max_encoding_message_size(GRPC_BYTES_MAX))
    }

    /// A connection of its own to one node.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn channel(&self, id: u64) -> Result<Channel> {
        let address = format!("http://{}", self.node(id).client_address());
        Endpoint::from_shared(address)?.connect().await.with_context(|| format!("connect to n{id}"))
    }

    /// Starts an empty node that belongs to no cluster yet.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_stranger(&mut self, id: u64) -> Result<()> {
        if self.nodes.contains_key(&id) {
            bail!("there is an n{id} already");
        }
        let directory = self.directory.as_ref().context("the cluster is finished")?;
        let node = start_node(id, directory.path(), &self.options.settings)?;
        self.nodes.insert(id, node);
        self.wait_started(id).await
    }

    /// Starts an empty node and lets it join the cluster.
    ///
    /// # Errors
    /// When it does not start, or may not join.
    pub async fn add_node(&mut self, id: u64) -> Result<()> {
        self.start_stranger(id).await?;
        let known: Vec<NodeAddress> = self.running().map(|node| self.address(node)).collect();
        self.admin(id).join_cluster(&self.cluster_id, known).await.context("join the cluster")?;
        let new = vec![self.address(id)];
        for other in self.running().filter(|other| *other != id) {
            self.admin(other).add_nodes(new.clone()).await.context("tell the others")?;
        }
        Ok(())
    }

    /// Where a node is, as the others are told.
    pub fn address(&self, id: u64) -> NodeAddress {
        let node = self.node(id);
        NodeAddress { node_id: id, client_address: node.client_address(), peer_address: node.peer_address() }
    }

    /// Ids of the nodes that run.
    pub fn running(&self) -> impl Iterator<Item = u64> + '_ {
        self.nodes.values().filter(|node| node.is_running()).map(|node| node.id)
    }

    /// Starts a stopped node again and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn restart(&mut self, id: u64) -> Result<()> {
        self.node_mut(id).restart()?;
        self.know_process(self.node(id));
        self.wait_started(id).await
    }

    async fn wait_started(&mut self, id: u64) -> Result<()> {
        let node = self.node_mut(id);
        wait_started(node).await
    }

    /// kill -9 of every running node at the same moment.
    ///
    /// # Errors
    /// When one of them was gone already.
    pub fn kill_all(&mut self) -> Result<()> {
        for node in self.nodes.values_mut().filter(|node| node.is_running()) {
            node.check_alive()?;
        }
        for node in self.nodes.values().filter(|node| node.is_running()) {
            node.kill_now()?;
        }
        self.nodes.values_mut().filter(|node| node.is_running()).try_for_each(NodeProcess::kill)
    }

    /// Starts every stopped node again.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn restart_all(&mut self) -> Result<()> {
        let stopped: Vec<u64> = self.nodes.values().filter(|node| !node.is_running()).map(|n| n.id).collect();
        for &id in &stopped {
            self.node_mut(id).restart()?;
            self.know_process(self.node(id));
        }
        for id in stopped {
            self.wait_started(id).await?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            keep(&self.name, &self.nodes, directory.path());
            // Kept for whoever looks into the failure.
            let _ = directory.keep();
        }
    }
}

/// Says where the logs are, and how they end.
fn keep(name: &str, nodes: &BTreeMap<u64, NodeProcess>, directory: &Path) {
    eprintln!("the cluster of {name} is kept in {}", directory.display());
    for node in nodes.values() {
        eprintln!(
            "  n{}: {}\n{}",
            node.id,
            node.log_path().display(),
            place::end_of_log(&node.log_path(), 15)
        );
    }
}

fn start_node(id: u64, directory: &Path, settings: &[(String, String)]) -> Result<NodeProcess> {
    let ports = place::free_ports(3)?;
    let ports = Ports { peer: ports[0], client: ports[1], http: ports[2] };
    NodeProcess::start(id, ports, directory.join(format!("n{id}")), settings)
}

async fn connect_all(nodes: &mut BTreeMap<u64, NodeProcess>) -> Result<Client> {
    for node in nodes.values_mut() {
        wait_started(node).await?;
    }
    let endpoints: Vec<String> = nodes.values().map(NodeProcess::client_address).collect();
    Ok(Client::connect(endpoints).await?)
}

/// Waits until the node answers on its HTTP port that it is alive.
async fn wait_started(node: &mut NodeProcess) -> Result<()> {
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    loop {
        node.check_alive()?;
        let alive = http_get(&node.http_address(), "/healthz").await;
        if alive.is_ok_and(|(status, _)| status == 200) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            let end = place::end_of_log(&node.log_path(), 30);
            bail!("n{} does not answer {START_TIMEOUT:?} after its start:\n{end}", node.id);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
