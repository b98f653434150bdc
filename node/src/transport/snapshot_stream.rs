//! Snapshots between nodes: on a connection of their own, rate limited, checked by CRC-32C.

use super::call::unreachable;
use super::hello::hello;
use super::peer_stream::{dial, said};
use super::{Shared, SnapshotSink};
use crate::clock;
use crate::failure::Failure;
use crate::ids::{GroupId, NodeId};
use crate::peer_v1 as pb;
use crate::peer_v1::snapshot_chunk::Part;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use dtkv_client::v1::failure::Reason;
use futures::Stream;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

/// Records of one group's state: node key and record bytes, in key order.
pub type Records = Box<dyn Iterator<Item = io::Result<(Box<[u8]>, Box<[u8]>)>> + Send>;

/// A chunk is closed at this size.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that are read ahead.
const CHUNKS_AHEAD: usize = 4;
/// Two lengths before each record.
const RECORD_HEAD: usize = 8;

/// Reads the records of a chunk: (u32 key length, u32 value length, key, value)*, little endian.
/// Keys and values are slices of the chunk.
///
/// # Errors
/// When the chunk is not packed records.
pub fn unpack_records(mut chunk: Bytes) -> io::Result<Vec<(Bytes, Bytes)>> {
    let mut records = Vec::new();
    while chunk.has_remaining() {
        if chunk.len() < RECORD_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "snapshot record: no lengths"));
        }
        let (key, value) = (chunk.get_u32_le() as usize, chunk.get_u32_le() as usize);
        if chunk.len() < key.saturating_add(value) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "snapshot record: cut off"));
        }
        records.push((chunk.split_to(key), chunk.split_to(value)));
    }
    Ok(records)
}

fn count_records(mut chunk: &[u8]) -> Option<u64> {
    let mut count = 0;
    while !chunk.is_empty() {
        let (key, value) = (chunk.try_get_u32_le().ok()?, chunk.try_get_u32_le().ok()?);
        chunk = chunk.get((key as usize).checked_add(value as usize)?..)?;
        count += 1;
    }
    Some(count)
}

/// Bytes per second, shared by all snapshots that this node sends.
#[derive(Debug)]
pub(super) struct RateLimit {
    bytes_per_second: u64,
    /// When everything granted so far has been paid for.
    paid: Mutex<Instant>,
}

impl RateLimit {
    /// 0 = no limit.
    pub fn new(bytes_per_second: u64) -> RateLimit {
        RateLimit { bytes_per_second, paid: Mutex::new(clock::now()) }
    }

    /// Waits until `bytes` may go.
    async fn take(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let wait = {
            let mut paid = self.paid.lock();
            let now = clock::now();
            let start = (*paid).max(now);
            *paid = start + cost;
            start - now
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Packs records into chunks on a thread of the blocking pool; ends when the reader is gone.
fn pack(records: Records, chunks: &mpsc::Sender<io::Result<Chunk>>) {
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
    let mut count = 0;
    for record in records {
        let (key, value) = match record {
            Ok(record) => record,
            Err(error) => return drop(chunks.blocking_send(Err(error))),
        };
        let size = RECORD_HEAD + key.len() + value.len();
        if count > 0 && chunk.len() + size > CHUNK_BYTES {
            let full = std::mem::replace(&mut chunk, BytesMut::with_capacity(CHUNK_BYTES));
            if chunks.blocking_send(Ok(Chunk { bytes: full.freeze(), records: count })).is_err() {
                return;
            }
            count = 0;
        }
        chunk.reserve(size);
        chunk.put_u32_le(key.len() as u32);
        chunk.put_u32_le(value.len() as u32);
        chunk.put_slice(&key);
        chunk.put_slice(&value);
        count += 1;
    }
    if count > 0 {
        // Nobody reads any more: nobody needs it.
        drop(chunks.blocking_send(Ok(Chunk { bytes: chunk.freeze(), records: count })));
    }
}

struct Chunk {
    bytes: Bytes,
    records: u64,
}

/// What the sending stream and its watcher share.
#[derive(Default)]
struct Progress {
    chunks: AtomicU64,
    broken: Mutex<Option<io::Error>>,
}

/// The stream of a snapshot: header, records, end. It ends without an end when reading fails,
/// which the receiver refuses.
struct Outgoing {
    shared: Arc<Shared>,
    progress: Arc<Progress>,
    header: Option<pb::SnapshotHeader>,
    chunks: mpsc::Receiver<io::Result<Chunk>>,
    end: Option<pb::SnapshotEnd>,
}

impl Outgoing {
    fn into_stream(self) -> impl Stream<Item = pb::SnapshotChunk> + Send + 'static {
        futures::stream::unfold(self, async |mut this| {
            let part = this.next().await?;
            this.progress.chunks.fetch_add(1, Ordering::Relaxed);
            Some((pb::SnapshotChunk { part: Some(part) }, this))
        })
    }

    async fn next(&mut self) -> Option<Part> {
        if let Some(header) = self.header.take() {
            return Some(Part::Header(header));
        }
        let Some(chunk) = self.chunks.recv().await else {
            return self.end.take().map(Part::End);
        };
        match chunk {
            Ok(Chunk { bytes, records }) => {
                self.shared.snapshot_rate.take(bytes.len()).await;
                self.shared.metrics.snapshot_sent_bytes.inc_by(bytes.len() as u64);
                if let Some(end) = &mut self.end {
                    end.records += records;
                    end.crc32c = crc32c::crc32c_append(end.crc32c, &bytes);
                }
                Some(Part::Records(bytes))
            }
            Err(error) => {
                *self.progress.broken.lock() = Some(error);
                None
            }
        }
    }
}

/// Marks that a snapshot is on its way.
struct Marked {
    shared: Arc<Shared>,
    key: (NodeId, GroupId),
}

impl Marked {
    fn new(shared: &Arc<Shared>, key: (NodeId, GroupId)) -> Marked {
        *shared.snapshots_outgoing.lock().entry(key).or_default() += 1;
        Marked { shared: shared.clone(), key }
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let mut outgoing = self.shared.snapshots_outgoing.lock();
        if let Some(count) = outgoing.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                outgoing.remove(&self.key);
            }
        }
    }
}

