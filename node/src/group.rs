//! One replica of one group, on openraft.
//!
//! `propose` turns frames into log entries, `log_store` keeps them, `state_machine` applies them to
//! the tree in `replica`, `read` answers from it, `snapshot` moves it to others, `membership`
//! changes who takes part, `parking` lets an idle group sleep, `contact` knows when a leader was
//! last heard, `watch` shows the replica to watches, `lifecycle` starts and ends it all.
//! `group_clock` is the time that leases are measured with, `expiry` ends them.
//! `network` and `inbound` are its two ends of the transport.

pub mod contact;
mod expiry;
pub mod group_clock;
pub mod inbound;
pub mod lifecycle;
pub mod log_store;
pub mod membership;
pub mod metrics;
pub mod network;
pub mod parking;
pub mod propose;
pub mod raft;
pub mod read;
pub mod receive;
pub mod replica;
pub mod reply;
pub mod snapshot;
pub mod state_machine;
pub mod status;
pub mod upkeep;
pub mod watch;

use crate::clock;
use crate::failure::Failure;
use crate::group::contact::Contact;
use crate::group::expiry::Scheduler;
use crate::group::inbound::GroupInbound;
use crate::group::log_store::LogStore;
use crate::group::metrics::GroupMetrics;
use crate::group::parking::Parking;
use crate::group::propose::{Proposals, WriteFrame};
use crate::group::raft::TypeConfig;
use crate::group::read::{ReadFrame, Reads};
use crate::group::replica::Replica;
use crate::group::state_machine::StateMachine;
use crate::group::upkeep::Upkeep;
use crate::ids::{GroupId, NodeId};
use crate::transport::Transport;
use crate::tree::{ClientId, Digest, ListPage, ListQuery, OwnedQuery};
use crate::watch::WatchOptions;
use dtkv_client::v1;
use openraft::async_runtime::WatchReceiver;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How a group behaves. Every replica of a node has the same options.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// Shortest silence of a leader after which a follower stands for election, in ms.
    pub election_timeout_min_ms: u64,
    /// Longest.
    pub election_timeout_max_ms: u64,
    /// How often a leader that has nothing to say shows that it lives, in ms.
    pub heartbeat_interval_ms: u64,
    /// A checkpoint begins after so many bytes of commands ...
    pub checkpoint_log_bytes: u64,
    /// ... or after this time, whichever comes first.
    pub checkpoint_interval: Duration,
    /// Log kept for a slow follower; beyond it, that follower gets a snapshot.
    pub log_bytes_max: u64,
    /// Log that the replicas of a node keep behind their checkpoints, all together, for members that
    /// are a little behind when leadership moves.
    pub log_tail_bytes: u64,
    /// A group without traffic for this long is parked; None = never.
    pub park_after: Option<Duration>,
    /// History and counters of watches.
    pub watch: WatchOptions,
}

impl Default for GroupOptions {
    fn default() -> GroupOptions {
        GroupOptions {
            election_timeout_min_ms: 1000,
            election_timeout_max_ms: 2000,
            heartbeat_interval_ms: 250,
            checkpoint_log_bytes: 32 << 20,
            checkpoint_interval: Duration::from_secs(1),
            log_bytes_max: 64 << 20,
            log_tail_bytes: 32 << 20,
            park_after: Some(Duration::from_secs(10)),
            watch: WatchOptions::default(),
        }
    }
}

type Raft = openraft::Raft<TypeConfig, StateMachine>;

struct Inner {
    id: GroupId,
    node_id: NodeId,
    generation: u64,
    options: GroupOptions,
    raft: Raft,
    replica: Arc<Replica>,
    log: LogStore,
    proposals: Arc<Proposals>,
    reads: Arc<Reads>,
    inbound: GroupInbound<StateMachine>,
    transport: Transport,
    parking: Arc<Parking>,
    contact: Arc<Contact>,
    upkeep: Upkeep,
    metrics: GroupMetrics,
    /// Set once, right after the start.
    expiry: OnceLock<Scheduler>,
}

/// A handle on one replica of one group.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

impl Group {
    /// The group.
    pub fn id(&self) -> GroupId {
        self.0.id
    }

    /// This node.
    pub fn node_id(&self) -> NodeId {
        self.0.node_id
    }

    /// Tells this group from an earlier one of the same id that was destroyed.
    pub fn generation(&self) -> u64 {
        self.0.generation
    }

    fn raft(&self) -> &Raft {
        &self.0.raft
    }

