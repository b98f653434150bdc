//! The network between the replicas. The streams are real; this stands at their ends and decides
//! what becomes of every message and every answer.
//!
//! It keeps the promise of a stream, as TCP does: what is not lost on the lane of appends arrives in
//! order, and where something is lost the stream breaks. Messages of streams that broke may arrive
//! late and twice all the same, with nobody waiting for the answer.

use super::audit::{Audit, Question};
use crate::failure::Failure;
use crate::ids::NodeId;
use crate::peer_v1 as pb;
use crate::peer_v1::message::Body;
use crate::store::inbound::StoreInbound;
use crate::transport::{Inbound, NodeAddress, ReplySender, SnapshotSink};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

const POLL: Duration = Duration::from_millis(2);

/// What becomes of everything that one node sends to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// It arrives.
    #[default]
    Open,
    /// It is lost.
    Cut,
    /// It waits.
    Held,
}

/// What becomes of messages by chance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Part of the messages that is lost.
    pub lost: f64,
    /// Part that arrives again, some time later.
    pub doubled: f64,
    /// Longest way.
    pub delay_max: Duration,
    /// Part of the chunks after which a snapshot breaks off.
    pub snapshots_broken: f64,
}

/// What a script wants to become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// What else becomes of it.
    Pass,
    /// It is lost.
    Lose,
    /// It is taken out of the way, to be delivered later.
    Keep,
}

type Filter = Box<dyn Fn(u64, u64, &pb::Message) -> Fate + Send + Sync>;

/// A message that was taken out of the way.
pub struct Caught {
    from: u64,
    to: u64,
    pub message: pb::Message,
    reply: ReplySender,
}

