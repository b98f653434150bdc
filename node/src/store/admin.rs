//! Administration: every method checks the operator's epoch first and may be repeated.

use crate::failure::Failure;
use crate::group::Group;
use crate::group::lifecycle;
use crate::ids::{GroupId, NodeId};
use crate::peer_v1 as peer;
use crate::storage_v1 as pb;
use crate::store::{Store, identity, records};
use crate::transport::{NodeAddress, ReplySender};
use dtkv_client::v1;
use dtkv_client::v1::failure::Reason;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a membership change or a transfer may take when the caller names no time.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
const CREATE_TIMEOUT: Duration = Duration::from_secs(5);

fn io_failure(error: std::io::Error) -> Failure {
    Failure::internal(format!("the engine failed: {error}"))
}

impl Store {
    /// Refuses an epoch lower than the highest seen; remembers a higher one, durably.
    async fn check_epoch(&self, epoch: u64) -> Result<(), Failure> {
        let known = self.0.identity.read().operator_epoch;
        if epoch == known {
            return Ok(());
        }
        if epoch < known {
            return Err(Failure::precondition(format!(
                "operator epoch {epoch} is older than {known}, which this node has seen: another operator is in charge"
            )));
        }
        self.update_identity(|identity| identity.operator_epoch = identity.operator_epoch.max(epoch)).await
    }

    async fn update_identity(&self, change: impl FnOnce(&mut identity::NodeIdentity)) -> Result<(), Failure> {
        let changed = {
            let mut identity = self.0.identity.write();
            change(&mut identity);
            identity.clone()
        };
        identity::save(&self.0.engine, &changed).await.map_err(io_failure)
    }

