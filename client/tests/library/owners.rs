//! Temporary nodes, guards and transactions.

use crate::fake::{Act, FakeNode, World, failure};
use dtkv_client::v1::Code;
use dtkv_client::v1::failure::Reason;
use dtkv_client::{
    Client, Compare, ErrorKind, Group, ListOptions, LockToken, OpAnswer, PutOptions, Relation, TxnOp,
};
use std::sync::Arc;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(30);

async fn start() -> (Arc<World>, Vec<FakeNode>, Client, Group) {
    let (world, nodes) = World::start(1, 1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    let group = client.group(1);
    (world, nodes, client, group)
}

#[tokio::test]
async fn temporary_values_have_an_owner_and_a_time_to_live() {
    let (_world, _nodes, client, group) = start().await;
    assert!(group.put_temp("t", "1", TTL).await.unwrap().created);
    assert!(!group.put_temp("t", "2", TTL).await.unwrap().created);
    let node = group.get("t").await.unwrap().unwrap();
    assert!(node.temp);
    assert_eq!(node.owner, Some(client.client_id()));
    assert!((1..=30_000).contains(&node.ttl_remaining_ms.unwrap()));
    group.update_ttl("t", TTL * 2).await.unwrap();
    assert_eq!(group.update_ttl("nothing", TTL).await.unwrap_err().code(), Some(Code::NotFound));
    assert_eq!(group.keep_alive().await.unwrap().count, 1);
    let owned = group.owned(client.client_id(), ListOptions::default()).await.unwrap();
    assert_eq!(owned.nodes.len(), 1);
    assert_eq!(group.drop_owner().await.unwrap().count, 1);
    assert!(group.get("t").await.unwrap().is_none());
}

#[tokio::test]
async fn owner_is_named_without_numbers_as_well() {
    let (_world, nodes) = World::start(1, 1);
    let client = Client::builder().exactly_once(false).connect([nodes[0].address.as_str()]).await.unwrap();
    client.group(1).put_temp("t", "1", TTL).await.unwrap();
    assert_eq!(client.group(1).keep_alive().await.unwrap().count, 1);
    let node = client.group(1).get("t").await.unwrap().unwrap();
    assert_eq!(node.owner, Some(client.client_id()));
}

#[tokio::test]
async fn times_to_live_out_of_range_reach_no_node() {
    let (_world, nodes, _client, group) = start().await;
    for ttl in [Duration::ZERO, Duration::from_micros(900), Duration::from_secs(36_501 * 86_400)] {
        assert_eq!(group.put_temp("t", "1", ttl).await.unwrap_err().code(), Some(Code::InvalidTtl));
        assert_eq!(group.make_temp_dir("t", ttl).await.unwrap_err().code(), Some(Code::InvalidTtl));
        assert_eq!(group.update_ttl("t", ttl).await.unwrap_err().code(), Some(Code::InvalidTtl));
    }
    assert!(nodes[0].seen().is_empty());
}

#[tokio::test]
async fn renewals_go_on_by_themselves_until_the_handle_is_dropped() {
    let (_world, nodes, _client, group) = start().await;
    let ttl = Duration::from_secs(2);
    group.put_temp("t", "1", ttl).await.unwrap();
    let alive = group.keep_alive_every(Duration::from_millis(100), ttl).unwrap();
    tokio::time::sleep(ttl * 2).await;
    assert!(group.get("t").await.unwrap().is_some(), "{:?}", alive.status());
    let status = alive.status();
    assert_eq!((status.nodes, status.is_lost), (1, false));
    drop(alive);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let seen = nodes[0].seen().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(nodes[0].seen().len(), seen);
    assert!(group.keep_alive_every(ttl, ttl).is_err());
}

#[tokio::test]
async fn renewals_that_fail_for_a_time_to_live_are_told() {
    let (_world, nodes, _client, group) = start().await;
    let alive = group.keep_alive_every(Duration::from_millis(100), Duration::from_secs(1)).unwrap();
    nodes[0].script(|_| Act::Fail(failure(Reason::Overloaded)));
    let error = tokio::time::timeout(Duration::from_secs(20), alive.lost()).await.unwrap();
    assert!(!error.message().is_empty());
    nodes[0].serve();
    let renewed = async {
        while alive.status().error.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed).await.unwrap();
    assert!(alive.status().is_lost, "a loss is not taken back");
}

#[tokio::test]
async fn expected_index_decides_about_a_put() {
    let (_world, _nodes, _client, group) = start().await;
    let expect = |index| PutOptions { expect_index: Some(index), ..PutOptions::default() };
    let written = group.put_with("a", "1", expect(0)).await.unwrap();
    let error = group.put_with("a", "2", expect(0)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::CasMismatch));
    group.put_with("a", "2", expect(written.index)).await.unwrap();
    let batch = group.batch_put_with([("a", "3")], expect(1)).await.unwrap_err();
    assert_eq!(batch.kind(), ErrorKind::InvalidRequest);
}

