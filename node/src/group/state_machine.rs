//! openraft's state machine over a [`Replica`].

use crate::group::raft::{LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::group::replica::{PendingCheckpoint, Replica};
use crate::group::snapshot::SnapshotHandle;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use std::io;
use std::sync::Arc;

/// What openraft drives; all state sits in the shared [`Replica`].
pub struct StateMachine {
    replica: Arc<Replica>,
}

impl StateMachine {
    /// Over this replica.
    pub fn new(replica: Arc<Replica>) -> StateMachine {
        StateMachine { replica }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.replica.applied_state())
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let applied = self.replica.apply(&entry);
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<CheckpointBuilder> {
        let pending = self.replica.begin_checkpoint();
        if pending.is_none() && !force {
            return None;
        }
        Some(CheckpointBuilder { replica: self.replica.clone(), pending })
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        CheckpointBuilder { replica: self.replica.clone(), pending: self.replica.begin_checkpoint() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotHandle,
    ) -> Result<(), io::Error> {
        match snapshot {
            SnapshotHandle::Received { epoch } => self.replica.install(meta, epoch).await,
            other => Err(io::Error::other(format!(
                "a snapshot that was never received cannot be installed: {other:?}"
            ))),
        }
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotHandle>>, io::Error> {
        let current = self.replica.current_snapshot().await?;
        Ok(current.map(|(meta, snapshot)| openraft::storage::Snapshot { meta, snapshot }))
    }
}

/// Writes one checkpoint; openraft runs it beside the applies.
pub struct CheckpointBuilder {
    replica: Arc<Replica>,
    pending: Option<PendingCheckpoint>,
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointBuilder {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotHandle>, io::Error> {
        let meta = match self.pending.take() {
            Some(pending) => self.replica.write_checkpoint(pending).await?,
            None => self.replica.checkpoint_meta(),
        };
        Ok(openraft::storage::Snapshot { meta, snapshot: SnapshotHandle::Checkpointed })
    }
}
