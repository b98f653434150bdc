//! The state of one replica: the tree in memory, how far it is applied, and its base on disk.
//!
//! The tree serves reads and applies. A checkpoint writes the nodes that changed since the last
//! one, together with the applied log id and the membership, in one atomic write; restart loads
//! that base and openraft replays the log behind it.

use crate::engine::{Engine, Write, WriteOp, checkpoint};
use crate::group::metrics::GroupMetrics;
use crate::group::raft::{
    Applied, Entry, LogId, SnapshotMeta, StoredMembership, log_id_from_pb, log_id_to_pb,
    stored_membership_from_pb, stored_membership_to_pb,
};
use crate::group::snapshot::{Records, SnapshotHandle};
use crate::ids::GroupId;
use crate::keyspace::{self, Family, GroupKind, MetaKey};
use crate::planted::{self, Fault};
use crate::storage_v1 as pb;
use crate::tree::{ApplyContext, Dirty, Tree};
use bytes::Bytes;
use openraft::EntryPayload;
use parking_lot::RwLock;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many changed nodes are taken under the lock at once.
const DRAINED_AT_ONCE: usize = 1024;

/// What reads look at; replaced whole when a snapshot is installed.
pub struct State {
    /// The tree.
    pub tree: Tree,
    /// Last log id applied to it.
    pub applied: Option<LogId>,
    membership: StoredMembership,
    epoch: u64,
    checkpointed: Checkpointed,
}

/// What the base on disk holds.
#[derive(Clone)]
struct Checkpointed {
    log_id: Option<LogId>,
    membership: StoredMembership,
}

/// The state of one replica, shared by openraft's state machine task and by readers.
pub struct Replica {
    id: GroupId,
    engine: Engine,
    state: RwLock<State>,
    /// Held while the base on disk changes, so that a checkpoint, an installation and the start of
    /// an outgoing snapshot never mix. Guards the epoch that is current on disk.
    disk: tokio::sync::Mutex<()>,
    next_epoch: AtomicU64,
    applied_index: AtomicU64,
    unsaved_bytes: AtomicU64,
    metrics: GroupMetrics,
}

impl State {
    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        self.applied.map_or(0, |id| id.index())
    }
}

/// One consistent set of changes: fixed in the tree, to be drained and written.
pub struct PendingCheckpoint {
    applied: Option<LogId>,
    membership: StoredMembership,
    epoch: u64,
}

impl Replica {
    /// Loads the base from disk.
    ///
    /// # Errors
    /// When the engine fails or a record is damaged.
    pub fn open(engine: Engine, id: GroupId, metrics: GroupMetrics) -> io::Result<Replica> {
        let saved = read_applied(&engine, id)?;
        let epoch = saved.as_ref().map_or(1, |record| record.epoch);
        let applied = saved.as_ref().and_then(|record| record.log_id.as_ref()).map(log_id_from_pb);
        let membership = match saved.as_ref().and_then(|record| record.membership.as_ref()) {
            Some(membership) => stored_membership_from_pb(membership)?,
            None => StoredMembership::default(),
        };
        let tree = load_tree(&engine, id, epoch)?;
        engine.submit(Write { ops: other_epochs(id, epoch), done: None });
        let checkpointed = Checkpointed { log_id: applied, membership: membership.clone() };
        let state = State { tree, applied, membership, epoch, checkpointed };
        Ok(Replica {
            id,
            engine,
            applied_index: AtomicU64::new(applied.map_or(0, |id| id.index())),
            state: RwLock::new(state),
            disk: tokio::sync::Mutex::new(()),
            next_epoch: AtomicU64::new(epoch + 1),
            unsaved_bytes: AtomicU64::new(0),
            metrics,
        })
    }

    /// The group.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// The state, for readers.
    pub fn state(&self) -> parking_lot::RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// Index of the last applied entry, without the lock.
    pub fn applied_index(&self) -> u64 {
        self.applied_index.load(Ordering::Acquire)
    }

    /// Last log id of the base on disk: the log may be purged up to there.
    pub fn checkpointed(&self) -> Option<LogId> {
        self.state.read().checkpointed.log_id
    }

    /// Bytes of commands applied since the last checkpoint began.
    pub fn unsaved_bytes(&self) -> u64 {
        self.unsaved_bytes.load(Ordering::Relaxed)
    }