    /// Learns addresses.
    ///
    /// # Errors
    /// PRECONDITION for an old epoch or a node that was tombstoned, INVALID_ARGUMENT for id 0.
    pub async fn add_nodes(&self, request: v1::AddNodesRequest) -> Result<v1::AddNodesResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        self.learn_nodes(&request.nodes).await?;
        Ok(v1::AddNodesResponse {})
    }

    async fn learn_nodes(&self, nodes: &[v1::NodeAddress]) -> Result<(), Failure> {
        for node in nodes {
            let id = NodeId(node.node_id);
            if id == self.node_id() {
                continue;
            }
            if node.node_id == 0 || node.peer_address.is_empty() {
                return Err(Failure::invalid("a node needs an id above 0 and a peer address"));
            }
            if self.0.transport.book().is_tombstone(id) {
                return Err(Failure::precondition(format!(
                    "{id} was removed from the cluster for ever: let the node join under a new id, with an empty disk"
                )));
            }
            self.0.transport.book().put(NodeAddress {
                node: id,
                peer_address: node.peer_address.clone(),
                client_address: node.client_address.clone(),
                incarnation: String::new(),
                tombstone: false,
            })?;
            self.save_node(id).await.map_err(io_failure)?;
        }
        Ok(())
    }

    /// Makes what the address book says of a node durable.
    pub(super) async fn save_node(&self, node: NodeId) -> std::io::Result<()> {
        match self.0.transport.book().get(node) {
            Some(entry) => self.0.engine.write(vec![records::address_op(entry)]).await,
            None => Ok(()),
        }
    }

    /// Gives this node its cluster.
    ///
    /// # Errors
    /// PRECONDITION when it belongs to another one.
    pub async fn join_cluster(
        &self,
        request: v1::JoinClusterRequest,
    ) -> Result<v1::JoinClusterResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        if request.cluster_id.is_empty() {
            return Err(Failure::invalid("the cluster id must not be empty"));
        }
        let _changing = self.0.changing.lock().await;
        let known = self.0.identity.read().cluster_id.clone();
        if !known.is_empty() && known != request.cluster_id {
            return Err(Failure::precondition(format!(
                "{} belongs to cluster {known}, not {}: a node never changes its cluster",
                self.node_id(),
                request.cluster_id
            )));
        }
        if known.is_empty() {
            let cluster_id = request.cluster_id.clone();
            self.update_identity(|identity| identity.cluster_id = cluster_id).await?;
            self.0.transport.set_cluster_id(&request.cluster_id);
        }
        self.learn_nodes(&request.nodes).await?;
        Ok(v1::JoinClusterResponse {})
    }

    fn check_cluster(&self, cluster_id: &str) -> Result<(), Failure> {
        let known = self.0.identity.read().cluster_id.clone();
        match known {
            known if known.is_empty() => {
                Err(Failure::precondition(format!("{} has not joined a cluster yet", self.node_id())))
            }
            known if known == cluster_id => Ok(()),
            known => Err(Failure::precondition(format!(
                "{} belongs to cluster {known}, not {cluster_id}",
                self.node_id()
            ))),
        }
    }

    /// Creates this node's replica of a new group.
    ///
    /// # Errors
    /// PRECONDITION when the group exists with another layout, was destroyed under this very
    /// layout, or the node drains.
    pub async fn bootstrap(&self, request: v1::BootstrapRequest) -> Result<v1::BootstrapResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        self.check_cluster(&request.cluster_id)?;
        let members: BTreeSet<NodeId> = request.members.iter().map(|id| NodeId(*id)).collect();
        if !members.contains(&self.node_id()) || members.len() != request.members.len() {
            let node = self.node_id();
            return Err(Failure::invalid(format!(
                "the members must be distinct and name {node}, which was asked"
            )));
        }
        if request.group_id == 0 {
            return Err(Failure::invalid("group ids begin at 1"));
        }
        self.check_known(&members)?;
        let _changing = self.0.changing.lock().await;
        let id = GroupId(request.group_id);
        let wanted = descriptor_of(&request, &members);
        let existing = records::descriptor(&self.0.engine, id).map_err(io_failure)?;
        let created = match &existing {
            Some(existing) if existing.generation != wanted.generation => {
                self.check_not_destroyed(&wanted)?;
                return Err(Failure::precondition(format!(
                    "{id} exists already, with another layout or other members"
                )));
            }
            Some(_) => false,
            None => {
                self.create(&wanted, 0).await?;
                true
            }
        };
        let leads = request.preferred_leader == 0 || request.preferred_leader == self.node_id().0;
        if leads {
            self.group(id)?.initialize(members).await?;
        }
        Ok(v1::BootstrapResponse { created })
    }

    fn check_not_destroyed(&self, descriptor: &pb::Descriptor) -> Result<(), Failure> {
        let id = GroupId(descriptor.group_id);
        match records::replica_tombstone(&self.0.engine, id).map_err(io_failure)? {
            Some(tombstone) => check_tombstone(&tombstone, descriptor, u64::MAX),
            None => Ok(()),
        }
    }

    /// A member that cannot be reached for want of an address would never vote.
    fn check_known(&self, members: &BTreeSet<NodeId>) -> Result<(), Failure> {
        match members.iter().find(|node| self.address(**node).is_none()) {
            Some(node) => Err(Failure::precondition(format!(
                "{} does not know {node}: add the node to the cluster first",
                self.node_id()
            ))),
            None => Ok(()),
        }
    }

    /// Writes the descriptor and starts an empty replica.
    async fn create(&self, descriptor: &pb::Descriptor, config_index: u64) -> Result<Group, Failure> {
        let id = GroupId(descriptor.group_id);
        if self.0.identity.read().draining {
            return Err(Failure::precondition(format!(
                "{} is draining and takes no new replica",
                self.node_id()
            )));
        }
        self.check_space()?;
        if let Some(tombstone) = records::replica_tombstone(&self.0.engine, id).map_err(io_failure)? {
            check_tombstone(&tombstone, descriptor, config_index)?;
        }
        self.0.engine.write(vec![records::descriptor_op(descriptor)]).await.map_err(io_failure)?;
        self.start_group(descriptor).await.map_err(io_failure)
    }

    /// A leader wants this node to be ready for a learner.
    pub(super) async fn create_replica(
        &self,
        group_id: u32,
        generation: u64,
        call: u64,
        create: peer::CreateReplica,
        reply: ReplySender,
    ) {
        let refused = match self.create_learner(group_id, generation, create).await {
            Ok(()) => String::new(),
            Err(failure) => failure.message,
        };
        let body = peer::message::Body::CreateReplicaReply(peer::CreateReplicaReply { refused });
        reply.send(peer::Message { group_id, generation, call, body: Some(body) });
    }

    async fn create_learner(
        &self,
        group_id: u32,
        generation: u64,
        create: peer::CreateReplica,
    ) -> Result<(), Failure> {
        let _changing = self.0.changing.lock().await;
        let id = GroupId(group_id);
        let nodes: Vec<_> = create
            .nodes
            .into_iter()
            .map(|node| v1::NodeAddress {
                node_id: node.node_id,
                client_address: node.client_address,
                peer_address: node.peer_address,
            })
            .collect();
        self.learn_nodes(&nodes).await?;
        match records::descriptor(&self.0.engine, id).map_err(io_failure)? {
            Some(existing) if existing.generation == generation => Ok(()),
            Some(_) => {
                Err(Failure::precondition(format!("{} has a replica of another {id}", self.node_id())))
            }
            None => {
                let layout_hash = create.layout_hash;
                let descriptor = pb::Descriptor { group_id, generation, layout_hash, members: Vec::new() };
                self.create(&descriptor, create.config_index).await.map(|_| ())
            }
        }
    }

    /// Adds a learner; asks the node to have an empty replica ready first.
    ///
    /// # Errors
    /// NOT_LEADER, PRECONDITION, or a time-out with an unknown outcome.
    pub async fn add_learner(
        &self,
        request: v1::AddLearnerRequest,
    ) -> Result<v1::MembershipResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        let address = request.node.ok_or_else(|| Failure::invalid("the node is missing"))?;
        let node = NodeId(address.node_id);
        let group = self.group(GroupId(request.group_id))?;
        if !group.is_leader() {
            return Err(Failure::not_leader(group.id(), group.leader()));
        }
        group.check_before_learner(node, request.expected_config_index)?;
        self.learn_nodes(&[address]).await?;
        if node != self.node_id() {
            self.ask_for_replica(&group, node).await?;
        }
        let config_index =
            group.add_learner(node, request.expected_config_index, request.wait, CHANGE_TIMEOUT).await?;
        Ok(v1::MembershipResponse { config_index })
    }

    async fn ask_for_replica(&self, group: &Group, node: NodeId) -> Result<(), Failure> {
        let status = group.status_now();
        let members = status.voters.iter().chain(&status.outgoing_voters).chain(&status.learners);
        let nodes = members.filter_map(|id| self.address(NodeId(*id))).map(|address| peer::KnownNode {
            node_id: address.node_id,
            peer_address: address.peer_address,
            client_address: address.client_address,
        });
        let descriptor =
            records::descriptor(&self.0.engine, group.id()).map_err(io_failure)?.unwrap_or_default();
        let create = peer::CreateReplica {
            config_index: status.config_index,
            nodes: nodes.collect(),
            layout_hash: descriptor.layout_hash,
        };
        let message = peer::Message {
            group_id: group.id().0,
            generation: group.generation(),
            call: 0,
            body: Some(peer::message::Body::CreateReplica(create)),
        };
        let call = self.0.transport.call(node, peer::Lane::Control, message);
        let answer = tokio::time::timeout(CREATE_TIMEOUT, call).await;
        let answer = answer
            .map_err(|_| Failure::precondition(format!("{node} does not answer; nothing was changed")))?;
        match answer?.body {
            Some(peer::message::Body::CreateReplicaReply(reply)) if reply.refused.is_empty() => Ok(()),
            Some(peer::message::Body::CreateReplicaReply(reply)) => Err(Failure::precondition(reply.refused)),
            _ => Err(Failure::precondition(format!("{node} refused to create a replica of {}", group.id()))),
        }
    }

    /// Changes voters and learners.
    ///
    /// # Errors
    /// NOT_LEADER, PRECONDITION, or a time-out with an unknown outcome.
    pub async fn change_membership(
        &self,
        request: v1::ChangeMembershipRequest,
    ) -> Result<v1::MembershipResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        let group = self.group(GroupId(request.group_id))?;
        let voters: BTreeSet<NodeId> = request.voters.iter().map(|id| NodeId(*id)).collect();
        let learners: BTreeSet<NodeId> = request.learners.iter().map(|id| NodeId(*id)).collect();
        self.check_quorum_alive(&group, &voters)?;
        if group.is_leader() && !voters.contains(&self.node_id()) {
            return self.leave_to_successor(&group, &voters).await;
        }
        let config_index =
            group.change_membership(request.expected_config_index, voters, learners, CHANGE_TIMEOUT).await?;
        Ok(v1::MembershipResponse { config_index })
    }

    /// A leader that is voted out hands over first, to a voter that stays, and sends the caller
    /// there: so the group is never led by a node that is no member.
    async fn leave_to_successor(
        &self,
        group: &Group,
        voters: &BTreeSet<NodeId>,
    ) -> Result<v1::MembershipResponse, Failure> {
        let status = group.status_now();
        let stays = |id: &&u64| voters.contains(&NodeId(**id)) && self.0.transport.is_connected(NodeId(**id));
        let Some(successor) = status.voters.iter().find(stays).map(|id| NodeId(*id)) else {
            return Err(Failure::precondition(format!(
                "{} would keep none of its voters that answer: change them in two steps",
                group.id()
            )));
        };
        let (leader, _) = group.transfer_leader(Some(successor), TRANSFER_TIMEOUT).await?;
        Err(Failure::not_leader(group.id(), Some(leader)))
    }

    /// No voluntary step may leave a group without a majority of voters that answer.
    fn check_quorum_alive(&self, group: &Group, voters: &BTreeSet<NodeId>) -> Result<(), Failure> {
        let me = self.node_id();
        let silent: Vec<String> = voters
            .iter()
            .filter(|node| **node != me && !self.0.transport.is_connected(**node))
            .map(NodeId::to_string)
            .collect();
        if voters.len() - silent.len() > voters.len() / 2 {
            return Ok(());
        }
        Err(Failure::precondition(format!(
            "{}: the new configuration would have no majority, {} do not answer",
            group.id(),
            silent.join(", ")
        )))
    }

    /// Hands leadership over.
    ///
    /// # Errors
    /// NOT_LEADER, PRECONDITION, or a time-out: the old leader may go on then.
    pub async fn transfer_leader(
        &self,
        request: v1::TransferLeaderRequest,
    ) -> Result<v1::TransferLeaderResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        let group = self.group(GroupId(request.group_id))?;
        let to = (request.to != 0).then_some(NodeId(request.to));
        if let Some(node) = to.filter(|node| *node != self.node_id() && group.is_leader()) {
            self.check_answers(node)?;
        }
        let timeout = match request.timeout_ms {
            0 => TRANSFER_TIMEOUT,
            ms => Duration::from_millis(u64::from(ms)),
        };
        let (leader, term) = group.transfer_leader(to, timeout).await?;
        Ok(v1::TransferLeaderResponse { leader_id: leader.0, term })
    }

    /// A leader that hands over stops serving meanwhile, so it must not be to nobody.
    fn check_answers(&self, node: NodeId) -> Result<(), Failure> {
        if self.0.transport.is_connected(node) {
            return Ok(());
        }
        Err(Failure::precondition(format!("{node} does not answer and cannot take leadership now")))
    }

    /// Gives up leadership for a while.
    ///
    /// # Errors
    /// PRECONDITION for an old epoch.
    pub async fn set_leader_eviction(
        &self,
        request: v1::SetLeaderEvictionRequest,
    ) -> Result<v1::SetLeaderEvictionResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        let until = crate::clock::now() + Duration::from_millis(request.ttl_ms);
        *self.0.evicting_until.lock() = (request.ttl_ms > 0).then_some(until);
        let leaders = self.groups().iter().filter(|group| group.is_leader()).count() as u32;
        Ok(v1::SetLeaderEvictionResponse { leaders })
    }

    /// Takes no new replicas any more, or again.
    ///
    /// # Errors
    /// PRECONDITION for an old epoch.
    pub async fn set_draining(
        &self,
        request: v1::SetDrainingRequest,
    ) -> Result<v1::SetDrainingResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        self.update_identity(|identity| identity.draining = request.draining).await?;
        Ok(v1::SetDrainingResponse { replicas: self.0.groups.read().len() as u32 })
    }

    /// Removes this node's replica after a committed configuration stopped naming it.
    ///
    /// # Errors
    /// PRECONDITION when the configuration known here still names this node at that index.
    pub async fn destroy_replica(
        &self,
        request: v1::DestroyReplicaRequest,
    ) -> Result<v1::DestroyReplicaResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        let _changing = self.0.changing.lock().await;
        let id = GroupId(request.group_id);
        let Some(descriptor) = records::descriptor(&self.0.engine, id).map_err(io_failure)? else {
            return Ok(v1::DestroyReplicaResponse { destroyed: false });
        };
        if let Ok(group) = self.group(id) {
            self.check_removed(&group, request.removed_at_config_index)?;
        }
        self.destroy(&descriptor, request.removed_at_config_index, false).await?;
        Ok(v1::DestroyReplicaResponse { destroyed: true })
    }

    fn check_removed(&self, group: &Group, removed_at: u64) -> Result<(), Failure> {
        let status = group.status_now();
        let me = self.node_id();
        let names_me =
            [&status.voters, &status.outgoing_voters, &status.learners].iter().any(|set| set.contains(&me.0));
        if removed_at == 0 || (names_me && status.config_index >= removed_at) || group.is_leader() {
            return Err(Failure::precondition(format!(
                "the configuration of {} at index {} names {me}: remove it from the group first and say at which index",
                group.id(),
                status.config_index
            )));
        }
        Ok(())
    }

    /// Destroys this node's replica of a group that is to be gone everywhere.
    ///
    /// # Errors
    /// PRECONDITION when the cluster id is another.
    pub async fn destroy_group(
        &self,
        request: v1::DestroyGroupRequest,
    ) -> Result<v1::DestroyGroupResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        self.check_cluster(&request.cluster_id)?;
        let _changing = self.0.changing.lock().await;
        let descriptor =
            records::descriptor(&self.0.engine, GroupId(request.group_id)).map_err(io_failure)?;
        let Some(descriptor) = descriptor else { return Ok(v1::DestroyGroupResponse { destroyed: false }) };
        self.destroy(&descriptor, 0, true).await?;
        Ok(v1::DestroyGroupResponse { destroyed: true })
    }

    /// Stops a replica and deletes all it kept (its descriptor too), in one write with the tombstone: a crash leaves
    /// either the whole replica or none of it.
    async fn destroy(
        &self,
        descriptor: &pb::Descriptor,
        removed_at: u64,
        is_gone: bool,
    ) -> Result<(), Failure> {
        let id = GroupId(descriptor.group_id);
        let group = self.0.groups.write().remove(&id);
        self.0.failed.write().remove(&id);
        if let Some(group) = group {
            group.shutdown().await;
        }
        let mut tombstone =
            records::replica_tombstone(&self.0.engine, id).map_err(io_failure)?.unwrap_or_default();
        tombstone.group_id = id.0;
        if is_gone {
            tombstone.destroyed_generations.push(descriptor.generation);
        } else {
            tombstone.generation = descriptor.generation;
            tombstone.config_index = removed_at;
        }
        let mut ops = lifecycle::delete_ops(id);
        ops.push(records::replica_tombstone_op(&tombstone));
        self.0.engine.write(ops).await.map_err(io_failure)
    }

    /// Forgets a node for ever.
    ///
    /// # Errors
    /// PRECONDITION when a replica here still counts it as a member.
    pub async fn tombstone(&self, request: v1::TombstoneRequest) -> Result<v1::TombstoneResponse, Failure> {
        self.check_epoch(request.epoch).await?;
        let node = NodeId(request.node_id);
        if node == self.node_id() || node.0 == 0 {
            return Err(Failure::invalid(format!("{node} cannot bury itself")));
        }
        for group in self.groups() {
            let status = group.status_now();
            if [&status.voters, &status.outgoing_voters, &status.learners]
                .iter()
                .any(|set| set.contains(&node.0))
            {
                return Err(Failure::precondition(format!("{node} is still a member of {}", group.id())));
            }
        }
        self.0.transport.book().tombstone(node);
        self.save_node(node).await.map_err(io_failure)?;
        Ok(v1::TombstoneResponse {})
    }

    /// The other nodes, as this one knows them.
    pub fn list_nodes(&self) -> v1::ListNodesResponse {
        let me = v1::NodeStatus {
            address: Some(self.0.options.address.clone()),
            connected: true,
            tombstone: false,
            last_contact_ms: 0,
            self_: true,
        };
        let others = self.0.transport.book().list().into_iter().filter(|entry| entry.node != self.node_id());
        let others = others.map(|entry| v1::NodeStatus {
            connected: self.0.transport.is_connected(entry.node),
            tombstone: entry.tombstone,
            last_contact_ms: self
                .0
                .transport
                .last_contact(entry.node)
                .map_or(u64::MAX, |silence| silence.as_millis() as u64),
            self_: false,
            address: Some(public_address(entry)),
        });
        v1::ListNodesResponse { nodes: std::iter::once(me).chain(others).collect() }
    }

    /// A digest over the tree of a replica.
    ///
    /// # Errors
    /// GROUP_NOT_FOUND.
    pub async fn tree_digest(
        &self,
        request: v1::TreeDigestRequest,
    ) -> Result<v1::TreeDigestResponse, Failure> {
        let group = self.group(GroupId(request.group_id))?;
        // Long for a large tree, hence not on a worker of the runtime.
        let digest = tokio::task::spawn_blocking(move || group.digest()).await;
        let (applied_index, digest, nodes) = digest.map_err(|e| Failure::internal(e.to_string()))?;
        Ok(v1::TreeDigestResponse { applied_index, digest: digest.to_string(), nodes })
    }
}

