//! From frames to proposals.
//!
//! A frame with many operations becomes one proposal as it is. Small frames of a group are merged:
//! they wait while two proposals of the group are on their way and then go together. No timer is
//! involved; a batch is what came in while the one before was busy.

use crate::clock;
use crate::failure::Failure;
use crate::group::metrics::GroupMetrics;
use crate::group::raft::{Applied, Commands, Responder, TypeConfig};
use crate::group::replica::Replica;
use crate::group::reply::{Answer, Deadlines, Reply, ReplySlot};
use crate::group::state_machine::StateMachine;
use crate::ids::GroupId;
use bytes::{Bytes, BytesMut};
use dtkv_client::packed::{self, Kind, PackedResult};
use dtkv_client::v1::failure::Reason;
use futures::FutureExt;
use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// From this many operations or bytes on, a frame is a proposal of its own.
const DIRECT_OPS_MIN: u32 = 32;
const DIRECT_BYTES_MIN: usize = 16 << 10;
/// Bounds of a merged proposal.
const MERGED_OPS_MAX: u32 = 1024;
const MERGED_BYTES_MAX: usize = 256 << 10;
/// While so many proposals are on their way, small frames wait for company.
const IN_FLIGHT_BEFORE_MERGE: u32 = 2;

/// Packed writes of one caller, already checked.
pub struct WriteFrame {
    /// Packed operations.
    pub ops: Bytes,
    /// How many.
    pub count: u32,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Gets the answer.
    pub reply: Reply,
}

struct Waiting {
    ops: Bytes,
    count: u32,
    reply: ReplySlot,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    in_flight: u32,
    /// How many callers are waking the group; frames wait for them.
    paused: u32,
    closed: bool,
}

/// The proposals of one replica.
pub struct Proposals {
    group: GroupId,
    raft: openraft::Raft<TypeConfig, StateMachine>,
    replica: Arc<Replica>,
    queue: Mutex<Queue>,
    deadlines: Deadlines,
    metrics: GroupMetrics,
}

impl Proposals {
    /// For this replica.
    pub fn new(
        group: GroupId,
        raft: openraft::Raft<TypeConfig, StateMachine>,
        replica: Arc<Replica>,
        metrics: GroupMetrics,
    ) -> Proposals {
        Proposals { group, raft, replica, queue: Mutex::default(), deadlines: Deadlines::default(), metrics }
    }

    /// Takes a frame; never blocks. The reply is called exactly once, with failures too.
    pub fn propose(self: &Arc<Self>, frame: WriteFrame) {
        let reply = ReplySlot::new(frame.reply);
        self.deadlines.add(frame.deadline, reply.clone());
        let waiting = Waiting { ops: frame.ops, count: frame.count, reply };
        let is_large = waiting.count >= DIRECT_OPS_MIN || waiting.ops.len() >= DIRECT_BYTES_MIN;
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            return waiting.reply.send(Err(Failure::stopping(self.group)));
        }
        // Frames of one caller keep their order: a large frame overtakes nobody.
        if is_large && queue.waiting.is_empty() && queue.paused == 0 {
            queue.in_flight += 1;
            drop(queue);
            return self.submit(vec![waiting]);
        }
        queue.waiting.push_back(waiting);
        let batch = take_batch(&mut queue);
        drop(queue);
        if let Some(batch) = batch {
            self.submit(batch);
        }
    }

    /// Lets frames wait until as many `resume` follow.
    pub fn pause(&self) {
        self.queue.lock().paused += 1;
    }

    /// Ends one `pause`.
    pub fn resume(self: &Arc<Self>) {
        let batch = {
            let mut queue = self.queue.lock();
            queue.paused = queue.paused.saturating_sub(1);
            take_batch(&mut queue)
        };
        if let Some(batch) = batch {
            self.submit(batch);
        }
    }

    /// Answers what is past its deadline; returns how many.
    pub fn expire(&self, now: Instant) -> usize {
        self.deadlines.expire(now, self.group)
    }

    /// Proposals on their way, and frames that wait.
    pub fn in_flight(&self) -> usize {
        let queue = self.queue.lock();
        queue.in_flight as usize + queue.waiting.len()
    }

    /// Refuses new frames and answers those that still wait.
    pub fn close(&self) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.waiting)
        };
        for frame in waiting {
            frame.reply.send(Err(Failure::stopping(self.group)));
        }
    }

    /// After openraft has ended: whatever has no answer by now never gets one.
    pub fn abandon(&self) {
        for reply in self.deadlines.drain() {
            let failure = Failure::stopping(self.group).unknown();
            reply.send(Err(failure));
        }
    }

    fn submit(self: &Arc<Self>, frames: Vec<Waiting>) {
        let (ops, count) = merge(&frames);
        let (time_ms, clock_ms) = (clock::wall_ms(), self.replica.clock_ms());
        let commands = Commands { time_ms, clock_ms, count, ops };
        self.metrics.proposals.inc();
        self.metrics.commands.inc_by(u64::from(count));
        let completion = Completion { proposals: self.clone(), frames, proposed_at: clock::now() };
        let responder = Responder(Box::new(move |result| completion.complete(result)));
        let send = self.raft.client_write_ff(commands, Some(responder));
        // The channel into Raft has room for far more proposals than admission lets in, so the send
        // is done at the first poll. Tokio's cooperative budget must not make it look full.
        match tokio::task::unconstrained(send).now_or_never() {
            Some(Ok(())) => {}
            Some(Err(_)) | None => tracing::warn!(group = %self.group, "proposal was not taken by Raft"),
        }
    }

    fn proposal_done(self: &Arc<Self>) {
        let batch = {
            let mut queue = self.queue.lock();
            queue.in_flight = queue.in_flight.saturating_sub(1);
            take_batch(&mut queue)
        };
        if let Some(batch) = batch {
            self.submit(batch);
        }
    }
}

