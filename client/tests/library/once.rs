//! Each write happens once, however often it is sent.

use crate::fake::{Act, FakeNode, World, failure};
use dtkv_client::packed::scope::Scope;
use dtkv_client::v1::Failure;
use dtkv_client::v1::failure::Reason;
use dtkv_client::{Client, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

async fn start(nodes: u64) -> (Arc<World>, Vec<FakeNode>, Client) {
    let (world, nodes) = World::start(nodes, 2);
    let client = Client::builder().exactly_once(true).connect([nodes[0].address.as_str()]).await.unwrap();
    (world, nodes, client)
}

/// Does `first` with the first frame of writes and serves all others.
fn once(node: &FakeNode, first: impl Fn() -> Act + Send + Sync + 'static) {
    let calls = AtomicUsize::new(0);
    node.script(
        move |frame| {
            if !frame.read && calls.fetch_add(1, Ordering::SeqCst) == 0 { first() } else { Act::Serve }
        },
    );
}

fn scopes(node: &FakeNode) -> Vec<Scope> {
    node.seen().into_iter().filter_map(|seen| seen.scope).collect()
}

fn unknown(reason: Reason) -> Failure {
    Failure { outcome_unknown: true, ..failure(reason) }
}

fn puts(world: &World, key: &str) -> usize {
    world.puts.lock().get(key.as_bytes()).copied().unwrap_or(0)
}

#[tokio::test]
async fn write_whose_answer_was_lost_gets_its_first_answer() {
    let (world, nodes, client) = start(1).await;
    once(&nodes[0], || Act::ServeAndBreak);
    let written = client.group(1).put("a", "1").await.unwrap();
    assert!(written.created, "the second time it would have been there");
    assert_eq!((written.index, puts(&world, "a")), (1, 1));
    let seen = scopes(&nodes[0]);
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].is_retry, seen[1].is_retry), (false, true));
    assert_eq!(seen[1], Scope { is_retry: true, ..seen[0] });
    assert_eq!(seen[0].client_id, client.client_id());
}

#[tokio::test]
async fn write_that_was_lost_before_it_happened_happens_once() {
    let (world, nodes, client) = start(1).await;
    for act in
        [|| Act::Break, || Act::Fail(unknown(Reason::NotLeader)), || Act::Fail(unknown(Reason::Timeout))]
    {
        once(&nodes[0], act);
        client.group(1).put("a", "1").await.unwrap();
    }
    assert_eq!(puts(&world, "a"), 3);
}

#[tokio::test]
async fn write_goes_on_at_the_next_leader() {
    let (world, mut nodes, client) = start(3).await;
    let (told, leader_failed) = std::sync::mpsc::channel();
    nodes[0].script(move |_| {
        told.send(()).unwrap();
        Act::ServeAndFail(unknown(Reason::NotLeader))
    });
    let group = client.group(1).with_timeout(Duration::from_secs(20));
    let write = tokio::spawn(async move { group.put("a", "1").await });
    tokio::task::spawn_blocking(move || leader_failed.recv().unwrap()).await.unwrap();
    nodes[0].kill();
    world.lead(1, 2);
    let written = write.await.unwrap().unwrap();
    assert!(written.created);
    assert_eq!((written.index, puts(&world, "a")), (1, 1));
    assert!(scopes(&nodes[1]).iter().all(|scope| scope.is_retry && scope.sequence == 1));
}

#[tokio::test]
async fn definite_failure_keeps_the_number_and_is_no_retry() {
    let (_world, nodes, client) = start(1).await;
    once(&nodes[0], || Act::Fail(failure(Reason::GroupNotReady)));
    client.group(1).put("a", "1").await.unwrap();
    let seen: Vec<_> = scopes(&nodes[0]).iter().map(|scope| (scope.sequence, scope.is_retry)).collect();
    assert_eq!(seen, [(1, false), (1, false)]);
}

#[tokio::test]
async fn groups_are_numbered_apart_and_answers_are_acknowledged() {
    let (world, nodes, client) = start(1).await;
    for i in 0..3 {
        client.group(1).put(format!("a{i}"), "1").await.unwrap();
    }
    client.group(2).put("b", "1").await.unwrap();
    let seen: Vec<_> =
        scopes(&nodes[0]).iter().map(|scope| (scope.sequence, scope.acknowledged_below)).collect();
    assert_eq!(seen, [(1, 1), (2, 2), (3, 3), (1, 1)]);
    assert_eq!(world.sessions.lock().answers(), 2);
}

#[tokio::test]
async fn forgotten_session_leaves_a_retried_write_unknown() {
    let (world, nodes, client) = start(1).await;
    once(&nodes[0], {
        let world = world.clone();
        move || {
            world.sessions.lock().forget();
            Act::Fail(unknown(Reason::Timeout))
        }
    });
    let error = client.group(1).put("a", "1").await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (ErrorKind::OutcomeUnknown, Reason::Timeout), "{error}");
    assert!(error.message().contains("forgotten"), "{error}");
    assert_eq!(nodes[0].seen().len(), 2);
    client.group(1).put("a", "1").await.unwrap();
}

