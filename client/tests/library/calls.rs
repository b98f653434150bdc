//! What each call makes of the answers.

use crate::fake::{FakeNode, World};
use dtkv_client::v1::Code;
use dtkv_client::v1::failure::Reason;
use dtkv_client::{CasOutcome, Client, Consistency, ErrorKind, Expect, Group, ListOptions, New};
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

async fn one_node() -> (Arc<World>, Vec<FakeNode>, Group) {
    let (world, nodes) = World::start(1, 1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    (world, nodes, client.group(1))
}

#[tokio::test]
async fn codes_that_mean_done_are_not_errors() {
    let (_world, _nodes, group) = one_node().await;
    assert!(group.put("a", "1").await.unwrap().created);
    let second = group.put("a", "2").await.unwrap();
    assert!(!second.created && second.index > 0);
    let node = group.get("a").await.unwrap().unwrap();
    assert_eq!((node.key.as_ref(), node.value.as_deref()), (&b"a"[..], Some(&b"2"[..])));
    assert!(!group.mkdir("a").await.unwrap().created);
    assert!(group.remove("a").await.unwrap().existed);
    assert!(!group.remove("a").await.unwrap().existed);
    assert_eq!(group.get("a").await.unwrap(), None);
}

#[tokio::test]
async fn mismatch_is_an_outcome_and_not_an_error() {
    let (_world, _nodes, group) = one_node().await;
    let swapped = group.compare_and_set("a", Expect::Absent, New::Value(b"1")).await.unwrap();
    assert!(matches!(swapped, CasOutcome::Swapped { .. }));
    let mismatch = group.compare_and_set("a", Expect::Value(b"0"), New::Value(b"2")).await.unwrap();
    assert!(matches!(mismatch, CasOutcome::Mismatch { .. }));
}

#[tokio::test]
async fn what_breaks_a_rule_never_reaches_a_node() {
    let (_world, nodes, group) = one_node().await;
    assert_eq!(group.put("a..b", "1").await.unwrap_err().code(), Some(Code::InvalidKey));
    assert_eq!(group.put("a", "").await.unwrap_err().code(), Some(Code::InvalidValue));
    assert_eq!(group.put("a", vec![0; (1 << 20) + 1]).await.unwrap_err().code(), Some(Code::ValueTooLong));
    assert_eq!(group.get(vec![b'a'; 9000]).await.unwrap_err().code(), Some(Code::KeyTooLong));
    let nothing = group.compare_and_set("a", Expect::Absent, New::Delete).await;
    assert_eq!(nothing.unwrap_err().code(), Some(Code::InvalidValue));
    let empty = group.batch_put(Vec::<(&str, &str)>::new()).await.unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::InvalidRequest);
    assert!(nodes[0].seen().is_empty());
}

#[tokio::test]
async fn small_batch_travels_in_a_frame_and_a_large_one_alone() {
    let (_world, nodes, group) = one_node().await;
    let written = group.batch_put([("a", "1"), ("b", "2"), ("a", "3")]).await.unwrap();
    assert_eq!(written.codes, [Code::Success, Code::Success, Code::SuccessOverwrite]);
    assert!(written.is_all_done());
    assert_eq!(nodes[0].unary_batches(), 0);
    let large = vec![b'x'; 50_000];
    let written = group.batch_put([("c", &large), ("d", &large)]).await.unwrap();
    assert_eq!(written.codes.len(), 2);
    assert_eq!(nodes[0].unary_batches(), 1);
    let removed = group.batch_remove(["a", "nothing"]).await.unwrap();
    assert_eq!(removed.codes, [Code::Success, Code::NotFound]);
}

#[tokio::test]
async fn batch_get_keeps_the_order_of_the_keys() {
    let (_world, nodes, group) = one_node().await;
    group.batch_put([("a", "1"), ("b", "2")]).await.unwrap();
    let read = group.batch_get(["b", "x", "a"]).await.unwrap();
    let values: Vec<_> =
        read.nodes.iter().map(|node| node.as_ref().map(|n| n.value.clone().unwrap())).collect();
    assert_eq!(values, [Some("2".into()), None, Some("1".into())]);
    assert_eq!(read.nodes[0].as_ref().unwrap().key, "b");
    assert_eq!(nodes[0].unary_batches(), 0);
    let many = group.batch_get((0..500).map(|i| format!("k{i}"))).await.unwrap();
    assert_eq!(many.nodes.len(), 500);
    assert_eq!(nodes[0].unary_batches(), 1);
}

#[tokio::test]
async fn whole_directory_is_read_page_by_page() {
    let (_world, _nodes, group) = one_node().await;
    group.batch_put((0..25).map(|i| (format!("k{i:02}"), "v"))).await.unwrap();
    let options = ListOptions { limit: 10, keys_only: true, ..ListOptions::default() };
    let page = group.list("", options.clone()).await.unwrap();
    assert_eq!(page.nodes.len(), 10);
    assert!(page.continuation.is_some());
    let all: Vec<_> = group.list_all("", options).try_collect().await.unwrap();
    assert_eq!(all.len(), 25);
    assert_eq!(all[24].key, "k24");
}

#[tokio::test]
async fn stale_reads_go_to_any_replica_and_tell_their_lag() {
    let (world, nodes) = World::start(3, 1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    let group = client.group(1);
    group.put("a", "1").await.unwrap();
    let stale = group.with_consistency(Consistency::Stale);
    assert!(stale.read("a").await.unwrap().node.is_some());
    let lag_ms = stale.read("a").await.unwrap().lag_ms.expect("stale reads tell it");
    // The scripted nodes answer with their id.
    let served_by = &nodes[lag_ms as usize - 1];
    assert!(served_by.seen().iter().any(|frame| frame.read));
    // Without a leader they go on.
    world.leaders.lock().remove(&1);
    assert!(stale.read("a").await.unwrap().node.is_some());
}

#[tokio::test]
async fn unknown_group_fails_at_once() {
    let (_world, nodes, _group) = one_node().await;
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    let begun = Instant::now();
    let error = client.group(99).put("a", "1").await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (ErrorKind::DidNotHappen, Reason::GroupNotFound));
    assert!(error.message().contains("99"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    let error = client.group(98).list("", ListOptions::default()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::GroupNotFound);
}

#[tokio::test]
async fn unreachable_endpoints_are_all_named() {
    let connecting = Client::builder().connect_timeout(Duration::from_millis(200));
    let error = connecting.connect(["127.0.0.1:1", "127.0.0.1:2"]).await.unwrap_err();
    assert!(error.is_definite());
    assert!(error.message().contains("127.0.0.1:1") && error.message().contains("127.0.0.1:2"), "{error}");
}

#[test]
fn futures_of_all_calls_may_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    fn is_shared<T: Send + Sync + Clone + 'static>() {}
    is_shared::<Client>();
    is_shared::<Group>();
    fn of_group(group: &Group, client: &Client) {
        is_send(&group.put("a", "b"));
        is_send(&group.batch_put([("a", "b")]));
        is_send(&group.batch_get(["a"]));
        is_send(&group.list("a", ListOptions::default()));
        is_send(&group.list_all("a", ListOptions::default()));
        let admin = client.admin();
        is_send(&admin.nodes());
        is_send(&admin.groups());
        is_send(&admin.group_create(1, 3));
        is_send(&admin.group_destroy(1));
        is_send(&admin.transfer_leader(1, None));
        is_send(&admin.cluster_init(dtkv_client::admin::ClusterInit::new(1, 1), |_| {}));
        is_send(&admin.node(1).identity());
    }
    let _ = of_group;
}
