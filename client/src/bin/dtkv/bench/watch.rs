//! `dtkv bench watch`: how many deliveries a second, and how long after the write was acknowledged.
//!
//! Independent clients watch a few keys with many watches each; one more client writes these keys on
//! a schedule. A value carries the number of its write, so that whoever is told of it can look up
//! when that was acknowledged.

use super::record::{cpu_time, histogram};
use super::report::Latency;
use crate::args::BenchArgs;
use crate::context::{self, Context};
use crate::fault::{Exit, Fault};
use crate::output::{Report, pairs, size};
use bytes::Bytes;
use dtkv_client::packed::{Kind, Op};
use dtkv_client::{Change, Client, Error, EventWatch, Group, StateWatch};
use futures::future::try_join_all;
use futures::stream::{BoxStream, SelectAll};
use futures::{StreamExt, TryStreamExt};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;

/// Writes a second, unless told otherwise.
const RATE: u64 = 10_000;
/// Directory of the keys.
const DIRECTORY: &str = "bench-watch";
/// Watches that are made at once.
const BEGUN_AT_ONCE: usize = 1000;
/// How exactly the schedule of the writes is kept.
const WRITE_TICK: Duration = Duration::from_millis(1);
/// Writes are numbered for this much longer than it is measured.
const SLACK_SECONDS: u64 = 5;

/// What writer and watchers share.
struct Shared {
    begin: Instant,
    /// When each write was acknowledged, in ns since `begin`; 0 = not yet.
    acknowledged: Vec<AtomicU64>,
    is_measuring: AtomicBool,
    writes: AtomicU64,
    failed: AtomicU64,
}

