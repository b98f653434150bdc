//! The unary call of a transaction, between messages and packed operations.

use crate::failure::Failure;
use crate::group::reply::Answer;
use crate::ids::GroupId;
use crate::service::request::{compare_and_set_op, mkdir_op, put_op, remove_op, update_ttl_op};
use crate::service::unary::{node, not_a_result, owned};
use crate::service::{Service, admission, rules};
use bytes::Bytes;
use dtkv_client::packed::txn::{self, Relation, Target, Txn, TxnResult};
use dtkv_client::packed::{self, Kind, Op, PackedResult};
use dtkv_client::v1::{self, Code};
use std::time::Duration;
use v1::txn_op;

impl Service {
    pub(super) async fn transact(
        &self,
        timeout: Option<Duration>,
        request: v1::TxnRequest,
    ) -> Result<v1::TxnResponse, Failure> {
        self.0.store.group(GroupId(request.group_id))?;
        let numbers: Vec<[u8; 8]> = request.compares.iter().map(number).collect();
        let compares = request.compares.iter().zip(&numbers).enumerate();
        let compares: Vec<_> = compares
            .map(|(at, (compare, number))| read_compare(at, compare, number))
            .collect::<Result<_, _>>()?;
        let then_ops = read_ops("then", request.group_id, &request.then_ops)?;
        let else_ops = read_ops("else", request.group_id, &request.else_ops)?;
        let mut write = owned(Op::new(Kind::Txn, b"", b""), &request.session, &request.guard)?;
        let caller = write.op.session.map(|(client, _)| client);
        // Before packing: the layout has no room for just any key.
        if let Err(code) = rules::check_rules(&write.op) {
            return Ok(v1::TxnResponse { code: code.into(), ..Default::default() });
        }
        let refusal =
            admission::txn::check(&compares, &then_ops, &else_ops, caller).map_err(Failure::invalid)?;
        if let Some(refusal) = refusal {
            return Ok(response(&refusal, 0));
        }
        let (packed_then, packed_else) = (pack(&then_ops), pack(&else_ops));
        let mut value = Vec::new();
        Txn { compares, then_ops: &packed_then, else_ops: &packed_else }.pack(&mut value);
        write.op.value = &value;
        let (answer, _hold) = self.write(request.group_id, timeout, &write).await?;
        let Ok(PackedResult::Txn(result)) = packed::results(&answer.results).next(Kind::Txn) else {
            return Err(not_a_result().unknown());
        };
        let mut response = response(&result, answer.index);
        if result.code == Code::Success {
            let ops = if result.succeeded { then_ops } else { else_ops };
            let results = read_results(&ops, &result, &answer);
            response.results = results.ok_or_else(|| not_a_result().unknown())?;
        }
        Ok(response)
    }
}

fn response(result: &TxnResult<'_>, index: u64) -> v1::TxnResponse {
    v1::TxnResponse {
        code: result.code.into(),
        index,
        succeeded: result.succeeded,
        failed_op: result.failed_op.map(u32::from),
        results: Vec::new(),
    }
}

fn read_results(ops: &[Op<'_>], result: &TxnResult<'_>, answer: &Answer) -> Option<Vec<v1::TxnOpResult>> {
    let mut results = packed::results(result.results);
    let read = |op: &Op<'_>| match results.next(op.kind).ok()? {
        PackedResult::Code(code) => Some(v1::TxnOpResult { code: code.into(), node: None }),
        PackedResult::Node(found) => {
            let node = node(&Bytes::copy_from_slice(op.key), &found, &answer.results);
            Some(v1::TxnOpResult { code: Code::Success.into(), node: Some(node) })
        }
        _ => None,
    };
    ops.iter().map(read).collect()
}

fn pack(ops: &[Op<'_>]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(ops.iter().map(Op::packed_len).sum());
    ops.iter().for_each(|op| op.pack(&mut packed));
    packed
}

/// The operand of a compare that compares a number.
fn number(compare: &v1::Compare) -> [u8; 8] {
    use v1::compare::Target::{CreateIndex, LockToken, UpdateIndex, Value};
    match compare.target {
        Some(UpdateIndex(number) | CreateIndex(number) | LockToken(number)) => number.to_le_bytes(),
        Some(Value(_)) | None => [0; 8],
    }
}

fn read_compare<'a>(
    at: usize,
    compare: &'a v1::Compare,
    number: &'a [u8; 8],
) -> Result<txn::Compare<'a>, Failure> {
    let (target, operand) = match &compare.target {
        Some(v1::compare::Target::Value(value)) => (Target::Value, value.as_ref()),
        Some(v1::compare::Target::UpdateIndex(_)) => (Target::UpdateIndex, &number[..]),
        Some(v1::compare::Target::CreateIndex(_)) => (Target::CreateIndex, &number[..]),
        Some(v1::compare::Target::LockToken(_)) => (Target::LockToken, &number[..]),
        None => return Err(Failure::invalid(format!("compares[{at}] has no target"))),
    };
    let relation = match v1::compare::Relation::try_from(compare.relation) {
        Ok(v1::compare::Relation::Equal) => Relation::Equal,
        Ok(v1::compare::Relation::NotEqual) => Relation::NotEqual,
        Ok(v1::compare::Relation::Less) => Relation::Less,
        Ok(v1::compare::Relation::Greater) => Relation::Greater,
        Err(_) => {
            return Err(Failure::invalid(format!(
                "compares[{at}].relation is {}; this node knows 0 to 3",
                compare.relation
            )));
        }
    };
    Ok(txn::Compare { target, relation, key: &compare.key, operand })
}

fn read_ops<'a>(branch: &str, group_id: u32, ops: &'a [v1::TxnOp]) -> Result<Vec<Op<'a>>, Failure> {
    let read = |(at, op): (usize, &'a v1::TxnOp)| {
        let refused = |what: &str| Failure::invalid(format!("{branch}_ops[{at}] {what}"));
        let op = op.op.as_ref().ok_or_else(|| refused("has no operation that this node knows"))?;
        let (op, group, is_plain) = read_op(op);
        if !is_plain || (group != 0 && group != group_id) {
            return Err(refused("has a group, session or guard of its own; those of the transaction hold"));
        }
        Ok(op)
    };
    ops.iter().enumerate().map(read).collect()
}

/// The operation, its group, and whether it leaves session and guard out.
fn read_op(op: &txn_op::Op) -> (Op<'_>, u32, bool) {
    match op {
        txn_op::Op::Put(r) => (put_op(r), r.group_id, r.session.is_none() && r.guard.is_none()),
        txn_op::Op::Remove(r) => (remove_op(r), r.group_id, r.session.is_none() && r.guard.is_none()),
        txn_op::Op::Mkdir(r) => (mkdir_op(r), r.group_id, r.session.is_none() && r.guard.is_none()),
        txn_op::Op::CompareAndSet(r) => {
            (compare_and_set_op(r), r.group_id, r.session.is_none() && r.guard.is_none())
        }
        txn_op::Op::UpdateTtl(r) => (update_ttl_op(r), r.group_id, r.session.is_none()),
        txn_op::Op::Get(r) => (Op::new(Kind::Get, &r.key, b""), r.group_id, true),
    }
}
