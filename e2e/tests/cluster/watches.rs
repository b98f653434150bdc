//! Watches while every node is killed in turn: nothing is lost, repeated or out of order.

use anyhow::{Context, Result, bail, ensure};
use dtkv_client::{Change, Client, Event, EventWatch, StateWatch};
use dtkv_e2e::cluster::{Cluster, ClusterOptions};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

const GROUP: u32 = 1;
const KEYS: usize = 7;
const WATCHERS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes values that are all different; those acknowledged, with their index.
struct Writer {
    is_over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    task: JoinHandle<BTreeMap<u64, String>>,
}

impl Writer {
    fn start(client: &Client) -> Writer {
        let group = client.group(GROUP);
        let (is_over, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (over, count) = (is_over.clone(), acknowledged.clone());
        let task = tokio::spawn(async move {
            let mut written = BTreeMap::new();
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let value = format!("v{number}");
                // One that failed may show up as an event all the same.
                if let Ok(done) = group.put(format!("w.k{}", number % KEYS), &value).await {
                    written.insert(done.index, value);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            written
        });
        Writer { is_over, acknowledged, task }
    }

    async fn progress(&self, more: usize) -> Result<()> {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + more;
        let enough = async {
            while self.acknowledged.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, enough).await.context("writes go on")
    }

    async fn stop(self) -> Result<BTreeMap<u64, String>> {
        self.is_over.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

/// Written when all else is.
const END: &str = "the end";

/// Takes events up to the last one.
async fn all_events(mut watch: EventWatch) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, watch.next()).await.context("an event in time")?? {
            Change::Event(event) => {
                let is_last = event.value.as_deref() == Some(END.as_bytes());
                events.push(event);
                if is_last {
                    return Ok(events);
                }
            }
            Change::Resynced(resync) => bail!("history was there all the time, but: {}", resync.index),
        }
    }
}

/// Takes states up to the last one; their indexes must grow.
async fn last_state(mut watch: StateWatch) -> Result<()> {
    let mut before = 0;
    loop {
        let state = tokio::time::timeout(PATIENCE, watch.next()).await.context("a state in time")??;
        ensure!(before == 0 || state.index > before, "{} after {before}", state.index);
        before = state.index;
        if state.value().is_some_and(|value| value[..] == *END.as_bytes()) {
            return Ok(());
        }
    }
}

fn check(events: &[Event], written: &BTreeMap<u64, String>) -> Result<()> {
    for pair in events.windows(2) {
        ensure!(pair[0].index < pair[1].index, "{:?} came before {:?}", pair[0], pair[1]);
    }
    let told: BTreeMap<u64, &[u8]> =
        events.iter().map(|event| (event.index, event.value.as_deref().unwrap_or_default())).collect();
    for (index, value) in written {
        ensure!(told.get(index) == Some(&value.as_bytes()), "{value} at {index} was not told");
    }
    let mut latest: BTreeMap<&[u8], u64> = BTreeMap::new();
    for event in events {
        let before = latest.insert(&event.key, event.index);
        ensure!(event.prev_index == before.unwrap_or(event.prev_index), "{event:?} follows {before:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_lose_and_repeat_nothing_while_every_node_is_killed_in_turn() -> Result<()> {
    let options = ClusterOptions::new(3, 1).with("watch.progress_interval_ms", 500);
    let mut cluster = Cluster::start("watches", options).await?;
    cluster.client().group(GROUP).mkdir("w").await?;
    let mut watches = Vec::new();
    for _ in 0..WATCHERS {
        let group = cluster.new_client().await?.group(GROUP);
        let mut events = group.watch_events("w").start();
        events.begun().await?;
        watches.push((tokio::spawn(all_events(events)), tokio::spawn(last_state(group.watch("w.k0")))));
    }
    let writer = Writer::start(cluster.client());
    writer.progress(200).await?;
    for round in 0..2 {
        for node in cluster.node_ids() {
            if round == 0 {
                cluster.node_mut(node).kill()?;
            } else {
                cluster.node_mut(node).pause()?;
            }
            writer.progress(100).await?;
            if round == 0 {
                cluster.restart(node).await?;
            } else {
                // Longer than two progress periods: whoever watches here goes elsewhere.
                tokio::time::sleep(Duration::from_millis(1500)).await;
                cluster.node_mut(node).resume()?;
            }
            writer.progress(100).await?;
        }
    }
    let written = writer.stop().await?;
    cluster.client().group(GROUP).put("w.k0", END).await?;
    for (events, state) in watches {
        check(&events.await??, &written)?;
        state.await??;
    }
    println!("{} writes were told to {WATCHERS} watchers", written.len());
    cluster.finish()
}
