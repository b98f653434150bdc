//! Ends the leases whose time is over.
//!
//! Only the leader does it, and only through the log: its entry names each node with the index of
//! the lease that it saw, and does nothing to a node whose lease was renewed in front of it. So an
//! entry that comes late, or from a leader that is none any more, does no harm.
//!
//! Nothing is polled. The scheduler of a replica sleeps until the next deadline; an earlier one, and
//! a change of leadership, wake it. It sleeps all the same in a parked group, and wakes the group.

use crate::clock;
use crate::failure::Failure;
use crate::group::propose::WriteFrame;
use crate::group::raft::TypeConfig;
use crate::group::{Group, Inner};
use crate::tree::Due;
use bytes::Bytes;
use dtkv_client::packed::expiry::Expired;
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use futures::channel::oneshot;
use openraft::async_runtime::WatchReceiver;
use openraft::type_config::alias::WatchReceiverOf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// Most nodes in one entry, so that expiry does not hold up the writes of clients.
const BATCH_MAX: usize = 50;
/// When a proposal that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a proposal may take.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A group with leases proposes something at least this often: what was not written down of the
/// group clock is lost in a restart.
const TICK_AFTER: Duration = Duration::from_secs(30);
/// Nothing to do until something changes.
const NEVER: Duration = Duration::from_secs(3600);

/// Tells of changes of leadership.
type Roles = WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>;

/// The scheduler of a replica; it ends when this is dropped.
pub(super) struct Scheduler(tokio::task::JoinHandle<()>);

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Scheduler {
    /// Starts it for a replica.
    pub(super) fn start(group: &Group) -> Scheduler {
        let earlier = group.0.replica.earlier_deadline();
        let roles = group.0.raft.server_metrics();
        Scheduler(tokio::spawn(run(Arc::downgrade(&group.0), earlier, roles)))
    }
}

async fn run(group: Weak<Inner>, earlier: Arc<Notify>, mut roles: Roles) {
    loop {
        let Some(inner) = group.upgrade() else { return };
        let wait = Group(inner).expire().await;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = earlier.notified() => {}
            changed = roles.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

impl Group {
    /// Expires what is due, if this replica leads; answers when to look again.
    async fn expire(&self) -> Duration {
        if !self.is_leader() {
            return NEVER;
        }
        let due = self.0.replica.due(BATCH_MAX);
        if due.is_empty() {
            let Some(wait) = self.0.replica.until_deadline() else { return NEVER };
            let tick = self.0.replica.until_idle_for(TICK_AFTER);
            if !tick.is_zero() {
                return wait.min(tick);
            }
        }
        match self.propose_expiry(&due).await {
            Ok(()) => Duration::ZERO,
            Err(failure) => {
                tracing::debug!(group = %self.id(), %failure, "leases are not ended yet");
                RETRY
            }
        }
    }

    /// Proposes to end these leases; none of them is a tick of the group clock.
    async fn propose_expiry(&self, due: &[Due]) -> Result<(), Failure> {
        let mut value = Vec::new();
        due.iter().for_each(|due| Expired { ttl_index: due.ttl_index, key: &due.key }.pack(&mut value));
        let mut ops = Vec::new();
        Op::new(Kind::Expire, b"", &value).pack(&mut ops);
        let (send, answer) = oneshot::channel();
        self.propose(WriteFrame {
            ops: Bytes::from(ops),
            count: 1,
            deadline: clock::now() + PROPOSAL_TIMEOUT,
            // The scheduler may have ended.
            reply: Box::new(move |answer| drop(send.send(answer))),
        });
        let answer = answer.await.map_err(|_| Failure::stopping(self.id()).unknown())??;
        if let Ok(PackedResult::Count(_, removed)) = packed::results(&answer.results).next(Kind::Expire) {
            self.0.metrics.expired.inc_by(removed.into());
        }
        let clock_ms = self.0.replica.clock_ms();
        for due in due {
            let late_ms = clock_ms.saturating_sub(due.deadline_ms);
            self.0.metrics.expiry_lag_seconds.observe(Duration::from_millis(late_ms).as_secs_f64());
        }
        Ok(())
    }
}
