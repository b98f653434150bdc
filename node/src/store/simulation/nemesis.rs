//! What a seed does to a cluster.

use super::clients::rng_pick;
use super::cluster::{Cluster, GROUP};
use super::network::{Flow, Weather};
use crate::ids::NodeId;
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Does one thing after the other.
pub struct Nemesis {
    cluster: Arc<Cluster>,
    rng: SmallRng,
    /// What was done, for people.
    pub done: Vec<String>,
}

impl Nemesis {
    pub fn new(cluster: Arc<Cluster>, seed: u64) -> Nemesis {
        Nemesis { cluster, rng: SmallRng::seed_from_u64(seed), done: Vec::new() }
    }

    /// Works so long, then mends everything.
    pub async fn work(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let node = *rng_pick(&mut self.rng, &[1, 2, 3]);
        let what = self.fall_behind(node).await;
        self.done.push(what);
        while Instant::now() < end {
            let what = self.step().await;
            self.done.push(what);
            sleep(Duration::from_millis(self.rng.random_range(50..350))).await;
            if self.rng.random_bool(0.4) {
                self.cluster.network.heal();
            }
        }
        self.mend().await;
    }

    async fn mend(&mut self) {
        self.cluster.network.heal();
        for id in self.cluster.ids() {
            if !self.cluster.running().contains(&id) {
                self.restart(id).await;
            }
        }
    }

    async fn restart(&self, id: u64) {
        if let Err(error) = self.cluster.restart(id).await {
            self.cluster.network.audit.violation(format!("n{id} cannot start again: {error}"));
        }
    }

    async fn step(&mut self) -> String {
        let ids = self.cluster.ids();
        let node = *rng_pick(&mut self.rng, &ids);
        match self.rng.random_range(0..13) {
            0 => self.isolate(node, Flow::Cut),
            1 => self.isolate(node, Flow::Held),
            2 => self.isolate_leader(Flow::Cut),
            3 => self.isolate_leader(Flow::Held),
            4 => self.one_way(node),
            5 => self.cut_pair(node),
            6 => self.change_weather(),
            7 | 8 => self.crash(node).await,
            9 => self.crash_all().await,
            10 => self.transfer(node).await,
            11 => self.fall_behind(node).await,
            _ => self.change_members().await,
        }
    }

    fn isolate(&self, node: u64, flow: Flow) -> String {
        self.cluster.network.set_all(node, &self.cluster.ids(), flow);
        format!("n{node} {flow:?}")
    }

    fn isolate_leader(&self, flow: Flow) -> String {
        let leads = |id: &u64| self.cluster.group(*id).is_some_and(|group| group.is_leader());
        let leader = self.cluster.running().into_iter().find(leads);
        leader.map_or_else(|| "nobody leads".to_owned(), |leader| self.isolate(leader, flow))
    }

    fn one_way(&mut self, node: u64) -> String {
        let is_deaf = self.rng.random_bool(0.5);
        for other in self.cluster.ids().into_iter().filter(|other| *other != node) {
            let (from, to) = if is_deaf { (other, node) } else { (node, other) };
            self.cluster.network.set(from, to, Flow::Cut);
        }
        format!("n{node} is {}", if is_deaf { "deaf" } else { "dumb" })
    }

    fn cut_pair(&mut self, node: u64) -> String {
        let other = *rng_pick(&mut self.rng, &self.cluster.ids());
        self.cluster.network.set_both(node, other, Flow::Cut);
        format!("n{node} and n{other} apart")
    }

    fn change_weather(&mut self) -> String {
        let weather = Weather {
            lost: self.rng.random_range(0.0..0.08),
            doubled: self.rng.random_range(0.0..0.2),
            delay_max: Duration::from_millis(self.rng.random_range(0..40)),
            snapshots_broken: self.rng.random_range(0.0..0.5),
        };
        self.cluster.network.set_weather(weather);
        format!("{weather:?}")
    }

    async fn crash(&mut self, node: u64) -> String {
        self.cluster.crash(node).await;
        sleep(Duration::from_millis(self.rng.random_range(0..400))).await;
        self.restart(node).await;
        format!("n{node} crashed")
    }

