//! Transactions: compares, and operations for either outcome; all of it or nothing.

use crate::answer::{Expect, New, Node, OpAnswer};
use crate::error::Error;
use crate::group::Group;
use crate::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX};
pub use crate::packed::txn::Relation;
use crate::packed::txn::Target;
use crate::packed::{self, Kind, Malformed, Op, PackedResult};
use crate::temp::ttl_ms;
use crate::v1::Code;
use crate::v1::failure::Reason;
use bytes::Bytes;
use std::time::Duration;

/// A condition of a transaction. A key that is absent has the indexes 0 and no value; a value that
/// is not there equals nothing, and is neither less nor greater.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    key: Bytes,
    target: Target,
    relation: Relation,
    operand: Bytes,
}

impl Compare {
    fn number(key: impl AsRef<[u8]>, target: Target, relation: Relation, operand: u64) -> Compare {
        let operand = Bytes::copy_from_slice(&operand.to_le_bytes());
        Compare { key: Bytes::copy_from_slice(key.as_ref()), target, relation, operand }
    }

    /// Compares the bytes of a value.
    pub fn value(key: impl AsRef<[u8]>, relation: Relation, value: impl AsRef<[u8]>) -> Compare {
        let (key, operand) = (Bytes::copy_from_slice(key.as_ref()), Bytes::copy_from_slice(value.as_ref()));
        Compare { key, target: Target::Value, relation, operand }
    }

    /// Compares the index of a node's last change.
    pub fn update_index(key: impl AsRef<[u8]>, relation: Relation, index: u64) -> Compare {
        Compare::number(key, Target::UpdateIndex, relation, index)
    }

    /// Compares the index at which a node was created.
    pub fn create_index(key: impl AsRef<[u8]>, relation: Relation, index: u64) -> Compare {
        Compare::number(key, Target::CreateIndex, relation, index)
    }

    /// Compares the fencing token of a lock's holder, which is 0 when the lock is free.
    pub fn lock_token(key: impl AsRef<[u8]>, relation: Relation, token: u64) -> Compare {
        Compare::number(key, Target::LockToken, relation, token)
    }

    /// The key must not exist.
    pub fn absent(key: impl AsRef<[u8]>) -> Compare {
        Compare::create_index(key, Relation::Equal, 0)
    }

    /// The key must exist.
    pub fn exists(key: impl AsRef<[u8]>) -> Compare {
        Compare::create_index(key, Relation::Greater, 0)
    }

    fn packed(&self) -> packed::txn::Compare<'_> {
        packed::txn::Compare {
            target: self.target,
            relation: self.relation,
            key: &self.key,
            operand: &self.operand,
        }
    }
}

/// An operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnOp {
    kind: Kind,
    key: Bytes,
    value: Bytes,
    ttl: Option<Duration>,
    expect_index: Option<u64>,
    expect: Option<Bytes>,
    has_new_value: bool,
    create_parents: bool,
    recursive: bool,
}

impl TxnOp {
    fn new(kind: Kind, key: impl AsRef<[u8]>, value: &[u8]) -> TxnOp {
        TxnOp {
            kind,
            key: Bytes::copy_from_slice(key.as_ref()),
            value: Bytes::copy_from_slice(value),
            ttl: None,
            expect_index: None,
            expect: None,
            has_new_value: false,
            create_parents: false,
            recursive: false,
        }
    }

    /// Creates or overwrites a value.
    pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> TxnOp {
        TxnOp::new(Kind::Put, key, value.as_ref())
    }

    /// Makes a directory.
    pub fn mkdir(key: impl AsRef<[u8]>) -> TxnOp {
        TxnOp::new(Kind::Mkdir, key, b"")
    }

    /// Removes a value or an empty directory.
    pub fn remove(key: impl AsRef<[u8]>) -> TxnOp {
        TxnOp::new(Kind::Remove, key, b"")
    }

    /// Replaces, creates or deletes a value if it is what is expected; else the whole transaction is
    /// refused.
    pub fn compare_and_set(key: impl AsRef<[u8]>, expect: Expect<'_>, new: New<'_>) -> TxnOp {
        let value = if let New::Value(value) = new { value } else { b"" };
        let op = TxnOp::new(Kind::CompareAndSet, key, value);
        let op = TxnOp { has_new_value: matches!(new, New::Value(_)), ..op };
        match expect {
            Expect::Absent => op,
            Expect::Value(value) => TxnOp { expect: Some(Bytes::copy_from_slice(value)), ..op },
            Expect::Index(index) => TxnOp { expect_index: Some(index), ..op },
        }
    }

