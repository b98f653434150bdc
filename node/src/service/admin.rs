//! Administration, delegated to the store.

use crate::failure::Failure;
use crate::ids::GroupId;
use crate::service::{Service, status};
use crate::store::Store;
use dtkv_client::limits;
use dtkv_client::v1::admin_server::Admin;
use dtkv_client::v1::{self};
use std::future::Future;
use tonic::{Request, Response, Status};

/// A unary call of the Admin service.
type Answer<A> = Result<Response<A>, Status>;

#[tonic::async_trait]
impl Admin for Service {
    async fn identity(&self, _: Request<v1::IdentityRequest>) -> Answer<v1::IdentityResponse> {
        Ok(Response::new(self.0.store.identity()))
    }

    async fn limits(&self, _: Request<v1::LimitsRequest>) -> Answer<v1::LimitsResponse> {
        Ok(Response::new(self.limits_response()))
    }

    async fn list_groups(&self, request: Request<v1::ListGroupsRequest>) -> Answer<v1::ListGroupsResponse> {
        self.ask_store("ListGroups", request, |store, _| async move {
            Ok(v1::ListGroupsResponse { groups: statuses(&store) })
        })
        .await
    }

    async fn group_status(&self, request: Request<v1::GroupStatusRequest>) -> Answer<v1::GroupStatus> {
        self.ask_store("GroupStatus", request, |store, request| async move {
            store.group(GroupId(request.group_id))?.status(request.confirm).await
        })
        .await
    }

    async fn list_nodes(&self, request: Request<v1::ListNodesRequest>) -> Answer<v1::ListNodesResponse> {
        self.ask_store("ListNodes", request, |store, _| async move { Ok(store.list_nodes()) }).await
    }

    async fn add_nodes(&self, request: Request<v1::AddNodesRequest>) -> Answer<v1::AddNodesResponse> {
        self.ask_store("AddNodes", request, |store, request| async move { store.add_nodes(request).await })
            .await
    }

    async fn join_cluster(
        &self,
        request: Request<v1::JoinClusterRequest>,
    ) -> Answer<v1::JoinClusterResponse> {
        self.ask_store(
            "JoinCluster",
            request,
            |store, request| async move { store.join_cluster(request).await },
        )
        .await
    }

    async fn bootstrap(&self, request: Request<v1::BootstrapRequest>) -> Answer<v1::BootstrapResponse> {
        self.ask_store("Bootstrap", request, |store, request| async move { store.bootstrap(request).await })
            .await
    }

    async fn add_learner(&self, request: Request<v1::AddLearnerRequest>) -> Answer<v1::MembershipResponse> {
        self.ask_store(
            "AddLearner",
            request,
            |store, request| async move { store.add_learner(request).await },
        )
        .await
    }

