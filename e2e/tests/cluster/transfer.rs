//! Leadership is handed from node to node while clients write.

use anyhow::{Result, ensure};
use dtkv_client::ErrorKind;
use dtkv_e2e::cluster::{Cluster, ClusterOptions, ELECTION_MS_MIN};
use dtkv_e2e::workload::{Workload, WorkloadOptions};

const TRANSFERS: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_under_load_without_a_lost_write_or_an_election_timeout() -> Result<()> {
    let cluster = Cluster::start("transfer", ClusterOptions::new(3, 1).with_long_elections()).await?;
    let workload = Workload::start(cluster.endpoints(), WorkloadOptions::new(cluster.groups())).await?;
    workload.progress(500).await?;
    let mut done = 0;
    for _ in 0..TRANSFERS {
        let target = cluster.follower(1).await?;
        let answer = cluster.client().admin().transfer_leader(1, Some(target)).await?;
        ensure!(answer.leader_id == target, "n{} leads instead of n{target}", answer.leader_id);
        ensure!(cluster.leader(1).await? == target, "n{target} was said to lead and does not");
        done += 1;
        workload.progress(100).await?;
    }
    let leader = cluster.leader(1).await?;
    let any = cluster.client().admin().transfer_leader(1, None).await?;
    ensure!(any.leader_id != leader, "a transfer to any follower left n{leader} in place");
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    println!("{done} transfers; longest stall {} ms", verdict.longest_stall_ms());
    ensure!(verdict.longest_stall_ms() < ELECTION_MS_MIN, "a transfer cost an election timeout");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_cannot_be_is_refused_and_the_leader_goes_on() -> Result<()> {
    let mut cluster = Cluster::start("transfer-refused", ClusterOptions::new(3, 1)).await?;
    let leader = cluster.leader(1).await?;
    let follower = cluster.follower(1).await?;
    let admin = cluster.client().admin().with_timeout(std::time::Duration::from_secs(3));
    let nobody = admin.transfer_leader(1, Some(77)).await;
    ensure!(nobody.as_ref().is_err_and(|e| e.kind() != ErrorKind::OutcomeUnknown), "{nobody:?}");
    let own = admin.transfer_leader(1, Some(leader)).await?;
    ensure!(own.leader_id == leader, "a transfer to the leader itself is done at once");
    cluster.node_mut(follower).kill()?;
    let dead = admin.transfer_leader(1, Some(follower)).await;
    ensure!(dead.is_err(), "leadership went to a dead node: {dead:?}");
    cluster.client().group(1).put("still", "here").await?;
    ensure!(cluster.leader(1).await? == leader, "the leader was lost over a transfer that could not be");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_leaders_are_evicted_leads_nothing_until_that_ends() -> Result<()> {
    use dtkv_e2e::cluster::wait_until;
    use std::time::Duration;
    let cluster = Cluster::start("evict", ClusterOptions::new(3, 6)).await?;
    let node = cluster.leader(1).await?;
    cluster.admin(node).set_leader_eviction(Duration::from_secs(60)).await?;
    wait_until("the node to lead nothing", Duration::from_secs(20), async || {
        let led = cluster.groups_led_by(node).await?;
        Ok(if led.is_empty() { Ok(()) } else { Err(led) })
    })
    .await?;
    cluster.wait_ready().await?;
    ensure!(cluster.admin(node).identity().await?.evicting_leaders);
    cluster.admin(node).set_leader_eviction(Duration::ZERO).await?;
    ensure!(!cluster.admin(node).identity().await?.evicting_leaders);
    let back = cluster.client().admin().transfer_leader(1, Some(node)).await?;
    ensure!(back.leader_id == node, "the node leads again when it may");
    cluster.finish()
}
