//! What a replica applies its log to: the tree of keys, with the group's clock, and the sessions of
//! its clients. Like its parts it does no I/O and reads no clock, and is the same on every replica at the
//! same index.
//!
//! Its records lie side by side: the machine's own, one for each session, one for each node of the
//! tree. What changed is fixed for all of them in the same instant, so that a checkpoint and a
//! snapshot hold one index of everything.

mod record;
#[cfg(test)]
mod tests;

pub use record::BadState;

use crate::keyspace::{self, StateKey};
use crate::session::{Bounds, Changed, Moment, Sessions, Verdict};
use crate::tree::{Ahead, ApplyContext, Digest, Dirty, Tree};
use bytes::Bytes;
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::{self, Kind, Malformed, Op, Ops, pack_refusal};
use dtkv_client::v1::Code;
use record::MachineRecord;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// What applying an entry gives back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Packed results, one for each operation; scopes have none.
    pub results: Vec<u8>,
    /// The frames that had been applied before, in the order of their results.
    pub repeats: Vec<Repeat>,
}

/// A frame that had been applied before: its results are those of the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// Where its results begin.
    pub offset: usize,
    /// The index at which it was applied.
    pub index: u64,
}

/// What changed since the last checkpoint, to be written in one batch. It shares keys and values with
/// the tree; encode it after letting go of the machine.
#[derive(Debug, Default)]
pub struct Changes {
    nodes: Dirty,
    sessions: Changed,
    machine: Vec<u8>,
}

/// Key of a record, as `keyspace` has it behind the epoch.
pub type Key = Arc<[u8]>;
/// A key and what stands there.
pub type Record = (Key, Bytes);

impl Changes {
    /// The records to write, and the keys of those to delete.
    pub fn into_records(self) -> (impl Iterator<Item = Record>, impl Iterator<Item = Key>) {
        let session_key = |id: &_| Arc::from(keyspace::session_key(id).as_slice());
        let nodes = self.nodes.changed.into_iter().map(|(key, record)| {
            let mut bytes = Vec::with_capacity(record.encoded_len());
            record.encode(&mut bytes);
            (key, Bytes::from(bytes))
        });
        let sessions = self.sessions.changed.into_iter();
        let sessions = sessions.map(move |(id, record)| (session_key(&id), Bytes::from(record)));
        let machine = (Arc::from(keyspace::MACHINE_KEY.as_slice()), Bytes::from(self.machine));
        let removed = self.sessions.removed.into_iter().map(move |id| session_key(&id));
        (nodes.chain(sessions).chain([machine]), self.nodes.removed.into_iter().chain(removed))
    }
}

/// The state machine of one group.
pub struct Machine {
    /// The keys.
    pub tree: Tree,
    sessions: Sessions,
    /// The machine's record when the changes were fixed.
    frozen: Vec<u8>,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine::new(Bounds::default())
    }
}

impl Machine {
    /// An empty machine that remembers this much.
    pub fn new(bounds: Bounds) -> Machine {
        Machine { tree: Tree::new(), sessions: Sessions::new(bounds), frozen: Vec::new() }
    }

    /// Applies one log entry: packed operations, in order, in one step.
    ///
    /// # Errors
    /// When the bytes do not follow the layout, which the service prevents before replication. The
    /// operations in front of the bad one stay applied, on every replica alike, and have results.
    pub fn apply(&mut self, at: ApplyContext, ops: &[u8], outcome: &mut Outcome) -> Result<(), Malformed> {
        let at = self.tree.begin_entry(at);
        let mut ahead = Ahead::new(ops);
        let mut ops = packed::ops(ops);
        while let Some(op) = ops.next() {
            ahead.step(&self.tree);
            let op = op?;
            if op.kind == Kind::Scope {
                self.apply_scope(at, &op, &mut ops, &mut ahead, outcome)?;
            } else {
                self.tree.apply_op(at, &op, &mut outcome.results);
            }
        }
        Ok(())
    }

