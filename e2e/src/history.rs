//! What clients asked of one group, when, and what they were told.

use std::collections::BTreeMap;
use std::fmt;

/// Stands for the bytes of a value. Every write of a history writes a number of its own, so that a
/// read names the write that it saw.
pub type Value = u64;

/// Stands for a key of the group.
pub type Key = u32;

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Create or overwrite.
    Put(Value),
    /// Read.
    Get,
    /// Remove.
    Remove,
    /// Replace, create (`expect` is none) or delete (`new` is none) if the value is as expected.
    CompareAndSet {
        /// What must be there; none = nothing may be there.
        expect: Option<Value>,
        /// What shall be there; none = delete.
        new: Option<Value>,
    },
}

impl Action {
    /// True when the action can change the state.
    pub fn is_write(&self) -> bool {
        !matches!(self, Action::Get)
    }

    /// The value that the action would leave behind.
    pub fn written(&self) -> Option<Value> {
        match *self {
            Action::Put(value) => Some(value),
            Action::CompareAndSet { new, .. } => new,
            Action::Get | Action::Remove => None,
        }
    }
}

/// What the store answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A put; true when the key was not there before.
    Put {
        /// The key was created.
        created: bool,
    },
    /// A get, with what it saw.
    Read {
        /// The value, if the key was there.
        value: Option<Value>,
        /// The node's update index.
        update_index: Option<u64>,
    },
    /// A remove; true when there was something to remove.
    Removed {
        /// The key was there.
        existed: bool,
    },
    /// A compare-and-set; false when the value was another.
    CompareAndSet {
        /// The new value is in place.
        swapped: bool,
    },
}

/// An answer that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When, in ns since the history began.
    pub at_ns: u64,
    /// For a write the index at which it was applied, for a read the applied index that it saw;
    /// none when the interface does not tell.
    pub index: Option<u64>,
    /// What it said.
    pub outcome: Outcome,
}

/// One call of one client. Calls that definitely did not happen are not part of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who called.
    pub client: u32,
    /// On which key.
    pub key: Key,
    /// What for.
    pub action: Action,
    /// When, in ns since the history began.
    pub invoked_ns: u64,
    /// None: nobody knows whether it happened, or when it will.
    pub answer: Option<Answer>,
}

impl Operation {
    /// The index that the answer named.
    pub fn index(&self) -> Option<u64> {
        self.answer.and_then(|answer| answer.index)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        write!(
            f,
            "client {} key {} {:?} from {:.3} ms",
            self.client,
            self.key,
            self.action,
            ms(self.invoked_ns)
        )?;
        match self.answer {
            None => write!(f, ", outcome unknown"),
            Some(Answer { at_ns, index, outcome }) => {
                write!(f, " to {:.3} ms: {outcome:?}", ms(at_ns))?;
                index.map_or(Ok(()), |index| write!(f, " at index {index}"))
            }
        }
    }
}

/// Everything that clients saw of one group.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In no particular order.
    pub operations: Vec<Operation>,
}

impl History {
    /// How many operations have a known outcome.
    pub fn answered(&self) -> usize {
        self.operations.iter().filter(|op| op.answer.is_some()).count()
    }

    /// How many have none.
    pub fn unknown(&self) -> usize {
        self.operations.len() - self.answered()
    }

    /// How many writes were acknowledged.
    pub fn acknowledged_writes(&self) -> usize {
        self.operations.iter().filter(|op| op.action.is_write() && op.answer.is_some()).count()
    }

    /// Positions of the operations of each key.
    pub fn by_key(&self) -> BTreeMap<Key, Vec<usize>> {
        let mut keys: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
        for (at, op) in self.operations.iter().enumerate() {
            keys.entry(op.key).or_default().push(at);
        }
        keys
    }

    /// The longest time, in ms, in which no operation was answered, between the first call and the
    /// last answer.
    pub fn longest_stall_ms(&self) -> u64 {
        let mut answers: Vec<u64> =
            self.operations.iter().filter_map(|op| op.answer.map(|answer| answer.at_ns)).collect();
        answers.extend(self.operations.iter().map(|op| op.invoked_ns).min());
        answers.sort_unstable();
        answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0) / 1_000_000
    }
}
