//! A node loses its disk. What it has promised is gone with it, so it may never vote again under its
//! old id: it comes back as a new node.

use anyhow::{Context, Result, ensure};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, wait_until};
use dtkv_e2e::workload::{Workload, WorkloadOptions};
use std::time::Duration;

async fn replace(cluster: &Cluster, group: u32, old: u64, new: u64) -> Result<()> {
    let admin = cluster.client().admin().with_timeout(Duration::from_secs(30));
    admin.add_learner(group, cluster.address(new), None, true).await.context("add the learner")?;
    let status = admin.group_status(group, true).await?;
    let mut voters: Vec<u64> = status.voters.into_iter().filter(|node| *node != old).collect();
    voters.push(new);
    admin.change_membership(group, status.config_index, voters, vec![]).await.context("change the voters")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_lost_its_disk_comes_back_as_a_new_node() -> Result<()> {
    let mut cluster = Cluster::start("lost-disk", ClusterOptions::new(3, 2)).await?;
    let workload = Workload::start(cluster.endpoints(), WorkloadOptions::new(cluster.groups())).await?;
    workload.progress(500).await?;
    let (old, new) = (cluster.follower(1).await?, 4);
    let incarnation = cluster.admin(old).identity().await?.incarnation;
    cluster.node_mut(old).kill()?;
    cluster.node(old).wipe()?;
    ensure!(!cluster.node(old).data_path().exists(), "the disk is still there");
    workload.progress(300).await?;
    cluster.add_node(new).await?;
    for group in cluster.groups() {
        replace(&cluster, group, old, new).await.with_context(|| format!("n{new} for n{old} in g{group}"))?;
    }
    let rest: Vec<u64> = cluster.running().collect();
    for &node in &rest {
        // A follower learns of the new members a moment after the leader said that they are in force.
        wait_until(&format!("the tombstone at n{node}"), Duration::from_secs(20), async || {
            Ok(cluster.admin(node).tombstone(old).await.map_err(|failure| failure.to_string()))
        })
        .await?;
    }
    workload.progress(300).await?;
    // Its machine comes back, with an empty disk and the old id.
    cluster.restart(old).await?;
    let identity = wait_until("the empty node", Duration::from_secs(10), async || {
        // The connection may still remember that nobody was there.
        Ok(Ok::<_, ()>(cluster.admin(old).identity().await?))
    })
    .await?;
    ensure!(identity.cluster_id.is_empty(), "an empty disk knows a cluster");
    ensure!(identity.incarnation != incarnation, "an empty disk has the incarnation of the lost one");
    for &node in &rest {
        let refused = cluster.admin(node).add_nodes(vec![cluster.address(old)]).await;
        ensure!(refused.is_err(), "n{node} takes the old id back");
    }
    let refused = cluster.client().admin().add_learner(1, cluster.address(old), None, false).await;
    ensure!(refused.is_err(), "the old id is a learner again");
    workload.progress(300).await?;
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    for group in cluster.groups() {
        cluster.same_digest(group, &rest).await?;
    }
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_an_empty_disk_gets_no_vote_under_its_old_id() -> Result<()> {
    let mut cluster = Cluster::start("lost-disk-vote", ClusterOptions::new(3, 1)).await?;
    let group = cluster.client().group(1);
    let (leader, victim) = (cluster.leader(1).await?, cluster.follower(1).await?);
    let other = cluster.running().find(|node| ![leader, victim].contains(node)).context("a third node")?;
    // The write is acknowledged by the leader and the victim alone.
    cluster.node_mut(other).kill()?;
    group.put("key", "acknowledged").await?;
    cluster.node_mut(victim).kill()?;
    cluster.node_mut(leader).kill()?;
    cluster.node(victim).wipe()?;
    // The victim forgot the write, and the other never had it: together they must not form a quorum.
    cluster.restart(other).await?;
    cluster.restart(victim).await?;
    let known = [cluster.address(leader), cluster.address(other)];
    let id = cluster.cluster_id().to_owned();
    // Whether it may join is up to the node; what counts is that it does not vote.
    let _ = cluster.admin(victim).join_cluster(&id, known.to_vec()).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let status = cluster.status(other, 1).await?;
    // It may still name the leader that is down, but neither of the two may lead.
    let leads = [other, victim].contains(&status.leader_id);
    ensure!(!leads, "a quorum was formed with an empty disk: {status:?}");
    let read = group.clone().with_timeout(Duration::from_secs(1)).get("key").await;
    ensure!(read.is_err(), "a group without a quorum answered {read:?}");
    cluster.restart(leader).await?;
    cluster.wait_ready().await?;
    let value = group.get("key").await?.and_then(|node| node.value);
    ensure!(value.as_deref() == Some(b"acknowledged"), "the acknowledged write is gone: {value:?}");
    cluster.finish()
}
