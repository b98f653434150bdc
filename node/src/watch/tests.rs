//! Trees, hubs and streams without a network.

mod model;

use super::*;
use crate::failure::Failure;
use crate::ids::GroupId;
use crate::tree::ApplyContext;
use dtkv_client::packed::delivery::{DeliveryKind, deliveries};
use dtkv_client::packed::lock::{LockEntry, entry_key};
use dtkv_client::packed::{Kind, Op};
use dtkv_client::v1;
use dtkv_client::v1::failure::Reason;
use futures::task::noop_waker;
use parking_lot::RwLock;
use std::task::{Context, Poll};

/// A group whose entries are applied by hand.
struct Fixture {
    tree: Arc<Replica>,
    hub: Arc<Hub>,
    index: u64,
}

struct Replica(RwLock<Tree>);

impl Source for Replica {
    fn state(&self, key: &[u8]) -> KeyState {
        KeyState::of(&self.0.read(), key)
    }

    fn lag(&self) -> Duration {
        Duration::from_millis(7)
    }
}

/// What was delivered: kind, key and index.
type Delivered = (DeliveryKind, String, u64);

/// The client's end of a stream.
struct Stream {
    outbox: Arc<Outbox>,
    dealt_with: u64,
    created: Vec<v1::WatchCreated>,
    ended: Vec<v1::WatchEnded>,
    progress: Vec<v1::WatchProgress>,
    delivered: Vec<(u32, Delivered)>,
}

fn put(key: &str) -> Op<'_> {
    Op { create_parents: true, ..Op::new(Kind::Put, key.as_bytes(), b"v") }
}

fn remove(key: &str) -> Op<'_> {
    Op { recursive: true, ..Op::new(Kind::Remove, key.as_bytes(), b"") }
}

fn request(id: u32, key: &str, mode: v1::WatchMode, index: Option<u64>) -> WatchRequest {
    WatchRequest { id, key: Arc::from(key.as_bytes()), mode, index, keys_only: false, kinds: Vec::new() }
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with_history(1 << 20)
    }

    fn with_history(history_bytes_max: u64) -> Fixture {
        let options = WatchOptions { history_bytes_max, ..WatchOptions::default() };
        let tree = Arc::new(Replica(RwLock::new(Tree::new())));
        Fixture { tree, hub: Arc::new(Hub::new(GroupId(1), 0, &options)), index: 0 }
    }

    /// One entry.
    fn apply(&mut self, ops: &[Op<'_>]) -> Arc<[crate::tree::Event]> {
        self.index += 1;
        let mut packed = Vec::new();
        ops.iter().for_each(|op| op.pack(&mut packed));
        let mut tree = self.tree.0.write();
        let at = ApplyContext { index: self.index, time_ms: self.index * 10, clock_ms: 0 };
        tree.apply(at, &packed, &mut Vec::new()).unwrap();
        let events = tree.take_events();
        drop(tree);
        self.hub.publish(at.index, at.time_ms, events.clone());
        events.into()
    }

    fn dispatch(&self) {
        while self.hub.dispatch() {}
    }

    fn watch(&self, stream: &Stream, request: WatchRequest) -> Result<bool, Failure> {
        stream.outbox.watch(request, &self.hub, self.tree.clone())
    }

    fn watch_state(&self, stream: &Stream, id: u32, key: &str) {
        self.watch(stream, request(id, key, v1::WatchMode::WatchState, None)).unwrap();
    }

    fn watch_events(&self, stream: &Stream, id: u32, key: &str, from: Option<u64>) {
        self.watch(stream, request(id, key, v1::WatchMode::WatchEvents, from)).unwrap();
    }
}

impl Stream {
    fn new() -> Stream {
        Stream::with(1 << 20, 1 << 20)
    }

    fn with(window_bytes: u64, queue_bytes_max: usize) -> Stream {
        let outbox = Outbox::new(OutboxOptions {
            window_bytes,
            queue_bytes_max,
            watches_max: 100,
            progress_interval: Duration::from_secs(5),
        });
        let (created, ended, progress, delivered) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Stream { outbox, dealt_with: 0, created, ended, progress, delivered }
    }

