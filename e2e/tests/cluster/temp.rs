//! Temporary nodes live as long as they are renewed and never end early, whatever becomes of leaders.

use anyhow::{Result, ensure};
use dtkv_client::{Client, Group};
use dtkv_e2e::cluster::{Cluster, ClusterOptions};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(4);
/// Of the node that is kept alive: longer than an election, shorter than the test.
const KEPT_TTL: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temporary_nodes_end_when_their_time_is_over_and_never_before() -> Result<()> {
    let mut cluster = Cluster::start("temp", ClusterOptions::new(3, 1)).await?;
    let setup = cluster.client().group(1).with_timeout(PATIENCE);
    setup.mkdir("temp").await?;
    let alive = group_of(&cluster).await?;
    alive.put_temp("temp.alive", "value", KEPT_TTL).await?;
    let renewals = alive.keep_alive_every(Duration::from_millis(200), KEPT_TTL)?;
    let started = Instant::now();
    let (mut faults, mut ended) = (0, Vec::new());
    for fault in [Fault::Kill, Fault::Pause, Fault::Transfer] {
        let mortal = group_of(&cluster).await?;
        let key = format!("temp.{fault:?}");
        let began = Instant::now();
        mortal.make_temp_dir(format!("{key}_dir"), TTL).await?;
        let below = (0..20).map(|number| (format!("{key}_dir.{number}"), "value"));
        let is_filled = mortal.batch_put(below).await?.is_all_done();
        ensure!(is_filled || began.elapsed() >= TTL, "{key}_dir ended {:?} after it began", began.elapsed());
        // Renewed once, and then no more: not before the last renewal plus the TTL may it end.
        let mut sent = Instant::now();
        mortal.put_temp(&key, "value", TTL).await?;
        let is_there = setup.get(&key).await?.is_some();
        ensure!(is_there || sent.elapsed() >= TTL, "{key} ended {:?} after it began", sent.elapsed());
        let renewing = Instant::now();
        if is_there && mortal.update_ttl(&key, TTL).await.is_ok() {
            sent = renewing;
        }
        ended.push(watch_end(setup.clone(), key.clone(), sent));
        ended.push(watch_end(setup.clone(), format!("{key}_dir"), began));
        faults += fault.happen(&mut cluster).await?;
    }
    ensure!(faults == 3, "{faults} faults happened instead of 3");
    for end in ended {
        end.await??;
    }
    tokio::time::sleep_until(started + KEPT_TTL * 3 / 2).await;
    let left = setup.list("temp", dtkv_client::ListOptions::default()).await?.nodes;
    let is_kept = left.iter().any(|node| node.key.as_ref() == b"temp.alive");
    ensure!(left.len() == usize::from(is_kept), "left over: {left:?}");
    // A renewal that fails is told of a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = renewals.status();
    ensure!(is_kept || status.is_lost, "a node ended that was kept alive: {status:?}");
    println!("{faults} faults; the node was kept alive: {is_kept}");
    cluster.same_digest(1, &cluster.node_ids()).await?;
    cluster.finish()
}

async fn group_of(cluster: &Cluster) -> Result<Group> {
    let client = Client::builder().request_timeout(PATIENCE).connect(cluster.endpoints()).await?;
    Ok(client.group(1))
}

/// What happens to the leader while times run out.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Pause,
    Transfer,
}

impl Fault {
    /// One, when somebody else leads thereafter.
    async fn happen(self, cluster: &mut Cluster) -> Result<u32> {
        let leader = cluster.leader(1).await?;
        match self {
            Fault::Kill => cluster.node_mut(leader).kill()?,
            Fault::Pause => cluster.node_mut(leader).pause()?,
            Fault::Transfer => {
                cluster.client().admin().transfer_leader(1, None).await?;
            }
        }
        let next = cluster.leader(1).await?;
        match self {
            Fault::Kill => cluster.restart(leader).await?,
            Fault::Pause => cluster.node_mut(leader).resume()?,
            Fault::Transfer => {}
        }
        Ok(u32::from(next != leader))
    }
}

/// Waits until a node is gone, and complains when that is too early. A directory must not lose a part
/// of its children before the rest.
fn watch_end(group: Group, key: String, renewed: Instant) -> JoinHandle<Result<()>> {
    tokio::spawn(async move {
        let (mut first, mut last) = (None, None);
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A read that fails says nothing of the node.
            match group.get(&key).await {
                Ok(None) => break,
                Ok(Some(node)) => {
                    first = first.or(Some(node.child_count));
                    last = Some(node.child_count);
                }
                Err(_) => {}
            }
            ensure!(Instant::now() < deadline, "{key} lives on for ever");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(first == last, "{key} lost children before it ended: {first:?}, {last:?}");
        let lived = renewed.elapsed();
        ensure!(lived >= TTL, "{key} was gone {lived:?} after its last renewal was sent");
        let below = group.get(format!("{key}.0")).await?;
        ensure!(below.is_none(), "{key} is gone and not what is below it");
        Ok(())
    })
}
