//! Writes with a sequence, and transactions.

use crate::harness::{GROUP, Running, failure, frame, put};
use bytes::Bytes;
use dtkv_client::packed::scope::Scope;
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::{self, Code, Frame, FrameReply, compare, txn_op};

const ME: [u8; 16] = [5; 16];

fn session(sequence: u64, retry: bool) -> Option<v1::Session> {
    Some(v1::Session { client_id: Bytes::from_static(&ME), sequence, acknowledged_below: 0, retry })
}

fn put_request(key: &'static str, value: &'static str) -> v1::PutRequest {
    v1::PutRequest { group_id: GROUP, key: key.into(), value: value.into(), ..Default::default() }
}

async fn answer(node: &Running, frame: Frame) -> FrameReply {
    let mut kv = node.kv().await;
    let mut replies = kv.pipe(tokio_stream::iter([frame])).await.expect("a stream").into_inner();
    replies.message().await.expect("a stream").expect("a reply")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_comes_again_gets_the_first_answer() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let write = v1::PutRequest { session: session(1, false), ..put_request("a", "1") };
    let first = kv.put(write.clone()).await.expect("an answer").into_inner();
    let other = kv.put(put_request("a", "2")).await.expect("an answer").into_inner();
    let again = v1::PutRequest { session: session(1, true), ..write };
    assert_eq!(kv.put(again).await.expect("an answer").into_inner(), first);
    assert_eq!((first.code(), other.code()), (Code::Success, Code::SuccessOverwrite));
    let read = v1::GetRequest { group_id: GROUP, key: "a".into(), consistency: 0 };
    let found = kv.get(read).await.expect("an answer").into_inner().node.expect("a node");
    assert_eq!((found.value, found.update_index), (Some("2".into()), other.index));

    let items = vec![v1::KeyValue { key: "b".into(), value: "1".into() }, v1::KeyValue::default()];
    let batch =
        v1::BatchPutRequest { group_id: GROUP, items, session: session(2, false), ..Default::default() };
    let first = kv.batch_put(batch.clone()).await.expect("an answer").into_inner();
    let again = kv.batch_put(batch.clone()).await.expect("an answer").into_inner();
    assert_eq!(again, first);
    assert_eq!(first.codes, [0, Code::InvalidValue.into()]);
    let acknowledging = v1::Session { acknowledged_below: 3, ..session(3, false).expect("a session") };
    let write = v1::PutRequest { session: Some(acknowledging), ..put_request("c", "1") };
    kv.put(write).await.expect("an answer");
    let late = kv.batch_put(batch).await.expect("an answer").into_inner();
    assert_eq!((late.code(), late.codes), (Code::SessionExpired, vec![]));
    let broken = v1::Session { acknowledged_below: 9, ..session(3, false).expect("a session") };
    let broken = v1::PutRequest { session: Some(broken), ..put_request("c", "1") };
    let refused = failure(&kv.put(broken).await.expect_err("must be refused"));
    assert_eq!((refused.reason(), refused.outcome_unknown), (Reason::InvalidArgument, false));
    node.stop().await;
}