    /// Takes one response; false when there is none.
    fn poll(&mut self) -> bool {
        let waker = noop_waker();
        let Poll::Ready(Some(response)) = self.outbox.poll(&Context::from_waker(&waker)) else {
            return false;
        };
        self.dealt_with += u64::from(response.bytes);
        assert_eq!(response.bytes as usize, response.deliveries.len());
        self.created.extend(response.created);
        for delivery in deliveries(&response.deliveries) {
            let (ids, delivery) = delivery.unwrap();
            let key = String::from_utf8(delivery.key.to_vec()).unwrap();
            self.delivered.extend(ids.iter().map(|id| (id, (delivery.kind, key.clone(), delivery.index))));
        }
        self.ended.extend(response.ended);
        self.progress.extend(response.progress);
        true
    }

    /// Takes and acknowledges everything.
    fn drain(&mut self) {
        // A look at the history may end without anything to say before it is complete.
        for _ in 0..3 {
            self.outbox.acknowledge(self.dealt_with);
            while self.poll() {
                self.outbox.acknowledge(self.dealt_with);
            }
        }
    }

    fn of(&self, id: u32) -> Vec<Delivered> {
        self.delivered.iter().filter(|(of, _)| *of == id).map(|(_, delivered)| delivered.clone()).collect()
    }

    fn take(&mut self, id: u32) -> Vec<Delivered> {
        self.drain();
        let taken = self.of(id);
        self.delivered.retain(|(of, _)| *of != id);
        taken
    }
}

fn told(kind: DeliveryKind, key: &str, index: u64) -> Delivered {
    (kind, key.to_owned(), index)
}

#[test]
fn a_state_is_told_at_once_and_then_only_the_latest() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::new();
    fixture.apply(&[put("a.b")]);
    fixture.watch_state(&stream, 1, "a.b");
    fixture.watch_state(&stream, 2, "a");
    fixture.watch_state(&stream, 3, "none.x");
    assert_eq!(stream.take(1), [told(DeliveryKind::StateValue, "", 1)]);
    assert_eq!(stream.take(2), [told(DeliveryKind::StateDirectory, "", 1)]);
    assert_eq!(stream.take(3), [told(DeliveryKind::StateNotExists, "", 1)]);
    assert_eq!(stream.created.len(), 3);
    fixture.apply(&[put("a.b")]);
    fixture.apply(&[put("a.b"), put("a.c.d")]);
    fixture.dispatch();
    assert_eq!(stream.take(1), [told(DeliveryKind::StateValue, "", 3)]);
    assert_eq!(stream.take(2), [told(DeliveryKind::StateDirectory, "", 3)], "for any change at any depth");
    assert_eq!(stream.take(3), [], "what it is about has not changed");
    fixture.apply(&[remove("a")]);
    fixture.dispatch();
    assert_eq!(stream.take(1), [told(DeliveryKind::StateNotExists, "", 4)]);
}

#[test]
fn a_known_state_is_not_told_again() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::new();
    fixture.apply(&[put("a")]);
    fixture.watch(&stream, request(1, "a", v1::WatchMode::WatchState, Some(1))).unwrap();
    assert_eq!(stream.take(1), []);
    fixture.apply(&[put("a")]);
    fixture.dispatch();
    assert_eq!(stream.take(1), [told(DeliveryKind::StateValue, "", 2)]);
}

#[test]
fn events_come_from_the_history_and_then_live() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::new();
    fixture.apply(&[put("a.b")]);
    fixture.apply(&[put("x")]);
    fixture.watch_events(&stream, 1, "a", Some(1));
    fixture.watch_events(&stream, 2, "", None);
    fixture.watch_events(&stream, 3, "a.b", Some(4));
    fixture.apply(&[put("a.b")]);
    fixture.dispatch();
    let expected =
        [(DeliveryKind::Mkdir, "a", 1), (DeliveryKind::Put, "a.b", 1), (DeliveryKind::Put, "a.b", 3)];
    assert_eq!(stream.take(1), expected.map(|(kind, key, index)| told(kind, key, index)));
    assert_eq!(stream.take(2), [told(DeliveryKind::Put, "a.b", 3)]);
    fixture.apply(&[remove("a")]);
    fixture.dispatch();
    let removed = [told(DeliveryKind::Remove, "a.b", 4), told(DeliveryKind::Remove, "a", 4)];
    assert_eq!(stream.take(1), removed);
    assert_eq!(stream.take(3), removed[..1], "only at and below the key");
}

