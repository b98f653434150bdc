//! When a replica last had word of its leader, and whether that is recent enough to call it ready.
//!
//! The vote on disk names a leader that may be long gone, so a name is no contact. A follower must
//! have heard that very leader, a leader must have been confirmed by a quorum. A parked group says
//! nothing by design; there, the transport's pings to the nodes concerned stand for it.

use crate::clock;
use crate::group::parking::Parking;
use crate::group::raft::TypeConfig;
use crate::group::state_machine::StateMachine;
use crate::ids::NodeId;
use crate::transport::Transport;
use openraft::Instant as _;
use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The contact of one replica with its leader, or of a leader with a quorum.
pub struct Contact {
    node_id: NodeId,
    raft: openraft::Raft<TypeConfig, StateMachine>,
    transport: Transport,
    parking: Arc<Parking>,
    began: Instant,
    heard: Mutex<Heard>,
}

#[derive(Clone, Copy, Default)]
struct Heard {
    leader: Option<(NodeId, Instant)>,
    /// Up to when the pings had vouched for a group that slept and has been woken.
    vouched: Option<Instant>,
}

impl Contact {
    /// No word of anybody yet.
    pub fn new(
        node_id: NodeId,
        raft: openraft::Raft<TypeConfig, StateMachine>,
        transport: Transport,
        parking: Arc<Parking>,
    ) -> Contact {
        Contact { node_id, raft, transport, parking, began: clock::now(), heard: Mutex::default() }
    }

    /// A leader spoke to this replica.
    pub fn note_leader(&self, leader: NodeId) {
        self.heard.lock().leader = Some((leader, clock::now()));
    }

    /// The group is about to be woken: what the pings say now counts until somebody speaks.
    pub fn note_waking(&self) {
        let silence = self.silence_of_nodes(&self.raft.metrics().borrow_watched());
        self.heard.lock().vouched = silence.and_then(|silence| clock::now().checked_sub(silence));
    }

    /// Time since this replica heard a leader, or, on the leader, since a quorum confirmed it; while
    /// the group is parked, since the leader's node or a quorum of nodes was heard. None: never.
    pub fn silence(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        self.silence_towards(&metrics, |_| true)
    }

    /// Whether the leader that this replica knows of was heard, or has been confirmed if it is this
    /// one, within the last `silence_max`.
    pub fn is_recent(&self, silence_max: Duration) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(leader) = metrics.current_leader else { return false };
        let silence = self.silence_towards(&metrics, |from| from == leader);
        silence.is_some_and(|silence| silence <= silence_max)
    }

    /// Whether no leader has spoken for `patience` although the nodes of a majority are there. Most
    /// likely the group went on without this replica, or was destroyed, while its node was away.
    pub fn is_left_alone(&self, patience: Duration) -> bool {
        if self.began.elapsed() < patience || self.silence().is_some_and(|silence| silence < patience) {
            return false;
        }
        let metrics = self.raft.metrics();
        let nodes = self.silence_of_majorities(&metrics.borrow_watched());
        nodes.is_some_and(|silence| silence < patience)
    }

    fn silence_towards(
        &self,
        metrics: &RaftMetrics<TypeConfig>,
        counts: impl Fn(NodeId) -> bool,
    ) -> Option<Duration> {
        if self.parking.is_parked() {
            return self.silence_of_nodes(metrics);
        }
        let heard = *self.heard.lock();
        let own = match metrics.state.is_leader() {
            true => self.silence_of_quorum(metrics),
            false => heard.leader.filter(|(from, _)| counts(*from)).map(|(_, at)| at.elapsed()),
        };
        shortest(own, heard.vouched.map(|at| at.elapsed()))
    }

    fn silence_of_quorum(&self, metrics: &RaftMetrics<TypeConfig>) -> Option<Duration> {
        let mut voters = metrics.membership_config.voter_ids();
        if voters.all(|node| node == self.node_id) {
            return Some(Duration::ZERO);
        }
        metrics.last_quorum_acked.map(|at| at.elapsed())
    }

    fn silence_of_nodes(&self, metrics: &RaftMetrics<TypeConfig>) -> Option<Duration> {
        match metrics.current_leader? {
            leader if leader != self.node_id => self.transport.last_contact(leader),
            _ => self.silence_of_majorities(metrics),
        }
    }

    fn silence_of_majorities(&self, metrics: &RaftMetrics<TypeConfig>) -> Option<Duration> {
        let configs = metrics.membership_config.membership().get_joint_config();
        let silences = configs.iter().map(|voters| self.silence_of_majority(voters));
        silences.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// The shortest time within which a majority of these nodes, this one among them, was heard.
    fn silence_of_majority(&self, voters: &BTreeSet<NodeId>) -> Option<Duration> {
        let of = |node: &NodeId| match *node == self.node_id {
            true => Some(Duration::ZERO),
            false => self.transport.last_contact(*node),
        };
        let mut heard: Vec<Duration> = voters.iter().filter_map(of).collect();
        heard.sort_unstable();
        heard.get(voters.len() / 2).copied()
    }
}

fn shortest(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
