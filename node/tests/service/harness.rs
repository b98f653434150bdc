//! A node with one group, in a directory and on ports of its own.

use bytes::Bytes;
use dtkv_client::Client;
use dtkv_client::admin::ClusterInit;
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1::admin_client::AdminClient;
use dtkv_client::v1::kv_client::KvClient;
use dtkv_client::v1::{self, Frame};
use dtkv_node::config::{Config, Sources};
use dtkv_node::{Node, NodeError};
use prost::Message;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// The group that every test has.
pub const GROUP: u32 = 1;

pub struct Running {
    pub directory: TempDir,
    pub config: Config,
    stop: CancellationToken,
    node: JoinHandle<Result<(), NodeError>>,
}

pub fn config(directory: &Path) -> Config {
    let mut sources = Sources::default();
    sources.flag("node.id=1");
    sources.flag("node.handover_timeout_ms=0");
    sources.flag(&format!("node.data_dir={}", directory.display()));
    let free: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    for (name, listener) in ["listen.peer", "listen.client", "listen.http"].into_iter().zip(free) {
        sources.flag(&format!("{name}={}", listener.local_addr().expect("an address")));
    }
    sources.load().expect("a valid configuration")
}

impl Running {
    /// A node that is ready, in a cluster of its own with one group.
    pub async fn start() -> Running {
        Running::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Running {
        let running = Running::start_empty(change).await;
        let client = Client::connect([running.config.client_address()]).await.expect("a client");
        client.admin().cluster_init(ClusterInit::new(GROUP, 1), |_| {}).await.expect("a cluster");
        running
    }

    /// A node that waits for a cluster.
    pub async fn start_empty(change: impl FnOnce(&mut Config)) -> Running {
        let directory = TempDir::new().expect("a directory");
        let mut config = config(directory.path());
        change(&mut config);
        Running::again(directory, config).await
    }

    /// A node in a directory that one has left.
    pub async fn again(directory: TempDir, config: Config) -> Running {
        let node = Node::build(config.clone()).await.expect("a node");
        let stop = CancellationToken::new();
        let node = tokio::spawn(node.run(stop.clone().cancelled_owned()));
        Running { directory, config, stop, node }
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = format!("http://{}", self.config.client_address());
        Channel::from_shared(endpoint).expect("an address").connect().await.expect("a connection")
    }

    pub async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    pub async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel().await)
    }

    /// Status line and body of a GET on the HTTP port.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.config.listen.http, path).await
    }

    /// The value of a metric, with its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
    }

    /// Waits until a metric has this value.
    pub async fn metric_becomes(&self, name: &str, expected: f64) {
        for _ in 0..100 {
            if self.metric(name).await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} is {}, not {expected}", self.metric(name).await);
    }

    /// Stops the node as SIGTERM does; its directory stays.
    pub async fn stop(self) -> TempDir {
        self.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.node).await;
        ended.expect("it stops in time").expect("no panic").expect("no failure");
        self.directory
    }
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, body.to_owned())
}

/// The typed failure in a status.
pub fn failure(status: &Status) -> v1::Failure {
    let failure = v1::Failure::decode(status.details()).expect("a failure in the details");
    assert!(!failure.message.is_empty(), "{status:?}");
    failure
}

pub fn pack(ops: &[Op<'_>]) -> Bytes {
    let mut bytes = Vec::new();
    ops.iter().for_each(|op| op.pack(&mut bytes));
    bytes.into()
}

pub fn frame(id: u64, ops: &[Op<'_>]) -> Frame {
    let read = ops.iter().all(|op| op.kind == Kind::Get);
    Frame { id, group_id: GROUP, count: ops.len() as u32, ops: pack(ops), read, ..Frame::default() }
}

pub fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Op<'a> {
    Op::new(Kind::Put, key, value)
}