#[test]
fn only_the_kinds_asked_for_are_told() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::new();
    let kinds = vec![v1::EventKind::EventRemove];
    let asked = WatchRequest { kinds, ..request(1, "", v1::WatchMode::WatchEvents, Some(1)) };
    fixture.apply(&[put("a"), remove("a")]);
    fixture.watch(&stream, asked).unwrap();
    stream.drain();
    fixture.apply(&[put("b")]);
    fixture.apply(&[remove("b")]);
    fixture.dispatch();
    assert_eq!(stream.take(1), [told(DeliveryKind::Remove, "a", 1), told(DeliveryKind::Remove, "b", 3)]);
}

#[test]
fn watches_of_one_stream_share_a_delivery() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::new();
    for id in 0..50 {
        fixture.watch_events(&stream, id, if id % 2 == 0 { "a" } else { "a.b" }, None);
    }
    stream.drain();
    let before = stream.dealt_with;
    fixture.apply(&[put("a.b")]);
    fixture.dispatch();
    stream.drain();
    assert_eq!(stream.delivered.len(), 25 + 50, "the directory, and the value twice");
    assert!(stream.dealt_with - before < 75 * 4 + 2 * 64, "{}", stream.dealt_with - before);
}

#[test]
fn nothing_is_sent_beyond_the_window_until_it_is_acknowledged() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::with(100, 1000);
    fixture.watch_events(&stream, 1, "", None);
    fixture.watch_state(&stream, 2, "a");
    while stream.poll() {}
    let first = stream.delivered.len();
    for _ in 0..100 {
        fixture.apply(&[put("a")]);
    }
    fixture.dispatch();
    while stream.poll() {}
    assert!(stream.delivered.len() <= first + 3, "{}", stream.delivered.len());
    stream.drain();
    let expected: Vec<Delivered> = (1..=100).map(|index| told(DeliveryKind::Put, "a", index)).collect();
    assert_eq!(stream.of(1), expected, "none is missing, although the queue was full");
    assert_eq!(stream.of(2).last(), Some(&told(DeliveryKind::StateValue, "", 100)));
    assert!(stream.of(2).len() <= 4, "states in between are left out");
}

#[test]
fn lost_history_ends_event_watches_and_tells_from_where_there_is_one() {
    let mut fixture = Fixture::with_history(1000);
    let mut stream = Stream::with(100, 100);
    fixture.watch_events(&stream, 1, "", None);
    for _ in 0..200 {
        fixture.apply(&[put("a")]);
        fixture.dispatch();
    }
    fixture.watch_events(&stream, 2, "", Some(1));
    stream.drain();
    let ended: Vec<_> =
        stream.ended.iter().map(|e| (e.watch_ids.clone(), e.code(), e.oldest_index)).collect();
    let oldest = stream.ended[0].oldest_index;
    assert!(oldest > 150, "{oldest}");
    assert_eq!(
        ended.iter().map(|(ids, code, _)| (ids[0], *code)).collect::<std::collections::BTreeSet<_>>(),
        [(1, v1::Code::Compacted), (2, v1::Code::Compacted)].into()
    );
    fixture.watch_events(&stream, 3, "", Some(oldest));
    assert_eq!(stream.take(3).len() as u64, 200 - oldest + 1);
}

#[test]
fn a_replaced_tree_re_syncs_states_and_ends_event_watches() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::new();
    fixture.watch_state(&stream, 1, "a");
    fixture.watch_events(&stream, 2, "", None);
    fixture.apply(&[put("b")]);
    fixture.dispatch();
    stream.drain();
    fixture.index = 500;
    fixture.apply(&[put("a")]);
    fixture.hub.reset(501);
    fixture.dispatch();
    assert_eq!(stream.take(1).last(), Some(&told(DeliveryKind::StateValue, "", 501)));
    assert_eq!(stream.ended.len(), 1);
    assert_eq!((stream.ended[0].code(), stream.ended[0].oldest_index), (v1::Code::Compacted, 502));
    fixture.watch_events(&stream, 3, "", Some(502));
    fixture.apply(&[put("a")]);
    fixture.dispatch();
    assert_eq!(stream.take(3), [told(DeliveryKind::Put, "a", 502)]);
}

