//! Administration of the one node; changes are only noted.

use super::{CLUSTER_ID, State, Tree, status};
use dtkv_client::limits;
use dtkv_client::v1::admin_server::Admin;
use dtkv_client::v1::*;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub struct Service(pub Arc<State>);

type Answer<T> = Result<Response<T>, Status>;

fn group_status(group_id: u32, tree: &Tree) -> GroupStatus {
    GroupStatus {
        group_id,
        node_id: 1,
        role: Role::Leader.into(),
        term: 2,
        leader_id: 1,
        voters: vec![1],
        config_index: 1,
        commit_index: tree.index,
        applied_index: tree.index,
        tree_nodes: tree.node_count(),
        confirmed: true,
        config_committed: true,
        ready: true,
        ..GroupStatus::default()
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn identity(&self, _: Request<IdentityRequest>) -> Answer<IdentityResponse> {
        let groups = self.0.trees.lock().len() as u32;
        Ok(Response::new(IdentityResponse {
            cluster_id: CLUSTER_ID.into(),
            node_id: 1,
            version: "0.1.0".into(),
            durability: "fsync".into(),
            address: Some(self.0.own_address()),
            uptime_ms: 61_000,
            groups,
            leaders: groups,
            ..IdentityResponse::default()
        }))
    }

    async fn limits(&self, _: Request<LimitsRequest>) -> Answer<LimitsResponse> {
        Ok(Response::new(LimitsResponse {
            key_bytes_max: limits::KEY_BYTES_MAX as u32,
            value_bytes_max: limits::VALUE_BYTES_MAX as u32,
            request_timeout_ms: 5000,
            ..LimitsResponse::default()
        }))
    }

    async fn list_groups(&self, _: Request<ListGroupsRequest>) -> Answer<ListGroupsResponse> {
        let groups = self.0.trees.lock().iter().map(|(id, tree)| group_status(*id, tree)).collect();
        Ok(Response::new(ListGroupsResponse { groups }))
    }

    async fn group_status(&self, request: Request<GroupStatusRequest>) -> Answer<GroupStatus> {
        let id = request.into_inner().group_id;
        let found = self.0.with_tree(id, |tree| group_status(id, tree));
        found.map(Response::new).map_err(|failure| status(&failure))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        let own = NodeStatus {
            address: Some(self.0.own_address()),
            connected: true,
            self_: true,
            ..Default::default()
        };
        Ok(Response::new(ListNodesResponse { nodes: vec![own] }))
    }

    async fn add_nodes(&self, request: Request<AddNodesRequest>) -> Answer<AddNodesResponse> {
        self.0.note(format!("add_nodes {}", request.into_inner().nodes.len()));
        Ok(Response::new(AddNodesResponse {}))
    }

    async fn join_cluster(&self, request: Request<JoinClusterRequest>) -> Answer<JoinClusterResponse> {
        self.0.note(format!("join_cluster {}", request.into_inner().cluster_id));
        Ok(Response::new(JoinClusterResponse {}))
    }

    async fn bootstrap(&self, request: Request<BootstrapRequest>) -> Answer<BootstrapResponse> {
        let request = request.into_inner();
        self.0.note(format!("bootstrap {} on {:?}", request.group_id, request.members));
        let created = !self.0.trees.lock().contains_key(&request.group_id);
        self.0.trees.lock().entry(request.group_id).or_default();
        Ok(Response::new(BootstrapResponse { created }))
    }

    async fn add_learner(&self, request: Request<AddLearnerRequest>) -> Answer<MembershipResponse> {
        let request = request.into_inner();
        let node_id = request.node.unwrap_or_default().node_id;
        self.0.note(format!("add_learner {} n{node_id} wait {}", request.group_id, request.wait));
        Ok(Response::new(MembershipResponse { config_index: 2 }))
    }

    async fn change_membership(
        &self,
        request: Request<ChangeMembershipRequest>,
    ) -> Answer<MembershipResponse> {
        let ChangeMembershipRequest { group_id, expected_config_index, voters, learners, .. } =
            request.into_inner();
        self.0.note(format!(
            "change_membership {group_id} at {expected_config_index} to {voters:?} {learners:?}"
        ));
        Ok(Response::new(MembershipResponse { config_index: 3 }))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Answer<TransferLeaderResponse> {
        let request = request.into_inner();
        self.0.note(format!("transfer_leader {} to {}", request.group_id, request.to));
        Ok(Response::new(TransferLeaderResponse { leader_id: 1, term: 3 }))
    }

    async fn set_leader_eviction(
        &self,
        request: Request<SetLeaderEvictionRequest>,
    ) -> Answer<SetLeaderEvictionResponse> {
        self.0.note(format!("set_leader_eviction {}", request.into_inner().ttl_ms));
        Ok(Response::new(SetLeaderEvictionResponse { leaders: 2 }))
    }

    async fn set_draining(&self, request: Request<SetDrainingRequest>) -> Answer<SetDrainingResponse> {
        self.0.note(format!("set_draining {}", request.into_inner().draining));
        Ok(Response::new(SetDrainingResponse { replicas: 2 }))
    }

    async fn destroy_replica(
        &self,
        request: Request<DestroyReplicaRequest>,
    ) -> Answer<DestroyReplicaResponse> {
        let request = request.into_inner();
        self.0.note(format!("destroy_replica {} at {}", request.group_id, request.removed_at_config_index));
        Ok(Response::new(DestroyReplicaResponse { destroyed: true }))
    }

    async fn destroy_group(&self, request: Request<DestroyGroupRequest>) -> Answer<DestroyGroupResponse> {
        let destroyed = self.0.trees.lock().remove(&request.into_inner().group_id).is_some();
        Ok(Response::new(DestroyGroupResponse { destroyed }))
    }

    async fn tombstone(&self, request: Request<TombstoneRequest>) -> Answer<TombstoneResponse> {
        self.0.note(format!("tombstone {}", request.into_inner().node_id));
        Ok(Response::new(TombstoneResponse {}))
    }

    async fn tree_digest(&self, request: Request<TreeDigestRequest>) -> Answer<TreeDigestResponse> {
        let digest = |tree: &mut Tree| TreeDigestResponse {
            applied_index: tree.index,
            digest: "00112233445566778899aabbccddeeff".into(),
            nodes: tree.node_count(),
        };
        let found = self.0.with_tree(request.into_inner().group_id, digest);
        found.map(Response::new).map_err(|failure| status(&failure))
    }
}
