//! A frame: operations that travel together, and who waits for their answers.

use crate::answer::{Node, OpAnswer, OpResult};
use crate::client::Done;
use crate::error::Error;
use crate::lane::{LaneKind, of_kind};
use crate::packed::scope::Scope;
use crate::packed::{self, Kind, Malformed, PackedResult, Results};
use crate::v1::failure::Reason;
use crate::v1::{Code, FrameReply};
use bytes::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A frame of writes that was sent this long ago is not sent again: the store may forget its number
/// later without a trace.
const RETRY_AGE_MAX: Duration = Duration::from_millis(crate::limits::SESSION_IDLE_MS / 2);

/// Answers of a frame's many gets that belong together.
#[derive(Debug)]
pub(crate) struct ManyResults {
    pub index: u64,
    pub lag_ms: Option<u64>,
    pub answers: Vec<OpAnswer>,
}

/// Who gets the answer.
pub(crate) enum Waiter {
    Call(oneshot::Sender<Result<OpResult, Error>>),
    Done(Done),
    /// So many gets, answered together.
    Many(u32, oneshot::Sender<Result<ManyResults, Error>>),
}

impl Waiter {
    fn ops(&self) -> u32 {
        match self {
            Waiter::Call(_) | Waiter::Done(_) => 1,
            Waiter::Many(count, _) => *count,
        }
    }

    pub fn fail(self, error: Error) {
        match self {
            Waiter::Call(caller) => drop(caller.send(Err(error))),
            Waiter::Many(_, caller) => drop(caller.send(Err(error))),
            Waiter::Done(done) => run(done, Err(error)),
        }
    }
}

/// A callback that panics must not take the stream of everybody else down.
fn run(done: Done, result: Result<OpResult, Error>) {
    if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!("a completion callback panicked; its operation counts as answered");
    }
}

pub(crate) struct Entry {
    pub kind: Kind,
    pub waiter: Waiter,
}

/// The packed operations of a frame.
enum Ops {
    /// Never sent; when the frame gets a scope, room for it is left in front.
    Packed(Vec<u8>),
    Sent(Bytes),
}

/// Operations that travel together.
pub(crate) struct Frame {
    ops: Ops,
    pub count: u32,
    /// Room that it takes of the client's bound of bytes.
    pub units: usize,
    pub deadline: Instant,
    pub attempts: u32,
    /// It counts among the small frames of its lane that are unanswered.
    pub is_small: bool,
    pub timeout: Duration,
    /// Place in the order in which frames were closed.
    pub place: u64,
    /// Number among the client's writes; None before it is first sent, and for reads.
    pub sequence: Option<u64>,
    entries: Vec<Entry>,
    last_failure: Option<Error>,
    /// Why it is not known whether it happened; it was sent before, then.
    unknown: Option<Error>,
}

/// What a frame begins with.
pub(crate) struct Contents {
    pub ops: Vec<u8>,
    pub entries: Vec<Entry>,
    pub count: u32,
    pub units: usize,
    pub timeout: Duration,
    pub deadline: Instant,
}

impl Frame {
    pub fn new(contents: Contents, place: u64) -> Frame {
        Frame {
            ops: Ops::Packed(contents.ops),
            count: contents.count,
            units: contents.units,
            deadline: contents.deadline,
            attempts: 0,
            is_small: false,
            timeout: contents.timeout,
            place,
            sequence: None,
            entries: contents.entries,
            last_failure: None,
            unknown: None,
        }
    }

    /// The packed operations as they were last sent.
    pub fn ops(&self) -> Bytes {
        match &self.ops {
            Ops::Packed(ops) => Bytes::copy_from_slice(ops),
            Ops::Sent(ops) => ops.clone(),
        }
    }

    /// Makes it ready to be sent, with this scope if its writes shall happen once.
    pub fn seal(&mut self, numbers: Option<([u8; 16], u64)>) {
        let is_retry = self.unknown.is_some();
        let mut bytes = match std::mem::replace(&mut self.ops, Ops::Packed(Vec::new())) {
            Ops::Packed(bytes) => bytes,
            // Only a retry has to be told from a first transmission.
            Ops::Sent(bytes) if is_retry && self.sequence.is_some() => bytes.into(),
            Ops::Sent(bytes) => {
                self.ops = Ops::Sent(bytes);
                return;
            }
        };
        if let (Some((client_id, acknowledged_below)), Some(sequence)) = (numbers, self.sequence) {
            let operations = u16::try_from(self.count).unwrap_or(u16::MAX);
            let scope = Scope { client_id, sequence, acknowledged_below, operations, is_retry };
            bytes[..Scope::PACKED_BYTES].copy_from_slice(&scope.to_bytes());
        }
        self.ops = Ops::Sent(bytes.into());
    }

    /// Gives its number up, because the store did not take it; it gets another one when it is sent.
    pub fn unnumber(&mut self) -> Option<u64> {
        if let Ops::Sent(bytes) = &mut self.ops {
            self.ops = Ops::Packed(std::mem::take(bytes).into());
        }
        self.sequence.take()
    }

    /// True when it may be sent again although it may have happened.
    pub fn is_repeatable(&self, kind: LaneKind) -> bool {
        let first_sent_after = self.deadline - self.timeout;
        kind.is_read() || (self.sequence.is_some() && first_sent_after.elapsed() < RETRY_AGE_MAX)
    }

    /// It was sent, and nobody knows whether it happened.
    pub fn is_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// True when the store refused the frame as a whole, because it does not know any more whether
    /// this number was used.
    pub fn is_session_expired(&self, reply: &FrameReply) -> bool {
        self.sequence.is_some() && reply.results.first() == Some(&(Code::SessionExpired as u8))
    }

