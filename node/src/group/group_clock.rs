//! The group clock: milliseconds that have passed for a group, the same for all its replicas.
//!
//! Leases are measured with it. Every entry carries the clock of the leader that proposed it, and
//! every replica lets its own go on from the highest that it has seen, by monotonic time. So
//! whoever becomes leader goes on where the one before was, however the machines' wall clocks
//! stand. Replicas differ only by what has passed between a proposal and its application, and none
//! is ever ahead of the time that has really passed: a lease may end late, never early. A group
//! that was down as a whole has lost the time since its last entry.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One replica's view of the clock of its group.
#[derive(Debug)]
pub struct GroupClock {
    started: Instant,
    /// What the clock showed at `started`.
    base_ms: AtomicU64,
}

impl GroupClock {
    /// It showed `clock_ms`, or more, at `now`.
    pub fn new(clock_ms: u64, now: Instant) -> GroupClock {
        GroupClock { started: now, base_ms: AtomicU64::new(clock_ms) }
    }

    /// What it shows.
    pub fn at(&self, now: Instant) -> u64 {
        self.base_ms.load(Ordering::Acquire) + self.elapsed(now).as_millis() as u64
    }

    /// Somebody saw it at `clock_ms`, at `now` or before.
    pub fn observe(&self, clock_ms: u64, now: Instant) {
        // A started millisecond counts as a whole one here, and as none in `at`: rounding must not
        // make the clock run ahead.
        let elapsed_ms = self.elapsed(now).as_nanos().div_ceil(1_000_000) as u64;
        self.base_ms.fetch_max(clock_ms.saturating_sub(elapsed_ms), Ordering::AcqRel);
    }

    /// How long until it shows `clock_ms`; nothing when it does already.
    pub fn until(&self, clock_ms: u64, now: Instant) -> Duration {
        let wanted = Duration::from_millis(clock_ms.saturating_sub(self.base_ms.load(Ordering::Acquire)));
        wanted.saturating_sub(self.elapsed(now))
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_goes_on_from_the_highest_that_was_seen_and_never_back() {
        let start = crate::clock::now();
        let after = |ms: u64| start + Duration::from_millis(ms);
        let clock = GroupClock::new(500, start);
        assert_eq!((clock.at(start), clock.at(after(20))), (500, 520));
        clock.observe(510, after(20));
        assert_eq!(clock.at(after(20)), 520, "it had heard of a later time");
        clock.observe(1_000, after(30));
        assert_eq!((clock.at(after(30)), clock.at(after(35))), (1_000, 1_005));
        assert_eq!(clock.until(1_010, after(35)), Duration::from_millis(5));
        assert_eq!(clock.until(1_000, after(35)), Duration::ZERO);
        let halfway = after(35) + Duration::from_micros(400);
        assert_eq!(clock.until(1_010, halfway), Duration::from_micros(4_600));
    }

    proptest! {
        /// However it is handed on, nobody's clock is ahead of the first one's.
        #[test]
        fn no_replica_runs_ahead(hops in prop::collection::vec((0u64..5_000_000, 0u64..5_000_000), 1..50)) {
            let start = crate::clock::now();
            let mut now = start;
            let mut clock = GroupClock::new(0, start);
            for (waited_ns, on_the_way_ns) in hops {
                now += Duration::from_nanos(waited_ns);
                let sent = clock.at(now);
                let opened = now;
                now += Duration::from_nanos(on_the_way_ns);
                clock = GroupClock::new(0, opened);
                clock.observe(sent, now);
                prop_assert!(clock.at(now) as u128 <= (now - start).as_millis());
            }
        }
    }
}
