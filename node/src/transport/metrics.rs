//! What the transport counts.

use crate::accept::AcceptMetrics;
use crate::ids::NodeId;
use crate::peer_v1::Lane;
use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Metrics of the transport.
#[derive(Clone, Debug)]
pub struct TransportMetrics {
    append: LaneMetrics,
    control: LaneMetrics,
    connects: IntCounterVec,
    connected: IntGaugeVec,
    pub(super) snapshot_sent_bytes: IntCounter,
    pub(super) snapshot_received_bytes: IntCounter,
    pub(super) snapshots_refused: IntCounter,
    refused_hellos: IntCounterVec,
    pub(super) accept: AcceptMetrics,
}

/// Metrics of one lane, over all peers.
#[derive(Clone, Debug)]
pub(super) struct LaneMetrics {
    pub sent: Traffic,
    pub received: Traffic,
    pub queue_bytes: IntGauge,
    pub dropped: IntCounter,
}

/// One direction of a lane.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    bytes: IntCounter,
    messages: IntCounter,
    batches: IntCounter,
}

impl Traffic {
    pub fn batch(&self, messages: usize, bytes: usize) {
        self.bytes.inc_by(bytes as u64);
        self.messages.inc_by(messages as u64);
        self.batches.inc();
    }
}

impl TransportMetrics {
    /// Creates the metrics and registers them.
    ///
    /// # Panics
    /// When the registry already holds them.
    pub fn register(registry: &Registry) -> TransportMetrics {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("valid metric");
            register(registry, counters)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels).expect("valid metric");
            register(registry, gauges)
        };
        let traffic = &["lane", "direction"];
        let bytes = counters("dtkv_transport_bytes_total", "Bytes of messages between nodes.", traffic);
        let messages = counters("dtkv_transport_messages_total", "Messages between nodes.", traffic);
        let batches = counters("dtkv_transport_batches_total", "gRPC messages between nodes.", traffic);
        let queue = gauges("dtkv_transport_queue_bytes", "Bytes that wait to be sent to peers.", &["lane"]);
        let dropped =
            counters("dtkv_transport_dropped_total", "Messages refused by a full queue.", &["lane"]);
        let lane = |lane: &str| LaneMetrics {
            sent: Traffic::of(&bytes, &messages, &batches, lane, "sent"),
            received: Traffic::of(&bytes, &messages, &batches, lane, "received"),
            queue_bytes: queue.with_label_values(&[lane]),
            dropped: dropped.with_label_values(&[lane]),
        };
        let snapshot =
            counters("dtkv_transport_snapshot_bytes_total", "Bytes of snapshot records.", &["direction"]);
        let refused =
            IntCounter::new("dtkv_transport_snapshots_refused_total", "Incoming snapshots refused.")
                .expect("valid metric");
        TransportMetrics {
            append: lane("append"),
            control: lane("control"),
            connects: counters(
                "dtkv_transport_connects_total",
                "Streams opened to a peer.",
                &["peer", "lane"],
            ),
            connected: gauges("dtkv_transport_connected", "1 while the stream stands.", &["peer", "lane"]),
            snapshot_sent_bytes: snapshot.with_label_values(&["sent"]),
            snapshot_received_bytes: snapshot.with_label_values(&["received"]),
            snapshots_refused: register(registry, refused),
            accept: AcceptMetrics {
                open: register(
                    registry,
                    IntGauge::new("dtkv_transport_connections", "Open connections of peers.")
                        .expect("valid metric"),
                ),
                refused: register(
                    registry,
                    IntCounter::new(
                        "dtkv_transport_connections_refused_total",
                        "Connections to the peer port closed because there were too many, or their handshake took too long.",
                    )
                    .expect("valid metric"),
                ),
            },
            refused_hellos: counters("dtkv_transport_refused_hellos_total", "Peers refused.", &["reason"]),
        }
    }

    pub(super) fn lane(&self, lane: Lane) -> &LaneMetrics {
        match lane {
            Lane::Append => &self.append,
            Lane::Control => &self.control,
        }
    }

    pub(super) fn link_up(&self, peer: NodeId, lane: Lane) {
        self.connects.with_label_values(&[&peer.to_string(), lane_name(lane)]).inc();
        self.connected.with_label_values(&[&peer.to_string(), lane_name(lane)]).set(1);
    }

    pub(super) fn link_down(&self, peer: NodeId, lane: Lane) {
        self.connected.with_label_values(&[&peer.to_string(), lane_name(lane)]).set(0);
    }

    pub(super) fn refused_hello(&self, reason: &str) {
        self.refused_hellos.with_label_values(&[reason]).inc();
    }

    #[cfg(test)]
    pub(super) fn refused_hello_count(&self, reason: &str) -> u64 {
        self.refused_hellos.with_label_values(&[reason]).get()
    }

    #[cfg(test)]
    pub(super) fn sent(&self, lane: Lane) -> (u64, u64) {
        let sent = &self.lane(lane).sent;
        (sent.messages.get(), sent.batches.get())
    }
}

impl Traffic {
    fn of(
        bytes: &IntCounterVec,
        messages: &IntCounterVec,
        batches: &IntCounterVec,
        lane: &str,
        direction: &str,
    ) -> Traffic {
        let labels = &[lane, direction];
        Traffic {
            bytes: bytes.with_label_values(labels),
            messages: messages.with_label_values(labels),
            batches: batches.with_label_values(labels),
        }
    }
}

fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Append => "append",
        Lane::Control => "control",
    }
}

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> M {
    registry.register(Box::new(metric.clone())).expect("each registry takes the transport's metrics once");
    metric
}