    fn apply_scope(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        ops: &mut Ops<'_>,
        ahead: &mut Ahead<'_>,
        outcome: &mut Outcome,
    ) -> Result<(), Malformed> {
        let scope = Scope::read(op).ok_or(Malformed { offset: ops.offset(), what: "a scope" })?;
        let moment = Moment { index: at.index, clock_ms: at.clock_ms };
        let offset = outcome.results.len();
        match self.sessions.begin(moment, &scope) {
            Verdict::Fresh => {
                let session = Some((scope.client_id, scope.sequence));
                for _ in 0..scope.operations {
                    ahead.step(&self.tree);
                    let op = Op { session, ..next_covered(ops)? };
                    self.tree.apply_op(at, &op, &mut outcome.results);
                }
                self.sessions.record(moment, &scope, &outcome.results[offset..]);
            }
            Verdict::Repeated(index, results) => {
                outcome.results.extend_from_slice(results);
                outcome.repeats.push(Repeat { offset, index });
                for _ in 0..scope.operations {
                    ahead.step(&self.tree);
                    next_covered(ops)?;
                }
            }
            Verdict::Expired => {
                for _ in 0..scope.operations {
                    ahead.step(&self.tree);
                    pack_refusal(next_covered(ops)?.kind, Code::SessionExpired, &mut outcome.results);
                }
            }
        }
        Ok(())
    }

    /// The clients whose writes are remembered.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Approximate heap bytes.
    pub fn bytes(&self) -> u64 {
        self.tree.bytes() + self.sessions.bytes()
    }

    /// Digest of everything, equal on all replicas at the same index. Reads everything.
    pub fn digest(&self) -> Digest {
        let mut hasher = Xxh3::new();
        hasher.update(&self.tree.digest().0);
        hasher.update(&self.record().encode());
        for (id, record) in self.sessions.records() {
            hasher.update(&id);
            hasher.update(&(record.len() as u32).to_le_bytes());
            hasher.update(&record);
        }
        Digest(hasher.digest128().to_be_bytes())
    }

    /// Fixes what [`Machine::drain_frozen`] hands out: everything that changed since the last call,
    /// as it is now, and whatever was not drained before.
    pub fn freeze_dirty(&mut self) {
        self.tree.freeze_dirty();
        self.sessions.freeze_dirty();
        self.frozen = self.record().encode();
    }

    /// Hands out about `limit` frozen nodes and a part of the sessions; true when none are left.
    pub fn drain_frozen(&mut self, limit: usize, into: &mut Changes) -> bool {
        let nodes_drained = self.tree.drain_frozen(limit, &mut into.nodes);
        // A session is encoded here, and may be a thousand times as large as a node.
        let sessions_drained = self.sessions.drain_frozen(limit.div_ceil(16), &mut into.sessions);
        if nodes_drained && sessions_drained {
            into.machine.clone_from(&self.frozen);
        }
        nodes_drained && sessions_drained
    }

    /// Restores one record. Keys arrive in byte order.
    ///
    /// # Errors
    /// When the record is damaged or does not belong there.
    pub fn load(&mut self, key: &[u8], record: &[u8]) -> Result<(), BadState> {
        match keyspace::state_key_of(key).ok_or(BadState::Key(Box::from(key)))? {
            StateKey::Node(key) => Ok(self.tree.load(key, record)?),
            StateKey::Session(id) => Ok(self.sessions.load(id, record)?),
            StateKey::Machine => {
                let record = MachineRecord::decode(record).ok_or(BadState::Machine)?;
                self.tree.restore_counters(record.counters);
                self.sessions.set_suspect_until_ms(record.suspect_until_ms);
                Ok(())
            }
        }
    }

    fn record(&self) -> MachineRecord {
        MachineRecord { counters: self.tree.counters(), suspect_until_ms: self.sessions.suspect_until_ms() }
    }
}

/// The next operation of a scope.
fn next_covered<'a>(ops: &mut Ops<'a>) -> Result<Op<'a>, Malformed> {
    let offset = ops.offset();
    let missing = Malformed { offset, what: "an operation of a scope" };
    ops.next().ok_or(missing)?.and_then(|op| if op.kind == Kind::Scope { Err(missing) } else { Ok(op) })
}
