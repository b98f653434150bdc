//! More than the node has room for: refused early, with a time to wait, and without growing.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::{Failure, PutRequest};
use dtkv_e2e::cluster::{Cluster, ClusterOptions};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prost::Message;
use std::collections::BTreeMap;

const VALUE_BYTES: usize = 256 << 10;
const AT_ONCE: usize = 400;
const ROUNDS: usize = 4;
/// What a node may grow by beyond its budget: log, tables, tree and allocator have theirs.
const GROWTH_BYTES_MAX: u64 = 400 << 20;

fn options() -> ClusterOptions {
    ClusterOptions::new(3, 1)
        .with("limits.inflight_bytes_max", "\"8MiB\"")
        .with("engine.queue_bytes_max", "\"8MiB\"")
        .with("raft.log_bytes_max", "\"8MiB\"")
        .with("engine.write_buffer_bytes", "\"16MiB\"")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_refused_early_and_what_was_acknowledged_is_there() -> Result<()> {
    let cluster = Cluster::start("overload", options()).await?;
    let leader = cluster.leader(1).await?;
    let before = cluster.node(leader).resident_bytes()?;
    let kv = cluster.kv(leader).await?;
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let (mut highest, mut refused, mut acknowledged) = (0, 0, BTreeMap::new());
    for round in 0..ROUNDS {
        let mut calls: FuturesUnordered<_> = (0..AT_ONCE)
            .map(|n| {
                // A few keys, so that what is stored stays small.
                let (mut kv, key) = (kv.clone(), format!("k{}", n % 16));
                let put = PutRequest {
                    group_id: 1,
                    key: key.clone().into(),
                    value: value.clone(),
                    ..Default::default()
                };
                async move { (key, kv.put(put).await) }
            })
            .collect();
        while let Some((key, answer)) = calls.next().await {
            match answer {
                Ok(answer) => drop(acknowledged.insert(key, answer.into_inner().index)),
                Err(status) => {
                    let failure = Failure::decode(status.details()).with_context(|| format!("{status:?}"))?;
                    ensure!(failure.reason() == Reason::Overloaded, "round {round}: {failure:?}");
                    ensure!(!failure.outcome_unknown && failure.retry_after_ms > 0, "{failure:?}");
                    refused += 1;
                }
            }
            highest = highest.max(cluster.node(leader).resident_bytes()?);
        }
    }
    let all = ROUNDS * AT_ONCE;
    println!(
        "{refused} of {all} refused; resident {} MiB before, at most {} MiB",
        before >> 20,
        highest >> 20
    );
    ensure!(refused > 0, "there was no overload");
    ensure!(refused < all, "everything was refused");
    ensure!(highest < before + GROWTH_BYTES_MAX, "the node grew by {} MiB", (highest - before) >> 20);
    ensure!(cluster.metric(leader, "dtkv_").await.is_ok());
    for key in acknowledged.keys() {
        ensure!(cluster.client().group(1).get(key).await?.is_some(), "{key} was acknowledged and is missing");
    }
    cluster.client().group(1).put("after", "the flood").await?;
    cluster.same_digest(1, &cluster.node_ids()).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_library_waits_its_turn_and_gets_everything_through() -> Result<()> {
    let cluster = Cluster::start("overload-client", options()).await?;
    let group = cluster.client().group(1).with_timeout(std::time::Duration::from_secs(30));
    let value = vec![b'v'; VALUE_BYTES];
    let puts = (0..AT_ONCE).map(|n| {
        let (group, value) = (&group, &value);
        async move { group.put(format!("k{}", n % 16), value).await }
    });
    let results = futures::future::join_all(puts).await;
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    ensure!(failed.is_empty(), "{} of {AT_ONCE} failed, the first with {:?}", failed.len(), failed[0]);
    cluster.finish()
}
