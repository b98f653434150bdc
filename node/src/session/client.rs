//! One client's session: what it has acknowledged, and the answers above that.

use super::{Bounds, Moment, Verdict};
use dtkv_client::packed::scope::Scope;
use std::collections::VecDeque;

/// What a session costs beside its answers: itself and its places in the two maps.
pub(super) const OVERHEAD_BYTES: usize = 256;
/// What an answer costs beside its results.
const ANSWER_BYTES: usize = 48;

/// The answer to one scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) sequence: u64,
    pub(super) index: u64,
    /// None: too large to keep.
    pub(super) results: Option<Box<[u8]>>,
}

impl Answer {
    fn bytes(&self) -> usize {
        ANSWER_BYTES + self.results.as_ref().map_or(0, |results| results.len())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) acknowledged_below: u64,
    /// An answer below this had to make room for others.
    pub(super) lost_below: u64,
    /// A retry below this may have been answered by an earlier session.
    pub(super) began_at: u64,
    pub(super) used: Moment,
    /// Sorted by sequence.
    pub(super) answers: VecDeque<Answer>,
    answer_bytes: usize,
    /// When it was marked as changed; no part of what is remembered.
    pub(super) generation: u64,
}

impl Client {
    pub(super) fn new(used: Moment, began_at: u64) -> Client {
        Client {
            acknowledged_below: 0,
            lost_below: 0,
            began_at,
            used,
            answers: VecDeque::new(),
            answer_bytes: 0,
            generation: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.answer_bytes
    }

    pub(super) fn push(&mut self, answer: Answer) {
        self.answer_bytes += answer.bytes();
        // Nearly always the newest.
        let at = match self.answers.back() {
            Some(last) if last.sequence > answer.sequence => {
                self.answers.partition_point(|other| other.sequence < answer.sequence)
            }
            _ => self.answers.len(),
        };
        self.answers.insert(at, answer);
    }

    fn pop(&mut self) -> Option<u64> {
        let answer = self.answers.pop_front()?;
        self.answer_bytes -= answer.bytes();
        Some(answer.sequence)
    }

    /// Drops answers that nobody will ask for; returns how many bytes.
    pub(super) fn acknowledge(&mut self, below: u64) -> usize {
        let before = self.answer_bytes;
        self.acknowledged_below = self.acknowledged_below.max(below);
        while self.answers.front().is_some_and(|answer| answer.sequence < self.acknowledged_below) {
            self.pop();
        }
        before - self.answer_bytes
    }

    pub(super) fn verdict(&self, scope: &Scope) -> Verdict<'_> {
        if scope.sequence < self.acknowledged_below {
            return Verdict::Expired;
        }
        if let Some(answer) = self.find(scope.sequence) {
            let repeated = answer.results.as_ref().map(|results| Verdict::Repeated(answer.index, results));
            return repeated.unwrap_or(Verdict::Expired);
        }
        let is_lost = scope.sequence < self.lost_below;
        let is_earlier = scope.is_retry && scope.sequence < self.began_at;
        if is_lost || is_earlier { Verdict::Expired } else { Verdict::Fresh }
    }

    fn find(&self, sequence: u64) -> Option<&Answer> {
        if self.answers.back()?.sequence < sequence {
            return None;
        }
        let at = self.answers.binary_search_by_key(&sequence, |answer| answer.sequence).ok()?;
        self.answers.get(at)
    }

    /// Keeps an answer; the lowest sequences make room.
    pub(super) fn remember(&mut self, sequence: u64, index: u64, results: &[u8], bounds: &Bounds) {
        let fits = ANSWER_BYTES + results.len() <= bounds.client_bytes;
        self.push(Answer { sequence, index, results: fits.then(|| Box::from(results)) });
        while self.answers.len() > bounds.answers || self.answer_bytes > bounds.client_bytes {
            let Some(lost) = self.pop() else { return };
            self.lost_below = self.lost_below.max(lost + 1);
        }
    }
}
