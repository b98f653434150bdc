//! openraft's own test suite, on the log store and the state machine together.

use super::*;
use crate::group::raft::{SnapshotMeta, StoredMembership};
use crate::group::replica::Replica;
use crate::group::snapshot::SnapshotHandle;
use crate::group::state_machine::{CheckpointBuilder, StateMachine};
use crate::watch::WatchOptions;
use openraft::StorageError;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::SnapshotOf;
use tempfile::TempDir;

/// The suite hands the leader's snapshot to the follower as it is; this stands for the network in
/// between.
struct Receiving {
    inner: StateMachine,
    replica: Arc<Replica>,
    engine: Engine,
}

impl Receiving {
    async fn receive(&self, snapshot: SnapshotHandle) -> io::Result<SnapshotHandle> {
        let SnapshotHandle::Outgoing(records) = snapshot else {
            return Ok(snapshot);
        };
        let epoch = self.replica.allocate_epoch();
        for record in records {
            let (node, value) = record?;
            let key = keyspace::state_key(GROUP, epoch, &node);
            self.engine.write(vec![WriteOp::put(Family::State, key, value)]).await?;
        }
        Ok(SnapshotHandle::Received { epoch })
    }
}

impl RaftStateMachine<TypeConfig> for Receiving {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.inner.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        self.inner.apply(entries).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<CheckpointBuilder> {
        self.inner.try_create_snapshot_builder(force).await
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        self.inner.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotHandle,
    ) -> Result<(), io::Error> {
        let received = self.receive(snapshot).await?;
        self.inner.install_snapshot(meta, received).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, SnapshotHandle>>, io::Error> {
        self.inner.get_current_snapshot().await
    }
}

struct Builder {
    memory_bytes_max: usize,
}

impl StoreBuilder<TypeConfig, LogStore, Receiving, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Receiving), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let store = LogStore::open_with(engine.clone(), GROUP, self.memory_bytes_max).unwrap();
        let metrics = crate::group::metrics::GroupMetrics::register(&prometheus::Registry::new()).unwrap();
        let replica =
            Arc::new(Replica::open(engine.clone(), GROUP, &WatchOptions::default(), metrics).unwrap());
        let inner = StateMachine::new(replica.clone());
        Ok((dir, store, Receiving { inner, replica, engine }))
    }
}

#[tokio::test]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder { memory_bytes_max: MEMORY_BYTES_MAX }).await.unwrap();
}

#[tokio::test]
async fn openrafts_suite_passes_with_nothing_in_memory() {
    Suite::test_all(Builder { memory_bytes_max: 0 }).await.unwrap();
}
