//! Streams of frames.

use crate::harness::{GROUP, Running, frame, pack, put};
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::{Code, Frame, FrameReply};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Sends frames on one stream, and gives the replies by id.
pub async fn exchange(node: &Running, frames: Vec<Frame>) -> BTreeMap<u64, FrameReply> {
    let mut kv = node.kv().await;
    let mut stream = kv.pipe(tokio_stream::iter(frames)).await.expect("a stream").into_inner();
    let mut replies = BTreeMap::new();
    while let Some(reply) = stream.message().await.expect("a reply") {
        assert!(replies.insert(reply.id, reply).is_none(), "answered once");
    }
    replies
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_answered_and_bad_operations_spliced_in() {
    let node = Running::start().await;
    let long = vec![b'k'; 8_193];
    let writes = frame(1, &[put(b"a", b"1"), put(b"b..", b"1"), put(b"a", b"2"), put(&long, b"1")]);
    let replies = exchange(&node, vec![writes]).await;
    assert!(replies[&1].failure.is_none() && replies[&1].index > 0);
    assert_eq!(replies[&1].results.as_ref(), [0, Code::InvalidKey as u8, 2, Code::KeyTooLong as u8]);

    let get = |key| Op::new(Kind::Get, key, b"");
    let replies = exchange(&node, vec![frame(2, &[get(b"a"), get(b"a b"), get(b"none"), get(b"")])]).await;
    let mut results = packed::results(&replies[&2].results);
    let Ok(PackedResult::Node(found)) = results.next(Kind::Get) else { panic!("no node") };
    assert_eq!(found.value, b"2");
    assert_eq!(results.next(Kind::Get), Ok(PackedResult::Code(Code::InvalidKey)));
    assert_eq!(results.next(Kind::Get), Ok(PackedResult::Code(Code::NotFound)));
    assert!(matches!(results.next(Kind::Get), Ok(PackedResult::Node(root)) if root.dir));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_bad_operations_costs_no_log_entry() {
    let node = Running::start().await;
    let before = node.metric("dtkv_group_last_index{group=\"1\"}").await;
    let replies = exchange(&node, vec![frame(1, &[put(b".", b"1"), put(b"a", b"")])]).await;
    assert_eq!(replies[&1].results.as_ref(), [Code::InvalidKey as u8, Code::InvalidValue as u8]);
    assert_eq!(node.metric("dtkv_group_last_index{group=\"1\"}").await, before);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_are_refused_one_by_one_and_the_stream_goes_on() {
    let node = Running::start().await;
    let good = frame(0, &[put(b"k", b"v")]);
    let many = pack(&vec![put(b"k", b"v"); 257]);
    let cut = good.ops.slice(..good.ops.len() - 1);
    let bad = [
        (Frame { group_id: 99, ..good.clone() }, Reason::GroupNotFound),
        (Frame { count: 0, ..good.clone() }, Reason::InvalidArgument),
        (Frame { count: 2, ..good.clone() }, Reason::InvalidArgument),
        (Frame { count: 257, ops: many, ..good.clone() }, Reason::InvalidArgument),
        (Frame { ops: cut, ..good.clone() }, Reason::InvalidArgument),
        (Frame { read: true, ..good.clone() }, Reason::InvalidArgument),
        (Frame { consistency: 7, ..good.clone() }, Reason::InvalidArgument),
    ];
    let mut frames: Vec<Frame> = bad.iter().map(|(frame, _)| frame.clone()).collect();
    frames.push(good);
    frames.iter_mut().zip(0..).for_each(|(frame, id)| frame.id = id);
    let replies = exchange(&node, frames).await;
    for ((_, reason), id) in bad.iter().zip(0..) {
        let failure = replies[&id].failure.as_ref().expect("a failure");
        assert_eq!(failure.reason(), *reason, "{failure:?}");
        assert!(!failure.outcome_unknown && !failure.message.is_empty());
    }
    assert_eq!(replies[&7].results.as_ref(), [0], "{:?}", replies[&7]);
    let refused = "dtkv_service_frames_refused_total{reason=\"invalid_argument\"}";
    assert_eq!(node.metric(refused).await, 6.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_frames_are_all_answered_although_few_may_be_in_flight() {
    let node = Running::start_with(|config| config.limits.frames_per_stream_max = 3).await;
    let frames: Vec<Frame> = (0..1_000u64)
        .map(|id| {
            let key = format!("k{}", id % 100);
            frame(id, &[put(key.as_bytes(), b"v")])
        })
        .collect();
    let replies = exchange(&node, frames).await;
    assert_eq!(replies.len(), 1_000);
    assert!(replies.values().all(|reply| reply.failure.is_none()));
    node.metric_becomes("dtkv_service_inflight_bytes", 0.0).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_gives_its_room_back() {
    let node = Running::start().await;
    for _ in 0..5 {
        let mut kv = node.kv().await;
        let (send, frames) = mpsc::channel(64);
        let mut replies = kv.pipe(ReceiverStream::new(frames)).await.expect("a stream").into_inner();
        let value = vec![b'v'; 100_000];
        for id in 0..50 {
            let mut frame = frame(id, &[put(b"k", &value)]);
            frame.group_id = GROUP;
            send.send(frame).await.expect("sent");
        }
        // One answer, so that the stream is known to work; the others are never read.
        replies.message().await.expect("a reply");
    }
    node.metric_becomes("dtkv_service_streams", 0.0).await;
    node.metric_becomes("dtkv_service_inflight_bytes", 0.0).await;
    node.stop().await;
}