#[test]
fn a_closed_hub_ends_its_watches_and_takes_no_more() {
    let fixture = Fixture::new();
    let mut stream = Stream::new();
    fixture.watch_state(&stream, 1, "a");
    fixture.watch_events(&stream, 2, "", None);
    fixture.hub.close(Failure::stopping(GroupId(1)));
    stream.drain();
    let mut ids: Vec<u32> = stream.ended.iter().flat_map(|ended| ended.watch_ids.clone()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
    assert!(stream.ended.iter().all(|ended| ended.failure.as_ref().unwrap().reason() == Reason::Stopping));
    assert!(fixture.watch(&stream, request(3, "", v1::WatchMode::WatchState, None)).is_err());
    assert_eq!(fixture.hub.metrics().watches.get(), 0);
}

#[test]
fn what_is_cancelled_or_closed_is_forgotten() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::new();
    fixture.watch_events(&stream, 1, "a", None);
    fixture.watch_state(&stream, 2, "a");
    assert!(fixture.watch(&stream, request(2, "b", v1::WatchMode::WatchState, None)).is_err(), "id in use");
    stream.outbox.cancel(1);
    fixture.apply(&[put("a")]);
    fixture.dispatch();
    stream.drain();
    assert_eq!((stream.of(1).len(), stream.of(2).len()), (0, 1));
    assert_eq!(fixture.hub.metrics().watches.get(), 1);
    stream.outbox.close();
    assert_eq!(fixture.hub.metrics().watches.get(), 0);
}

#[test]
fn a_grant_of_a_lock_is_told_to_who_watches_the_entry_and_a_renewal_to_nobody() {
    let (holder, waiter) = ([1; 16], [2; 16]);
    let by = |client, op| Op { session: Some((client, 0)), ..op };
    let wait = 60_000u64.to_le_bytes();
    let try_lock = Op { ttl_ms: Some(60_000), ..Op::new(Kind::TryLock, b"l", &wait) };
    let mut fixture = Fixture::new();
    let mut stream = Stream::new();
    let entry = String::from_utf8(entry_key(b"l", &waiter)).unwrap();
    fixture.watch_state(&stream, 1, &entry);
    fixture.apply(&[by(holder, try_lock)]);
    fixture.apply(&[by(waiter, try_lock)]);
    fixture.dispatch();
    assert_eq!(stream.take(1).last(), Some(&told(DeliveryKind::StateValue, "", 2)), "it waits");
    let renewal = Op { ttl_ms: Some(90_000), ..Op::new(Kind::UpdateLease, b"l", b"") };
    assert!(fixture.apply(&[by(holder, renewal)]).is_empty());
    assert!(fixture.apply(&[by(holder, Op::new(Kind::KeepAlive, b"", b""))]).is_empty());
    fixture.apply(&[by(holder, Op::new(Kind::Unlock, b"l", b""))]);
    fixture.dispatch();
    assert_eq!(stream.take(1), [told(DeliveryKind::StateValue, "", 5)], "it holds the lock");
    let granted = KeyState::of(&fixture.tree.0.read(), entry.as_bytes());
    let Presence::Value(value) = granted.presence else { panic!("{granted:?}") };
    assert!(LockEntry::read(&value).unwrap().token >= 5);
}

#[test]
fn progress_claims_only_what_was_sent() {
    let mut fixture = Fixture::new();
    let mut stream = Stream::with(100, 1000);
    fixture.watch_events(&stream, 1, "a", None);
    stream.drain();
    fixture.apply(&[put("b")]);
    fixture.dispatch();
    stream.outbox.progress_due();
    stream.drain();
    let last = stream.progress.last().unwrap();
    assert_eq!((last.group_id, last.index, last.lag_ms), (1, 1, 7));
    for _ in 0..10 {
        fixture.apply(&[put("a")]);
    }
    fixture.dispatch();
    while stream.poll() {}
    let sent = stream.of(1).last().unwrap().2;
    assert!(sent < 11);
    stream.progress.clear();
    stream.outbox.progress_due();
    assert!(stream.poll(), "a sign of life all the same");
    assert!(stream.progress.iter().all(|progress| progress.index <= sent));
    stream.drain();
    stream.outbox.progress_due();
    stream.drain();
    assert_eq!(stream.progress.last().unwrap().index, 11);
}
