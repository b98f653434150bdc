//! Clients that read and write all the time and remember what they were told, for the checker of
//! the end-to-end tests.

use super::cluster::Cluster;
use crate::failure::Failure;
use crate::group::reply::Answer as Told;
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use dtkv_client::v1::{Code, Consistency};
use dtkv_e2e::checker;
use dtkv_e2e::history::{Action, Answer, History, Key, Operation, Outcome};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const KEYS: Key = 4;
const PATIENCE: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_millis(4);

/// What the clients of a cluster were told.
pub struct Clients {
    cluster: Arc<Cluster>,
    origin: Instant,
    next_value: AtomicU64,
    history: Mutex<History>,
    stop: AtomicBool,
}

fn name(key: Key) -> String {
    format!("register{key}")
}

impl Clients {
    pub fn new(cluster: Arc<Cluster>) -> Arc<Clients> {
        let (next_value, history) = (AtomicU64::new(1), Mutex::default());
        Arc::new(Clients {
            cluster,
            origin: Instant::now(),
            next_value,
            history,
            stop: AtomicBool::new(false),
        })
    }

    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Lets everybody finish what they have begun.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Works until it is told to stop.
    pub async fn work(self: Arc<Self>, client: u32, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed ^ u64::from(client) << 32);
        let mut leader = 1;
        while !self.stop.load(Ordering::SeqCst) {
            let running = self.cluster.running();
            if running.is_empty() || rng.random_bool(0.1) {
                leader = *rng_pick(&mut rng, &self.cluster.ids());
            }
            let (key, action) = (rng.random_range(0..KEYS), self.choose(&mut rng));
            let lease = if rng.random_bool(0.5) { Consistency::Lease } else { Consistency::Linearizable };
            if let Err(failure) = self.operate(client, leader, key, action, lease).await {
                leader =
                    failure.leader.map_or_else(|| *rng_pick(&mut rng, &self.cluster.ids()), |node| node.0);
            }
            sleep(PAUSE).await;
        }
    }

    fn choose(&self, rng: &mut SmallRng) -> Action {
        let value = self.next_value.fetch_add(1, Ordering::Relaxed);
        let recent = value.saturating_sub(rng.random_range(1..12));
        match rng.random_range(0..10) {
            0..5 => Action::Get,
            5..8 => Action::Put(value),
            8 => Action::Remove,
            _ => Action::CompareAndSet { expect: Some(recent), new: Some(value) },
        }
    }

    /// One operation at one node.
    ///
    /// # Errors
    /// As the node says; what may have happened is in the history.
    pub async fn operate(
        &self,
        client: u32,
        node: u64,
        key: Key,
        action: Action,
        consistency: Consistency,
    ) -> Result<(), Failure> {
        let invoked_ns = self.now_ns();
        let told = self.perform(node, key, action, consistency).await;
        let at_ns = self.now_ns();
        let answer = match &told {
            Ok((told, outcome)) => Some(Answer { at_ns, index: Some(told.index), outcome: *outcome }),
            Err(failure) if !failure.outcome_unknown || !action.is_write() => return told.map(|_| ()),
            Err(_) => None,
        };
        self.history.lock().operations.push(Operation { client, key, action, invoked_ns, answer });
        told.map(|_| ())
    }

    async fn perform(
        &self,
        node: u64,
        key: Key,
        action: Action,
        consistency: Consistency,
    ) -> Result<(Told, Outcome), Failure> {
        let name = name(key);
        let text = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
        let (value, expect) = match action {
            Action::Get => return self.get(node, &name, consistency).await,
            Action::CompareAndSet { expect, .. } => (text(action.written()), expect.map(|e| text(Some(e)))),
            _ => (text(action.written()), None),
        };
        let kind = match action {
            Action::Put(_) | Action::Get => Kind::Put,
            Action::Remove => Kind::Remove,
            Action::CompareAndSet { .. } => Kind::CompareAndSet,
        };
        let mut op = Op::new(kind, name.as_bytes(), value.as_bytes());
        op.expect = expect.as_ref().map(String::as_bytes);
        op.has_new_value = kind == Kind::CompareAndSet && action.written().is_some();
        let told = self.cluster.write(node, op, PATIENCE).await?;
        let code = match packed::results(&told.results).next(kind) {
            Ok(PackedResult::Code(code)) => code,
            other => panic!("{other:?}"),
        };
        Ok((told, outcome(kind, code)))
    }

    async fn get(&self, node: u64, name: &str, consistency: Consistency) -> Result<(Told, Outcome), Failure> {
        let (told, value) = self.cluster.read(node, name, consistency, PATIENCE).await?;
        let update_index = match packed::results(&told.results).next(Kind::Get) {
            Ok(PackedResult::Node(node)) => Some(node.update_index),
            _ => None,
        };
        let value = value.map(|bytes| String::from_utf8_lossy(&bytes).parse().expect("a number"));
        Ok((told, Outcome::Read { value, update_index }))
    }

    /// Reads every key once more, as a client that nobody was.
    pub async fn read_all(&self) {
        for key in 0..KEYS {
            loop {
                let leader = self.cluster.leader().await;
                if self.operate(u32::MAX, leader, key, Action::Get, Consistency::Linearizable).await.is_ok() {
                    break;
                }
            }
        }
    }

    /// What the checker says, and how many operations had an answer.
    pub fn verdict(&self) -> (Option<String>, usize) {
        let history = self.history.lock().clone();
        (checker::check(&history).err().map(|violation| violation.to_string()), history.answered())
    }
}

fn outcome(kind: Kind, code: Code) -> Outcome {
    match (kind, code) {
        (Kind::Put, Code::Success) => Outcome::Put { created: true },
        (Kind::Put, Code::SuccessOverwrite) => Outcome::Put { created: false },
        (Kind::Remove, Code::Success) => Outcome::Removed { existed: true },
        (Kind::Remove, Code::NotFound) => Outcome::Removed { existed: false },
        (Kind::CompareAndSet, Code::Success | Code::SuccessOverwrite) => {
            Outcome::CompareAndSet { swapped: true }
        }
        (Kind::CompareAndSet, Code::CasMismatch | Code::NotFound) => {
            Outcome::CompareAndSet { swapped: false }
        }
        other => panic!("no right answer: {other:?}"),
    }
}

/// One of them.
pub fn rng_pick<'a, T>(rng: &mut SmallRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}
