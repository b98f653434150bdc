//! A node from its parts, in the order in which they depend on each other.

use crate::accept::AcceptLimits;
use crate::config::{self, Config};
use crate::engine::{Durability, Engine, EngineError, EngineMetrics, EngineOptions};
use crate::group::GroupOptions;
use crate::group::metrics::GroupMetrics;
use crate::ids::NodeId;
use crate::service::group_metrics;
use crate::service::http::Http;
use crate::service::metrics::ServiceMetrics;
use crate::service::watch::WatchLimits;
use crate::service::{Service, ServiceOptions};
use crate::store::{Store, StoreError, StoreOptions, identity, records};
use crate::telemetry;
use crate::transport::{AddressBook, Identity, NodeAddress, Transport, TransportMetrics, TransportOptions};
use crate::watch::{NodeHistory, WatchMetrics, WatchOptions};
use dtkv_client::v1;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How often the upkeep of the groups runs.
const TICK_INTERVAL: Duration = Duration::from_millis(50);
/// How long clients may take to read their last answers when the node stops.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Why a node does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The metrics do not fit together.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A port is taken, or not this machine's.
    #[error("{setting} = {address} cannot be used: {cause}; choose another address, or stop whoever has it")]
    Bind {
        /// The setting that names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// The operating system's words.
        cause: std::io::Error,
    },
    /// A listener failed while the node ran.
    #[error("the {port} port stopped: {cause}")]
    Port {
        /// peer, client or http.
        port: &'static str,
        /// Why.
        cause: String,
    },
}

/// A node, ready to serve.
pub struct Node {
    config: Config,
    engine: Engine,
    transport: Transport,
    store: Store,
    service: Service,
    http: Http,
    listeners: Listeners,
}

struct Listeners {
    peer: TcpListener,
    client: TcpListener,
    http: TcpListener,
}

impl Node {
    /// Opens the disk, starts every replica, and binds the ports. Nothing is served before
    /// [`Node::run`].
    ///
    /// # Errors
    /// When the data directory, the identity on it or a port cannot be used.
    pub async fn build(config: Config) -> Result<Node, NodeError> {
        let notices = notices(&config);
        notices.iter().for_each(|notice| tracing::warn!("{notice}"));
        let registry = telemetry::registry();

        let engine = open_engine(&config, EngineMetrics::register(&registry)).await?;
        // Durable before a port is bound: nobody hears of a node that may forget who it is.
        let identity = identity::load(&engine, NodeId(config.node.id.unwrap_or_default())).await?;
        let book = AddressBook::new(records::addresses(&engine).map_err(StoreError::Io)?);
        learn_addresses(&config, &book);
        let transport = Transport::new(
            Identity {
                cluster_id: identity.cluster_id.clone(),
                node: identity.node_id,
                incarnation: identity.incarnation.clone(),
                peer_address: config.peer_address(),
                client_address: config.client_address(),
            },
            transport_options(&config),
            book,
            TransportMetrics::register(&registry),
        );
        let listeners = Listeners::bind(&config).await?;
        let watch_metrics = WatchMetrics::register(&registry);
        let store = Store::open(
            store_options(&config, watch_metrics.clone()),
            identity,
            engine.clone(),
            transport.clone(),
            GroupMetrics::register(&registry)?,
        )
        .await?;

        let metrics = ServiceMetrics::register(&registry);
        let options = service_options(&config, watch_metrics);
        let service = Service::new(store.clone(), engine.clone(), options, metrics);
        let groups = group_metrics::GroupMetrics::register(&registry, config.metrics.per_group);
        let http = Http::new(service.clone(), registry, groups, notices);
        Ok(Node { config, engine, transport, store, service, http, listeners })
    }

    /// Serves until `shutdown` completes, then hands leadership over, answers what is on its way
    /// and closes the disk.
    ///
    /// # Errors
    /// When a listener fails; the node has stopped then as well.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Node { config, engine, transport, store, service, http, listeners } = self;
        let mut ports = JoinSet::new();
        let peers = transport.clone();
        ports.spawn(async move { stopped("peer", peers.serve(listeners.peer).await) });
        ports.spawn({
            let service = service.clone();
            async move { stopped("client", service.serve(listeners.client).await) }
        });
        ports.spawn(async move { stopped("http", http.serve(listeners.http).await) });
        let (peer, client, http) = (config.listen.peer, config.listen.client, config.listen.http);
        tracing::info!(node = config.node.id, %peer, %client, %http, "serving; status page at http://{http}/");

