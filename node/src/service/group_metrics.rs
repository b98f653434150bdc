//! What each replica shows to Prometheus. Gathered when somebody looks: the groups of a node come
//! and go, and nothing is to be paid for between two looks.

use crate::ids::GroupId;
use crate::telemetry::register;
use dtkv_client::v1::{GroupStatus, IdentityResponse, Role};
use parking_lot::Mutex;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

/// A metric of a replica: name, meaning, and where it comes from.
type Column = (&'static str, &'static str, fn(&GroupStatus) -> u64);

const COLUMNS: [Column; 12] = [
    ("dtkv_group_is_leader", "1 where this replica leads.", |s| (s.role() == Role::Leader).into()),
    ("dtkv_group_leader_id", "Node id of the leader as this replica knows it; 0 = none.", |s| s.leader_id),
    ("dtkv_group_is_ready", "1 where this replica serves.", |s| s.ready.into()),
    ("dtkv_group_is_parked", "1 while the group sleeps for lack of traffic.", |s| s.parked.into()),
    ("dtkv_group_term", "Raft term.", |s| s.term),
    ("dtkv_group_last_index", "Index of the last log entry.", |s| s.last_index),
    ("dtkv_group_commit_index", "Index up to which entries are committed.", |s| s.commit_index),
    ("dtkv_group_applied_index", "Index up to which entries are applied.", |s| s.applied_index),
    ("dtkv_group_log_bytes", "Bytes of log kept.", |s| s.log_bytes),
    ("dtkv_group_tree_bytes", "Bytes of the tree in memory.", |s| s.tree_bytes),
    ("dtkv_group_tree_nodes", "Nodes of the tree.", |s| s.tree_nodes),
    (
        "dtkv_group_slowest_member_lag_entries",
        "On the leader: entries that the member furthest behind lacks.",
        lag,
    ),
];

/// Entries that the member furthest behind lacks, as its leader sees it; 0 elsewhere.
pub(super) fn lag(status: &GroupStatus) -> u64 {
    let lags = status.peers.iter().map(|peer| status.last_index.saturating_sub(peer.match_index));
    lags.max().unwrap_or(0)
}

/// Metrics of the node as a whole, and of each of its replicas.
pub struct GroupMetrics {
    groups: IntGauge,
    leaders: IntGauge,
    not_ready: IntGauge,
    info: IntGaugeVec,
    columns: Vec<IntGaugeVec>,
    /// Two looks at the same time would see each other's half-filled columns.
    looking: Mutex<()>,
}

impl GroupMetrics {
    /// Creates the metrics and registers them; `per_group` = false leaves out those of single
    /// groups.
    pub fn register(registry: &Registry, per_group: bool) -> GroupMetrics {
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help).expect("a metric's name is a constant");
            register(registry, Box::new(gauge.clone()));
            gauge
        };
        let vector = |name: &str, help: &str, labels: &[&str]| {
            let vector =
                IntGaugeVec::new(Opts::new(name, help), labels).expect("a metric's name is a constant");
            register(registry, Box::new(vector.clone()));
            vector
        };
        let columns = if per_group { &COLUMNS[..] } else { &[] };
        GroupMetrics {
            groups: gauge("dtkv_node_groups", "Groups with a replica on this node."),
            leaders: gauge("dtkv_node_leaders", "Groups led by this node."),
            not_ready: gauge("dtkv_node_groups_not_ready", "Replicas of this node that do not serve."),
            info: vector("dtkv_node_info", "Always 1.", &["node", "cluster", "version", "durability"]),
            columns: columns.iter().map(|(name, help, _)| vector(name, help, &["group"])).collect(),
            looking: Mutex::new(()),
        }
    }

    /// Fills the metrics with what holds now, and shows them with `render`.
    pub fn look<T>(
        &self,
        identity: &IdentityResponse,
        groups: &[GroupStatus],
        render: impl FnOnce() -> T,
    ) -> T {
        let _looking = self.looking.lock();
        let count = |filter: fn(&&GroupStatus) -> bool| groups.iter().filter(filter).count() as i64;
        self.groups.set(groups.len() as i64);
        self.leaders.set(count(|status| status.role() == Role::Leader));
        self.not_ready.set(count(|status| !status.ready));
        self.info.reset();
        let node = identity.node_id.to_string();
        let labels = [&*node, &identity.cluster_id, &identity.version, &identity.durability];
        self.info.with_label_values(&labels).set(1);
        for (vector, (_, _, value)) in self.columns.iter().zip(COLUMNS) {
            vector.reset();
            for status in groups {
                let label = GroupId(status.group_id).0.to_string();
                vector.with_label_values(&[&label]).set(value(status) as i64);
            }
        }
        render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::render;
    use dtkv_client::v1::PeerProgress;

    fn look(per_group: bool, looks: &[Vec<GroupStatus>]) -> String {
        let registry = Registry::new();
        let metrics = GroupMetrics::register(&registry, per_group);
        let identity = IdentityResponse { node_id: 3, durability: "fsync".to_owned(), ..Default::default() };
        let texts = looks.iter().map(|groups| metrics.look(&identity, groups, || render(&registry)));
        String::from_utf8(texts.last().expect("a look")).expect("text")
    }

    fn leader(group_id: u32) -> GroupStatus {
        let peer = |match_index| PeerProgress { match_index, ..Default::default() };
        GroupStatus {
            group_id,
            role: Role::Leader.into(),
            last_index: 100,
            ready: true,
            peers: vec![peer(100), peer(93)],
            ..Default::default()
        }
    }

    #[test]
    fn a_group_that_left_the_node_leaves_the_metrics() {
        let text = look(true, &[vec![leader(1), leader(2)], vec![leader(2), GroupStatus::default()]]);
        for line in [
            "dtkv_node_groups 2",
            "dtkv_node_leaders 1",
            "dtkv_node_groups_not_ready 1",
            "dtkv_group_is_leader{group=\"2\"} 1",
            "dtkv_group_slowest_member_lag_entries{group=\"2\"} 7",
            "node=\"3\"",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
        assert!(!text.contains("group=\"1\""), "{text}");
    }

    #[test]
    fn metrics_of_single_groups_can_be_left_out() {
        let text = look(false, &[vec![leader(1)]]);
        assert!(text.contains("dtkv_node_leaders 1") && !text.contains("dtkv_group_"), "{text}");
    }
}