/// Shared by all nodes of a simulation.
pub struct Network {
    pub audit: Audit,
    runtime: Handle,
    rng: Mutex<SmallRng>,
    weather: Mutex<Weather>,
    flows: Mutex<BTreeMap<(u64, u64), Flow>>,
    dead: Mutex<BTreeSet<u64>>,
    /// The next snapshot breaks off after so many chunks.
    break_snapshot_after: Mutex<Option<u64>>,
    /// Snapshots wait before they begin: so from the moment on when one was made to break off.
    holds_snapshots: AtomicBool,
    /// What is taken out of the way, and what was.
    catch: Mutex<Option<Filter>>,
    caught: Mutex<Vec<Caught>>,
    doors: Mutex<BTreeMap<u64, Weak<Door>>>,
    trace: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Network {
    pub fn new(seed: u64, runtime: Handle) -> Arc<Network> {
        Arc::new(Network {
            audit: Audit::default(),
            runtime,
            rng: Mutex::new(SmallRng::seed_from_u64(seed)),
            weather: Mutex::default(),
            flows: Mutex::default(),
            dead: Mutex::default(),
            break_snapshot_after: Mutex::default(),
            holds_snapshots: AtomicBool::new(false),
            catch: Mutex::default(),
            caught: Mutex::default(),
            doors: Mutex::default(),
            trace: Mutex::default(),
            counts: Mutex::default(),
        })
    }

    pub fn set_weather(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    /// Sets what becomes of everything from one node to another.
    pub fn set(&self, from: u64, to: u64, flow: Flow) {
        self.flows.lock().insert((from, to), flow);
    }

    /// The same in both directions.
    pub fn set_both(&self, a: u64, b: u64, flow: Flow) {
        self.set(a, b, flow);
        self.set(b, a, flow);
    }

    /// The same for all that a node sends and receives.
    pub fn set_all(&self, node: u64, others: &[u64], flow: Flow) {
        for &other in others.iter().filter(|other| **other != node) {
            self.set_both(node, other, flow);
        }
    }

    /// Everything arrives.
    pub fn heal(&self) {
        self.flows.lock().clear();
        *self.weather.lock() = Weather::default();
        *self.break_snapshot_after.lock() = None;
        self.holds_snapshots.store(false, Ordering::SeqCst);
    }

    /// From now on nothing that the node does is seen by anybody.
    pub fn set_dead(&self, node: u64, is_dead: bool) {
        let mut dead = self.dead.lock();
        if is_dead {
            dead.insert(node)
        } else {
            dead.remove(&node)
        };
    }

    pub fn break_next_snapshot(&self, after_chunks: u64) {
        *self.break_snapshot_after.lock() = Some(after_chunks);
    }

    /// Judges every message, by sender, receiver and content, before anything else does.
    pub fn catch(&self, judge: impl Fn(u64, u64, &pb::Message) -> Fate + Send + Sync + 'static) {
        *self.catch.lock() = Some(Box::new(judge));
    }

    /// What was caught; nothing more is.
    pub fn caught(&self) -> Vec<Caught> {
        *self.catch.lock() = None;
        std::mem::take(&mut self.caught.lock())
    }

    /// Whether something was caught.
    pub fn has_caught(&self) -> bool {
        !self.caught.lock().is_empty()
    }

    /// Lets a message that was caught arrive now, and waits for the answer.
    pub async fn deliver(&self, caught: Caught) {
        let Some(door) = self.doors.lock().get(&caught.to).and_then(Weak::upgrade) else { return };
        let (network, question) = (door.network.clone(), Question::of(&caught.message));
        let (me, from) = (caught.to, caught.from);
        let (tell, mut told) = mpsc::unbounded_channel();
        let reply = caught.reply.tapped(move |answer| {
            network.audit.answer(me, from, &question, &answer);
            let _ = tell.send(());
        });
        door.store.message(NodeId(from), caught.message, reply);
        let _ = tokio::time::timeout(Duration::from_secs(5), told.recv()).await;
    }

    pub fn note(&self, event: String) {
        self.trace.lock().push(event);
    }

    pub fn trace(&self) -> Vec<String> {
        self.trace.lock().clone()
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().entry(what).or_default() += 1;
    }

    /// What was done to messages, by its name.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().clone()
    }

    pub fn flow(&self, from: u64, to: u64) -> Flow {
        let dead = self.dead.lock();
        if dead.contains(&from) || dead.contains(&to) {
            return Flow::Cut;
        }
        self.flows.lock().get(&(from, to)).copied().unwrap_or_default()
    }

    fn chance(&self, part: f64) -> bool {
        part > 0.0 && self.rng.lock().random_bool(part)
    }

    fn delay(&self) -> Duration {
        let max = self.weather.lock().delay_max;
        if max.is_zero() { max } else { max.mul_f64(self.rng.lock().random_range(0.0..1.0)) }
    }

    /// Waits as long as the way is blocked; false when what is on it is lost.
    async fn passes(&self, from: u64, to: u64) -> bool {
        loop {
            match self.flow(from, to) {
                Flow::Open => return true,
                Flow::Cut => return false,
                Flow::Held => sleep(POLL).await,
            }
        }
    }

    fn catches(&self, from: u64, to: u64, message: &pb::Message, reply: &ReplySender) -> bool {
        let fate = self.catch.lock().as_ref().map_or(Fate::Pass, |judge| judge(from, to, message));
        if fate == Fate::Keep {
            self.caught.lock().push(Caught { from, to, message: message.clone(), reply: reply.clone() });
        }
        fate != Fate::Pass
    }
}

/// Something on its way.
struct Parcel {
    due: Instant,
    message: pb::Message,
    reply: ReplySender,
}

/// Keeps the order of what goes over one stream.
type Lane = mpsc::UnboundedSender<Parcel>;

/// The end of all streams to one node, in one of its lives.
pub struct Door {
    me: u64,
    store: Arc<StoreInbound>,
    network: Arc<Network>,
    /// False once this life of the node is over: what still runs of it is not heard any more.
    alive: Arc<AtomicBool>,
    questions: Mutex<HashMap<u64, Lane>>,
    answers: Arc<Mutex<HashMap<u64, Lane>>>,
}

impl Door {
    pub fn new(me: u64, store: StoreInbound, network: Arc<Network>, alive: Arc<AtomicBool>) -> Arc<Door> {
        let (questions, answers) = (Mutex::default(), Arc::default());
        let door = Arc::new(Door { me, store: Arc::new(store), network, alive, questions, answers });
        door.network.doors.lock().insert(me, Arc::downgrade(&door));
        door
    }

