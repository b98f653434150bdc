//! The members of a group change while clients write.

use anyhow::{Context, Result, ensure};
use dtkv_client::ErrorKind;
use dtkv_client::v1::failure::Reason;
use dtkv_e2e::cluster::{Cluster, ClusterOptions, wait_until};
use dtkv_e2e::workload::{Workload, WorkloadOptions};
use std::time::Duration;

async fn config_index(cluster: &Cluster, group: u32) -> Result<u64> {
    Ok(cluster.client().admin().group_status(group, true).await?.config_index)
}

async fn change(cluster: &Cluster, group: u32, voters: &[u64]) -> Result<u64> {
    let index = config_index(cluster, group).await?;
    let admin = cluster.client().admin().with_timeout(Duration::from_secs(30));
    let index = admin.change_membership(group, index, voters.to_vec(), vec![]).await?;
    wait_until("the new configuration", Duration::from_secs(20), async || {
        let status = cluster.client().admin().group_status(group, true).await?;
        let mut now = status.voters.clone();
        now.sort_unstable();
        let done = now == voters && status.outgoing_voters.is_empty() && status.config_committed;
        Ok(if done { Ok(()) } else { Err(status) })
    })
    .await?;
    Ok(index)
}

async fn add_learner(cluster: &Cluster, group: u32, node: u64) -> Result<()> {
    let admin = cluster.client().admin().with_timeout(Duration::from_secs(30));
    admin.add_learner(group, cluster.address(node), None, true).await?;
    let status = admin.group_status(group, true).await?;
    ensure!(status.learners.contains(&node), "n{node} is no learner of g{group}: {status:?}");
    ensure!(!status.voters.contains(&node), "a learner of g{group} votes: {status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_to_five_voters_and_shrinks_to_three_others_under_load() -> Result<()> {
    let mut cluster = Cluster::start("membership", ClusterOptions::new(3, 2)).await?;
    let workload = Workload::start(cluster.endpoints(), WorkloadOptions::new(cluster.groups())).await?;
    workload.progress(500).await?;
    for node in [4, 5] {
        cluster.add_node(node).await?;
        add_learner(&cluster, 1, node).await.with_context(|| format!("n{node} as learner"))?;
        workload.progress(100).await?;
    }
    change(&cluster, 1, &[1, 2, 3, 4, 5]).await.context("five voters")?;
    workload.progress(300).await?;
    // Two of five may be gone.
    for node in [1, 2] {
        cluster.node_mut(node).kill()?;
    }
    cluster.leader(1).await.context("a leader among three of five")?;
    for node in [1, 2] {
        cluster.restart(node).await?;
    }
    cluster.wait_ready().await?;
    workload.progress(300).await?;
    let index = change(&cluster, 1, &[3, 4, 5]).await.context("three others")?;
    for node in [1, 2] {
        wait_until("the replica to be destroyed", Duration::from_secs(20), async || {
            Ok(Ok::<_, ()>(cluster.admin(node).destroy_replica(1, index).await?))
        })
        .await?;
        let gone = cluster.status(node, 1).await;
        ensure!(gone.is_err(), "n{node} still has a replica: {gone:?}");
    }
    workload.progress(300).await?;
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    cluster.same_digest(1, &[3, 4, 5]).await?;
    println!("3 -> 5 -> 3 voters; longest stall {} ms", verdict.longest_stall_ms());
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_builds_on_an_old_configuration_is_refused() -> Result<()> {
    let mut cluster = Cluster::start("membership-guard", ClusterOptions::new(3, 1)).await?;
    cluster.add_node(4).await?;
    cluster.add_node(5).await?;
    let old = config_index(&cluster, 1).await?;
    add_learner(&cluster, 1, 4).await?;
    let new = config_index(&cluster, 1).await?;
    ensure!(new > old, "the learner did not move the configuration's index");
    let admin = cluster.client().admin();
    for wrong in [old, new + 1, 0] {
        let refused = admin.change_membership(1, wrong, vec![1, 2, 4], vec![]).await;
        let error = refused.err().with_context(|| format!("a change that builds on {wrong} went through"))?;
        ensure!(error.kind() != ErrorKind::OutcomeUnknown, "{error:?}");
    }
    let refused = admin.add_learner(1, cluster.address(5), Some(old), false).await;
    let error = refused.err().context("a learner on an old configuration")?;
    ensure!(error.reason() == Reason::Precondition, "{error:?}");
    let created = cluster.status(5, 1).await;
    ensure!(created.is_err(), "a refused learner left a replica behind: {created:?}");
    ensure!(config_index(&cluster, 1).await? == new, "a refused change moved the configuration");
    for nonsense in [vec![], vec![1, 2, 99]] {
        let refused = admin.change_membership(1, new, nonsense.clone(), vec![]).await;
        ensure!(refused.is_err(), "voters {nonsense:?} were accepted");
    }
    // Two at the same time: one wins.
    let (first, second) = tokio::join!(
        admin.change_membership(1, new, vec![1, 2, 4], vec![]),
        admin.change_membership(1, new, vec![1, 3, 4], vec![]),
    );
    ensure!(first.is_ok() != second.is_ok(), "two changes built on the same one: {first:?} {second:?}");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_voted_out_hands_over() -> Result<()> {
    let mut cluster = Cluster::start("membership-leader", ClusterOptions::new(3, 1)).await?;
    let workload = Workload::start(cluster.endpoints(), WorkloadOptions::new(vec![1])).await?;
    workload.progress(200).await?;
    cluster.add_node(4).await?;
    add_learner(&cluster, 1, 4).await?;
    let leader = cluster.leader(1).await?;
    let rest: Vec<u64> = (1..=4).filter(|node| *node != leader).collect();
    change(&cluster, 1, &rest).await?;
    wait_until("another leader", Duration::from_secs(10), async || {
        let next = cluster.leader(1).await?;
        Ok(if next == leader { Err(next) } else { Ok(()) })
    })
    .await?;
    workload.progress(200).await?;
    workload.stop().await?.verify(cluster.client()).await?;
    cluster.same_digest(1, &rest).await?;
    cluster.finish()
}
