//! The simulation must find mistakes. Every fault of [`crate::planted`] has a script that provokes
//! it; with the fault there is a violation, without it there is none.

use super::cluster::{Cluster, GROUP, Setup, eventually, runtime};
use super::network::{Fate, Flow};
use crate::peer_v1::message::Body;
use crate::planted::{Fault, Plot};
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1::{self, Consistency};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// A fault may hide behind a machine that is slow at the wrong moment.
const TRIES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(2);

/// A cluster, and the fault that is to be planted in it; none on the way without.
struct Play {
    cluster: Arc<Cluster>,
    fault: Option<Fault>,
}

impl Play {
    /// From now on the fault is there.
    fn plant(&self) {
        self.cluster.plot.plant(self.fault);
    }

    fn violation(&self, what: &str) {
        self.cluster.network.audit.violation(what.to_owned());
    }

    async fn restart(&self, id: u64) {
        if let Err(error) = self.cluster.restart(id).await {
            self.violation(&format!("n{id} cannot start again: {error}"));
        }
    }

    async fn expect(&self, key: &str, value: &str) {
        let leader = self.cluster.leader().await;
        let found = self.cluster.get(leader, key, Consistency::Linearizable).await;
        if !matches!(&found, Ok(Some(found)) if found == value) {
            self.violation(&format!("{key} was acknowledged as {value} and is {found:?}"));
        }
    }

    /// Lets somebody else lead and write, while n1 hears nothing of it.
    async fn overtake(&self) {
        self.cluster.network.set_all(1, &self.cluster.ids(), Flow::Cut);
        let next = self.cluster.leader_among(&[2, 3]).await;
        while self.cluster.put(next, "key", "new").await.is_err() {}
    }

    async fn expect_no_stale_read(&self, consistency: Consistency) {
        if let Ok(found) = self.cluster.get(1, "key", consistency).await
            && found.as_deref() != Some("new")
        {
            self.violation(&format!("{consistency:?} read of what was overwritten: {found:?}"));
        }
    }
}

/// The violations of one play.
fn play<F: Future<Output = ()>>(fault: Option<Fault>, script: impl FnOnce(Play) -> F) -> Vec<String> {
    let plot = Plot::default();
    plot.enter();
    let runtime = runtime(&plot);
    let violations = runtime.block_on(async {
        let cluster = Cluster::start(Setup::script(), plot.clone()).await;
        let watch = tokio::spawn(cluster.clone().watch());
        script(Play { cluster: cluster.clone(), fault }).await;
        watch.abort();
        plot.plant(None);
        let violations = cluster.network.audit.violations();
        cluster.stop().await;
        violations
    });
    runtime.shutdown_timeout(Duration::from_secs(10));
    violations
}

/// The script finds the fault, and nothing without it.
fn finds<F: Future<Output = ()>>(fault: Fault, script: impl Fn(Play) -> F) {
    let right = play(None, &script);
    assert!(right.is_empty(), "nothing was planted, and this was found: {right:#?}");
    let found = (0..TRIES).map(|_| play(Some(fault), &script)).find(|found| !found.is_empty());
    let found = found.unwrap_or_else(|| panic!("{fault:?} was not found"));
    println!("{fault:?}: {}", found[0]);
}

#[test]
fn a_skipped_sync_is_found() {
    finds(Fault::SyncSkipped, async |play: Play| {
        play.plant();
        for number in 0..5 {
            play.cluster.put_somewhere(&format!("key{number}"), b"kept").await;
        }
        for id in play.cluster.ids() {
            play.cluster.crash(id).await;
        }
        play.cluster.plot.plant(None);
        for id in play.cluster.ids() {
            play.restart(id).await;
        }
        for number in 0..5 {
            play.expect(&format!("key{number}"), "kept").await;
        }
    });
}

#[test]
fn a_lease_that_is_not_checked_again_is_found() {
    finds(Fault::LeaseNotCheckedAgain, async |play: Play| {
        play.plant();
        play.cluster.put_somewhere("key", b"old").await;
        play.cluster.lead(1).await;
        let pause = play.cluster.plot.pause_next();
        let stands = Arc::new(AtomicBool::new(false));
        let (cluster, reached, runtime) =
            (play.cluster.clone(), stands.clone(), tokio::runtime::Handle::current());
        // On a thread of its own, because it will stand still.
        let reader = tokio::task::spawn_blocking(move || {
            loop {
                let _ = runtime.block_on(cluster.get(1, "key", Consistency::Linearizable));
                let read = runtime.block_on(cluster.get(1, "key", Consistency::Lease));
                if reached.load(Ordering::SeqCst) {
                    return read;
                }
            }
        });
        let pause = tokio::task::spawn_blocking(move || (pause.reached(), pause)).await.expect("a thread");
        stands.store(true, Ordering::SeqCst);
        play.overtake().await;
        pause.1.release();
        if let Ok(Ok(found)) = reader.await
            && pause.0
            && found.as_deref() != Some("new")
        {
            play.violation(&format!("a lease read of what was overwritten: {found:?}"));
        }
    });
}

