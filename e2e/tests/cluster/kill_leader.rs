//! The leader dies by kill -9 while clients write, again and again.

use anyhow::{Result, ensure};
use dtkv_e2e::cluster::{Cluster, ClusterOptions};
use dtkv_e2e::workload::{Workload, WorkloadOptions};
use std::time::Duration;

const KILLS: u64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_leaders_are_killed() -> Result<()> {
    let mut cluster = Cluster::start("kill-leader", ClusterOptions::new(3, 2)).await?;
    let workload = Workload::start(cluster.endpoints(), WorkloadOptions::new(cluster.groups())).await?;
    workload.progress(500).await?;
    let mut kills = 0;
    for round in 0..KILLS {
        let group = 1 + (round % 2) as u32;
        let leader = cluster.leader(group).await?;
        let term = cluster.status(leader, group).await?.term;
        cluster.node_mut(leader).kill()?;
        kills += 1;
        let next = cluster.leader(group).await?;
        ensure!(next != leader, "n{leader} leads g{group} although it was killed");
        ensure!(cluster.status(next, group).await?.term > term, "the new leader has an old term");
        workload.progress(300).await?;
        cluster.restart(leader).await?;
        workload.progress(300).await?;
    }
    ensure!(kills == KILLS);
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    for group in cluster.groups() {
        cluster.same_digest(group, &cluster.node_ids()).await?;
    }
    println!("{kills} leaders killed; longest stall {} ms", verdict.longest_stall_ms());
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_down_costs_its_leader_next_to_nothing() -> Result<()> {
    let mut cluster = Cluster::start("follower-down", ClusterOptions::new(3, 8)).await?;
    let (leader, follower) = (cluster.leader(1).await?, cluster.follower(1).await?);
    cluster.node_mut(follower).kill()?;
    for group in cluster.groups() {
        cluster.client().group(group).put("key", "value").await?;
    }
    let (cpu, lines) = (cluster.node(leader).cpu_ms()?, cluster.node(leader).log().lines().count());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let cpu = cluster.node(leader).cpu_ms()? - cpu;
    let lines = cluster.node(leader).log().lines().count() - lines;
    println!("the leader used {cpu} ms of CPU in 4 s and wrote {lines} lines");
    ensure!(cpu < 800, "the leader used {cpu} ms of CPU in 4 s");
    ensure!(lines < 1_000, "the leader wrote {lines} log lines in 4 s");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_serves_nothing_stale_when_it_wakes_up() -> Result<()> {
    let mut cluster = Cluster::start("pause-leader", ClusterOptions::new(3, 1)).await?;
    let workload = Workload::start(cluster.endpoints(), WorkloadOptions::new(cluster.groups())).await?;
    workload.progress(500).await?;
    for _ in 0..2 {
        let leader = cluster.leader(1).await?;
        cluster.node_mut(leader).pause()?;
        let next = cluster.leader(1).await?;
        ensure!(next != leader, "n{leader} leads although it stands still");
        workload.progress(300).await?;
        cluster.node_mut(leader).resume()?;
        workload.progress(300).await?;
    }
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    cluster.same_digest(1, &cluster.node_ids()).await?;
    cluster.finish()
}
