//! The calls of a group's tree; `unary` does the work.

use crate::failure::Failure;
use crate::service::request::{compare_and_set_op, mkdir_op, put_op, remove_op, update_ttl_op};
use crate::service::unary::{items, owned, put_item};
use crate::service::{Service, rules};
use bytes::Bytes;
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1;
use dtkv_client::v1::kv_server::Kv;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl Kv for Service {
    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary("Put", request, async |timeout, request| {
            let write = owned(put_op(&request), &request.session, &request.guard)?;
            self.write_one(request.group_id, timeout, write).await
        })
        .await
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        self.unary("Get", request, async |timeout, request| {
            let keys = std::slice::from_ref(&request.key);
            let (answer, _hold) = self.read(request.group_id, timeout, keys, request.consistency).await?;
            let (code, node) = items(&answer, keys)?.pop().unwrap_or_default();
            Ok(v1::GetResponse { code: code.into(), index: answer.index, node, lag_ms: answer.lag_ms })
        })
        .await
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        self.unary("List", request, async |timeout, request| self.list_page(timeout, request).await).await
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary("Remove", request, async |timeout, request| {
            let write = owned(remove_op(&request), &request.session, &request.guard)?;
            self.write_one(request.group_id, timeout, write).await
        })
        .await
    }

    async fn mkdir(&self, request: Request<v1::MkdirRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary("Mkdir", request, async |timeout, request| {
            let write = owned(mkdir_op(&request), &request.session, &request.guard)?;
            self.write_one(request.group_id, timeout, write).await
        })
        .await
    }

    async fn batch_put(
        &self,
        request: Request<v1::BatchPutRequest>,
    ) -> Result<Response<v1::BatchWriteResponse>, Status> {
        self.unary("BatchPut", request, async |timeout, request| {
            let item = |item| put_item(item, request.create_parents);
            let items: Vec<Op<'_>> = request.items.iter().map(item).collect();
            let batch = owned(Op::new(Kind::Batch, b"", b""), &request.session, &request.guard)?;
            self.write_batch(request.group_id, timeout, &items, batch).await
        })
        .await
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        self.unary("BatchGet", request, async |timeout, request| {
            let bytes = request.keys.iter().map(Bytes::len).sum();
            rules::check_batch_size(request.keys.len(), bytes).map_err(Failure::invalid)?;
            let (answer, _hold) =
                self.read(request.group_id, timeout, &request.keys, request.consistency).await?;
            let items = items(&answer, &request.keys)?.into_iter();
            let items = items.map(|(code, node)| v1::BatchGetItem { code: code.into(), node }).collect();
            Ok(v1::BatchGetResponse { index: answer.index, items, lag_ms: answer.lag_ms })
        })
        .await
    }

    async fn batch_remove(
        &self,
        request: Request<v1::BatchRemoveRequest>,
    ) -> Result<Response<v1::BatchWriteResponse>, Status> {
        self.unary("BatchRemove", request, async |timeout, request| {
            let items: Vec<Op<'_>> = request.keys.iter().map(|key| Op::new(Kind::Remove, key, b"")).collect();
            let batch = owned(Op::new(Kind::Batch, b"", b""), &request.session, &request.guard)?;
            self.write_batch(request.group_id, timeout, &items, batch).await
        })
        .await
    }

    async fn compare_and_set(
        &self,
        request: Request<v1::CompareAndSetRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary("CompareAndSet", request, async |timeout, request| {
            let write = owned(compare_and_set_op(&request), &request.session, &request.guard)?;
            self.write_one(request.group_id, timeout, write).await
        })
        .await
    }

    async fn update_ttl(
        &self,
        request: Request<v1::UpdateTtlRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary("UpdateTtl", request, async |timeout, request| {
            let write = owned(update_ttl_op(&request), &request.session, &None)?;
            self.write_one(request.group_id, timeout, write).await
        })
        .await
    }

    async fn keep_alive(
        &self,
        request: Request<v1::KeepAliveRequest>,
    ) -> Result<Response<v1::OwnedResponse>, Status> {
        self.unary("KeepAlive", request, async |timeout, request| {
            let op = owned(Op::new(Kind::KeepAlive, b"", b""), &request.session, &None)?;
            self.write_owned(request.group_id, timeout, op).await
        })
        .await
    }

    async fn drop_owner(
        &self,
        request: Request<v1::DropOwnerRequest>,
    ) -> Result<Response<v1::OwnedResponse>, Status> {
        self.unary("DropOwner", request, async |timeout, request| {
            let op = owned(Op::new(Kind::DropOwner, b"", b""), &request.session, &None)?;
            self.write_owned(request.group_id, timeout, op).await
        })
        .await
    }

    async fn list_owned(
        &self,
        request: Request<v1::ListOwnedRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        self.unary("ListOwned", request, async |timeout, request| self.owned_page(timeout, request).await)
            .await
    }

    async fn try_lock(
        &self,
        request: Request<v1::TryLockRequest>,
    ) -> Result<Response<v1::LockResponse>, Status> {
        self.unary("TryLock", request, async |timeout, request| {
            let wait = request.wait_ms.to_le_bytes();
            let op = Op { ttl_ms: Some(request.hold_ms), ..Op::new(Kind::TryLock, &request.key, &wait) };
            self.write_lock(request.group_id, timeout, owned(op, &request.session, &None)?).await
        })
        .await
    }

    async fn unlock(
        &self,
        request: Request<v1::UnlockRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        self.unary("Unlock", request, async |timeout, request| {
            let op = owned(Op::new(Kind::Unlock, &request.key, b""), &request.session, &None)?;
            self.write_one(request.group_id, timeout, op).await
        })
        .await
    }

    async fn update_lease(
        &self,
        request: Request<v1::UpdateLeaseRequest>,
    ) -> Result<Response<v1::LockResponse>, Status> {
        self.unary("UpdateLease", request, async |timeout, request| {
            let op = Op { ttl_ms: Some(request.hold_ms), ..Op::new(Kind::UpdateLease, &request.key, b"") };
            self.write_lock(request.group_id, timeout, owned(op, &request.session, &None)?).await
        })
        .await
    }

    async fn txn(&self, request: Request<v1::TxnRequest>) -> Result<Response<v1::TxnResponse>, Status> {
        self.unary("Txn", request, async |timeout, request| self.transact(timeout, request).await).await
    }

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<BoxStream<'static, Result<v1::WatchResponse, Status>>>, Status> {
        Ok(Response::new(Box::pin(self.open_watches(request.into_inner()))))
    }

    async fn pipe(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<BoxStream<'static, Result<v1::FrameReply, Status>>>, Status> {
        Ok(Response::new(Box::pin(self.open_pipe(request.into_inner()))))
    }
}
