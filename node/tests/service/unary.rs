//! Unary calls.

use crate::harness::{GROUP, Running, failure};
use bytes::Bytes;
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::{self, Code};
use tonic::Request;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn put(key: &'static str, value: &'static str) -> v1::PutRequest {
    v1::PutRequest { group_id: GROUP, key: bytes(key), value: bytes(value), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_answers() {
    let node = Running::start().await;
    let mut kv = node.kv().await;

    let made = v1::MkdirRequest { group_id: GROUP, key: bytes("d"), ..Default::default() };
    assert_eq!(kv.mkdir(made.clone()).await.expect("an answer").into_inner().code(), Code::Success);
    assert_eq!(kv.mkdir(made).await.expect("an answer").into_inner().code(), Code::DirExists);
    let first = kv.put(put("d.k", "v1")).await.expect("an answer").into_inner();
    let second = kv.put(put("d.k", "v2")).await.expect("an answer").into_inner();
    assert_eq!((first.code(), second.code()), (Code::Success, Code::SuccessOverwrite));
    assert!(second.index > first.index);

    let get = |key| v1::GetRequest { group_id: GROUP, key: bytes(key), consistency: 0 };
    let got = kv.get(get("d.k")).await.expect("an answer").into_inner();
    let found = got.node.clone().expect("a node");
    assert_eq!((got.code(), found.value), (Code::Success, Some(bytes("v2"))));
    assert_eq!((found.create_index, found.update_index), (first.index, second.index));
    assert!(got.index >= second.index && got.lag_ms.is_none());
    let root = kv.get(get("")).await.expect("an answer").into_inner().node.expect("a node");
    assert!(root.dir && root.value.is_none() && root.child_count == 1);
    let stale = v1::GetRequest { consistency: v1::Consistency::Stale.into(), ..get("d.k") };
    assert!(kv.get(stale).await.expect("an answer").into_inner().lag_ms.is_some());

    let swap = v1::CompareAndSetRequest {
        group_id: GROUP,
        key: bytes("d.k"),
        expect: Some(bytes("v2")),
        new: Some(bytes("v3")),
        ..Default::default()
    };
    assert_eq!(kv.compare_and_set(swap.clone()).await.expect("an answer").into_inner().code(), Code::Success);
    assert_eq!(kv.compare_and_set(swap).await.expect("an answer").into_inner().code(), Code::CasMismatch);

    let list = v1::ListRequest { group_id: GROUP, key: bytes("d"), ..Default::default() };
    let page = kv.list(list).await.expect("an answer").into_inner();
    assert_eq!(page.nodes.iter().map(|node| node.key.clone()).collect::<Vec<_>>(), ["d.k"]);

    let remove = v1::RemoveRequest { group_id: GROUP, key: bytes("d"), ..Default::default() };
    assert_eq!(kv.remove(remove.clone()).await.expect("an answer").into_inner().code(), Code::HasChildren);
    let whole = v1::RemoveRequest { recursive: true, ..remove };
    assert_eq!(kv.remove(whole).await.expect("an answer").into_inner().code(), Code::Success);
    assert_eq!(kv.get(get("d.k")).await.expect("an answer").into_inner().code(), Code::NotFound);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_answer_every_item_and_bad_items_cost_nothing() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let item = |key, value| v1::KeyValue { key: bytes(key), value: bytes(value) };
    let long_key = Bytes::from(vec![b'k'; 70_000]);
    let items = vec![
        item("a", "1"),
        item("a..b", "1"),
        item("x.y", "1"),
        v1::KeyValue { key: long_key.clone(), value: bytes("1") },
        item("b", ""),
        item("a", "2"),
    ];
    let batch = v1::BatchPutRequest { group_id: GROUP, items, ..Default::default() };
    let written = kv.batch_put(batch.clone()).await.expect("an answer").into_inner();
    let codes: Vec<Code> = written.codes().collect();
    let expected = [
        Code::Success,
        Code::InvalidKey,
        Code::ParentDirNotExists,
        Code::KeyTooLong,
        Code::InvalidValue,
        Code::SuccessOverwrite,
    ];
    assert_eq!(codes, expected);
    assert!(written.index > 0);

    let keys = vec![bytes("a"), bytes("a..b"), long_key, bytes("nothing"), bytes("")];
    let got = v1::BatchGetRequest { group_id: GROUP, keys: keys.clone(), ..Default::default() };
    let got = kv.batch_get(got).await.expect("an answer").into_inner();
    let codes: Vec<Code> = got.items.iter().map(v1::BatchGetItem::code).collect();
    let expected = [Code::Success, Code::InvalidKey, Code::KeyTooLong, Code::NotFound, Code::Success];
    assert_eq!(codes, expected);
    assert_eq!(got.items[0].node.as_ref().and_then(|node| node.value.clone()), Some(bytes("2")));

    let removed = v1::BatchRemoveRequest { group_id: GROUP, keys: keys[..4].to_vec(), ..Default::default() };
    let removed = kv.batch_remove(removed).await.expect("an answer").into_inner();
    let expected = [Code::Success, Code::InvalidKey, Code::KeyTooLong, Code::NotFound];
    assert_eq!(removed.codes().collect::<Vec<_>>(), expected);

    let before = node.metric("dtkv_group_last_index{group=\"1\"}").await;
    let hopeless = v1::BatchPutRequest { items: vec![item("a..b", "1"); 3], ..batch };
    let refused = kv.batch_put(hopeless).await.expect("an answer").into_inner();
    assert_eq!(refused.codes().collect::<Vec<_>>(), [Code::InvalidKey; 3]);
    assert_eq!(node.metric("dtkv_group_last_index{group=\"1\"}").await, before, "no log entry");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_typed_and_definite() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let unknown_group = v1::PutRequest { group_id: 99, ..put("k", "v") };
    let status = kv.put(unknown_group).await.expect_err("no such group");
    assert_eq!((status.code(), failure(&status).reason()), (tonic::Code::NotFound, Reason::GroupNotFound));

    let too_many = vec![v1::KeyValue { key: bytes("k"), value: bytes("v") }; 1025];
    let too_many = v1::BatchPutRequest { group_id: GROUP, items: too_many, ..Default::default() };
    let short_session = v1::Session { client_id: bytes("short"), ..Default::default() };
    let short_session = v1::PutRequest { session: Some(short_session), ..put("k", "v") };
    let odd_consistency = v1::GetRequest { group_id: GROUP, key: bytes("k"), consistency: 9 };
    let refused = [
        (kv.batch_put(too_many).await.expect_err("refused"), "1 to 1024"),
        (
            kv.batch_get(v1::BatchGetRequest { group_id: GROUP, ..Default::default() })
                .await
                .expect_err("refused"),
            "0 items",
        ),
        (kv.put(short_session).await.expect_err("refused"), "it must have 16"),
        (kv.get(odd_consistency).await.expect_err("refused"), "no consistency 9"),
    ];
    for (status, expected) in refused {
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        let failure = failure(&status);
        assert!(failure.message.contains(expected) && !failure.outcome_unknown, "{failure:?}");
    }
    let guard = Some(v1::Guard { lock: bytes("l"), fencing_token: 1 });
    let guarded = kv.put(v1::PutRequest { guard, ..put("k", "v") }).await.expect("an answer").into_inner();
    assert_eq!(guarded.code(), Code::Fenced);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_room_is_refused_and_told_to_come_back() {
    let node = Running::start_with(|config| config.limits.inflight_bytes_max.0 = 2_000).await;
    let mut kv = node.kv().await;
    let large = v1::PutRequest { value: Bytes::from(vec![b'v'; 4_000]), ..put("k", "v") };
    let status = kv.put(large).await.expect_err("no room");
    let failure = failure(&status);
    assert_eq!((status.code(), failure.reason()), (tonic::Code::ResourceExhausted, Reason::Overloaded));
    assert!(failure.retry_after_ms > 0 && !failure.outcome_unknown);
    kv.put(put("k", "v")).await.expect("a small one has room");
    node.metric_becomes("dtkv_service_inflight_bytes", 0.0).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_limit_is_refused() {
    let node = Running::start().await;
    let huge = v1::PutRequest { value: Bytes::from(vec![b'v'; 6 << 20]), ..put("k", "v") };
    let status = node.kv().await.put(huge).await.expect_err("too large");
    assert_eq!(status.code(), tonic::Code::OutOfRange);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_over_the_limit_is_answered_with_its_code() {
    let node = Running::start().await;
    let value = Bytes::from(vec![b'v'; (1 << 20) + 1]);
    let long = v1::PutRequest { value, ..put("k", "v") };
    let answer = node.kv().await.put(Request::new(long)).await.expect("an answer").into_inner();
    assert_eq!((answer.code(), answer.index), (Code::ValueTooLong, 0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_is_refused_and_asked_for_in_parts_by_the_client() {
    let node = Running::start().await;
    let client = dtkv_client::Client::connect([node.config.client_address()]).await.expect("a client");
    let group = client.group(GROUP);
    let value = vec![b'v'; dtkv_client::limits::VALUE_BYTES_MAX];
    let keys: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    for key in &keys {
        group.put(key, value.clone()).await.expect("written");
    }
    let request = v1::BatchGetRequest {
        group_id: GROUP,
        keys: keys.iter().map(|key| Bytes::from(key.clone())).collect(),
        consistency: 0,
    };
    let status = node.kv().await.batch_get(request.clone()).await.expect_err("20 MiB are too much");
    let refused = failure(&status);
    assert_eq!((refused.reason(), refused.outcome_unknown), (Reason::InvalidArgument, false));
    assert!(refused.message.contains("the limit is 16777216; ask for fewer keys"), "{refused:?}");
    let fewer = v1::BatchGetRequest { keys: request.keys[..15].to_vec(), ..request };
    let answer = node.kv().await.batch_get(fewer).await.expect("15 MiB fit").into_inner();
    assert_eq!(answer.items.len(), 15);
    // Calls of their own, which the client packs into one frame.
    let gets = keys.iter().map(|key| group.get(key));
    for got in futures::future::join_all(gets).await {
        assert_eq!(
            got.expect("an answer").expect("a node").value.map(|found| found.len()),
            Some(value.len())
        );
    }
    let limits = node.admin().await.limits(v1::LimitsRequest {}).await.expect("an answer").into_inner();
    assert_eq!(limits.answer_bytes_max, 16 << 20);
    node.stop().await;
}
