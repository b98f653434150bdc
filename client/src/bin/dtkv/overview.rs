//! The cluster as a whole: nodes, groups, and what is wrong with them.

mod report;

use crate::context::Context;
use crate::fault::{Exit, Fault};
use dtkv_client::admin::{GroupInfo, GroupsReport, NodeInfo};
use dtkv_client::v1::{GroupStatus, Role};
use report::{GroupsTable, MembersTable, NodesTable, StatusPage};
use serde::Serialize;
use std::collections::BTreeSet;

/// Entries that a replica may be behind before that is worth a warning.
const LAG_ENTRIES_MAX: u64 = 100_000;

/// A node, in words for people and programs.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    pub node_id: u64,
    /// up, draining, evicting, empty, down or tombstone.
    pub state: &'static str,
    pub client_address: String,
    pub peer_address: String,
    pub cluster_id: String,
    pub version: String,
    pub durability: String,
    pub uptime_ms: u64,
    pub groups: u32,
    pub leaders: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl From<NodeInfo> for NodeView {
    fn from(info: NodeInfo) -> NodeView {
        let failure = info.identity.as_ref().err().map(|e| e.message().to_string());
        let identity = info.identity.unwrap_or_default();
        let state = match () {
            () if info.tombstone => "tombstone",
            () if failure.is_some() => "down",
            () if identity.cluster_id.is_empty() => "empty",
            () if identity.draining => "draining",
            () if identity.evicting_leaders => "evicting",
            () => "up",
        };
        NodeView {
            node_id: info.address.node_id,
            state,
            client_address: info.address.client_address,
            peer_address: info.address.peer_address,
            cluster_id: identity.cluster_id,
            version: identity.version,
            durability: identity.durability,
            uptime_ms: identity.uptime_ms,
            groups: identity.groups,
            leaders: identity.leaders,
            failure,
        }
    }
}

/// A group, as all replicas that could be asked describe it.
#[derive(Clone, Debug, Serialize)]
pub struct GroupView {
    pub group_id: u32,
    pub leader: Option<u64>,
    pub term: u64,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub outgoing_voters: Vec<u64>,
    pub config_index: u64,
    pub commit_index: u64,
    /// Nodes of the tree without its root.
    pub keys: u64,
    pub tree_bytes: u64,
    pub log_bytes: u64,
    /// Entries that the slowest replica is behind.
    pub lag_entries: u64,
    pub replicas: Vec<ReplicaView>,
    /// Empty when all is well.
    pub warnings: Vec<String>,
}

/// One member of a group.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaView {
    pub node_id: u64,
    /// voter, learner, leaving, or none for a replica that is no member.
    pub member: &'static str,
    /// leader, follower ..., or unreachable.
    pub role: &'static str,
    pub applied_index: u64,
    pub lag_entries: u64,
    /// None = never.
    pub last_contact_ms: Option<u64>,
    pub log_bytes: u64,
    pub ready: bool,
    /// Idle, so that its node sends no heartbeats for it.
    pub parked: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub failure: String,
}

impl From<GroupInfo> for GroupView {
    fn from(info: GroupInfo) -> GroupView {
        let newest = info.replicas.iter().max_by_key(|status| (status.config_index, status.term));
        let outgoing_voters = newest.map(|status| status.outgoing_voters.clone()).unwrap_or_default();
        let commit_index = info.replicas.iter().map(|status| status.commit_index).max().unwrap_or(0);
        let leader = info.leader.and_then(|id| info.replicas.iter().find(|status| status.node_id == id));
        let shown = leader.or(newest).cloned().unwrap_or_default();
        let replicas = replicas(&info, &outgoing_voters, commit_index);
        let mut view = GroupView {
            group_id: info.group_id,
            leader: info.leader,
            term: info.term,
            voters: info.voters,
            learners: info.learners,
            outgoing_voters,
            config_index: newest.map_or(0, |status| status.config_index),
            commit_index,
            keys: shown.tree_nodes.saturating_sub(1),
            tree_bytes: shown.tree_bytes,
            log_bytes: shown.log_bytes,
            lag_entries: replicas.iter().map(|replica| replica.lag_entries).max().unwrap_or(0),
            replicas,
            warnings: Vec::new(),
        };
        view.warnings = warnings(&view);
        view
    }
}

fn replicas(info: &GroupInfo, outgoing: &[u64], commit_index: u64) -> Vec<ReplicaView> {
    let members = info.voters.iter().chain(&info.learners).chain(outgoing).copied();
    let hosts = info.replicas.iter().map(|status| status.node_id);
    let ids: BTreeSet<u64> = members.chain(hosts).collect();
    let member = |id: u64| match id {
        id if info.voters.contains(&id) => "voter",
        id if info.learners.contains(&id) => "learner",
        id if outgoing.contains(&id) => "leaving",
        _ => "none",
    };
    let of = |id| info.replicas.iter().find(|status| status.node_id == id);
    ids.into_iter().map(|id| replica(id, member(id), of(id), commit_index)).collect()
}

