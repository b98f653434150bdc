//! The calls on keys.

use super::{State, status};
use dtkv_client::packed::{Kind, Op, PackedResult, results};
use dtkv_client::v1::kv_server::Kv;
use dtkv_client::v1::*;
use futures::stream::BoxStream;
use std::sync::Arc;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

pub struct Service(pub Arc<State>);

/// So many nodes fit into a page.
const PAGE: usize = 3;

impl Service {
    fn write(&self, group: u32, op: &Op<'_>) -> Result<(u64, Vec<u8>), Status> {
        if let Some(failure) = &*self.0.failure.lock() {
            return Err(status(failure));
        }
        let (mut packed, mut out) = (Vec::new(), Vec::new());
        op.pack(&mut packed);
        let apply = |tree: &mut super::Tree| {
            tree.apply(&packed, &mut out);
            tree.index
        };
        let index = self.0.with_tree(group, apply).map_err(|failure| status(&failure))?;
        Ok((index, out))
    }

    fn write_one(&self, group: u32, op: &Op<'_>) -> Result<Response<WriteResponse>, Status> {
        let (index, out) = self.write(group, op)?;
        Ok(Response::new(WriteResponse { code: i32::from(out[0]), index }))
    }

    fn write_batch(&self, group: u32, ops: &[Op<'_>]) -> Result<Response<BatchWriteResponse>, Status> {
        let mut packed = Vec::new();
        ops.iter().for_each(|op| op.pack(&mut packed));
        let (index, out) = self.write(group, &Op::new(Kind::Batch, b"", &packed))?;
        let Ok(PackedResult::Batch(_, codes)) = results(&out).next(Kind::Batch) else { panic!() };
        let codes = codes.iter().map(|&code| i32::from(code)).collect();
        Ok(Response::new(BatchWriteResponse { index, codes, code: 0 }))
    }
}

fn answer(state: &State, frame: &Frame) -> FrameReply {
    let mut out = Vec::new();
    let failure = state.failure.lock().clone().filter(|_| !frame.read);
    let answered = failure.map_or(Ok(()), Err).and_then(|()| {
        state.with_tree(frame.group_id, |tree| {
            match frame.read {
                true => tree.read(&frame.ops, &mut out),
                false => tree.apply(&frame.ops, &mut out),
            }
            tree.index
        })
    });
    match answered {
        Ok(index) => FrameReply { id: frame.id, index, results: out.into(), ..FrameReply::default() },
        Err(failure) => FrameReply { id: frame.id, failure: Some(failure), ..FrameReply::default() },
    }
}

#[tonic::async_trait]
impl Kv for Service {
    async fn pipe(
        &self,
        frames: Request<Streaming<Frame>>,
    ) -> Result<Response<BoxStream<'static, Result<FrameReply, Status>>>, Status> {
        let state = self.0.clone();
        let replies = frames.into_inner().map(move |frame| Ok(answer(&state, &frame?)));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<WriteResponse>, Status> {
        let put = request.into_inner();
        let op = Op { create_parents: put.create_parents, ..Op::new(Kind::Put, &put.key, &put.value) };
        self.write_one(put.group_id, &op)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let get = request.into_inner();
        let read = |tree: &mut super::Tree| (tree.index, tree.node(&get.key));
        let (index, node) = self.0.with_tree(get.group_id, read).map_err(|failure| status(&failure))?;
        let code = if node.is_some() { Code::Success } else { Code::NotFound };
        Ok(Response::new(GetResponse { code: code.into(), index, node, lag_ms: None }))
    }

    async fn list_owned(&self, request: Request<ListOwnedRequest>) -> Result<Response<ListResponse>, Status> {
        let list = request.into_inner();
        let read = |tree: &mut super::Tree| (tree.index, tree.owners.owned(0, &list.client_id));
        let (index, nodes) = self.0.with_tree(list.group_id, read).map_err(|failure| status(&failure))?;
        Ok(Response::new(ListResponse { index, nodes, ..Default::default() }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let list = request.into_inner();
        let limit = if list.limit == 0 { PAGE } else { PAGE.min(list.limit as usize) };
        let read = |tree: &mut super::Tree| {
            let page = tree.list(&list.key, list.recursive, &list.continuation, limit);
            (tree.index, page)
        };
        let (index, page) = self.0.with_tree(list.group_id, read).map_err(|failure| status(&failure))?;
        let (code, (mut nodes, more)) = match page {
            Ok(page) => (Code::Success, page),
            Err(code) => (code, (Vec::new(), false)),
        };
        let last = nodes.last().map(|node| node.key.clone()).unwrap_or_default();
        if list.keys_only {
            nodes.iter_mut().for_each(|node| node.value = None);
        }
        let continuation = if more { last } else { Default::default() };
        Ok(Response::new(ListResponse { code: code.into(), index, nodes, continuation, lag_ms: None }))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<WriteResponse>, Status> {
        let remove = request.into_inner();
        let op = Op { recursive: remove.recursive, ..Op::new(Kind::Remove, &remove.key, b"") };
        self.write_one(remove.group_id, &op)
    }

    async fn mkdir(&self, request: Request<MkdirRequest>) -> Result<Response<WriteResponse>, Status> {
        let mkdir = request.into_inner();
        let op = Op { create_parents: mkdir.create_parents, ..Op::new(Kind::Mkdir, &mkdir.key, b"") };
        self.write_one(mkdir.group_id, &op)
    }

    async fn batch_put(
        &self,
        request: Request<BatchPutRequest>,
    ) -> Result<Response<BatchWriteResponse>, Status> {
        let batch = request.into_inner();
        let put = |item: &'_ KeyValue| (item.key.clone(), item.value.clone());
        let items: Vec<_> = batch.items.iter().map(put).collect();
        let op = |(key, value)| Op { create_parents: batch.create_parents, ..Op::new(Kind::Put, key, value) };
        let ops: Vec<Op<'_>> = items.iter().map(|(key, value)| op((key, value))).collect();
        self.write_batch(batch.group_id, &ops)
    }

    async fn batch_get(
        &self,
        request: Request<BatchGetRequest>,
    ) -> Result<Response<BatchGetResponse>, Status> {
        let batch = request.into_inner();
        let read = |tree: &mut super::Tree| {
            let item = |node: Option<Node>| BatchGetItem {
                code: if node.is_some() { 0 } else { Code::NotFound.into() },
                node,
            };
            let items = batch.keys.iter().map(|key| item(tree.node(key))).collect();
            BatchGetResponse { index: tree.index, items, lag_ms: None }
        };
        self.0.with_tree(batch.group_id, read).map(Response::new).map_err(|failure| status(&failure))
    }

    async fn batch_remove(
        &self,
        request: Request<BatchRemoveRequest>,
    ) -> Result<Response<BatchWriteResponse>, Status> {
        let batch = request.into_inner();
        let ops: Vec<Op<'_>> = batch.keys.iter().map(|key| Op::new(Kind::Remove, key, b"")).collect();
        self.write_batch(batch.group_id, &ops)
    }

    async fn compare_and_set(
        &self,
        request: Request<CompareAndSetRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        let cas = request.into_inner();
        let op = Op {
            expect: cas.expect.as_deref(),
            expect_index: cas.expect_index,
            has_new_value: cas.new.is_some(),
            ..Op::new(Kind::CompareAndSet, &cas.key, cas.new.as_deref().unwrap_or_default())
        };
        self.write_one(cas.group_id, &op)
    }
}
