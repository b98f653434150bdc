//! A follower that is further behind than the log reaches gets a snapshot.

use anyhow::{Result, ensure};
use dtkv_client::{Group, RemoveOptions};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, wait_until};
use dtkv_e2e::workload::{Workload, WorkloadOptions};
use futures::future::try_join_all;
use std::time::Duration;

const VALUE_BYTES: usize = 16 << 10;

/// Little log is kept, so that a few MiB put a follower out of its reach.
fn options(groups: u32) -> ClusterOptions {
    ClusterOptions::new(3, groups).with("raft.log_bytes_max", "\"1MiB\"")
}

async fn fill(group: &Group, directory: &str, count: usize) -> Result<()> {
    let group = group.clone().with_timeout(Duration::from_secs(20));
    group.mkdir(directory).await?;
    let value = vec![b'v'; VALUE_BYTES];
    for chunk in 0..count / 16 {
        let puts = (0..16).map(|n| group.put(format!("{directory}.{:06}", chunk * 16 + n), &value));
        try_join_all(puts).await?;
    }
    Ok(())
}

/// The log of the leader no longer reaches back to where the follower is.
async fn wait_out_of_reach(cluster: &Cluster, leader: u64, last_index: u64) -> Result<()> {
    wait_until("the log to be purged", Duration::from_secs(30), async || {
        let status = cluster.status(leader, 1).await?;
        Ok(if status.purged_index > last_index { Ok(()) } else { Err((status.purged_index, last_index)) })
    })
    .await
}

async fn wait_caught_up(cluster: &Cluster, follower: u64, index: u64) -> Result<()> {
    wait_until("the follower to catch up", Duration::from_secs(60), async || {
        let applied = cluster.status(follower, 1).await?.applied_index;
        Ok(if applied >= index { Ok(()) } else { Err((applied, index)) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_that_was_down_for_long_catches_up_by_snapshot_under_load() -> Result<()> {
    let mut cluster = Cluster::start("snapshot", options(1)).await?;
    let group = cluster.client().group(1);
    fill(&group, "before", 64).await?;
    let follower = cluster.follower(1).await?;
    let last_index = cluster.status(follower, 1).await?.last_index;
    cluster.node_mut(follower).kill()?;
    let workload = Workload::start(cluster.endpoints(), WorkloadOptions::new(vec![1])).await?;
    fill(&group, "meanwhile", 1024).await?;
    let all = RemoveOptions { recursive: true, ..RemoveOptions::default() };
    group.remove_with("before", all).await?;
    let leader = cluster.leader(1).await?;
    wait_out_of_reach(&cluster, leader, last_index).await?;
    cluster.restart(follower).await?;
    let index = cluster.status(leader, 1).await?.applied_index;
    wait_caught_up(&cluster, follower, index).await?;
    workload.progress(300).await?;
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    let digest = cluster.same_digest(1, &cluster.node_ids()).await?;
    ensure!(digest.nodes > 1024, "the tree has {} nodes only", digest.nodes);
    // What came by snapshot is as durable as what came by log.
    cluster.node_mut(follower).kill()?;
    cluster.restart(follower).await?;
    wait_caught_up(&cluster, follower, index).await?;
    let again = cluster.same_digest(1, &cluster.node_ids()).await?;
    ensure!(again.digest == digest.digest, "the tree changed over a restart");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_that_stood_still_for_long_catches_up_by_snapshot() -> Result<()> {
    let mut cluster = Cluster::start("snapshot-paused", options(1)).await?;
    let group = cluster.client().group(1);
    fill(&group, "before", 16).await?;
    let follower = cluster.follower(1).await?;
    let last_index = cluster.status(follower, 1).await?.last_index;
    cluster.node_mut(follower).pause()?;
    fill(&group, "meanwhile", 1024).await?;
    let leader = cluster.leader(1).await?;
    wait_out_of_reach(&cluster, leader, last_index).await?;
    cluster.node_mut(follower).resume()?;
    let index = cluster.status(leader, 1).await?.applied_index;
    wait_caught_up(&cluster, follower, index).await?;
    cluster.same_digest(1, &cluster.node_ids()).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_that_dies_while_it_receives_a_snapshot_starts_over() -> Result<()> {
    let slow = options(1).with("raft.snapshot_bytes_per_second", "\"8MiB\"");
    let mut cluster = Cluster::start("snapshot-killed", slow).await?;
    let group = cluster.client().group(1);
    fill(&group, "before", 16).await?;
    let follower = cluster.follower(1).await?;
    let last_index = cluster.status(follower, 1).await?.last_index;
    cluster.node_mut(follower).kill()?;
    fill(&group, "meanwhile", 1536).await?;
    let leader = cluster.leader(1).await?;
    wait_out_of_reach(&cluster, leader, last_index).await?;
    let index = cluster.status(leader, 1).await?.applied_index;
    for _ in 0..2 {
        cluster.restart(follower).await?;
        wait_until("a snapshot on its way", Duration::from_secs(30), async || {
            let peers = cluster.status(leader, 1).await?.peers;
            let sends = peers.iter().any(|peer| peer.node_id == follower && peer.snapshot_in_flight);
            Ok(if sends { Ok(()) } else { Err(peers) })
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(cluster.status(follower, 1).await?.applied_index < index, "too late to kill it");
        cluster.node_mut(follower).kill()?;
    }
    cluster.restart(follower).await?;
    wait_caught_up(&cluster, follower, index).await?;
    cluster.same_digest(1, &cluster.node_ids()).await?;
    cluster.finish()
}