        let failed = tokio::select! {
            () = shutdown => Ok(()),
            Some(ended) = ports.join_next() => ended.unwrap_or_else(|e| stopped("unknown", Err(e))),
        };
        tracing::info!("stopping: leadership is handed over");
        service.begin_stop();
        store.shutdown(Duration::from_millis(config.node.handover_timeout_ms)).await;
        service.stop();
        let last_answers = async { while ports.len() > 1 && ports.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_ANSWERS, last_answers).await.is_err() {
            tracing::warn!("clients did not close their connections in time; they are cut");
        }
        transport.shutdown().await;
        ports.shutdown().await;
        // The engine waits for its threads, which must not block the runtime.
        let _ = tokio::task::spawn_blocking(move || engine.shutdown()).await;
        tracing::info!("stopped");
        failed
    }
}

fn stopped<E: std::fmt::Display>(port: &'static str, result: Result<(), E>) -> Result<(), NodeError> {
    result.map_err(|cause| NodeError::Port { port, cause: cause.to_string() })
}

/// What whoever runs the node must not overlook.
fn notices(config: &Config) -> Vec<String> {
    let mut notices = Vec::new();
    if config.node.durability == config::Durability::Os {
        notices.push(
            "node.durability = \"os\": writes are acknowledged before they are on disk; a power failure of a \
             majority of the nodes can lose acknowledged writes"
                .to_owned(),
        );
    }
    if config.listen.insecure_plaintext {
        notices.push(
            "listen.insecure_plaintext = true: traffic is neither encrypted nor authenticated; whoever reaches \
             the ports reads and writes everything"
                .to_owned(),
        );
    }
    notices
}

