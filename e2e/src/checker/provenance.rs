//! Where the values that readers saw came from.
//!
//! A node's update index names the entry that wrote its value. So a value has one update index for
//! ever, that of the write that was acknowledged with it; the same write applied twice, or a value
//! that nobody wrote, shows here at once.

use crate::history::{Action, History, Key, Outcome, Value};
use rustc_hash::FxHashMap;

/// A read that saw what cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Position of the read.
    pub read: usize,
    /// What is wrong with it.
    pub what: String,
}

struct Origin {
    index: Option<u64>,
}

/// Checks every read of the history.
///
/// # Errors
/// The first read that saw a value from nowhere, or at the wrong index.
pub fn check(history: &History) -> Result<(), Fault> {
    let mut origins = origins(history);
    for (read, op) in history.operations.iter().enumerate() {
        let Some(answer) = op.answer else { continue };
        let Outcome::Read { value: Some(value), update_index } = answer.outcome else { continue };
        let fault = |what: String| Err(Fault { read, what });
        let Some(origin) = origins.get_mut(&(op.key, value)) else {
            return fault(format!("value {value} was never written to this key"));
        };
        let Some(seen) = update_index else { continue };
        if answer.index.is_some_and(|index| index < seen) {
            return fault(format!("saw index {seen} while it claims to be at an earlier one"));
        }
        match origin.index {
            Some(index) if index != seen => {
                return fault(format!("value {value} was written at index {index}, and seen with {seen}"));
            }
            _ => origin.index = Some(seen),
        }
    }
    Ok(())
}

/// The writes by key and value, with their index as far as their answer told.
fn origins(history: &History) -> FxHashMap<(Key, Value), Origin> {
    let mut origins = FxHashMap::default();
    for op in &history.operations {
        let Some(value) = op.action.written() else { continue };
        let happened = match op.answer.map(|answer| answer.outcome) {
            Some(Outcome::CompareAndSet { swapped }) => swapped,
            Some(_) => true,
            None => true,
        };
        if happened {
            debug_assert!(!matches!(op.action, Action::Get));
            origins.insert((op.key, value), Origin { index: op.index() });
        }
    }
    origins
}