/// Sends a snapshot; dropping the future cancels it.
pub(super) async fn send(
    shared: Arc<Shared>,
    to: NodeId,
    mut header: pb::SnapshotHeader,
    records: Records,
) -> Result<pb::SnapshotReply, Failure> {
    let address = shared.book.peer_address(to).ok_or_else(|| unreachable(to, "its address is not known"))?;
    let identity = shared.identity();
    header.hello = Some(hello(&identity, to, pb::Lane::Control));
    let group = GroupId(header.group_id);
    let mut client = dial(&shared.options, &address).await.map_err(|why| unreachable(to, why))?;
    let _marked = Marked::new(&shared, (to, group));
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || pack(records, &sender));
    let progress = Arc::new(Progress::default());
    let idle_max = shared.options.snapshot_idle_timeout;
    let stop = shared.stop.clone();
    let outgoing = Outgoing {
        shared,
        progress: progress.clone(),
        header: Some(header),
        chunks,
        end: Some(pb::SnapshotEnd::default()),
    };
    let reply = tokio::select! {
        reply = client.snapshot(outgoing.into_stream()) => reply,
        () = stop.cancelled() => return Err(Failure::stopping("this node").unknown()),
        () = stuck(&progress, idle_max) => {
            let text = format!("the snapshot of {group} to {to} made no progress for {idle_max:?}");
            return Err(Failure::new(Reason::Timeout, text).unknown());
        }
    };
    if let Some(error) = progress.broken.lock().take() {
        return Err(Failure::internal(format!("reading the snapshot of {group} failed: {error}")));
    }
    reply.map(tonic::Response::into_inner).map_err(|status| failure(to, group, &status))
}

/// Resolves when nothing moves any more.
async fn stuck(progress: &Progress, idle_max: Duration) {
    let mut seen = u64::MAX;
    loop {
        let chunks = progress.chunks.load(Ordering::Relaxed);
        if chunks == seen {
            return;
        }
        seen = chunks;
        tokio::time::sleep(idle_max).await;
    }
}

fn failure(to: NodeId, group: GroupId, status: &Status) -> Failure {
    let text = format!("{to} did not take the snapshot of {group}: {}", said(status));
    match status.code() {
        Code::ResourceExhausted => Failure::overloaded(text, 1000),
        Code::FailedPrecondition => Failure::precondition(text),
        _ => Failure { retry_after_ms: Some(100), ..Failure::new(Reason::GroupNotReady, text).unknown() },
    }
}

