//! How a replica starts and ends.

use crate::clock;
use crate::engine::{Engine, WriteOp};
use crate::failure::Failure;
use crate::group::contact::Contact;
use crate::group::inbound::GroupInbound;
use crate::group::log_store::LogStore;
use crate::group::metrics::GroupMetrics;
use crate::group::network::GroupNetwork;
use crate::group::parking::Parking;
use crate::group::propose::Proposals;
use crate::group::read::Reads;
use crate::group::replica::Replica;
use crate::group::state_machine::StateMachine;
use crate::group::upkeep::Upkeep;
use crate::group::{Group, GroupOptions, Inner};
use crate::ids::{GroupId, NodeId};
use crate::keyspace::{self, Family};
use crate::peer_v1 as pb;
use crate::planted::{self, Fault};
use crate::transport::{ReplySender, Transport};
use openraft::SnapshotPolicy;
use openraft::errors::{InitializeError, RaftError};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The part of the shortest election timeout for which a leader trusts the last acknowledgement of
/// a quorum; the rest is the margin for clocks that run at different rates.
const LEASE_PART: f64 = 0.8;

/// What a replica is made from.
pub struct GroupParts {
    /// The group.
    pub id: GroupId,
    /// This node.
    pub node_id: NodeId,
    /// Tells this group from earlier ones of the same id.
    pub generation: u64,
    /// The same for every replica of a node.
    pub options: GroupOptions,
    /// The node's engine.
    pub engine: Engine,
    /// The node's transport.
    pub transport: Transport,
    /// The node's counters.
    pub metrics: GroupMetrics,
}