    /// The answer goes back over the network, too.
    fn tap(&self, from: u64, message: &pb::Message, reply: &ReplySender) -> ReplySender {
        let (network, me, question) = (self.network.clone(), self.me, Question::of(message));
        let (answers, stream, alive) = (self.answers.clone(), reply.clone(), self.alive.clone());
        reply.tapped(move |answer| {
            if !alive.load(Ordering::SeqCst) {
                return;
            }
            network.audit.answer(me, from, &question, &answer);
            let lane = stream.lane();
            let parcel =
                Parcel { due: Instant::now() + network.delay(), message: answer, reply: stream.clone() };
            if lane == pb::Lane::Append {
                let mut answers = answers.lock();
                let queue = answers
                    .entry(from)
                    .or_insert_with(|| network.lane(me, from, |parcel| parcel.reply.send(parcel.message)));
                let _ = queue.send(parcel);
            } else {
                network.send_alone(me, from, parcel, |parcel| parcel.reply.send(parcel.message));
            }
        })
    }

    fn deliver(&self, from: u64) -> impl Fn(Parcel) + Send + Sync + 'static {
        let (store, alive) = (self.store.clone(), self.alive.clone());
        move |parcel| {
            if alive.load(Ordering::SeqCst) {
                store.message(NodeId(from), parcel.message, parcel.reply);
            }
        }
    }

    /// The message arrives once more, and nobody waits for the answer.
    fn double(&self, from: u64, message: &pb::Message, reply: &ReplySender) {
        self.network.count("doubled");
        let network = self.network.clone();
        let (me, question, alive) = (self.me, Question::of(message), self.alive.clone());
        let nowhere = reply.tapped(move |answer| {
            if alive.load(Ordering::SeqCst) {
                network.audit.answer(me, from, &question, &answer);
            }
        });
        let late = Duration::from_millis(self.network.rng.lock().random_range(0..400));
        let parcel = Parcel { due: Instant::now() + late, message: message.clone(), reply: nowhere };
        self.network.send_alone(from, self.me, parcel, self.deliver(from));
    }
}

impl Network {
    /// A lane on which everything keeps its order.
    fn lane(self: &Arc<Self>, from: u64, to: u64, deliver: impl Fn(Parcel) + Send + Sync + 'static) -> Lane {
        let (sender, mut parcels) = mpsc::unbounded_channel::<Parcel>();
        let network = self.clone();
        self.runtime.spawn(async move {
            while let Some(parcel) = parcels.recv().await {
                sleep_until(parcel.due).await;
                if network.passes(from, to).await {
                    deliver(parcel);
                } else {
                    parcel.reply.cut();
                }
            }
        });
        sender
    }

    fn send_alone(
        self: &Arc<Self>,
        from: u64,
        to: u64,
        parcel: Parcel,
        deliver: impl Fn(Parcel) + Send + Sync + 'static,
    ) {
        let network = self.clone();
        self.runtime.spawn(async move {
            sleep_until(parcel.due).await;
            if network.passes(from, to).await {
                deliver(parcel);
            }
        });
    }
}