    /// Last applied log id and membership, for openraft.
    pub fn applied_state(&self) -> (Option<LogId>, StoredMembership) {
        let state = self.state.read();
        (state.applied, state.membership.clone())
    }

    /// Applies one committed entry.
    pub fn apply(&self, entry: &Entry) -> Applied {
        let _timer = self.metrics.apply_seconds.start_timer();
        let mut results = Vec::new();
        let mut state = self.state.write();
        match &entry.payload {
            // It changes nothing, but until a checkpoint holds its log id the group cannot be parked.
            EntryPayload::Blank => _ = self.unsaved_bytes.fetch_add(64, Ordering::Relaxed),
            EntryPayload::Normal(commands) => {
                results.reserve(commands.count as usize);
                let at = ApplyContext { index: entry.log_id.index(), time_ms: commands.time_ms };
                // Malformed commands never pass admission. Should they be in the log all the same,
                // every replica stops at the same operation, so the trees stay equal.
                if let Err(error) = state.tree.apply(at, &commands.ops, &mut results) {
                    tracing::error!(group = %self.id, index = at.index, %error, "log entry with malformed operations");
                }
                self.unsaved_bytes.fetch_add(commands.ops.len() as u64 + 64, Ordering::Relaxed);
            }
            EntryPayload::Membership(membership) => {
                state.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                self.unsaved_bytes.fetch_add(64, Ordering::Relaxed);
            }
        }
        state.applied = Some(entry.log_id);
        let index = entry.log_id.index();
        self.applied_index.store(index, Ordering::Release);
        Applied { index, results: Bytes::from(results) }
    }

    /// Fixes what changed since the last checkpoint; None when nothing was applied since.
    pub fn begin_checkpoint(&self) -> Option<PendingCheckpoint> {
        let mut state = self.state.write();
        if state.applied == state.checkpointed.log_id {
            return None;
        }
        self.unsaved_bytes.store(0, Ordering::Relaxed);
        state.tree.freeze_dirty();
        Some(PendingCheckpoint {
            applied: state.applied,
            membership: state.membership.clone(),
            epoch: state.epoch,
        })
    }

    /// Writes a checkpoint and returns when it is durable.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn write_checkpoint(&self, pending: PendingCheckpoint) -> io::Result<SnapshotMeta> {
        let _disk = self.disk.lock().await;
        let Some(dirty) = self.drain_dirty(pending.epoch) else {
            // A snapshot was installed meanwhile; these changes belong to a tree that is gone.
            return Ok(self.checkpoint_meta());
        };
        let applied = applied_record(pending.epoch, pending.applied, &pending.membership);
        let mut ops = checkpoint_ops(self.id, &dirty, &applied);
        if planted::has(Fault::CheckpointSkipped) {
            ops.clear();
        }
        if planted::has(Fault::ProgressSkipped) {
            ops.pop();
        }
        self.engine.write(ops).await?;
        self.metrics.checkpoints.inc();
        self.state.write().checkpointed =
            Checkpointed { log_id: pending.applied, membership: pending.membership };
        Ok(self.checkpoint_meta())
    }

    /// Takes the frozen changes piece by piece, so that applies and reads go on in between.
    fn drain_dirty(&self, epoch: u64) -> Option<Dirty> {
        let mut dirty = Dirty::default();
        loop {
            let mut state = self.state.write();
            if state.epoch != epoch {
                return None;
            }
            if state.tree.drain_frozen(DRAINED_AT_ONCE, &mut dirty) {
                return Some(dirty);
            }
        }
    }

    /// Describes the last checkpoint.
    pub fn checkpoint_meta(&self) -> SnapshotMeta {
        let state = self.state.read();
        snapshot_meta(state.checkpointed.log_id, &state.checkpointed.membership)
    }

    /// The last checkpoint as a snapshot to send; None before the first.
    ///
    /// # Errors
    /// When the engine fails.
    pub async fn current_snapshot(&self) -> io::Result<Option<(SnapshotMeta, SnapshotHandle)>> {
        let _disk = self.disk.lock().await;
        let Some(saved) = read_applied(&self.engine, self.id)? else { return Ok(None) };
        let Some(log_id) = saved.log_id.as_ref().map(log_id_from_pb) else { return Ok(None) };
        let membership = match &saved.membership {
            Some(membership) => stored_membership_from_pb(membership)?,
            None => StoredMembership::default(),
        };
        let (from, to) = keyspace::state_range(self.id, saved.epoch);
        let prefix = from.len();
        let scan = self.engine.snapshot_scan(Family::State, from, to)?;
        let records: Records =
            Box::new(scan.map(move |item| item.map(|(key, value)| (Box::from(&key[prefix..]), value))));
        let meta = snapshot_meta(Some(log_id), &membership);
        Ok(Some((meta, SnapshotHandle::Outgoing(records))))
    }

    /// An epoch for a snapshot that is about to be received.
    pub fn allocate_epoch(&self) -> u64 {
        self.next_epoch.fetch_add(1, Ordering::Relaxed)
    }

    /// The epoch that is served.
    pub fn epoch(&self) -> u64 {
        self.state.read().epoch
    }

    /// Makes a received snapshot the state of this replica.
    ///
    /// # Errors
    /// When the engine fails or a record is damaged.
    pub async fn install(&self, meta: &SnapshotMeta, epoch: u64) -> io::Result<()> {
        let _disk = self.disk.lock().await;
        let (engine, id) = (self.engine.clone(), self.id);
        let tree = tokio::task::spawn_blocking(move || load_tree(&engine, id, epoch))
            .await
            .map_err(io::Error::other)??;
        let applied = applied_record(epoch, meta.last_log_id, &meta.last_membership);
        let mut ops = other_epochs(self.id, epoch);
        ops.push(checkpoint::applied_op(self.id, &applied));
        self.engine.write(ops).await?;
        let mut state = self.state.write();
        *state = State {
            tree,
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            epoch,
            checkpointed: Checkpointed { log_id: meta.last_log_id, membership: meta.last_membership.clone() },
        };
        self.applied_index.store(meta.last_log_id.map_or(0, |id| id.index()), Ordering::Release);
        self.unsaved_bytes.store(0, Ordering::Relaxed);
        Ok(())
    }
}