fn replica(
    node_id: u64,
    member: &'static str,
    status: Option<&GroupStatus>,
    commit_index: u64,
) -> ReplicaView {
    let known = status.cloned().unwrap_or_default();
    let role = match status.map(GroupStatus::role) {
        Some(Role::Leader) => "leader",
        Some(Role::Follower) => "follower",
        Some(Role::Candidate) => "candidate",
        Some(Role::Learner) => "learner",
        Some(Role::Shutdown) => "stopped",
        Some(Role::Unspecified) => "unknown",
        None => "unreachable",
    };
    ReplicaView {
        node_id,
        member,
        role,
        applied_index: known.applied_index,
        lag_entries: status.map_or(0, |status| commit_index.saturating_sub(status.applied_index)),
        last_contact_ms: Some(known.last_contact_ms).filter(|ms| *ms < u64::MAX && status.is_some()),
        log_bytes: known.log_bytes,
        ready: known.ready,
        parked: known.parked,
        failure: known.failure,
    }
}

fn warnings(group: &GroupView) -> Vec<String> {
    let mut warnings = Vec::new();
    let is_alive = |id: &&u64| group.replicas.iter().any(|r| r.node_id == **id && is_alive(r));
    for voters in [&group.voters, &group.outgoing_voters].into_iter().filter(|voters| !voters.is_empty()) {
        let alive = voters.iter().filter(is_alive).count();
        if alive * 2 <= voters.len() {
            warnings.push(format!("no quorum: {alive} of {} voters answer", voters.len()));
        }
    }
    if group.leader.is_none() {
        warnings.push("no leader".into());
    }
    for replica in &group.replicas {
        let id = replica.node_id;
        match replica {
            r if r.role == "unreachable" => warnings.push(format!("n{id} does not answer")),
            r if !r.failure.is_empty() => warnings.push(format!("n{id} stopped: {}", r.failure)),
            r if r.member == "none" => warnings.push(format!("n{id} has a replica but is no member")),
            r if !r.ready => warnings.push(format!("n{id} is not ready")),
            r if r.lag_entries > LAG_ENTRIES_MAX => {
                warnings.push(format!("n{id} is {} entries behind", r.lag_entries));
            }
            _ => {}
        }
    }
    if !group.outgoing_voters.is_empty() {
        warnings.push("membership change under way".into());
    }
    warnings
}

fn is_alive(replica: &ReplicaView) -> bool {
    replica.failure.is_empty() && !matches!(replica.role, "unreachable" | "stopped")
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    pub cluster_id: String,
    pub nodes: Vec<NodeView>,
    pub groups: Vec<GroupView>,
    pub warnings: Vec<String>,
}

impl Overview {
    fn of(nodes: Vec<NodeInfo>, report: GroupsReport) -> Overview {
        let nodes: Vec<NodeView> = nodes.into_iter().map(NodeView::from).collect();
        let groups: Vec<GroupView> = report.groups.into_iter().map(GroupView::from).collect();
        let cluster_id = nodes.iter().map(|node| &node.cluster_id).find(|id| !id.is_empty());
        let warnings = cluster_warnings(&nodes, &groups);
        Overview { cluster_id: cluster_id.cloned().unwrap_or_default(), nodes, groups, warnings }
    }

    pub async fn read(context: &Context) -> Result<Overview, Fault> {
        let admin = context.admin();
        let (nodes, groups) = tokio::join!(admin.nodes(), admin.groups());
        Ok(Overview::of(nodes?, groups?))
    }
}

fn cluster_warnings(nodes: &[NodeView], groups: &[GroupView]) -> Vec<String> {
    let mut warnings = Vec::new();
    for node in nodes.iter().filter(|node| node.state == "down") {
        let why = node.failure.as_deref().unwrap_or_default();
        warnings.push(format!("n{} at {} does not answer: {why}", node.node_id, node.client_address));
    }
    let clusters: BTreeSet<&str> =
        nodes.iter().map(|node| node.cluster_id.as_str()).filter(|id| !id.is_empty()).collect();
    if clusters.len() > 1 {
        let ids: Vec<&str> = clusters.into_iter().collect();
        warnings.push(format!("the nodes belong to different clusters: {}", ids.join(", ")));
    } else if clusters.is_empty() {
        warnings.push("no node belongs to a cluster yet; see dtkv cluster init --help".into());
    } else if groups.is_empty() {
        warnings.push("there are no groups yet; see dtkv group create --help".into());
    }
    for group in groups {
        warnings.extend(group.warnings.iter().map(|warning| format!("g{}: {warning}", group.group_id)));
    }
    warnings
}

pub async fn groups(context: &Context) -> Result<Exit, Fault> {
    let report = context.admin().groups().await?;
    let groups: Vec<GroupView> = report.groups.into_iter().map(GroupView::from).collect();
    context.print(&GroupsTable(&groups))?;
    for (address, error) in &report.unreachable {
        eprintln!("dtkv: note: {address} does not answer: {}", error.message());
    }
    Ok(Exit::Done)
}

pub async fn nodes(context: &Context) -> Result<Exit, Fault> {
    let nodes: Vec<NodeView> = context.admin().nodes().await?.into_iter().map(NodeView::from).collect();
    context.print(&NodesTable(&nodes))?;
    Ok(Exit::Done)
}

