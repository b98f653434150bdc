//! Appends through the engine, closed loop, logs purged behind the end:
//! `cargo bench --profile release -p dtkv-node --bench engine [-- DIRECTORY [SECONDS]]`.

use crossbeam_channel::{Receiver, Sender, unbounded};
use dtkv_node::clock;
use dtkv_node::engine::{Durability, Engine, EngineMetrics, EngineOptions, Write, WriteOp};
use dtkv_node::ids::GroupId;
use dtkv_node::keyspace::{Family, log_key, log_range};
use std::path::Path;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Log kept of each group, in all groups together.
const KEPT_BYTES: u64 = 32 << 20;

struct Load {
    name: &'static str,
    groups: u32,
    entry_bytes: usize,
    in_flight: usize,
    durability: Durability,
}

const fn load(name: &'static str, groups: u32, entry_bytes: usize, in_flight: usize) -> Load {
    Load { name, groups, entry_bytes, in_flight, durability: Durability::Fsync }
}

const LOADS: [Load; 6] = [
    load("one at a time, 300 B", 1, 300, 1),
    load("1 group, 16 KiB", 1, 16 << 10, 16),
    load("1 group, 64 KiB", 1, 64 << 10, 8),
    load("256 groups, 1 KiB", 256, 1 << 10, 256),
    load("256 groups, 1 KiB, 2000 in flight", 256, 1 << 10, 2000),
    Load { durability: Durability::Os, ..load("one at a time, 300 B, os", 1, 300, 1) },
];

struct Done {
    group: u32,
    submitted: Instant,
}

struct Run<'a> {
    engine: Engine,
    load: &'a Load,
    /// Next index of each group.
    next: Vec<u64>,
    tell: Sender<Done>,
    told: Receiver<Done>,
}

impl Run<'_> {
    fn submit(&mut self, group: u32) {
        let id = GroupId(group);
        let index = self.next[group as usize];
        self.next[group as usize] += 1;
        let key = log_key(id, index).to_vec();
        let value = vec![index as u8; self.load.entry_bytes].into();
        let mut ops = vec![WriteOp::Put { family: Family::Log, key, value }];
        let kept = (KEPT_BYTES / u64::from(self.load.groups) / self.load.entry_bytes as u64).max(8);
        if index.is_multiple_of(kept) && index >= 2 * kept {
            ops.push(WriteOp::delete_range(Family::Log, log_range(id, index - 2 * kept, index - kept)));
        }
        let (tell, submitted) = (self.tell.clone(), clock::now());
        let done = move |result: std::io::Result<()>| {
            result.expect("the disk works");
            let _ = tell.send(Done { group, submitted });
        };
        self.engine.submit(Write { ops, done: Some(Box::new(done)) });
    }

    fn run(&mut self, time: Duration) -> Vec<Duration> {
        let mut latencies = Vec::new();
        let start = clock::now();
        while clock::now() - start < time {
            let Done { group, submitted } = self.told.recv().expect("something is in flight");
            latencies.push(clock::now() - submitted);
            self.submit(group);
        }
        latencies
    }
}

/// CPU time of this process in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn syncs(registry: &prometheus::Registry) -> u64 {
    let families = registry.gather();
    let sync = families.iter().find(|f| f.name() == "dtkv_engine_sync_seconds");
    sync.map_or(0, |f| f.get_metric()[0].get_histogram().get_sample_count())
}

fn measure(directory: &Path, load: &Load, time: Duration) {
    let directory = directory.join("engine-bench");
    let registry = prometheus::Registry::new();
    let options = EngineOptions { durability: load.durability, ..EngineOptions::new(&directory) };
    let engine = Engine::open(options, EngineMetrics::register(&registry)).expect("the directory is usable");
    let (tell, told) = unbounded();
    let mut run = Run { engine, load, next: vec![0; load.groups as usize], tell, told };
    (0..load.in_flight).for_each(|i| run.submit(i as u32 % load.groups));
    // Until log files are used again.
    run.run(time);
    let (cpu, synced, start) = (cpu_seconds(), syncs(&registry), clock::now());
    let mut latencies = run.run(time);
    let seconds = (clock::now() - start).as_secs_f64();
    let (cpu, synced) = (cpu_seconds() - cpu, syncs(&registry) - synced);
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_micros();
    println!(
        "{:36} {:8.0} appends/s {:6.0} syncs/s {:7.1} MB/s  p50 {:5} p99 {:6} us  {:5.1} us CPU an append",
        load.name,
        latencies.len() as f64 / seconds,
        synced as f64 / seconds,
        latencies.len() as f64 * load.entry_bytes as f64 / seconds / 1e6,
        at(0.5),
        at(0.99),
        cpu * 1e6 / latencies.len() as f64,
    );
    run.engine.shutdown();
    drop(run);
    let _ = std::fs::remove_dir_all(&directory);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let directory = arguments.first().cloned().unwrap_or_else(|| "target".into());
    let seconds = arguments.get(1).and_then(|s| s.parse().ok()).unwrap_or(2);
    for load in &LOADS {
        measure(Path::new(&directory), load, Duration::from_secs(seconds));
    }
}