/// Takes the next proposal's frames, when one may start.
fn take_batch(queue: &mut Queue) -> Option<Vec<Waiting>> {
    if queue.in_flight >= IN_FLIGHT_BEFORE_MERGE || queue.waiting.is_empty() || queue.paused > 0 {
        return None;
    }
    let (mut count, mut bytes, mut frames) = (0, 0, 0);
    for frame in &queue.waiting {
        let fits = count + frame.count <= MERGED_OPS_MAX && bytes + frame.ops.len() <= MERGED_BYTES_MAX;
        if frames > 0 && !fits {
            break;
        }
        count += frame.count;
        bytes += frame.ops.len();
        frames += 1;
    }
    queue.in_flight += 1;
    Some(queue.waiting.drain(..frames).collect())
}

fn merge(frames: &[Waiting]) -> (Bytes, u32) {
    if let [single] = frames {
        return (single.ops.clone(), single.count);
    }
    let mut ops = BytesMut::with_capacity(frames.iter().map(|frame| frame.ops.len()).sum());
    for frame in frames {
        ops.extend_from_slice(&frame.ops);
    }
    (ops.freeze(), frames.iter().map(|frame| frame.count).sum())
}

/// Gives every frame of a proposal its answer. Dropped without a result (Raft is gone, or did not
/// take the proposal), it says so.
struct Completion {
    proposals: Arc<Proposals>,
    frames: Vec<Waiting>,
    proposed_at: Instant,
}

