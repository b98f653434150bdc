//! The commands that change groups, nodes and the cluster, and those that ask about one thing.

mod cluster;
mod report;

pub use cluster::cluster;

use crate::args::{DigestArgs, GroupCommand, NodeCommand};
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::output::{count, nodes};
use crate::overview::{Overview, members, no_group};
use dtkv_client::admin::Admin;
use dtkv_client::placement::GroupPlacement;
use dtkv_client::v1::{GroupStatus, NodeAddress};
use futures::future::join_all;
use report::{Digests, Limits, Outcome, ReplicaDigest};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a person waits for a step of the cluster: an election, a learner that catches up.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// How often, and how far apart, the removal of a replica is tried again.
const CLEAN_UP_ATTEMPTS: u32 = 10;
const CLEAN_UP_PAUSE: Duration = Duration::from_millis(300);

fn patient(context: &Context) -> Admin {
    context.admin().with_timeout(context.settings.timeout.max(STEP_TIMEOUT))
}

pub async fn group(context: &Context, command: GroupCommand) -> Result<Exit, Fault> {
    match command {
        GroupCommand::Create { id, members, replicas, leader } => {
            create(context, id, members, replicas, leader).await
        }
        GroupCommand::Members { id } => members(context, id).await,
        GroupCommand::AddLearner { id, node, no_wait } => add_learner(context, id, node, !no_wait).await,
        GroupCommand::Change { id, voters, learners, config_index } => {
            change(context, id, voters, learners, config_index).await
        }
        GroupCommand::Transfer { id, to } => transfer(context, id, to).await,
        GroupCommand::Destroy { id, confirm } => destroy(context, id, &confirm).await,
    }
}

async fn create(
    context: &Context,
    id: u32,
    members: Vec<u64>,
    replicas: Option<u32>,
    leader: Option<u64>,
) -> Result<Exit, Fault> {
    let admin = patient(context);
    let placement = if members.is_empty() {
        let replicas = match replicas {
            Some(replicas) => replicas as usize,
            None => admin.nodes().await?.iter().filter(|node| node.identity.is_ok()).count().min(3),
        };
        admin.group_create(id, replicas).await?
    } else {
        create_on(&admin, id, members, leader).await?
    };
    let text = format!("group {id} is ready on {}", nodes(&placement.members));
    context.print(&Outcome::new(text, json!({ "group_id": id, "members": placement.members })))?;
    Ok(Exit::Done)
}

/// Creates a group exactly where the user wants it.
async fn create_on(
    admin: &Admin,
    id: u32,
    mut members: Vec<u64>,
    leader: Option<u64>,
) -> Result<GroupPlacement, Fault> {
    let preferred_leader = leader.unwrap_or(members[0]);
    members.sort_unstable();
    members.dedup();
    if !members.contains(&preferred_leader) {
        let named = nodes(&members);
        return Err(Fault::usage(format!(
            "the leader n{preferred_leader} must be one of the members {named}"
        )));
    }
    let cluster_id = cluster_id(admin).await?;
    let placement = GroupPlacement { group_id: id, members, preferred_leader };
    admin.bootstrap_group(&cluster_id, &placement).await?;
    admin.wait_ready(&[id], STEP_TIMEOUT, |_, _| {}).await?;
    Ok(placement)
}

async fn cluster_id(admin: &Admin) -> Result<String, Fault> {
    let nodes = admin.nodes().await?;
    let mut ids = nodes.into_iter().filter_map(|node| node.identity.ok()).map(|identity| identity.cluster_id);
    ids.find(|id| !id.is_empty())
        .ok_or_else(|| Fault::failed("no node belongs to a cluster yet; see dtkv cluster init --help"))
}

async fn address(admin: &Admin, id: u64) -> Result<NodeAddress, Fault> {
    let known = admin.nodes().await?;
    let found = known.iter().find(|node| node.address.node_id == id);
    found.map(|node| node.address.clone()).ok_or_else(|| {
        let ids: Vec<u64> = known.iter().map(|node| node.address.node_id).collect();
        Fault::usage(format!("n{id} is not a node of this cluster; known are {}", nodes(&ids)))
    })
}

async fn add_learner(context: &Context, id: u32, node: u64, wait: bool) -> Result<Exit, Fault> {
    let admin = patient(context);
    let address = address(&admin, node).await?;
    let config_index = admin.add_learner(id, address, None, wait).await?;
    let how = if wait { "is a learner and has caught up" } else { "becomes a learner" };
    let text = format!("n{node} {how} in group {id} (config index {config_index})");
    context.print(&Outcome::new(
        text,
        json!({ "group_id": id, "node_id": node, "config_index": config_index }),
    ))?;
    Ok(Exit::Done)
}

