//! What a replica says of itself.

use crate::clock;
use crate::failure::Failure;
use crate::group::Group;
use crate::group::raft::TypeConfig;
use crate::ids::NodeId;
use dtkv_client::v1::{self, Consistency, Role};
use openraft::async_runtime::WatchReceiver;
use openraft::{RaftMetrics, ServerState};
use std::time::Duration;

/// How long a confirmation by a quorum may take.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

impl Group {
    /// The state of this replica. With `confirm`, a leader first asks a quorum whether it still is
    /// one; a replica that does not lead answers unconfirmed.
    ///
    /// # Errors
    /// When a confirmation was asked for and the quorum did not answer.
    pub async fn status(&self, confirm: bool) -> Result<v1::GroupStatus, Failure> {
        let mut confirmed = false;
        if confirm && self.is_leader() {
            self.wake().await?;
            self.0.reads.permit(Consistency::Linearizable, clock::now() + CONFIRM_TIMEOUT).await?;
            confirmed = true;
        }
        Ok(v1::GroupStatus { confirmed, ..self.status_now() })
    }

    /// The state of this replica as it knows it, without asking anybody.
    pub fn status_now(&self) -> v1::GroupStatus {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched().clone();
        let config = metrics.membership_config.membership();
        let mut joint = config.get_joint_config().iter().rev();
        let ids = |set: Option<&std::collections::BTreeSet<NodeId>>| {
            set.map(|set| set.iter().map(|node| node.0).collect()).unwrap_or_default()
        };
        let (tree_bytes, tree_nodes) = {
            let state = self.0.replica.state();
            (state.machine.bytes(), state.machine.tree.node_count())
        };
        v1::GroupStatus {
            group_id: self.id().0,
            node_id: self.node_id().0,
            role: role(metrics.state).into(),
            term: metrics.vote.leader_id.term,
            leader_id: metrics.current_leader.map_or(0, |node| node.0),
            voters: ids(joint.next()),
            outgoing_voters: ids(joint.next()),
            learners: config.learner_ids().map(|node| node.0).collect(),
            config_index: metrics.membership_config.log_id().map_or(0, |id| id.index()),
            config_committed: metrics.committed_membership_config.log_id()
                == metrics.membership_config.log_id(),
            last_index: metrics.last_log_index.unwrap_or(0),
            commit_index: metrics.local_committed.map_or(0, |id| id.index()),
            applied_index: self.0.replica.applied_index(),
            purged_index: metrics.purged.map_or(0, |id| id.index()),
            log_bytes: self.0.log.log_bytes(),
            tree_bytes,
            tree_nodes,
            peers: self.peers(&metrics),
            confirmed: false,
            parked: self.is_parked(),
            last_contact_ms: self.0.contact.silence().map_or(u64::MAX, millis),
            ready: self.is_ready(),
            failure: metrics.running_state.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        }
    }

    fn peers(&self, metrics: &RaftMetrics<TypeConfig>) -> Vec<v1::PeerProgress> {
        let Some(replication) = &metrics.replication else { return Vec::new() };
        let others = replication.iter().filter(|(node, _)| **node != self.node_id());
        others
            .map(|(node, matched)| v1::PeerProgress {
                node_id: node.0,
                match_index: matched.map_or(0, |id| id.index()),
                last_contact_ms: self.0.transport.last_contact(*node).map_or(u64::MAX, millis),
                snapshot_in_flight: self.0.transport.is_sending_snapshot(*node, self.id()),
            })
            .collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Shutdown,
    }
}