impl Shared {
    fn new(writes_max: u64) -> Shared {
        Shared {
            begin: Instant::now(),
            acknowledged: (0..writes_max).map(|_| AtomicU64::new(0)).collect(),
            is_measuring: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

pub async fn run(context: &Context, args: &BenchArgs) -> Result<Exit, Fault> {
    let group = context.group();
    group.mkdir(DIRECTORY).await?;
    let rate = args.rate.unwrap_or(RATE);
    let seconds = (args.warm_up + args.duration).as_secs() + SLACK_SECONDS;
    let shared = Arc::new(Shared::new(rate * seconds));
    let (over, is_over) = tokio::sync::watch::channel(false);
    let mut listeners = JoinSet::new();
    for number in 0..args.connections {
        let client = context::connect(Client::builder(), &context.settings).await?;
        let watches = begin(&client.group(group.id()), args, number).await?;
        listeners.spawn(listen(watches, shared.clone(), is_over.clone()));
    }
    if !args.quiet {
        eprintln!("{} watches over {} connections are there; writing", args.watchers, args.connections);
    }
    let writer = tokio::spawn(write(group, shared.clone(), args.clone(), rate, is_over));
    tokio::time::sleep(args.warm_up).await;
    let measured = measure(&shared, args.duration).await;
    let _ = over.send(true);
    let _ = writer.await;
    let mut told = Told::new();
    while let Some(one) = listeners.join_next().await {
        told.add(&one.map_err(|_| Fault::failed("a connection's task panicked"))?);
    }
    context.print(&report(args, &shared, &told, &measured))?;
    Ok(if told.deliveries > 0 { Exit::Done } else { Exit::Failed })
}

/// What was seen from outside while it was measured.
struct Measured {
    elapsed: Duration,
    writes: u64,
    cpu: Option<Duration>,
    memory: Option<u64>,
}

async fn measure(shared: &Shared, time: Duration) -> Measured {
    let (cpu_before, started) = (cpu_time(), Instant::now());
    let writes_before = shared.writes.load(Relaxed);
    shared.is_measuring.store(true, Relaxed);
    tokio::time::sleep(time).await;
    shared.is_measuring.store(false, Relaxed);
    Measured {
        elapsed: started.elapsed(),
        writes: shared.writes.load(Relaxed) - writes_before,
        cpu: cpu_time().zip(cpu_before).map(|(after, before)| after.saturating_sub(before)),
        memory: memory_bytes(),
    }
}

/// A watch of either kind, as the values that it is told.
type Values = BoxStream<'static, Result<Option<Bytes>, Error>>;

fn values_of_states(watch: StateWatch) -> Values {
    watch.map_ok(|state| state.value().cloned()).boxed()
}

fn values_of_events(watch: EventWatch) -> Values {
    let value = |change| match change {
        Change::Event(event) => event.value,
        Change::Resynced(_) => None,
    };
    watch.map_ok(value).boxed()
}

fn key(number: u32) -> String {
    format!("{DIRECTORY}.key{number}")
}

/// The watches of one connection, once all of them are registered.
async fn begin(group: &Group, args: &BenchArgs, connection: u32) -> Result<SelectAll<Values>, Fault> {
    let mine = |at: &u32| u64::from(*at) * u64::from(args.connections) / u64::from(args.watchers);
    let numbers: Vec<u32> = (0..args.watchers).filter(|at| mine(at) == u64::from(connection)).collect();
    let mut all = SelectAll::new();
    for part in numbers.chunks(BEGUN_AT_ONCE) {
        let keys = part.iter().map(|at| key(at % args.watched_keys));
        if args.states {
            keys.for_each(|key| all.push(values_of_states(group.watch(key))));
            continue;
        }
        let mut watches: Vec<EventWatch> = keys.map(|key| group.watch_events(key).start()).collect();
        try_join_all(watches.iter_mut().map(EventWatch::begun)).await?;
        watches.into_iter().for_each(|watch| all.push(values_of_events(watch)));
    }
    Ok(all)
}

/// What one connection was told while it was measured.
struct Told {
    latencies: Histogram<u64>,
    deliveries: u64,
    early: u64,
    missing: u64,
}

impl Told {
    fn new() -> Told {
        Told { latencies: histogram(), deliveries: 0, early: 0, missing: 0 }
    }

    fn add(&mut self, other: &Told) {
        // Both have the same bounds.
        let _ = self.latencies.add(&other.latencies);
        self.deliveries += other.deliveries;
        self.early += other.early;
        self.missing += other.missing;
    }

    fn note(&mut self, shared: &Shared, value: Option<&Bytes>) {
        if !shared.is_measuring.load(Relaxed) {
            return;
        }
        let number =
            value.and_then(|value| value.first_chunk::<8>()).map(|number| u64::from_le_bytes(*number));
        let Some(write) = number.and_then(|number| shared.acknowledged.get(number as usize)) else {
            self.missing += 1;
            return;
        };
        self.deliveries += 1;
        match write.load(Relaxed) {
            0 => {
                self.early += 1;
                self.latencies.saturating_record(0);
            }
            acknowledged => self.latencies.saturating_record(shared.now_ns().saturating_sub(acknowledged)),
        }
    }
}

async fn listen(mut watches: SelectAll<Values>, shared: Arc<Shared>, mut is_over: Receiver<bool>) -> Told {
    let mut told = Told::new();
    loop {
        let next = tokio::select! {
            next = watches.next() => next,
            _ = is_over.changed() => return told,
        };
        match next {
            Some(Ok(value)) => told.note(&shared, value.as_ref()),
            Some(Err(_)) => told.missing += 1,
            None => return told,
        }
    }
}

/// Writes the keys in turn, on a schedule.
async fn write(group: Group, shared: Arc<Shared>, args: BenchArgs, rate: u64, is_over: Receiver<bool>) {
    let mut value = vec![0; (args.value_bytes as usize).max(8)];
    let keys: Vec<String> = (0..args.watched_keys).map(key).collect();
    let mut tick = tokio::time::interval(WRITE_TICK);
    let begin = Instant::now();
    for number in 0..shared.acknowledged.len() as u64 {
        while number >= (begin.elapsed().as_secs_f64() * rate as f64) as u64 {
            tick.tick().await;
        }
        if *is_over.borrow() {
            return;
        }
        group.ready().await;
        value[..8].copy_from_slice(&number.to_le_bytes());
        let (shared, key) = (shared.clone(), &keys[number as usize % keys.len()]);
        group.submit(&Op::new(Kind::Put, key.as_bytes(), &value), move |outcome| match outcome {
            Ok(_) => {
                shared.acknowledged[number as usize].store(shared.now_ns(), Relaxed);
                shared.writes.fetch_add(1, Relaxed);
            }
            Err(_) => drop(shared.failed.fetch_add(1, Relaxed)),
        });
    }
}

/// Memory of this process, where the system tells.
fn memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Figures of a run.
#[derive(Serialize)]
struct WatchReport {
    watchers: u32,
    connections: u32,
    watched_keys: u32,
    mode: &'static str,
    value_bytes: u32,
    seconds: f64,
    writes_per_second: f64,
    failed_writes: u64,
    deliveries_per_second: f64,
    /// They came before the acknowledgement of the write, and count with a latency of 0.
    early_percent: f64,
    /// Deliveries without a value: resyncs and errors.
    missing: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_cpu_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_memory_bytes: Option<u64>,
}

fn report(args: &BenchArgs, shared: &Shared, told: &Told, measured: &Measured) -> WatchReport {
    let seconds = measured.elapsed.as_secs_f64();
    let hundredths = |figure: f64| (figure * 100.0).round() / 100.0;
    WatchReport {
        watchers: args.watchers,
        connections: args.connections,
        watched_keys: args.watched_keys,
        mode: if args.states { "states" } else { "events" },
        value_bytes: args.value_bytes.max(8),
        seconds: hundredths(seconds),
        writes_per_second: (measured.writes as f64 / seconds).round(),
        failed_writes: shared.failed.load(Relaxed),
        deliveries_per_second: (told.deliveries as f64 / seconds).round(),
        early_percent: hundredths(100.0 * told.early as f64 / told.deliveries.max(1) as f64),
        missing: told.missing,
        latency: Latency::of(&told.latencies),
        client_cpu_cores: measured.cpu.map(|cpu| hundredths(cpu.as_secs_f64() / seconds)),
        client_memory_bytes: measured.memory,
    }
}

impl Report for WatchReport {
    fn text(&self) -> String {
        let mut rows = vec![
            ("watches", format!("{} ({}) over {} connections", self.watchers, self.mode, self.connections)),
            ("keys", self.watched_keys.to_string()),
            ("writes/s", format!("{} ({} failed)", self.writes_per_second, self.failed_writes)),
            ("deliveries/s", self.deliveries_per_second.to_string()),
            ("before the acknowledgement", format!("{} %", self.early_percent)),
        ];
        if let Some(latency) = &self.latency {
            rows.push(("after the acknowledgement", latency.text()));
        }
        if let Some(cores) = self.client_cpu_cores {
            rows.push(("processor of the clients", format!("{cores} cores")));
        }
        if let Some(bytes) = self.client_memory_bytes {
            rows.push(("memory of the clients", size(bytes)));
        }
        pairs(&rows)
    }
}
