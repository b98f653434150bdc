//! The rules that a configuration must keep.

use super::{ByteSize, Config};
use std::fmt::Display;
use std::net::SocketAddr;

/// Faults as (setting, problem).
type Problems = Vec<(&'static str, String)>;

impl Config {
    /// Everything that breaks a rule, by the name of the setting.
    pub(super) fn validate(&self) -> Problems {
        let mut problems = Problems::new();
        self.validate_node(&mut problems);
        self.validate_addresses(&mut problems);
        self.validate_raft(&mut problems);
        self.validate_peers(&mut problems);
        self.validate_sizes(&mut problems);
        self.validate_watch(&mut problems);
        problems
    }

    fn validate_node(&self, problems: &mut Problems) {
        match self.node.id {
            None => problems.push((
                "node.id",
                "a node needs an id: set it in the file, by DTKV_NODE_ID or by --id".to_owned(),
            )),
            Some(0) => problems.push(("node.id", "must be 1 or more".to_owned())),
            Some(_) => {}
        }
        if self.node.data_dir.as_os_str().is_empty() {
            problems.push(("node.data_dir", "must name a directory".to_owned()));
        }
        within(problems, "node.handover_timeout_ms", self.node.handover_timeout_ms, 0, 600_000);
        within(problems, "node.worker_threads", self.node.worker_threads, 0, 1_024);
        if let Err(error) = self.log.level.parse::<tracing_subscriber::EnvFilter>() {
            problems.push(("log.level", format!("is no log filter: {error}")));
        }
        for entry in &self.cluster.nodes {
            if let Err(problem) = parse_node(entry) {
                problems.push(("cluster.nodes", problem));
            }
        }
    }

    fn validate_addresses(&self, problems: &mut Problems) {
        let listen = &self.listen;
        let all =
            [("listen.peer", listen.peer), ("listen.client", listen.client), ("listen.http", listen.http)];
        for (i, (name, address)) in all.into_iter().enumerate() {
            if address.port() == 0 {
                problems.push((name, "needs a port: others must know it in advance".to_owned()));
            }
            if !address.ip().is_loopback() && !listen.insecure_plaintext {
                let problem = "is not a loopback address, and traffic is neither encrypted nor authenticated: \
                               use 127.0.0.1, or accept that with listen.insecure_plaintext = true";
                problems.push((name, problem.to_owned()));
            }
            for (other, taken) in &all[..i] {
                if clash(address, *taken) {
                    problems.push((name, format!("{address} is also {other}; give each its own port")));
                }
            }
        }
        let advertised = [
            ("listen.advertised_peer", &listen.advertised_peer, listen.peer),
            ("listen.advertised_client", &listen.advertised_client, listen.client),
        ];
        for (name, advertised, address) in advertised {
            match advertised {
                Some(text) if !is_host_and_port(text) => {
                    problems.push((name, "expected HOST:PORT".to_owned()))
                }
                None if address.ip().is_unspecified() => {
                    problems.push((name, format!("is required: nobody can connect to {address}")));
                }
                _ => {}
            }
        }
    }

    fn validate_raft(&self, problems: &mut Problems) {
        let raft = &self.raft;
        within(problems, "raft.election_timeout_min_ms", raft.election_timeout_min_ms, 50, 60_000);
        within(problems, "raft.election_timeout_max_ms", raft.election_timeout_max_ms, 50, 120_000);
        within(problems, "raft.heartbeat_interval_ms", raft.heartbeat_interval_ms, 10, 20_000);
        within(problems, "raft.park_after_ms", raft.park_after_ms, 0, 86_400_000);
        let (min, max) = (raft.election_timeout_min_ms, raft.election_timeout_max_ms);
        if max < min + min / 4 {
            let problem = format!(
                "must exceed raft.election_timeout_min_ms ({min}) by a quarter, or followers stand for election at the same time"
            );
            problems.push(("raft.election_timeout_max_ms", problem));
        }
        if raft.heartbeat_interval_ms * 3 > min {
            let problem = format!(
                "must be at most a third of raft.election_timeout_min_ms ({min}), or one lost heartbeat starts an election"
            );
            problems.push(("raft.heartbeat_interval_ms", problem));
        }
        let (kib, gib) = (ByteSize(1 << 10), ByteSize(1 << 30));
        within(
            problems,
            "raft.snapshot_bytes_per_second",
            raft.snapshot_bytes_per_second,
            kib,
            ByteSize(100 << 30),
        );
        within(problems, "raft.log_bytes_max", raft.log_bytes_max, ByteSize::mib(1), ByteSize(gib.0 * 64));
        within(problems, "raft.log_tail_bytes", raft.log_tail_bytes, ByteSize(0), ByteSize(gib.0 * 64));
    }

    fn validate_peers(&self, problems: &mut Problems) {
        let (peers, gib) = (&self.peers, 1 << 30);
        within(problems, "peers.ping_interval_ms", peers.ping_interval_ms, 10, 60_000);
        within(problems, "peers.silent_pings_max", peers.silent_pings_max, 2, 1_000);
        within(problems, "peers.connect_timeout_ms", peers.connect_timeout_ms, 10, 60_000);
        let longest = self.raft.election_timeout_max_ms;
        if peers.ping_interval_ms > longest {
            let problem = format!(
                "must be at most raft.election_timeout_max_ms ({longest}), or parked groups take their leader for lost"
            );
            problems.push(("peers.ping_interval_ms", problem));
        }
        // A log entry as large as a request must fit.
        let bytes = [
            ("peers.queue_bytes_max", peers.queue_bytes_max),
            ("peers.append_bytes_max", peers.append_bytes_max),
        ];
        for (name, value) in bytes {
            let min = ByteSize::mib(8).max(self.limits.request_bytes_max);
            within(problems, name, value, min, ByteSize(16 * gib));
        }
        within(problems, "peers.snapshots_incoming_max", peers.snapshots_incoming_max, 1, 1_000);
        within(problems, "peers.connections_max", peers.connections_max, 8, 1_000_000);
        within(problems, "peers.handshakes_max", peers.handshakes_max, 1, 1_000_000);
        within(problems, "peers.handshake_timeout_ms", peers.handshake_timeout_ms, 10, 600_000);
    }

    fn validate_sizes(&self, problems: &mut Problems) {
        let (engine, limits) = (&self.engine, &self.limits);
        let gib = 1 << 30;
        within(
            problems,
            "engine.write_buffer_bytes",
            engine.write_buffer_bytes,
            ByteSize::mib(1),
            ByteSize(4 * gib),
        );
        within(
            problems,
            "engine.batch_bytes_max",
            engine.batch_bytes_max,
            ByteSize(64 << 10),
            ByteSize::mib(64),
        );
        within(
            problems,
            "engine.queue_bytes_max",
            engine.queue_bytes_max,
            ByteSize::mib(8),
            ByteSize(16 * gib),
        );
        let request_min = ByteSize::of(dtkv_client::limits::REQUEST_BYTES_MAX);
        within(
            problems,
            "limits.request_bytes_max",
            limits.request_bytes_max,
            request_min,
            ByteSize::mib(64),
        );
        within(
            problems,
            "limits.inflight_bytes_max",
            limits.inflight_bytes_max,
            ByteSize::mib(8),
            ByteSize(64 * gib),
        );
        if limits.inflight_bytes_max < limits.request_bytes_max {
            let problem = format!("must be at least limits.request_bytes_max ({})", limits.request_bytes_max);
            problems.push(("limits.inflight_bytes_max", problem));
        }
        within(problems, "limits.frames_per_stream_max", limits.frames_per_stream_max, 1, 1_000_000);
        within(
            problems,
            "limits.streams_per_connection_max",
            limits.streams_per_connection_max,
            1,
            1_000_000,
        );
        within(problems, "limits.connections_max", limits.connections_max, 1, 1_000_000);
        within(problems, "limits.handshakes_max", limits.handshakes_max, 1, 1_000_000);
        within(problems, "limits.handshake_timeout_ms", limits.handshake_timeout_ms, 10, 600_000);
        within(problems, "limits.request_timeout_ms", limits.request_timeout_ms, 1, 3_600_000);
    }

    fn validate_watch(&self, problems: &mut Problems) {
        let watch = &self.watch;
        let (zero, kib64, gib64) = (ByteSize(0), ByteSize(64 << 10), ByteSize(64 << 30));
        within(problems, "watch.history_bytes_max", watch.history_bytes_max, zero, gib64);
        within(problems, "watch.history_group_bytes_max", watch.history_group_bytes_max, zero, gib64);
        within(problems, "watch.history_age_ms", watch.history_age_ms, 0, 86_400_000);
        within(problems, "watch.progress_interval_ms", watch.progress_interval_ms, 100, 60_000);
        within(problems, "watch.window_bytes", watch.window_bytes, kib64, ByteSize(1 << 30));
        within(problems, "watch.watches_per_stream_max", watch.watches_per_stream_max, 1, 1_000_000);
        within(problems, "watch.watches_max", watch.watches_max, 1, 100_000_000);
    }
}

fn within<T: PartialOrd + Display>(problems: &mut Problems, name: &'static str, value: T, min: T, max: T) {
    if value < min || value > max {
        problems.push((name, format!("must be between {min} and {max}, is {value}")));
    }
}

fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let same_host = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && same_host
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Reads an entry of `cluster.nodes`: id, peer address, client address.
///
/// # Errors
/// What was expected instead.
pub(super) fn parse_node(entry: &str) -> Result<(u64, &str, &str), String> {
    let parts = entry.split_once('=').and_then(|(id, rest)| Some((id.trim(), rest.split_once(',')?)));
    let found = parts.and_then(|(id, (peer, client))| Some((id.parse().ok()?, peer.trim(), client.trim())));
    match found {
        Some((id, peer, client)) if id > 0 && is_host_and_port(peer) && is_host_and_port(client) => {
            Ok((id, peer, client))
        }
        _ => Err(format!("expected \"ID=PEER_HOST:PORT,CLIENT_HOST:PORT\", found {entry:?}")),
    }
}
