//! Unary calls: one request becomes packed operations and takes the same way as a frame.

use crate::failure::Failure;
use crate::group::reply::Answer;
use crate::ids::GroupId;
use crate::service::admission::{self, Access, Hold};
use crate::service::pipe::unknown_consistency;
use crate::service::request::{compare_and_set_op, mkdir_op, put_op, remove_op};
use crate::service::scope;
use crate::service::{REQUEST_OVERHEAD_BYTES, Service, Submission, status};
use bytes::Bytes;
use dtkv_client::limits::check_key_or_root;
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::{self, Kind, Op, PackedNode, PackedResult};
use dtkv_client::v1::kv_server::Kv;
use dtkv_client::v1::{self, Code, Consistency};
use futures::stream::BoxStream;
use std::time::Duration;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// The answer is sent so long before the caller's deadline, so that it is still there to read it.
const ANSWER_MARGIN: Duration = Duration::from_millis(20);

/// A write of one operation, and what makes it happen once.
pub(super) struct Write<'a> {
    pub(super) op: Op<'a>,
    scope: Option<Scope>,
}

impl Write<'_> {
    fn pack(&self) -> Vec<u8> {
        let mut ops = Vec::new();
        let Some(scope) = &self.scope else {
            self.op.pack(&mut ops);
            return ops;
        };
        scope.pack(&mut ops);
        Op { session: None, ..self.op }.pack(&mut ops);
        ops
    }
}

/// An answer, and the room that it takes until it is encoded.
pub(super) type Held = (Answer, Option<Hold>);

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
            admission::check_batch_size(request.keys.len(), bytes).map_err(Failure::invalid)?;
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

impl Service {
    /// Counts a call, and turns its failure into a status.
    async fn unary<Q, A>(
        &self,
        method: &'static str,
        request: Request<Q>,
        work: impl AsyncFnOnce(Option<Duration>, Q) -> Result<A, Failure>,
    ) -> Result<Response<A>, Status> {
        let mut call = self.0.metrics.call(method);
        let timeout = caller_timeout(request.metadata());
        let result = work(timeout, request.into_inner()).await;
        call.ended(&result);
        result.map(Response::new).map_err(|failure| status::to_status(self.failure(failure)))
    }

    async fn write_one(
        &self,
        group_id: u32,
        timeout: Option<Duration>,
        write: Write<'_>,
    ) -> Result<v1::WriteResponse, Failure> {
        self.0.store.group(GroupId(group_id))?;
        // Before packing: the layout has no room for just any key.
        if let Err(code) = admission::check_rules(&write.op) {
            return Ok(v1::WriteResponse { code: code.into(), index: 0 });
        }
        let (answer, _hold) = self.write(group_id, timeout, &write).await?;
        match packed::results(&answer.results).next(write.op.kind) {
            Ok(PackedResult::Code(code)) => Ok(v1::WriteResponse { code: code.into(), index: answer.index }),
            _ => Err(not_a_result().unknown()),
        }
    }