    /// Gives a temporary node of this client a new time to live.
    pub fn update_ttl(key: impl AsRef<[u8]>, ttl: Duration) -> TxnOp {
        TxnOp { ttl: Some(ttl), ..TxnOp::new(Kind::UpdateTtl, key, b"") }
    }

    /// Reads a node as the operations before it in its branch left it.
    pub fn get(key: impl AsRef<[u8]>) -> TxnOp {
        TxnOp::new(Kind::Get, key, b"")
    }

    /// Of a put or a mkdir: what is made is temporary and belongs to this client.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> TxnOp {
        TxnOp { ttl: Some(ttl), ..self }
    }

    /// Of a put or a mkdir: makes missing parents permanent directories.
    #[must_use]
    pub fn create_parents(self) -> TxnOp {
        TxnOp { create_parents: true, ..self }
    }

    /// Of a remove: removes the whole subtree of a directory.
    #[must_use]
    pub fn recursive(self) -> TxnOp {
        TxnOp { recursive: true, ..self }
    }

    /// Of a put or a remove: only while the node has this update index; 0 = while it does not exist.
    #[must_use]
    pub fn expect_index(self, index: u64) -> TxnOp {
        TxnOp { expect_index: Some(index), ..self }
    }

    fn pack(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        let op = Op {
            ttl_ms: self.ttl.map(ttl_ms).transpose()?,
            expect_index: self.expect_index,
            expect: self.expect.as_deref(),
            has_new_value: self.has_new_value,
            create_parents: self.create_parents,
            recursive: self.recursive,
            ..Op::new(self.kind, &self.key, &self.value)
        };
        crate::check::check(&op)?;
        op.pack(out);
        Ok(())
    }
}

/// What a transaction came to that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnDone {
    /// Raft index at which it was applied.
    pub index: u64,
    /// Whether the compares held, so which branch was taken.
    pub succeeded: bool,
    /// One for each operation of the branch taken, in order: its code, or the node of a get.
    pub results: Vec<OpAnswer>,
}

/// A transaction that is being put together; made by [`Group::txn`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens before commit"]
pub struct Txn {
    group: Group,
    compares: Vec<Compare>,
    then_ops: Vec<TxnOp>,
    else_ops: Vec<TxnOp>,
}

impl Group {
    /// Begins a transaction. Without compares its first branch is taken.
    pub fn txn(&self) -> Txn {
        Txn { group: self.clone(), compares: Vec::new(), then_ops: Vec::new(), else_ops: Vec::new() }
    }
}

impl Txn {
    /// Adds a condition; all must hold.
    pub fn when(mut self, compare: Compare) -> Txn {
        self.compares.push(compare);
        self
    }

    /// Adds an operation for when all conditions hold.
    pub fn then(mut self, op: TxnOp) -> Txn {
        self.then_ops.push(op);
        self
    }

    /// Adds an operation for when one does not.
    pub fn or_else(mut self, op: TxnOp) -> Txn {
        self.else_ops.push(op);
        self
    }

    /// Carries the transaction out, in one step. That the compares do not hold is an outcome, not an
    /// error.
    ///
    /// # Errors
    /// [`Error::code`] of the operation that was refused, or FENCED; nothing has happened then, and
    /// the message names the operation. As [`Group::put`] otherwise.
    pub async fn commit(self) -> Result<TxnDone, Error> {
        let value = self.pack()?;
        let result = self.group.call(&Op::new(Kind::Txn, b"", &value)).await?;
        let OpAnswer::Txn(_, packed) = &result.answer else {
            return Err(Error::refused(result.code()));
        };
        let answer = read(packed, |succeeded| if succeeded { &self.then_ops } else { &self.else_ops });
        match answer.map_err(|malformed| {
            Error::outcome_unknown(Reason::Internal, format!("the node's answer cannot be read: {malformed}"))
        })? {
            Answer::Done(succeeded, results) => Ok(TxnDone { index: result.index, succeeded, results }),
            Answer::Refused(code, None) => Err(Error::refused(code)),
            Answer::Refused(code, Some((succeeded, op))) => {
                let branch = if succeeded { "then" } else { "else" };
                Err(Error::refused(code).context(format!("operation {op} of the {branch} branch, from 0")))
            }
        }
    }

