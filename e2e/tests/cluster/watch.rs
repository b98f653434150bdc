//! Watches tell everything once and in order while nodes die under them.

use anyhow::{Context, Result, ensure};
use dtkv_client::{Change, Client, Group};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, wait_until};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

const KILLS: u64 = 3;
const WRITERS: u64 = 4;
const KEYS: u64 = 5;
const WATCHERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
const END: &str = "watch.end";

/// Key and value by the index at which they were written.
type Log = BTreeMap<u64, Vec<(String, String)>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_lose_double_and_reorder_nothing_when_nodes_die() -> Result<()> {
    let mut cluster = Cluster::start("watch", ClusterOptions::new(3, 1)).await?;
    let setup = group_of(&cluster).await?;
    let from = setup.mkdir("watch").await?.index + 1;
    let mut events = JoinSet::new();
    let mut states = JoinSet::new();
    for _ in 0..WATCHERS {
        let group = group_of(&cluster).await?;
        events.spawn(collect(group.clone(), from));
        states.spawn(follow(group, "watch.k0_0".to_owned()));
    }
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(group_of(&cluster).await?, writer, stop.clone(), written.clone()));
    }
    for round in 0..KILLS {
        more(&written, 200).await?;
        // The leader, and in between a follower, where the watches mostly are.
        let victim = if round == 1 { cluster.follower(1).await? } else { cluster.leader(1).await? };
        cluster.node_mut(victim).kill()?;
        more(&written, 200).await?;
        cluster.restart(victim).await?;
    }
    more(&written, 200).await?;
    stop.store(true, Ordering::Relaxed);
    let mut log = Log::new();
    while let Some(acknowledged) = writers.join_next().await {
        for (index, entry) in acknowledged?? {
            log.entry(index).or_default().push(entry);
        }
    }
    let last = setup.get("watch.k0_0").await?.and_then(|node| node.value).context("the last value")?;
    setup.put("watch.k0_0", END).await?;
    let end = setup.put(END, "end").await?.index;
    log.retain(|index, _| *index < end);
    let mut resyncs = 0;
    while let Some(seen) = timeout(PATIENCE, events.join_next()).await.context("watchers that end")? {
        let seen = seen??;
        seen.verify(&log)?;
        resyncs += seen.gaps.len();
    }
    while let Some(told) = timeout(PATIENCE, states.join_next()).await.context("watchers that end")? {
        println!("{} states", told??);
    }
    println!("{KILLS} nodes killed, {} writes, {resyncs} resyncs, last value {last:?}", log.len());
    cluster.finish()
}

async fn group_of(cluster: &Cluster) -> Result<Group> {
    let client = Client::builder().request_timeout(PATIENCE).connect(cluster.endpoints()).await?;
    Ok(client.group(1))
}

async fn more(written: &AtomicU64, more: u64) -> Result<()> {
    let goal = written.load(Ordering::Relaxed) + more;
    wait_until("writes", PATIENCE, async || {
        let now = written.load(Ordering::Relaxed);
        Ok(if now >= goal { Ok(()) } else { Err((now, goal)) })
    })
    .await
}

/// Overwrites keys of its own; what was acknowledged, all of which happened once.
async fn write(
    group: Group,
    writer: u64,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> Result<Vec<(u64, (String, String))>> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (key, value) = (format!("watch.k{writer}_{}", number % KEYS), format!("v{number}"));
        let index = group.put(&key, &value).await?.index;
        acknowledged.push((index, (key, value)));
        written.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(acknowledged)
}

/// What an event watch told.
#[derive(Default)]
struct Seen {
    /// Key, value, index, and the index before.
    events: Vec<(String, String, u64, u64)>,
    /// From which index to which events may be missing, as the watch said itself.
    gaps: Vec<(u64, u64)>,
}

async fn collect(group: Group, from: u64) -> Result<Seen> {
    let mut watch = group.watch_events("watch").from(from).start();
    let (mut seen, mut last) = (Seen::default(), from);
    loop {
        match watch.next().await? {
            Change::Event(event) if event.key == END => return Ok(seen),
            Change::Event(event) => {
                last = event.index;
                let value = event.value.context("a put has a value")?;
                let texts = (String::from_utf8(event.key.into())?, String::from_utf8(value.into())?);
                seen.events.push((texts.0, texts.1, event.index, event.prev_index));
            }
            Change::Resynced(now) => {
                seen.gaps.push((last, now.index));
                last = now.index;
            }
        }
    }
}

impl Seen {
    fn verify(&self, log: &Log) -> Result<()> {
        let mut told = Log::new();
        let mut latest: BTreeMap<&str, u64> = BTreeMap::new();
        let mut before = 0;
        for (key, value, index, previous) in &self.events {
            ensure!(*index >= before, "{key} at {index} was told after an event at {before}");
            before = *index;
            let known = latest.insert(key, *index).unwrap_or(0);
            ensure!(known < *index, "{key} was told at {index} after {known}");
            let is_next = known == *previous || self.is_missing(*previous);
            ensure!(is_next, "{key} went from {known} to {index}, not from {previous}");
            if value != END {
                told.entry(*index).or_default().push((key.clone(), value.clone()));
            }
        }
        let indexes: std::collections::BTreeSet<u64> = log.keys().chain(told.keys()).copied().collect();
        for index in indexes.into_iter().filter(|index| !self.is_missing(*index)) {
            let sorted = |log: &Log| {
                let mut entries = log.get(&index).cloned().unwrap_or_default();
                entries.sort();
                entries
            };
            let (written, told) = (sorted(log), sorted(&told));
            ensure!(written == told, "{written:?} was written at {index}, and the watch told {told:?}");
        }
        Ok(())
    }

    fn is_missing(&self, index: u64) -> bool {
        self.gaps.iter().any(|(from, to)| (*from..=*to).contains(&index))
    }
}

/// Follows the state of a key up to its last one; how many states it was told.
async fn follow(group: Group, key: String) -> Result<u64> {
    let mut watch = group.watch(&key);
    let (mut last, mut count) = (None, 0);
    loop {
        let state = watch.next().await?;
        ensure!(last < Some(state.index), "{key} went from {last:?} to {}", state.index);
        last = Some(state.index);
        count += 1;
        if state.value().is_some_and(|value| value == END) {
            return Ok(count);
        }
    }
}
