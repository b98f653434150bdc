//! The network between the nodes is cut while clients read, by lease as well, and write.

use anyhow::{Context, Result, ensure};
use dtkv_client::v1::{Consistency, GetRequest};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, wait_until};
use dtkv_e2e::workload::{Workload, WorkloadOptions};
use std::time::Duration;

const KEY: &str = "fence";
const PATIENCE: Duration = Duration::from_secs(60);

async fn start(name: &str) -> Result<(Cluster, Workload)> {
    let cluster = Cluster::start(name, ClusterOptions::new(3, 1).with_cuts()).await?;
    let options = WorkloadOptions::new(cluster.groups()).with_lease_reads();
    let workload = Workload::start(cluster.endpoints(), options).await?;
    workload.progress(500).await?;
    Ok((cluster, workload))
}

async fn verify(cluster: Cluster, workload: Workload) -> Result<()> {
    cluster.wait_ready().await?;
    let verdict = workload.stop().await?;
    verdict.verify(cluster.client()).await?;
    cluster.same_digest(1, &cluster.node_ids()).await?;
    println!("longest stall {} ms", verdict.longest_stall_ms());
    cluster.finish()
}

/// Waits until another node than `old` leads.
async fn successor(cluster: &Cluster, old: u64) -> Result<u64> {
    let others: Vec<u64> = cluster.node_ids().into_iter().filter(|node| *node != old).collect();
    wait_until("another leader", PATIENCE, async || {
        for &node in &others {
            let status = cluster.admin(node).group_status(1, true).await;
            if status.as_ref().is_ok_and(|status| status.confirmed && status.leader_id == node) {
                return Ok(Ok(node));
            }
        }
        Ok(Err(others.clone()))
    })
    .await
}

/// Writes the key until it was acknowledged.
async fn write(cluster: &Cluster, value: &str) -> Result<()> {
    let group = cluster.client().group(1).with_timeout(Duration::from_secs(5));
    wait_until("a write", PATIENCE, async || Ok(group.put(KEY, value).await)).await.map(drop)
}

/// What the node answers to a lease read of the key; none when it does not.
async fn lease_read(cluster: &Cluster, node: u64) -> Result<Option<String>> {
    let request = GetRequest { group_id: 1, key: KEY.into(), consistency: Consistency::Lease.into() };
    let mut kv = cluster.kv(node).await?;
    let answer = tokio::time::timeout(Duration::from_secs(1), kv.get(request)).await;
    let Ok(Ok(answer)) = answer else { return Ok(None) };
    let value = answer.into_inner().node.and_then(|node| node.value).context("the key has a value")?;
    Ok(Some(String::from_utf8(value.into())?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_is_replaced_and_answers_nothing_old() -> Result<()> {
    let (cluster, workload) = start("partition").await?;
    for round in 0..2 {
        write(&cluster, &format!("before {round}")).await?;
        let old = cluster.leader(1).await?;
        cluster.cuts().isolate(old);
        let passed = cluster.cuts().passed(old);
        let new = successor(&cluster, old).await?;
        ensure!(cluster.status(new, 1).await?.term > cluster.status(old, 1).await?.term, "an old term");
        write(&cluster, &format!("after {round}")).await?;
        for _ in 0..3 {
            let read = lease_read(&cluster, old).await?;
            ensure!(read.is_none(), "n{old} is cut off and answers a lease read with {read:?}");
        }
        workload.progress(300).await?;
        // What was read already when the cut came may still have been on its way.
        ensure!(cluster.cuts().passed(old) <= passed + (1 << 20), "the cut was none");
        cluster.cuts().heal();
        workload.progress(300).await?;
    }
    verify(cluster, workload).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_hears_is_replaced() -> Result<()> {
    let (cluster, workload) = start("dumb-leader").await?;
    let old = cluster.leader(1).await?;
    cluster.cuts().make_dumb(old);
    successor(&cluster, old).await?;
    write(&cluster, "after").await?;
    let read = lease_read(&cluster, old).await?;
    ensure!(read.as_deref().is_none_or(|read| read == "after"), "n{old} answered {read:?}");
    workload.progress(300).await?;
    cluster.cuts().heal();
    workload.progress(300).await?;
    verify(cluster, workload).await
}

/// Its heartbeats arrive, so the others follow it, and it never learns that they do: it must not
/// acknowledge anything. How long that lasts is not promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_acknowledges_nothing_and_recovers() -> Result<()> {
    let (cluster, workload) = start("deaf-leader").await?;
    let old = cluster.leader(1).await?;
    cluster.cuts().make_deaf(old);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let read = lease_read(&cluster, old).await?;
    ensure!(read.is_none(), "n{old} hears nobody and answers a lease read with {read:?}");
    cluster.cuts().heal();
    workload.progress(300).await?;
    verify(cluster, workload).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_reads_that_waited_at_a_leader_that_stood_still_are_not_stale() -> Result<()> {
    let mut cluster = Cluster::start("pause-lease", ClusterOptions::new(3, 1)).await?;
    let options = WorkloadOptions::new(cluster.groups()).with_lease_reads();
    let workload = Workload::start(cluster.endpoints(), options).await?;
    workload.progress(500).await?;
    for round in 0..2 {
        write(&cluster, &format!("before {round}")).await?;
        let old = cluster.leader(1).await?;
        let kv = cluster.kv(old).await?;
        cluster.node_mut(old).pause()?;
        successor(&cluster, old).await?;
        let value = format!("after {round}");
        write(&cluster, &value).await?;
        let request = GetRequest { group_id: 1, key: KEY.into(), consistency: Consistency::Lease.into() };
        let reads: Vec<_> = (0..20)
            .map(|_| {
                let (mut kv, request) = (kv.clone(), request.clone());
                tokio::spawn(async move { kv.get(request).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.node_mut(old).resume()?;
        for read in reads {
            // Refused is right as well.
            let Ok(answer) = read.await? else { continue };
            let found = answer.into_inner().node.and_then(|node| node.value);
            ensure!(found.as_deref() == Some(value.as_bytes()), "n{old} read {found:?} after {value:?}");
        }
        workload.progress(300).await?;
    }
    verify(cluster, workload).await
}