    /// Items that break a rule are answered here, the others go into one entry.
    async fn write_batch(
        &self,
        group_id: u32,
        timeout: Option<Duration>,
        items: &[Op<'_>],
        batch: Write<'_>,
    ) -> Result<v1::BatchWriteResponse, Failure> {
        self.0.store.group(GroupId(group_id))?;
        let bytes = items.iter().map(|item| item.key.len() + item.value.len()).sum();
        admission::check_batch_size(items.len(), bytes).map_err(Failure::invalid)?;
        let refused: Vec<Option<Code>> =
            items.iter().map(|item| admission::check_rules(item).err()).collect();
        let mut ops = Vec::with_capacity(bytes + items.len() * packed::HEADER_BYTES);
        let good = items.iter().zip(&refused).filter(|(_, refused)| refused.is_none());
        good.for_each(|(item, _)| item.pack(&mut ops));
        if batch.op.guard.is_some() {
            return Ok(v1::BatchWriteResponse { code: Code::ClientReqError.into(), ..Default::default() });
        }
        let answer = match ops.is_empty() {
            true => Answer::default(),
            false => {
                let batch = Write { op: Op { value: &ops, ..batch.op }, ..batch };
                self.write(group_id, timeout, &batch).await?.0
            }
        };
        batch_response(&answer, &refused)
    }

    pub(super) async fn write(
        &self,
        group_id: u32,
        timeout: Option<Duration>,
        write: &Write<'_>,
    ) -> Result<Held, Failure> {
        self.ask(Submission {
            group: GroupId(group_id),
            ops: write.pack().into(),
            count: 1,
            access: Access::Write,
            consistency: Consistency::Linearizable,
            deadline: self.deadline(timeout),
        })
        .await
    }

    async fn read(
        &self,
        group_id: u32,
        timeout: Option<Duration>,
        keys: &[Bytes],
        consistency: i32,
    ) -> Result<Held, Failure> {
        let consistency = Consistency::try_from(consistency).map_err(|_| unknown_consistency(consistency))?;
        let mut ops = Vec::new();
        for key in keys {
            // What is too long for the layout is also too long for a key.
            Op::new(Kind::Get, &key[..key.len().min(u16::MAX.into())], b"").pack(&mut ops);
        }
        self.ask(Submission {
            group: GroupId(group_id),
            ops: ops.into(),
            count: keys.len() as u32,
            access: Access::Read,
            consistency,
            deadline: self.deadline(timeout),
        })
        .await
    }

    async fn list_page(
        &self,
        timeout: Option<Duration>,
        request: v1::ListRequest,
    ) -> Result<v1::ListResponse, Failure> {
        let group = self.0.store.group(GroupId(request.group_id))?;
        Consistency::try_from(request.consistency).map_err(|_| unknown_consistency(request.consistency))?;
        if let Err(code) = check_key_or_root(&request.key) {
            return Ok(v1::ListResponse { code: code.into(), ..Default::default() });
        }
        // A page is taken at its full size, because nobody knows yet how large it will be.
        let _hold = self.0.budget.take(dtkv_client::limits::LIST_BYTES_MAX + REQUEST_OVERHEAD_BYTES)?;
        group.list(&request, self.deadline(timeout)).await
    }
}

/// The operation with session and guard of its request, checked.
pub(super) fn owned<'a>(
    op: Op<'a>,
    session: &Option<v1::Session>,
    guard: &'a Option<v1::Guard>,
) -> Result<Write<'a>, Failure> {
    let (session, scope) = match session.as_ref().map(scope::of_session).transpose()? {
        None => (None, None),
        Some((client, scope)) => (Some((client, scope.map_or(0, |scope| scope.sequence))), scope),
    };
    let guard = guard.as_ref().map(|guard| (guard.fencing_token, guard.lock.as_ref()));
    Ok(Write { op: Op { session, guard, ..op }, scope })
}

fn put_item(item: &v1::KeyValue, create_parents: bool) -> Op<'_> {
    Op { create_parents, ..Op::new(Kind::Put, &item.key, &item.value) }
}

/// Codes of all items: those refused here, and those of the entry for the others.
fn batch_response(answer: &Answer, refused: &[Option<Code>]) -> Result<v1::BatchWriteResponse, Failure> {
    let index = answer.index;
    let (code, results) = match packed::results(&answer.results).next(Kind::Batch) {
        _ if answer.results.is_empty() => (Code::Success, &[][..]),
        Ok(PackedResult::Batch(code, results)) => (code, results),
        _ => return Err(not_a_result().unknown()),
    };
    if code != Code::Success {
        return Ok(v1::BatchWriteResponse { code: code.into(), index, codes: Vec::new() });
    }
    let mut results = results.iter().map(|code| i32::from(*code));
    let next = |refused: &Option<Code>| refused.map_or_else(|| results.next(), |code| Some(code.into()));
    let codes: Option<Vec<i32>> = refused.iter().map(next).collect();
    Ok(v1::BatchWriteResponse {
        code: code.into(),
        index,
        codes: codes.ok_or_else(|| not_a_result().unknown())?,
    })
}

/// Packed results of gets as messages; values stay slices of the answer.
fn items(answer: &Answer, keys: &[Bytes]) -> Result<Vec<(Code, Option<v1::Node>)>, Failure> {
    let mut results = packed::results(&answer.results);
    let item = |key: &Bytes| match results.next(Kind::Get) {
        Ok(PackedResult::Node(found)) => Ok((Code::Success, Some(node(key, &found, &answer.results)))),
        Ok(PackedResult::Code(code)) => Ok((code, None)),
        _ => Err(not_a_result()),
    };
    keys.iter().map(item).collect()
}

