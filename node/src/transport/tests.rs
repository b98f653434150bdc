//! Transports over real sockets on loopback.

use super::peer_stream::dial;
use super::*;
use crate::peer_v1::message::Body;
use crate::peer_v1::snapshot_chunk::Part;
use dtkv_client::v1::failure::Reason;
use futures::FutureExt;
use std::future::poll_fn;
use std::task::Poll;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq)]
enum Event {
    Lost(NodeId),
    Found(NodeId),
    Address(NodeId),
    SinkDropped,
}

/// Answers votes and appends, keeps the rest.
struct Recorder {
    messages: mpsc::UnboundedSender<(NodeId, pb::Message)>,
    events: mpsc::UnboundedSender<Event>,
    received: Mutex<Vec<(Bytes, Bytes)>>,
    /// Answers to append requests wait for a permit.
    gate: Arc<Semaphore>,
    /// Snapshots wait for a permit before their first record.
    snapshot_gate: Arc<Semaphore>,
    itself: std::sync::Weak<Recorder>,
}

impl Recorder {
    fn answer_append(&self, append: &pb::AppendRequest, message: &pb::Message, reply: &ReplySender) {
        let accepted = pb::AppendReply { log_id: append.prev_log_id, ..Default::default() };
        let answer = pb::Message { body: Some(Body::AppendReply(accepted)), ..message.clone() };
        if let Ok(permit) = self.gate.try_acquire() {
            permit.forget();
            return reply.send(answer);
        }
        let (gate, reply) = (self.gate.clone(), reply.clone());
        tokio::spawn(async move {
            gate.acquire().await.unwrap().forget();
            reply.send(answer);
        });
    }
}

impl Inbound for Recorder {
    fn message(&self, from: NodeId, message: pb::Message, reply: ReplySender) {
        let respond = |body| reply.send(pb::Message { body: Some(body), ..message.clone() });
        match &message.body {
            Some(Body::Append(append)) => self.answer_append(append, &message, &reply),
            Some(Body::Vote(vote)) => {
                respond(Body::VoteReply(pb::VoteReply { vote: vote.vote, ..Default::default() }));
            }
            Some(Body::Transfer(_)) => respond(Body::Refused("not today".into())),
            _ => {}
        }
        let _ = self.messages.send((from, message));
    }

    fn snapshot(
        &self,
        _from: NodeId,
        header: pb::SnapshotHeader,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Failure>> {
        let (recorder, gate) = (self.itself.upgrade().unwrap(), self.snapshot_gate.clone());
        async move {
            if header.group_id == 404 {
                return Err(Failure::group_not_found(GroupId(404)));
            }
            gate.acquire().await.unwrap().forget();
            Ok(Box::new(Sink { recorder, vote: header.vote, finished: false }) as Box<dyn SnapshotSink>)
        }
        .boxed()
    }

    fn peer_lost(&self, peer: NodeId) {
        let _ = self.events.send(Event::Lost(peer));
    }

    fn peer_found(&self, peer: NodeId) {
        let _ = self.events.send(Event::Found(peer));
    }

    fn address_changed(&self, node: NodeAddress) {
        let _ = self.events.send(Event::Address(node.node));
    }
}

struct Sink {
    recorder: Arc<Recorder>,
    vote: Option<pb::Vote>,
    finished: bool,
}

impl SnapshotSink for Sink {
    fn records(&mut self, chunk: Bytes) -> BoxFuture<'_, Result<(), Failure>> {
        self.recorder.received.lock().extend(unpack_records(chunk).unwrap());
        async { Ok(()) }.boxed()
    }

    fn finish(
        mut self: Box<Self>,
        _end: pb::SnapshotEnd,
    ) -> BoxFuture<'static, Result<pb::SnapshotReply, Failure>> {
        self.finished = true;
        let vote = self.vote.take();
        async move { Ok(pb::SnapshotReply { vote }) }.boxed()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.recorder.events.send(Event::SinkDropped);
        }
    }
}

struct Node {
    transport: Transport,
    address: String,
    recorder: Arc<Recorder>,
    messages: mpsc::UnboundedReceiver<(NodeId, pb::Message)>,
    events: mpsc::UnboundedReceiver<Event>,
    serving: JoinHandle<()>,
}

impl Node {
    async fn start(id: u64, change: impl FnOnce(&mut Identity, &mut TransportOptions)) -> Node {
        Node::start_at(id, "127.0.0.1:0", change).await
    }