    /// Hands every waiter its answer.
    pub fn answer(self, kind: LaneKind, reply: &FrameReply) {
        let mut results = packed::results(&reply.results);
        let mut entries = self.entries.into_iter();
        while let Some(entry) = entries.next() {
            if let Err((waiter, malformed)) = answer_entry(entry, reply, &mut results, self.unknown.as_ref())
            {
                let message = format!("the node's answer cannot be read: {malformed}; please report it");
                let error = of_kind(kind, Error::outcome_unknown(Reason::Internal, message));
                waiter.fail(error.clone());
                entries.for_each(|entry| entry.waiter.fail(error.clone()));
                return;
            }
        }
    }

    /// Two frames with half of the waiters each; the frame itself when there is only one. Only for
    /// frames without a number.
    pub fn split(mut self) -> (Frame, Option<Frame>) {
        let keep = self.entries.len() / 2;
        if keep == 0 {
            return (self, None);
        }
        let entries = self.entries.split_off(keep);
        let count: u32 = self.entries.iter().map(|entry| entry.waiter.ops()).sum();
        let bytes = self.ops();
        let mut ops = packed::ops(&bytes);
        ops.by_ref().take(count as usize).for_each(drop);
        let at = ops.offset();
        let units = self.units / 2;
        let rest = Frame {
            ops: Ops::Sent(bytes.slice(at..)),
            count: self.count - count,
            units: self.units - units,
            deadline: self.deadline,
            attempts: self.attempts,
            is_small: false,
            timeout: self.timeout,
            place: self.place,
            sequence: None,
            entries,
            last_failure: self.last_failure.clone(),
            unknown: None,
        };
        self.ops = Ops::Sent(bytes.slice(..at));
        (self.count, self.units) = (count, units);
        (self, Some(rest))
    }

    /// Hands every waiter the same failure.
    pub fn fail(self, error: &Error) {
        let error = match &self.unknown {
            Some(unknown) => error.clone().of_unknown(unknown),
            None => error.clone(),
        };
        for entry in self.entries {
            entry.waiter.fail(error.clone());
        }
    }

    /// Notes why it has to be sent again.
    pub fn note(&mut self, failure: Error) {
        self.attempts += 1;
        if !failure.is_definite() {
            self.unknown.get_or_insert_with(|| failure.clone());
        }
        self.last_failure = Some(failure);
    }

    /// Notes why nothing can be sent at present.
    pub fn note_obstacle(&mut self, failure: &Error) {
        self.last_failure = Some(failure.clone());
    }

    /// The failure of a frame whose deadline came before it was (successfully) sent.
    pub fn expired_unsent(&self) -> Error {
        let waited = self.timeout.as_millis();
        match &self.last_failure {
            Some(failure) => Error::did_not_happen(failure.reason(), failure.message())
                .context(format!("gave up after {waited} ms")),
            None => Error::did_not_happen(
                Reason::Timeout,
                format!("not sent within {waited} ms: the node is not connected, or too slow"),
            ),
        }
    }

    /// The failure of a frame that was sent and not answered until its deadline.
    pub fn expired_unanswered(&self, kind: LaneKind, address: &str) -> Error {
        let message = format!("{address} did not answer within {} ms", self.timeout.as_millis());
        of_kind(kind, Error::outcome_unknown(Reason::Timeout, message))
    }
}

fn answer_entry(
    entry: Entry,
    reply: &FrameReply,
    results: &mut Results<'_>,
    unknown: Option<&Error>,
) -> Result<(), (Waiter, Malformed)> {
    if let Waiter::Many(count, caller) = entry.waiter {
        let answers: Result<Vec<_>, _> =
            (0..count).map(|_| read_answer(entry.kind, reply, results)).collect();
        return match answers {
            Ok(answers) => {
                drop(caller.send(Ok(ManyResults { index: reply.index, lag_ms: reply.lag_ms, answers })));
                Ok(())
            }
            Err(malformed) => Err((Waiter::Many(count, caller), malformed)),
        };
    }
    let answer = match read_answer(entry.kind, reply, results) {
        Ok(answer) => answer,
        Err(malformed) => return Err((entry.waiter, malformed)),
    };
    if answer.code() == Code::SessionExpired {
        // Of a frame in which the node refused other operations by themselves.
        let error = Error::session_expired();
        entry.waiter.fail(unknown.map_or(error.clone(), |first| error.of_unknown(first)));
        return Ok(());
    }
    let result = OpResult { index: reply.index, lag_ms: reply.lag_ms, answer };
    match entry.waiter {
        Waiter::Call(caller) => drop(caller.send(Ok(result))),
        Waiter::Done(done) => run(done, Ok(result)),
        Waiter::Many(..) => {}
    }
    Ok(())
}

fn read_answer(kind: Kind, reply: &FrameReply, results: &mut Results<'_>) -> Result<OpAnswer, Malformed> {
    let from = results.offset();
    Ok(match results.next(kind)? {
        PackedResult::Code(code) => OpAnswer::Code(code),
        PackedResult::Batch(code, codes) => OpAnswer::Batch(code, reply.results.slice_ref(codes)),
        PackedResult::Node(node) => OpAnswer::Node(Node::from_packed(Bytes::new(), &node, &reply.results)),
        PackedResult::Token(code, token) => OpAnswer::Token(code, token),
        PackedResult::Count(code, count) => OpAnswer::Count(code, count),
        PackedResult::Txn(txn) => OpAnswer::Txn(txn.code, reply.results.slice(from..results.offset())),
    })
}
