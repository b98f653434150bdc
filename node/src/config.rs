//! The node's configuration: read from defaults, a file, the environment and flags, in this order,
//! and validated whole before a port is bound or a directory is touched.

mod sources;
mod validate;
mod value;

pub use sources::{Fault, Faults, Sources};
pub use value::{ByteSize, Durability, LogFormat};

use std::net::SocketAddr;
use std::path::PathBuf;
use value::SettingValue;

/// One setting: where it stands, what it means, and how it is written and read.
pub(crate) struct Setting {
    section: &'static str,
    key: &'static str,
    doc: &'static [&'static str],
    set: fn(&mut Config, &toml::Value) -> Result<(), String>,
    show: fn(&Config) -> Option<String>,
}

impl Setting {
    /// `section.key`.
    fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// Its lines of the default file.
    fn default_lines(&self, config: &Config) -> String {
        let line = format!("#{} = {}", self.key, (self.show)(config).unwrap_or_default());
        format!("{}{}\n", comment(self.doc), line.trim_end())
    }

    /// The environment variable that sets it.
    fn variable(&self) -> String {
        format!("DTKV_{}_{}", self.section, self.key).to_ascii_uppercase()
    }
}

/// Declares every section and setting once: the structs, their defaults, their documentation, the
/// readers of all sources and the printed default file come from the same lines.
macro_rules! settings {
    ($( $(#[doc = $section_doc:literal])* $section:ident: $name:ident {
        $( $(#[doc = $doc:literal])* $key:ident: $kind:ty = $default:expr, )*
    } )*) => {
        $(
            $(#[doc = $section_doc])*
            #[derive(Clone, Debug, PartialEq)]
            pub struct $name { $( $(#[doc = $doc])* pub $key: $kind, )* }

            impl Default for $name {
                fn default() -> $name {
                    $name { $( $key: $default, )* }
                }
            }
        )*

        /// The whole configuration of a node.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Config { $( $(#[doc = $section_doc])* pub $section: $name, )* }

        const SECTIONS: &[(&str, &[&str])] = &[ $( (stringify!($section), &[$($section_doc),*]), )* ];

        const SETTINGS: &[Setting] = &[ $( $( Setting {
            section: stringify!($section),
            key: stringify!($key),
            doc: &[$($doc),*],
            set: |config, value| {
                config.$section.$key = SettingValue::read(value)?;
                Ok(())
            },
            show: |config| config.$section.$key.show(),
        }, )* )* ];
    };
}

settings! {
    /// Who this node is and where it keeps its data.
    node: NodeConfig {
        /// This node's id: positive, never used by any other node of the cluster, not even by one
        /// that is gone. Required.
        id: Option<u64> = None,
        /// Directory of the node's data. It belongs to one node and one process.
        data_dir: PathBuf = PathBuf::from("dtkv-data"),
        /// When a write is answered. "fsync": a majority has it on disk. "os": a majority handed it
        /// to its operating system; a power failure of a majority can lose acknowledged writes.
        durability: Durability = Durability::Fsync,
        /// Free space of the data directory's disk below which writes that grow are refused as
        /// OVERLOADED until there is space again; reads and removes go on. Not set: 512MiB or a
        /// twentieth of the disk, whichever is less. 0: never; a disk that fills up stops the node.
        disk_reserve_bytes: Option<ByteSize> = None,
        /// Longest time that a stopping node takes to hand its leaderships over, in ms.
        handover_timeout_ms: u64 = 5_000,
        /// Worker threads for requests and Raft; 0 = one for each processor.
        worker_threads: u32 = 0,
    }
    /// Addresses.
    listen: ListenConfig {
        /// Where other nodes connect.
        peer: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9331)),
        /// Where clients and administrators connect (gRPC, with reflection and health).
        client: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9332)),
        /// Where /metrics, /healthz, /readyz and the status page are.
        http: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9333)),
        /// host:port that other nodes are told; the address above when not given. Required when
        /// that one is 0.0.0.0 or `[::]`.
        advertised_peer: Option<String> = None,
        /// host:port that clients are told; the address above when not given. Required when that
        /// one is 0.0.0.0 or `[::]`.
        advertised_client: Option<String> = None,
        /// Allows addresses beyond loopback without encryption or authentication: whoever reaches
        /// the ports reads and writes everything.
        insecure_plaintext: bool = false,
    }
    /// What this node is told about the others.
    cluster: ClusterConfig {
        /// Addresses of other nodes, as "ID=PEER_HOST:PORT,CLIENT_HOST:PORT". Optional: nodes learn
        /// each other's addresses when the cluster is made and whenever they connect; this helps
        /// when all of them change at once.
        nodes: Vec<String> = Vec::new(),
    }
    /// Consensus.
    raft: RaftConfig {
        /// Shortest time without a leader after which a follower stands for election, in ms.
        election_timeout_min_ms: u64 = 1_000,
        /// Longest such time; each follower draws its own between the two, in ms.
        election_timeout_max_ms: u64 = 2_000,
        /// How often a leader shows that it is alive, in ms.
        heartbeat_interval_ms: u64 = 250,
        /// A group without traffic for this long stops ticking and costs nothing, in ms; 0 = never.
        park_after_ms: u64 = 10_000,
        /// Fastest that this node sends a snapshot to a follower.
        snapshot_bytes_per_second: ByteSize = ByteSize::mib(100),
        /// Most log that a group keeps for a slow follower; one that is further behind gets a
        /// snapshot.
        log_bytes_max: ByteSize = ByteSize::mib(64),
        /// Log that this node keeps behind its checkpoints, shared by its groups (4MiB each at most):
        /// a member that is a little behind when leadership moves needs no snapshot then.
        log_tail_bytes: ByteSize = ByteSize::mib(32),
    }
    /// The connections between nodes.
    peers: PeersConfig {
        /// How often two nodes ping each other, in ms. At most raft.election_timeout_max_ms.
        ping_interval_ms: u64 = 300,
        /// A node is lost after so many intervals of silence; the parked groups that it leads wake.
        silent_pings_max: u32 = 5,
        /// For a connection to another node and its hello, in ms.
        connect_timeout_ms: u64 = 1_000,
        /// Most bytes that wait to be sent to one node in one lane; what does not fit is dropped and
        /// sent again by Raft.
        queue_bytes_max: ByteSize = ByteSize::mib(64),
        /// Most bytes of log on their way to one node without an answer.
        append_bytes_max: ByteSize = ByteSize::mib(64),
        /// Snapshots received at the same time; more are refused and tried again.
        snapshots_incoming_max: u32 = 4,
        /// Connections that the port for nodes takes.
        connections_max: u32 = 1_000,
        /// Connections to that port in their handshake.
        handshakes_max: u32 = 100,
        /// How long such a handshake may take, and the hello of each stream, in ms.
        handshake_timeout_ms: u64 = 5_000,
    }
    /// The storage engine, one for all groups.
    engine: EngineConfig {
        /// Memory in which writes gather before they are flushed to a table.
        write_buffer_bytes: ByteSize = ByteSize::mib(128),
        /// Most bytes that one synced write carries.
        batch_bytes_max: ByteSize = ByteSize::mib(2),
        /// Most bytes that wait for the disk; beyond that, writes are refused as OVERLOADED.
        queue_bytes_max: ByteSize = ByteSize::mib(64),
    }
    /// What one node takes on.
    limits: LimitsConfig {
        /// Largest request.
        request_bytes_max: ByteSize = ByteSize::of(dtkv_client::limits::REQUEST_BYTES_MAX),
        /// Requests and answers in flight on the whole node; beyond that, requests are refused as
        /// OVERLOADED with a time to wait.
        inflight_bytes_max: ByteSize = ByteSize::mib(256),
        /// Frames in flight on one stream; the node stops reading a stream that has more.
        frames_per_stream_max: u32 = 4_096,
        /// Calls at once on one client connection.
        streams_per_connection_max: u32 = 1_000,
        /// Client connections.
        connections_max: u32 = 10_000,
        /// Client connections in their handshake.
        handshakes_max: u32 = 1_000,
        /// How long such a handshake may take, in ms.
        handshake_timeout_ms: u64 = 5_000,
        /// Deadline of a request that names none, in ms.
        request_timeout_ms: u64 = 5_000,
    }
    /// Watches.
    watch: WatchConfig {
        /// Events kept for those who watch or come back, for all groups of the node together.
        history_bytes_max: ByteSize = ByteSize::mib(256),
        /// The same for a single group.
        history_group_bytes_max: ByteSize = ByteSize::mib(16),
        /// Events are not kept longer than this, in ms.
        history_age_ms: u64 = 300_000,
        /// A stream of watches says at least this often how far it is, in ms; clients that hear
        /// nothing for twice as long go elsewhere.
        progress_interval_ms: u64 = 5_000,
        /// Bytes sent on a stream before the client must acknowledge some.
        window_bytes: ByteSize = ByteSize::mib(1),
        /// Watches on one stream.
        watches_per_stream_max: u32 = 10_000,
        /// Watches on the whole node.
        watches_max: u32 = 1_000_000,
    }
    /// The node's own log output.
    log: LogConfig {
        /// error, warn, info, debug or trace, or a list like "info,dtkv_node::group=debug". The
        /// Raft library stays at error unless the list names it, like "info,openraft=info".
        level: String = "info".to_owned(),
        /// "text" for people, "json" for collectors.
        format: LogFormat = LogFormat::Text,
    }
    /// Prometheus metrics.
    metrics: MetricsConfig {
        /// Metrics of each group, labelled by its id. Their number grows with the number of groups.
        per_group: bool = true,
    }
}

