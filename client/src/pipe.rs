//! Operations on their way to nodes.

use crate::answer::{Node, OpAnswer, OpResult};
use crate::channel::call_error;
use crate::client::{Done, Shared};
use crate::error::Error;
use crate::group::Group;
use crate::limits::{check_key, check_key_or_root, check_value};
use crate::packed::{self, Kind, Op, PackedResult};
use crate::v1::failure::Reason;
use crate::v1::{Code, Frame, FrameReply};
use bytes::Bytes;
use std::sync::Arc;
use tokio::time::Instant;

fn check(op: &Op<'_>) -> Result<(), Error> {
    let key = match op.kind {
        Kind::Get => check_key_or_root(op.key),
        Kind::Batch => Ok(()),
        _ => check_key(op.key),
    };
    key.map_err(Error::refused)?;
    let value = match op.kind {
        Kind::Put => check_value(op.value),
        Kind::CompareAndSet if op.has_new_value => check_value(op.value),
        Kind::CompareAndSet if op.expect.is_none() && op.expect_index.is_none() => Err(Code::InvalidValue),
        _ => Ok(()),
    };
    value.map_err(Error::refused)
}

impl Shared {
    pub(crate) fn submit(self: &Arc<Self>, group: &Group, op: &Op<'_>, done: Done) {
        if let Err(error) = check(op) {
            return done(Err(error));
        }
        let mut ops = Vec::new();
        op.pack(&mut ops);
        let (group, kind) = (group.clone(), op.kind);
        self.runtime.spawn(async move { done(alone(&group, ops.into(), kind).await) });
    }

    pub(crate) async fn call(&self, group: &Group, op: &Op<'_>) -> Result<OpResult, Error> {
        check(op)?;
        let mut ops = Vec::new();
        op.pack(&mut ops);
        alone(group, ops.into(), op.kind).await
    }
}

async fn alone(group: &Group, ops: Bytes, kind: Kind) -> Result<OpResult, Error> {
    let shared = group.handle.shared();
    let is_read = kind == Kind::Get;
    let deadline = Instant::now() + group.timeout;
    let mut attempt = 0;
    loop {
        let address = shared.find_target(group.id, false, deadline).await?;
        let frame = Frame {
            id: 1,
            group_id: group.id,
            count: 1,
            ops: ops.clone(),
            consistency: group.consistency.into(),
            read: is_read,
            timeout_ms: deadline.saturating_duration_since(Instant::now()).as_millis() as u32,
        };
        let mut kv = shared.channels.kv(&address)?;
        let exchange = async {
            let frames = futures::stream::once(async move { frame });
            kv.pipe(futures::StreamExt::chain(frames, futures::stream::pending()))
                .await?
                .into_inner()
                .message()
                .await
        };
        let error = match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(Some(reply))) => match read_reply(reply, kind) {
                Ok(result) => return Ok(result),
                Err(error) => error,
            },
            Ok(Ok(None)) => {
                Error::outcome_unknown(Reason::Unspecified, format!("{address} closed the stream"))
            }
            Ok(Err(status)) => call_error(&address, &status),
            Err(_) => Error::outcome_unknown(Reason::Timeout, format!("{address} did not answer in time")),
        };
        let error = if is_read { error.of_read() } else { error };
        attempt += 1;
        match shared.after_failure(group.id, &address, &error, is_read, attempt) {
            Some(pause) if Instant::now() + pause < deadline => tokio::time::sleep(pause).await,
            _ => return Err(error),
        }
    }
}

fn read_reply(reply: FrameReply, kind: Kind) -> Result<OpResult, Error> {
    if let Some(failure) = reply.failure {
        return Err(failure.into());
    }
    let answer = match packed::results(&reply.results).next(kind) {
        Ok(PackedResult::Code(code)) => OpAnswer::Code(code),
        Ok(PackedResult::Batch(code, codes)) => OpAnswer::Batch(code, reply.results.slice_ref(codes)),
        Ok(PackedResult::Node(node)) => {
            OpAnswer::Node(Node::from_packed(Bytes::new(), &node, &reply.results))
        }
        Err(error) => return Err(Error::outcome_unknown(Reason::Internal, error.to_string())),
    };
    Ok(OpResult { index: reply.index, lag_ms: reply.lag_ms, answer })
}
