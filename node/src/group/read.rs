//! Reads: by read index (one round for all that wait), by lease, or stale.

use crate::clock;
use crate::failure::Failure;
use crate::group::contact::Contact;
use crate::group::metrics::GroupMetrics;
use crate::group::raft::TypeConfig;
use crate::group::replica::Replica;
use crate::group::reply::{Answer, Reply};
use crate::group::state_machine::StateMachine;
use crate::ids::GroupId;
use crate::planted::{self, Fault};
use bytes::Bytes;
use dtkv_client::limits::ANSWER_BYTES_MAX;
use dtkv_client::packed;
use dtkv_client::v1::Consistency;
use dtkv_client::v1::failure::Reason;
use openraft::Instant as _;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Packed gets of one caller, already checked.
pub struct ReadFrame {
    /// Packed operations.
    pub ops: Bytes,
    /// How many.
    pub count: u32,
    /// How fresh the answer must be.
    pub consistency: Consistency,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Gets the answer.
    pub reply: Reply,
}

/// Called when the tree may be read, or with the reason why not.
type Grant = Box<dyn FnOnce(Result<(), Failure>) + Send>;

#[derive(Default)]
struct Queue {
    waiting: Vec<(Instant, Grant)>,
    is_round_running: bool,
}

/// The reads of one replica.
pub struct Reads {
    group: GroupId,
    raft: openraft::Raft<TypeConfig, StateMachine>,
    replica: Arc<Replica>,
    contact: Arc<Contact>,
    queue: Mutex<Queue>,
    lease: Duration,
    /// The term in which a read round has succeeded here: from then on this leader has applied
    /// everything that earlier leaders committed, and its lease alone is enough.
    confirmed_term: AtomicU64,
    metrics: GroupMetrics,
}

impl Reads {
    /// `lease` is how long after a quorum's last acknowledgement a leader may answer alone: less
    /// than the shortest time after which another node can be elected.
    pub fn new(
        group: GroupId,
        raft: openraft::Raft<TypeConfig, StateMachine>,
        replica: Arc<Replica>,
        contact: Arc<Contact>,
        lease: Duration,
        metrics: GroupMetrics,
    ) -> Reads {
        let confirmed_term = AtomicU64::new(0);
        Reads { group, raft, replica, contact, queue: Mutex::default(), lease, confirmed_term, metrics }
    }

    /// Takes a frame; never blocks for long. The reply is called exactly once.
    pub fn read(self: &Arc<Self>, frame: ReadFrame) {
        match frame.consistency {
            Consistency::Stale => {
                let lag_ms = self.lag_ms();
                let answer = answer_gets(&self.replica, &frame.ops);
                (frame.reply)(answer.map(|answer| Answer { lag_ms, ..answer }));
            }
            Consistency::Lease if self.holds_lease() => {
                planted::pause();
                let answer = answer_gets(&self.replica, &frame.ops);
                // A pause between the check and the read may have outlived the lease.
                if self.holds_lease() || planted::has(Fault::LeaseNotCheckedAgain) {
                    return (frame.reply)(answer);
                }
                self.read_by_index(frame);
            }
            Consistency::Lease | Consistency::Linearizable => self.read_by_index(frame),
        }
    }

    fn read_by_index(self: &Arc<Self>, frame: ReadFrame) {
        let replica = self.replica.clone();
        let grant: Grant = Box::new(move |granted| {
            let answer = granted.and_then(|()| answer_gets(&replica, &frame.ops));
            (frame.reply)(answer);
        });
        self.wait_for_round(frame.deadline, grant);
    }

