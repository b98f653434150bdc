//! Every operation and every code, over each interface, on a cluster of three.

use anyhow::{Context, Result, ensure};
use dtkv_client::v1::{self, Code, failure::Reason};
use dtkv_client::{ListOptions, PutOptions};
use dtkv_e2e::cluster::{Cluster, ClusterOptions, http_get, wait_until};
use dtkv_e2e::contract::{Pipe, Row, Told, table, unary};
use prost::Message;
use std::time::Duration;

fn check(row: &Row, told: &Told, highest: &mut u64) -> Result<()> {
    ensure!(told.codes == row.codes, "{:?} was answered {:?}, not {:?}", row.call, told.codes, row.codes);
    if let Some(value) = row.value {
        let seen = told.values.first().cloned().flatten();
        ensure!(seen.as_deref() == Some(value.as_bytes()), "{:?} saw {seen:?}", row.call);
    }
    let decided_early = told.codes.iter().all(|code| {
        matches!(
            code,
            Code::InvalidKey | Code::InvalidValue | Code::KeyTooLong | Code::ValueTooLong | Code::Fenced
        )
    });
    ensure!(decided_early || told.index >= *highest, "{:?}: indexes go backwards", row.call);
    *highest = told.index.max(*highest);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_and_code_by_unary_calls_and_by_frames() -> Result<()> {
    let cluster = Cluster::start("smoke", ClusterOptions::new(3, 2)).await?;
    let leader = cluster.leader(1).await?;
    let mut kv = cluster.kv(leader).await?;
    let mut highest = 0;
    let rows = table("unary");
    for row in &rows {
        let told = unary(&mut kv, 1, &row.call).await.with_context(|| format!("{:.200?}", row.call))?;
        check(row, &told, &mut highest)?;
    }
    let mut pipe = Pipe::open(kv.clone()).await?;
    let mut framed = 0;
    for row in &table("frames") {
        let Some(told) = pipe.call(1, &row.call).await? else { continue };
        let told = told.map_err(|failure| anyhow::anyhow!("{:.200?}: {failure:?}", row.call))?;
        check(row, &told, &mut highest)?;
        framed += 1;
    }
    println!("{} unary calls, {framed} frames", rows.len());
    cluster.same_digest(1, &[1, 2, 3]).await?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_answer_is_a_status_with_a_typed_detail() -> Result<()> {
    let cluster = Cluster::start("smoke-status", ClusterOptions::new(3, 1)).await?;
    let (leader, follower) = (cluster.leader(1).await?, cluster.follower(1).await?);
    let detail = |status: tonic::Status| -> Result<(tonic::Code, v1::Failure)> {
        Ok((status.code(), v1::Failure::decode(status.details())?))
    };
    let put =
        |group_id| v1::PutRequest { group_id, key: "k".into(), value: "v".into(), ..Default::default() };
    let mut kv = cluster.kv(follower).await?;
    let (_, failure) = detail(kv.put(put(1)).await.err().context("a follower took a write")?)?;
    ensure!(failure.reason() == Reason::NotLeader && !failure.outcome_unknown, "{failure:?}");
    let hint = failure.leader.context("no leader in the detail")?;
    ensure!(hint.node_id == leader && hint.client_address == cluster.node(leader).client_address());
    let (_, failure) =
        detail(kv.put(put(99)).await.err().context("a group that is not there took a write")?)?;
    ensure!(failure.reason() == Reason::GroupNotFound && !failure.outcome_unknown, "{failure:?}");
    let get = v1::GetRequest { group_id: 1, key: "".into(), consistency: v1::Consistency::Stale as i32 };
    let stale = kv.get(get).await?.into_inner();
    ensure!(stale.code() == Code::Success && stale.lag_ms.is_some(), "a stale read of a follower: {stale:?}");
    let mut pipe = Pipe::open(kv).await?;
    let call = dtkv_e2e::contract::Call::Get { key: String::new() };
    let failure = pipe.call(99, &call).await?.context("a frame")?.err().context("a get of no group")?;
    ensure!(failure.reason() == Reason::GroupNotFound, "{failure:?}");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_carry_their_metadata_and_listings_are_sorted_and_paged() -> Result<()> {
    let cluster = Cluster::start("smoke-list", ClusterOptions::new(3, 1)).await?;
    let group = cluster.client().group(1);
    let deep = PutOptions { create_parents: true, ..PutOptions::default() };
    let first = group.put_with("dir.sub.b", "1", deep).await?.index;
    for key in ["dir.c", "dir.a", "dir.b", "dir.aa", "dir.sub.a"] {
        group.put(key, key).await?;
    }
    let last = group.put("dir.sub.b", "2").await?.index;
    let dir = group.get("dir").await?.context("the directory")?;
    ensure!((dir.create_index, dir.update_index, dir.child_count) == (first, last, 5), "{dir:?}");
    ensure!(dir.dir && !dir.temp && !dir.lock && dir.value.is_none() && dir.create_time_ms > 0, "{dir:?}");
    let value = group.get("dir.sub.b").await?.context("the value")?;
    ensure!((value.create_index, value.update_index) == (first, last), "{value:?}");
    let names = |page: &dtkv_client::Page| -> Vec<String> {
        page.nodes.iter().map(|node| String::from_utf8_lossy(&node.key).into_owned()).collect()
    };
    let whole = group.list("dir", ListOptions::default()).await?;
    ensure!(names(&whole) == ["dir.a", "dir.aa", "dir.b", "dir.c", "dir.sub"], "{:?}", names(&whole));
    let mut options = ListOptions { limit: 2, keys_only: true, ..ListOptions::default() };
    let mut paged = Vec::new();
    loop {
        let page = group.list("dir", options.clone()).await?;
        ensure!(page.nodes.len() <= 2 && page.nodes.iter().all(|node| node.value.is_none()), "{page:?}");
        paged.extend(names(&page));
        options.continuation = page.continuation;
        if options.continuation.is_none() {
            break;
        }
    }
    ensure!(paged == names(&whole), "{paged:?}");
    let below = group.list("", ListOptions { recursive: true, ..ListOptions::default() }).await?;
    ensure!(below.nodes.len() == 8, "{:?}", names(&below));
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_and_machines_see_how_a_node_is() -> Result<()> {
    let cluster = Cluster::start("smoke-http", ClusterOptions::new(3, 4)).await?;
    cluster.client().group(1).put("key", "value").await?;
    for node in cluster.node_ids() {
        let address = cluster.node(node).http_address();
        wait_until("the node to be ready", Duration::from_secs(10), async || {
            let answer = http_get(&address, "/readyz").await?;
            Ok(if answer.0 == 200 { Ok(()) } else { Err(answer) })
        })
        .await?;
        for (path, word) in [("/healthz", ""), ("/metrics", "dtkv_"), ("/", "<html"), ("/status.json", "{")] {
            let (status, body) = http_get(&address, path).await?;
            ensure!(status == 200 && body.contains(word), "n{node}{path}: {status} {body:.200}");
        }
        ensure!(http_get(&address, "/nothing").await?.0 == 404);
    }
    let identity = cluster.admin(2).identity().await?;
    ensure!(identity.node_id == 2 && identity.cluster_id == cluster.cluster_id() && identity.groups == 4);
    let limits = cluster.admin(2).limits().await?;
    ensure!(limits.key_bytes_max == 8192 && limits.value_bytes_max == 1 << 20, "{limits:?}");
    ensure!(limits.batch_items_max == 1024 && limits.batch_bytes_max == 4 << 20, "{limits:?}");
    let led: usize = {
        let mut led = 0;
        for node in cluster.node_ids() {
            led += cluster.groups_led_by(node).await?.len();
        }
        led
    };
    ensure!(led == 4, "{led} leaders of 4 groups");
    cluster.finish()
}
