//! Making a cluster, and adding nodes to it.

use super::report::{InitTable, Outcome};
use super::{cluster_id, patient};
use crate::args::ClusterCommand;
use crate::context::Context;
use crate::fault::{Exit, Fault};
use crate::output::nodes;
use dtkv_client::admin::{ClusterInit, InitProgress};
use dtkv_client::v1::NodeAddress;
use serde_json::json;

pub async fn cluster(context: &Context, command: ClusterCommand) -> Result<Exit, Fault> {
    match command {
        ClusterCommand::Init { groups, replicas, cluster_id } => {
            init(context, groups, replicas, cluster_id).await
        }
        ClusterCommand::AddNodes { addresses } => add_nodes(context, addresses).await,
    }
}

async fn init(
    context: &Context,
    groups: u32,
    replicas: Option<u32>,
    cluster_id: Option<String>,
) -> Result<Exit, Fault> {
    let replicas = replicas.map_or(context.settings.endpoints.len().min(3), |replicas| replicas as usize);
    let plan = ClusterInit {
        endpoints: context.settings.endpoints.clone(),
        cluster_id,
        ready_timeout: super::STEP_TIMEOUT,
        ..ClusterInit::new(groups, replicas)
    };
    let mut ready = 0;
    let report = patient(context)
        .cluster_init(plan, |step| {
            // One line for each change, not for each look.
            match &step {
                InitProgress::Ready { ready: now, .. } if *now == ready => return,
                InitProgress::Ready { ready: now, .. } => ready = *now,
                _ => {}
            }
            eprintln!("{}", progress_line(&step));
        })
        .await?;
    context.print(&InitTable(&report))?;
    Ok(Exit::Done)
}

fn progress_line(step: &InitProgress) -> String {
    match step {
        InitProgress::Identified { node_id, address } => format!("{address} is n{node_id}"),
        InitProgress::ClusterId { cluster_id, is_new: true } => format!("the new cluster is {cluster_id}"),
        InitProgress::ClusterId { cluster_id, .. } => format!("going on with cluster {cluster_id}"),
        InitProgress::Joined { node_id } => format!("n{node_id} joined"),
        InitProgress::Bootstrapped { group_id, created: true } => format!("group {group_id} is created"),
        InitProgress::Bootstrapped { group_id, .. } => format!("group {group_id} was there already"),
        InitProgress::Ready { ready, total } => format!("{ready} of {total} groups have a leader"),
    }
}

/// The new nodes first, so that they know everybody before anybody calls them.
async fn add_nodes(context: &Context, addresses: Vec<String>) -> Result<Exit, Fault> {
    let admin = patient(context);
    let cluster_id = cluster_id(&admin).await?;
    let old: Vec<_> = admin.nodes().await?.into_iter().filter(|node| !node.tombstone).collect();
    let mut all: Vec<NodeAddress> = old.iter().map(|node| node.address.clone()).collect();
    let mut new = Vec::new();
    for address in &addresses {
        let identity =
            admin.node(address.as_str()).identity().await.map_err(|e| Fault::from(e).at(address))?;
        let mut told = identity.address.unwrap_or_default();
        told.node_id = identity.node_id;
        if told.client_address.is_empty() {
            told.client_address.clone_from(address);
        }
        if let Some(same) =
            all.iter().find(|node| node.node_id == told.node_id && node.client_address != told.client_address)
        {
            return Err(Fault::refused(format!(
                "{address} says that it is n{}, but that is the node at {}; start it with a new node id",
                told.node_id, same.client_address
            )));
        }
        all.retain(|node| node.node_id != told.node_id);
        all.push(told.clone());
        new.push(told);
    }
    for (address, node) in addresses.iter().zip(&new) {
        let joined = admin.node(address.as_str()).join_cluster(&cluster_id, all.clone()).await;
        joined.map_err(|e| Fault::from(e).at(format!("n{}", node.node_id)))?;
    }
    for node in &old {
        let told = admin.node(node.address.client_address.as_str()).add_nodes(new.clone()).await;
        let advice = "does not know the new nodes yet; repeat the command";
        told.map_err(|e| Fault::from(e).at(format!("n{} {advice}", node.address.node_id)))?;
    }
    let ids: Vec<u64> = new.iter().map(|node| node.node_id).collect();
    let text = format!("{} joined cluster {cluster_id}", nodes(&ids));
    context.print(&Outcome::new(text, json!({ "cluster_id": cluster_id, "nodes": ids })))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_in_plain_words() {
        let step = InitProgress::Identified { node_id: 2, address: "h:9332".into() };
        assert_eq!(progress_line(&step), "h:9332 is n2");
        let step = InitProgress::Bootstrapped { group_id: 3, created: false };
        assert_eq!(progress_line(&step), "group 3 was there already");
        assert_eq!(progress_line(&InitProgress::Ready { ready: 3, total: 8 }), "3 of 8 groups have a leader");
    }
}
