//! Writes that are sent again because their answer was lost happen once.
//!
//! Before a leader dies it is made deaf: its followers get what it proposes and it never hears that
//! they did, so the writes in flight outlive it without an answer, and clients must send them again.

use anyhow::{Context, Result, ensure};
use dtkv_client::{Client, Compare, Group, PutOptions, Relation, TxnOp};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

const KILLS: u64 = 3;
const WRITERS: u64 = 6;
const CONTENDERS: u64 = 4;
const DEADLINE: Duration = Duration::from_secs(60);

/// What the writers share.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    done: AtomicU64,
}

impl Progress {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes were acknowledged.
    async fn more(&self, more: u64) -> Result<()> {
        let goal = self.done.load(Ordering::Relaxed) + more;
        wait_until("acknowledged writes", DEADLINE, async || {
            let done = self.done.load(Ordering::Relaxed);
            Ok(if done >= goal { Ok(()) } else { Err(format!("{done} of {goal}")) })
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_whose_answers_died_with_the_leader_happen_once() -> Result<()> {
    let mut cluster = Cluster::start("once", ClusterOptions::new(3, 1).with_cuts()).await?;
    let setup = cluster.client().group(1).with_timeout(DEADLINE);
    setup.mkdir("once").await?;
    setup.put("once.shared", "0").await?;
    let progress = Arc::new(Progress::default());
    let (mut writers, mut contenders) = (JoinSet::new(), JoinSet::new());
    for number in 0..WRITERS {
        writers.spawn(append(client_of(&cluster).await?, number, progress.clone()));
    }
    for _ in 0..CONTENDERS {
        contenders.spawn(increment(client_of(&cluster).await?, progress.clone()));
    }
    let mut sent_again = 0;
    for _ in 0..KILLS {
        progress.more(300).await?;
        sent_again += kill_with_writes_in_flight(&mut cluster, &progress).await?;
    }
    progress.more(300).await?;
    progress.stop.store(true, Ordering::Relaxed);
    let mut expected = 0;
    while let Some(appended) = writers.join_next().await {
        let (number, count) = appended??;
        ensure!(last_number(&setup, number).await? == count, "the keys of writer {number}");
    }
    while let Some(incremented) = contenders.join_next().await {
        expected += incremented??;
    }
    let shared: u64 = number_at(&setup, "once.shared").await?.0;
    ensure!(shared == expected, "{expected} increments were acknowledged and {shared} are there");
    cluster.same_digest(1, &cluster.node_ids()).await?;
    println!("{KILLS} leaders killed, {sent_again} log entries without an answer, {shared} increments");
    cluster.finish()
}

async fn client_of(cluster: &Cluster) -> Result<Group> {
    let client = Client::builder().request_timeout(DEADLINE).connect(cluster.endpoints()).await?;
    Ok(client.group(1))
}

/// Kills the leader after a follower took writes in that it cannot have acknowledged. How many log
/// entries these are.
async fn kill_with_writes_in_flight(cluster: &mut Cluster, progress: &Progress) -> Result<u64> {
    let (leader, in_flight) = loop {
        let leader = cluster.leader(1).await?;
        cluster.cuts().make_deaf(leader);
        match unanswered(cluster, leader).await {
            Ok(in_flight) => break (leader, in_flight),
            // It noticed that it is deaf, and gave up to lead, before the test looked.
            Err(_) => cluster.cuts().heal(),
        }
        progress.more(100).await?;
    };
    cluster.node_mut(leader).kill()?;
    cluster.cuts().heal();
    cluster.wait_ready().await?;
    progress.more(100).await?;
    cluster.restart(leader).await?;
    Ok(in_flight)
}

/// Waits until nothing goes on any more and a follower has entries that are not committed.
async fn unanswered(cluster: &Cluster, leader: u64) -> Result<u64> {
    let follower = cluster.node_ids().into_iter().find(|node| *node != leader).context("a follower")?;
    let mut seen = (0, 0);
    wait_until("writes without an answer", Duration::from_secs(2), async || {
        let status = cluster.status(follower, 1).await?;
        ensure!(status.leader_id == leader, "n{leader} does not lead any more");
        let now = (status.last_index, status.commit_index);
        let is_quiet = std::mem::replace(&mut seen, now) == now;
        Ok(if is_quiet && now.0 > now.1 { Ok(now.0 - now.1) } else { Err(now) })
    })
    .await
}

/// Creates keys one after the other, alone and in batches, and removes some: each of these answers
/// differently when it was applied before.
async fn append(group: Group, writer: u64, progress: Arc<Progress>) -> Result<(u64, u64)> {
    let directory = format!("once.w{writer}");
    group.mkdir(&directory).await?;
    let mut count = 0;
    while progress.goes_on() {
        let key = |number: u64| format!("{directory}.{number:08}");
        let written = group.put(key(count), "value").await?;
        ensure!(written.created, "{} was written twice", key(count));
        let removed = group.remove(key(count)).await?;
        ensure!(removed.existed, "{} was removed twice", key(count));
        let items = (count..count + 3).map(|number| (key(number), "value"));
        let batch = group.batch_put_with(items, PutOptions::default()).await?;
        let is_new = |code: &dtkv_client::v1::Code| *code == dtkv_client::v1::Code::Success;
        ensure!(batch.codes.iter().all(is_new), "a batch was written twice: {:?}", batch.codes);
        let counter = format!("{directory}.counter");
        let txn = group.txn().when(match count {
            0 => Compare::absent(&counter),
            _ => Compare::value(&counter, Relation::Equal, count.to_string()),
        });
        count += 3;
        let done = txn.then(TxnOp::put(&counter, count.to_string())).commit().await?;
        ensure!(done.succeeded, "the counter of writer {writer} was not at {}", count - 3);
        progress.done.fetch_add(4, Ordering::Relaxed);
    }
    Ok((writer, count))
}

/// Increments a number that others increment too; how many times that was acknowledged.
async fn increment(group: Group, progress: Arc<Progress>) -> Result<u64> {
    let mut count = 0;
    while progress.goes_on() {
        let (value, index) = number_at(&group, "once.shared").await?;
        let txn = group.txn().when(Compare::update_index("once.shared", Relation::Equal, index));
        let done = txn.then(TxnOp::put("once.shared", (value + 1).to_string())).commit().await?;
        count += u64::from(done.succeeded);
        progress.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(count)
}

async fn number_at(group: &Group, key: &str) -> Result<(u64, u64)> {
    let node = group.get(key).await?.with_context(|| format!("{key} is gone"))?;
    let value = std::str::from_utf8(node.value.as_deref().unwrap_or_default())?.parse()?;
    Ok((value, node.update_index))
}

/// How many keys a writer has, which must be all that its counter says.
async fn last_number(group: &Group, writer: u64) -> Result<u64> {
    let directory = format!("once.w{writer}");
    if group.get(&directory).await?.is_none_or(|node| node.child_count == 0) {
        return Ok(0);
    }
    let (count, _) = number_at(group, &format!("{directory}.counter")).await?;
    let keys = u64::from(group.get(&directory).await?.context("a directory")?.child_count) - 1;
    ensure!(keys == count, "writer {writer} counted {count} and has {keys} keys");
    Ok(count)
}
