//! Transactions: compares, then one of two lists of operations, all of it or nothing.

use super::node::{Body, Node};
use super::{ApplyContext, ClientId, ROOT, Tree};
use dtkv_client::limits::BATCH_BYTES_MAX;
use dtkv_client::packed::txn::{Compare, Relation, Target, Txn, TxnResult};
use dtkv_client::packed::{Kind, Op, pack_refusal};
use dtkv_client::v1::Code;
use std::cmp::Ordering;

impl Tree {
    /// Its guard has been checked.
    pub(super) fn apply_txn(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        caller: Option<ClientId>,
        results: &mut Vec<u8>,
    ) {
        let Ok(txn) = Txn::read(op.value) else {
            return pack_refusal(op.kind, Code::ClientReqError, results);
        };
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let savepoint = self.open_savepoint();
        let mut branch = Vec::new();
        let result = match self.apply_branch(at, &txn, succeeded, caller, &mut branch) {
            Ok(()) => {
                self.keep(savepoint);
                TxnResult { code: Code::Success, succeeded, failed_op: None, results: &branch }
            }
            Err((failed_op, code)) => {
                self.roll_back(savepoint);
                TxnResult { code, succeeded, failed_op: Some(failed_op), results: &[] }
            }
        };
        result.pack(results);
    }

    fn apply_branch(
        &mut self,
        at: ApplyContext,
        txn: &Txn<'_>,
        succeeded: bool,
        caller: Option<ClientId>,
        results: &mut Vec<u8>,
    ) -> Result<(), (u16, Code)> {
        for (position, op) in (0..).zip(txn.branch(succeeded)) {
            let applied = match op {
                Ok(op) => self.apply_branch_op(at, &op, caller, results),
                Err(_) => Err(Code::ClientReqError),
            };
            applied.map_err(|code| (position, code))?;
        }
        Ok(())
    }

    /// Appends the result of an operation, unless it makes the transaction fail.
    fn apply_branch_op(
        &mut self,
        at: ApplyContext,
        op: &Op<'_>,
        caller: Option<ClientId>,
        results: &mut Vec<u8>,
    ) -> Result<(), Code> {
        if op.kind == Kind::Get {
            self.get(op.key)
                .map(drop)
                .or_else(|code| if code == Code::NotFound { Ok(()) } else { Err(code) })?;
            self.pack_get(op.key, at.clock_ms, results);
            // Who reads too much at once gets nothing: the answer would not fit into a message.
            return if results.len() > BATCH_BYTES_MAX { Err(Code::ValueTooLong) } else { Ok(()) };
        }
        if !is_branch_op(op) {
            return Err(Code::ClientReqError);
        }
        self.check_options(op)?;
        let code = self.apply_one(at, op, caller);
        results.push(code as u8);
        if is_accepted(op.kind, code) { Ok(()) } else { Err(code) }
    }

    fn holds(&self, compare: &Compare<'_>) -> bool {
        let node = match compare.key {
            [] => Some(&self.slab[ROOT]),
            key => self.find(key).map(|slot| &self.slab[slot]),
        };
        let index = |index: fn(&Node) -> u64| Some(node.map_or(0, index).cmp(&compare.number()?));
        let ordering = match compare.target {
            Target::Value => match node.map(|node| &node.body) {
                Some(Body::Value(value)) => Some((**value).cmp(compare.operand)),
                _ => None,
            },
            Target::UpdateIndex => index(|node| node.meta.update_index),
            Target::CreateIndex => index(|node| node.meta.create_index),
            Target::LockToken => compare.number().map(|token| self.lock_token(compare.key).cmp(&token)),
        };
        match compare.relation {
            Relation::Equal => ordering == Some(Ordering::Equal),
            Relation::NotEqual => ordering != Some(Ordering::Equal),
            Relation::Less => ordering == Some(Ordering::Less),
            Relation::Greater => ordering == Some(Ordering::Greater),
        }
    }
}

/// What a branch may hold beside gets; session and guard are the transaction's.
fn is_branch_op(op: &Op<'_>) -> bool {
    let kinds = [Kind::Put, Kind::Remove, Kind::Mkdir, Kind::CompareAndSet, Kind::UpdateTtl];
    kinds.contains(&op.kind) && op.session.is_none() && op.guard.is_none()
}

/// Whether a transaction goes on behind an operation with this answer.
fn is_accepted(kind: Kind, code: Code) -> bool {
    match code {
        Code::Success | Code::SuccessOverwrite => true,
        Code::NotFound => kind == Kind::Remove,
        Code::DirExists => kind == Kind::Mkdir,
        _ => false,
    }
}