impl Config {
    /// The address that other nodes use.
    pub fn peer_address(&self) -> String {
        self.listen.advertised_peer.clone().unwrap_or_else(|| self.listen.peer.to_string())
    }

    /// The address that clients use.
    pub fn client_address(&self) -> String {
        self.listen.advertised_client.clone().unwrap_or_else(|| self.listen.client.to_string())
    }

    /// The other nodes that the configuration names: id, peer address, client address.
    pub fn known_nodes(&self) -> impl Iterator<Item = (u64, &str, &str)> {
        self.cluster.nodes.iter().filter_map(|entry| validate::parse_node(entry).ok())
    }

    /// The default file: every setting with its meaning and default, commented out.
    pub fn default_file() -> String {
        let config = Config::default();
        let mut text = String::from(
            "# Configuration of a DtKV node. Every line is optional except node.id; what is shown is\n\
             # the default. A setting is also read from the environment (section.key is\n\
             # DTKV_SECTION_KEY) and from flags (--set section.key=value); flags win over the\n\
             # environment, and the environment over this file. Sizes are bytes, or \"64MiB\".\n",
        );
        for (section, doc) in SECTIONS {
            text.push_str(&format!("\n{}[{section}]\n", comment(doc)));
            let settings = SETTINGS.iter().filter(|setting| setting.section == *section);
            let lines: Vec<String> = settings.map(|setting| setting.default_lines(&config)).collect();
            text.push_str(&lines.join("\n"));
        }
        text
    }
}

