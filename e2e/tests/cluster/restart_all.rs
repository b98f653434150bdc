//! All nodes die by kill -9 at the same moment, while clients write.

use anyhow::{Result, ensure};
use dtkv_e2e::cluster::{Cluster, ClusterOptions};
use dtkv_e2e::workload::{Workload, WorkloadOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_there_after_all_nodes_were_killed_at_once() -> Result<()> {
    let mut cluster = Cluster::start("restart-all", ClusterOptions::new(3, 4)).await?;
    let options = WorkloadOptions { clients: 4, ..WorkloadOptions::new(cluster.groups()) };
    let workload = Workload::start(cluster.endpoints(), options).await?;
    workload.progress(500).await?;
    for _ in 0..3 {
        let pids: Vec<_> = cluster.node_ids().into_iter().map(|id| cluster.node(id).pid()).collect();
        cluster.kill_all()?;
        ensure!(cluster.running().count() == 0, "a node survived");
        cluster.restart_all().await?;
        let new: Vec<_> = cluster.node_ids().into_iter().map(|id| cluster.node(id).pid()).collect();
        ensure!(pids.iter().zip(&new).all(|(old, new)| old != new), "a node was not restarted");
        cluster.wait_ready().await?;
        workload.progress(500).await?;
    }
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    for group in cluster.groups() {
        cluster.same_digest(group, &cluster.node_ids()).await?;
    }
    ensure!(verdict.unknown() > 0, "nothing was in flight when the nodes died: {:?}", verdict.failures());
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_alone_keeps_what_it_acknowledged_over_kills() -> Result<()> {
    let mut cluster = Cluster::start("restart-one", ClusterOptions::new(1, 2)).await?;
    let options = WorkloadOptions { value_bytes: 4096, ..WorkloadOptions::new(cluster.groups()) };
    let workload = Workload::start(cluster.endpoints(), options).await?;
    for _ in 0..4 {
        workload.progress(500).await?;
        cluster.kill_all()?;
        cluster.restart_all().await?;
        cluster.wait_ready().await?;
    }
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    cluster.finish()
}
