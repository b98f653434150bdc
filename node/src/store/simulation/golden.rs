//! Fixed sequences, and what must happen in them, in this order.

use super::cluster::{Cluster, GROUP, PATIENCE, Setup, eventually, runtime};
use super::nemesis::change_members;
use super::network::Flow;
use crate::planted::Plot;
use dtkv_client::v1::{self, Consistency};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Plays a script; nothing may break a promise on the way.
fn play<F: Future<Output = ()>>(script: impl FnOnce(Arc<Cluster>) -> F) {
    let plot = Plot::default();
    plot.enter();
    let runtime = runtime(&plot);
    runtime.block_on(async {
        let cluster = Cluster::start(Setup::script(), plot).await;
        let watch = tokio::spawn(cluster.clone().watch());
        timeout(3 * PATIENCE, script(cluster.clone())).await.expect("the script comes to its end");
        watch.abort();
        assert_eq!(cluster.network.audit.violations(), Vec::<String>::new());
        cluster.stop().await;
    });
    runtime.shutdown_timeout(Duration::from_secs(10));
}

#[test]
fn a_snapshot_that_was_interrupted_leaves_nothing_and_the_next_one_has_its_own_epoch() {
    play(async |cluster: Arc<Cluster>| {
        let network = &cluster.network;
        cluster.lead(1).await;
        cluster.put_somewhere("key", b"old").await;
        cluster.wait_equal(&[1, 2, 3]).await;
        eventually("a first checkpoint", || async { cluster.epochs(3) == [1] }).await;
        network.set_all(3, &cluster.ids(), Flow::Cut);
        network.note("n3 is cut off".into());
        cluster.put_somewhere("key", b"new").await;
        cluster.outgrow_log(&[cluster.leader_among(&[1, 2]).await]).await;
        cluster.lead(1).await;
        let before = cluster.group(3).expect("it runs").digest();
        network.break_next_snapshot(1);
        network.set_all(3, &cluster.ids(), Flow::Open);
        eventually("it breaks off", || async { network.counts().contains_key("snapshots broken") }).await;
        eventually("nothing is left of it", || async { cluster.epochs(3) == [1] }).await;
        assert_eq!(cluster.group(3).expect("it runs").digest(), before, "the old state stands");
        let stale = cluster.get(3, "key", Consistency::Stale).await;
        assert_eq!(stale, Ok(Some("old".into())));
        network.note("n3 has its old state".into());
        network.heal();
        cluster.wait_equal(&[1, 2, 3]).await;
        eventually("one epoch is left", || async { cluster.epochs(3).len() == 1 }).await;
        assert!(cluster.epochs(3)[0] > 2, "the interrupted snapshot had epoch 2: {:?}", cluster.epochs(3));
        network.note("n3 has the new state".into());
        cluster.crash(3).await;
        cluster.restart(3).await.expect("it starts again");
        cluster.wait_equal(&[1, 2, 3]).await;
        assert_eq!(cluster.get(3, "key", Consistency::Stale).await, Ok(Some("new".into())));
        assert_eq!(
            network.trace(),
            [
                "n3 is cut off",
                "snapshot from n1 to n3",
                "broken off after 1 chunks",
                "n3 has its old state",
                "snapshot from n1 to n3",
                "installed at n3",
                "n3 has the new state",
            ]
        );
    });
}

/// The configuration as the leader has it: voters, learners.
async fn config(cluster: &Cluster) -> (Vec<u64>, Vec<u64>) {
    let leader = cluster.leader().await;
    let status = cluster.group(leader).expect("it leads").status_now();
    (status.voters, status.learners)
}

async fn change(cluster: &Cluster, voters: &[u64], learners: &[u64]) -> u64 {
    let leader = cluster.leader().await;
    let expected = cluster.group(leader).expect("it leads").status_now().config_index;
    let request = v1::ChangeMembershipRequest {
        group_id: GROUP.0,
        expected_config_index: expected,
        voters: voters.to_vec(),
        learners: learners.to_vec(),
        ..Default::default()
    };
    let store = cluster.store(leader).expect("it leads");
    let changed = store.change_membership(request.clone()).await.expect("a right change").config_index;
    assert!(changed > expected);
    // The same words mean nothing any more, unless they ask for what there is.
    let stale = v1::ChangeMembershipRequest { voters: vec![1, 2, 3, 4], learners: Vec::new(), ..request };
    assert!(store.change_membership(stale).await.is_err(), "a change of an older configuration");
    changed
}

