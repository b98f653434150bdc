//! Watches of a real node, over real sockets.

use crate::harness::{GROUP, Running};
use dtkv_client::packed::delivery::{DeliveryKind, deliveries};
use dtkv_client::v1::failure::Reason;
use dtkv_client::v1::{self, Code, WatchCreate, WatchMode, WatchRequest, WatchResponse};
use dtkv_client::{Change, Client, EventKind, EventWatch, Group, Presence};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

const PATIENCE: Duration = Duration::from_secs(20);

/// A stream of watches without a client library.
struct Stream {
    requests: UnboundedSender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(node: &Running) -> Stream {
        let (requests, outgoing) = unbounded_channel();
        let responses =
            node.kv().await.watch(UnboundedReceiverStream::new(outgoing)).await.expect("a stream");
        Stream { requests, responses: responses.into_inner() }
    }

    fn create(&self, watch_id: u32, key: &str, mode: WatchMode, index: Option<u64>) {
        let key = bytes::Bytes::copy_from_slice(key.as_bytes());
        let mode = mode.into();
        let create = WatchCreate { watch_id, group_id: GROUP, key, mode, index, ..Default::default() };
        self.send(WatchRequest { create: vec![create], ..Default::default() });
    }

    fn send(&self, request: WatchRequest) {
        self.requests.send(request).expect("an open stream");
    }

    async fn next(&mut self) -> Option<WatchResponse> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        next.expect("a response in time").expect("no failure")
    }

    /// The first response for which this holds.
    async fn find(&mut self, mut holds: impl FnMut(&WatchResponse) -> bool) -> WatchResponse {
        loop {
            let response = self.next().await.expect("the stream goes on");
            if holds(&response) {
                return response;
            }
        }
    }
}