/// Receives one snapshot.
pub(super) async fn receive(
    shared: &Arc<Shared>,
    mut stream: Streaming<pb::SnapshotChunk>,
) -> Result<pb::SnapshotReply, Status> {
    let Some(pb::SnapshotChunk { part: Some(Part::Header(mut header)) }) = stream.message().await? else {
        return Err(Status::invalid_argument("a snapshot opens with its header"));
    };
    let theirs = header.hello.take().unwrap_or_default();
    shared.admit(&theirs)?;
    let Ok(_permit) = shared.snapshots_incoming.try_acquire() else {
        shared.metrics.snapshots_refused.inc();
        let max = shared.options.snapshots_incoming_max;
        let text = format!("{max} snapshots are being received already, which is the limit; try again later");
        return Err(Status::resource_exhausted(text));
    };
    let Some(inbound) = shared.inbound() else {
        return Err(Status::unavailable("the node is starting"));
    };
    let group = GroupId(header.group_id);
    let sink = inbound.snapshot(NodeId(theirs.node_id), header).await.map_err(|f| status(&f))?;
    let taken = tokio::select! {
        () = shared.stop.cancelled() => Err(Status::unavailable("the node is stopping")),
        taken = fill(shared, stream, sink) => taken,
    };
    taken.inspect_err(|status| {
        shared.metrics.snapshots_refused.inc();
        tracing::warn!(%group, from = theirs.node_id, "snapshot not taken: {}", status.message());
    })
}

/// Feeds the sink; it sees `finish` only when everything that was sent has arrived unchanged.
async fn fill(
    shared: &Shared,
    mut stream: Streaming<pb::SnapshotChunk>,
    mut sink: Box<dyn SnapshotSink>,
) -> Result<pb::SnapshotReply, Status> {
    let mut seen = pb::SnapshotEnd::default();
    let patience = shared.options.snapshot_idle_timeout;
    loop {
        let chunk = tokio::time::timeout(patience, stream.message())
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no part of the snapshot for {patience:?}")))??;
        match chunk.and_then(|chunk| chunk.part) {
            Some(Part::Records(bytes)) => {
                seen.records += count_records(&bytes).ok_or_else(|| damaged("records cut off"))?;
                seen.crc32c = crc32c::crc32c_append(seen.crc32c, &bytes);
                shared.metrics.snapshot_received_bytes.inc_by(bytes.len() as u64);
                sink.records(bytes).await.map_err(|f| status(&f))?;
            }
            Some(Part::End(end)) if end == seen => {
                return sink.finish(end).await.map_err(|f| status(&f));
            }
            Some(Part::End(end)) => {
                let text = format!(
                    "{} records with crc {:08x} announced, {} with {:08x} received",
                    end.records, end.crc32c, seen.records, seen.crc32c
                );
                return Err(damaged(&text));
            }
            Some(Part::Header(_)) => return Err(damaged("a second header")),
            None => return Err(damaged("it ended early")),
        }
    }
}

fn damaged(what: &str) -> Status {
    Status::data_loss(format!("the snapshot was damaged on its way ({what}); send it again"))
}

fn status(failure: &Failure) -> Status {
    let code = match failure.reason {
        Reason::Overloaded => Code::ResourceExhausted,
        Reason::Stopping | Reason::GroupNotReady | Reason::NotLeader => Code::Unavailable,
        Reason::Internal => Code::Internal,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, failure.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(records: Vec<(usize, usize)>) -> Vec<Chunk> {
        let records = records
            .into_iter()
            .map(|(key, value)| Ok((vec![1; key].into_boxed_slice(), vec![2; value].into_boxed_slice())));
        let (sender, mut chunks) = mpsc::channel(100);
        pack(Box::new(records), &sender);
        drop(sender);
        std::iter::from_fn(|| chunks.blocking_recv()).map(Result::unwrap).collect()
    }

    #[test]
    fn chunks_hold_whole_records_and_close_at_their_size() {
        let chunks = packed(vec![(10, 100_000), (10, 100_000), (10, 100_000), (10, 1_000_000), (0, 0)]);
        let counts: Vec<u64> = chunks.iter().map(|chunk| chunk.records).collect();
        assert_eq!(counts, [2, 1, 1, 1]);
        for chunk in chunks {
            assert_eq!(count_records(&chunk.bytes), Some(chunk.records));
            let records = unpack_records(chunk.bytes).unwrap();
            assert!(
                records
                    .iter()
                    .all(|(key, value)| { key.iter().all(|b| *b == 1) && value.iter().all(|b| *b == 2) })
            );
        }
    }

    #[test]
    fn cut_off_records_are_noticed() {
        let chunk = packed(vec![(10, 20)]).remove(0).bytes;
        for end in 1..chunk.len() {
            assert_eq!(count_records(&chunk[..end]), None, "{end}");
            assert!(unpack_records(chunk.slice(..end)).is_err(), "{end}");
        }
    }

    #[tokio::test]
    async fn the_rate_limit_is_shared() {
        let limit = RateLimit::new(1_000_000);
        let since = clock::now();
        tokio::join!(limit.take(50_000), limit.take(50_000), limit.take(1));
        assert!(since.elapsed() >= Duration::from_millis(100), "{:?}", since.elapsed());
    }
}
