//! Bounds what is in flight, in operations and in bytes.

use tokio::sync::Semaphore;

/// Bytes are counted in units, because a semaphore hands out at most 2^32 permits at once.
const UNIT_BYTES: usize = 64;

/// Room for operations. What was taken is given back by hand, a whole frame at a time.
pub(crate) struct Limiter {
    ops_max: usize,
    ops: Semaphore,
    units: Semaphore,
}

/// Room that one operation takes, in units.
pub(crate) fn units(op_bytes: usize) -> u32 {
    u32::try_from(op_bytes / UNIT_BYTES + 1).unwrap_or(u32::MAX)
}

impl Limiter {
    pub fn new(ops: usize, bytes: usize) -> Limiter {
        let units = (bytes / UNIT_BYTES + 1).min(u32::MAX as usize);
        let ops_max = ops.min(Semaphore::MAX_PERMITS);
        Limiter { ops_max, ops: Semaphore::new(ops_max), units: Semaphore::new(units) }
    }

    /// Takes room for some operations, or nothing.
    #[inline]
    pub fn try_take(&self, ops: u32, units: u32) -> bool {
        let Ok(ops) = self.ops.try_acquire_many(ops) else { return false };
        let Ok(units) = self.units.try_acquire_many(units) else { return false };
        ops.forget();
        units.forget();
        true
    }

    /// Waits for room for some operations. Dropped while waiting, it takes nothing.
    pub async fn take(&self, ops: u32, units: u32) {
        // The semaphores are never closed, so waiting cannot fail.
        if let (Ok(ops), Ok(units)) = (self.ops.acquire_many(ops).await, self.units.acquire_many(units).await)
        {
            ops.forget();
            units.forget();
        }
    }

    /// Gives room back.
    pub fn give_back(&self, ops: u32, units: usize) {
        self.ops.add_permits(ops as usize);
        self.units.add_permits(units);
    }

    /// Waits until there is room for an operation.
    pub async fn ready(&self) {
        drop(self.ops.acquire().await);
        drop(self.units.acquire().await);
    }

    /// True when nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.ops.available_permits() >= self.ops_max
    }

    /// Operations that could be taken now.
    #[cfg(test)]
    pub fn room(&self) -> (usize, usize) {
        (self.ops.available_permits(), self.units.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn nothing_is_taken_when_one_of_the_two_is_short() {
        let limiter = Limiter::new(10, 640);
        assert!(limiter.try_take(1, 11));
        assert!(!limiter.try_take(1, 1));
        assert_eq!(limiter.room(), (9, 0));
        limiter.give_back(1, 11);
        assert_eq!(limiter.room(), (10, 11));
    }

    #[test]
    fn dropped_waiter_takes_nothing() {
        let limiter = Limiter::new(1, 640);
        assert!(limiter.try_take(1, 1));
        assert!(limiter.take(1, 1).now_or_never().is_none());
        limiter.give_back(1, 1);
        assert_eq!(limiter.room(), (1, 11));
    }
}
