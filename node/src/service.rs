//! What clients, administrators and people talk to. Thin: decode, check limits, delegate, convert.
//!
//! `pipe`, `kv` and `txn` take requests in, `watch` tells of changes, `admission` decides what goes on,
//! `scope` reads who it comes from, `status` turns failures into gRPC statuses; `admin` and `health` are for
//! operators, `http` and `page` for people and collectors; `server` owns the clients' port.

pub mod admin;
pub mod admission;
pub mod group_metrics;
pub mod health;
pub mod http;
pub mod kv;
pub mod metrics;
pub mod page;
pub mod pipe;
mod request;
pub mod scope;
pub mod server;
pub mod status;
mod txn;
pub mod watch;

use crate::clock;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::group::Group;
use crate::group::propose::WriteFrame;
use crate::group::read::ReadFrame;
use crate::group::reply::{Answer, Reply};
use crate::ids::GroupId;
use crate::store::Store;
use crate::watch::WatchMetrics;
use admission::{Access, Budget, Checked, Hold, Partly};
use bytes::Bytes;
use dtkv_client::v1::{self, Consistency};
use metrics::ServiceMetrics;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use watch::WatchLimits;

/// What the service takes on.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Largest request.
    pub request_bytes_max: usize,
    /// Requests and answers in flight on the whole node.
    pub inflight_bytes_max: usize,
    /// Writes that wait for the disk.
    pub queue_bytes_max: usize,
    /// Frames in flight on one stream.
    pub frames_per_stream_max: u32,
    /// Calls at once on one connection.
    pub streams_per_connection_max: u32,
    /// Client connections.
    pub connections_max: u32,
    /// Client connections in their handshake.
    pub handshakes_max: u32,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Deadline of a request that names none.
    pub request_timeout: Duration,
    /// Watches.
    pub watch: WatchLimits,
    /// The node's counters of watches.
    pub watch_metrics: WatchMetrics,
}

struct Inner {
    store: Store,
    engine: Engine,
    options: ServiceOptions,
    budget: Arc<Budget>,
    metrics: ServiceMetrics,
    /// The node is about to go, but still answers.
    stopping: CancellationToken,
    /// It answers no more.
    stop: CancellationToken,
}

/// The service of one node. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

/// Packed operations for one group, as they came in.
struct Submission {
    group: GroupId,
    ops: Bytes,
    count: u32,
    access: Access,
    consistency: Consistency,
    deadline: Instant,
}

/// What a request costs besides its operations: its place in every queue.
const REQUEST_OVERHEAD_BYTES: usize = 256;

impl Service {
    /// A service on this store.
    pub fn new(store: Store, engine: Engine, options: ServiceOptions, metrics: ServiceMetrics) -> Service {
        let budget = Budget::new(options.inflight_bytes_max);
        let (stopping, stop) = (CancellationToken::new(), CancellationToken::new());
        Service(Arc::new(Inner { store, engine, options, budget, metrics, stopping, stop }))
    }

    /// Says that this node is not ready any more, and sends those who watch elsewhere; requests are
    /// still answered.
    pub fn begin_stop(&self) {
        self.0.stopping.cancel();
    }

    /// Ends every stream and the listener.
    pub fn stop(&self) {
        self.begin_stop();
        self.0.stop.cancel();
    }

    /// Whether every group of this node serves and the node is not stopping.
    pub fn is_ready(&self) -> bool {
        !self.0.stopping.is_cancelled() && self.0.store.is_ready()
    }

    /// Sends operations on their way. `reply` is called exactly once, and what it gets to hold is
    /// the room that the answer takes.
    fn submit<F>(&self, submission: Submission, reply: F)
    where
        F: FnOnce(Result<Answer, Failure>, Option<Hold>) + Send + 'static,
    {
        match self.admit(&submission) {
            Ok((checked, group, hold)) => forward(submission, checked, &group, hold, reply),
            Err(failure) => reply(Err(failure), None),
        }
    }

    fn admit(&self, submission: &Submission) -> Result<(Checked, Group, Hold), Failure> {
        let group = self.0.store.group(submission.group)?;
        let checked = admission::check(&submission.ops, submission.count, submission.access)?;
        if submission.access == Access::Write {
            self.check_disk(&submission.ops)?;
        }
        let hold = self.0.budget.take(submission.ops.len() + REQUEST_OVERHEAD_BYTES)?;
        Ok((checked, group, hold))
    }

    /// Refuses writes while too much waits for the disk, and those that grow while it is nearly full.
    fn check_disk(&self, ops: &[u8]) -> Result<(), Failure> {
        if self.0.engine.is_disk_low() && admission::grows(ops) {
            self.0.store.check_space()?;
        }
        let (waiting, limit) = (self.0.engine.queue_bytes(), self.0.options.queue_bytes_max);
        if waiting <= limit {
            return Ok(());
        }
        let message = format!("{waiting} bytes wait for the disk of this node, the limit is {limit}");
        Err(Failure::overloaded(message, admission::RETRY_AFTER_MS))
    }

    /// As `submit`, for callers that wait.
    async fn ask(&self, submission: Submission) -> Result<(Answer, Option<Hold>), Failure> {
        let (send, receive) = tokio::sync::oneshot::channel();
        self.submit(submission, move |answer, hold| {
            // The caller may be gone.
            let _ = send.send(answer.map(|answer| (answer, hold)));
        });
        let dropped = || Failure::internal("the request was dropped without an answer").unknown();
        receive.await.unwrap_or_else(|_| Err(dropped()))
    }

    fn failure(&self, failure: Failure) -> v1::Failure {
        status::to_v1(failure, |node| self.0.store.address(node))
    }

    fn deadline(&self, timeout: Option<Duration>) -> Instant {
        clock::now() + timeout.unwrap_or(self.0.options.request_timeout).min(TIMEOUT_MAX)
    }
}

/// Longest time that a request may stay.
const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

fn forward<F>(submission: Submission, checked: Checked, group: &Group, hold: Hold, reply: F)
where
    F: FnOnce(Result<Answer, Failure>, Option<Hold>) + Send + 'static,
{
    let Submission { ops, count, access, consistency, deadline, .. } = submission;
    let give = move |answer: Result<Answer, Failure>| {
        let mut hold = hold;
        if let Ok(answer) = &answer {
            hold.grow(answer.results.len());
        }
        reply(answer, Some(hold));
    };
    let (ops, count, reply): (Bytes, u32, Reply) = match checked {
        Checked::All => (ops, count, Box::new(give)),
        Checked::Partly(partly) if partly.count == 0 => return give(spliced(&partly, Answer::default())),
        Checked::Partly(partly) => {
            let (ops, count) = (partly.ops.clone(), partly.count);
            (ops, count, Box::new(move |answer| give(answer.and_then(|answer| spliced(&partly, answer)))))
        }
    };
    match access {
        Access::Write => group.propose(WriteFrame { ops, count, deadline, reply }),
        Access::Read => group.read(ReadFrame { ops, count, consistency, deadline, reply }),
    }
}

fn spliced(partly: &Partly, answer: Answer) -> Result<Answer, Failure> {
    match partly.splice(&answer.results) {
        Ok(results) => Ok(Answer { results, ..answer }),
        Err(malformed) => Err(Failure::internal(malformed.to_string()).unknown()),
    }
}