#[test]
fn a_lease_that_is_too_long_is_found() {
    finds(Fault::LeaseTooLong, async |play: Play| {
        play.plant();
        for id in [1, 2, 3] {
            play.cluster.crash(id).await;
            play.restart(id).await;
        }
        play.cluster.lead(1).await;
        play.cluster.put_somewhere("key", b"old").await;
        let _ = play.cluster.get(1, "key", Consistency::Linearizable).await;
        play.overtake().await;
        play.expect_no_stale_read(Consistency::Lease).await;
    });
}

#[test]
fn a_read_without_a_quorum_is_found() {
    finds(Fault::ReadWithoutQuorum, async |play: Play| {
        play.cluster.put_somewhere("key", b"old").await;
        play.cluster.lead(1).await;
        play.plant();
        play.overtake().await;
        play.expect_no_stale_read(Consistency::Linearizable).await;
    });
}

/// n1 stands for election, and its question to n3 gets lost on the way for a while; n3 votes for
/// somebody else in the same term, crashes, and gets the question then.
#[test]
fn a_vote_that_was_not_persisted_is_found() {
    finds(Fault::VoteNotPersisted, async |play: Play| {
        let (cluster, network) = (&play.cluster, &play.cluster.network);
        cluster.wait_equal(&[1, 2, 3]).await;
        play.plant();
        let apart = || [(1, 2), (1, 3), (2, 3)].map(|(a, b)| network.set_both(a, b, Flow::Cut));
        apart();
        cluster.crash(1).await;
        play.restart(1).await;
        network.catch(|from, to, message| match (from, to, &message.body) {
            (1, 3, Some(Body::Vote(_))) => Fate::Keep,
            (3, _, Some(Body::Vote(_) | Body::PreVote(_))) => Fate::Lose,
            _ => Fate::Pass,
        });
        network.set_both(1, 3, Flow::Open);
        eventually("n1 asks for a vote", || async { network.has_caught() }).await;
        apart();
        let caught = network.caught();
        let term = |message: &crate::peer_v1::Message| match &message.body {
            Some(Body::Vote(request)) => request.vote.map_or(0, |vote| vote.term),
            _ => 0,
        };
        let first = term(&caught[0].message);
        network.catch(|from, _, message| match (from, &message.body) {
            (2, Some(Body::Append(_))) | (3, Some(Body::Vote(_) | Body::PreVote(_))) => Fate::Lose,
            _ => Fate::Pass,
        });
        network.set_both(2, 3, Flow::Open);
        eventually("n3 votes", || async { network.audit.has_voted(3, first) }).await;
        cluster.crash(3).await;
        apart();
        network.caught();
        play.restart(3).await;
        // The word of the last leader that n3 knows of is not valid any more.
        sleep(Duration::from_millis(3_000)).await;
        for late in caught.into_iter().filter(|late| term(&late.message) == first) {
            network.deliver(late).await;
        }
    });
}

#[test]
fn a_disk_that_forgot_and_votes_is_found() {
    finds(Fault::LossIgnored, async |play: Play| {
        let cluster = &play.cluster;
        play.plant();
        cluster.crash(3).await;
        cluster.crash(2).await;
        let older = tempfile::tempdir().expect("a directory");
        let db = |id| cluster.directory(id).join("db");
        copy(&db(2), older.path());
        play.restart(2).await;
        cluster.put_somewhere("key", b"kept").await;
        // The number that tells is at most so old.
        sleep(Duration::from_millis(600)).await;
        cluster.crash(2).await;
        std::fs::remove_dir_all(db(2)).expect("it is there");
        std::fs::create_dir(db(2)).expect("it is gone");
        copy(older.path(), &db(2));
        cluster.crash(1).await;
        play.restart(3).await;
        match cluster.restart(2).await {
            Ok(()) => drop(cluster.leader_among(&[2, 3]).await),
            Err(refused) => {
                assert!(refused.contains("durable") || refused.contains("lost"), "{refused}");
                play.restart(1).await;
            }
        }
        play.expect("key", "kept").await;
    });
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
}

