//! Who takes leadership over, and which replicas may call themselves ready.

use crate::harness::{Cluster, Options, eventually};
use dtkv_client::v1::Consistency;
use dtkv_node::ids::{GroupId, NodeId};
use std::time::Duration;

/// A leader's followers, the one that is asked first to take over at the end.
fn followers(leader: u64) -> [u64; 2] {
    let mut all = (1..=3).filter(|node| *node != leader);
    std::array::from_fn(|_| all.next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_to_a_voter_that_is_connected() {
    let mut cluster = Cluster::start(3, Options::no_elections()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "a", "1").await.unwrap();
    cluster.wait_equal(1, &[1, 2, 3]).await;
    let [stays, first] = followers(leader);
    cluster.kill(first).await;
    eventually("the loss is noticed", || async { !cluster.transport(leader).is_connected(NodeId(first)) })
        .await;
    cluster.store(leader).group(GroupId(1)).unwrap().hand_over(Duration::from_secs(20)).await;
    assert_eq!(cluster.leader(1).await, stays);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_does_not_take_leadership_is_followed_by_the_next() {
    let mut cluster = Cluster::start(3, Options::no_elections()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "a", "1").await.unwrap();
    cluster.wait_equal(1, &[1, 2, 3]).await;
    let [stays, first] = followers(leader);
    let order = [NodeId(first), NodeId(stays)];
    let group = cluster.store(leader).group(GroupId(1)).unwrap();
    eventually("both have said that they hold all", || async { group.successors() == order }).await;
    cluster.kill(first).await;
    cluster.revive_deaf(first).await;
    eventually("it is connected", || async { group.successors() == order }).await;
    group.hand_over(Duration::from_secs(8)).await;
    assert_eq!(cluster.leader(1).await, stays);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_time_nothing_is_handed_over() {
    let cluster = Cluster::start(3, Options::no_elections()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.store(leader).group(GroupId(1)).unwrap().hand_over(Duration::ZERO).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.status(leader, 1).leader_id, leader);
    assert!(cluster.put(leader, 1, "a", "1").await.is_ok(), "it goes on as before");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_not_ready_before_it_has_heard_the_leader_that_its_vote_names() {
    let mut cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "a", "1").await.unwrap();
    eventually("all are ready", || async { (1..=3).all(|node| cluster.status(node, 1).ready) }).await;
    let [other, alone] = followers(leader);
    cluster.kill(alone).await;
    cluster.kill(leader).await;
    cluster.kill(other).await;
    cluster.revive(alone).await;
    for _ in 0..40 {
        assert!(!cluster.status(alone, 1).ready, "{:?}", cluster.status(alone, 1));
        assert!(!cluster.store(alone).is_ready());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.status(alone, 1).last_contact_ms, u64::MAX, "it heard nobody");
    cluster.revive(other).await;
    eventually("both are ready", || async {
        [alone, other].iter().all(|node| cluster.status(*node, 1).ready)
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_quorum_and_a_follower_without_a_leader_are_not_ready() {
    let mut cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    let [gone, follower] = followers(leader);
    cluster.kill(gone).await;
    cluster.kill(follower).await;
    eventually("the leader notices", || async { !cluster.status(leader, 1).ready }).await;
    cluster.revive(follower).await;
    let led = cluster.leader(1).await;
    eventually("they are ready again", || async {
        [leader, follower].iter().all(|node| cluster.status(*node, 1).ready)
    })
    .await;
    cluster.kill(led).await;
    let left = if led == leader { follower } else { leader };
    eventually("the follower notices", || async { !cluster.status(left, 1).ready }).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_group_is_ready_and_its_contact_is_that_of_the_nodes() {
    let cluster = Cluster::start(3, Options::parking()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "a", "1").await.unwrap();
    cluster.wait_parked(1, &[1, 2, 3]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    for node in 1..=3 {
        eventually("the contact is fresh though nobody speaks", || async {
            let status = cluster.status(node, 1);
            status.parked && status.ready && status.last_contact_ms < 2_000
        })
        .await;
    }
    let [follower, _] = followers(leader);
    cluster.store(follower).group(GroupId(1)).unwrap().start_ticking();
    let woken = cluster.status(follower, 1);
    assert!(woken.ready, "a replica that wakes up stays ready: {woken:?}");
    assert!(cluster.get(follower, 1, "a", Consistency::Stale).await.is_ok());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_is_always_in_contact() {
    let cluster = Cluster::start(1, Options::default()).await;
    cluster.bootstrap(1, &[1]).await;
    cluster.leader(1).await;
    eventually("it is ready", || async { cluster.status(1, 1).ready }).await;
    assert_eq!(cluster.status(1, 1).last_contact_ms, 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_serves_a_member_that_lagged_from_its_log() {
    let mut cluster = Cluster::start(3, Options::keeps_a_tail()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "early", "v").await.unwrap();
    cluster.wait_equal(1, &[1, 2, 3]).await;
    let [stays, behind] = followers(leader);
    cluster.kill(behind).await;
    let value = "x".repeat(4096);
    for i in 0..600 {
        cluster.put(leader, 1, &format!("k{}", i % 300), &value).await.unwrap();
    }
    cluster.wait_equal(1, &[leader, stays]).await;
    // Several checkpoints of the follower that will lead.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.kill(leader).await;
    cluster.revive(behind).await;
    assert_eq!(cluster.leader(1).await, stays);
    cluster.wait_equal(1, &[stays, behind]).await;
    assert_eq!(cluster.snapshots_installed(behind), 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_behind_a_checkpoint_is_bounded() {
    let cluster = Cluster::start(1, Options::small_log()).await;
    cluster.bootstrap(1, &[1]).await;
    let leader = cluster.leader(1).await;
    let value = "x".repeat(4096);
    for i in 0..300 {
        cluster.put(leader, 1, &format!("k{i}"), &value).await.unwrap();
    }
    // 64 entries stay in any case.
    eventually("the log is short", || async { cluster.status(leader, 1).log_bytes < 66 * 4200 }).await;
    cluster.stop().await;
}
