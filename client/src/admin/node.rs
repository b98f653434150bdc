//! Typed calls to one node.

use super::Admin;
use crate::channel::{Address, parse_address};
use crate::error::Error;
use crate::v1::admin_client::AdminClient;
use crate::v1::failure::Reason;
use crate::v1::{self, NodeAddress};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// Names a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By its id; its address is looked up.
    Id(u64),
    /// By its address, `host:port`.
    Address(String),
}

impl From<u64> for Target {
    fn from(id: u64) -> Target {
        Target::Id(id)
    }
}

impl From<&str> for Target {
    fn from(address: &str) -> Target {
        Target::Address(address.to_string())
    }
}

impl From<String> for Target {
    fn from(address: String) -> Target {
        Target::Address(address)
    }
}

/// The calls to one node. Each is one attempt: what failed says whether it happened, and every call
/// may be repeated.
#[derive(Clone)]
pub struct NodeAdmin {
    admin: Admin,
    target: Target,
}

impl NodeAdmin {
    pub(super) fn new(admin: Admin, target: Target) -> NodeAdmin {
        NodeAdmin { admin, target }
    }

    /// Who the node is.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn identity(&self) -> Result<v1::IdentityResponse, Error> {
        self.read(v1::IdentityRequest {}, async |mut admin, request| admin.identity(request).await).await
    }

    /// The limits that it holds requests to.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn limits(&self) -> Result<v1::LimitsResponse, Error> {
        self.read(v1::LimitsRequest {}, async |mut admin, request| admin.limits(request).await).await
    }

    /// The replicas that it hosts.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn list_groups(&self) -> Result<v1::ListGroupsResponse, Error> {
        self.read(v1::ListGroupsRequest {}, async |mut admin, request| admin.list_groups(request).await).await
    }

    /// One of its replicas in detail.
    ///
    /// # Errors
    /// GROUP_NOT_FOUND when it hosts none.
    pub async fn group_status(&self, group_id: u32, confirm: bool) -> Result<v1::GroupStatus, Error> {
        let request = v1::GroupStatusRequest { group_id, confirm };
        self.read(request, async |mut admin, request| admin.group_status(request).await).await
    }

    /// The nodes that it knows.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn list_nodes(&self) -> Result<v1::ListNodesResponse, Error> {
        self.read(v1::ListNodesRequest {}, async |mut admin, request| admin.list_nodes(request).await).await
    }

    /// The digest of its replica's tree.
    ///
    /// # Errors
    /// GROUP_NOT_FOUND when it hosts none.
    pub async fn tree_digest(&self, group_id: u32) -> Result<v1::TreeDigestResponse, Error> {
        let request = v1::TreeDigestRequest { group_id };
        self.read(request, async |mut admin, request| admin.tree_digest(request).await).await
    }

    /// Teaches it the addresses of other nodes.
    ///
    /// # Errors
    /// PRECONDITION when a higher operator epoch was seen or a node is tombstoned.
    pub async fn add_nodes(&self, nodes: Vec<NodeAddress>) -> Result<(), Error> {
        let request = v1::AddNodesRequest { epoch: self.admin.epoch, nodes };
        self.change(request, async |mut admin, request| admin.add_nodes(request).await).await.map(drop)
    }

    /// Gives an empty node its place in a cluster.
    ///
    /// # Errors
    /// PRECONDITION when it belongs to another cluster.
    pub async fn join_cluster(&self, cluster_id: &str, nodes: Vec<NodeAddress>) -> Result<(), Error> {
        let request =
            v1::JoinClusterRequest { epoch: self.admin.epoch, cluster_id: cluster_id.to_string(), nodes };
        self.change(request, async |mut admin, request| admin.join_cluster(request).await).await.map(drop)
    }

    /// Creates its replica of a new group; true when it was not there yet. To be sent to every
    /// member.
    ///
    /// # Errors
    /// PRECONDITION when the group exists with other members or another layout.
    pub async fn bootstrap(
        &self,
        cluster_id: &str,
        group_id: u32,
        members: Vec<u64>,
        layout_hash: &str,
        preferred_leader: Option<u64>,
    ) -> Result<bool, Error> {
        let request = v1::BootstrapRequest {
            epoch: self.admin.epoch,
            cluster_id: cluster_id.to_string(),
            group_id,
            members,
            layout_hash: layout_hash.to_string(),
            preferred_leader: preferred_leader.unwrap_or(0),
        };
        let answer = self.change(request, async |mut admin, request| admin.bootstrap(request).await).await?;
        Ok(answer.created)
    }

    /// Makes it give up leadership for a while; zero ends that. Answers how many groups it still
    /// leads.
    ///
    /// # Errors
    /// PRECONDITION when a higher operator epoch was seen.
    pub async fn set_leader_eviction(&self, ttl: Duration) -> Result<u32, Error> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let request = v1::SetLeaderEvictionRequest { epoch: self.admin.epoch, ttl_ms };
        let answer =
            self.change(request, async |mut admin, request| admin.set_leader_eviction(request).await).await?;
        Ok(answer.leaders)
    }

    /// Makes it take no new replicas, or take them again. Answers how many it still has.
    ///
    /// # Errors
    /// PRECONDITION when a higher operator epoch was seen.
    pub async fn set_draining(&self, draining: bool) -> Result<u32, Error> {
        let request = v1::SetDrainingRequest { epoch: self.admin.epoch, draining };
        let answer =
            self.change(request, async |mut admin, request| admin.set_draining(request).await).await?;
        Ok(answer.replicas)
    }

    /// Removes its replica of a group that has left it; false when there was none.
    ///
    /// # Errors
    /// PRECONDITION when that configuration names the node or is not committed.
    pub async fn destroy_replica(&self, group_id: u32, removed_at_config_index: u64) -> Result<bool, Error> {
        let request =
            v1::DestroyReplicaRequest { epoch: self.admin.epoch, group_id, removed_at_config_index };
        let answer =
            self.change(request, async |mut admin, request| admin.destroy_replica(request).await).await?;
        Ok(answer.destroyed)
    }

    /// Removes its replica of a group that is to be destroyed as a whole; false when there was none.
    ///
    /// # Errors
    /// PRECONDITION when the cluster id is another one.
    pub async fn destroy_group(&self, group_id: u32, cluster_id: &str) -> Result<bool, Error> {
        let request =
            v1::DestroyGroupRequest { epoch: self.admin.epoch, group_id, cluster_id: cluster_id.to_string() };
        let answer =
            self.change(request, async |mut admin, request| admin.destroy_group(request).await).await?;
        Ok(answer.destroyed)
    }

    /// Makes it forget another node for ever.
    ///
    /// # Errors
    /// PRECONDITION when that node is still a member of a group here.
    pub async fn tombstone(&self, node_id: u64) -> Result<(), Error> {
        let request = v1::TombstoneRequest { epoch: self.admin.epoch, node_id };
        self.change(request, async |mut admin, request| admin.tombstone(request).await).await.map(drop)
    }

    async fn read<Q, T, C>(&self, request: Q, call: C) -> Result<T, Error>
    where
        C: AsyncFn(AdminClient<Channel>, Request<Q>) -> Result<Response<T>, Status>,
    {
        self.change(request, call).await.map_err(Error::of_read)
    }

    async fn change<Q, T, C>(&self, request: Q, call: C) -> Result<T, Error>
    where
        C: AsyncFn(AdminClient<Channel>, Request<Q>) -> Result<Response<T>, Status>,
    {
        let deadline = Instant::now() + self.admin.timeout;
        let address = self.address().await?;
        self.admin.call_once(&address, request, deadline, &call).await
    }

    async fn address(&self) -> Result<Address, Error> {
        let id = match &self.target {
            Target::Address(address) => return parse_address(address),
            Target::Id(id) => *id,
        };
        let shared = self.admin.shared();
        if let Some(address) = shared.router.node(id) {
            return Ok(address);
        }
        shared.router.discover(&shared.channels, &[]).await;
        shared.router.node(id).ok_or_else(|| {
            let known: Vec<String> = shared.router.nodes().keys().map(|id| format!("n{id}")).collect();
            let message = format!("n{id} is not a node of this cluster; known are {}", known.join(", "));
            Error::did_not_happen(Reason::Precondition, message)
        })
    }
}