async fn open_engine(config: &Config, metrics: EngineMetrics) -> Result<Engine, EngineError> {
    let options = EngineOptions {
        durability: match config.node.durability {
            config::Durability::Fsync => Durability::Fsync,
            config::Durability::Os => Durability::Os,
        },
        write_buffer_bytes: config.engine.write_buffer_bytes.0,
        batch_bytes_max: config.engine.batch_bytes_max.0,
        queue_bytes_max: config.engine.queue_bytes_max.0,
        disk_reserve_bytes: config.node.disk_reserve_bytes.map(|size| size.0 as u64),
        ..EngineOptions::new(&config.node.data_dir)
    };
    // Recovery reads files.
    match tokio::task::spawn_blocking(move || Engine::open(options, metrics)).await {
        Ok(opened) => opened,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn learn_addresses(config: &Config, book: &AddressBook) {
    for (id, peer_address, client_address) in config.known_nodes() {
        let entry = NodeAddress {
            node: NodeId(id),
            peer_address: peer_address.to_owned(),
            client_address: client_address.to_owned(),
            ..NodeAddress::default()
        };
        if let Err(failure) = book.put(entry) {
            tracing::warn!(node = id, %failure, "cluster.nodes: the address was not taken");
        }
    }
}

fn transport_options(config: &Config) -> TransportOptions {
    let peers = &config.peers;
    TransportOptions {
        ping_interval: Duration::from_millis(peers.ping_interval_ms),
        silent_pings_max: peers.silent_pings_max,
        connect_timeout: Duration::from_millis(peers.connect_timeout_ms),
        queue_bytes_max: peers.queue_bytes_max.0,
        append_bytes_max: peers.append_bytes_max.0,
        snapshot_bytes_per_second: config.raft.snapshot_bytes_per_second.0 as u64,
        snapshots_incoming_max: peers.snapshots_incoming_max as usize,
        accept: AcceptLimits {
            connections_max: peers.connections_max,
            handshakes_max: peers.handshakes_max,
            handshake_timeout: Duration::from_millis(peers.handshake_timeout_ms),
        },
        ..TransportOptions::default()
    }
}

fn watch_options(config: &Config, metrics: WatchMetrics) -> WatchOptions {
    let watch = &config.watch;
    let node = NodeHistory::new(watch.history_bytes_max.0 as u64, metrics.history_bytes.clone());
    WatchOptions {
        history_bytes_max: watch.history_group_bytes_max.0 as u64,
        history_age_max: Duration::from_millis(watch.history_age_ms),
        node: Arc::new(node),
        metrics,
    }
}

fn store_options(config: &Config, watch_metrics: WatchMetrics) -> StoreOptions {
    let raft = &config.raft;
    let park_after = Duration::from_millis(raft.park_after_ms);
    StoreOptions {
        group: GroupOptions {
            election_timeout_min_ms: raft.election_timeout_min_ms,
            election_timeout_max_ms: raft.election_timeout_max_ms,
            heartbeat_interval_ms: raft.heartbeat_interval_ms,
            log_bytes_max: raft.log_bytes_max.0 as u64,
            log_tail_bytes: raft.log_tail_bytes.0 as u64,
            park_after: (!park_after.is_zero()).then_some(park_after),
            watch: watch_options(config, watch_metrics),
            ..GroupOptions::default()
        },
        tick_interval: TICK_INTERVAL,
        durability: config.node.durability.name(),
        address: v1::NodeAddress {
            node_id: config.node.id.unwrap_or_default(),
            client_address: config.client_address(),
            peer_address: config.peer_address(),
        },
    }
}

fn service_options(config: &Config, watch_metrics: WatchMetrics) -> ServiceOptions {
    let (limits, watch) = (&config.limits, &config.watch);
    ServiceOptions {
        request_bytes_max: limits.request_bytes_max.0,
        inflight_bytes_max: limits.inflight_bytes_max.0,
        queue_bytes_max: config.engine.queue_bytes_max.0,
        frames_per_stream_max: limits.frames_per_stream_max,
        streams_per_connection_max: limits.streams_per_connection_max,
        connections_max: limits.connections_max,
        handshakes_max: limits.handshakes_max,
        handshake_timeout: Duration::from_millis(limits.handshake_timeout_ms),
        request_timeout: Duration::from_millis(limits.request_timeout_ms),
        watch: WatchLimits {
            window_bytes: watch.window_bytes.0 as u64,
            watches_per_stream_max: watch.watches_per_stream_max as usize,
            watches_max: watch.watches_max as usize,
            progress_interval: Duration::from_millis(watch.progress_interval_ms),
            history_group_bytes_max: watch.history_group_bytes_max.0 as u64,
        },
        watch_metrics,
    }
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Listeners, NodeError> {
        let listen = &config.listen;
        Ok(Listeners {
            peer: bind("listen.peer", listen.peer).await?,
            client: bind("listen.client", listen.client).await?,
            http: bind("listen.http", listen.http).await?,
        })
    }
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|cause| NodeError::Bind { setting, address, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_transport_can_be_told_reaches_it() {
        let mut config = Config::default();
        config.peers.ping_interval_ms = 70;
        config.peers.silent_pings_max = 9;
        config.peers.connect_timeout_ms = 80;
        config.peers.queue_bytes_max = config::ByteSize::mib(11);
        config.peers.append_bytes_max = config::ByteSize::mib(12);
        config.peers.snapshots_incoming_max = 13;
        config.peers.connections_max = 14;
        config.peers.handshakes_max = 15;
        config.peers.handshake_timeout_ms = 16;
        config.raft.snapshot_bytes_per_second = config::ByteSize::mib(17);
        let options = transport_options(&config);
        assert_eq!(options.ping_interval, Duration::from_millis(70));
        assert_eq!((options.silent_pings_max, options.connect_timeout), (9, Duration::from_millis(80)));
        assert_eq!((options.queue_bytes_max, options.append_bytes_max), (11 << 20, 12 << 20));
        assert_eq!((options.snapshots_incoming_max, options.snapshot_bytes_per_second), (13, 17 << 20));
        let accept = options.accept;
        assert_eq!((accept.connections_max, accept.handshakes_max), (14, 15));
        assert_eq!(accept.handshake_timeout, Duration::from_millis(16));
    }

    /// The transport has defaults of its own, for whoever builds one without a configuration.
    #[test]
    fn the_defaults_of_the_configuration_are_those_of_the_transport() {
        let (told, own) = (transport_options(&Config::default()), TransportOptions::default());
        assert_eq!(told.ping_interval, own.ping_interval);
        assert_eq!(
            (told.silent_pings_max, told.connect_timeout),
            (own.silent_pings_max, own.connect_timeout)
        );
        assert_eq!(
            (told.queue_bytes_max, told.append_bytes_max),
            (own.queue_bytes_max, own.append_bytes_max)
        );
        assert_eq!(told.accept.connections_max, own.accept.connections_max);
        assert_eq!(told.accept.handshake_timeout, own.accept.handshake_timeout);
    }
}