fn snapshot_meta(log_id: Option<LogId>, membership: &StoredMembership) -> SnapshotMeta {
    SnapshotMeta { last_log_id: log_id, last_membership: membership.clone() }
}

fn applied_record(epoch: u64, log_id: Option<LogId>, membership: &StoredMembership) -> pb::Applied {
    pb::Applied {
        epoch,
        log_id: log_id.as_ref().map(log_id_to_pb),
        membership: Some(stored_membership_to_pb(membership)),
    }
}

fn read_applied(engine: &Engine, id: GroupId) -> io::Result<Option<pb::Applied>> {
    let key = MetaKey::Group(id, GroupKind::Applied).encode();
    engine.get(Family::Meta, &key)?.map(|bytes| keyspace::decode_record(&bytes)).transpose()
}

/// Builds the tree from the records of one epoch.
fn load_tree(engine: &Engine, id: GroupId, epoch: u64) -> io::Result<Tree> {
    let (from, to) = keyspace::state_range(id, epoch);
    let mut tree = Tree::new();
    for item in engine.scan(Family::State, &from, &to) {
        let (key, record) = item?;
        tree.load(&key[from.len()..], &record).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{id}: damaged record in the checkpoint: {error}"),
            )
        })?;
    }
    Ok(tree)
}

/// Encodes outside of the lock what was taken under it.
fn checkpoint_ops(id: GroupId, dirty: &Dirty, applied: &pb::Applied) -> Vec<WriteOp> {
    let encoded = dirty.changed.iter().map(|(key, record)| {
        let mut bytes = Vec::with_capacity(record.encoded_len());
        record.encode(&mut bytes);
        (key.clone(), Bytes::from(bytes))
    });
    checkpoint::checkpoint_ops(id, encoded, dirty.removed.iter().cloned(), applied)
}

/// Deletes what earlier or abandoned snapshots left.
fn other_epochs(id: GroupId, epoch: u64) -> Vec<WriteOp> {
    let (from, to) = keyspace::state_range(id, epoch);
    let (start, end) = keyspace::group_state_range(id);
    vec![
        WriteOp::DeleteRange { family: Family::State, from: start, to: from },
        WriteOp::DeleteRange { family: Family::State, from: to, to: end },
    ]
}
