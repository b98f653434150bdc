//! The Raft log of one group: on disk through the engine, its newest part in memory as well.
//!
//! Appends and votes of a group go through the engine's one queue, so they reach the disk in the
//! order in which openraft asked.

use crate::engine::{Completion, Engine, Write, WriteOp};
use crate::group::raft::{
    Entry, LogId, TypeConfig, Vote, entry_from_pb, entry_to_pb, log_id_from_pb, log_id_to_pb, vote_from_pb,
    vote_to_pb,
};
use crate::ids::GroupId;
use crate::keyspace::{self, Family, GroupKind, MetaKey};
use crate::peer_v1;
use crate::planted::{self, Fault};
use crate::storage_v1 as pb;
use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::RwLock;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

mod window;

use window::{Sized, Window};

/// Bytes of the newest entries of one group that are kept in memory.
pub const MEMORY_BYTES_MAX: usize = 64 << 20;
/// Most bytes of entries in one replicated batch, or read at once to be applied; one entry may be
/// larger.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// The committed index is written again once it has moved this far: it only shortens the way back
/// after a restart.
const COMMITTED_STEP: u64 = 64;

struct Log {
    window: Window,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// The committed index as the disk has it.
    saved_committed: u64,
}

/// A handle on the log of one group.
#[derive(Clone)]
pub struct LogStore(Arc<Shared>);

struct Shared {
    group: GroupId,
    engine: Engine,
    memory_bytes_max: usize,
    /// On its own, because completions hold it: they must not keep the engine open.
    log: Arc<RwLock<Log>>,
}

impl LogStore {
    /// Reads the log of a group.
    ///
    /// # Errors
    /// When the engine fails, a record is damaged, or the log has a hole.
    pub fn open(engine: Engine, group: GroupId) -> io::Result<LogStore> {
        LogStore::open_with(engine, group, MEMORY_BYTES_MAX)
    }

    /// The same with another bound for what is kept in memory.
    ///
    /// # Errors
    /// As [`LogStore::open`].
    pub fn open_with(engine: Engine, group: GroupId, memory_bytes_max: usize) -> io::Result<LogStore> {
        let meta = |kind| engine.get(Family::Meta, &MetaKey::Group(group, kind).encode());
        let vote: Option<peer_v1::Vote> = decode(meta(GroupKind::Vote)?)?;
        let log_meta: Option<pb::LogMeta> = decode(meta(GroupKind::LogMeta)?)?;
        let committed: Option<pb::Committed> = decode(meta(GroupKind::Committed)?)?;
        let purged = log_meta.and_then(|meta| meta.purged).as_ref().map(log_id_from_pb);
        let committed = committed.and_then(|record| record.log_id).as_ref().map(log_id_from_pb);
        let log = Log {
            window: load(&engine, group, purged, memory_bytes_max)?,
            vote: vote.as_ref().map(vote_from_pb),
            committed,
            saved_committed: committed.map_or(0, |id| id.index()),
        };
        Ok(LogStore(Arc::new(Shared { group, engine, memory_bytes_max, log: Arc::new(RwLock::new(log)) })))
    }

    /// Bytes of the entries kept.
    pub fn log_bytes(&self) -> u64 {
        self.0.log.read().window.bytes()
    }

    /// The last index, `upto` at most, up to which the log can go so that the newest `keep_bytes` stay.
    pub fn purgeable(&self, upto: u64, keep_bytes: u64) -> u64 {
        self.0.log.read().window.purgeable(upto, keep_bytes)
    }

    /// Index of the last entry; 0 when there is none.
    pub fn last_index(&self) -> u64 {
        self.0.log.read().window.last().map_or(0, |id| id.index())
    }
}

impl Shared {
    fn meta_op(&self, kind: GroupKind, record: &impl prost::Message) -> WriteOp {
        let key = MetaKey::Group(self.group, kind).encode();
        WriteOp::put(Family::Meta, key, keyspace::encode_record(record))
    }