/// An entry of the address book as clients see it.
pub(super) fn public_address(entry: NodeAddress) -> v1::NodeAddress {
    v1::NodeAddress {
        node_id: entry.node.0,
        client_address: entry.client_address,
        peer_address: entry.peer_address,
    }
}

fn check_tombstone(
    tombstone: &pb::ReplicaTombstone,
    descriptor: &pb::Descriptor,
    config_index: u64,
) -> Result<(), Failure> {
    let id = GroupId(tombstone.group_id);
    if tombstone.destroyed_generations.contains(&descriptor.generation) {
        let message = format!("{id} was destroyed under this layout: create it with a new layout hash");
        return Err(Failure::new(Reason::GroupDestroyed, message));
    }
    if tombstone.generation == descriptor.generation && config_index < tombstone.config_index {
        return Err(Failure::precondition(format!(
            "the replica of {id} was removed by the configuration at {}, which is newer than {config_index}",
            tombstone.config_index
        )));
    }
    Ok(())
}

/// The same request gives the same generation on every member.
fn descriptor_of(request: &v1::BootstrapRequest, members: &BTreeSet<NodeId>) -> pb::Descriptor {
    let members: Vec<u64> = members.iter().map(|node| node.0).collect();
    let text = format!("{}/{}/{}/{members:?}", request.cluster_id, request.group_id, request.layout_hash);
    pb::Descriptor {
        group_id: request.group_id,
        generation: xxhash_rust::xxh3::xxh3_64(text.as_bytes()),
        layout_hash: request.layout_hash.clone(),
        members,
    }
}
