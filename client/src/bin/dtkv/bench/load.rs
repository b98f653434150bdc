//! One run: keeps operations in flight, or starts them on a schedule, and measures.

use super::gate::Gate;
use super::issue::{Connection, Issue, Outcome, Submitted};
use super::record::{Recorder, cpu_time};
use super::report::Run;
use super::work::{Dice, Drawn, Work};
use crate::args::BenchArgs;
use crate::fault::Fault;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// How long operations may still be on their way when a run is over.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// One connection in one run.
struct Lane {
    number: usize,
    gate: Gate,
    recorder: Arc<Recorder>,
}

impl Lane {
    #[inline]
    fn done(&self, is_read: bool, since: Instant, outcome: Outcome) {
        match outcome {
            Ok(()) => self.recorder.succeeded(self.number, is_read, since),
            Err(reason) => self.recorder.failed(reason),
        }
    }
}

/// Start times of an open loop.
struct Pace {
    start: Instant,
    interval_ns: f64,
    issued: u64,
}

impl Pace {
    /// `lane` of `lanes` starts its part of so many operations a second.
    fn new(start: Instant, rate: u64, lane: usize, lanes: usize) -> Pace {
        let interval_ns = 1e9 * lanes as f64 / rate as f64;
        // The lanes take turns instead of starting all at once.
        let offset = interval_ns * lane as f64 / lanes as f64;
        Pace { start: start + Duration::from_nanos(offset as u64), interval_ns, issued: 0 }
    }

    fn next(&mut self) -> Instant {
        let due = self.start + Duration::from_nanos((self.issued as f64 * self.interval_ns) as u64);
        self.issued += 1;
        due
    }
}

/// Sleeps until the time has come; short sleeps, so that the end of the run is not missed.
fn wait_until(due: Instant, recorder: &Recorder) {
    const SLEEP_MAX: Duration = Duration::from_millis(100);
    while !recorder.is_over() {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(SLEEP_MAX));
    }
}

/// The producer of one connection: `issue` must not wait.
fn produce(lane: &Lane, work: &Work, mut pace: Option<Pace>, issue: impl Fn(Drawn, Instant)) {
    let mut dice = Dice::new();
    let mut places = 0;
    loop {
        let due = pace.as_mut().map(Pace::next);
        if let Some(due) = due {
            wait_until(due, &lane.recorder);
        }
        if places == 0 {
            places = lane.gate.take();
        }
        if places == 0 || lane.recorder.is_over() {
            lane.gate.give(places);
            return;
        }
        places -= 1;
        // A stalled store delays the start of what was due meanwhile; that delay belongs to the
        // latency of those operations.
        issue(work.draw(&mut dice), due.unwrap_or_else(Instant::now));
    }
}

fn produce_submitted(lane: &Arc<Lane>, work: &Work, pace: Option<Pace>, connection: &Submitted) {
    produce(lane, work, pace, |drawn, since| {
        let lane = lane.clone();
        connection.issue(drawn, move |outcome| {
            lane.done(drawn.is_read, since, outcome);
            lane.gate.give(1);
        });
    });
}

/// An open loop over calls that are awaited: a task for each operation.
fn produce_spawned(lane: &Arc<Lane>, work: &Work, pace: Pace, connection: &impl Issue, runtime: &Handle) {
    produce(lane, work, Some(pace), |drawn, since| {
        let (lane, connection) = (lane.clone(), connection.clone());
        runtime.spawn(async move {
            let outcome = connection.issue(drawn).await;
            lane.done(drawn.is_read, since, outcome);
            lane.gate.give(1);
        });
    });
}

/// A closed loop over calls that are awaited: one of the tasks that are in flight.
async fn repeat(lane: Arc<Lane>, work: Arc<Work>, connection: impl Issue) {
    let mut dice = Dice::new();
    while !lane.recorder.is_over() {
        let drawn = work.draw(&mut dice);
        let since = Instant::now();
        let outcome = connection.issue(drawn).await;
        lane.done(drawn.is_read, since, outcome);
    }
}

/// What is at work in a run.
#[derive(Default)]
struct Workers {
    threads: Vec<thread::JoinHandle<()>>,
    tasks: JoinSet<()>,
}