#[test]
fn a_log_purged_beyond_the_checkpoint_is_found() {
    finds(Fault::CheckpointSkipped, async |play: Play| {
        play.plant();
        play.cluster.outgrow_log(&[1, 2, 3]).await;
        play.cluster.crash(3).await;
        let Err(error) = play.cluster.restart(3).await else {
            return play.cluster.wait_equal(&[1, 2, 3]).await;
        };
        play.violation(&format!("n3 cannot start again: {error}"));
    });
}

#[test]
fn a_checkpoint_without_its_index_is_found() {
    finds(Fault::ProgressSkipped, async |play: Play| {
        let cluster = &play.cluster;
        cluster.put_somewhere("key", b"1").await;
        sleep(Duration::from_millis(600)).await;
        play.plant();
        // Done twice, the first of these succeeds.
        for (expect, new) in [("2", "3"), ("1", "2")] {
            let mut op = Op::new(Kind::CompareAndSet, b"key", new.as_bytes());
            (op.expect, op.has_new_value) = (Some(expect.as_bytes()), true);
            let _ = cluster.write(cluster.leader().await, op, PATIENCE).await;
        }
        cluster.wait_equal(&[1, 2, 3]).await;
        sleep(Duration::from_millis(600)).await;
        cluster.crash(3).await;
        play.restart(3).await;
        cluster.wait_equal(&[1, 2, 3]).await;
    });
}

#[test]
fn a_snapshot_that_becomes_valid_too_early_is_found() {
    finds(Fault::SnapshotSwitchedEarly, async |play: Play| {
        let (cluster, network) = (&play.cluster, &play.cluster.network);
        play.plant();
        network.set_all(3, &cluster.ids(), Flow::Cut);
        cluster.outgrow_log(&[cluster.leader_among(&[1, 2]).await]).await;
        // Now the last checkpoint holds everything.
        sleep(Duration::from_millis(600)).await;
        network.heal();
        network.break_next_snapshot(1);
        eventually("the snapshot breaks off", || async { network.counts().contains_key("snapshots broken") })
            .await;
        sleep(Duration::from_millis(200)).await;
        network.heal();
        cluster.wait_equal(&[1, 2, 3]).await;
    });
}

#[test]
fn a_change_on_another_configuration_is_found() {
    finds(Fault::ConfigIndexIgnored, async |play: Play| {
        play.plant();
        let leader = play.cluster.leader().await;
        let store = play.cluster.store(leader).expect("it runs");
        let before = play.cluster.group(leader).expect("it runs").status_now().config_index;
        let learner = v1::AddLearnerRequest {
            group_id: GROUP.0,
            node: Some(play.cluster.address(4)),
            expected_config_index: Some(before),
            ..Default::default()
        };
        let after = store.add_learner(learner).await.expect("a learner").config_index;
        let change = v1::ChangeMembershipRequest {
            group_id: GROUP.0,
            expected_config_index: before,
            voters: vec![1, 2, 3, 4],
            ..Default::default()
        };
        if let Ok(changed) = store.change_membership(change).await {
            let at = changed.config_index;
            play.violation(&format!(
                "a change of the configuration at {before} was done on that at {after}: {at}"
            ));
        }
    });
}

#[test]
fn a_message_of_a_destroyed_group_that_is_taken_is_found() {
    finds(Fault::GenerationIgnored, async |play: Play| {
        let (cluster, network) = (&play.cluster, &play.cluster.network);
        play.plant();
        cluster.lead(1).await;
        network.catch(|from, to, message| match (from, to, &message.body) {
            (1, 2, Some(Body::Append(_))) => Fate::Keep,
            _ => Fate::Pass,
        });
        eventually("n1 speaks to n2", || async { network.has_caught() }).await;
        let caught = network.caught();
        for id in [1, 2, 3] {
            let request =
                v1::DestroyGroupRequest { group_id: GROUP.0, cluster_id: "c".into(), ..Default::default() };
            let store = cluster.store(id).expect("it runs");
            assert!(store.destroy_group(request).await.expect("it is destroyed").destroyed);
        }
        // Whatever else is on its way from the group that is gone arrives first.
        cluster.bootstrap("another layout").await;
        cluster.leader().await;
        for late in caught {
            network.deliver(late).await;
        }
    });
}