pub(super) fn node(key: &Bytes, node: &PackedNode<'_>, results: &Bytes) -> v1::Node {
    v1::Node {
        key: key.clone(),
        value: (!node.dir).then(|| results.slice_ref(node.value)),
        create_index: node.create_index,
        create_time_ms: node.create_time_ms,
        update_index: node.update_index,
        update_time_ms: node.update_time_ms,
        dir: node.dir,
        temp: node.temp,
        lock: node.lock,
        child_count: node.child_count,
        ttl_remaining_ms: node.lease.map(|(ttl, _)| ttl),
        owner: node.lease.map(|(_, owner)| Bytes::copy_from_slice(&owner)),
    }
}

pub(super) fn not_a_result() -> Failure {
    Failure::internal("the store's answer does not fit the request")
}

/// The caller's deadline (`grpc-timeout`), less what the answer needs to get there.
fn caller_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number.checked_mul(3_600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Some(timeout - ANSWER_MARGIN.min(timeout / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_is_read_in_every_unit() {
        let cases = [
            ("2H", Some(Duration::from_secs(7_200))),
            ("3M", Some(Duration::from_secs(180))),
            ("4S", Some(Duration::from_secs(4))),
            ("5000m", Some(Duration::from_secs(5))),
            ("6000000u", Some(Duration::from_secs(6))),
            ("7000000000n", Some(Duration::from_secs(7))),
            ("", None),
            ("S", None),
            ("5x", None),
            ("-1S", None),
        ];
        for (text, expected) in cases {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("a header"));
            assert_eq!(caller_timeout(&metadata), expected.map(|e| e - ANSWER_MARGIN), "{text}");
        }
        assert_eq!(caller_timeout(&MetadataMap::new()), None);
    }

    #[test]
    fn refused_items_of_a_batch_take_their_place_among_the_codes() {
        let mut results = Vec::new();
        packed::pack_batch_result(Code::Success, &[0, 2], &mut results);
        let answer = Answer { index: 9, results: results.into(), lag_ms: None };
        let refused = [None, Some(Code::InvalidKey), None];
        let response = batch_response(&answer, &refused).expect("a response");
        assert_eq!((response.index, response.codes), (9, vec![0, 6, 2]));
        let response = batch_response(&Answer::default(), &refused[1..2]).expect("a response");
        assert_eq!((response.index, response.codes), (0, vec![6]));
        assert!(batch_response(&answer, &[None; 3]).is_err(), "too few codes");
    }

    #[test]
    fn a_session_needs_16_bytes() {
        let session = Some(v1::Session { client_id: Bytes::from_static(b"short"), ..Default::default() });
        let failure = owned(put(), &session, &None).err().expect("must be refused");
        assert!(failure.message.contains("5 bytes"), "{failure}");
    }

    fn put() -> Op<'static> {
        Op::new(Kind::Put, b"k", b"v")
    }

    #[test]
    fn a_request_with_a_sequence_gets_a_scope_of_its_own() {
        let client_id = Bytes::from_static(&[1; 16]);
        let session = v1::Session { client_id, sequence: 0, acknowledged_below: 0, retry: true };
        let write = owned(put(), &Some(session.clone()), &None).expect("a write");
        assert!(write.scope.is_none());
        assert_eq!(packed::ops(&write.pack()).next(), Some(Ok(Op { session: Some(([1; 16], 0)), ..put() })));
        let session = v1::Session { sequence: 7, acknowledged_below: 6, ..session };
        let write = owned(put(), &Some(session.clone()), &None).expect("a write");
        let scope =
            Scope { client_id: [1; 16], sequence: 7, acknowledged_below: 6, operations: 1, is_retry: true };
        assert_eq!(write.scope, Some(scope));
        let packed = write.pack();
        let ops: Vec<_> = packed::ops(&packed).map(|op| op.expect("well formed")).collect();
        assert_eq!((Scope::read(&ops[0]), ops[1], ops.len()), (Some(scope), put(), 2));
        let session = v1::Session { acknowledged_below: 8, ..session };
        let failure = owned(put(), &Some(session), &None).err().expect("must be refused");
        assert!(failure.message.contains("acknowledged_below is 8"), "{failure}");
    }
}
