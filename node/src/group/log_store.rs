//! The Raft log of one group: in memory between purge and end, on disk through the engine.
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
use crate::storage_v1 as pb;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::RwLock;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of entries in one replicated batch; one entry may be larger.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Bytes that an entry costs beside its operations.
const ENTRY_OVERHEAD: usize = 64;

#[derive(Default)]
struct Log {
    purged: Option<LogId>,
    /// Everything behind `purged`, without a hole.
    entries: VecDeque<Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// `committed` has changed since it was last written.
    is_committed_dirty: bool,
}

impl Log {
    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |id| id.index() + 1)
    }

    fn last(&self) -> Option<LogId> {
        self.entries.back().map(RaftEntry::log_id).or(self.purged)
    }
}

fn cost(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        openraft::EntryPayload::Normal(commands) => commands.ops.len(),
        _ => 0,
    };
    payload + ENTRY_OVERHEAD
}

/// A handle on the log of one group.
#[derive(Clone)]
pub struct LogStore(Arc<Shared>);

struct Shared {
    group: GroupId,
    engine: Engine,
    log: RwLock<Log>,
    bytes: AtomicU64,
}

impl LogStore {
    /// Reads the log of a group.
    ///
    /// # Errors
    /// When the engine fails, a record is damaged, or the log has a hole.
    pub fn open(engine: Engine, group: GroupId) -> io::Result<LogStore> {
        let meta = |kind| engine.get(Family::Meta, &MetaKey::Group(group, kind).encode());
        let vote: Option<peer_v1::Vote> = decode(meta(GroupKind::Vote)?)?;
        let log_meta: Option<pb::LogMeta> = decode(meta(GroupKind::LogMeta)?)?;
        let committed: Option<pb::Committed> = decode(meta(GroupKind::Committed)?)?;
        let mut log = Log {
            purged: log_meta.and_then(|meta| meta.purged).as_ref().map(log_id_from_pb),
            vote: vote.as_ref().map(vote_from_pb),
            committed: committed.and_then(|record| record.log_id).as_ref().map(log_id_from_pb),
            ..Log::default()
        };
        let (from, to) = keyspace::group_log_range(group);
        let mut bytes = 0;
        let mut next = log.first_index();
        for item in engine.scan(Family::Log, &from, &to) {
            let entry = entry_from_pb(keyspace::decode_record(&item?.1)?)?;
            if entry.index() < next {
                continue;
            }
            if entry.index() != next {
                let what =
                    format!("{group}: the log has a hole: entry {next} is missing before {}", entry.index());
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            next += 1;
            bytes += cost(&entry) as u64;
            log.entries.push_back(entry);
        }
        let shared = Shared { group, engine, log: RwLock::new(log), bytes: AtomicU64::new(bytes) };
        Ok(LogStore(Arc::new(shared)))
    }

    /// Bytes of the entries kept.
    pub fn log_bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Index of the last entry; 0 when there is none.
    pub fn last_index(&self) -> u64 {
        self.0.log.read().last().map_or(0, |id| id.index())
    }

    fn meta_op(&self, kind: GroupKind, record: &impl prost::Message) -> WriteOp {
        WriteOp::put(
            Family::Meta,
            MetaKey::Group(self.0.group, kind).encode(),
            keyspace::encode_record(record),
        )
    }

    fn committed_op(&self, log: &mut Log) -> Option<WriteOp> {
        if !std::mem::take(&mut log.is_committed_dirty) {
            return None;
        }
        let record = pb::Committed { log_id: log.committed.as_ref().map(log_id_to_pb) };
        Some(self.meta_op(GroupKind::Committed, &record))
    }

    /// The entries `from..to`, as many as fit into `bytes_max`, one at least.
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Vec<Entry> {
        let log = self.0.log.read();
        let first = log.first_index();
        let skip = from.saturating_sub(first) as usize;
        let take = to.saturating_sub(from.max(first)) as usize;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += cost(entry);
            is_first || bytes <= bytes_max
        };
        log.entries.iter().skip(skip).take(take).take_while(fits).cloned().collect()
    }
}

fn decode<M: prost::Message + Default>(record: Option<Vec<u8>>) -> io::Result<Option<M>> {
    record.map(|bytes| keyspace::decode_record(&bytes)).transpose()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
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
        Ok(self.read(from, to, usize::MAX))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.read(start, end, BATCH_BYTES_MAX))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.log.read().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let log = self.0.log.read();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.0.log.write().vote = Some(*vote);
        self.0.engine.write(vec![self.meta_op(GroupKind::Vote, &vote_to_pb(vote))]).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // It only shortens the way back after a restart, so it travels with the next append.
        let mut log = self.0.log.write();
        log.committed = committed;
        log.is_committed_dirty = true;
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
        let mut ops = Vec::new();
        let mut bytes = 0;
        {
            let mut log = self.0.log.write();
            for entry in entries {
                let key = keyspace::log_key(self.0.group, entry.index());
                ops.push(WriteOp::put(Family::Log, key, keyspace::log_record(&entry_to_pb(&entry))));
                bytes += cost(&entry) as u64;
                log.entries.push_back(entry);
            }
            ops.extend(self.committed_op(&mut log));
        }
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        let done: Completion = Box::new(move |result| callback.io_completed(result));
        self.0.engine.submit(Write { ops, done: Some(done) });
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index() + 1);
        {
            let mut log = self.0.log.write();
            let mut bytes = 0;
            while log.entries.back().is_some_and(|entry| entry.index() >= from) {
                bytes += log.entries.pop_back().map_or(0, |entry| cost(&entry) as u64);
            }
            self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        let range = keyspace::log_range(self.0.group, from, u64::MAX);
        self.0.engine.write(vec![WriteOp::delete_range(Family::Log, range)]).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let from = {
            let mut log = self.0.log.write();
            let from = log.first_index();
            let mut bytes = 0;
            while log.entries.front().is_some_and(|entry| entry.index() <= log_id.index()) {
                bytes += log.entries.pop_front().map_or(0, |entry| cost(&entry) as u64);
            }
            self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
            log.purged = Some(log_id);
            from
        };
        let record = pb::LogMeta { purged: Some(log_id_to_pb(&log_id)) };
        let range = keyspace::log_range(self.0.group, from, log_id.index() + 1);
        let ops = vec![self.meta_op(GroupKind::LogMeta, &record), WriteOp::delete_range(Family::Log, range)];
        self.0.engine.submit(Write { ops, done: None });
        Ok(())
    }
}