    /// Waits until the tree may be read at this consistency; returns the lag of a stale read.
    ///
    /// # Errors
    /// When this replica cannot answer; nothing happened.
    pub async fn permit(
        self: &Arc<Self>,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Option<u64>, Failure> {
        match consistency {
            Consistency::Stale => return Ok(self.lag_ms()),
            Consistency::Lease if self.holds_lease() => return Ok(None),
            Consistency::Lease | Consistency::Linearizable => {}
        }
        let (send, receive) = tokio::sync::oneshot::channel();
        self.wait_for_round(deadline, Box::new(move |granted| drop(send.send(granted))));
        receive.await.unwrap_or_else(|_| Err(Failure::stopping(self.group))).map(|()| None)
    }

    /// Whether this replica leads and a quorum has confirmed it recently enough.
    pub fn holds_lease(&self) -> bool {
        let Ok(leader) = self.raft.as_leader() else { return false };
        if leader.leader_id().term != self.confirmed_term.load(Ordering::Acquire) {
            return false;
        }
        leader.last_quorum_acked().is_some_and(|at| at.elapsed() < self.lease)
    }

    /// What a stale read tells of its age; None when there never was any contact.
    fn lag_ms(&self) -> Option<u64> {
        self.contact.silence().map(|silence| silence.as_millis() as u64)
    }

    fn wait_for_round(self: &Arc<Self>, deadline: Instant, grant: Grant) {
        let starts = {
            let mut queue = self.queue.lock();
            queue.waiting.push((deadline, grant));
            !std::mem::replace(&mut queue.is_round_running, true)
        };
        if starts {
            tokio::spawn(self.clone().run_rounds());
        }
    }

    /// One round after the other, each for everything that waits when it begins.
    async fn run_rounds(self: Arc<Self>) {
        loop {
            let waiting = {
                let mut queue = self.queue.lock();
                if queue.waiting.is_empty() {
                    queue.is_round_running = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let deadline = waiting.iter().map(|(deadline, _)| *deadline).max().unwrap_or_else(clock::now);
            let granted = self.round(deadline).await;
            for (_, grant) in waiting {
                grant(granted.clone());
            }
        }
    }

    async fn round(&self, deadline: Instant) -> Result<(), Failure> {
        self.metrics.read_rounds.inc();
        if planted::has(Fault::ReadWithoutQuorum) {
            return Ok(());
        }
        let round = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout_at(deadline.into(), round).await {
            Ok(Ok(read_log_id)) => {
                // The read log id stands in the term of the leader that gave it.
                let term = read_log_id.log_id().committed_leader_id().term;
                self.confirmed_term.store(term, Ordering::Release);
                Ok(())
            }
            Ok(Err(error)) => Err(self.failure_of(&error)),
            Err(_) => Err(Failure::new(
                Reason::Timeout,
                format!("{}: no quorum confirmed the leader before the deadline", self.group),
            )),
        }
    }

    fn failure_of(&self, error: &RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> Failure {
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                Failure::not_leader(self.group, forward.leader_id)
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => Failure {
                retry_after_ms: Some(100),
                ..Failure::new(
                    Reason::GroupNotReady,
                    format!("{}: the leader cannot reach a quorum", self.group),
                )
            },
            RaftError::Fatal(_) => Failure::stopping(self.group),
        }
    }
}

/// Answers packed gets from the tree. The size of the answer is known only once it is built, so it is
/// held to its limit meanwhile.
fn answer_gets(replica: &Replica, ops: &[u8]) -> Result<Answer, Failure> {
    let clock_ms = replica.clock_ms();
    let state = replica.state();
    let mut results = Vec::with_capacity((ops.len() * 4).min(ANSWER_BYTES_MAX));
    for (at, op) in packed::ops(ops).flatten().enumerate() {
        state.machine.tree.pack_get(op.key, clock_ms, &mut results);
        if results.len() > ANSWER_BYTES_MAX {
            return Err(Failure::invalid(format!(
                "the answer is too large: {} bytes with key {} of the request, the limit is {ANSWER_BYTES_MAX}; ask for fewer keys at once",
                results.len(),
                at + 1
            )));
        }
    }
    Ok(Answer { index: state.applied_index(), results: results.into(), lag_ms: None })
}
