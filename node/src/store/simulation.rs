//! Whole replicas of one group, over real stores, engines and streams, in one process, while a seed
//! decides what becomes of the messages between them, who crashes and when, who leads and who takes
//! part. What was not synced is lost in a crash.
//!
//! The clock is the real one, with short times. A paused clock would run ahead whenever all tasks
//! wait, and they wait for every sync, which happens on threads of the engine that no runtime knows:
//! every election would be over before the first vote is on disk. So a seed gives the same faults in
//! the same order, but not the same interleaving. What is asserted never depends on time.
//!
//! `DTKV_SIMULATION_SEEDS=100 cargo test --release -p dtkv-node --lib simulation` runs more seeds,
//! `DTKV_SIMULATION_SEEDS=17..18` a certain one. A seed that fails is named with what was done.

mod audit;
mod clients;
mod cluster;
mod golden;
mod nemesis;
mod network;
mod planted;

use crate::planted::Plot;
use clients::Clients;
use cluster::{Cluster, Setup, eventually, runtime};
use nemesis::Nemesis;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

const TIME: Duration = Duration::from_secs(5);
const SEEDS: Range<u64> = 0..8;
/// Simulations at the same time: they wait more than they work.
const AT_ONCE: usize = 4;
const CLIENTS: u32 = 4;

/// What a seed came to.
struct Report {
    violations: Vec<String>,
    done: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    answered: usize,
}

fn simulate(seed: u64) -> Report {
    let plot = Plot::default();
    plot.enter();
    let runtime = runtime(&plot);
    let report = runtime.block_on(run(seed, plot));
    runtime.shutdown_timeout(Duration::from_secs(10));
    report
}

async fn run(seed: u64, plot: Plot) -> Report {
    let cluster = Cluster::start(Setup::new(seed, 4), plot).await;
    let watch = tokio::spawn(cluster.clone().watch());
    let clients = Clients::new(cluster.clone());
    let mut working = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        working.spawn(clients.clone().work(number, seed));
    }
    let mut nemesis = Nemesis::new(cluster.clone(), seed);
    nemesis.work(TIME).await;
    clients.stop();
    while let Some(ended) = working.join_next().await {
        if let Err(error) = ended {
            cluster.network.audit.violation(format!("a client got an answer that cannot be: {error}"));
        }
    }
    clients.read_all().await;
    let leader = cluster.leader().await;
    eventually("everybody has everything", || async {
        let Some(group) = cluster.group(leader) else { return false };
        let status = group.status_now();
        let members: Vec<u64> = status.voters.iter().chain(&status.learners).copied().collect();
        let index = |id: &u64| cluster.group(*id).map_or(0, |group| group.digest().0);
        members.iter().all(|id| index(id) == status.last_index) || !group.is_leader()
    })
    .await;
    watch.abort();
    let (wrong, answered) = clients.verdict();
    let mut violations = cluster.network.audit.violations();
    violations.extend(wrong);
    let mut counts = cluster.network.counts();
    counts.insert("terms", cluster.network.audit.terms() as u64);
    cluster.stop().await;
    Report { violations, done: nemesis.done, counts, answered }
}

/// Which seeds are asked for.
fn seeds() -> Vec<u64> {
    let Ok(text) = std::env::var("DTKV_SIMULATION_SEEDS") else { return SEEDS.collect() };
    let number = |text: &str| text.trim().parse::<u64>().expect("DTKV_SIMULATION_SEEDS is N or FROM..TO");
    match text.split_once("..") {
        Some((from, to)) => (number(from)..number(to)).collect(),
        None => (0..number(&text)).collect(),
    }
}

#[test]
fn nothing_that_a_seed_does_breaks_a_promise() {
    let all = seeds();
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut answered = 0;
    for some in all.chunks(AT_ONCE) {
        let running: Vec<_> =
            some.iter().map(|&seed| (seed, std::thread::spawn(move || simulate(seed)))).collect();
        for (seed, thread) in running {
            let Ok(report) = thread.join() else { panic!("seed {seed} did not come to an end") };
            let (wrong, done) = (report.violations.join("\n  "), report.done.join("\n  "));
            assert!(wrong.is_empty(), "seed {seed}:\n  {wrong}\nafter\n  {done}\n{:?}", report.counts);
            report.counts.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
            answered += report.answered;
        }
    }
    println!("{} seeds: {answered} answers, {counts:?}", all.len());
    for what in ["lost", "doubled", "snapshots begun", "snapshots installed", "terms"] {
        assert!(counts.get(what).is_some_and(|count| *count > 0), "nothing was proved about: {what}");
    }
    assert!(answered > 100 * all.len(), "only {answered} answers");
}
