//! Bounds what one producer has in flight, at a few nanoseconds an operation.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Places for operations in flight. One producer thread takes them, many answers give them back.
pub struct Gate {
    capacity: usize,
    /// A sleeping producer is woken only when so many are free: to wake it for each single answer
    /// would cost more than the operation.
    wake_at: usize,
    free: AtomicUsize,
    is_waiting: AtomicBool,
    is_closed: AtomicBool,
    producer: OnceLock<Thread>,
}

impl Gate {
    pub fn new(capacity: usize) -> Gate {
        Gate {
            capacity,
            wake_at: (capacity / 16).clamp(1, 64),
            free: AtomicUsize::new(capacity),
            is_waiting: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            producer: OnceLock::new(),
        }
    }

    /// Most places taken at once.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes all free places, waits while there is none. 0 = the gate is closed. To be called by
    /// one thread only.
    pub fn take(&self) -> usize {
        let _ = self.producer.set(thread::current());
        loop {
            if self.is_closed.load(SeqCst) {
                return 0;
            }
            let free = self.free.swap(0, SeqCst);
            if free > 0 {
                return free;
            }
            self.is_waiting.store(true, SeqCst);
            // Looked at again after the flag is up: an answer between the two would wake nobody.
            if self.free.load(SeqCst) < self.wake_at && !self.is_closed.load(SeqCst) {
                thread::park();
            }
            self.is_waiting.store(false, SeqCst);
        }
    }

    /// Gives places back.
    pub fn give(&self, places: usize) {
        let free = self.free.fetch_add(places, SeqCst) + places;
        if free >= self.wake_at && self.is_waiting.load(SeqCst) && self.is_waiting.swap(false, SeqCst) {
            self.wake();
        }
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.is_closed.store(true, SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Some(producer) = self.producer.get() {
            producer.unpark();
        }
    }

    /// Waits until every place was given back; false when the time ran out.
    pub async fn drained(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.free.load(SeqCst) < self.capacity {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn no_more_than_the_capacity_is_in_flight_and_nobody_sleeps_for_ever() {
        for capacity in [1, 3, 1000] {
            let gate = Arc::new(Gate::new(capacity));
            let (send, receive) = std::sync::mpsc::channel::<usize>();
            let answers = {
                let gate = gate.clone();
                thread::spawn(move || receive.into_iter().for_each(|places| gate.give(places)))
            };
            let mut taken = 0;
            while taken < 100_000 {
                let places = gate.take();
                assert!((1..=capacity).contains(&places));
                taken += places;
                (0..places).for_each(|_| send.send(1).unwrap());
            }
            drop(send);
            answers.join().unwrap();
            assert_eq!(gate.free.load(SeqCst), capacity);
        }
    }

    #[test]
    fn closing_wakes_the_producer() {
        let gate = Arc::new(Gate::new(1));
        assert_eq!(gate.take(), 1);
        let closer = {
            let gate = gate.clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                gate.close();
            })
        };
        // The gate remembers the first thread that took; this is still that one.
        assert_eq!(gate.take(), 0);
        closer.join().unwrap();
    }

    #[tokio::test]
    async fn gate_tells_whether_all_came_back() {
        let gate = Gate::new(2);
        assert_eq!(gate.take(), 2);
        gate.give(1);
        assert!(!gate.drained(Duration::from_millis(5)).await);
        gate.give(1);
        assert!(gate.drained(Duration::from_millis(5)).await);
    }
}