fn scoped(operations: u16, inner: Frame) -> Frame {
    let scope = Scope { client_id: ME, sequence: 1, acknowledged_below: 0, operations, is_retry: false };
    let mut ops = Vec::new();
    scope.pack(&mut ops);
    ops.extend_from_slice(&inner.ops);
    Frame { ops: ops.into(), ..inner }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_comes_again_gets_the_first_answer_with_what_was_refused() {
    let node = Running::start().await;
    let mixed = scoped(3, frame(1, &[put(b"a", b"1"), put(b"b..", b"1"), put(b"a", b"2")]));
    let first = answer(&node, mixed.clone()).await;
    assert_eq!(first.results.as_ref(), [0, Code::InvalidKey as u8, Code::SuccessOverwrite as u8]);
    answer(&node, frame(2, &[put(b"a", b"3")])).await;
    assert_eq!(answer(&node, mixed.clone()).await, first);
    for broken in [scoped(2, frame(1, &[put(b"a", b"1")])), Frame { read: true, ..mixed }] {
        let reply = answer(&node, broken).await;
        assert_eq!(reply.failure.expect("a failure").reason(), Reason::InvalidArgument);
    }
    node.stop().await;
}

fn txn_put(key: &'static str, value: &'static str) -> v1::TxnOp {
    v1::TxnOp { op: Some(txn_op::Op::Put(v1::PutRequest { group_id: 0, ..put_request(key, value) })) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_all_or_nothing_and_happens_once() {
    let node = Running::start().await;
    let mut kv = node.kv().await;
    let get = |key: &'static str| v1::TxnOp {
        op: Some(txn_op::Op::Get(v1::GetRequest { key: key.into(), ..Default::default() })),
    };
    let absent = v1::Compare {
        key: "a".into(),
        relation: compare::Relation::Equal.into(),
        target: Some(compare::Target::UpdateIndex(0)),
    };
    let txn = v1::TxnRequest {
        group_id: GROUP,
        compares: vec![absent.clone()],
        then_ops: vec![txn_put("a", "1"), get("a")],
        else_ops: vec![get("a"), get("none")],
        session: session(1, false),
        guard: None,
    };
    let first = kv.txn(txn.clone()).await.expect("an answer").into_inner();
    assert_eq!(
        (first.code(), first.succeeded, first.failed_op, first.results.len()),
        (Code::Success, true, None, 2)
    );
    let seen = first.results[1].node.clone().expect("a node");
    assert_eq!((seen.key, seen.value, seen.create_index), ("a".into(), Some("1".into()), first.index));
    assert_eq!(kv.txn(txn.clone()).await.expect("an answer").into_inner(), first, "once");
    let other = v1::TxnRequest { session: session(2, false), ..txn.clone() };
    let other = kv.txn(other).await.expect("an answer").into_inner();
    assert_eq!((other.code(), other.succeeded), (Code::Success, false));
    let codes: Vec<Code> = other.results.iter().map(v1::TxnOpResult::code).collect();
    assert_eq!(codes, [Code::Success, Code::NotFound]);

    let plain = v1::TxnRequest { session: None, compares: Vec::new(), else_ops: Vec::new(), ..txn };
    let fails = vec![txn_put("b", "1"), txn_put("no.parent", "1")];
    let failed = v1::TxnRequest { then_ops: fails, ..plain.clone() };
    let failed = kv.txn(failed).await.expect("an answer").into_inner();
    assert_eq!((failed.code(), failed.failed_op), (Code::ParentDirNotExists, Some(1)));
    let b = v1::GetRequest { group_id: GROUP, key: "b".into(), consistency: 0 };
    assert_eq!(kv.get(b).await.expect("an answer").into_inner().code(), Code::NotFound);
    let bad = v1::TxnRequest { then_ops: vec![txn_put("b", "1"), txn_put("b..", "1")], ..plain.clone() };
    let bad = kv.txn(bad).await.expect("an answer").into_inner();
    assert_eq!((bad.code(), bad.failed_op, bad.index), (Code::InvalidKey, Some(1), 0), "no log entry");

    let own_session = v1::PutRequest { session: session(1, false), ..put_request("b", "1") };
    let refused = [
        v1::TxnRequest { then_ops: vec![txn_put("b", "1"); 1025], ..plain.clone() },
        v1::TxnRequest { then_ops: vec![v1::TxnOp { op: None }], ..plain.clone() },
        v1::TxnRequest {
            then_ops: vec![v1::TxnOp { op: Some(txn_op::Op::Put(own_session)) }],
            ..plain.clone()
        },
        v1::TxnRequest { compares: vec![v1::Compare { target: None, ..absent.clone() }], ..plain.clone() },
        v1::TxnRequest { compares: vec![v1::Compare { relation: 9, ..absent }], ..plain },
    ];
    for request in refused {
        let refused = failure(&kv.txn(request).await.expect_err("must be refused"));
        assert_eq!((refused.reason(), refused.outcome_unknown), (Reason::InvalidArgument, false));
    }
    node.stop().await;
}
