//! Leases in real time, on real engines.

use crate::harness::{Cluster, Options, eventually};
use dtkv_client::packed::expiry::Expired;
use dtkv_client::packed::lock::{LockEntry, entry_key};
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use dtkv_client::v1::{Code, Consistency};
use dtkv_node::clock;
use std::time::Duration;

const ME: [u8; 16] = [1; 16];
const OTHER: [u8; 16] = [2; 16];

fn owned<'a>(client: [u8; 16], ttl: Duration, op: Op<'a>) -> Op<'a> {
    Op { session: Some((client, 0)), ttl_ms: Some(ttl.as_millis() as u64), ..op }
}

/// Writes a temporary value or a TTL; answers the index.
async fn write(cluster: &Cluster, node: u64, kind: Kind, key: &str, ttl: Duration) -> u64 {
    let value = if kind == Kind::Put { "v" } else { "" };
    let op = owned(ME, ttl, Op::new(kind, key.as_bytes(), value.as_bytes()));
    let answer = cluster.write(node, 1, op).await.unwrap();
    assert_eq!(answer.results[0], Code::Success as u8);
    answer.index
}

/// What is left of a node's TTL; None when it does not exist.
async fn left(cluster: &Cluster, node: u64, key: &str) -> Option<Duration> {
    let left = |node: packed::PackedNode<'_>| Duration::from_millis(node.lease.expect("a lease").0);
    cluster.look((node, 1, key), Consistency::Stale, left).await.unwrap()
}

