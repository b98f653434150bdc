//! Real time against the order of indexes, for all operations of a group at once.
//!
//! An answer carries the index at which a write was applied or that a read saw. Whoever starts after
//! an answer must come later in that order: a write strictly, a read at least as late.

use crate::history::{History, Operation};

/// What real time says about the place of each operation in the order of indexes.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Highest index that was answered before the operation began.
    pub floor: Vec<u64>,
    /// Highest index that the operation can have, when anything after it tells.
    pub ceiling: Vec<Option<u64>>,
}

/// Two operations in the wrong order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inversion {
    /// Position of the operation that had been answered ...
    pub before: usize,
    /// ... before this one began, which nevertheless comes earlier in the order of indexes.
    pub after: usize,
}

/// Calls and answers in the order of time; at the same time calls first, which forgives.
fn events(operations: &[Operation]) -> Vec<(u64, bool, usize)> {
    let calls = operations.iter().enumerate().map(|(at, op)| (op.invoked_ns, false, at));
    let answers = operations.iter().enumerate();
    let answers = answers.filter_map(|(at, op)| op.answer.map(|answer| (answer.at_ns, true, at)));
    let mut events: Vec<_> = calls.chain(answers).collect();
    events.sort_unstable();
    events
}

/// Sweeps over the history forwards and backwards.
///
/// # Errors
/// The first operation whose index is lower than what was answered before it began.
pub fn bounds(history: &History) -> Result<Bounds, Inversion> {
    let operations = &history.operations;
    let events = events(operations);
    let mut floor = vec![0; operations.len()];
    let mut highest: (u64, usize) = (0, 0);
    let mut from: Vec<usize> = vec![0; operations.len()];
    for &(_, is_answer, at) in &events {
        if !is_answer {
            (floor[at], from[at]) = highest;
        } else if let Some(index) = operations[at].index() {
            if index < floor[at] || (index == floor[at] && operations[at].action.is_write()) {
                return Err(Inversion { before: from[at], after: at });
            }
            highest = highest.max((index, at));
        }
    }
    Ok(Bounds { floor, ceiling: ceilings(operations, &events) })
}

fn ceilings(operations: &[Operation], events: &[(u64, bool, usize)]) -> Vec<Option<u64>> {
    let mut ceiling = vec![None; operations.len()];
    let mut lowest: Option<u64> = None;
    for &(_, is_answer, at) in events.iter().rev() {
        if is_answer {
            ceiling[at] = lowest;
        } else if let Some(index) = operations[at].index() {
            let before = index - u64::from(operations[at].action.is_write() && index > 0);
            lowest = Some(lowest.map_or(before, |lowest| lowest.min(before)));
        }
    }
    ceiling
}
