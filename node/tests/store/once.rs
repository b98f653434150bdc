//! A frame with a scope happens once, whatever becomes of leaders, nodes and logs between its copies.

use crate::harness::{Cluster, Options, eventually};
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1::{self, Code};
use dtkv_node::group::reply::Answer;

const FIRST: Scope =
    Scope { client_id: [7; 16], sequence: 1, acknowledged_below: 0, operations: 3, is_retry: false };

/// Three operations that are answered otherwise the second time.
fn frame(scope: Scope) -> Vec<u8> {
    let mut ops = Vec::new();
    scope.pack(&mut ops);
    Op::new(Kind::Mkdir, b"d", b"").pack(&mut ops);
    Op::new(Kind::Put, b"d.k", b"first").pack(&mut ops);
    Op { has_new_value: true, ..Op::new(Kind::CompareAndSet, b"once", b"1") }.pack(&mut ops);
    ops
}

/// Sends the frame again until somebody leads who answers.
async fn again(cluster: &Cluster, node: u64) -> Answer {
    let scope = Scope { is_retry: true, ..FIRST };
    let answer = std::sync::Mutex::new(None);
    eventually("the frame is answered", || async {
        let got = cluster.frame(node, 1, frame(scope), 3).await.ok();
        *answer.lock().unwrap() = got.clone();
        got.is_some()
    })
    .await;
    answer.into_inner().unwrap().expect("an answer")
}

fn assert_same(first: &Answer, again: &Answer) {
    assert_eq!((again.index, &again.results), (first.index, &first.results));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_is_answered_as_at_first_after_a_change_of_leader_and_restarts() {
    let mut cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let old = cluster.leader(1).await;
    let first = cluster.frame(old, 1, frame(FIRST), 3).await.unwrap();
    assert_eq!(first.results.as_ref(), [Code::Success as u8; 3]);
    cluster.put(old, 1, "d.k", "second").await.unwrap();
    assert_same(&first, &again(&cluster, old).await);

    cluster.kill(old).await;
    let new = cluster.leader(1).await;
    assert_same(&first, &again(&cluster, new).await);
    cluster.revive(old).await;
    for node in 1..=3 {
        cluster.restart(node).await;
    }
    let leader = cluster.leader(1).await;
    assert_same(&first, &again(&cluster, leader).await);
    let value = cluster.get(leader, 1, "d.k", v1::Consistency::Linearizable).await;
    assert_eq!(value, Ok(Some("second".into())), "it was applied once");
    cluster.wait_equal(1, &[1, 2, 3]).await;

    let next = Scope { sequence: 2, acknowledged_below: 2, ..FIRST };
    let next = cluster.frame(leader, 1, frame(next), 3).await.unwrap();
    let codes = [Code::DirExists as u8, Code::SuccessOverwrite as u8, Code::CasMismatch as u8];
    assert_eq!(next.results.as_ref(), codes);
    let expired = cluster.frame(leader, 1, frame(FIRST), 3).await.unwrap();
    assert_eq!(expired.results.as_ref(), [Code::SessionExpired as u8; 3]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_is_answered_as_at_first_by_who_got_it_in_a_snapshot() {
    let mut cluster = Cluster::start(3, Options::small_log()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    let behind = (1..=3).find(|node| *node != leader).unwrap();
    cluster.kill(behind).await;
    let first = cluster.frame(leader, 1, frame(FIRST), 3).await.unwrap();
    let value = "x".repeat(4096);
    for i in 0..600 {
        cluster.put(leader, 1, &format!("k{}", i % 300), &value).await.unwrap();
    }
    eventually("the log is purged", || async { cluster.status(leader, 1).purged_index > 400 }).await;
    cluster.revive(behind).await;
    cluster.wait_equal(1, &[1, 2, 3]).await;
    assert!(cluster.status(behind, 1).purged_index > first.index, "it came by snapshot");
    let moved = v1::TransferLeaderRequest { group_id: 1, to: behind, ..Default::default() };
    eventually("leadership is handed over", || async {
        cluster.store(leader).transfer_leader(moved).await.is_ok()
    })
    .await;
    assert_same(&first, &again(&cluster, behind).await);
    cluster.restart(behind).await;
    cluster.wait_equal(1, &[1, 2, 3]).await;
    cluster.stop().await;
}
