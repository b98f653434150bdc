//! A group is destroyed and made again under the same id.

use anyhow::{Context, Result, ensure};
use dtkv_client::v1::failure::Reason;
use dtkv_e2e::cluster::{Cluster, ClusterOptions, wait_until};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_made_again_knows_nothing_of_the_one_before() -> Result<()> {
    let mut cluster = Cluster::start("destroy", ClusterOptions::new(3, 2)).await?;
    let admin = cluster.client().admin();
    let group = cluster.client().group(2);
    for round in 0..3 {
        group.put("old", format!("round {round}")).await?;
        let destroyed = admin.group_destroy(2).await?;
        ensure!(destroyed == 3, "{destroyed} of 3 replicas destroyed");
        ensure!(admin.group_destroy(2).await? == 0, "destroyed twice");
        let gone = group.clone().with_timeout(Duration::from_millis(500)).get("old").await;
        ensure!(gone.is_err(), "a destroyed group answers: {gone:?}");
        admin.group_create(2, 3).await.context("create it again")?;
        ensure!(group.get("old").await?.is_none(), "what was destroyed is there again");
        cluster.same_digest(2, &[1, 2, 3]).await?;
    }
    group.put("new", "here").await?;
    cluster.client().group(1).put("other", "group").await?;
    cluster.kill_all()?;
    cluster.restart_all().await?;
    cluster.wait_ready().await?;
    ensure!(group.get("old").await?.is_none(), "what was destroyed came back with the restart");
    ensure!(group.get("new").await?.is_some(), "what was written since is lost");
    ensure!(cluster.client().group(1).get("other").await?.is_some(), "another group was touched");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_the_end_of_a_group_does_not_disturb_its_successor() -> Result<()> {
    let mut cluster = Cluster::start("destroy-missed", ClusterOptions::new(3, 1)).await?;
    let admin = cluster.client().admin();
    let group = cluster.client().group(1);
    group.put("old", "value").await?;
    let absent = cluster.follower(1).await?;
    cluster.node_mut(absent).kill()?;
    let partly = admin.group_destroy(1).await;
    ensure!(partly.is_err(), "nobody was told that n{absent} was not there");
    let rest: Vec<u64> = cluster.running().collect();
    let cluster_id = cluster.cluster_id().to_owned();
    for &node in &rest {
        cluster.admin(node).bootstrap(&cluster_id, 1, rest.clone(), "successor", None).await?;
    }
    cluster.wait_ready().await?;
    group.put("new", "value").await?;
    cluster.restart(absent).await?;
    // Longer than two election timeouts: the old replica has tried to be elected by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(group.get("old").await?.is_none(), "the old group came back");
    ensure!(group.get("new").await?.is_some(), "the new group lost a write");
    let mut voters = admin.group_status(1, true).await?.voters;
    voters.sort_unstable();
    ensure!(voters == rest, "the members changed to {voters:?}");
    wait_until("the late node to destroy its replica", Duration::from_secs(20), async || {
        cluster.admin(absent).destroy_group(1, &cluster_id).await?;
        Ok(match cluster.status(absent, 1).await {
            Ok(status) => Err(status),
            Err(_) => Ok(()),
        })
    })
    .await?;
    cluster.same_digest(1, &rest).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_destroys_or_makes_a_group_by_mistake() -> Result<()> {
    let cluster = Cluster::start("destroy-refused", ClusterOptions::new(3, 1)).await?;
    cluster.client().group(1).put("key", "value").await?;
    let precondition = |result: Result<bool, dtkv_client::Error>| {
        let error = result.err().context("it was done")?;
        ensure!(matches!(error.reason(), Reason::Precondition | Reason::InvalidArgument), "{error:?}");
        anyhow::Ok(())
    };
    let node = cluster.admin(1);
    precondition(node.destroy_group(1, "another-cluster").await).context("another cluster's id")?;
    precondition(node.destroy_group(1, "").await).context("no cluster id")?;
    precondition(node.destroy_replica(1, 0).await).context("a replica that is still a member")?;
    let id = cluster.cluster_id();
    precondition(node.bootstrap("another-cluster", 9, vec![1], "layout", None).await).context("bootstrap")?;
    precondition(node.bootstrap(id, 1, vec![1], "another layout", None).await).context("other members")?;
    precondition(node.bootstrap(id, 9, vec![2, 3], "layout", None).await)
        .context("a group without the node")?;
    precondition(node.bootstrap(id, 9, vec![], "layout", None).await).context("a group of nobody")?;
    ensure!(cluster.client().group(1).get("key").await?.is_some());
    ensure!(cluster.client().admin().groups().await?.groups.len() == 1, "a group was made");
    cluster.finish()
}