#[tokio::test]
async fn guarded_writes_need_the_latest_grant() {
    let (_world, _nodes, _client, group) = start().await;
    let lock = group.lock("l").unwrap();
    let token = lock.try_lock(TTL, Duration::ZERO).await.unwrap().unwrap();
    group.guarded(&token).put("a", "1").await.unwrap();
    let stale = group.guarded(&LockToken::new("l", token.fencing_token() - 1));
    assert_eq!(stale.put("a", "2").await.unwrap_err().code(), Some(Code::Fenced));
    assert_eq!(stale.batch_put([("a", "2")]).await.unwrap_err().code(), Some(Code::Fenced));
    let txn = stale.txn().then(TxnOp::put("a", "2"));
    assert_eq!(txn.commit().await.unwrap_err().code(), Some(Code::Fenced));
    assert_eq!(group.get("a").await.unwrap().unwrap().value.as_deref(), Some(&b"1"[..]));
}

#[tokio::test]
async fn transaction_takes_the_branch_that_its_compares_say() {
    let (_world, _nodes, _client, group) = start().await;
    let txn = || {
        group
            .txn()
            .when(Compare::update_index("a", Relation::Equal, 0))
            .then(TxnOp::put("a", "1"))
            .then(TxnOp::put("b", "2"))
            .or_else(TxnOp::get("a"))
    };
    let done = txn().commit().await.unwrap();
    assert!(done.succeeded);
    assert_eq!(done.results, [OpAnswer::Code(Code::Success), OpAnswer::Code(Code::Success)]);
    let done = txn().commit().await.unwrap();
    assert!(!done.succeeded);
    let OpAnswer::Node(node) = &done.results[0] else { panic!("{done:?}") };
    assert_eq!((node.key.as_ref(), node.value.as_deref()), (&b"a"[..], Some(&b"1"[..])));
    let refused = group.txn().then(TxnOp::put("c", "1")).then(TxnOp::mkdir("a")).commit().await.unwrap_err();
    assert_eq!(refused.code(), Some(Code::ValueExists));
    assert!(refused.message().starts_with("operation 1 of the then branch"), "{refused}");
}

#[tokio::test]
async fn transaction_that_breaks_a_rule_reaches_no_node() {
    let (_world, nodes, _client, group) = start().await;
    assert_eq!(group.txn().commit().await.unwrap_err().kind(), ErrorKind::InvalidRequest);
    let bad_key = group.txn().or_else(TxnOp::put("a..b", "1")).commit().await.unwrap_err();
    assert_eq!(bad_key.code(), Some(Code::InvalidKey));
    let bad_ttl = group.txn().then(TxnOp::put("a", "1").ttl(Duration::ZERO)).commit().await.unwrap_err();
    assert_eq!(bad_ttl.code(), Some(Code::InvalidTtl));
    let many = (0..1025).fold(group.txn(), |txn, i| txn.then(TxnOp::remove(format!("k{i}"))));
    assert_eq!(many.commit().await.unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert!(nodes[0].seen().is_empty());
}
