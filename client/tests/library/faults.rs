//! What callers hear when nodes fail, and what is tried again.

use crate::fake::{Act, FakeNode, World, failure};
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1::Failure;
use dtkv_client::v1::failure::Reason;
use dtkv_client::{Client, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

async fn three_nodes() -> (Arc<World>, Vec<FakeNode>, Client) {
    let (world, nodes) = World::start(3, 1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    (world, nodes, client)
}

/// A client that does not number its writes.
async fn without_numbers(nodes: &[FakeNode]) -> Client {
    Client::builder().exactly_once(false).connect([nodes[0].address.as_str()]).await.unwrap()
}

/// Does `first` with the first frame and serves all others.
fn once(node: &FakeNode, first: impl Fn() -> Act + Send + Sync + 'static) {
    let calls = AtomicUsize::new(0);
    node.script(move |_| if calls.fetch_add(1, Ordering::SeqCst) == 0 { first() } else { Act::Serve });
}

#[tokio::test]
async fn hint_leads_to_the_leader() {
    let (world, nodes, client) = three_nodes().await;
    world.rumours.lock().insert(1, 1);
    world.lead(1, 3);
    let begun = Instant::now();
    client.group(1).put("a", "1").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(nodes[0].seen().len(), 1);
    assert_eq!(nodes[2].seen().len(), 1);
    client.group(1).put("b", "1").await.unwrap();
    assert_eq!(nodes[0].seen().len(), 1, "the new leader is remembered");
}

#[tokio::test]
async fn unary_calls_follow_hints_too() {
    let (world, _nodes, client) = three_nodes().await;
    world.rumours.lock().insert(1, 1);
    world.lead(1, 2);
    client.group(1).list("", Default::default()).await.unwrap();
    assert_eq!(client.admin().group_status(1, true).await.unwrap().node_id, 2);
}

#[tokio::test]
async fn definite_failures_are_tried_again() {
    let (_world, nodes, client) = three_nodes().await;
    for reason in [Reason::GroupNotReady, Reason::Stopping, Reason::GroupNotFound, Reason::Overloaded] {
        once(&nodes[0], move || Act::Fail(failure(reason)));
        client.group(1).put("a", "1").await.unwrap();
    }
    assert_eq!(nodes[0].seen().len(), 8);
}

#[tokio::test]
async fn overloaded_node_is_left_alone_as_long_as_it_asks() {
    let (_world, nodes, client) = three_nodes().await;
    once(&nodes[0], || Act::Fail(Failure { retry_after_ms: 300, ..failure(Reason::Overloaded) }));
    let begun = Instant::now();
    client.group(1).put("a", "1").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn write_without_a_number_that_is_lost_with_its_stream_has_an_unknown_outcome() {
    let (_world, nodes, _) = three_nodes().await;
    let client = without_numbers(&nodes).await;
    once(&nodes[0], || Act::Break);
    let error = client.group(1).put("a", "1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert!(error.message().contains(&nodes[0].address), "{error}");
    assert_eq!(nodes[0].seen().len(), 1, "it was not sent again");
    client.group(1).put("a", "1").await.unwrap();
}

#[tokio::test]
async fn read_lost_with_its_stream_is_made_again() {
    let (_world, nodes, client) = three_nodes().await;
    client.group(1).put("a", "1").await.unwrap();
    once(&nodes[0], || Act::Break);
    assert!(client.group(1).get("a").await.unwrap().is_some());
    let read = client.group(1).batch_get(["a", "b"]).await.unwrap();
    assert_eq!(read.nodes.len(), 2);
}

#[tokio::test]
async fn unknown_outcome_told_by_the_node_is_passed_on() {
    let (_world, nodes, _) = three_nodes().await;
    let client = without_numbers(&nodes).await;
    once(&nodes[0], || Act::Fail(Failure { outcome_unknown: true, ..failure(Reason::NotLeader) }));
    let error = client.group(1).put("a", "1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
}

/// A leader that is cut off from the others tells nothing else until it hears of the next one.
#[tokio::test]
async fn leader_is_looked_for_again_after_an_unknown_outcome() {
    let (world, nodes, _) = three_nodes().await;
    let client = without_numbers(&nodes).await;
    client.group(1).put("a", "1").await.unwrap();
    world.lead(1, 2);
    nodes[0].script(|_| Act::Fail(Failure { outcome_unknown: true, ..failure(Reason::Timeout) }));
    let error = client.group(1).put("a", "2").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    client.group(1).put("a", "3").await.unwrap();
    assert_eq!(nodes[1].seen().len(), 1);
}

#[tokio::test]
async fn write_that_waits_for_a_dead_node_is_sent_to_the_next_leader() {
    let (world, mut nodes, client) = three_nodes().await;
    client.group(1).put("a", "1").await.unwrap();
    nodes[0].kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let group = client.group(1);
    let write = tokio::spawn(async move { group.put("b", "1").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!write.is_finished(), "nobody leads");
    world.lead(1, 2);
    write.await.unwrap().unwrap();
    assert_eq!(nodes[1].seen().len(), 1);
}

#[tokio::test]
async fn restarted_node_is_connected_again() {
    let (world, mut nodes) = World::start(1, 1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    client.group(1).put("a", "1").await.unwrap();
    let port = nodes[0].address.rsplit_once(':').unwrap().1.parse().unwrap();
    nodes[0].kill();
    let group = client.group(1);
    let write = tokio::spawn(async move {
        loop {
            match group.put("b", "1").await {
                Ok(written) => return written,
                Err(error) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}"),
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    nodes[0] = FakeNode::start(1, &world, port);
    assert!(write.await.unwrap().created);
}

#[tokio::test]
async fn silent_node_ends_calls_at_their_deadline() {
    let (_world, nodes, client) = three_nodes().await;
    nodes[0].script(|_| Act::Swallow);
    let group = client.group(1).with_timeout(Duration::from_millis(300));
    let begun = Instant::now();
    let (write, read) = tokio::join!(group.put("a", "1"), group.get("a"));
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(250) && waited < Duration::from_millis(700), "{waited:?}");
    assert_eq!(write.as_ref().unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(write.unwrap_err().reason(), Reason::Timeout);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::DidNotHappen);
    let told = nodes[0].seen()[0].timeout_ms;
    assert!((200..=300).contains(&told), "told the node {told} ms");
}

#[tokio::test]
async fn write_that_was_never_sent_fails_definitely_and_says_why() {
    let (world, mut nodes) = World::start(1, 1);
    let client = Client::connect([nodes[0].address.as_str()]).await.unwrap();
    client.group(1).put("a", "1").await.unwrap();
    nodes[0].kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let group = client.group(1).with_timeout(Duration::from_millis(500));
    let error = group.put("b", "1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DidNotHappen, "{error}");
    assert!(error.message().contains("cannot be reached"), "{error}");
    drop(world);
}

#[tokio::test]
async fn group_without_leader_fails_definitely_at_the_deadline() {
    let (world, _nodes, client) = three_nodes().await;
    world.leaders.lock().remove(&1);
    let group = client.group(1).with_timeout(Duration::from_millis(400));
    let error = group.put("a", "1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DidNotHappen, "{error}");
    assert_eq!(error.reason(), Reason::GroupNotReady, "{error}");
}

#[tokio::test]
async fn answer_that_makes_no_sense_is_an_unknown_outcome() {
    let (_world, nodes, client) = three_nodes().await;
    once(&nodes[0], || Act::Garble);
    let error = client.group(1).put("a", "1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    client.group(1).put("a", "1").await.unwrap();
}

#[tokio::test]
async fn dropped_calls_disturb_no_others_and_leave_no_room_taken() {
    let (_world, nodes) = World::start(1, 1);
    let client = Client::builder().in_flight_ops_max(64).connect([nodes[0].address.as_str()]).await.unwrap();
    nodes[0].script(|_| Act::Delay(Duration::from_millis(30)));
    for round in 0..20u64 {
        let group = client.group(1);
        let dropped: Vec<_> = (0..200)
            .map(|i| {
                let group = group.clone();
                tokio::spawn(async move {
                    let call = group.put(format!("dropped.{i}"), "x");
                    let patience = Duration::from_micros((i * 37 + round * 911) % 40_000);
                    let _ = tokio::time::timeout(patience, call).await;
                })
            })
            .collect();
        group.put(format!("kept{round}"), "1").await.unwrap();
        for task in dropped {
            task.await.unwrap();
        }
    }
    nodes[0].serve();
    let all = (0..64).map(|i| {
        let group = client.group(1);
        async move { group.put(format!("after{i}"), "1").await.unwrap() }
    });
    tokio::time::timeout(Duration::from_secs(3), futures::future::join_all(all)).await.unwrap();
}

#[tokio::test]
async fn panicking_callback_takes_nobody_down() {
    let (_world, _nodes, client) = three_nodes().await;
    let group = client.group(1);
    group.submit(&Op::new(Kind::Put, b"a", b"1"), |_| panic!("a caller's mistake"));
    for i in 0..10 {
        group.put(format!("k{i}"), "1").await.unwrap();
    }
}

#[tokio::test]
async fn dropped_client_tells_every_callback_exactly_once() {
    let (_world, nodes, client) = three_nodes().await;
    nodes[0].script(|_| Act::Swallow);
    let told = Arc::new(AtomicUsize::new(0));
    let group = client.group(1);
    for i in 0..1000 {
        let told = told.clone();
        let key = format!("k{i}");
        group.submit(&Op::new(Kind::Put, key.as_bytes(), b"1"), move |result| {
            assert!(result.is_err());
            told.fetch_add(1, Ordering::SeqCst);
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop((client, group));
    let begun = Instant::now();
    while told.load(Ordering::SeqCst) < 1000 {
        assert!(begun.elapsed() < Duration::from_secs(2), "{} told", told.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(told.load(Ordering::SeqCst), 1000);
}
