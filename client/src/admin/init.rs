//! Whole administrative steps. Each can be repeated: what is done already is left as it is.

use super::{Admin, NodeAdmin};
use crate::channel::{Address, parse_address};
use crate::error::Error;
use crate::placement::{self, GroupPlacement, Layout, NodeLoad, PlacementError};
use crate::v1::failure::Reason;
use crate::v1::{IdentityResponse, NodeAddress};
use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const GROUPS_AT_ONCE: usize = 16;
/// How often a group of the same members may have been destroyed.
const LIVES_MAX: u32 = 10_000;

/// What to make of a set of empty nodes.
#[derive(Clone, Debug)]
pub struct ClusterInit {
    /// Every node, `host:port`; empty = the endpoints that the client was connected with.
    pub endpoints: Vec<String>,
    /// How many groups; their ids are 1 to this number.
    pub groups: u32,
    /// Replicas of each group: 1, or 3 to survive the loss of one node.
    pub replicas: usize,
    /// None = the id that the nodes share already, or a new one.
    pub cluster_id: Option<String>,
    /// How long to wait for leaders.
    pub ready_timeout: Duration,
}

impl ClusterInit {
    /// With the client's endpoints, a new cluster id and 30 s for leaders.
    pub fn new(groups: u32, replicas: usize) -> ClusterInit {
        ClusterInit {
            endpoints: Vec::new(),
            groups,
            replicas,
            cluster_id: None,
            ready_timeout: Duration::from_secs(30),
        }
    }
}

