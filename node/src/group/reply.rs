//! The answer to a frame, given exactly once.

use crate::failure::Failure;
use bytes::Bytes;
use dtkv_client::v1::failure::Reason;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Called once with the answer, on whatever task has it: it must be cheap and must not block.
pub type Reply = Box<dyn FnOnce(Result<Answer, Failure>) + Send + 'static>;

/// What a frame gets back.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Index at which the writes were applied, or applied index that the reads saw.
    pub index: u64,
    /// Packed results, one for each operation.
    pub results: Bytes,
    /// Stale reads only: time since the leader was last heard, in ms.
    pub lag_ms: Option<u64>,
}

/// A reply that two sides may want to give: the one that has the answer, and the deadline.
#[derive(Clone)]
pub struct ReplySlot(Arc<Mutex<Option<Reply>>>);

impl ReplySlot {
    /// Holds `reply` until the first answer.
    pub fn new(reply: Reply) -> ReplySlot {
        ReplySlot(Arc::new(Mutex::new(Some(reply))))
    }

    /// Gives the answer, if nobody has.
    pub fn send(&self, answer: Result<Answer, Failure>) {
        let reply = self.0.lock().take();
        if let Some(reply) = reply {
            reply(answer);
        }
    }

    fn is_answered(&self) -> bool {
        self.0.lock().is_none()
    }
}

/// The deadlines of the proposals on their way. A proposal whose group lost its quorum is never
/// completed by Raft, so somebody else must tell the caller that its outcome is unknown.
#[derive(Default)]
pub struct Deadlines {
    pending: Mutex<VecDeque<(Instant, ReplySlot)>>,
}

impl Deadlines {
    /// Watches over a reply.
    pub fn add(&self, deadline: Instant, slot: ReplySlot) {
        let mut pending = self.pending.lock();
        while pending.front().is_some_and(|(_, slot)| slot.is_answered()) {
            pending.pop_front();
        }
        pending.push_back((deadline, slot));
    }

    /// Answers everything whose deadline has passed with an unknown outcome; returns how many.
    pub fn expire(&self, now: Instant, group: crate::ids::GroupId) -> usize {
        let mut late = Vec::new();
        self.pending.lock().retain(|(deadline, slot)| {
            if slot.is_answered() {
                return false;
            }
            let expired = *deadline <= now;
            if expired {
                late.push(slot.clone());
            }
            !expired
        });
        for slot in &late {
            let message =
                format!("{group} did not commit the write before its deadline; read before you retry");
            slot.send(Err(Failure::new(Reason::Timeout, message).unknown()));
        }
        late.len()
    }

    /// Takes every reply that is still open, for the end of the replica.
    pub fn drain(&self) -> Vec<ReplySlot> {
        self.pending.lock().drain(..).map(|(_, slot)| slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::GroupId;
    use std::time::Duration;

    type Answers = Arc<Mutex<Vec<Result<Answer, Failure>>>>;

    fn slot() -> (ReplySlot, Answers) {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let into = answers.clone();
        (ReplySlot::new(Box::new(move |answer| into.lock().push(answer))), answers)
    }

    #[test]
    fn a_reply_is_given_once() {
        let (slot, answers) = slot();
        slot.send(Ok(Answer::default()));
        slot.send(Err(Failure::internal("late")));
        assert_eq!(answers.lock().len(), 1);
    }

    #[test]
    fn an_expired_write_has_an_unknown_outcome_and_others_wait() {
        let deadlines = Deadlines::default();
        let now = crate::clock::now();
        let (late, late_answers) = slot();
        let (early, early_answers) = slot();
        deadlines.add(now + Duration::from_secs(9), early);
        deadlines.add(now, late);
        assert_eq!(deadlines.expire(now, GroupId(1)), 1);
        assert!(early_answers.lock().is_empty());
        let failure = late_answers.lock().pop().map(|a| a.unwrap_err());
        assert_eq!(failure.map(|f| (f.reason, f.outcome_unknown)), Some((Reason::Timeout, true)));
    }
}
