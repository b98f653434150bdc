//! Groups on real engines and a real transport, several nodes in one process.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "store/expiry.rs"]
mod expiry;
#[path = "store/harness.rs"]
mod harness;
#[path = "store/leadership.rs"]
mod leadership;
#[path = "store/once.rs"]
mod once;

use dtkv_client::packed::delivery::DeliveryKind;
use dtkv_client::v1::{self, Code, Consistency};
use dtkv_node::ids::GroupId;
use harness::{Cluster, Options, Watches, eventually};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_writes_reads_and_remembers_after_a_restart() {
    let mut cluster = Cluster::start(1, Options::default()).await;
    cluster.bootstrap(1, &[1]).await;
    let leader = cluster.leader(1).await;
    assert_eq!(cluster.put(leader, 1, "a", "one").await, Ok(Code::Success));
    assert_eq!(cluster.put(leader, 1, "a", "two").await, Ok(Code::SuccessOverwrite));
    for consistency in [Consistency::Linearizable, Consistency::Lease, Consistency::Stale] {
        assert_eq!(cluster.get(leader, 1, "a", consistency).await, Ok(Some("two".into())), "{consistency:?}");
    }
    cluster.restart(1).await;
    cluster.leader(1).await;
    assert_eq!(cluster.get(1, 1, "a", Consistency::Linearizable).await, Ok(Some("two".into())));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_apply_the_same_and_followers_name_the_leader() {
    let cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(7, &[1, 2, 3]).await;
    let leader = cluster.leader(7).await;
    for i in 0..200 {
        assert_eq!(cluster.put(leader, 7, &format!("k{i}"), "v").await, Ok(Code::Success));
    }
    cluster.wait_equal(7, &[1, 2, 3]).await;
    let follower = (1..=3).find(|node| *node != leader).unwrap();
    let failure = cluster.put(follower, 7, "x", "y").await.unwrap_err();
    assert_eq!(failure.reason, v1::failure::Reason::NotLeader);
    assert_eq!(failure.leader.map(|node| node.0), Some(leader));
    assert!(!failure.outcome_unknown);
    assert_eq!(cluster.get(follower, 7, "k7", Consistency::Stale).await, Ok(Some("v".into())));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_and_writes_go_on() {
    let cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let old = cluster.leader(1).await;
    cluster.put(old, 1, "a", "1").await.unwrap();
    let to = (1..=3).find(|node| *node != old).unwrap();
    let moved = cluster.store(old).transfer_leader(v1::TransferLeaderRequest {
        group_id: 1,
        to,
        ..Default::default()
    });
    assert_eq!(moved.await.map(|response| response.leader_id), Ok(to));
    eventually("the new leader takes writes", || async { cluster.put(to, 1, "a", "2").await.is_ok() }).await;
    assert_eq!(cluster.get(to, 1, "a", Consistency::Linearizable).await, Ok(Some("2".into())));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_elects_a_leader_when_the_leader_is_gone_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let old = cluster.leader(1).await;
    for i in 0..50 {
        cluster.put(old, 1, &format!("k{i}"), "v").await.unwrap();
    }
    cluster.kill(old).await;
    let new = cluster.leader(1).await;
    assert_ne!(new, old);
    for i in 0..50 {
        let value = cluster.get(new, 1, &format!("k{i}"), Consistency::Linearizable).await;
        assert_eq!(value, Ok(Some("v".into())));
    }
    cluster.revive(old).await;
    cluster.put(new, 1, "last", "v").await.unwrap();
    cluster.wait_equal(1, &[1, 2, 3]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_far_behind_gets_a_snapshot_and_then_the_log() {
    let mut cluster = Cluster::start(3, Options::small_log()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "early", "v").await.unwrap();
    let behind = (1..=3).find(|node| *node != leader).unwrap();
    cluster.kill(behind).await;
    let value = "x".repeat(4096);
    for i in 0..600 {
        cluster.put(leader, 1, &format!("k{}", i % 300), &value).await.unwrap();
    }
    eventually("the log is purged", || async { cluster.status(leader, 1).purged_index > 400 }).await;
    cluster.revive(behind).await;
    cluster.wait_equal(1, &[1, 2, 3]).await;
    assert!(cluster.status(behind, 1).purged_index > 400, "it came by snapshot");
    cluster.restart(behind).await;
    cluster.put(leader, 1, "later", "v").await.unwrap();
    cluster.wait_equal(1, &[1, 2, 3]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_re_syncs_states_and_ends_event_watches_that_it_skips() {
    let mut cluster = Cluster::start(3, Options::small_log()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "k", "early").await.unwrap();
    let behind = (1..=3).find(|node| *node != leader).unwrap();
    cluster.wait_equal(1, &[1, 2, 3]).await;
    cluster.kill(behind).await;
    let value = "x".repeat(4096);
    for i in 0..600 {
        cluster.put(leader, 1, &format!("k{}", i % 300), &value).await.unwrap();
    }
    eventually("the log is purged", || async { cluster.status(leader, 1).purged_index > 400 }).await;
    cluster.revive(behind).await;
    let mut watches = Watches::new();
    let replica = cluster.store(behind).group(GroupId(1)).unwrap();
    watches.add(&replica, 1, "k7", v1::WatchMode::WatchState);
    watches.add(&replica, 2, "", v1::WatchMode::WatchEvents);
    cluster.wait_equal(1, &[1, 2, 3]).await;
    let expected = cluster.status(leader, 1).applied_index;
    eventually("the watches hear of it", || {
        watches.take();
        let is_told =
            watches.states.last().is_some_and(|(presence, _)| *presence == DeliveryKind::StateValue);
        let skips = watches.created_index < 400;
        let is_ended = watches.ended.iter().any(|ended| {
            ended.code() == Code::Compacted && ended.oldest_index > 400 && ended.oldest_index <= expected + 1
        });
        async move { is_told && (is_ended || !skips) }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_goes_ends_its_watches() {
    let cluster = Cluster::start(1, Options::default()).await;
    cluster.bootstrap(1, &[1]).await;
    cluster.leader(1).await;
    let mut watches = Watches::new();
    let replica = cluster.store(1).group(GroupId(1)).unwrap();
    watches.add(&replica, 1, "k", v1::WatchMode::WatchState);
    watches.add(&replica, 2, "k", v1::WatchMode::WatchEvents);
    cluster.put(1, 1, "k", "v").await.unwrap();
    eventually("the watches are told", || {
        watches.take();
        let is_told = watches.states.last().is_some_and(|(kind, _)| *kind == DeliveryKind::StateValue);
        let is_told = is_told && watches.events == 1;
        async move { is_told }
    })
    .await;
    replica.shutdown().await;
    watches.take();
    let ended: usize = watches.ended.iter().map(|ended| ended.watch_ids.len()).sum();
    assert_eq!(ended, 2, "{:?}", watches.ended);
    drop(replica);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_shrinks_and_moves() {
    let cluster = Cluster::start(4, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "a", "1").await.unwrap();
    let store = cluster.store(leader);
    let added = store.add_learner(v1::AddLearnerRequest {
        group_id: 1,
        node: Some(cluster.address(4)),
        wait: true,
        ..Default::default()
    });
    let config_index = added.await.unwrap().config_index;
    let stay: Vec<u64> =
        (1..=3).filter(|node| *node == leader || *node % 2 == leader % 2).chain([4]).collect();
    let stale = v1::ChangeMembershipRequest {
        group_id: 1,
        expected_config_index: config_index - 1,
        voters: stay.clone(),
        ..Default::default()
    };
    let refused = store.change_membership(stale.clone()).await.unwrap_err();
    assert_eq!(refused.reason, v1::failure::Reason::Precondition);
    let change = v1::ChangeMembershipRequest { expected_config_index: config_index, ..stale };
    let changed = store.change_membership(change).await.unwrap();
    assert!(changed.config_index > config_index);
    let status = cluster.status(leader, 1);
    assert_eq!(status.voters.iter().collect::<std::collections::BTreeSet<_>>(), stay.iter().collect());
    let removed = (1..=3).find(|node| !stay.contains(node)).unwrap();
    let destroy = |index| v1::DestroyReplicaRequest {
        group_id: 1,
        removed_at_config_index: index,
        ..Default::default()
    };
    let done = cluster.store(removed).destroy_replica(destroy(changed.config_index)).await.unwrap();
    assert!(done.destroyed);
    assert!(cluster.store(removed).group(dtkv_node::ids::GroupId(1)).is_err());
    eventually("the new member has heard of it", || async {
        cluster.status(4, 1).config_index >= changed.config_index
    })
    .await;
    let refused = cluster.store(4).destroy_replica(destroy(changed.config_index)).await.unwrap_err();
    assert_eq!(refused.reason, v1::failure::Reason::Precondition, "a member is not destroyed");
    cluster.put(leader, 1, "a", "2").await.unwrap();
    cluster.wait_equal(1, &stay).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_group_sleeps_and_wakes_for_a_write_and_for_the_loss_of_its_leader() {
    let mut cluster = Cluster::start(3, Options::parking()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "a", "1").await.unwrap();
    cluster.wait_parked(1, &[1, 2, 3]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.status(leader, 1).leader_id, leader, "nobody stood for election while all slept");
    assert_eq!(cluster.put(leader, 1, "a", "2").await, Ok(Code::SuccessOverwrite));
    assert_eq!(cluster.get(leader, 1, "a", Consistency::Linearizable).await, Ok(Some("2".into())));
    cluster.wait_parked(1, &[1, 2, 3]).await;
    cluster.kill(leader).await;
    let new = cluster.leader(1).await;
    assert_ne!(new, leader);
    assert_eq!(cluster.get(new, 1, "a", Consistency::Linearizable).await, Ok(Some("2".into())));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_a_new_leader_and_no_writes_since_sleeps_as_well() {
    let cluster = Cluster::start(3, Options::parking()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let old = cluster.leader(1).await;
    cluster.put(old, 1, "a", "1").await.unwrap();
    // Now the checkpoint holds everything, and what the new leader appends is all that comes.
    cluster.wait_parked(1, &[1, 2, 3]).await;
    // On a busy machine an election may come first; it makes a new leader just as well.
    eventually("leadership moves", || async {
        let leader = cluster.leader(1).await;
        let to = (1..=3).find(|node| *node != leader).unwrap();
        let request = v1::TransferLeaderRequest { group_id: 1, to, ..Default::default() };
        cluster.store(leader).transfer_leader(request).await.is_ok()
    })
    .await;
    cluster.wait_parked(1, &[1, 2, 3]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_group_is_gone_and_its_id_can_be_used_under_a_new_layout() {
    let cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "a", "1").await.unwrap();
    for node in 1..=3 {
        let request = v1::DestroyGroupRequest { group_id: 1, cluster_id: "c".into(), ..Default::default() };
        assert!(cluster.store(node).destroy_group(request).await.unwrap().destroyed);
    }
    let again =
        cluster.store(1).bootstrap(cluster.bootstrap_request(1, &[1, 2, 3], "layout")).await.unwrap_err();
    assert_eq!(again.reason, v1::failure::Reason::GroupDestroyed);
    for node in 1..=3 {
        cluster.store(node).bootstrap(cluster.bootstrap_request(1, &[1, 2, 3], "second")).await.unwrap();
    }
    let leader = cluster.leader(1).await;
    assert_eq!(cluster.get(leader, 1, "a", Consistency::Linearizable).await, Ok(None));
    assert_eq!(cluster.put(leader, 1, "a", "1").await, Ok(Code::Success));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_quorum_answers_nothing_and_says_that_the_outcome_is_unknown() {
    let mut cluster = Cluster::start(3, Options::default()).await;
    cluster.bootstrap(1, &[1, 2, 3]).await;
    let leader = cluster.leader(1).await;
    cluster.put(leader, 1, "a", "1").await.unwrap();
    for node in (1..=3).filter(|node| *node != leader) {
        cluster.kill(node).await;
    }
    let failure = cluster.put(leader, 1, "a", "2").await.unwrap_err();
    assert!(failure.outcome_unknown || failure.reason == v1::failure::Reason::GroupNotReady, "{failure:?}");
    assert!(cluster.get(leader, 1, "a", Consistency::Linearizable).await.is_err());
    eventually("the lease runs out", || async {
        cluster.get(leader, 1, "a", Consistency::Lease).await.is_err()
    })
    .await;
    assert!(cluster.get(leader, 1, "a", Consistency::Stale).await.is_ok());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_operator_is_refused_and_a_node_never_changes_its_cluster() {
    let cluster = Cluster::start(1, Options::default()).await;
    let store = cluster.store(1);
    let drain = |epoch, draining| v1::SetDrainingRequest { epoch, draining };
    store.set_draining(drain(5, true)).await.unwrap();
    let refused = store.set_draining(drain(4, false)).await.unwrap_err();
    assert_eq!(refused.reason, v1::failure::Reason::Precondition);
    let mut request = cluster.bootstrap_request(1, &[1], "layout");
    request.epoch = 5;
    assert!(store.bootstrap(request.clone()).await.unwrap_err().message.contains("draining"));
    let join = v1::JoinClusterRequest { epoch: 5, cluster_id: "other".into(), nodes: Vec::new() };
    assert!(store.join_cluster(join).await.unwrap_err().message.contains("never changes"));
    cluster.stop().await;
}