impl Workers {
    fn thread(&mut self, body: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
        self.threads.push(thread::Builder::new().name("producer".into()).spawn(body)?);
        Ok(())
    }

    fn awaited(
        &mut self,
        lane: &Arc<Lane>,
        work: &Arc<Work>,
        pace: Option<Pace>,
        connection: &impl Issue,
    ) -> Result<(), Fault> {
        let Some(pace) = pace else {
            for _ in 0..lane.gate.capacity() {
                self.tasks.spawn(repeat(lane.clone(), work.clone(), connection.clone()));
            }
            return Ok(());
        };
        let (lane, work, connection, runtime) =
            (lane.clone(), work.clone(), connection.clone(), Handle::current());
        self.thread(move || produce_spawned(&lane, &work, pace, &connection, &runtime))
    }

    fn start(
        &mut self,
        lane: &Arc<Lane>,
        work: &Arc<Work>,
        pace: Option<Pace>,
        connection: &Connection,
    ) -> Result<(), Fault> {
        match connection {
            Connection::Awaited(connection) => self.awaited(lane, work, pace, connection),
            Connection::Unary(connection) => self.awaited(lane, work, pace, connection),
            Connection::Submitted(connection) => {
                let (lane, work, connection) = (lane.clone(), work.clone(), connection.clone());
                self.thread(move || produce_submitted(&lane, &work, pace, &connection))
            }
        }
    }

    /// Waits until everything that was issued is answered.
    async fn stop(mut self, lanes: &[Arc<Lane>]) -> Result<(), Fault> {
        lanes.iter().for_each(|lane| lane.gate.close());
        let late = || Fault::failed("operations are still unanswered after the run; is a node hanging?");
        let tasks = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(DRAIN_TIMEOUT, tasks).await.map_err(|_| late())?;
        for producer in self.threads {
            let joined = tokio::task::spawn_blocking(move || producer.join());
            joined.await.map_err(|_| late())?.map_err(|_| Fault::failed("a producer thread panicked"))?;
        }
        for lane in lanes {
            if !lane.gate.drained(DRAIN_TIMEOUT).await {
                return Err(late());
            }
        }
        Ok(())
    }
}

/// Warms up, measures, and waits until all is answered.
pub async fn measure(
    connections: &[Connection],
    work: &Arc<Work>,
    args: &BenchArgs,
    number: u32,
) -> Result<Run, Fault> {
    let recorder = Arc::new(Recorder::new(connections.len()));
    let lanes = lanes(connections.len(), args.max_in_flight as usize, &recorder);
    let mut workers = Workers::default();
    let start = Instant::now();
    // With less in flight than connections, some connections have nothing to do.
    let busy = lanes.iter().filter(|lane| lane.gate.capacity() > 0).count();
    for (lane, connection) in lanes.iter().zip(connections).take(busy) {
        let pace = args.rate.map(|rate| Pace::new(start, rate, lane.number, busy));
        workers.start(lane, work, pace, connection)?;
    }
    let told = |what: String| {
        if !args.quiet {
            eprintln!("{what}")
        }
    };
    watch(&recorder, args.warm_up, |second, rate| {
        told(format!("run {number} warm-up {second:>4} s  {rate:>9} ops/s"))
    })
    .await;
    let cpu_before = cpu_time();
    let begin = Instant::now();
    recorder.begin();
    let rates = watch(&recorder, args.duration, |second, rate| {
        let failures = recorder.failures();
        let failed = if failures > 0 { format!("  {failures} failed so far") } else { String::new() };
        told(format!("run {number}         {second:>4} s  {rate:>9} ops/s{failed}"));
    })
    .await;
    recorder.end();
    let elapsed = begin.elapsed();
    let cpu = cpu_time().zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    workers.stop(&lanes).await?;
    Ok(Run::new(recorder.latencies(), recorder.errors(), elapsed, cpu, rates))
}

/// Shares the places in flight out over the connections.
fn lanes(connections: usize, in_flight: usize, recorder: &Arc<Recorder>) -> Vec<Arc<Lane>> {
    let (each, more) = (in_flight / connections, in_flight % connections);
    let lane = |number| {
        let gate = Gate::new(each + usize::from(number < more));
        Arc::new(Lane { number, gate, recorder: recorder.clone() })
    };
    (0..connections).map(lane).collect()
}