fn comment(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("#{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, Faults> {
        let mut sources = Sources::default();
        sources.file("dtkv.toml", file);
        sources.environment(environment.iter().map(|(k, v)| (k.to_string(), v.to_string())));
        for flag in flags {
            sources.flag(flag);
        }
        sources.load()
    }

    fn faults(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> String {
        load(file, environment, flags).expect_err("must be refused").to_string()
    }

    #[test]
    fn defaults_are_valid_once_the_node_has_an_id() {
        let config = load("", &[], &["node.id=7"]).expect("valid");
        let expected =
            Config { node: NodeConfig { id: Some(7), ..Default::default() }, ..Default::default() };
        assert_eq!(config, expected);
    }

    #[test]
    fn later_sources_win() {
        let file = "[node]\nid = 1\n[raft]\nheartbeat_interval_ms = 100\n[log]\nlevel = \"warn\"\n";
        let environment = [("DTKV_RAFT_HEARTBEAT_INTERVAL_MS", "200"), ("DTKV_LOG_LEVEL", "debug")];
        let config = load(file, &environment, &["log.level=error"]).expect("valid");
        assert_eq!(config.node.id, Some(1));
        assert_eq!(config.raft.heartbeat_interval_ms, 200);
        assert_eq!(config.log.level, "error");
    }

    #[test]
    fn the_default_file_says_exactly_the_defaults() {
        let text = Config::default_file();
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(' ') && !setting.ends_with('=') => setting,
                _ => line,
            })
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(uncommented.contains("\nelection_timeout_min_ms = 1000\n"), "{uncommented}");
        let config = load(&uncommented, &[], &["node.id=7"]).expect("valid");
        assert_eq!(config, load("", &[], &["node.id=7"]).expect("valid"));
        assert_eq!(load(&text, &[], &["node.id=7"]).expect("valid"), config);
    }

    #[test]
    fn all_faults_are_told_at_once_with_key_value_and_origin() {
        let file = "[raft]\nheartbeat_interval_ms = 900\nelection_timeout_min_ms = \"soon\"\n\
                    [listen]\nclient = \"0.0.0.0:9332\"\n[log]\nfromat = \"json\"\n";
        let text = faults(file, &[("DTKV_LIMITS_CONNECTIONS_MAX", "0")], &["node.id=0", "nonsense"]);
        for expected in [
            "raft.heartbeat_interval_ms = 900 (dtkv.toml)",
            "raft.election_timeout_min_ms = \"soon\" (dtkv.toml)",
            "listen.client",
            "insecure_plaintext",
            "log.fromat",
            "did you mean log.format?",
            "limits.connections_max = \"0\" (environment DTKV_LIMITS_CONNECTIONS_MAX)",
            "node.id = \"0\" (--set)",
            "nonsense",
        ] {
            assert!(text.contains(expected), "no {expected:?} in\n{text}");
        }
    }

    #[test]
    fn the_connections_between_nodes_are_validated_with_everything_else() {
        let text = faults(
            "[node]\nid = 1\n[peers]\nping_interval_ms = 3000\nsilent_pings_max = 1\nqueue_bytes_max = \"1MiB\"\n\
             handshake_timeout_ms = 0\n",
            &[("DTKV_PEERS_CONNECTIONS_MAX", "1")],
            &["peers.snapshots_incoming_max=0", "limits.handshakes_max=0"],
        );
        for expected in [
            "peers.ping_interval_ms = 3000",
            "raft.election_timeout_max_ms (2000)",
            "peers.silent_pings_max",
            "peers.queue_bytes_max",
            "peers.handshake_timeout_ms",
            "peers.connections_max",
            "peers.snapshots_incoming_max",
            "limits.handshakes_max",
        ] {
            assert!(text.contains(expected), "no {expected:?} in\n{text}");
        }
    }

    #[test]
    fn a_missing_id_says_where_to_set_it() {
        let text = faults("", &[], &[]);
        assert!(text.contains("node.id") && text.contains("DTKV_NODE_ID") && text.contains("--id"), "{text}");
    }

    #[test]
    fn unknown_keys_are_faults_in_every_source() {
        let text = faults(
            "[rafft]\nx = 1\n",
            &[("DTKV_RAFT_HARTBEAT", "1")],
            &["node.id=1", "engine.writebuffer=1"],
        );
        for expected in ["rafft", "DTKV_RAFT_HARTBEAT", "engine.writebuffer"] {
            assert!(text.contains(expected), "no {expected:?} in\n{text}");
        }
    }

    #[test]
    fn variables_that_are_not_settings_are_left_alone() {
        // The command line's own variables, and what Kubernetes sets for services named dtkv-node.
        let environment = [
            ("DTKV_ENDPOINTS", "a:1"),
            ("DTKV_NODE_SERVICE_HOST", "10.0.0.1"),
            ("DTKV_NODE_PORT_9332_TCP_ADDR", "10.0.0.1"),
            ("DTKV_NODE_SERVICE_PORT_CLIENT", "9332"),
            ("HOME", "/"),
        ];
        load("", &environment, &["node.id=1"]).expect("valid");
    }

    #[test]
    fn a_file_that_is_not_toml_is_a_fault_with_its_line() {
        let text = faults("[node]\nid == 3\n", &[], &[]);
        assert!(text.contains("dtkv.toml") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn addresses_that_nobody_can_use_are_refused() {
        let text = faults(
            "[node]\nid = 1\n[listen]\ninsecure_plaintext = true\npeer = \"0.0.0.0:9331\"\nhttp = \"127.0.0.1:9332\"\n",
            &[],
            &["listen.advertised_client=nowhere"],
        );
        for expected in ["listen.advertised_peer", "listen.advertised_client", "listen.http"] {
            assert!(text.contains(expected), "no {expected:?} in\n{text}");
        }
    }
}