#[tokio::test]
async fn client_that_idled_for_long_goes_on_by_itself() {
    let (world, nodes, client) = start(1).await;
    client.group(1).put("a", "1").await.unwrap();
    world.sessions.lock().forget();
    client.group(1).put("b", "1").await.unwrap();
    assert_eq!(scopes(&nodes[0]).last().unwrap().sequence, 2);
}

#[tokio::test]
async fn two_clients_of_one_id_both_get_their_writes_done() {
    let (world, nodes) = World::start(1, 1);
    let builder = || Client::builder().client_id([7; 16]).exactly_once(true);
    let first = builder().connect([nodes[0].address.as_str()]).await.unwrap();
    first.group(1).put("a", "1").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let second = builder().connect([nodes[0].address.as_str()]).await.unwrap();
    for round in 0..5 {
        assert!(second.group(1).put(format!("s{round}"), "1").await.unwrap().created);
        assert!(first.group(1).put(format!("f{round}"), "1").await.unwrap().created);
    }
    assert!(world.puts.lock().values().all(|puts| *puts == 1));
}

#[tokio::test]
async fn large_batch_whose_answer_was_lost_happens_once() {
    let (world, nodes, client) = start(1).await;
    let large = vec![b'x'; 50_000];
    nodes[0].lose_answers_to_batches(2);
    let written = client.group(1).batch_put([("c", &large), ("d", &large)]).await.unwrap();
    assert!(written.codes.iter().all(|code| *code == dtkv_client::v1::Code::Success), "{written:?}");
    assert_eq!((puts(&world, "c"), nodes[0].unary_batches()), (1, 3));
    client.group(1).put("a", "1").await.unwrap();
    let next = scopes(&nodes[0])[0];
    assert_eq!((next.sequence, next.acknowledged_below), (2, 2), "batches and frames share their numbers");
}

#[tokio::test]
async fn one_frame_without_an_answer_does_not_let_the_others_run_away() {
    let (_world, nodes, client) = start(1).await;
    let (writes, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
    nodes[0].script(move |frame| {
        let number = if frame.read { &reads } else { &writes }.fetch_add(1, Ordering::SeqCst);
        match (number, frame.read) {
            (0, false) => Act::Swallow,
            (0, true) => Act::Break,
            _ => Act::Serve,
        }
    });
    let group = client.group(1).with_timeout(Duration::from_secs(60));
    let stuck = tokio::spawn({
        let group = group.clone();
        async move { group.put("stuck", "1").await }
    });
    while nodes[0].seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Each in a frame of its own.
    let others = (0..800).map(|i| {
        let group = group.clone();
        tokio::spawn(async move { group.put(format!("k{i}"), vec![b'v'; 40 << 10]).await })
    });
    let others: Vec<_> = others.collect();
    let highest = || scopes(&nodes[0]).iter().map(|scope| scope.sequence).max().unwrap();
    while highest() < 512 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(highest(), 512);
    // A stream that breaks makes the client send again what was not answered.
    group.get("k1").await.unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    stuck.await.unwrap().unwrap();
}

#[tokio::test]
async fn silent_node_is_left_for_the_next_leader_within_the_deadline() {
    let (world, nodes, client) = start(3).await;
    client.group(1).put("a", "1").await.unwrap();
    nodes[0].script(|_| Act::Swallow);
    world.lead(1, 2);
    let group = client.group(1).with_timeout(Duration::from_secs(10));
    assert!(group.put("b", "1").await.unwrap().created);
}

#[tokio::test]
async fn unknown_outcome_stays_unknown_when_the_group_is_gone() {
    let (world, nodes, client) = start(1).await;
    let gone = world.clone();
    once(&nodes[0], move || {
        gone.leaders.lock().remove(&1);
        gone.members.lock().remove(&1);
        Act::Fail(unknown(Reason::NotLeader))
    });
    let error = client.group(1).put("a", "1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
}

#[tokio::test]
async fn writes_happen_once_while_leaders_move_and_answers_get_lost() {
    let (world, nodes, client) = start(3).await;
    for node in &nodes {
        let calls = AtomicUsize::new(0);
        node.script(move |_| match calls.fetch_add(1, Ordering::SeqCst) % 7 {
            3 => Act::ServeAndFail(unknown(Reason::NotLeader)),
            5 => Act::ServeAndBreak,
            _ => Act::Serve,
        });
    }
    let group = client.group(1).with_timeout(Duration::from_secs(60));
    let writers = (0..16).map(|writer| {
        let (group, world) = (group.clone(), world.clone());
        tokio::spawn(async move {
            for i in 0..25u64 {
                world.lead(1, (i % 3) + 1);
                assert!(group.put(format!("w{writer}.{i}"), "1").await.unwrap().created);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert!(world.puts.lock().values().all(|puts| *puts == 1));
    assert_eq!(world.puts.lock().len(), 400);
}
