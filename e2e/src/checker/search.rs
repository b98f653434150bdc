//! The search of Wing and Gong with Lowe's memo, for the operations of one key.
//!
//! It looks for an order of the operations that agrees with their intervals and with a register
//! that can be absent. An operation of unknown outcome has no end and need not be placed at all.

use crate::history::{Action, Outcome, Value};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeSet;

/// An operation and the time in which it took effect, if it did.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// It took effect at this time or later ...
    pub from: u64,
    /// ... and at this time or earlier; none when the outcome is unknown.
    pub to: Option<u64>,
    /// What was asked.
    pub action: Action,
    /// What was answered, if anything.
    pub outcome: Option<Outcome>,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none. The positions are the operations that could not be placed in the longest
    /// order that was found.
    Violation(Vec<usize>),
    /// The search took more steps than allowed.
    GaveUp,
}

/// Looks for an order of the operations of one key that starts from the absent key.
pub fn search(intervals: &[Interval], steps_max: u64) -> Verdict {
    Search::new(intervals).run(steps_max)
}

/// State after the operation, or none when its answer contradicts the state.
fn step(state: Option<Value>, action: Action, outcome: Option<Outcome>) -> Option<Option<Value>> {
    let (next, right) = match (action, outcome) {
        (Action::Put(value), Some(Outcome::Put { created })) => (Some(value), created == state.is_none()),
        (Action::Put(value), None) => (Some(value), true),
        (Action::Get, Some(Outcome::Read { value, .. })) => (state, value == state),
        (Action::Get, None) => (state, true),
        (Action::Remove, Some(Outcome::Removed { existed })) => (None, existed == state.is_some()),
        (Action::Remove, None) => (None, true),
        (Action::CompareAndSet { expect, new }, outcome) => {
            let next = if state == expect { new } else { state };
            let right = match outcome {
                Some(Outcome::CompareAndSet { swapped }) => swapped == (state == expect),
                Some(_) => false,
                None => true,
            };
            (next, right)
        }
        _ => (state, false),
    };
    right.then_some(next)
}

const NONE: usize = usize::MAX;

/// Calls and returns as a doubly linked list in the order of time: position 0 is the head, then two
/// for each operation.
struct Events {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Events {
    fn call(op: usize) -> usize {
        1 + 2 * op
    }
    fn operation(event: usize) -> usize {
        (event - 1) / 2
    }
    fn is_call(event: usize) -> bool {
        event % 2 == 1
    }

    fn new(intervals: &[Interval]) -> Events {
        let mut order: Vec<(u64, bool, usize)> = Vec::new();
        for (op, interval) in intervals.iter().enumerate() {
            order.push((interval.from, false, Events::call(op)));
            order.extend(interval.to.map(|to| (to, true, Events::call(op) + 1)));
        }
        // At the same time calls stand before returns: such operations overlap.
        order.sort_unstable();
        let size = 1 + 2 * intervals.len();
        let mut events = Events { next: vec![NONE; size], previous: vec![NONE; size] };
        let mut last = 0;
        for (_, _, event) in order {
            events.next[last] = event;
            events.previous[event] = last;
            last = event;
        }
        events
    }

    fn unlink(&mut self, event: usize) {
        let (before, after) = (self.previous[event], self.next[event]);
        self.next[before] = after;
        if after != NONE {
            self.previous[after] = before;
        }
    }

    fn relink(&mut self, event: usize) {
        let (before, after) = (self.previous[event], self.next[event]);
        self.next[before] = event;
        if after != NONE {
            self.previous[after] = event;
        }
    }

    fn take_out(&mut self, op: usize, answered: bool) {
        self.unlink(Events::call(op));
        if answered {
            self.unlink(Events::call(op) + 1);
        }
    }

    fn put_back(&mut self, op: usize, answered: bool) {
        if answered {
            self.relink(Events::call(op) + 1);
        }
        self.relink(Events::call(op));
    }
}

/// The operations placed so far, small: everything below `low` is placed, and a few beyond it.
#[derive(Default)]
struct Placed {
    low: usize,
    beyond: BTreeSet<usize>,
}

impl Placed {
    fn insert(&mut self, rank: usize) {
        self.beyond.insert(rank);
        while self.beyond.remove(&self.low) {
            self.low += 1;
        }
    }

    fn remove(&mut self, rank: usize) {
        if rank < self.low {
            self.beyond.extend(rank + 1..self.low);
            self.low = rank;
        } else {
            self.beyond.remove(&rank);
        }
    }