    fn committed_op(&self, log: &mut Log) -> Option<WriteOp> {
        let committed = log.committed?;
        if committed.index() < log.saved_committed + COMMITTED_STEP {
            return None;
        }
        log.saved_committed = committed.index();
        let record = pb::Committed { log_id: Some(log_id_to_pb(&committed)) };
        Some(self.meta_op(GroupKind::Committed, &record))
    }

    /// The entries `from..to`, as many as fit into `bytes_max`, one at least.
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        loop {
            let mut plan = self.log.read().window.plan(from, to, bytes_max);
            if plan.disk.is_empty() {
                return Ok(plan.entries);
            }
            let mut entries = read_disk(&self.engine, self.group, plan.disk.clone())?;
            let log = self.log.read();
            if log.window.truncations() != plan.truncations {
                continue;
            }
            // What was purged meanwhile may be missing, at the front.
            self.check_complete(&entries, plan.disk.start.max(log.window.first_index())..plan.disk.end)?;
            entries.append(&mut plan.entries);
            return Ok(entries);
        }
    }

    fn check_complete(&self, entries: &[Entry], expected: Range<u64>) -> io::Result<()> {
        let found = entries.iter().map(RaftEntry::index).skip_while(|index| *index < expected.start);
        if found.eq(expected.clone()) {
            return Ok(());
        }
        let (group, last) = (self.group, expected.end - 1);
        Err(broken(format!("{group}: entries {} to {last} are not all on disk any more", expected.start)))
    }

    fn check_next(&self, window: &Window, entry: &Entry) -> io::Result<()> {
        let (group, found, next) = (self.group, entry.index(), window.next_index());
        if window.takes(found) {
            return Ok(());
        }
        Err(broken(format!("{group}: entry {found} cannot be appended, the log goes on at {next}")))
    }
}

/// Called once everything up to `upto` has been written.
fn evict_written(log: &RwLock<Log>, memory_bytes_max: usize, upto: u64, truncations: u64) {
    let too_much = log.read().window.memory_bytes() > memory_bytes_max;
    if !too_much {
        return;
    }
    let mut log = log.write();
    if log.window.truncations() == truncations {
        let evicted = log.window.evict(memory_bytes_max, upto);
        drop(log);
        drop(evicted);
    }
}

fn load(
    engine: &Engine,
    group: GroupId,
    purged: Option<LogId>,
    memory_bytes_max: usize,
) -> io::Result<Window> {
    let mut window = Window::new(purged);
    let (_, to) = keyspace::group_log_range(group);
    let from = keyspace::log_key(group, window.first_index());
    for item in engine.scan(Family::Log, &from, &to) {
        let (key, record) = item?;
        let bytes = record.len();
        let entry = decode_entry(&key, record)?;
        let next = window.next_index();
        if entry.index() != next {
            let found = entry.index();
            return Err(broken(format!(
                "{group}: the log has a hole: entry {next} is missing before {found}"
            )));
        }
        window.push((entry, bytes));
        window.evict(memory_bytes_max, next);
    }
    Ok(window)
}

fn read_disk(engine: &Engine, group: GroupId, range: Range<u64>) -> io::Result<Vec<Entry>> {
    let (from, to) = keyspace::log_range(group, range.start, range.end);
    let records = engine.scan(Family::Log, &from, &to);
    records.map(|item| item.and_then(|(key, record)| decode_entry(&key, record))).collect()
}

fn decode_entry(key: &[u8], record: Box<[u8]>) -> io::Result<Entry> {
    let entry = entry_from_pb(keyspace::decode_shared_record(record.into())?)?;
    match keyspace::decode_log_key(key) {
        Some((_, index)) if index == entry.index() => Ok(entry),
        other => Err(broken(format!("the log record of {other:?} holds entry {}", entry.index()))),
    }
}