async fn change(
    context: &Context,
    id: u32,
    voters: Vec<u64>,
    learners: Vec<u64>,
    config_index: Option<u64>,
) -> Result<Exit, Fault> {
    let admin = patient(context);
    let before = admin.group_status(id, true).await?;
    if let Some(heir) = heir(&before, &voters) {
        // A leader that removes itself leaves an election behind; handed over before, it does not.
        let answer = admin.transfer_leader(id, Some(heir)).await?;
        eprintln!("n{} leads and is to leave: n{} leads now", before.node_id, answer.leader_id);
    }
    let expected = config_index.unwrap_or(before.config_index);
    let index = admin.change_membership(id, expected, voters.clone(), learners.clone()).await?;
    let left = left_behind(&admin, &before, &voters, &learners).await?;
    let leftovers = clean_up(&admin, id, index, &left).await;
    let text = format!(
        "group {id}: voters {}, learners {} (config index {index})",
        nodes(&voters),
        nodes(&learners)
    );
    let json = json!({ "group_id": id, "voters": voters, "learners": learners, "config_index": index,
        "removed": left, "leftovers": leftovers });
    context.print(&Outcome::new(text, json))?;
    for leftover in &leftovers {
        eprintln!("dtkv: note: {leftover}; repeat the command once it answers");
    }
    Ok(Exit::Done)
}

/// The voter that should lead before the leader leaves: of those that stay, the furthest.
fn heir(leader: &GroupStatus, voters: &[u64]) -> Option<u64> {
    let stays = |node: &u64| voters.contains(node) && leader.voters.contains(node);
    if stays(&leader.node_id) {
        return None;
    }
    let peers = leader.peers.iter().filter(|peer| stays(&peer.node_id));
    let furthest = peers.max_by_key(|peer| peer.match_index).map(|peer| peer.node_id);
    furthest.or_else(|| leader.voters.iter().copied().find(|node| stays(node)))
}

/// The nodes that are no members any more: those that were, and those that an earlier, interrupted
/// change left with a replica.
async fn left_behind(
    admin: &Admin,
    before: &GroupStatus,
    voters: &[u64],
    learners: &[u64],
) -> Result<Vec<u64>, Fault> {
    let report = admin.groups().await?;
    let here = report.groups.iter().filter(|group| group.group_id == before.group_id);
    let hosts = here.flat_map(|group| &group.replicas).map(|replica| replica.node_id);
    let members = before.voters.iter().chain(&before.learners).chain(&before.outgoing_voters).copied();
    let all: BTreeSet<u64> = hosts.chain(members).collect();
    Ok(all.into_iter().filter(|node| !voters.contains(node) && !learners.contains(node)).collect())
}

/// Removes the replicas that a change left behind. Answers with those that are still there.
async fn clean_up(admin: &Admin, id: u32, config_index: u64, left: &[u64]) -> Vec<String> {
    let removals = left.iter().map(|&node| async move {
        let mut removed = admin.node(node).destroy_replica(id, config_index).await;
        // The node may hear of its removal a moment later than the leader.
        for _ in 0..CLEAN_UP_ATTEMPTS {
            if removed.is_ok() {
                break;
            }
            tokio::time::sleep(CLEAN_UP_PAUSE).await;
            removed = admin.node(node).destroy_replica(id, config_index).await;
        }
        removed.err().map(|e| format!("the replica on n{node} is not removed: {}", e.message()))
    });
    join_all(removals).await.into_iter().flatten().collect()
}

async fn transfer(context: &Context, id: u32, to: Option<u64>) -> Result<Exit, Fault> {
    let answer = patient(context).transfer_leader(id, to).await?;
    let text = format!("n{} leads group {id} in term {}", answer.leader_id, answer.term);
    let json = json!({ "group_id": id, "leader": answer.leader_id, "term": answer.term });
    context.print(&Outcome::new(text, json))?;
    Ok(Exit::Done)
}

async fn destroy(context: &Context, id: u32, confirm: &str) -> Result<Exit, Fault> {
    let admin = patient(context);
    let cluster_id = cluster_id(&admin).await?;
    if confirm != cluster_id {
        return Err(Fault::usage(format!(
            "--confirm names {confirm}, but this is cluster {cluster_id}; nothing was destroyed"
        )));
    }
    let replicas = admin.group_destroy(id).await?;
    if replicas == 0 {
        return Err(no_group(id));
    }
    let text = format!("group {id} is destroyed ({})", count(replicas, "replica"));
    context.print(&Outcome::new(text, json!({ "group_id": id, "replicas": replicas })))?;
    Ok(Exit::Done)
}

