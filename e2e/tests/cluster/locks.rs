//! Fenced locks keep read-modify-write safe, and their queue in order, while leaders die.

use anyhow::{Context, Result, ensure};
use dtkv_client::v1::Code;
use dtkv_client::{Client, Group, Lock, LockToken};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

const KILLS: u64 = 2;
const CONTENDERS: u64 = 4;
const LOCK: &str = "locks.lock";
const NUMBER: &str = "locks.number";
const HOLD: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_guarded_by_a_lock_is_never_lost_when_leaders_die_and_holders_stand_still() -> Result<()> {
    let mut cluster = Cluster::start("locks", ClusterOptions::new(3, 1)).await?;
    let setup = group_of(&cluster).await?;
    setup.mkdir("locks").await?;
    setup.put(NUMBER, "0").await?;
    let (stop, granted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut contenders = JoinSet::new();
    for _ in 0..CONTENDERS {
        contenders.spawn(contend(group_of(&cluster).await?, stop.clone(), granted.clone()));
    }
    for _ in 0..KILLS {
        more(&granted, 20).await?;
        let leader = cluster.leader(1).await?;
        cluster.node_mut(leader).kill()?;
        more(&granted, 20).await?;
        cluster.restart(leader).await?;
    }
    let stale = hold_and_stand_still(&group_of(&cluster).await?, &granted).await?;
    stop.store(true, Ordering::Relaxed);
    let mut increments = Vec::new();
    while let Some(done) = contenders.join_next().await {
        increments.extend(done??);
    }
    increments.sort_unstable();
    ensure!(increments.iter().any(|(token, _)| *token > stale), "nobody was granted the lock after {stale}");
    for pair in increments.windows(2) {
        let [(earlier, old), (later, new)] = pair else { continue };
        ensure!(earlier < later && old < new, "{new} at {later} follows {old} at {earlier}");
    }
    let last = number(&setup).await?;
    ensure!(last == increments.len() as u64, "{} increments made {last}", increments.len());
    println!("{KILLS} leaders killed, {last} increments under the lock");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_outlives_its_leader_in_order() -> Result<()> {
    let mut cluster = Cluster::start("lock-queue", ClusterOptions::new(3, 1)).await?;
    let group = group_of(&cluster).await?;
    group.mkdir("locks").await?;
    let first = group.lock(LOCK)?;
    let token = first.try_lock(PATIENCE, Duration::ZERO).await?.context("a free lock")?;
    let mut waiting = Vec::new();
    for number in 0..4 {
        let lock = group_of(&cluster).await?.lock(LOCK)?;
        waiting.push(tokio::spawn(pass(lock)));
        wait_until("a place in the queue", PATIENCE, async || {
            let queued = group.get(LOCK).await?.context("the lock")?.child_count;
            Ok(if queued == number + 2 { Ok(()) } else { Err(queued) })
        })
        .await?;
    }
    let leader = cluster.leader(1).await?;
    cluster.node_mut(leader).kill()?;
    ensure!(cluster.leader(1).await? != leader);
    ensure!(first.unlock().await?, "the lock was lost with its leader");
    let mut last = token.fencing_token();
    for next in waiting {
        let token = next.await??.fencing_token();
        ensure!(token > last, "the grant {token} came before {last}");
        last = token;
    }
    cluster.finish()
}

async fn group_of(cluster: &Cluster) -> Result<Group> {
    let client = Client::builder().request_timeout(PATIENCE).connect(cluster.endpoints()).await?;
    Ok(client.group(1))
}

/// Waits for a grant and hands the lock on.
async fn pass(lock: Lock) -> Result<LockToken> {
    let token = lock.try_lock(PATIENCE, PATIENCE).await?.context("a grant")?;
    ensure!(lock.unlock().await?, "{token:?} was lost before it was given up");
    Ok(token)
}

async fn more(granted: &AtomicU64, more: u64) -> Result<()> {
    let goal = granted.load(Ordering::Relaxed) + more;
    wait_until("grants", PATIENCE, async || {
        let now = granted.load(Ordering::Relaxed);
        Ok(if now >= goal { Ok(()) } else { Err((now, goal)) })
    })
    .await
}

async fn number(group: &Group) -> Result<u64> {
    let value = group.get(NUMBER).await?.and_then(|node| node.value).context("the number")?;
    Ok(std::str::from_utf8(&value)?.parse()?)
}

/// Increments the number under the lock again and again; grants and what they made of the number.
async fn contend(group: Group, stop: Arc<AtomicBool>, granted: Arc<AtomicU64>) -> Result<Vec<(u64, u64)>> {
    let lock = group.lock(LOCK)?;
    let mut done = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Some(token) = lock.try_lock(HOLD, HOLD).await? else { continue };
        let next = number(&group).await? + 1;
        match group.guarded(&token).put(NUMBER, next.to_string()).await {
            Ok(_) => done.push((token.fencing_token(), next)),
            // It took longer than the lock was held.
            Err(error) if error.code() == Some(Code::Fenced) => {}
            Err(error) => return Err(error.into()),
        }
        granted.fetch_add(1, Ordering::Relaxed);
        lock.unlock().await?;
    }
    Ok(done)
}

/// Holds the lock, does nothing until others were granted it, and finds that it may not write any
/// more. Its token.
async fn hold_and_stand_still(group: &Group, granted: &AtomicU64) -> Result<u64> {
    let lock = group.lock(LOCK)?;
    let token =
        wait_until("a grant", PATIENCE, async || Ok(lock.try_lock(HOLD, HOLD).await?.ok_or("not granted")))
            .await?;
    let old = number(group).await?;
    more(granted, CONTENDERS + 1).await?;
    let late = group.guarded(&token).put(NUMBER, (old + 1).to_string()).await;
    let code = late.as_ref().map_err(|error| error.code());
    ensure!(code.is_err_and(|code| code == Some(Code::Fenced)), "a stale holder wrote: {late:?}");
    ensure!(lock.token().is_none(), "it still takes itself for the holder");
    Ok(token.fencing_token())
}