    /// Proposes packed writes; never blocks. The reply comes exactly once.
    pub fn propose(&self, frame: WriteFrame) {
        self.0.parking.touch();
        if self.0.parking.is_parked() {
            self.0.proposals.pause();
            self.0.proposals.propose(frame);
            let group = self.clone();
            tokio::spawn(async move {
                // A group that cannot be woken refuses the frames itself, each with its reason.
                let _ = group.wake().await;
                group.0.proposals.resume();
            });
            return;
        }
        self.0.proposals.propose(frame);
    }

    /// Reads packed gets; never blocks for long. The reply comes exactly once.
    pub fn read(&self, frame: ReadFrame) {
        self.0.parking.touch();
        if self.0.parking.is_parked() && frame.consistency != v1::Consistency::Stale {
            let group = self.clone();
            tokio::spawn(async move {
                let _ = group.wake().await;
                group.0.reads.read(frame);
            });
            return;
        }
        self.0.reads.read(frame);
    }

    /// Lists a directory. The request has been checked.
    ///
    /// # Errors
    /// When this replica cannot answer.
    pub async fn list(
        &self,
        request: &v1::ListRequest,
        deadline: Instant,
    ) -> Result<v1::ListResponse, Failure> {
        let lag_ms = self.permit_list(request.consistency(), deadline).await?;
        let query = ListQuery {
            key: &request.key,
            limit: request.limit,
            continuation: &request.continuation,
            keys_only: request.keys_only,
            recursive: request.recursive,
        };
        let state = self.0.replica.state();
        Ok(self.page(state.machine.tree.list(&query), state.applied_index(), lag_ms))
    }

    /// Lists what a client owns. The request has been checked.
    ///
    /// # Errors
    /// When this replica cannot answer.
    pub async fn list_owned(
        &self,
        owner: ClientId,
        request: &v1::ListOwnedRequest,
        deadline: Instant,
    ) -> Result<v1::ListResponse, Failure> {
        let lag_ms = self.permit_list(request.consistency(), deadline).await?;
        let query = OwnedQuery {
            owner,
            limit: request.limit,
            continuation: &request.continuation,
            keys_only: request.keys_only,
        };
        let state = self.0.replica.state();
        Ok(self.page(state.machine.tree.list_owned(&query), state.applied_index(), lag_ms))
    }

    async fn permit_list(
        &self,
        consistency: v1::Consistency,
        deadline: Instant,
    ) -> Result<Option<u64>, Failure> {
        self.0.parking.touch();
        if consistency != v1::Consistency::Stale {
            self.wake().await?;
        }
        self.0.reads.permit(consistency, deadline).await
    }

    fn page(&self, page: Result<ListPage, v1::Code>, index: u64, lag_ms: Option<u64>) -> v1::ListResponse {
        let mut response = v1::ListResponse { index, lag_ms, ..Default::default() };
        match page {
            Ok(page) => {
                let clock_ms = self.0.replica.clock_ms();
                response.nodes = page.nodes.into_iter().map(|node| node.into_message(clock_ms)).collect();
                response.continuation = page.continuation.into();
            }
            Err(code) => response.code = code.into(),
        }
        response
    }

    /// A digest over the state, the applied index that it belongs to, and the number of nodes.
    pub fn digest(&self) -> (u64, Digest, u64) {
        let state = self.0.replica.state();
        (state.applied_index(), state.machine.digest(), state.machine.tree.node_count())
    }

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.0.raft.is_leader()
    }

    /// The leader as this replica knows it.
    pub fn leader(&self) -> Option<NodeId> {
        self.0.raft.server_metrics().borrow_watched().current_leader
    }

    /// The term as this replica knows it.
    pub fn term(&self) -> u64 {
        self.0.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    /// Whether the replica has applied what it held when it started and is in touch with its leader,
    /// or, as the leader, with a quorum.
    pub fn is_ready(&self) -> bool {
        let silence_max = 2 * Duration::from_millis(self.0.options.election_timeout_max_ms);
        self.0.upkeep.is_recovered() && self.0.contact.is_recent(silence_max)
    }

    /// Whether nobody leads this replica although its members' nodes are there. It must not make its
    /// node look unfit for all other groups.
    pub fn is_left_alone(&self) -> bool {
        let patience = 5 * Duration::from_millis(self.0.options.election_timeout_max_ms);
        self.0.contact.is_left_alone(patience)
    }

    /// Work that is done every now and then: deadlines, checkpoints, the length of the log, sleep.
    ///
    /// `log_tail_bytes` is this replica's share of the log that the node keeps behind checkpoints.
    pub fn tick(&self, log_tail_bytes: u64) {
        let now = clock::now();
        let expired = self.0.proposals.expire(now);
        self.0.metrics.proposals_expired.inc_by(expired as u64);
        self.upkeep(now, log_tail_bytes);
        self.0.replica.hub().trim();
        self.park_if_idle();
    }
}
