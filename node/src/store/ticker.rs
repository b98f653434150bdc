//! The upkeep of all groups, and the eviction of leaders.

use crate::store::{Inner, Store};
use std::sync::Weak;
use std::time::Duration;

/// How long an evicted leader may take to find a successor before the next try.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Most of the log that one group keeps behind its checkpoint, however few groups share the node's
/// part.
const LOG_TAIL_BYTES_MAX: u64 = 4 << 20;

/// Ticks every replica that is awake until the store is gone.
pub(super) async fn run(store: Weak<Inner>) {
    let Some(interval) = store.upgrade().map(|inner| inner.options.tick_interval) else { return };
    let mut interval = tokio::time::interval(interval);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut eviction: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        interval.tick().await;
        let Some(inner) = store.upgrade() else { return };
        let store = Store(inner);
        store.tick();
        if store.is_evicting_leaders() && eviction.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            eviction = Some(tokio::spawn(evict_leaders(store)));
        }
    }
}

impl Store {
    fn tick(&self) {
        let groups = self.0.groups.read();
        let share = self.0.options.group.log_tail_bytes / groups.len().max(1) as u64;
        for group in groups.values().filter(|group| !group.is_parked()) {
            group.tick(share.min(LOG_TAIL_BYTES_MAX));
        }
    }
}

async fn evict_leaders(store: Store) {
    for group in store.groups() {
        if store.is_evicting_leaders() {
            group.hand_over(EVICTION_TIMEOUT).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
}