    fn contains(&self, rank: usize) -> bool {
        rank < self.low || self.beyond.contains(&rank)
    }
}

struct Search<'a> {
    intervals: &'a [Interval],
    events: Events,
    /// Rank of each operation among the answered ones, or among the unknown ones, by call.
    rank: Vec<usize>,
    /// For an unknown operation: the one called before it that would have the very same effect.
    twin: Vec<Option<usize>>,
    answered: Placed,
    unknown: Placed,
    to_place: usize,
    state: Option<Value>,
    /// Placed operations, each with the state before it.
    trail: Vec<(usize, Option<Value>)>,
    longest: Vec<usize>,
    seen: FxHashSet<(Option<Value>, Box<[u32]>)>,
}

impl<'a> Search<'a> {
    fn new(intervals: &'a [Interval]) -> Search<'a> {
        let mut by_call: Vec<usize> = (0..intervals.len()).collect();
        by_call.sort_by_key(|&op| (intervals[op].from, op));
        let mut rank = vec![0; intervals.len()];
        let (mut answered, mut unknown) = (0, 0);
        for &op in &by_call {
            let counter = if intervals[op].to.is_some() { &mut answered } else { &mut unknown };
            rank[op] = *counter;
            *counter += 1;
        }
        Search {
            intervals,
            events: Events::new(intervals),
            rank,
            twin: twins(intervals, &by_call),
            answered: Placed::default(),
            unknown: Placed::default(),
            to_place: answered,
            state: None,
            trail: Vec::new(),
            longest: Vec::new(),
            seen: FxHashSet::default(),
        }
    }

    fn run(mut self, steps_max: u64) -> Verdict {
        let mut event = self.events.next[0];
        for _ in 0..steps_max {
            if self.answered.low == self.to_place {
                return Verdict::Linearizable;
            }
            event = if event != NONE && Events::is_call(event) {
                match self.try_place(Events::operation(event)) {
                    true => self.events.next[0],
                    false => self.events.next[event],
                }
            } else {
                // An answered operation ended before anything could be placed: take one back.
                match self.take_back() {
                    Some(op) => self.events.next[Events::call(op)],
                    None => return Verdict::Violation(self.not_placed()),
                }
            };
        }
        Verdict::GaveUp
    }

    fn try_place(&mut self, op: usize) -> bool {
        let interval = &self.intervals[op];
        let Some(next) = step(self.state, interval.action, interval.outcome) else { return false };
        if interval.to.is_none() && (next == self.state || self.twin_is_free(op)) {
            return false;
        }
        self.mark(op, true);
        if !self.seen.insert((next, self.memo())) {
            self.mark(op, false);
            return false;
        }
        self.trail.push((op, self.state));
        self.state = next;
        self.events.take_out(op, interval.to.is_some());
        if self.trail.len() > self.longest.len() {
            self.longest = self.trail.iter().map(|&(op, _)| op).collect();
        }
        true
    }

    fn take_back(&mut self) -> Option<usize> {
        let (op, state) = self.trail.pop()?;
        self.state = state;
        self.mark(op, false);
        self.events.put_back(op, self.intervals[op].to.is_some());
        Some(op)
    }

    fn mark(&mut self, op: usize, placed: bool) {
        let set = if self.intervals[op].to.is_some() { &mut self.answered } else { &mut self.unknown };
        match placed {
            true => set.insert(self.rank[op]),
            false => set.remove(self.rank[op]),
        }
    }

    /// Whatever an unknown operation could do, its earlier twin can do as well.
    fn twin_is_free(&self, op: usize) -> bool {
        self.twin[op].is_some_and(|twin| !self.unknown.contains(self.rank[twin]))
    }

    fn memo(&self) -> Box<[u32]> {
        let small = |n: &usize| *n as u32;
        let sets = [&self.answered, &self.unknown];
        sets.iter()
            .flat_map(|s| [s.low as u32, s.beyond.len() as u32].into_iter().chain(s.beyond.iter().map(small)))
            .collect()
    }

    fn not_placed(&self) -> Vec<usize> {
        let placed: FxHashSet<usize> = self.longest.iter().copied().collect();
        let left = (0..self.intervals.len()).filter(|op| !placed.contains(op));
        let mut left: Vec<usize> = left.filter(|&op| self.intervals[op].to.is_some()).collect();
        left.sort_by_key(|&op| self.intervals[op].to);
        left
    }
}

fn twins(intervals: &[Interval], by_call: &[usize]) -> Vec<Option<usize>> {
    let mut twin = vec![None; intervals.len()];
    let mut last: FxHashMap<Action, usize> = FxHashMap::default();
    for &op in by_call {
        if intervals[op].to.is_none() {
            twin[op] = last.insert(intervals[op].action, op);
        }
    }
    twin
}

/// Unknown writes of values that nobody ever saw or expected differ in nothing that matters: they
/// all get the same value, which makes twins of them.
pub fn merge_unseen(intervals: &mut [Interval]) {
    let mut seen: FxHashSet<Value> = FxHashSet::default();
    for interval in intervals.iter() {
        if let Some(Outcome::Read { value, .. }) = interval.outcome {
            seen.extend(value);
        }
        if let Action::CompareAndSet { expect, .. } = interval.action {
            seen.extend(expect);
        }
    }
    for interval in intervals.iter_mut().filter(|interval| interval.to.is_none()) {
        match &mut interval.action {
            Action::Put(value) if !seen.contains(value) => *value = Value::MAX,
            Action::CompareAndSet { new: Some(value), .. } if !seen.contains(value) => *value = Value::MAX,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tries every order of every subset that holds all answered operations.
    fn brute_force(intervals: &[Interval], placed: u32, state: Option<Value>) -> bool {
        let free = |op: usize| placed & (1 << op) == 0;
        let waiting = |op: &usize| free(*op) && intervals[*op].to.is_some();
        let all = 0..intervals.len();
        let Some(deadline) = all.clone().filter(waiting).filter_map(|op| intervals[op].to).min() else {
            return true;
        };
        all.filter(|&op| free(op) && intervals[op].from <= deadline).any(|op| {
            step(state, intervals[op].action, intervals[op].outcome)
                .is_some_and(|next| brute_force(intervals, placed | 1 << op, next))
        })
    }

    fn action() -> impl Strategy<Value = Action> {
        let value = || proptest::option::of(0u64..3);
        prop_oneof![
            (0u64..3).prop_map(Action::Put),
            Just(Action::Get),
            Just(Action::Remove),
            (value(), value()).prop_map(|(expect, new)| Action::CompareAndSet { expect, new }),
        ]
    }

    fn interval() -> impl Strategy<Value = Interval> {
        let value = proptest::option::of(0u64..3);
        (action(), 0u64..8, 0u64..6, 0u32..5, any::<bool>(), value).prop_map(
            |(action, from, long, end, yes, value)| {
                let outcome = match action {
                    Action::Put(_) => Outcome::Put { created: yes },
                    Action::Get => Outcome::Read { value, update_index: None },
                    Action::Remove => Outcome::Removed { existed: yes },
                    Action::CompareAndSet { .. } => Outcome::CompareAndSet { swapped: yes },
                };
                let answered = end > 0;
                Interval {
                    from,
                    to: answered.then_some(from + long),
                    action,
                    outcome: answered.then_some(outcome),
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn search_agrees_with_trying_every_order(mut intervals in proptest::collection::vec(interval(), 1..7)) {
            let expected = brute_force(&intervals, 0, None);
            prop_assert_eq!(search(&intervals, u64::MAX) == Verdict::Linearizable, expected);
            merge_unseen(&mut intervals);
            prop_assert_eq!(search(&intervals, u64::MAX) == Verdict::Linearizable, expected);
        }
    }

    #[test]
    fn many_unknown_writes_that_nobody_saw_cost_little() {
        let unknown = |from, action| Interval { from, to: None, action, outcome: None };
        let mut intervals: Vec<Interval> = (0..200).map(|n| unknown(n, Action::Put(1000 + n))).collect();
        intervals.extend((0..200).map(|n| unknown(n, Action::Remove)));
        let read = Outcome::Read { value: Some(7), update_index: None };
        intervals.push(Interval { from: 500, to: Some(501), action: Action::Get, outcome: Some(read) });
        merge_unseen(&mut intervals);
        assert!(matches!(search(&intervals, 1_000_000), Verdict::Violation(_)), "nobody wrote 7");
    }

    #[test]
    fn search_that_runs_out_of_steps_says_so() {
        let put = |n| Interval {
            from: 0,
            to: Some(100),
            action: Action::Put(n),
            outcome: Some(Outcome::Put { created: n == 0 }),
        };
        let intervals: Vec<Interval> = (0..10).map(put).collect();
        assert_eq!(search(&intervals, 3), Verdict::GaveUp);
    }
}
