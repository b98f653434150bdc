//! Frames on a stream of their own, packed here and not by the client library.

use super::{Call, Told};
use anyhow::{Context, Result, bail, ensure};
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use dtkv_client::v1::kv_client::KvClient;
use dtkv_client::v1::{Code, Failure, Frame, FrameReply};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// One stream of frames.
pub struct Pipe {
    frames: mpsc::Sender<Frame>,
    replies: tonic::Streaming<FrameReply>,
    next_id: u64,
}

impl Pipe {
    /// Opens the stream.
    ///
    /// # Errors
    /// When the node does not take it.
    pub async fn open(mut kv: KvClient<Channel>) -> Result<Pipe> {
        let (frames, mut waiting) = mpsc::channel::<Frame>(16);
        let stream = futures::stream::poll_fn(move |context| waiting.poll_recv(context));
        let replies = kv.pipe(stream).await?.into_inner();
        Ok(Pipe { frames, replies, next_id: 1 })
    }

    /// Sends a frame, whatever is in it, and waits for its reply.
    ///
    /// # Errors
    /// When the stream ends.
    pub async fn exchange(&mut self, frame: Frame) -> Result<FrameReply> {
        let id = self.next_id;
        self.next_id += 1;
        self.frames.send(Frame { id, ..frame }).await.context("the stream is closed")?;
        let reply = tokio::time::timeout(Duration::from_secs(10), self.replies.message()).await;
        let reply = reply.context("no reply")??.context("the stream ended")?;
        ensure!(reply.id == id, "frame {id} was answered as {}", reply.id);
        Ok(reply)
    }

    /// Makes the call; none for a listing, which has no frame.
    ///
    /// # Errors
    /// When the stream ends, or the results are not as packed.md says.
    pub async fn call(&mut self, group_id: u32, call: &Call) -> Result<Option<Result<Told, Failure>>> {
        let Some((ops, count, read)) = pack(call) else { return Ok(None) };
        let frame = Frame { group_id, count, ops: ops.into(), read, ..Frame::default() };
        let reply = self.exchange(frame).await?;
        Ok(Some(match reply.failure {
            Some(failure) => Err(failure),
            None => Ok(unpack(call, reply.index, &reply.results)?),
        }))
    }
}

fn batch_value<'a>(items: impl Iterator<Item = Op<'a>>) -> Vec<u8> {
    let mut value = Vec::new();
    items.for_each(|op| op.pack(&mut value));
    value
}

/// Packed operations, their number, and whether they are reads.
fn pack(call: &Call) -> Option<(Vec<u8>, u32, bool)> {
    let mut out = Vec::new();
    let mut count = 1;
    match call {
        Call::List { .. } => return None,
        Call::Put { key, value, create_parents } => {
            Op { create_parents: *create_parents, ..Op::new(Kind::Put, key.as_bytes(), value) }
                .pack(&mut out);
        }
        Call::Guarded { key } => {
            Op { guard: Some((1, b"lock")), ..Op::new(Kind::Put, key.as_bytes(), b"v") }.pack(&mut out);
        }
        Call::Get { key } => Op::new(Kind::Get, key.as_bytes(), b"").pack(&mut out),
        Call::Remove { key, recursive } => {
            Op { recursive: *recursive, ..Op::new(Kind::Remove, key.as_bytes(), b"") }.pack(&mut out);
        }
        Call::Mkdir { key, create_parents } => {
            Op { create_parents: *create_parents, ..Op::new(Kind::Mkdir, key.as_bytes(), b"") }
                .pack(&mut out);
        }
        Call::BatchPut { items } => {
            let items = items.iter().map(|(key, value)| Op::new(Kind::Put, key.as_bytes(), value.as_bytes()));
            Op::new(Kind::Batch, b"", &batch_value(items)).pack(&mut out);
        }
        Call::BatchRemove { keys } => {
            let items = keys.iter().map(|key| Op::new(Kind::Remove, key.as_bytes(), b""));
            Op::new(Kind::Batch, b"", &batch_value(items)).pack(&mut out);
        }
        Call::BatchGet { keys } => {
            keys.iter().for_each(|key| Op::new(Kind::Get, key.as_bytes(), b"").pack(&mut out));
            count = u32::try_from(keys.len()).ok()?;
        }
        Call::CompareAndSet { key, expect, expect_index, new } => Op {
            expect: expect.as_deref().map(str::as_bytes),
            expect_index: *expect_index,
            has_new_value: new.is_some(),
            ..Op::new(Kind::CompareAndSet, key.as_bytes(), new.as_deref().unwrap_or_default())
        }
        .pack(&mut out),
    }
    Some((out, count, matches!(call, Call::Get { .. } | Call::BatchGet { .. })))
}

fn unpack(call: &Call, index: u64, bytes: &[u8]) -> Result<Told> {
    let (kind, count) = match call {
        Call::Get { .. } => (Kind::Get, 1),
        Call::BatchGet { keys } => (Kind::Get, keys.len()),
        Call::BatchPut { .. } | Call::BatchRemove { .. } => (Kind::Batch, 1),
        _ => (Kind::Put, 1),
    };
    let mut reader = packed::results(bytes);
    let mut told = Told { index, ..Told::default() };
    for _ in 0..count {
        match reader.next(kind)? {
            PackedResult::Code(code) => told.codes.push(code),
            PackedResult::Batch(Code::Success, items) => {
                let codes = items.iter().map(|&code| Code::try_from(i32::from(code)));
                told.codes = codes.collect::<Result<_, _>>()?;
            }
            PackedResult::Batch(code, _) => bail!("the batch as a whole was answered {code:?}"),
            other @ (PackedResult::Token(..) | PackedResult::Count(..) | PackedResult::Txn(_)) => {
                bail!("a {kind:?} was answered {other:?}")
            }
            PackedResult::Node(node) => {
                told.codes.push(Code::Success);
                told.values.push((!node.dir).then(|| node.value.to_vec()));
            }
        }
        if kind == Kind::Get && told.codes.last() != Some(&Code::Success) {
            told.values.push(None);
        }
    }
    ensure!(reader.offset() == bytes.len(), "there are bytes behind the last result");
    Ok(told)
}

/// A frame that carries results or a failure, never both and never neither.
///
/// # Errors
/// When it does.
pub fn check_shape(reply: &FrameReply) -> Result<()> {
    ensure!(reply.failure.is_some() == reply.results.is_empty(), "results and failure: {reply:?}");
    Ok(())
}