impl Inbound for Door {
    fn message(&self, from: NodeId, message: pb::Message, reply: ReplySender) {
        let (from, network) = (from.0, &self.network);
        if network.dead.lock().contains(&from) {
            return;
        }
        if network.audit.question(from, &message) {
            network.count("leaders");
        }
        if network.catches(from, self.me, &message, &reply) {
            return;
        }
        let weather = *network.weather.lock();
        let lane = reply.lane();
        if network.flow(from, self.me) == Flow::Cut || network.chance(weather.lost) {
            network.count("lost");
            if lane == pb::Lane::Append {
                reply.cut();
            }
            return;
        }
        // Only Raft's own messages can come twice: the others are calls of the store with an answer.
        let is_raft = matches!(message.body, Some(Body::Append(_) | Body::Vote(_) | Body::PreVote(_)));
        if is_raft && network.chance(weather.doubled) {
            self.double(from, &message, &reply);
        }
        let tapped = self.tap(from, &message, &reply);
        let parcel = Parcel { due: Instant::now() + network.delay(), message, reply: tapped };
        if lane == pb::Lane::Append {
            let mut questions = self.questions.lock();
            let queue =
                questions.entry(from).or_insert_with(|| network.lane(from, self.me, self.deliver(from)));
            let _ = queue.send(parcel);
        } else {
            network.send_alone(from, self.me, parcel, self.deliver(from));
        }
    }

    fn snapshot(
        &self,
        from: NodeId,
        header: pb::SnapshotHeader,
    ) -> BoxFuture<'static, Result<Box<dyn SnapshotSink>, Failure>> {
        let (network, me, from) = (self.network.clone(), self.me, from.0);
        let inner = self.store.snapshot(NodeId(from), header);
        async move {
            if !network.passes(from, me).await {
                return Err(Failure::stopping("the way of the snapshot"));
            }
            while network.holds_snapshots.load(Ordering::SeqCst) {
                sleep(POLL).await;
            }
            let inner = inner.await?;
            network.count("snapshots begun");
            network.note(format!("snapshot from n{from} to n{me}"));
            let break_after = network.break_snapshot_after.lock().take();
            Ok(Box::new(Sink { inner: Some(inner), network, from, me, chunks: 0, break_after }) as Box<_>)
        }
        .boxed()
    }

    fn peer_lost(&self, peer: NodeId) {
        self.store.peer_lost(peer);
    }

    fn peer_found(&self, peer: NodeId) {
        self.store.peer_found(peer);
    }

    fn address_changed(&self, node: NodeAddress) {
        self.store.address_changed(node);
    }
}

/// A snapshot on its way.
struct Sink {
    inner: Option<Box<dyn SnapshotSink>>,
    network: Arc<Network>,
    from: u64,
    me: u64,
    chunks: u64,
    break_after: Option<u64>,
}

impl Sink {
    async fn go_on(&mut self) -> Result<(), Failure> {
        let broken = self.network.weather.lock().snapshots_broken;
        let breaks = self.break_after.is_some_and(|after| self.chunks >= after);
        let passes = self.network.passes(self.from, self.me).await;
        if passes && !breaks && !self.network.chance(broken) {
            return Ok(());
        }
        if breaks {
            self.network.holds_snapshots.store(true, Ordering::SeqCst);
        }
        self.network.count("snapshots broken");
        self.network.note(format!("broken off after {} chunks", self.chunks));
        Err(Failure::stopping("the way of the snapshot"))
    }
}

impl SnapshotSink for Sink {
    fn records(&mut self, chunk: Bytes) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            self.go_on().await?;
            self.chunks += 1;
            match &mut self.inner {
                Some(inner) => inner.records(chunk).await,
                None => Err(Failure::internal("the snapshot is finished")),
            }
        }
        .boxed()
    }

    fn finish(
        mut self: Box<Self>,
        end: pb::SnapshotEnd,
    ) -> BoxFuture<'static, Result<pb::SnapshotReply, Failure>> {
        async move {
            self.go_on().await?;
            let inner = self.inner.take().ok_or_else(|| Failure::internal("the snapshot is finished"))?;
            let reply = inner.finish(end).await?;
            self.network.count("snapshots installed");
            self.network.note(format!("installed at n{}", self.me));
            Ok(reply)
        }
        .boxed()
    }
}