/// Looks once a second for as long as that, and answers with the rates of the whole seconds.
async fn watch(recorder: &Recorder, time: Duration, mut tell: impl FnMut(u64, u64)) -> Vec<u64> {
    let end = tokio::time::Instant::now() + time;
    let mut rates = Vec::new();
    let (mut before, mut last) = (recorder.answers(), Instant::now());
    for second in 1..=time.as_secs() {
        let next = end - time + Duration::from_secs(second);
        tokio::time::sleep_until(next).await;
        let (answers, now) = (recorder.answers(), Instant::now());
        // By the time that really passed: on a busy machine the look may come late.
        let rate = (answers - before) as f64 / (now - last).as_secs_f64();
        rates.push(rate.round() as u64);
        tell(second, rate.round() as u64);
        (before, last) = (answers, now);
    }
    tokio::time::sleep_until(end).await;
    rates
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    /// The arguments of a benchmark in tests.
    pub fn args(words: &[&str]) -> BenchArgs {
        let Command::Bench(args) = Cli::parse_from([&["dtkv", "bench"], words].concat()).command else {
            panic!()
        };
        args
    }

    /// Answers after a pause.
    #[derive(Clone)]
    struct Slow(Duration);

    impl Issue for Slow {
        async fn issue(&self, drawn: Drawn) -> Outcome {
            tokio::time::sleep(self.0).await;
            if drawn.key == 0 { Err("UNLUCKY".into()) } else { Ok(()) }
        }
    }

    fn one_lane(in_flight: usize) -> (Arc<Recorder>, Arc<Lane>) {
        let recorder = Arc::new(Recorder::new(1));
        let lane = lanes(1, in_flight, &recorder).remove(0);
        recorder.begin();
        (recorder, lane)
    }

    #[test]
    fn places_are_shared_out_evenly() {
        let recorder = Arc::new(Recorder::new(1));
        let capacities = |connections, in_flight| -> Vec<usize> {
            lanes(connections, in_flight, &recorder).iter().map(|lane| lane.gate.capacity()).collect()
        };
        assert_eq!(capacities(3, 10), [4, 3, 3]);
        assert_eq!(capacities(2, 1), [1, 0]);
    }

    #[test]
    fn lanes_of_an_open_loop_take_turns() {
        let start = Instant::now();
        let due = |lane: usize| {
            let mut pace = Pace::new(start, 1000, lane, 2);
            [pace.next(), pace.next()].map(|due| (due - start).as_micros())
        };
        assert_eq!(due(0), [0, 2000]);
        assert_eq!(due(1), [1000, 3000]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn closed_loop_keeps_its_tasks_busy_and_counts_failures() {
        let (recorder, lane) = one_lane(4);
        let work = Arc::new(Work::new(1, &args(&["--keys", "4"])));
        let mut workers = Workers::default();
        workers.awaited(&lane, &work, None, &Slow(Duration::from_millis(1))).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        recorder.end();
        workers.stop(&[lane]).await.unwrap();
        assert!(recorder.answers() > 20, "{}", recorder.answers());
        assert!(recorder.errors()["UNLUCKY"] > 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn open_loop_counts_the_wait_of_operations_that_were_due() {
        // One place and 20 ms an operation, while one is due every ms: they queue up.
        let (recorder, lane) = one_lane(1);
        let work = Arc::new(Work::new(1, &args(&[])));
        let pace = Pace::new(Instant::now(), 1000, 0, 1);
        let mut workers = Workers::default();
        workers.awaited(&lane, &work, Some(pace), &Slow(Duration::from_millis(20))).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        recorder.end();
        workers.stop(&[lane]).await.unwrap();
        let longest = recorder.latencies().puts.max();
        assert!(longest > 150_000_000, "{longest}");
    }

    #[tokio::test]
    async fn rates_are_those_of_whole_seconds() {
        let recorder = Recorder::new(1);
        let mut told = 0;
        let rates = watch(&recorder, Duration::from_millis(1100), |_, _| told += 1).await;
        assert_eq!((rates, told), (vec![0], 1));
    }
}