    fn pack(&self) -> Result<Vec<u8>, Error> {
        let items = self.compares.len() + self.then_ops.len() + self.else_ops.len();
        if items == 0 || items > BATCH_ITEMS_MAX {
            return Err(Error::invalid(format!(
                "a transaction has 1 to {BATCH_ITEMS_MAX} compares and operations; this one has {items}"
            )));
        }
        let (mut then_ops, mut else_ops, mut value) = (Vec::new(), Vec::new(), Vec::new());
        for compare in &self.compares {
            crate::limits::check_key_or_root(&compare.key).map_err(Error::refused)?;
        }
        self.then_ops.iter().try_for_each(|op| op.pack(&mut then_ops))?;
        self.else_ops.iter().try_for_each(|op| op.pack(&mut else_ops))?;
        let compares = self.compares.iter().map(Compare::packed).collect();
        packed::txn::Txn { compares, then_ops: &then_ops, else_ops: &else_ops }.pack(&mut value);
        if value.len() > BATCH_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a transaction has at most {BATCH_BYTES_MAX} bytes; this one has {}",
                value.len()
            )));
        }
        Ok(value)
    }
}

enum Answer {
    Done(bool, Vec<OpAnswer>),
    /// The code, and which operation of which branch it belongs to.
    Refused(Code, Option<(bool, u16)>),
}

/// Reads the packed result of a transaction.
fn read<'a>(packed: &Bytes, branch: impl FnOnce(bool) -> &'a Vec<TxnOp>) -> Result<Answer, Malformed> {
    let PackedResult::Txn(txn) = packed::results(packed).next(Kind::Txn)? else {
        return Err(Malformed { offset: 0, what: "the result of a transaction" });
    };
    if txn.code != Code::Success {
        return Ok(Answer::Refused(txn.code, txn.failed_op.map(|op| (txn.succeeded, op))));
    }
    let mut results = packed::results(txn.results);
    let read = |op: &TxnOp| {
        Ok(match results.next(op.kind)? {
            PackedResult::Node(node) => OpAnswer::Node(Node::from_packed(op.key.clone(), &node, packed)),
            PackedResult::Code(code) => OpAnswer::Code(code),
            _ => return Err(Malformed { offset: results.offset(), what: "a code or a node" }),
        })
    };
    let results = branch(txn.succeeded).iter().map(read).collect::<Result<_, _>>()?;
    Ok(Answer::Done(txn.succeeded, results))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::PackedNode;
    use crate::packed::txn::TxnResult;

    fn packed(result: TxnResult<'_>) -> Bytes {
        let mut bytes = Vec::new();
        result.pack(&mut bytes);
        bytes.into()
    }

    #[test]
    fn results_are_read_by_the_branch_that_was_taken() {
        let (then_ops, else_ops) = (vec![TxnOp::put("a", "1"), TxnOp::get("b")], vec![TxnOp::remove("a")]);
        let mut results = vec![Code::SuccessOverwrite as u8];
        PackedNode { value: b"2", update_index: 7, ..PackedNode::default() }.pack(&mut results);
        let done = TxnResult { code: Code::Success, succeeded: true, failed_op: None, results: &results };
        let branch = |succeeded: bool| if succeeded { &then_ops } else { &else_ops };
        let Ok(Answer::Done(true, answers)) = read(&packed(done), branch) else { panic!() };
        assert_eq!(answers[0], OpAnswer::Code(Code::SuccessOverwrite));
        let OpAnswer::Node(node) = &answers[1] else { panic!() };
        assert_eq!(
            (node.key.as_ref(), node.value.as_deref(), node.update_index),
            (&b"b"[..], Some(&b"2"[..]), 7)
        );
        let short = TxnResult { results: &results[..1], ..done };
        assert!(read(&packed(short), branch).is_err());
        let failed = TxnResult { code: Code::DirExists, succeeded: false, failed_op: Some(3), results: b"" };
        let refused = read(&packed(failed), branch);
        assert!(matches!(refused, Ok(Answer::Refused(Code::DirExists, Some((false, 3))))));
    }
}
