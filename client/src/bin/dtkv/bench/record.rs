//! Counts answers and their latencies.

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// Latencies in ns: three digits, from 0.1 us to two minutes.
pub(super) fn histogram() -> Histogram<u64> {
    // The bounds are constants that the constructor accepts.
    Histogram::new_with_bounds(100, 120_000_000_000, 3).unwrap_or_else(|_| unreachable!())
}

/// What happens in one run.
pub struct Recorder {
    phase: AtomicU8,
    shards: Vec<Shard>,
    errors: Mutex<BTreeMap<String, u64>>,
}

/// One for each connection, so that answers of different connections do not meet at a lock.
#[repr(align(128))]
struct Shard {
    /// All answers, in any phase: for the line a second.
    answers: AtomicU64,
    latencies: Mutex<Latencies>,
}

/// Latencies of puts and gets that succeeded while it was measured.
#[derive(Clone)]
pub struct Latencies {
    pub puts: Histogram<u64>,
    pub gets: Histogram<u64>,
}

impl Latencies {
    fn new() -> Latencies {
        Latencies { puts: histogram(), gets: histogram() }
    }

    /// Both together.
    pub fn all(&self) -> Histogram<u64> {
        let mut all = self.puts.clone();
        // Both have the same bounds.
        let _ = all.add(&self.gets);
        all
    }
}

impl Recorder {
    pub fn new(connections: usize) -> Recorder {
        let shard = || Shard { answers: AtomicU64::new(0), latencies: Mutex::new(Latencies::new()) };
        Recorder {
            phase: AtomicU8::new(WARMING_UP),
            shards: std::iter::repeat_with(shard).take(connections).collect(),
            errors: Mutex::default(),
        }
    }

    pub fn begin(&self) {
        self.phase.store(MEASURING, Relaxed);
    }

    pub fn end(&self) {
        self.phase.store(OVER, Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.phase.load(Relaxed) == OVER
    }

    /// An operation of a connection, issued at `since`, succeeded.
    pub fn succeeded(&self, connection: usize, is_read: bool, since: Instant) {
        let shard = &self.shards[connection];
        shard.answers.fetch_add(1, Relaxed);
        if self.phase.load(Relaxed) != MEASURING {
            return;
        }
        let ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut latencies = shard.latencies.lock();
        if is_read { latencies.gets.saturating_record(ns) } else { latencies.puts.saturating_record(ns) }
    }

    /// An operation failed. Those that fail after the end were issued before it, and a store that
    /// answers nothing shows only there.
    pub fn failed(&self, reason: String) {
        if self.phase.load(Relaxed) != WARMING_UP {
            *self.errors.lock().entry(reason).or_default() += 1;
        }
    }

    /// Answers so far, warm-up included.
    pub fn answers(&self) -> u64 {
        self.shards.iter().map(|shard| shard.answers.load(Relaxed)).sum()
    }

    /// Failures so far.
    pub fn failures(&self) -> u64 {
        self.errors.lock().values().sum()
    }

    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().clone()
    }

    pub fn latencies(&self) -> Latencies {
        let mut sum = Latencies::new();
        for shard in &self.shards {
            let latencies = shard.latencies.lock();
            let _ = sum.puts.add(&latencies.puts);
            let _ = sum.gets.add(&latencies.gets);
        }
        sum
    }
}

/// CPU time that this process has used, where the system tells.
pub fn cpu_time() -> Option<Duration> {
    /// Linux reports in hundredths of a second on every platform of today.
    const TICKS_PER_S: u64 = 100;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the name, may hold blanks; it ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_measured_phase_counts() {
        let recorder = Recorder::new(2);
        let since = Instant::now();
        recorder.succeeded(0, false, since);
        recorder.failed("TIMEOUT".into());
        recorder.begin();
        recorder.succeeded(0, false, since);
        recorder.succeeded(1, true, since);
        recorder.failed("TIMEOUT".into());
        recorder.end();
        recorder.succeeded(1, true, since);
        recorder.failed("TIMEOUT".into());
        let latencies = recorder.latencies();
        assert_eq!((latencies.puts.len(), latencies.gets.len(), latencies.all().len()), (1, 1, 2));
        assert_eq!(recorder.answers(), 4);
        assert_eq!(recorder.errors(), BTreeMap::from([("TIMEOUT".to_string(), 2)]));
        assert!(recorder.is_over());
    }

    #[test]
    fn own_cpu_time_is_known() {
        assert!(cpu_time().is_some());
    }
}