/// What has just been done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitProgress {
    /// A node said who it is.
    Identified {
        /// Its id.
        node_id: u64,
        /// Where it answered.
        address: String,
    },
    /// The cluster has its id.
    ClusterId {
        /// The id.
        cluster_id: String,
        /// True when it was chosen just now.
        is_new: bool,
    },
    /// A node belongs to the cluster.
    Joined {
        /// Its id.
        node_id: u64,
    },
    /// All members of a group have their replica.
    Bootstrapped {
        /// The group.
        group_id: u32,
        /// False when all of them had it before.
        created: bool,
    },
    /// So many groups have a leader.
    Ready {
        /// Groups with a leader.
        ready: usize,
        /// All groups.
        total: usize,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitReport {
    /// The id of the cluster.
    pub cluster_id: String,
    /// Where the groups were placed.
    pub layout: Layout,
    /// False when every group was there before.
    pub created: bool,
}

struct Member {
    node_id: u64,
    asked: Address,
    identity: IdentityResponse,
}

/// The address that others should use for a node.
pub(super) fn address_of(asked: &str, identity: &IdentityResponse) -> NodeAddress {
    let told = identity.address.clone().unwrap_or_default();
    let client_address = if told.client_address.is_empty() { asked.to_string() } else { told.client_address };
    NodeAddress { node_id: identity.node_id, client_address, peer_address: told.peer_address }
}

impl Admin {
    /// Makes a cluster of nodes: gives them a cluster id and each other's addresses, creates the
    /// groups, evenly spread, and waits until each has a leader. Repeated, it completes what was
    /// left undone.
    ///
    /// # Errors
    /// When a node does not answer or belongs to another cluster, when there are fewer nodes than
    /// replicas, or when leaders are missing at the end.
    pub async fn cluster_init(
        &self,
        init: ClusterInit,
        mut progress: impl FnMut(InitProgress) + Send,
    ) -> Result<InitReport, Error> {
        let members = self.identify(&init.endpoints).await?;
        for member in &members {
            let address = member.asked.to_string();
            progress(InitProgress::Identified { node_id: member.node_id, address });
        }
        let ids: Vec<u64> = members.iter().map(|member| member.node_id).collect();
        let groups: Vec<u32> = (1..=init.groups).collect();
        let layout = placement::initial_layout(&ids, &groups, init.replicas).map_err(refused_plan)?;
        let (cluster_id, is_new) = choose_cluster_id(&members, init.cluster_id.as_deref())?;
        progress(InitProgress::ClusterId { cluster_id: cluster_id.clone(), is_new });
        self.join_all_nodes(&cluster_id, &members).await?;
        for member in &members {
            progress(InitProgress::Joined { node_id: member.node_id });
        }
        let at = members.iter().map(|member| (member.node_id, member.asked.clone())).collect();
        let created = self.bootstrap_groups(&cluster_id, &layout, &at, &mut progress).await?;
        let shared = self.shared();
        shared.router.discover(&shared.channels, &[]).await;
        let ready = |ready, total| progress(InitProgress::Ready { ready, total });
        self.wait_ready(&groups, init.ready_timeout, ready).await?;
        Ok(InitReport { cluster_id, layout, created })
    }

    async fn identify(&self, endpoints: &[String]) -> Result<Vec<Member>, Error> {
        let addresses: Vec<Address> = if endpoints.is_empty() {
            self.shared().router.endpoints()
        } else {
            endpoints.iter().map(|endpoint| parse_address(endpoint)).collect::<Result<_, _>>()?
        };
        let asked = addresses.into_iter().map(|asked| async move {
            let identity = self.node(&*asked).identity().await?;
            Ok::<_, Error>(Member { node_id: identity.node_id, asked, identity })
        });
        let mut members = try_join_all(asked).await?;
        members.sort_by_key(|member| member.node_id);
        match members.windows(2).find(|pair| pair[0].node_id == pair[1].node_id) {
            Some(pair) => Err(Error::invalid(format!(
                "{} and {} both say that they are n{}; name every node once, each with its own id",
                pair[0].asked, pair[1].asked, pair[0].node_id
            ))),
            None => Ok(members),
        }
    }

    async fn join_all_nodes(&self, cluster_id: &str, members: &[Member]) -> Result<(), Error> {
        let nodes: Vec<NodeAddress> =
            members.iter().map(|member| address_of(&member.asked, &member.identity)).collect();
        let joins = members.iter().map(|member| {
            let nodes = nodes.clone();
            async move {
                let joined = self.node(&*member.asked).join_cluster(cluster_id, nodes).await;
                joined.map_err(|error| error.context(format!("n{} cannot join", member.node_id)))
            }
        });
        try_join_all(joins).await.map(drop)
    }

    /// True when any replica was new.
    async fn bootstrap_groups(
        &self,
        cluster_id: &str,
        layout: &Layout,
        at: &BTreeMap<u64, Address>,
        progress: &mut (impl FnMut(InitProgress) + Send),
    ) -> Result<bool, Error> {
        let tasks = layout.groups.iter().map(|group| async move {
            let created = self.bootstrap_group_at(cluster_id, group, at).await?;
            Ok::<_, Error>((group.group_id, created))
        });
        let mut any = false;
        let mut done = stream::iter(tasks.collect::<Vec<_>>()).buffer_unordered(GROUPS_AT_ONCE);
        while let Some((group_id, created)) = done.try_next().await? {
            any |= created;
            progress(InitProgress::Bootstrapped { group_id, created });
        }
        Ok(any)
    }

    /// Creates a group where the placement says; false when it was there already. A group that was
    /// destroyed before begins another life.
    ///
    /// # Errors
    /// When a member does not answer, or has the group with other members.
    pub async fn bootstrap_group(&self, cluster_id: &str, group: &GroupPlacement) -> Result<bool, Error> {
        self.bootstrap_group_at(cluster_id, group, &BTreeMap::new()).await
    }

    async fn bootstrap_group_at(
        &self,
        cluster_id: &str,
        group: &GroupPlacement,
        at: &BTreeMap<u64, Address>,
    ) -> Result<bool, Error> {
        for life in 0..LIVES_MAX {
            let hash = placement::layout_hash(cluster_id, group, life);
            let answers = self.bootstrap_members(cluster_id, group, at, &hash).await;
            let is_over = |answer: &Result<bool, Error>| {
                answer.as_ref().is_err_and(|error| error.reason() == Reason::GroupDestroyed)
            };
            if !answers.iter().any(is_over) {
                let created: Vec<bool> = answers.into_iter().collect::<Result<_, _>>()?;
                return Ok(created.contains(&true));
            }
            // A member that had no part in that life must not keep a replica of it.
            for (member, _) in group.members.iter().zip(&answers).filter(|(_, a)| matches!(a, Ok(true))) {
                self.at(*member, at).destroy_group(group.group_id, cluster_id).await?;
            }
        }
        let message = format!("group {} was created and destroyed {LIVES_MAX} times", group.group_id);
        Err(Error::did_not_happen(Reason::Precondition, message))
    }

    fn at(&self, member: u64, at: &BTreeMap<u64, Address>) -> NodeAdmin {
        at.get(&member).map_or_else(|| self.node(member), |address| self.node(&**address))
    }

    async fn bootstrap_members(
        &self,
        cluster_id: &str,
        group: &GroupPlacement,
        at: &BTreeMap<u64, Address>,
        hash: &str,
    ) -> Vec<Result<bool, Error>> {
        let calls = group.members.iter().map(|member| {
            let members = group.members.clone();
            async move {
                let node = self.at(*member, at);
                let leader = Some(group.preferred_leader);
                let created = node.bootstrap(cluster_id, group.group_id, members, hash, leader).await;
                created.map_err(|error| {
                    error.context(format!("group {} cannot be created on n{member}", group.group_id))
                })
            }
        });
        join_all(calls).await
    }

    /// Creates one more group on the least loaded nodes that are not draining, and waits until it
    /// has a leader. Repeated, it completes what was left undone.
    ///
    /// # Errors
    /// When too few nodes can take a replica, or no leader comes up in time.
    pub async fn group_create(&self, group_id: u32, replicas: usize) -> Result<GroupPlacement, Error> {
        let (cluster_id, mut loads) = self.takers().await?;
        let report = self.groups().await?;
        let existing = report.groups.iter().find(|group| group.group_id == group_id);
        for group in &report.groups {
            for status in &group.replicas {
                loads.entry(status.node_id).and_modify(|load| load.replicas += 1);
            }
            let leader = group.leader.and_then(|leader| loads.get_mut(&leader));
            leader.into_iter().for_each(|load| load.leaders += 1);
        }
        let placement = match existing {
            Some(group) if !group.voters.is_empty() => GroupPlacement {
                group_id,
                members: group.voters.clone(),
                preferred_leader: group.leader.unwrap_or(group.voters[0]),
            },
            _ => {
                let layout = placement::place_groups(&loads, &[group_id], replicas).map_err(refused_plan)?;
                layout.groups.into_iter().next().ok_or_else(|| Error::invalid("no group was asked for"))?
            }
        };
        if existing.is_none_or(|group| group.leader.is_none()) {
            self.bootstrap_group(&cluster_id, &placement).await?;
        }
        self.wait_ready(&[group_id], self.timeout, |_, _| {}).await?;
        Ok(placement)
    }

    /// The nodes that may take replicas, and the id of their cluster.
    async fn takers(&self) -> Result<(String, BTreeMap<u64, NodeLoad>), Error> {
        let mut loads = BTreeMap::new();
        let mut clusters = BTreeSet::new();
        for node in self.nodes().await? {
            let Ok(identity) = node.identity else { continue };
            if identity.cluster_id.is_empty() || node.tombstone {
                continue;
            }
            clusters.insert(identity.cluster_id);
            if !identity.draining {
                loads.insert(identity.node_id, NodeLoad::default());
            }
        }
        match clusters.into_iter().next() {
            Some(cluster_id) => Ok((cluster_id, loads)),
            None => Err(Error::did_not_happen(
                Reason::Precondition,
                "no node belongs to a cluster yet; initialise the cluster first",
            )),
        }
    }

    /// Destroys a group with all its data, on every node. Answers how many replicas there were.
    ///
    /// # Errors
    /// When a node does not answer: repeat the call once it is back, its replica is still there.
    pub async fn group_destroy(&self, group_id: u32) -> Result<usize, Error> {
        let nodes: Vec<_> = self.nodes().await?.into_iter().filter(|node| !node.tombstone).collect();
        let identities = nodes.iter().filter_map(|node| node.identity.as_ref().ok());
        let cluster_id = identities.map(|identity| identity.cluster_id.clone()).max().unwrap_or_default();
        let calls = nodes.iter().map(|node| {
            let cluster_id = &cluster_id;
            async move { self.node(&*node.address.client_address).destroy_group(group_id, cluster_id).await }
        });
        let mut destroyed = 0;
        let mut failure = None;
        for answer in join_all(calls).await {
            match answer {
                Ok(existed) => destroyed += usize::from(existed),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) => {
                Err(error.context(format!("group {group_id} is destroyed on {destroyed} nodes only")))
            }
            None => Ok(destroyed),
        }
    }
}

/// The id that nodes share already wins, so that a half finished run is completed.
fn choose_cluster_id(members: &[Member], asked: Option<&str>) -> Result<(String, bool), Error> {
    let mut chosen = asked.map(|id| (id, "asked for".to_string()));
    for member in members {
        let id = member.identity.cluster_id.as_str();
        if id.is_empty() {
            continue;
        }
        let here = format!("n{} at {}", member.node_id, member.asked);
        match &chosen {
            Some((other, there)) if *other != id => {
                let message = format!(
                    "{here} belongs to cluster {id}, but cluster {other} is {there}; leave that node out, or \
                     give it an empty data directory and a new node id"
                );
                return Err(Error::did_not_happen(Reason::Precondition, message));
            }
            _ => chosen = Some((id, format!("that of {here}"))),
        }
    }
    let is_new = members.iter().all(|member| member.identity.cluster_id.is_empty());
    Ok((chosen.map_or_else(|| uuid::Uuid::new_v4().to_string(), |(id, _)| id.to_string()), is_new))
}

fn refused_plan(error: PlacementError) -> Error {
    Error::invalid(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node_id: u64, cluster_id: &str) -> Member {
        let identity =
            IdentityResponse { node_id, cluster_id: cluster_id.to_string(), ..IdentityResponse::default() };
        Member { node_id, asked: format!("n{node_id}:9332").into(), identity }
    }

    #[test]
    fn half_joined_cluster_keeps_its_id() {
        let members = [member(1, ""), member(2, "abc"), member(3, "")];
        assert_eq!(choose_cluster_id(&members, None).unwrap(), ("abc".to_string(), false));
    }

    #[test]
    fn empty_nodes_get_a_new_id_each_time() {
        let members = [member(1, ""), member(2, "")];
        let (first, is_new) = choose_cluster_id(&members, None).unwrap();
        assert!(is_new && !first.is_empty());
        assert_ne!(first, choose_cluster_id(&members, None).unwrap().0);
        assert_eq!(choose_cluster_id(&members, Some("mine")).unwrap().0, "mine");
    }

    #[test]
    fn nodes_of_two_clusters_are_refused_and_named() {
        let error = choose_cluster_id(&[member(1, "a"), member(2, "b")], None).unwrap_err();
        assert!(error.message().contains("n2 at n2:9332"), "{error}");
        assert!(choose_cluster_id(&[member(1, "a")], Some("b")).is_err());
    }
}