async fn client_group(node: &Running) -> Group {
    Client::connect([node.config.client_address()]).await.expect("a client").group(GROUP)
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// Key, kind and value of the next `count` events.
async fn events(watch: &mut EventWatch, count: usize) -> Vec<(String, EventKind, Option<String>)> {
    let mut taken = Vec::new();
    while taken.len() < count {
        match in_time(watch.next()).await.expect("a change") {
            Change::Event(event) => {
                let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).expect("text");
                taken.push((text(&event.key), event.kind, event.value.as_ref().map(text)));
            }
            Change::Resynced(resync) => panic!("nothing was lost: {resync:?}"),
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_library_is_told_states_and_events() {
    let node = Running::start().await;
    let group = client_group(&node).await;
    let mut state = group.watch("a.b");
    assert_eq!(in_time(state.next()).await.expect("a state").presence, Presence::NotExists);
    let mut all = group.watch_events("").start();
    in_time(all.begun()).await.expect("it begins");
    group.mkdir("a").await.expect("made");
    let written = group.put("a.b", "1").await.expect("written");
    let told = in_time(state.next()).await.expect("a state");
    assert_eq!((told.index, told.value().map(|v| &v[..])), (written.index, Some(&b"1"[..])));
    group.remove_with("a", dtkv_client::RemoveOptions { recursive: true }).await.expect("removed");
    assert!(!in_time(state.next()).await.expect("a state").exists());
    let text = str::to_owned;
    let expected = [
        (text("a"), EventKind::Mkdir, None),
        (text("a.b"), EventKind::Put, Some(text("1"))),
        (text("a.b"), EventKind::Remove, None),
        (text("a"), EventKind::Remove, None),
    ];
    assert_eq!(events(&mut all, 4).await, expected);
    let mut again = group.watch_events("a.b").from(1).start();
    assert_eq!(events(&mut again, 2).await, expected[1..3]);
    drop((state, all, again));
    node.metric_becomes("dtkv_watch_watches", 0.0).await;
    node.metric_becomes("dtkv_watch_streams", 0.0).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watch_gets_everything_and_hinders_no_other() {
    let node = Running::start().await;
    let group = client_group(&node).await;
    let mut slow = group.watch_events("").start();
    let mut quick = group.watch_events("k").start();
    in_time(slow.begun()).await.expect("it begins");
    in_time(quick.begun()).await.expect("it begins");
    let value = vec![b'v'; 1000];
    // More than a window, a queue and an inbox hold.
    let count = 6_000;
    let writer = tokio::spawn({
        let group = group.clone();
        async move {
            for _ in 0..count / 100 {
                let items: Vec<_> = (0..100).map(|_| ("k", &value[..])).collect();
                group.batch_put(items).await.expect("written");
            }
        }
    });
    assert_eq!(events(&mut quick, count).await.len(), count);
    writer.await.expect("the writer ends");
    assert_eq!(events(&mut slow, count).await.len(), count);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_is_gone_is_made_up_for_by_what_is_there() {
    let node = Running::start_with(|config| config.watch.history_group_bytes_max.0 = 2000).await;
    let group = client_group(&node).await;
    group.mkdir("d").await.expect("made");
    for n in 0..50 {
        group.put(format!("d.k{}", n % 3), n.to_string()).await.expect("written");
    }
    let mut watch = group.watch_events("d").from(1).start();
    let Change::Resynced(resync) = in_time(watch.next()).await.expect("a change") else {
        panic!("history cannot reach that far");
    };
    let keys: Vec<_> = resync.nodes.iter().map(|node| node.key.clone()).collect();
    assert_eq!(keys, ["d", "d.k0", "d.k1", "d.k2"]);
    group.put("d.k1", "new").await.expect("written");
    let Change::Event(event) = in_time(watch.next()).await.expect("a change") else { panic!("an event") };
    assert!(event.index > resync.index && &event.key[..] == b"d.k1");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_holds_on_the_wire() {
    let node = Running::start_with(|config| config.watch.window_bytes.0 = 64 << 10).await;
    let group = client_group(&node).await;
    let mut stream = Stream::open(&node).await;
    let opened = stream.find(|response| response.opened.is_some()).await.opened.expect("an opening");
    assert_eq!((opened.window_bytes, opened.watches_max), (64 << 10, 10_000));
    stream.create(7, "", WatchMode::WatchEvents, Some(1));
    stream.find(|response| !response.created.is_empty()).await;
    let value = vec![b'v'; 10_000];
    for n in 0..30 {
        group.put(format!("k{n}"), &value).await.expect("written");
    }
    let (mut sent, mut keys) = (0u64, Vec::new());
    let mut acknowledged = 0;
    while keys.len() < 30 {
        let response = stream.next().await.expect("the stream goes on");
        sent += u64::from(response.bytes);
        assert!(sent - acknowledged <= (64 << 10) + 11_000, "{sent} with {acknowledged} acknowledged");
        for delivery in deliveries(&response.deliveries) {
            let (ids, delivery) = delivery.expect("well formed");
            assert_eq!((ids.iter().collect::<Vec<_>>(), delivery.kind), (vec![7], DeliveryKind::Put));
            keys.push(String::from_utf8(delivery.key.to_vec()).expect("text"));
        }
        if sent - acknowledged > 32 << 10 {
            acknowledged = sent;
            stream.send(WatchRequest { acknowledged_bytes: acknowledged, ..Default::default() });
        }
    }
    assert_eq!(keys, (0..30).map(|n| format!("k{n}")).collect::<Vec<_>>());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_watches_are_refused_one_by_one() {
    let node = Running::start_with(|config| config.watch.watches_per_stream_max = 2).await;
    let mut stream = Stream::open(&node).await;
    let good = WatchCreate { watch_id: 1, group_id: GROUP, ..Default::default() };
    let bad = [
        (
            WatchCreate { watch_id: 2, key: "a..b".into(), ..good.clone() },
            Reason::InvalidArgument,
            "INVALID_KEY",
        ),
        (WatchCreate { watch_id: 3, group_id: 99, ..good.clone() }, Reason::GroupNotFound, "g99"),
        (WatchCreate { watch_id: 4, mode: 9, ..good.clone() }, Reason::InvalidArgument, "mode 9"),
        (
            WatchCreate { watch_id: 5, kinds: vec![17], ..good.clone() },
            Reason::InvalidArgument,
            "kind of event 17",
        ),
        (WatchCreate { watch_id: 1, ..good.clone() }, Reason::InvalidArgument, "in use"),
        (WatchCreate { watch_id: 7, ..good.clone() }, Reason::InvalidArgument, "limit"),
    ];
    let second = WatchCreate { watch_id: 6, ..good.clone() };
    let create = [good, second].into_iter().chain(bad.iter().map(|(create, ..)| create.clone())).collect();
    stream.send(WatchRequest { create, ..Default::default() });
    let mut ended = Vec::new();
    stream
        .find(|response| {
            ended.extend(response.ended.clone());
            ended.len() == bad.len()
        })
        .await;
    for ((create, reason, words), ended) in bad.iter().zip(&ended) {
        let failure = ended.failure.as_ref().expect("a reason");
        assert_eq!((&ended.watch_ids, failure.reason()), (&vec![create.watch_id], *reason));
        assert!(failure.message.contains(words), "{failure:?}");
    }
    node.metric_becomes("dtkv_watch_watches", 2.0).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_how_far_it_is_and_when_the_node_stops() {
    let node = Running::start_with(|config| config.watch.progress_interval_ms = 100).await;
    let group = client_group(&node).await;
    let mut stream = Stream::open(&node).await;
    stream.create(1, "none", WatchMode::WatchEvents, None);
    let written = group.put("k", "v").await.expect("written");
    let reached =
        |progress: &v1::WatchProgress| progress.group_id == GROUP && progress.index >= written.index;
    stream.find(|response| response.progress.iter().any(reached)).await;
    stream.create(2, "", WatchMode::WatchEvents, Some(written.index + 100));
    stream.find(|response| response.created.iter().any(|created| created.watch_id == 2)).await;
    let stopping = tokio::spawn(node.stop());
    let farewell = stream.find(|response| !response.ended.is_empty()).await;
    assert!(farewell.ended[0].watch_ids.is_empty(), "all of them");
    assert_eq!(farewell.ended[0].failure.as_ref().map(|failure| failure.reason()), Some(Reason::Stopping));
    assert!(stream.next().await.is_none());
    stopping.await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_go_on_after_the_node_was_restarted() {
    let node = Running::start().await;
    let group = client_group(&node).await;
    let mut events = group.watch_events("").start();
    in_time(events.begun()).await.expect("it begins");
    let mut state = group.watch("k");
    in_time(state.next()).await.expect("a state");
    let config = node.config.clone();
    let directory = node.stop().await;
    let node = Running::again(directory, config).await;
    let written = in_time(async {
        loop {
            if let Ok(written) = group.put("k", "v").await {
                return written;
            }
        }
    })
    .await;
    assert_eq!(in_time(state.next()).await.expect("a state").index, written.index);
    // What the restarted node replays may begin behind the last index: then it says so.
    let change = in_time(events.next()).await.expect("a change");
    match change {
        Change::Event(event) => assert_eq!(event.index, written.index),
        Change::Resynced(resync) => assert!(resync.index >= written.index || resync.nodes.is_empty()),
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_does_not_exist_ends_a_watch() {
    let node = Running::start().await;
    let client = Client::connect([node.config.client_address()]).await.expect("a client");
    let mut watch = client.group(99).watch("k");
    let error = in_time(watch.next()).await.expect_err("no such group");
    assert_eq!(error.reason(), Reason::GroupNotFound, "{error}");
    let refused = in_time(client.group(GROUP).watch("a..b").next()).await.expect_err("no such key");
    assert_eq!(refused.code(), Some(Code::InvalidKey));
    node.stop().await;
}
