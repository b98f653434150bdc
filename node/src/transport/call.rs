//! Questions and answers over a link: single calls, and append sessions (many questions on their
//! way, answers in the same order).

use super::peer_stream::Link;
use super::queue::{Outbound, PushError, keep_waker};
use crate::failure::Failure;
use crate::ids::{GroupId, NodeId};
use crate::peer_v1 as pb;
use crate::peer_v1::message::Body;
use dtkv_client::v1::failure::Reason;
use parking_lot::Mutex;
use prost::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::oneshot;

/// Who waits for answers with a call id.
#[derive(Debug)]
pub(super) enum Pending {
    Call(oneshot::Sender<Result<pb::Message, Failure>>),
    Session(Arc<Inbox>),
}

impl Pending {
    pub fn fail(self, failure: Failure) {
        match self {
            // The asker may have given up meanwhile.
            Pending::Call(asker) => drop(asker.send(Err(failure))),
            Pending::Session(inbox) => inbox.fail(failure),
        }
    }
}

/// Nothing can be said to the peer now; nothing happened.
pub(super) fn unreachable(peer: NodeId, why: impl std::fmt::Display) -> Failure {
    Failure {
        retry_after_ms: Some(100),
        ..Failure::new(Reason::GroupNotReady, format!("{peer} cannot be reached: {why}"))
    }
}

pub(super) fn push_failure(peer: NodeId, error: PushError) -> Failure {
    match error {
        PushError::Full => Failure::overloaded(format!("the queue of messages to {peer} is full"), 100),
        PushError::Closed => unreachable(peer, "the stream broke"),
    }
}

fn refused(peer: NodeId, why: &str) -> Failure {
    Failure {
        retry_after_ms: Some(100),
        ..Failure::new(Reason::GroupNotReady, format!("{peer} refused: {why}"))
    }
}

/// Asks once and waits for the answer.
pub(super) async fn call(
    link: Arc<Link>,
    mut message: pb::Message,
    timeout: Duration,
) -> Result<pb::Message, Failure> {
    let (asker, answer) = oneshot::channel();
    let attached = Attached::new(&link, Pending::Call(asker))?;
    message.call = attached.id;
    let group = GroupId(message.group_id);
    attached.outbound.push(message).map_err(|e| push_failure(link.peer, e))?;
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(answer)) => match answer? {
            pb::Message { body: Some(Body::Refused(why)), .. } => Err(refused(link.peer, &why)),
            answer => Ok(answer),
        },
        Ok(Err(_)) => Err(unreachable(link.peer, "the stream broke").unknown()),
        Err(_) => {
            let text = format!("{} gave no answer for {group} within {timeout:?}", link.peer);
            Err(Failure::new(Reason::Timeout, text).unknown())
        }
    }
}

/// A call id that is taken; dropping it gives it back.
#[derive(Debug)]
struct Attached {
    link: Arc<Link>,
    id: u64,
    outbound: Arc<Outbound>,
}

impl Attached {
    fn new(link: &Arc<Link>, pending: Pending) -> Result<Attached, Failure> {
        let (id, outbound) = link.attach(pending)?;
        Ok(Attached { link: link.clone(), id, outbound })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.link.detach(self.id);
    }
}

/// Answers that came for a session.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    bodies: VecDeque<Option<Body>>,
    failure: Option<Failure>,
    reader: Option<Waker>,
}

impl Inbox {
    pub fn push(&self, body: Option<Body>) {
        let reader = {
            let mut answers = self.0.lock();
            answers.bodies.push_back(body);
            answers.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn fail(&self, failure: Failure) {
        let reader = {
            let mut answers = self.0.lock();
            answers.failure = Some(failure);
            answers.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Result<Option<Body>, Failure>> {
        let mut answers = self.0.lock();
        if let Some(body) = answers.bodies.pop_front() {
            return Poll::Ready(Ok(body));
        }
        if let Some(failure) = &answers.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        keep_waker(&mut answers.reader, cx);
        Poll::Pending
    }
}

/// Bounds of one session.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionLimits {
    pub requests_max: usize,
    pub bytes_max: usize,
}

/// Append requests of one group to one peer: they flow without waiting for answers; the answers
/// come back in the order of the requests. The peer keeps nothing of a session, so that it costs
/// an entry in a map here and nothing there.
#[derive(Debug)]
pub struct Session {
    attached: Attached,
    group: GroupId,
    generation: u64,
    inbox: Arc<Inbox>,
    /// Bytes of each request that has no answer yet.
    in_flight: VecDeque<usize>,
    in_flight_bytes: usize,
}

impl Session {
    pub(super) fn open(link: &Arc<Link>, group: GroupId, generation: u64) -> Result<Session, Failure> {
        let inbox = Arc::new(Inbox::default());
        let attached = Attached::new(link, Pending::Session(inbox.clone()))?;
        Ok(Session { attached, group, generation, inbox, in_flight: VecDeque::new(), in_flight_bytes: 0 })
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Ready when another request may be sent. A session that has used up its own bounds is woken
    /// by an answer, so poll that too.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let limits = &self.attached.link.session_limits;
        if self.in_flight.len() >= limits.requests_max || self.in_flight_bytes >= limits.bytes_max {
            return Poll::Pending;
        }
        self.attached.link.budget.poll_room(self.attached.id, cx)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the stream is gone; the session is of no use any more.
    pub fn send(&mut self, request: pb::AppendRequest) -> Result<(), Failure> {
        let body = Some(Body::Append(request));
        let (group_id, generation, call) = (self.group.0, self.generation, self.attached.id);
        let message = pb::Message { group_id, generation, call, body };
        let bytes = message.encoded_len();
        let link = &self.attached.link;
        self.attached.outbound.push_sized(message, bytes).map_err(|e| push_failure(link.peer, e))?;
        link.budget.take(bytes);
        self.in_flight.push_back(bytes);
        self.in_flight_bytes += bytes;
        Ok(())
    }

    /// The answer to the oldest request.
    ///
    /// # Errors
    /// When the stream broke, the peer refused, or the peer broke the protocol.
    pub fn poll_reply(&mut self, cx: &Context<'_>) -> Poll<Result<pb::AppendReply, Failure>> {
        let body = std::task::ready!(self.inbox.poll(cx))?;
        let peer = self.attached.link.peer;
        let Some(bytes) = self.in_flight.pop_front() else {
            return Poll::Ready(Err(Failure::internal(format!("{peer} answered a question nobody asked"))));
        };
        self.in_flight_bytes -= bytes;
        self.attached.link.budget.give(bytes);
        Poll::Ready(match body {
            Some(Body::AppendReply(reply)) => Ok(reply),
            Some(Body::Refused(why)) => Err(refused(peer, &why)),
            _ => Err(Failure::internal(format!("{peer} answered an append request with something else"))),
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let budget = &self.attached.link.budget;
        budget.forget(self.attached.id);
        budget.give(self.in_flight_bytes);
    }
}