    async fn change_membership(
        &self,
        request: Request<v1::ChangeMembershipRequest>,
    ) -> Answer<v1::MembershipResponse> {
        self.ask_store("ChangeMembership", request, |store, request| async move {
            store.change_membership(request).await
        })
        .await
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Answer<v1::TransferLeaderResponse> {
        self.ask_store("TransferLeader", request, |store, request| async move {
            store.transfer_leader(request).await
        })
        .await
    }

    async fn set_leader_eviction(
        &self,
        request: Request<v1::SetLeaderEvictionRequest>,
    ) -> Answer<v1::SetLeaderEvictionResponse> {
        self.ask_store("SetLeaderEviction", request, |store, request| async move {
            store.set_leader_eviction(request).await
        })
        .await
    }

    async fn set_draining(
        &self,
        request: Request<v1::SetDrainingRequest>,
    ) -> Answer<v1::SetDrainingResponse> {
        self.ask_store(
            "SetDraining",
            request,
            |store, request| async move { store.set_draining(request).await },
        )
        .await
    }

    async fn destroy_replica(
        &self,
        request: Request<v1::DestroyReplicaRequest>,
    ) -> Answer<v1::DestroyReplicaResponse> {
        self.ask_store("DestroyReplica", request, |store, request| async move {
            store.destroy_replica(request).await
        })
        .await
    }

    async fn destroy_group(
        &self,
        request: Request<v1::DestroyGroupRequest>,
    ) -> Answer<v1::DestroyGroupResponse> {
        self.ask_store(
            "DestroyGroup",
            request,
            |store, request| async move { store.destroy_group(request).await },
        )
        .await
    }

    async fn tombstone(&self, request: Request<v1::TombstoneRequest>) -> Answer<v1::TombstoneResponse> {
        self.ask_store("Tombstone", request, |store, request| async move { store.tombstone(request).await })
            .await
    }

    async fn tree_digest(&self, request: Request<v1::TreeDigestRequest>) -> Answer<v1::TreeDigestResponse> {
        self.ask_store(
            "TreeDigest",
            request,
            |store, request| async move { store.tree_digest(request).await },
        )
        .await
    }
}

impl Service {
    /// Runs an administrative step on a task of its own: a caller that goes away does not leave it
    /// half done.
    async fn ask_store<Q, A, F>(
        &self,
        method: &'static str,
        request: Request<Q>,
        work: impl FnOnce(Store, Q) -> F,
    ) -> Answer<A>
    where
        A: Send + 'static,
        F: Future<Output = Result<A, Failure>> + Send + 'static,
    {
        let mut call = self.0.metrics.call(method);
        let result = tokio::spawn(work(self.0.store.clone(), request.into_inner())).await;
        let result = result.unwrap_or_else(|error| Err(Failure::internal(error.to_string()).unknown()));
        call.ended(&result);
        result.map(Response::new).map_err(|failure| status::to_status(self.failure(failure)))
    }

    fn limits_response(&self) -> v1::LimitsResponse {
        let options = &self.0.options;
        v1::LimitsResponse {
            key_bytes_max: limits::KEY_BYTES_MAX as u32,
            value_bytes_max: limits::VALUE_BYTES_MAX as u32,
            batch_items_max: limits::BATCH_ITEMS_MAX as u32,
            batch_bytes_max: limits::BATCH_BYTES_MAX as u32,
            list_bytes_max: limits::LIST_BYTES_MAX as u32,
            frame_ops_max: limits::FRAME_OPS_MAX as u32,
            frame_bytes_max: saturated(options.request_bytes_max),
            request_bytes_max: saturated(options.request_bytes_max),
            inflight_bytes_max: saturated(options.inflight_bytes_max),
            streams_per_connection_max: options.streams_per_connection_max,
            request_timeout_ms: saturated(options.request_timeout.as_millis() as usize),
            answer_bytes_max: saturated(limits::ANSWER_BYTES_MAX),
            sessions_max: limits::SESSIONS_MAX as u32,
            session_answers_max: limits::SESSION_ANSWERS_MAX as u32,
            session_bytes_max: limits::SESSION_BYTES_MAX as u32,
            sessions_bytes_max: limits::SESSIONS_BYTES_MAX as u32,
            session_idle_ms: limits::SESSION_IDLE_MS as u32,
            ttl_ms_max: limits::TTL_MS_MAX,
            lock_key_bytes_max: limits::LOCK_KEY_BYTES_MAX as u32,
            watches_per_stream_max: saturated(options.watch.watches_per_stream_max),
            watches_max: saturated(options.watch.watches_max),
            watch_window_bytes: options.watch.window_bytes,
            watch_history_bytes_max: options.watch.history_group_bytes_max,
        }
    }
}

fn saturated(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Every group of this node, those that could not be opened too.
pub(super) fn statuses(store: &Store) -> Vec<v1::GroupStatus> {
    let node_id = store.identity().node_id;
    let failed = store.failed_groups().into_iter().map(|(id, failure)| v1::GroupStatus {
        group_id: id.0,
        node_id,
        role: v1::Role::Shutdown.into(),
        failure,
        ..Default::default()
    });
    let mut all: Vec<_> = store.groups().iter().map(|group| group.status_now()).chain(failed).collect();
    all.sort_by_key(|status| status.group_id);
    all
}
