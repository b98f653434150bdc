//! Checkpoints and the length of the log.

use crate::group::Group;
use futures::FutureExt;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Entries kept behind the checkpoint at least, for members that are a little behind.
const ENTRIES_KEPT: u64 = 64;

/// What was done last.
pub struct Upkeep {
    last_checkpoint: Mutex<Instant>,
    purged: Mutex<u64>,
    recovered: AtomicBool,
    recover_to: u64,
}

impl Upkeep {
    /// `recover_to` is the last index that the log held at the start: a replica serves once it has
    /// applied that far, or has learnt from a leader that it need not.
    pub fn new(now: Instant, recover_to: u64) -> Upkeep {
        Upkeep {
            last_checkpoint: Mutex::new(now),
            purged: Mutex::new(0),
            recovered: AtomicBool::new(recover_to == 0),
            recover_to,
        }
    }

    /// Whether the replica has applied what it held when it started.
    pub fn is_recovered(&self) -> bool {
        self.recovered.load(Ordering::Relaxed)
    }
}

impl Group {
    /// Begins a checkpoint when it is due and purges the log behind the last one.
    pub(super) fn upkeep(&self, now: Instant, log_tail_bytes: u64) {
        if !self.0.upkeep.is_recovered() {
            self.note_recovery();
        }
        self.begin_checkpoint_if_due(now);
        self.purge_behind_checkpoint(log_tail_bytes);
    }

    fn note_recovery(&self) {
        let last = self.0.raft.metrics().borrow_watched().last_log_index.unwrap_or(0);
        let target = self.0.upkeep.recover_to.min(last);
        if self.0.replica.applied_index() >= target {
            self.0.upkeep.recovered.store(true, Ordering::Relaxed);
        }
    }

    fn begin_checkpoint_if_due(&self, now: Instant) {
        let unsaved = self.0.replica.unsaved_bytes();
        if unsaved == 0 {
            return;
        }
        let mut last = self.0.upkeep.last_checkpoint.lock();
        let is_due = unsaved >= self.0.options.checkpoint_log_bytes
            || now.duration_since(*last) >= self.0.options.checkpoint_interval;
        if !is_due {
            return;
        }
        // openraft begins no second checkpoint while one is being written.
        let trigger = self.0.raft.trigger();
        if tokio::task::unconstrained(trigger.snapshot()).now_or_never().is_some() {
            *last = now;
        }
    }

    /// Followers keep a tail as well: whoever leads next can serve a member that lags a little from
    /// its log.
    fn purge_behind_checkpoint(&self, log_tail_bytes: u64) {
        let Some(checkpointed) = self.0.replica.checkpointed() else { return };
        let upto = checkpointed.index().saturating_sub(ENTRIES_KEPT).min(self.needed_by_followers());
        let upto = self.0.log.purgeable(upto, log_tail_bytes.min(self.0.options.log_bytes_max));
        let mut purged = self.0.upkeep.purged.lock();
        if upto <= *purged {
            return;
        }
        let trigger = self.0.raft.trigger();
        if tokio::task::unconstrained(trigger.purge_log(upto)).now_or_never().is_some() {
            *purged = upto;
        }
    }

    /// Up to where every follower has the log; no bound when the log has outgrown its limit.
    fn needed_by_followers(&self) -> u64 {
        if self.0.log.log_bytes() > self.0.options.log_bytes_max {
            return u64::MAX;
        }
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        match &metrics.replication {
            Some(all) => {
                all.values().map(|matched| matched.map_or(0, |id| id.index())).min().unwrap_or(u64::MAX)
            }
            None => u64::MAX,
        }
    }
}