pub async fn node(context: &Context, command: NodeCommand) -> Result<Exit, Fault> {
    let admin = context.admin();
    let outcome = match command {
        NodeCommand::Drain { id } => draining(&admin, id, true).await?,
        NodeCommand::Undrain { id } => draining(&admin, id, false).await?,
        NodeCommand::EvictLeaders { id, time, stop } => {
            let ttl = if stop { Duration::ZERO } else { time };
            let leaders = admin.node(id).set_leader_eviction(ttl).await?;
            let still = format!("it leads {} now", count(leaders as usize, "group"));
            let text = if stop {
                format!("n{id} may lead again; {still}")
            } else {
                format!("n{id} gives up leadership for {} s; {still}", ttl.as_secs())
            };
            Outcome::new(text, json!({ "node_id": id, "ttl_ms": ttl.as_millis() as u64, "leaders": leaders }))
        }
        NodeCommand::Tombstone { id } => tombstone(&admin, id).await?,
    };
    context.print(&outcome)?;
    Ok(Exit::Done)
}

async fn draining(admin: &Admin, id: u64, draining: bool) -> Result<Outcome, Fault> {
    let replicas = admin.node(id).set_draining(draining).await?;
    let what = if draining { "takes no new replicas" } else { "takes replicas again" };
    let text = format!("n{id} {what}; it has {} now", count(replicas as usize, "replica"));
    Ok(Outcome::new(text, json!({ "node_id": id, "draining": draining, "replicas": replicas })))
}

/// Every other node must hear it; one that does not answer is named, because it would still listen
/// to the lost node.
async fn tombstone(admin: &Admin, id: u64) -> Result<Outcome, Fault> {
    let others: Vec<_> = admin.nodes().await?.into_iter().filter(|node| node.address.node_id != id).collect();
    let told = join_all(others.iter().map(|node| async move {
        let answer = admin.node(node.address.client_address.as_str()).tombstone(id).await;
        answer.map_err(|e| Fault::from(e).at(format!("n{}", node.address.node_id)))
    }));
    let total = others.len();
    let failures: Vec<Fault> = told.await.into_iter().filter_map(Result::err).collect();
    match failures.into_iter().max_by_key(|fault| fault.exit) {
        Some(fault) => Err(fault.at("not every node forgot it; repeat the command")),
        None => Ok(Outcome::new(
            format!("n{id} is forgotten by {}", count(total, "node")),
            json!({ "node_id": id, "told": total }),
        )),
    }
}

pub async fn digest(context: &Context, args: DigestArgs) -> Result<Exit, Fault> {
    let overview = Overview::read(context).await?;
    let wanted = |id: u32| args.groups.is_empty() || args.groups.contains(&id);
    if let Some(&id) = args.groups.iter().find(|id| !overview.groups.iter().any(|g| g.group_id == **id)) {
        return Err(no_group(id));
    }
    let admin = patient(context);
    let admin = &admin;
    let hosted = overview.groups.iter().filter(|group| wanted(group.group_id)).flat_map(|group| {
        let hosts = group.replicas.iter().filter(|replica| replica.role != "unreachable");
        hosts.map(|replica| (group.group_id, replica.node_id))
    });
    let digests = join_all(hosted.map(|(group, node)| async move {
        let digest = admin.node(node).tree_digest(group).await;
        ReplicaDigest::new(group, node, digest)
    }));
    let report = Digests::of(digests.await);
    let exit = if report.differ() { Exit::Refused } else { Exit::Done };
    context.print(&report)?;
    Ok(exit)
}

pub async fn limits(context: &Context) -> Result<Exit, Fault> {
    let mut failure = Fault::failed("no node answers; dtkv nodes shows which are known");
    for node in context.admin().nodes().await?.into_iter().filter(|node| node.identity.is_ok()) {
        match context.admin().node(node.address.client_address).limits().await {
            Ok(limits) => {
                context.print(&Limits(limits))?;
                return Ok(Exit::Done);
            }
            Err(e) => failure = e.into(),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtkv_client::v1::PeerProgress;

    #[test]
    fn leader_that_leaves_has_an_heir_among_those_that_stay() {
        let peer = |node_id, match_index| PeerProgress { node_id, match_index, ..PeerProgress::default() };
        let leader = GroupStatus {
            node_id: 1,
            voters: vec![1, 2, 3],
            learners: vec![4],
            peers: vec![peer(2, 50), peer(3, 70), peer(4, 90)],
            ..GroupStatus::default()
        };
        assert_eq!(heir(&leader, &[1, 2, 4]), None);
        assert_eq!(heir(&leader, &[2, 3, 4]), Some(3));
        assert_eq!(heir(&leader, &[2, 4]), Some(2));
        // Nobody stays: the store has to manage alone.
        assert_eq!(heir(&leader, &[4]), None);
    }
}
