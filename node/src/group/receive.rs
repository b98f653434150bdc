//! The receiving end of a snapshot.

use crate::engine::{Engine, Write, WriteOp};
use crate::failure::Failure;
use crate::group::Group;
use crate::group::raft::{SnapshotMeta, log_id_from_pb, stored_membership_from_pb, vote_from_pb, vote_to_pb};
use crate::group::snapshot::SnapshotHandle;
use crate::keyspace::{self, Family};
use crate::peer_v1 as pb;
use crate::planted::{self, Fault};
use crate::transport::SnapshotSink;
use bytes::Bytes;
use futures::future::BoxFuture;

/// Writes the records of one snapshot under an epoch of their own, and installs it at the end.
/// Dropped before that, it removes them again.
pub struct SnapshotReceiver {
    group: Group,
    engine: Engine,
    header: pb::SnapshotHeader,
    epoch: u64,
    records: u64,
}

impl Group {
    /// Begins to receive a snapshot.
    pub fn receive_snapshot(&self, engine: Engine, header: pb::SnapshotHeader) -> Box<dyn SnapshotSink> {
        let epoch = self.0.replica.allocate_epoch();
        tracing::info!(group = %self.id(), epoch, "receiving a snapshot");
        Box::new(SnapshotReceiver { group: self.clone(), engine, header, epoch, records: 0 })
    }
}

impl SnapshotReceiver {
    fn parse(&mut self, chunk: &Bytes) -> Result<Vec<WriteOp>, Failure> {
        let mut ops = Vec::new();
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let (key, value) = take_record(&mut rest)
                .ok_or_else(|| Failure::invalid("the snapshot chunk ends in the middle of a record"))?;
            ops.push(WriteOp::Put {
                family: Family::State,
                key: keyspace::state_key(self.group.id(), self.epoch, key),
                value: chunk.slice_ref(value),
            });
        }
        self.records += ops.len() as u64;
        Ok(ops)
    }

    async fn finish_install(mut self, end: pb::SnapshotEnd) -> Result<pb::SnapshotReply, Failure> {
        if end.records != self.records {
            let (sent, received) = (end.records, self.records);
            return Err(Failure::invalid(format!(
                "the snapshot has {received} records, its sender counted {sent}"
            )));
        }
        self.install().await
    }

    async fn install(&mut self) -> Result<pb::SnapshotReply, Failure> {
        let header = std::mem::take(&mut self.header);
        let membership = header.last_membership.as_ref().map(stored_membership_from_pb).transpose();
        let membership = membership.map_err(|e| Failure::invalid(e.to_string()))?.unwrap_or_default();
        let vote = header.vote.as_ref().map(vote_from_pb);
        let vote = vote.ok_or_else(|| Failure::invalid("the snapshot header has no vote"))?;
        let snapshot = openraft::storage::Snapshot {
            meta: SnapshotMeta {
                last_log_id: header.last_log_id.as_ref().map(log_id_from_pb),
                last_membership: membership,
            },
            snapshot: SnapshotHandle::Received { epoch: self.epoch },
        };
        let reply = self.group.raft().install_full_snapshot(vote, snapshot).await;
        let reply = reply.map_err(|_| Failure::stopping(self.group.id()))?;
        if self.group.0.replica.epoch() == self.epoch {
            self.group.0.metrics.snapshots_installed.inc();
            tracing::info!(group = %self.group.id(), epoch = self.epoch, records = self.records, "installed a snapshot");
        }
        Ok(pb::SnapshotReply { vote: Some(vote_to_pb(&reply.vote)) })
    }
}

/// Takes one record (u32 key length, u32 value length, key, value) off the front.
fn take_record<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (head, tail) = rest.split_at_checked(8)?;
    let key_len = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let value_len = u32::from_le_bytes(head[4..].try_into().ok()?) as usize;
    let (key, tail) = tail.split_at_checked(key_len)?;
    let (value, tail) = tail.split_at_checked(value_len)?;
    *rest = tail;
    Some((key, value))
}

impl SnapshotSink for SnapshotReceiver {
    fn records(&mut self, chunk: Bytes) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let ops = self.parse(&chunk)?;
            self.engine.write(ops).await.map_err(|e| Failure::internal(e.to_string()))?;
            if planted::has(Fault::SnapshotSwitchedEarly) {
                self.install().await?;
            }
            Ok(())
        })
    }

    fn finish(
        self: Box<Self>,
        end: pb::SnapshotEnd,
    ) -> BoxFuture<'static, Result<pb::SnapshotReply, Failure>> {
        // On a task of its own: were the caller gone in the middle, the records must not be removed
        // while they are being installed.
        let group = self.group.id();
        let install = tokio::spawn(self.finish_install(end));
        Box::pin(async move { install.await.unwrap_or_else(|_| Err(Failure::stopping(group))) })
    }
}

impl Drop for SnapshotReceiver {
    fn drop(&mut self) {
        if self.group.0.replica.epoch() != self.epoch {
            let (from, to) = keyspace::state_range(self.group.id(), self.epoch);
            let ops = vec![WriteOp::DeleteRange { family: Family::State, from, to }];
            self.engine.submit(Write { ops, done: None });
        }
    }
}