pub async fn members(context: &Context, id: u32) -> Result<Exit, Fault> {
    let report = context.admin().groups().await?;
    let Some(group) = report.groups.into_iter().find(|group| group.group_id == id) else {
        return Err(no_group(id));
    };
    context.print(&MembersTable(&group.into()))?;
    Ok(Exit::Done)
}

/// The answer to a command on a group that no node hosts.
pub fn no_group(id: u32) -> Fault {
    Fault::refused(format!("no node that answers has group {id}; dtkv groups lists those that exist"))
}

pub async fn status(context: &Context) -> Result<Exit, Fault> {
    let overview = Overview::read(context).await?;
    let exit = if overview.warnings.is_empty() { Exit::Done } else { Exit::Refused };
    context.print(&StatusPage(&overview))?;
    Ok(exit)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use dtkv_client::Error;
    use dtkv_client::v1::failure::Reason;
    use dtkv_client::v1::{IdentityResponse, NodeAddress};

    /// A healthy replica in tests.
    pub fn status_of(node_id: u64, role: Role, voters: &[u64]) -> GroupStatus {
        GroupStatus {
            group_id: 1,
            node_id,
            role: role.into(),
            term: 3,
            voters: voters.to_vec(),
            config_index: 5,
            commit_index: 120,
            applied_index: 120,
            tree_nodes: 10,
            tree_bytes: 2048,
            log_bytes: 4096,
            ready: true,
            ..GroupStatus::default()
        }
    }

    /// A group of n1, n2, n3 with these replicas in tests.
    pub fn group_of(replicas: Vec<GroupStatus>) -> GroupView {
        let leader =
            replicas.iter().find(|status| status.role() == Role::Leader).map(|status| status.node_id);
        let (term, voters, learners) = (3, vec![1, 2, 3], Vec::new());
        GroupInfo { group_id: 1, leader, term, voters, learners, replicas }.into()
    }

    /// A node in tests.
    pub fn node_of(node_id: u64, answers: bool) -> NodeInfo {
        let address = NodeAddress {
            node_id,
            client_address: format!("10.0.0.{node_id}:9332"),
            peer_address: format!("10.0.0.{node_id}:9331"),
        };
        let identity = IdentityResponse {
            cluster_id: "c-1".into(),
            version: "0.1.0".into(),
            durability: "fsync".into(),
            uptime_ms: 7_260_000,
            groups: 8,
            leaders: 3,
            ..IdentityResponse::default()
        };
        let refused = || Error::did_not_happen(Reason::Unspecified, "connection refused");
        NodeInfo { address, tombstone: false, identity: answers.then_some(identity).ok_or_else(refused) }
    }

    /// n1 leads, n2 and n3 follow.
    pub fn healthy() -> Vec<GroupStatus> {
        let voters = [1, 2, 3];
        vec![
            status_of(1, Role::Leader, &voters),
            status_of(2, Role::Follower, &voters),
            status_of(3, Role::Follower, &voters),
        ]
    }

    #[test]
    fn healthy_group_has_no_warning() {
        let group = group_of(healthy());
        assert_eq!(group.warnings, Vec::<String>::new());
        assert_eq!((group.leader, group.lag_entries, group.keys), (Some(1), 0, 9));
    }

    #[test]
    fn missing_voters_cost_the_quorum() {
        let group = group_of(healthy().split_off(2));
        let wanted =
            ["no quorum: 1 of 3 voters answer", "no leader", "n1 does not answer", "n2 does not answer"];
        assert_eq!(group.warnings, wanted);
    }

    #[test]
    fn slow_stopped_and_forgotten_replicas_are_named() {
        let mut replicas = healthy();
        replicas[0].commit_index = 500_000;
        replicas[0].applied_index = 500_000;
        replicas[1].failure = "bad record".into();
        replicas.push(status_of(4, Role::Learner, &[1, 2, 3]));
        let group = group_of(replicas);
        let wanted =
            ["n2 stopped: bad record", "n3 is 499880 entries behind", "n4 has a replica but is no member"];
        assert_eq!(group.warnings, wanted);
        assert_eq!(group.replicas[3].member, "none");
    }

    #[test]
    fn joint_configuration_is_told() {
        let mut replicas = healthy();
        replicas[0].outgoing_voters = vec![1, 2, 4];
        replicas[0].config_index = 9;
        let group = group_of(replicas);
        assert_eq!(group.warnings, ["n4 does not answer", "membership change under way"]);
        assert_eq!(group.replicas[3].member, "leaving");
    }

    #[test]
    fn cluster_warnings_cover_nodes_and_groups() {
        let report = GroupsReport { groups: Vec::new(), unreachable: Vec::new() };
        let overview = Overview::of(vec![node_of(1, true), node_of(2, false)], report);
        assert_eq!(overview.cluster_id, "c-1");
        assert_eq!(overview.nodes[1].state, "down");
        let wanted = [
            "n2 at 10.0.0.2:9332 does not answer: connection refused",
            "there are no groups yet; see dtkv group create --help",
        ];
        assert_eq!(overview.warnings, wanted);
    }
}