impl Group {
    /// Loads a replica from disk (an empty one when there is nothing) and starts it.
    ///
    /// # Errors
    /// When the disk fails, a record is damaged, or the log has a hole.
    pub async fn start(parts: GroupParts) -> io::Result<Group> {
        let (engine, id) = (parts.engine.clone(), parts.id);
        let (watch, metrics) = (parts.options.watch.clone(), parts.metrics.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let replica = Replica::open(engine.clone(), id, &watch, metrics)?;
            Ok::<_, io::Error>((replica, LogStore::open(engine, id)?))
        });
        let (replica, log) = opened.await.map_err(io::Error::other)??;
        let replica = Arc::new(replica);
        let recover_to = log.last_index();
        let raft = openraft::Raft::new(
            parts.node_id,
            Arc::new(raft_config(&parts.options)?),
            GroupNetwork::new(parts.transport.clone(), id, parts.generation),
            log.clone(),
            StateMachine::new(replica.clone()),
        )
        .await
        .map_err(|e| io::Error::other(format!("{id}: {e}")))?;
        let part = if planted::has(Fault::LeaseTooLong) { 100.0 } else { LEASE_PART };
        let lease = Duration::from_millis((parts.options.election_timeout_min_ms as f64 * part) as u64);
        let now = clock::now();
        let parking = Arc::new(Parking::new(now));
        let contact = Contact::new(parts.node_id, raft.clone(), parts.transport.clone(), parking.clone());
        let contact = Arc::new(contact);
        let reads =
            Reads::new(id, raft.clone(), replica.clone(), contact.clone(), lease, parts.metrics.clone());
        let group = Group(Arc::new(Inner {
            id,
            node_id: parts.node_id,
            generation: parts.generation,
            proposals: Arc::new(Proposals::new(id, raft.clone(), replica.clone(), parts.metrics.clone())),
            reads: Arc::new(reads),
            inbound: GroupInbound::new(raft.clone(), id, parts.generation),
            options: parts.options,
            raft,
            replica,
            log,
            transport: parts.transport,
            parking,
            contact,
            upkeep: Upkeep::new(now, recover_to),
            metrics: parts.metrics,
        }));
        group.elect_if_alone().await;
        Ok(group)
    }

    /// Nobody else can lead a group of one voter: there is nothing to wait for.
    async fn elect_if_alone(&self) {
        let me = self.node_id();
        let is_alone =
            self.raft().with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([me]));
        if is_alone.await.unwrap_or(false) {
            self.elect().await;
        }
    }

    /// Writes the first configuration into an empty replica; nothing happens when it has one.
    ///
    /// # Errors
    /// When the members are refused or the replica stops.
    pub async fn initialize(&self, members: BTreeSet<NodeId>) -> Result<(), Failure> {
        let members: std::collections::BTreeMap<_, _> =
            members.into_iter().map(|node| (node, openraft::EmptyNode::new())).collect();
        match self.raft().initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error)) => Err(Failure::precondition(format!("{}: {error}", self.id()))),
            Err(RaftError::Fatal(_)) => Err(Failure::stopping(self.id())),
        }
    }

    /// Stands for election at once.
    pub async fn elect(&self) {
        let _ = self.raft().trigger().elect(true).await;
    }

    /// A message of a peer for this replica.
    pub fn message(&self, from: NodeId, message: pb::Message, reply: ReplySender) {
        if let Some(pb::message::Body::Park(park)) = &message.body {
            let parked = self.park_on_request(park);
            let answer = pb::message::Body::ParkReply(pb::ParkReply { parked });
            reply.send(pb::Message { call: message.call, ..self.message_of(answer) });
            return;
        }
        if matches!(message.body, Some(pb::message::Body::Append(_))) {
            self.0.contact.note_leader(from);
        }
        // First the message, then the clock: the message itself may be the leader's sign of life
        // that keeps a replica that slept long from standing for election.
        self.0.inbound.message(from, message, reply);
        self.start_ticking();
    }

    /// Hands leadership over if this replica leads and another voter can take it. Without time for
    /// it, nothing is tried.
    pub async fn hand_over(&self, timeout: Duration) {
        if timeout.is_zero() || !self.is_leader() || self.successors().is_empty() {
            return;
        }
        if let Err(failure) = self.transfer_leader(None, timeout).await {
            tracing::warn!(group = %self.id(), %failure, "leadership was not handed over");
        }
    }

    /// Stops the replica: new requests are refused, those on their way are answered.
    pub async fn shutdown(&self) {
        self.0.proposals.close();
        self.0.replica.hub().close(Failure::stopping(self.id()));
        self.finish_proposals(clock::now() + Duration::from_secs(2)).await;
        if let Err(error) = self.raft().shutdown().await {
            tracing::warn!(group = %self.id(), %error, "replica ended with an error");
        }
        self.0.proposals.abandon();
    }

    async fn finish_proposals(&self, deadline: Instant) {
        while self.0.proposals.in_flight() > 0 && clock::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Everything that a replica keeps on disk, to be deleted after it has stopped.
pub fn delete_ops(id: GroupId) -> Vec<WriteOp> {
    let ranges = [
        (Family::Log, keyspace::group_log_range(id)),
        (Family::State, keyspace::group_state_range(id)),
        (Family::Meta, keyspace::group_meta_range(id)),
    ];
    ranges.into_iter().map(|(family, (from, to))| WriteOp::DeleteRange { family, from, to }).collect()
}

fn raft_config(options: &GroupOptions) -> io::Result<openraft::Config> {
    let config = openraft::Config {
        cluster_name: "dtkv".to_owned(),
        election_timeout_min: options.election_timeout_min_ms,
        election_timeout_max: options.election_timeout_max_ms,
        heartbeat_interval: options.heartbeat_interval_ms,
        // Checkpoints and purges follow bytes and time, see `upkeep`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // The log reader bounds a batch in bytes; see `log_store`.
        max_payload_entries: 1024,
        // A snapshot may be large and its stream is rate limited; progress is watched by transport.
        install_snapshot_timeout: 3_600_000,
        enable_pre_vote: Some(true),
        // What was applied since the last checkpoint is not in the state that a restart loads. A
        // leader that went on in its old term would not know how far it had committed, and would
        // answer reads from that older state.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    config.validate().map_err(io::Error::other)
}
