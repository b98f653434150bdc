//! Is a history linearizable?
//!
//! Every answer carries its index, so most of the question is a sort: real time against the order
//! of indexes ([`order`]), where values came from ([`provenance`]), and a replay of each key in the
//! order of indexes, in which only operations of unknown outcome leave anything to search
//! ([`search`]). A second search over the same operations ignores the indexes and trusts nothing but
//! the clients' clock.

pub mod order;
pub mod provenance;
pub mod search;

use crate::history::{History, Operation};
use order::Bounds;
use search::{Interval, Verdict};
use std::fmt;

/// Steps of the replay of one key by index after which it gives up.
const STEPS_MAX: u64 = 20_000_000;
/// The same for the search without indexes, whose verdict is a bonus.
const TIME_STEPS_MAX: u64 = 1_000_000;

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Operations with an answer.
    pub answered: usize,
    /// Operations of unknown outcome.
    pub unknown: usize,
    /// Keys.
    pub keys: usize,
    /// Keys for which the search without indexes gave up; the replay by index covers them.
    pub gave_up: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { answered, unknown, keys, gave_up } = self;
        write!(f, "linearizable: {answered} operations and {unknown} of unknown outcome on {keys} keys")?;
        if *gave_up > 0 { write!(f, " ({gave_up} keys by index only)") } else { Ok(()) }
    }
}

/// Why a history is not linearizable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// See [`order`].
    #[error("indexes contradict real time:\n  {before}\nwas answered before this began:\n  {after}")]
    Order {
        /// The operation that was answered first.
        before: String,
        /// The later one, with the lower index.
        after: String,
    },
    /// See [`provenance`].
    #[error("a read saw what cannot be: {what}\n  {read}")]
    Provenance {
        /// The read.
        read: String,
        /// What is wrong with it.
        what: String,
    },
    /// See [`search`].
    #[error("no order {by} explains key {key}; the first operations that do not fit:\n  {}", operations.join("\n  "))]
    Search {
        /// Which search.
        by: &'static str,
        /// The key.
        key: u32,
        /// A few operations that could not be placed.
        operations: Vec<String>,
    },
    /// The replay by index took too long, so the history proves nothing.
    #[error("the replay of key {key} was given up after {STEPS_MAX} steps: too many unknown outcomes")]
    GaveUp {
        /// The key.
        key: u32,
    },
}

/// Checks the history of one group.
///
/// # Errors
/// What contradicts linearizability, with the operations that show it.
pub fn check(history: &History) -> Result<Summary, Violation> {
    let name = |at: usize| history.operations[at].to_string();
    let bounds = order::bounds(history)
        .map_err(|wrong| Violation::Order { before: name(wrong.before), after: name(wrong.after) })?;
    provenance::check(history)
        .map_err(|fault| Violation::Provenance { read: name(fault.read), what: fault.what })?;
    let keys = history.by_key();
    let mut summary =
        Summary { answered: history.answered(), unknown: history.unknown(), keys: keys.len(), gave_up: 0 };
    for (&key, positions) in &keys {
        let by_index = |at: usize| index_interval(&history.operations[at], at, &bounds);
        if !search_key(history, key, positions, ("by index", STEPS_MAX), by_index)? {
            return Err(Violation::GaveUp { key });
        }
        let by_time = |at: usize| time_interval(&history.operations[at]);
        let decided = search_key(history, key, positions, ("by real time", TIME_STEPS_MAX), by_time)?;
        summary.gave_up += usize::from(!decided);
    }
    Ok(summary)
}

fn search_key(
    history: &History,
    key: u32,
    positions: &[usize],
    (by, steps_max): (&'static str, u64),
    interval: impl Fn(usize) -> Interval,
) -> Result<bool, Violation> {
    let mut intervals: Vec<Interval> = positions.iter().map(|&at| interval(at)).collect();
    search::merge_unseen(&mut intervals);
    match search::search(&intervals, steps_max) {
        Verdict::Linearizable => Ok(true),
        Verdict::GaveUp => Ok(false),
        Verdict::Violation(left) => {
            let name = |&at: &usize| history.operations[positions[at]].to_string();
            Err(Violation::Search { by, key, operations: left.iter().take(6).map(name).collect() })
        }
    }
}

fn time_interval(op: &Operation) -> Interval {
    Interval {
        from: op.invoked_ns,
        to: op.answer.map(|answer| answer.at_ns),
        action: op.action,
        outcome: op.answer.map(|answer| answer.outcome),
    }
}

/// In the order of indexes the writes of entry i stand at 2i, all at once, and the reads that saw
/// it at 2i + 1. What has no index lies somewhere between its bounds.
fn index_interval(op: &Operation, at: usize, bounds: &Bounds) -> Interval {
    let lowest = 2 * bounds.floor[at] + if op.action.is_write() { 2 } else { 1 };
    let (from, to) = match (op.index(), op.answer) {
        (Some(index), _) if op.action.is_write() => (2 * index, Some(2 * index)),
        (Some(index), _) => (2 * index + 1, Some(2 * index + 1)),
        (None, Some(_)) => {
            (lowest, Some(bounds.ceiling[at].map_or(u64::MAX, |index| 2 * index + 1).max(lowest)))
        }
        (None, None) => (lowest, None),
    };
    Interval { from, to, ..time_interval(op) }
}

#[cfg(test)]
mod tests;
