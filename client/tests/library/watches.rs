//! Watches when nodes fall silent, lose streams, lag or go away.

use crate::fake::{FakeNode, World};
use crate::fake_watch::WatchScript;
use dtkv_client::{Change, Client, Error, EventWatch, StateWatch, StateWatchOptions};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

async fn three_nodes() -> (Arc<World>, Vec<FakeNode>, Client) {
    let (world, nodes) = World::start(3, 1);
    let client = Client::connect(nodes.iter().map(|node| node.address.as_str())).await.unwrap();
    (world, nodes, client)
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// The values of the next `count` events.
async fn values(watch: &mut EventWatch, count: usize) -> Vec<String> {
    let mut taken = Vec::new();
    while taken.len() < count {
        match in_time(watch.next()).await.unwrap() {
            Change::Event(event) => taken.push(String::from_utf8(event.value.unwrap().to_vec()).unwrap()),
            Change::Resynced(resync) => panic!("nothing was lost: {resync:?}"),
        }
    }
    taken
}

async fn value(watch: &mut StateWatch) -> Result<String, Error> {
    let state = in_time(watch.next()).await?;
    Ok(String::from_utf8(state.value().unwrap().to_vec()).unwrap())
}

/// Where the watches are: the only node that was asked for any.
fn home(nodes: &[FakeNode]) -> usize {
    let asked: Vec<usize> = (0..nodes.len()).filter(|at| !nodes[*at].watches_seen().is_empty()).collect();
    assert_eq!(asked.len(), 1, "all watches go to one replica");
    asked[0]
}

#[tokio::test]
async fn identical_watches_share_a_registration_at_a_follower() {
    let (_world, nodes, client) = three_nodes().await;
    let group = client.group(1);
    let mut watches: Vec<StateWatch> = (0..50).map(|_| group.watch("k")).collect();
    let mut events: Vec<EventWatch> = Vec::new();
    for _ in 0..5 {
        let mut watch = group.watch_events("k").start();
        in_time(watch.begun()).await.unwrap();
        events.push(watch);
    }
    group.put("k", "v").await.unwrap();
    for watch in &mut watches {
        assert_eq!(value(watch).await.unwrap(), "v");
    }
    for watch in &mut events {
        assert_eq!(values(watch, 1).await, ["v"]);
    }
    let home = home(&nodes);
    assert_ne!(home, 0, "the leader is left to write");
    assert_eq!(nodes[home].watches_seen().len(), 2);
    let mut late = group.watch("k");
    assert_eq!(value(&mut late).await.unwrap(), "v", "a state that is known is told at once");
    assert_eq!(nodes[home].watches_seen().len(), 2);
}

#[tokio::test]
async fn streams_that_break_in_the_middle_lose_and_repeat_nothing() {
    let (_world, nodes, client) = three_nodes().await;
    let group = client.group(1);
    let mut watch = group.watch_events("").start();
    in_time(watch.begun()).await.unwrap();
    nodes.iter().for_each(|node| node.script_watches(WatchScript::BreakAfter(7)));
    let mut expected = Vec::new();
    for batch in 0..20 {
        // Several events of one index, so that streams end between them.
        let items: Vec<(String, String)> =
            (0..5).map(|n| (format!("k{n}"), format!("{batch}.{n}"))).collect();
        expected.extend(items.iter().map(|(_, value)| value.clone()));
        group.batch_put(items).await.unwrap();
    }
    assert_eq!(values(&mut watch, expected.len()).await, expected);
}

#[tokio::test]
async fn a_silent_node_is_left() {
    let (_world, nodes, client) = three_nodes().await;
    let group = client.group(1);
    let mut state = group.watch("k");
    let mut events = group.watch_events("k").start();
    in_time(events.begun()).await.unwrap();
    group.put("k", "1").await.unwrap();
    assert_eq!(value(&mut state).await.unwrap(), "1");
    assert_eq!(values(&mut events, 1).await, ["1"]);
    nodes[home(&nodes)].script_watches(WatchScript::Mute);
    group.put("k", "2").await.unwrap();
    assert_eq!(value(&mut state).await.unwrap(), "2");
    assert_eq!(values(&mut events, 1).await, ["2"]);
}

#[tokio::test]
async fn a_replica_without_its_leader_is_left_for_another() {
    let (_world, nodes, client) = three_nodes().await;
    let group = client.group(1);
    let mut events = group.watch_events("k").start();
    in_time(events.begun()).await.unwrap();
    let first = home(&nodes);
    nodes[first].script_watches(WatchScript::Lagging);
    in_time(async {
        while nodes.iter().filter(|node| !node.watches_seen().is_empty()).count() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    group.put("k", "1").await.unwrap();
    assert_eq!(values(&mut events, 1).await, ["1"]);
}

#[tokio::test]
async fn watches_move_when_their_node_stops_or_dies() {
    let (_world, mut nodes, client) = three_nodes().await;
    let group = client.group(1);
    let mut state = group.watch("k");
    let mut events = group.watch_events("k").start();
    in_time(events.begun()).await.unwrap();
    let first = home(&nodes);
    nodes[first].script_watches(WatchScript::Stop);
    group.put("k", "1").await.unwrap();
    assert_eq!(value(&mut state).await.unwrap(), "1");
    assert_eq!(values(&mut events, 1).await, ["1"]);
    nodes[first].script_watches(WatchScript::Serve);
    // Whichever of the two followers has them now.
    let second = 3 - first;
    nodes[second].kill();
    group.put("k", "2").await.unwrap();
    assert_eq!(value(&mut state).await.unwrap(), "2");
    assert_eq!(values(&mut events, 1).await, ["2"]);
}

#[tokio::test]
async fn a_watch_that_is_not_read_hinders_no_other_and_catches_up() {
    let (_world, nodes, client) = three_nodes().await;
    let group = client.group(1);
    let mut slow = group.watch_events("k").start();
    let mut quick = group.watch_events("").start();
    in_time(slow.begun()).await.unwrap();
    in_time(quick.begun()).await.unwrap();
    let total = 10_000;
    let expected: Vec<String> = (0..total).map(|n| n.to_string()).collect();
    for items in expected.chunks(500) {
        group.batch_put(items.iter().map(|value| ("k", value))).await.unwrap();
        assert_eq!(values(&mut quick, items.len()).await, items);
    }
    assert_eq!(values(&mut slow, total).await, expected);
    assert!(nodes[home(&nodes)].watches_seen().len() > 2, "it was cut and came back");
}

#[tokio::test]
async fn only_states_behind_the_known_one_are_told() {
    let (_world, _nodes, client) = three_nodes().await;
    let group = client.group(1);
    let first = group.put("k", "1").await.unwrap().index;
    let options = StateWatchOptions { known_index: Some(first), ..StateWatchOptions::default() };
    let mut watch = group.watch_with("k", options);
    let early = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
    assert!(early.is_err(), "{early:?}");
    group.put("k", "2").await.unwrap();
    assert_eq!(value(&mut watch).await.unwrap(), "2");
}

#[tokio::test]
async fn a_key_can_be_watched_again_after_its_watch_was_dropped() {
    let (_world, nodes, client) = three_nodes().await;
    let group = client.group(1);
    let mut watch = group.watch("k");
    group.put("k", "1").await.unwrap();
    assert_eq!(value(&mut watch).await.unwrap(), "1");
    let home = home(&nodes);
    drop(watch);
    let mut again = group.watch("k");
    assert_eq!(value(&mut again).await.unwrap(), "1");
    assert!(nodes[home].watches_seen().len() <= 2 && nodes.iter().all(|node| node.watches_seen().len() <= 2));
}

#[tokio::test]
async fn a_replica_with_a_longer_history_is_looked_for_before_events_are_given_up() {
    let (_world, nodes, client) = three_nodes().await;
    let group = client.group(1);
    let first = group.put("k", "1").await.unwrap().index;
    let last = group.put("k", "2").await.unwrap().index;
    nodes[1].script_watches(WatchScript::HistoryFrom(last));
    nodes[2].script_watches(WatchScript::HistoryFrom(last));
    let mut watch = group.watch_events("k").from(first).start();
    assert_eq!(values(&mut watch, 2).await, ["1", "2"], "the leader has them");
    nodes[0].script_watches(WatchScript::HistoryFrom(last));
    let mut watch = group.watch_events("k").from(first).start();
    let Change::Resynced(resync) = in_time(watch.next()).await.unwrap() else { panic!("nobody has them") };
    assert_eq!(resync.nodes.len(), 1);
    let last = group.put("k", "3").await.unwrap().index;
    let Change::Event(event) = in_time(watch.next()).await.unwrap() else { panic!("one event") };
    assert_eq!(event.index, last);
}
