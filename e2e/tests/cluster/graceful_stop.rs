//! SIGTERM: the node hands its leaderships over, finishes what it has begun, and ends.

use anyhow::{Result, ensure};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, ELECTION_MS_MIN, wait_until};
use dtkv_e2e::workload::{Workload, WorkloadOptions};
use std::time::Duration;

/// The next node goes only when this one has the log again and could take leadership over.
async fn wait_caught_up(cluster: &Cluster, node: u64) -> Result<()> {
    for group in cluster.groups() {
        wait_until("the node to catch up", Duration::from_secs(20), async || {
            let status = cluster.client().admin().group_status(group, true).await?;
            let peer = status.peers.iter().find(|peer| peer.node_id == node);
            let has_it = peer.is_none_or(|peer| peer.match_index + 20 >= status.last_index);
            Ok(if has_it { Ok(()) } else { Err(status) })
        })
        .await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_nothing_and_costs_no_election_timeout() -> Result<()> {
    let mut cluster = Cluster::start("graceful", ClusterOptions::new(3, 6).with_long_elections()).await?;
    let options = WorkloadOptions { clients: 3, ..WorkloadOptions::new(cluster.groups()) };
    let workload = Workload::start(cluster.endpoints(), options).await?;
    workload.progress(500).await?;
    for node in cluster.node_ids() {
        // Something to hand over.
        cluster.client().admin().transfer_leader(1, Some(node)).await?;
        let led = cluster.groups_led_by(node).await?.len();
        ensure!(led > 0, "n{node} leads nothing");
        let status = cluster.node_mut(node).terminate(Duration::from_secs(15)).await?;
        ensure!(status.success(), "n{node} ended with {status}");
        cluster.wait_ready().await?;
        workload.progress(300).await?;
        cluster.restart(node).await?;
        cluster.wait_ready().await?;
        wait_caught_up(&cluster, node).await?;
        println!("n{node} stopped and started again; it led {led} groups");
    }
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    for group in cluster.groups() {
        cluster.same_digest(group, &cluster.node_ids()).await?;
    }
    println!("longest stall of a group {} ms; failures {:?}", verdict.longest_stall_ms(), verdict.failures());
    ensure!(verdict.longest_stall_ms() < ELECTION_MS_MIN, "a stop cost an election timeout");
    ensure!(verdict.unknown() == 0, "a graceful stop left outcomes unknown: {:?}", verdict.failures());
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_node_stops_as_well_and_keeps_everything() -> Result<()> {
    let mut cluster = Cluster::start("graceful-one", ClusterOptions::new(1, 3)).await?;
    for group in cluster.groups() {
        cluster.client().group(group).put("key", "value").await?;
    }
    let status = cluster.node_mut(1).terminate(Duration::from_secs(15)).await?;
    ensure!(status.success(), "n1 ended with {status}");
    cluster.restart_all().await?;
    cluster.wait_ready().await?;
    for group in cluster.groups() {
        ensure!(cluster.client().group(group).get("key").await?.is_some(), "g{group} lost its key");
    }
    cluster.finish()
}