    async fn start_at(
        id: u64,
        address: &str,
        change: impl FnOnce(&mut Identity, &mut TransportOptions),
    ) -> Node {
        let listener = bind(address).await;
        let address = listener.local_addr().unwrap().to_string();
        let mut identity = Identity {
            cluster_id: "c".into(),
            node: NodeId(id),
            incarnation: format!("i{id}"),
            peer_address: address.clone(),
            client_address: String::new(),
        };
        let mut options = TransportOptions { ping_interval: Duration::from_millis(50), ..Default::default() };
        change(&mut identity, &mut options);
        let metrics = TransportMetrics::register(&prometheus::Registry::new());
        let transport = Transport::new(identity, options, AddressBook::default(), metrics);
        let (to_messages, messages) = mpsc::unbounded_channel();
        let (to_events, events) = mpsc::unbounded_channel();
        let recorder = Arc::new_cyclic(|itself| Recorder {
            messages: to_messages,
            events: to_events,
            received: Mutex::default(),
            gate: Arc::new(Semaphore::new(1_000_000)),
            snapshot_gate: Arc::new(Semaphore::new(1000)),
            itself: itself.clone(),
        });
        transport.set_inbound(recorder.clone());
        let server = transport.clone();
        let serving = tokio::spawn(async move { server.serve(listener).await.unwrap() });
        Node { transport, address, recorder, messages, events, serving }
    }

    fn id(&self) -> NodeId {
        self.transport.identity().node
    }

    fn knows(&self, other: &Node) {
        let entry =
            NodeAddress { node: other.id(), peer_address: other.address.clone(), ..NodeAddress::default() };
        self.transport.book().put(entry).unwrap();
    }

    async fn stop(self) -> String {
        self.transport.shutdown().await;
        self.serving.await.unwrap();
        self.address
    }

    async fn next_message(&mut self) -> pb::Message {
        tokio::time::timeout(PATIENCE, self.messages.recv()).await.unwrap().unwrap().1
    }

