//! What a cluster says of itself.

use super::Cluster;
use anyhow::{Context, Result, bail};
use dtkv_client::v1::{GroupStatus, Role, TreeDigestResponse};
use std::fmt::Debug;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const POLL: Duration = Duration::from_millis(50);
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks again and again until there is an answer.
///
/// # Errors
/// When time runs out; the message says what was waited for, and the last thing that was seen.
pub async fn wait_until<T, S: Debug>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<Result<T, S>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let seen = match ask().await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(seen)) => format!("{seen:?}"),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            bail!("waited {within:?} for {what}; last seen: {seen}");
        }
        sleep(POLL).await;
    }
}

/// A plain HTTP GET: status and body.
///
/// # Errors
/// When the server does not answer.
pub async fn http_get(address: &str, path: &str) -> Result<(u16, String)> {
    timeout(HTTP_TIMEOUT, exchange(address, path)).await.context("no HTTP answer in time")?
}

async fn exchange(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP head")?;
    let status = head.split_whitespace().nth(1).context("a status")?.parse()?;
    Ok((status, body.to_owned()))
}

impl Cluster {
    /// Waits until every group has a leader that serves.
    ///
    /// # Errors
    /// When that takes longer than half a minute.
    pub async fn wait_ready(&self) -> Result<()> {
        let groups = self.groups();
        Ok(self.client().admin().wait_ready(&groups, Duration::from_secs(30), |_, _| {}).await?)
    }

    /// Waits until the group has a leader that a quorum confirms, and names it.
    ///
    /// # Errors
    /// When that takes longer than half a minute.
    pub async fn leader(&self, group: u32) -> Result<u64> {
        let what = format!("a leader of g{group}");
        wait_until(&what, Duration::from_secs(30), async || {
            let status = self.client().admin().group_status(group, true).await?;
            Ok(if status.confirmed { Ok(status.node_id) } else { Err(status) })
        })
        .await
    }

    /// How one replica sees its group.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn status(&self, node: u64, group: u32) -> Result<GroupStatus> {
        Ok(self.admin(node).group_status(group, false).await?)
    }

    /// A running voter of the group that does not lead it.
    ///
    /// # Errors
    /// When there is none.
    pub async fn follower(&self, group: u32) -> Result<u64> {
        let leader = self.leader(group).await?;
        let voters = self.status(leader, group).await?.voters;
        let is_follower = |node: &u64| *node != leader && voters.contains(node);
        self.running().find(is_follower).with_context(|| format!("a follower of g{group}"))
    }

    /// How many groups each running node leads.
    ///
    /// # Errors
    /// When a node does not answer.
    pub async fn groups_led_by(&self, node: u64) -> Result<Vec<u32>> {
        let groups = self.admin(node).list_groups().await?.groups;
        Ok(groups.iter().filter(|group| group.role() == Role::Leader).map(|group| group.group_id).collect())
    }

    /// Waits until these replicas of a group have applied the same index, and compares their trees.
    ///
    /// # Errors
    /// At once when two trees differ at the same index; later when the indexes never meet.
    pub async fn same_digest(&self, group: u32, nodes: &[u64]) -> Result<TreeDigestResponse> {
        let deadline = Instant::now() + Duration::from_secs(30);
        'again: loop {
            let mut digests = Vec::new();
            for &node in nodes {
                match self.admin(node).tree_digest(group).await {
                    Ok(digest) => digests.push((node, digest)),
                    // A node that was started a moment ago may still be refused by its old channel.
                    Err(_) if Instant::now() < deadline => {
                        sleep(POLL).await;
                        continue 'again;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let (_, first) = digests.first().context("no nodes to compare")?;
            if digests.iter().all(|(_, digest)| digest.applied_index == first.applied_index) {
                if digests.iter().any(|(_, digest)| digest != first) {
                    bail!("the trees of g{group} differ at the same index: {digests:#?}");
                }
                return Ok(first.clone());
            }
            if Instant::now() > deadline {
                bail!("the replicas of g{group} do not reach the same index: {digests:#?}");
            }
            sleep(POLL).await;
        }
    }

    /// The sum of all samples of a metric of a node whose line begins with `name`.
    ///
    /// # Errors
    /// When the node has no such metric.
    pub async fn metric(&self, node: u64, name: &str) -> Result<f64> {
        let (_, body) = http_get(&self.node(node).http_address(), "/metrics").await?;
        let lines = body.lines().filter(|line| line.starts_with(name));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.reduce(|a, b| a + b).with_context(|| format!("n{node} has no metric {name}"))
    }
}
