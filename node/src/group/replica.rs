//! The state of one replica: the machine in memory, how far it is applied, and its base on disk.
//!
//! The machine's tree serves reads. A checkpoint writes what changed in the machine since the last
//! one, together with the applied log id and the membership, in one atomic write; restart loads
//! that base and openraft replays the log behind it.

use crate::clock;
use crate::engine::{Engine, Write, WriteOp, checkpoint};
use crate::group::group_clock::GroupClock;
use crate::group::metrics::GroupMetrics;
use crate::group::raft::{
    Applied, Entry, LogId, SnapshotMeta, StoredMembership, log_id_from_pb, log_id_to_pb,
    stored_membership_from_pb, stored_membership_to_pb,
};
use crate::group::snapshot::{Records, SnapshotHandle};
use crate::ids::GroupId;
use crate::keyspace::{self, Family, GroupKind, MetaKey};
use crate::machine::{Changes, Machine, Outcome};
use crate::planted::{self, Fault};
use crate::storage_v1 as pb;
use crate::tree::ApplyContext;
use crate::watch::{Hub, WatchOptions};
use bytes::Bytes;
use openraft::EntryPayload;
use parking_lot::RwLock;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many changed nodes are taken under the lock at once.
const DRAINED_AT_ONCE: usize = 1024;

/// What reads look at; replaced whole when a snapshot is installed.
pub struct State {
    /// What the log is applied to.
    pub machine: Machine,
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
    hub: Arc<Hub>,
    metrics: GroupMetrics,
    clock: GroupClock,
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
    pub fn open(
        engine: Engine,
        id: GroupId,
        watch: &WatchOptions,
        metrics: GroupMetrics,
    ) -> io::Result<Replica> {
        let saved = read_applied(&engine, id)?;
        let epoch = saved.as_ref().map_or(1, |record| record.epoch);
        let applied = saved.as_ref().and_then(|record| record.log_id.as_ref()).map(log_id_from_pb);
        let membership = match saved.as_ref().and_then(|record| record.membership.as_ref()) {
            Some(membership) => stored_membership_from_pb(membership)?,
            None => StoredMembership::default(),
        };
        let machine = load_machine(&engine, id, epoch)?;
        engine.submit(Write { ops: other_epochs(id, epoch), done: None });
        let checkpointed = Checkpointed { log_id: applied, membership: membership.clone() };
        let clock = GroupClock::new(machine.tree.counters().clock_ms, clock::now());
        let state = State { machine, applied, membership, epoch, checkpointed };
        Ok(Replica {
            id,
            engine,
            applied_index: AtomicU64::new(applied.map_or(0, |id| id.index())),
            state: RwLock::new(state),
            disk: tokio::sync::Mutex::new(()),
            next_epoch: AtomicU64::new(epoch + 1),
            unsaved_bytes: AtomicU64::new(0),
            hub: Arc::new(Hub::new(id, applied.map_or(0, |id| id.index()), watch)),
            metrics,
            clock,
        })
    }

    /// The group.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Who watches the tree.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
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

    /// What the group clock shows, in ms.
    pub fn clock_ms(&self) -> u64 {
        self.clock.at(clock::now())
    }

    /// Last applied log id and membership, for openraft.
    pub fn applied_state(&self) -> (Option<LogId>, StoredMembership) {
        let state = self.state.read();
        (state.applied, state.membership.clone())
    }

    /// Applies one committed entry.
    pub fn apply(&self, entry: &Entry) -> Applied {
        let _timer = self.metrics.apply_seconds.start_timer();
        let (mut outcome, mut time_ms) = (Outcome::default(), 0);
        let mut state = self.state.write();
        match &entry.payload {
            // It changes nothing, but until a checkpoint holds its log id the group cannot be parked.
            EntryPayload::Blank => _ = self.unsaved_bytes.fetch_add(64, Ordering::Relaxed),
            EntryPayload::Normal(commands) => {
                outcome.results.reserve(commands.count as usize);
                time_ms = commands.time_ms;
                self.clock.observe(commands.clock_ms, clock::now());
                let at = ApplyContext {
                    index: entry.log_id.index(),
                    time_ms: commands.time_ms,
                    clock_ms: commands.clock_ms,
                };
                // Malformed commands never pass admission. Should they be in the log all the same,
                // every replica stops at the same operation, so they stay equal.
                if let Err(error) = state.machine.apply(at, &commands.ops, &mut outcome) {
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
        let events = state.machine.tree.take_events();
        drop(state);
        self.hub.publish(index, time_ms, events);
        Applied { index, results: Bytes::from(outcome.results), repeats: outcome.repeats }
    }

    /// Fixes what changed since the last checkpoint; None when nothing was applied since.
    pub fn begin_checkpoint(&self) -> Option<PendingCheckpoint> {
        let mut state = self.state.write();
        if state.applied == state.checkpointed.log_id {
            return None;
        }
        self.unsaved_bytes.store(0, Ordering::Relaxed);
        state.machine.freeze_dirty();
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
        let Some(changes) = self.drain_frozen(pending.epoch) else {
            // A snapshot was installed meanwhile; these changes belong to a machine that is gone.
            return Ok(self.checkpoint_meta());
        };
        let applied = applied_record(pending.epoch, pending.applied, &pending.membership);
        // Encodes outside of the lock what was taken under it.
        let (changed, removed) = changes.into_records();
        let mut ops = checkpoint::checkpoint_ops(self.id, changed, removed, &applied);
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
    fn drain_frozen(&self, epoch: u64) -> Option<Changes> {
        let mut changes = Changes::default();
        loop {
            let mut state = self.state.write();
            if state.epoch != epoch {
                return None;
            }
            if state.machine.drain_frozen(DRAINED_AT_ONCE, &mut changes) {
                return Some(changes);
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
        let machine = tokio::task::spawn_blocking(move || load_machine(&engine, id, epoch))
            .await
            .map_err(io::Error::other)??;
        let applied = applied_record(epoch, meta.last_log_id, &meta.last_membership);
        let mut ops = other_epochs(self.id, epoch);
        ops.push(checkpoint::applied_op(self.id, &applied));
        self.engine.write(ops).await?;
        let mut state = self.state.write();
        *state = State {
            machine,
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            epoch,
            checkpointed: Checkpointed { log_id: meta.last_log_id, membership: meta.last_membership.clone() },
        };
        self.clock.observe(state.machine.tree.counters().clock_ms, clock::now());
        self.applied_index.store(meta.last_log_id.map_or(0, |id| id.index()), Ordering::Release);
        self.unsaved_bytes.store(0, Ordering::Relaxed);
        drop(state);
        self.hub.reset(meta.last_log_id.map_or(0, |id| id.index()));
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

/// Builds the machine from the records of one epoch.
fn load_machine(engine: &Engine, id: GroupId, epoch: u64) -> io::Result<Machine> {
    let (from, to) = keyspace::state_range(id, epoch);
    let mut machine = Machine::default();
    for item in engine.scan(Family::State, &from, &to) {
        let (key, record) = item?;
        machine.load(&key[from.len()..], &record).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{id}: damaged record in the checkpoint: {error}"),
            )
        })?;
    }
    Ok(machine)
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