    async fn expect_event(&mut self, event: Event) {
        let seen = async { while self.events.recv().await.unwrap() != event {} };
        tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("no {event:?}"));
    }

    /// Asks until it works.
    async fn reach(&self, to: NodeId) {
        let since = clock::now();
        while let Err(failure) = self.ask(to).await {
            assert!(since.elapsed() < PATIENCE, "{failure}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The other lane comes back as soon as the peer shows a sign of life on this one.
    async fn open_session(&self, to: NodeId) -> Session {
        let since = clock::now();
        loop {
            match self.transport.session(to, GroupId(1), 0) {
                Ok(session) => return session,
                Err(failure) => assert!(since.elapsed() < Duration::from_millis(500), "{failure}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ask(&self, to: NodeId) -> Result<pb::Message, Failure> {
        self.transport.call_within(PATIENCE, to, pb::Lane::Control, vote(7)).await
    }
}

async fn bind(address: &str) -> TcpListener {
    for _ in 0..200 {
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{address} stays taken");
}

/// Two nodes that know each other.
async fn pair() -> (Node, Node) {
    let (a, b) = (Node::start(1, |_, _| {}).await, Node::start(2, |_, _| {}).await);
    a.knows(&b);
    (a, b)
}

fn vote(term: u64) -> pb::Message {
    let vote = Some(pb::Vote { term, ..Default::default() });
    let body = Some(Body::Vote(pb::VoteRequest { vote, ..Default::default() }));
    pb::Message { group_id: 1, body, ..Default::default() }
}

fn append(index: u64, bytes: usize) -> pb::AppendRequest {
    let ops = Bytes::from(vec![0; bytes]);
    let commands = pb::Commands { ops, ..Default::default() };
    let payload = Some(pb::entry::Payload::Commands(commands));
    pb::AppendRequest {
        prev_log_id: Some(pb::LogId { term: 1, index }),
        entries: vec![pb::Entry { log_id: None, payload }],
        ..Default::default()
    }
}

fn park(group: u32, index: u64) -> pb::Message {
    let log_id = Some(pb::LogId { term: 1, index });
    let body = Some(Body::Park(pb::Park { vote: None, log_id }));
    pb::Message { group_id: group, body, ..Default::default() }
}

async fn next_reply(session: &mut Session) -> Result<pb::AppendReply, Failure> {
    tokio::time::timeout(PATIENCE, poll_fn(|cx| session.poll_reply(cx))).await.unwrap()
}

type Record = (Box<[u8]>, Box<[u8]>);

fn records(count: usize) -> Vec<Record> {
    let record = |i: usize| (format!("key{i:06}").into_bytes().into(), vec![i as u8; 100].into());
    (0..count).map(record).collect()
}

fn iterate(records: Vec<Record>) -> Records {
    Box::new(records.into_iter().map(Ok))
}

fn header(group: u32) -> pb::SnapshotHeader {
    let vote = Some(pb::Vote { term: 3, ..Default::default() });
    pb::SnapshotHeader { group_id: group, vote, ..Default::default() }
}

#[tokio::test]
async fn messages_of_many_groups_keep_their_order_and_share_batches() {
    let (a, mut b) = pair().await;
    a.reach(NodeId(2)).await;
    b.next_message().await;
    let before = a.transport.0.metrics.sent(pb::Lane::Append);
    for index in 0..20_000 {
        a.transport.send(NodeId(2), pb::Lane::Append, park(index % 256, index.into())).unwrap();
    }
    for index in 0..20_000 {
        let Some(Body::Park(park)) = b.next_message().await.body else { panic!() };
        assert_eq!(park.log_id.unwrap().index, index);
    }
    let after = a.transport.0.metrics.sent(pb::Lane::Append);
    assert_eq!(after.0 - before.0, 20_000);
    // On one thread everything waits before the stream gets its turn.
    assert_eq!(after.1 - before.1, 20_000_u64.div_ceil(1024));
}

#[tokio::test]
async fn calls_are_answered_refused_or_time_out() {
    let (a, b) = pair().await;
    let answer = a.ask(NodeId(2)).await.unwrap();
    assert!(matches!(answer.body, Some(Body::VoteReply(reply)) if reply.vote.unwrap().term == 7));
    let transfer = pb::Message { body: Some(Body::Transfer(Default::default())), ..Default::default() };
    let refused = a.transport.call(NodeId(2), pb::Lane::Control, transfer).await.unwrap_err();
    assert!(refused.message.contains("not today") && !refused.outcome_unknown, "{refused}");
    let short = Duration::from_millis(50);
    let silent = a.transport.call_within(short, NodeId(2), pb::Lane::Control, park(1, 1)).await.unwrap_err();
    assert!(silent.reason == Reason::Timeout && silent.outcome_unknown, "{silent}");
    let stranger = a.transport.call(NodeId(9), pb::Lane::Control, vote(1)).await.unwrap_err();
    assert!(stranger.message.contains("address book") && !stranger.outcome_unknown, "{stranger}");
    assert!(a.transport.is_connected(NodeId(2)) && a.transport.last_contact(NodeId(2)).is_some());
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_session_pipelines_up_to_its_bound_and_answers_in_order() {
    let (a, b) = (
        Node::start(1, |_, options| options.session_requests_max = 4).await,
        Node::start(2, |_, _| {}).await,
    );
    a.knows(&b);
    let gate = b.recorder.gate.clone();
    gate.forget_permits(usize::MAX);
    let mut session = a.transport.session(NodeId(2), GroupId(1), 0).unwrap();
    for index in 0..4 {
        assert!(poll_fn(|cx| Poll::Ready(session.poll_room(cx))).await.is_ready());
        session.send(append(index, 10)).unwrap();
    }
    assert!(poll_fn(|cx| Poll::Ready(session.poll_room(cx))).await.is_pending());
    gate.add_permits(4);
    for index in 0..4 {
        assert_eq!(next_reply(&mut session).await.unwrap().log_id.unwrap().index, index);
    }
    assert_eq!(session.in_flight(), 0);
}

#[tokio::test]
async fn the_budget_of_a_peer_bounds_all_its_sessions() {
    let (a, b) = (
        Node::start(1, |_, options| options.append_bytes_max = 10_000).await,
        Node::start(2, |_, _| {}).await,
    );
    a.knows(&b);
    b.recorder.gate.forget_permits(usize::MAX);
    let mut first = a.transport.session(NodeId(2), GroupId(1), 0).unwrap();
    let mut second = a.transport.session(NodeId(2), GroupId(2), 0).unwrap();
    first.send(append(1, 20_000)).unwrap();
    let waiting = tokio::spawn(async move {
        poll_fn(|cx| second.poll_room(cx)).await;
        second.send(append(1, 10)).unwrap();
        next_reply(&mut second).await.unwrap()
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    b.recorder.gate.add_permits(10);
    next_reply(&mut first).await.unwrap();
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_stopped_peer_fails_everything_at_once_and_is_found_again() {
    let (mut a, b) = pair().await;
    a.reach(NodeId(2)).await;
    b.recorder.gate.forget_permits(usize::MAX);
    let mut session = a.transport.session(NodeId(2), GroupId(1), 0).unwrap();
    session.send(append(1, 10)).unwrap();
    let asking = a.transport.call_within(PATIENCE, NodeId(2), pb::Lane::Control, park(1, 1));
    let asking = tokio::spawn(asking);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let address = b.stop().await;
    assert!(next_reply(&mut session).await.unwrap_err().outcome_unknown);
    assert!(asking.await.unwrap().unwrap_err().outcome_unknown);
    a.expect_event(Event::Lost(NodeId(2))).await;
    let since = clock::now();
    let down = a.ask(NodeId(2)).await.unwrap_err();
    assert!(!down.outcome_unknown && since.elapsed() < Duration::from_secs(5), "{down}");
    let _b = Node::start_at(2, &address, |_, _| {}).await;
    a.reach(NodeId(2)).await;
    a.expect_event(Event::Found(NodeId(2))).await;
    let mut session = a.open_session(NodeId(2)).await;
    session.send(append(5, 10)).unwrap();
    assert_eq!(next_reply(&mut session).await.unwrap().log_id.unwrap().index, 5);
}

#[tokio::test]
async fn a_new_address_is_followed_and_a_tombstone_cuts() {
    let (a, b) = pair().await;
    a.reach(NodeId(2)).await;
    b.stop().await;
    let moved = Node::start(2, |_, _| {}).await;
    a.knows(&moved);
    a.reach(NodeId(2)).await;
    a.transport.book().tombstone(NodeId(2));
    let since = clock::now();
    loop {
        match a.ask(NodeId(2)).await {
            Err(failure) if failure.message.contains("removed") => break,
            _ => assert!(since.elapsed() < PATIENCE),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_peer_learns_who_knocks_and_can_answer_its_calls() {
    let (a, mut b) = pair().await;
    a.reach(NodeId(2)).await;
    b.expect_event(Event::Address(NodeId(1))).await;
    let learned = b.transport.book().get(NodeId(1)).unwrap();
    assert_eq!((learned.peer_address, learned.incarnation.as_str()), (a.address.clone(), "i1"));
    b.reach(NodeId(1)).await;
}

async fn refusal(change: impl FnOnce(&mut Identity), prepare: impl FnOnce(&Node)) -> (String, Node) {
    let (a, b) = (Node::start(1, |identity, _| change(identity)).await, Node::start(2, |_, _| {}).await);
    a.knows(&b);
    prepare(&b);
    let since = clock::now();
    loop {
        let failure = a.ask(NodeId(2)).await.unwrap_err();
        if failure.message.contains("127.0.0.1") || since.elapsed() > PATIENCE {
            return (failure.message, b);
        }
    }
}

#[tokio::test]
async fn strangers_are_refused_with_advice() {
    let (message, b) = refusal(|me| me.cluster_id = "other".into(), |_| {}).await;
    assert!(message.contains("belongs to cluster \"other\""), "{message}");
    assert!(b.transport.0.metrics.refused_hello_count("cluster") > 0);
    let reborn = |b: &Node| {
        let known = NodeAddress { node: NodeId(1), incarnation: "old".into(), ..NodeAddress::default() };
        b.transport.book().put(known).unwrap();
    };
    let (message, _b) = refusal(|_| {}, reborn).await;
    assert!(message.contains("under a new id"), "{message}");
    let (message, _b) = refusal(|_| {}, |b| drop(b.transport.book().tombstone(NodeId(1)))).await;
    assert!(message.contains("removed from the cluster for ever"), "{message}");
}

#[tokio::test]
async fn a_node_that_answers_for_another_is_refused() {
    let (a, b) = pair().await;
    let wrong = NodeAddress { node: NodeId(3), peer_address: b.address.clone(), ..NodeAddress::default() };
    a.transport.book().put(wrong).unwrap();
    let failure = a.ask(NodeId(3)).await.unwrap_err();
    assert!(failure.message.contains("this is n2, not n3"), "{failure}");
}

#[tokio::test]
async fn a_node_without_a_cluster_speaks_only_after_joining() {
    let (a, b) = (Node::start(1, |me, _| me.cluster_id.clear()).await, Node::start(2, |_, _| {}).await);
    a.knows(&b);
    let failure = a.ask(NodeId(2)).await.unwrap_err();
    assert!(failure.message.contains("not joined a cluster"), "{failure}");
    a.transport.set_cluster_id("c");
    a.reach(NodeId(2)).await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_so() {
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let a = Node::start(1, |_, options| {
        options.queue_bytes_max = 10_000;
        options.connect_timeout = PATIENCE;
    })
    .await;
    let address = deaf.local_addr().unwrap().to_string();
    let entry = NodeAddress { node: NodeId(2), peer_address: address, ..NodeAddress::default() };
    a.transport.book().put(entry).unwrap();
    let failure = (0..10_000)
        .find_map(|index| a.transport.send(NodeId(2), pb::Lane::Control, park(1, index)).err())
        .unwrap();
    assert_eq!(failure.reason, Reason::Overloaded);
    a.transport.shutdown().await;
    assert_eq!(a.transport.0.metrics.lane(pb::Lane::Control).queue_bytes.get(), 0);
}

#[tokio::test]
async fn a_snapshot_arrives_whole() {
    let (a, b) = pair().await;
    let sent = records(20_000);
    let reply = a.transport.send_snapshot(NodeId(2), header(1), iterate(sent.clone())).await.unwrap();
    assert_eq!(reply.vote.unwrap().term, 3);
    let received = b.recorder.received.lock();
    assert_eq!(received.len(), sent.len());
    assert!(received.iter().zip(&sent).all(|(got, sent)| got.0[..] == *sent.0 && got.1[..] == *sent.1));
    assert!(!a.transport.is_sending_snapshot(NodeId(2), GroupId(1)));
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_or_is_refused_fails_and_leaves_nothing() {
    let (a, mut b) = pair().await;
    let broken = records(10_000).into_iter().map(Ok).chain([Err(std::io::Error::other("disk"))]);
    let failure = a.transport.send_snapshot(NodeId(2), header(1), Box::new(broken)).await.unwrap_err();
    assert!(failure.message.contains("disk"), "{failure}");
    b.expect_event(Event::SinkDropped).await;
    let failure = a.transport.send_snapshot(NodeId(2), header(404), iterate(records(1))).await.unwrap_err();
    assert!(failure.message.contains("no replica"), "{failure}");
}

#[tokio::test]
async fn a_cancelled_snapshot_leaves_nothing() {
    let (a, mut b) = (
        Node::start(1, |_, options| options.snapshot_bytes_per_second = 1_000_000).await,
        Node::start(2, |_, _| {}).await,
    );
    a.knows(&b);
    let sending = a.transport.send_snapshot(NodeId(2), header(1), iterate(records(100_000)));
    assert!(tokio::time::timeout(Duration::from_millis(400), sending).await.is_err());
    b.expect_event(Event::SinkDropped).await;
    assert!(!a.transport.is_sending_snapshot(NodeId(2), GroupId(1)));
}

#[tokio::test]
async fn too_many_incoming_snapshots_are_refused_for_now() {
    let (a, b) = (
        Node::start(1, |_, _| {}).await,
        Node::start(2, |_, options| options.snapshots_incoming_max = 1).await,
    );
    a.knows(&b);
    b.recorder.snapshot_gate.forget_permits(usize::MAX);
    let first = tokio::spawn(a.transport.send_snapshot(NodeId(2), header(1), iterate(records(10))));
    let since = clock::now();
    while b.transport.0.snapshots_incoming.available_permits() > 0 {
        assert!(since.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let failure = a.transport.send_snapshot(NodeId(2), header(2), iterate(records(10))).await.unwrap_err();
    assert!(failure.reason == Reason::Overloaded && failure.retry_after_ms.is_some(), "{failure}");
    b.recorder.snapshot_gate.add_permits(1);
    first.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_damaged_snapshot_is_never_finished() {
    let (a, mut b) = pair().await;
    let records = Bytes::from_static(&[1, 0, 0, 0, 1, 0, 0, 0, b'k', b'v']);
    let good = pb::SnapshotEnd { records: 1, crc32c: crc32c::crc32c(&records) };
    let flipped = pb::SnapshotEnd { crc32c: good.crc32c ^ 1, ..good };
    let missing = pb::SnapshotEnd { records: 2, ..good };
    let mut client = dial(a.transport.options(), &b.address).await.unwrap();
    for end in [Some(flipped), Some(missing), None] {
        let hello = Some(hello::hello(&a.transport.identity(), NodeId(2), pb::Lane::Control));
        let head = pb::SnapshotHeader { hello, ..header(1) };
        let parts = [Some(Part::Header(head)), Some(Part::Records(records.clone())), end.map(Part::End)];
        let chunks = parts.into_iter().flatten().map(|part| pb::SnapshotChunk { part: Some(part) });
        let status = client.snapshot(futures::stream::iter(chunks.collect::<Vec<_>>())).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::DataLoss, "{status}");
        b.expect_event(Event::SinkDropped).await;
    }
}