#[test]
fn members_come_and_go_one_by_one_and_the_leader_too() {
    play(async |cluster: Arc<Cluster>| {
        let mut trace = Vec::new();
        cluster.lead(1).await;
        let leader = cluster.store(1).expect("it leads");
        let learner = v1::AddLearnerRequest {
            group_id: GROUP.0,
            node: Some(cluster.address(4)),
            wait: true,
            ..Default::default()
        };
        leader.add_learner(learner).await.expect("a learner");
        trace.push(("n4 learns", config(&cluster).await));
        cluster.wait_equal(&[1, 2, 3, 4]).await;
        change(&cluster, &[1, 3, 4], &[2]).await;
        trace.push(("n4 votes instead of n2", config(&cluster).await));
        cluster.put_somewhere("key", b"1").await;
        cluster.wait_equal(&[1, 2, 3, 4]).await;
        change(&cluster, &[1, 3, 4], &[]).await;
        trace.push(("n2 is removed", config(&cluster).await));
        cluster.lead(1).await;
        let refused = change_members(&cluster, &[2, 3, 4]).await;
        assert!(refused.is_err(), "a leader that is voted out hands over first: {refused:?}");
        assert_ne!(cluster.leader().await, 1);
        trace.push(("n2 comes back, and the leader hands over", config(&cluster).await));
        eventually("the new leader removes the old one", || async {
            change_members(&cluster, &[2, 3, 4]).await.is_ok()
        })
        .await;
        trace.push(("the leader is voted out", config(&cluster).await));
        assert!(cluster.group(1).is_none(), "n1 was destroyed");
        assert_ne!(cluster.leader().await, 1);
        cluster.put_somewhere("key", b"2").await;
        cluster.wait_equal(&[2, 3, 4]).await;
        let of = |voters: [u64; 3], learners: &[u64]| (voters.to_vec(), learners.to_vec());
        assert_eq!(
            trace,
            [
                ("n4 learns", of([1, 2, 3], &[4])),
                ("n4 votes instead of n2", of([1, 3, 4], &[2])),
                ("n2 is removed", of([1, 3, 4], &[])),
                ("n2 comes back, and the leader hands over", of([1, 3, 4], &[2])),
                ("the leader is voted out", of([2, 3, 4], &[])),
            ]
        );
    });
}

#[test]
fn a_leader_that_is_cut_off_stops_its_lease_reads_before_another_one_commits() {
    play(async |cluster: Arc<Cluster>| {
        let network = &cluster.network;
        cluster.put_somewhere("key", b"old").await;
        cluster.lead(1).await;
        assert_eq!(cluster.get(1, "key", Consistency::Linearizable).await, Ok(Some("old".into())));
        network.note("n1 serves".into());
        network.set_all(1, &cluster.ids(), Flow::Cut);
        network.note("n1 is cut off".into());
        let reading = cluster.clone();
        // When the last lease read that got an answer was asked for: the lease held then or later.
        let reader = tokio::spawn(async move {
            let (mut last, mut refused) = (None, 0);
            while refused < 5 {
                let asked = Instant::now();
                let short = Duration::from_millis(50);
                match reading.read(1, "key", Consistency::Lease, short).await {
                    Ok((_, value)) => {
                        assert_eq!(value.as_deref(), Some(&b"old"[..]));
                        (last, refused) = (Some(asked), 0);
                    }
                    Err(_) => refused += 1,
                }
                sleep(Duration::from_millis(1)).await;
            }
            reading.network.note("n1 refuses".into());
            last
        });
        let next = cluster.leader_among(&[2, 3]).await;
        while cluster.put(next, "key", "new").await.is_err() {}
        let committed = Instant::now();
        let last = reader.await.expect("no stale read");
        assert!(last.is_none_or(|last| last < committed), "a lease read after another leader had committed");
        network.note("another leader has committed".into());
        network.heal();
        cluster.wait_equal(&[1, 2, 3]).await;
        assert_eq!(cluster.get(1, "key", Consistency::Stale).await, Ok(Some("new".into())));
        assert!(cluster.group(1).is_some_and(|group| !group.is_leader()), "it follows");
        network.note("n1 follows".into());
        let expected =
            ["n1 serves", "n1 is cut off", "n1 refuses", "another leader has committed", "n1 follows"];
        assert_eq!(network.trace(), expected);
    });
}

#[test]
fn leadership_goes_where_it_is_sent_and_nothing_is_lost_on_the_way() {
    play(async |cluster: Arc<Cluster>| {
        for (round, to) in [2, 3, 1].into_iter().enumerate() {
            cluster.lead(to).await;
            let value = round.to_string();
            cluster.put(to, "key", &value).await.expect("a new leader takes writes");
            assert_eq!(cluster.get(to, "key", Consistency::Linearizable).await, Ok(Some(value)));
        }
        // One that cannot be reached does not get it: the leader goes on.
        cluster.network.set_all(3, &cluster.ids(), Flow::Cut);
        let leader = cluster.group(1).expect("it runs");
        let moved = leader.transfer_leader(Some(crate::ids::NodeId(3)), Duration::from_millis(500)).await;
        assert!(moved.is_err(), "{moved:?}");
        cluster.put_somewhere("key", b"after").await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.get(leader, "key", Consistency::Linearizable).await, Ok(Some("after".into())));
        cluster.network.heal();
        cluster.wait_equal(&[1, 2, 3]).await;
    });
}
