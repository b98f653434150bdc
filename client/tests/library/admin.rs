//! The administration toolkit.

use crate::fake::{FakeNode, World};
use dtkv_client::admin::{ClusterInit, InitProgress};
use dtkv_client::v1::failure::Reason;
use dtkv_client::{Client, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

fn empty_nodes(count: u64) -> (Arc<World>, Vec<FakeNode>) {
    World::start(count, 0)
}

#[tokio::test]
async fn cluster_is_made_of_empty_nodes_and_made_again_without_harm() {
    let (world, nodes) = empty_nodes(3);
    let endpoints: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    let client = Client::connect(endpoints).await.unwrap();
    let mut told = Vec::new();
    let report =
        client.admin().cluster_init(ClusterInit::new(6, 3), |progress| told.push(progress)).await.unwrap();
    assert!(report.created);
    assert_eq!(report.layout.groups.len(), 6);
    assert!(world.cluster_ids.lock().values().all(|id| *id == report.cluster_id));
    assert_eq!(world.bootstrapped.lock().len(), 18);
    assert!(told.contains(&InitProgress::Ready { ready: 6, total: 6 }));
    let again = client.admin().cluster_init(ClusterInit::new(6, 3), |_| {}).await.unwrap();
    assert!(!again.created);
    assert_eq!(again.cluster_id, report.cluster_id);
    client.group(6).put("a", "1").await.unwrap();
}

#[tokio::test]
async fn half_made_cluster_is_completed() {
    let (world, nodes) = empty_nodes(3);
    world.cluster_ids.lock().insert(2, "before".to_string());
    let endpoints: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    let client = Client::connect(endpoints).await.unwrap();
    let report = client.admin().cluster_init(ClusterInit::new(1, 3), |_| {}).await.unwrap();
    assert_eq!(report.cluster_id, "before");
}

#[tokio::test]
async fn too_few_nodes_are_refused_before_anything_happens() {
    let (world, nodes) = empty_nodes(1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    let error = client.admin().cluster_init(ClusterInit::new(1, 3), |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(world.cluster_ids.lock().is_empty());
}

#[tokio::test]
async fn group_is_created_and_destroyed() {
    let (world, nodes) = empty_nodes(3);
    let endpoints: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    let client = Client::connect(endpoints).await.unwrap();
    client.admin().cluster_init(ClusterInit::new(1, 1), |_| {}).await.unwrap();
    let placement = client.admin().group_create(7, 2).await.unwrap();
    assert_eq!(placement.members, [2, 3], "the node with a replica is left out");
    let again = client.admin().group_create(7, 2).await.unwrap();
    assert_eq!(again.members, placement.members);
    client.group(7).put("a", "1").await.unwrap();
    assert_eq!(client.admin().group_destroy(7).await.unwrap(), 2);
    assert!(!world.members.lock().contains_key(&7));
}

#[tokio::test]
async fn nodes_and_groups_are_described_even_when_one_is_down() {
    let (_world, mut nodes) = World::start(3, 2);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    nodes[2].kill();
    let admin = client.admin().with_timeout(Duration::from_secs(2));
    let described = admin.nodes().await.unwrap();
    assert_eq!(described.len(), 3);
    assert!(described[0].identity.is_ok() && described[2].identity.is_err());
    let report = admin.groups().await.unwrap();
    assert_eq!(report.groups.len(), 2);
    assert_eq!(report.groups[0].leader, Some(1));
    assert_eq!(report.unreachable.len(), 1);
    assert_eq!(report.unreachable[0].0, nodes[2].address);
}

#[tokio::test]
async fn nodes_are_addressed_by_id_or_by_address() {
    let (_world, nodes) = World::start(3, 1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    let admin = client.admin();
    assert_eq!(admin.node(3).identity().await.unwrap().node_id, 3);
    assert_eq!(admin.node(nodes[1].address.as_str()).identity().await.unwrap().node_id, 2);
    let error = admin.node(9).identity().await.unwrap_err();
    assert!(error.message().contains("n9"), "{error}");
}

#[tokio::test]
async fn leadership_is_transferred_and_followed() {
    let (_world, nodes) = World::start(3, 1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    let answer = client.admin().transfer_leader(1, Some(2)).await.unwrap();
    assert_eq!(answer.leader_id, 2);
    client.group(1).put("a", "1").await.unwrap();
    assert_eq!(nodes[1].seen().len(), 1);
}

#[tokio::test]
async fn groups_that_are_not_ready_are_named() {
    let (world, nodes) = World::start(1, 2);
    world.leaders.lock().remove(&2);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    let error = client.admin().wait_ready(&[1, 2], Duration::from_millis(300), |_, _| {}).await.unwrap_err();
    assert_eq!(error.reason(), Reason::GroupNotReady);
    assert!(error.message().contains(": 2"), "{error}");
}