impl Completion {
    fn complete(mut self, result: ClientWriteResult<TypeConfig>) {
        let frames = std::mem::take(&mut self.frames);
        match result {
            Ok(response) => {
                self.proposals.metrics.proposal_seconds.observe(self.proposed_at.elapsed().as_secs_f64());
                answer_frames(frames, response.data);
            }
            Err(error) => {
                let failure = failure_of(self.proposals.group, &error);
                for frame in frames {
                    frame.reply.send(Err(failure.clone()));
                }
            }
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        for frame in self.frames.drain(..) {
            frame.reply.send(Err(Failure::stopping(self.proposals.group).unknown()));
        }
        self.proposals.proposal_done();
    }
}

fn answer_frames(frames: Vec<Waiting>, applied: Applied) {
    if let [frame] = &frames[..] {
        let index = applied.index_at(0);
        return frame.reply.send(Ok(Answer { index, results: applied.results, lag_ms: None }));
    }
    let mut results = packed::results(&applied.results);
    for frame in frames {
        let from = results.offset();
        let answer = skip_results(&mut results, &frame.ops)
            .map(|()| Answer {
                index: applied.index_at(from),
                results: applied.results.slice(from..results.offset()),
                lag_ms: None,
            })
            .ok_or_else(|| Failure::internal("the entry has fewer results than operations").unknown());
        frame.reply.send(answer);
    }
}

fn skip_results(results: &mut packed::Results<'_>, ops: &[u8]) -> Option<()> {
    for op in packed::ops(ops) {
        let kind = op.ok()?.kind;
        if kind != Kind::Scope {
            let _: PackedResult<'_> = results.next(kind).ok()?;
        }
    }
    Some(())
}

/// What a refused proposal means to its caller.
pub fn failure_of(group: GroupId, error: &ClientWriteError<TypeConfig>) -> Failure {
    match error {
        ClientWriteError::ForwardToLeader(forward) => match forward.reason {
            ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                Failure::not_leader(group, forward.leader_id)
            }
            ForwardReason::LeaseExpired => Failure {
                retry_after_ms: Some(100),
                ..Failure::new(
                    Reason::GroupNotReady,
                    format!("{group}: the leader has lost touch with its quorum"),
                )
            },
        },
        ClientWriteError::LogEntryDiscarded(forward) => Failure {
            leader: forward.leader_id,
            ..Failure::new(
                Reason::NotLeader,
                format!("{group}: leadership changed while the write was on its way"),
            )
        }
        .unknown(),
        ClientWriteError::ChangeMembershipError(error) => Failure::precondition(format!("{group}: {error}")),
        ClientWriteError::PreconditionFailed(error) => Failure::precondition(format!("{group}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Repeat;
    use dtkv_client::packed::Op;
    use dtkv_client::packed::scope::Scope;

    fn waiting(count: u32, bytes: usize) -> Waiting {
        Waiting { ops: Bytes::from(vec![0; bytes]), count, reply: ReplySlot::new(Box::new(|_| {})) }
    }

    #[test]
    fn small_frames_wait_while_two_proposals_are_on_their_way() {
        let mut queue = Queue { in_flight: 2, ..Queue::default() };
        queue.waiting.push_back(waiting(1, 10));
        assert!(take_batch(&mut queue).is_none());
        queue.in_flight = 1;
        assert_eq!(take_batch(&mut queue).map(|batch| batch.len()), Some(1));
        assert_eq!(queue.in_flight, 2);
    }

    #[test]
    fn every_frame_of_an_entry_gets_its_own_results_and_index() {
        let (send, receive) = std::sync::mpsc::channel();
        let frame = |number: usize, sequence: Option<u64>, count: u16| {
            let mut ops = Vec::new();
            let scope = |sequence| Scope {
                client_id: [1; 16],
                sequence,
                acknowledged_below: 0,
                operations: count,
                is_retry: false,
            };
            sequence.map(scope).iter().for_each(|scope| scope.pack(&mut ops));
            (0..count).for_each(|_| Op::new(Kind::Put, b"k", b"v").pack(&mut ops));
            let send = send.clone();
            let reply: Reply = Box::new(move |answer| drop(send.send((number, answer))));
            Waiting { ops: ops.into(), count: count.into(), reply: ReplySlot::new(reply) }
        };
        let frames = vec![frame(0, None, 1), frame(1, Some(4), 2), frame(2, Some(5), 1)];
        let repeats = vec![Repeat { offset: 1, index: 7 }];
        let results = Bytes::from_static(&[0, 0, 2, 2]);
        answer_frames(frames, Applied { index: 9, results: results.clone(), repeats });
        let alone = vec![frame(3, Some(6), 1)];
        let repeats = vec![Repeat { offset: 0, index: 8 }];
        answer_frames(alone, Applied { index: 9, results: results.slice(..1), repeats });
        let answers: Vec<_> = receive.try_iter().collect();
        let expected: [(u64, &[u8]); 4] = [(9, &[0]), (7, &[0, 2]), (9, &[2]), (8, &[0])];
        for ((number, answer), (index, results)) in answers.into_iter().zip(expected) {
            let answer = answer.expect("an answer");
            assert_eq!((answer.index, &answer.results[..]), (index, results), "frame {number}");
        }
    }

    #[test]
    fn a_merged_proposal_is_bounded_in_operations_and_bytes() {
        let mut queue = Queue::default();
        queue.waiting.extend([waiting(1000, 10), waiting(30, 10), waiting(1, 10)]);
        assert_eq!(take_batch(&mut queue).map(|batch| batch.len()), Some(1));
        let mut queue = Queue::default();
        queue.waiting.extend([waiting(1, MERGED_BYTES_MAX + 1), waiting(1, 10)]);
        assert_eq!(
            take_batch(&mut queue).map(|batch| batch.len()),
            Some(1),
            "a frame over the bound goes alone"
        );
    }
}