async fn is_gone(cluster: &Cluster, node: u64, key: &str) {
    eventually("the node expires", || async { left(cluster, node, key).await.is_none() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_expire_by_themselves_and_never_early() {
    let cluster = Cluster::start(1, Options::default()).await;
    cluster.bootstrap(1, &[1]).await;
    cluster.leader(1).await;
    for (i, ttl_ms) in [300, 1, 150, 20].into_iter().enumerate() {
        let (key, ttl) = (format!("t{i}"), Duration::from_millis(ttl_ms));
        let before = clock::now();
        write(&cluster, 1, Kind::Put, &key, ttl).await;
        is_gone(&cluster, 1, &key).await;
        assert!(before.elapsed() >= ttl, "{ttl:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_deadline_wakes_the_scheduler_and_many_go_in_batches() {
    let cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    write(&cluster, leader, Kind::Put, "late", Duration::from_secs(3_600)).await;
    let keys: Vec<String> = (0..400).map(|i| format!("t{i}")).collect();
    for keys in keys.chunks(100) {
        let ttl = Duration::from_millis(200);
        let writes = keys.iter().map(|key| write(&cluster, leader, Kind::Put, key, ttl));
        futures::future::join_all(writes).await;
    }
    eventually("all have expired", || async { cluster.status(leader, 1).tree_nodes == 2 }).await;
    assert!(left(&cluster, leader, "late").await.is_some());
    cluster.wait_equal(1, &[1, 2, 3]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_goes_on_with_a_ttl_and_does_not_begin_it_again() {
    let mut cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let old = cluster.leader(1).await;
    let (ttl, waited) = (Duration::from_secs(5), Duration::from_millis(1_500));
    let before = clock::now();
    write(&cluster, old, Kind::Put, "t", ttl).await;
    cluster.wait_equal(1, &[1, 2, 3]).await;
    tokio::time::sleep(waited).await;
    cluster.kill(old).await;
    let new = cluster.leader(1).await;
    let rest = left(&cluster, new, "t").await;
    assert!(rest.is_none_or(|rest| rest <= ttl - waited + Duration::from_millis(5)), "{rest:?}");
    is_gone(&cluster, new, "t").await;
    assert!(before.elapsed() >= ttl);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_a_snapshot_keep_what_is_left() {
    let mut cluster = Cluster::start(3, Options::small_log()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    let (ttl, short) = (Duration::from_secs(3_600), Duration::from_secs(10));
    let before = clock::now();
    write(&cluster, leader, Kind::Put, "long", ttl).await;
    write(&cluster, leader, Kind::Put, "short", short).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let behind = (1..=3).find(|node| *node != leader).unwrap();
    cluster.kill(behind).await;
    let value = "x".repeat(4096);
    for i in 0..600 {
        cluster.put(leader, 1, &format!("k{}", i % 300), &value).await.unwrap();
    }
    eventually("the log is purged", || async { cluster.status(leader, 1).purged_index > 400 }).await;
    cluster.revive(behind).await;
    cluster.wait_equal(1, &[1, 2, 3]).await;
    let slack = Duration::from_millis(5);
    let by_snapshot = left(&cluster, behind, "long").await.unwrap();
    assert!(by_snapshot <= ttl - Duration::from_secs(1) + slack, "{by_snapshot:?}");
    for node in 1..=3 {
        cluster.restart(node).await;
    }
    let leader = cluster.leader(1).await;
    let restarted = left(&cluster, leader, "long").await.unwrap();
    assert!(restarted <= ttl - Duration::from_secs(1) + slack, "{restarted:?}");
    is_gone(&cluster, leader, "short").await;
    assert!(before.elapsed() >= short);
    assert!(left(&cluster, leader, "long").await.is_some());
    cluster.wait_equal(1, &[1, 2, 3]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_from_before_a_renewal_does_nothing() {
    let cluster = Cluster::start(1, Options::default()).await;
    cluster.bootstrap(1, &[1]).await;
    cluster.leader(1).await;
    let first = write(&cluster, 1, Kind::Put, "t", Duration::from_secs(600)).await;
    let renewed = write(&cluster, 1, Kind::UpdateTtl, "t", Duration::from_secs(3_600)).await;
    for ttl_index in [first, renewed] {
        let mut value = Vec::new();
        Expired { ttl_index, key: b"t" }.pack(&mut value);
        let answer = cluster.write(1, 1, Op::new(Kind::Expire, b"", &value)).await.unwrap();
        let result = packed::results(&answer.results).next(Kind::Expire);
        assert_eq!(result, Ok(PackedResult::Count(Code::Success, 0)), "renewed, or its time is not over");
    }
    assert!(left(&cluster, 1, "t").await.is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_sleeps_wakes_for_a_deadline() {
    let cluster = Cluster::start(3, Options::parking()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    write(&cluster, leader, Kind::Put, "t", Duration::from_secs(5)).await;
    cluster.wait_parked(1, &[1, 2, 3]).await;
    is_gone(&cluster, leader, "t").await;
    cluster.wait_equal(1, &[1, 2, 3]).await;
    cluster.wait_parked(1, &[1, 2, 3]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_that_cannot_be_written_is_tried_again() {
    let mut cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    write(&cluster, leader, Kind::Put, "t", Duration::from_millis(700)).await;
    cluster.wait_equal(1, &[1, 2, 3]).await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    for node in &others {
        cluster.kill(*node).await;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    for node in &others {
        cluster.revive(*node).await;
    }
    is_gone(&cluster, leader, "t").await;
    cluster.wait_equal(1, &[1, 2, 3]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_whose_holder_is_silent_goes_to_the_next() {
    let cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    let hold = Duration::from_millis(400);
    let (now, wait) = (0u64.to_le_bytes(), 300_000u64.to_le_bytes());
    let held = cluster.write(leader, 1, owned(ME, hold, Op::new(Kind::TryLock, b"l", &now))).await.unwrap();
    let token = PackedResult::Token(Code::Success, held.index);
    assert_eq!(packed::results(&held.results).next(Kind::TryLock), Ok(token));
    let waiting = owned(OTHER, Duration::from_secs(600), Op::new(Kind::TryLock, b"l", &wait));
    cluster.write(leader, 1, waiting).await.unwrap();
    let entry = String::from_utf8(entry_key(b"l", &OTHER)).unwrap();
    eventually("the lock is handed over", || async {
        let read = |node: packed::PackedNode<'_>| LockEntry::read(node.value).unwrap().token;
        let token = cluster.look((leader, 1, &entry), Consistency::Linearizable, read).await;
        token.unwrap().unwrap() > held.index
    })
    .await;
    assert!(left(&cluster, leader, &entry).await.unwrap() > Duration::from_secs(500), "a whole hold");
    cluster.stop().await;
}