    async fn crash_all(&mut self) -> String {
        let ids = self.cluster.ids();
        futures::future::join_all(ids.iter().map(|id| self.cluster.crash(*id))).await;
        for id in ids {
            self.restart(id).await;
        }
        "all crashed".to_owned()
    }

    /// The node misses more than the others keep of their logs, and needs a snapshot.
    async fn fall_behind(&self, node: u64) -> String {
        self.isolate(node, Flow::Cut);
        let filler = Op::new(Kind::Put, b"filler", &[b'f'; 1_000]);
        let others = self.cluster.running().into_iter().filter(|id| *id != node);
        let leads = |id: &u64| self.cluster.group(*id).is_some_and(|group| group.is_leader());
        let leader = others.into_iter().find(leads);
        let mut written = 0;
        if let Some(leader) = leader {
            for _ in 0..80 {
                let done = self.cluster.write(leader, filler, Duration::from_millis(200)).await;
                written += u32::from(done.is_ok());
            }
        }
        self.cluster.network.heal();
        format!("n{node} missed {written} entries")
    }

    async fn transfer(&self, to: u64) -> String {
        let leads = |id: &u64| self.cluster.group(*id).is_some_and(|group| group.is_leader());
        let Some(leader) = self.cluster.running().into_iter().find(leads) else {
            return "nobody leads".to_owned();
        };
        let Some(group) = self.cluster.group(leader) else { return "it is gone".to_owned() };
        let moved = group.transfer_leader(Some(NodeId(to)), Duration::from_millis(500)).await;
        format!("n{leader} hands over to n{to}: {moved:?}")
    }

    /// Brings the group to three of the nodes, in the way of an operator: every step may fail.
    async fn change_members(&mut self) -> String {
        let ids = self.cluster.ids();
        let left_out = *rng_pick(&mut self.rng, &ids);
        let wanted: Vec<u64> = ids.into_iter().filter(|id| *id != left_out).collect();
        let result =
            tokio::time::timeout(Duration::from_secs(2), change_members(&self.cluster, &wanted)).await;
        format!("members {wanted:?}: {result:?}")
    }
}

/// Adds who is missing, changes the voters, and destroys the replicas that were left out.
///
/// # Errors
/// As the store says.
pub async fn change_members(cluster: &Cluster, wanted: &[u64]) -> Result<u64, String> {
    let leads = |id: &u64| cluster.group(*id).is_some_and(|group| group.is_leader());
    let leader = cluster.running().into_iter().find(leads).ok_or("nobody leads")?;
    let store = cluster.store(leader).ok_or("the leader is gone")?;
    let group = cluster.group(leader).ok_or("the leader is gone")?;
    let before = group.status_now();
    let (generation, mut expected) = (group.generation(), before.config_index);
    for id in wanted.iter().filter(|id| !before.voters.contains(id)) {
        cluster.network.audit.destroyed(generation, *id, false);
        let request = v1::AddLearnerRequest {
            group_id: GROUP.0,
            node: Some(cluster.address(*id)),
            expected_config_index: Some(expected),
            wait: true,
            ..Default::default()
        };
        expected = store.add_learner(request).await.map_err(|f| f.to_string())?.config_index;
    }
    let request = v1::ChangeMembershipRequest {
        group_id: GROUP.0,
        expected_config_index: expected,
        voters: wanted.to_vec(),
        ..Default::default()
    };
    let removed_at = store.change_membership(request).await.map_err(|f| f.to_string())?.config_index;
    for id in cluster.ids().into_iter().filter(|id| !wanted.contains(id)) {
        let Some(store) = cluster.store(id) else { continue };
        let request = v1::DestroyReplicaRequest {
            group_id: GROUP.0,
            removed_at_config_index: removed_at,
            ..Default::default()
        };
        if store.destroy_replica(request).await.map_err(|f| f.to_string())?.destroyed {
            cluster.network.audit.destroyed(generation, id, true);
        }
    }
    Ok(removed_at)
}