fn decode<M: prost::Message + Default>(record: Option<Vec<u8>>) -> io::Result<Option<M>> {
    record.map(|bytes| keyspace::decode_record(&bytes)).transpose()
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The operation that stores an entry, and the entry for the memory.
fn append_op(group: GroupId, mut entry: Entry) -> (WriteOp, Sized) {
    let record = keyspace::log_record(&entry_to_pb(&entry));
    let bytes = record.len();
    if let EntryPayload::Normal(commands) = &mut entry.payload {
        // Sharing the record lets go of the network's buffer, which may be many times as large.
        if let Some(ops) = recorded_ops(&record) {
            commands.ops = ops;
        }
    }
    (WriteOp::put(Family::Log, keyspace::log_key(group, entry.index()), record), (entry, bytes))
}

/// The operations in a record, without copying them.
fn recorded_ops(record: &Bytes) -> Option<Bytes> {
    let entry: peer_v1::Entry = keyspace::decode_shared_record(record.clone()).ok()?;
    match entry.payload? {
        peer_v1::entry::Payload::Commands(commands) => Some(commands.ops),
        _ => None,
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(index) => index + 1,
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    from..to
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + Send
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        // In pieces: after a start, the range can be the whole log.
        let shared = self.0.clone();
        let pieces = stream::try_unfold(bounds(&range), move |left| {
            let piece = if left.is_empty() {
                Ok(Vec::new())
            } else {
                shared.read(left.start, left.end, BATCH_BYTES_MAX)
            };
            std::future::ready(piece.map(|entries| {
                let next = entries.last()?.index() + 1;
                Some((stream::iter(entries.into_iter().map(Ok)), next..left.end))
            }))
        });
        pieces.try_flatten()
    }

    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        let range = bounds(&range);
        self.0.read(range.start, range.end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.0.read(start, end, BATCH_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.log.read().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let window = &self.0.log.read().window;
        Ok(LogState { last_purged_log_id: window.purged(), last_log_id: window.last() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.0.log.write().vote = Some(*vote);
        if planted::has(Fault::VoteNotPersisted) {
            return Ok(());
        }
        self.0.engine.write(vec![self.0.meta_op(GroupKind::Vote, &vote_to_pb(vote))]).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // Travels with a later append.
        self.0.log.write().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.0.log.read().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let shared = &self.0;
        let (mut ops, entries): (Vec<_>, Vec<_>) =
            entries.into_iter().map(|entry| append_op(shared.group, entry)).unzip();
        shared.engine.room().await;
        let (last, truncations) = {
            let mut log = shared.log.write();
            for (entry, bytes) in entries {
                shared.check_next(&log.window, &entry)?;
                log.window.push((entry, bytes));
            }
            ops.extend(shared.committed_op(&mut log));
            (log.window.next_index().saturating_sub(1), log.window.truncations())
        };
        let (log, memory_bytes_max) = (shared.log.clone(), shared.memory_bytes_max);
        let done: Completion = Box::new(move |result| {
            if result.is_ok() {
                evict_written(&log, memory_bytes_max, last, truncations);
            }
            callback.io_completed(result);
        });
        shared.engine.submit(Write { ops, done: Some(done) });
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index() + 1);
        let next = {
            let mut log = self.0.log.write();
            let next = log.window.next_index();
            log.window.truncate(from);
            next
        };
        // Not waited for: whatever follows stands behind it in the engine's queue, and entries that
        // come back after a crash are not committed.
        let ops = vec![WriteOp::delete_range(Family::Log, keyspace::log_range(self.0.group, from, next))];
        self.0.engine.submit(Write { ops, done: None });
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let from = {
            let mut log = self.0.log.write();
            if log.window.purged() >= Some(log_id) {
                return Ok(());
            }
            let from = log.window.first_index();
            log.window.purge(log_id);
            from
        };
        let record = pb::LogMeta { purged: Some(log_id_to_pb(&log_id)) };
        let range = keyspace::log_range(self.0.group, from, log_id.index() + 1);
        let ops =
            vec![self.0.meta_op(GroupKind::LogMeta, &record), WriteOp::delete_range(Family::Log, range)];
        self.0.engine.submit(Write { ops, done: None });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
