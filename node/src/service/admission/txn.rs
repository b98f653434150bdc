//! The rules of transactions.

use crate::service::rules::{check_options, check_owner, check_rules};
use dtkv_client::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX, check_key_or_root};
use dtkv_client::packed::txn::{Compare, Txn, TxnResult};
use dtkv_client::packed::{self, Kind, Op};

/// Checks a packed transaction. `Some`: its packed result is known already.
///
/// # Errors
/// When it is no request at all.
pub fn check_packed(op: &Op<'_>) -> Result<Option<Vec<u8>>, String> {
    let txn = Txn::read(op.value).map_err(|e| format!("in the transaction, {e}"))?;
    let then_ops = branch(txn.then_ops, "then")?;
    let else_ops = branch(txn.else_ops, "else")?;
    let caller = op.session.map(|(client, _)| client);
    let refusal = check(&txn.compares, &then_ops, &else_ops, caller)?;
    Ok(refusal.map(|refusal| {
        let mut result = Vec::new();
        refusal.pack(&mut result);
        result
    }))
}

fn branch<'a>(ops: &'a [u8], name: &str) -> Result<Vec<Op<'a>>, String> {
    let ops: Result<_, _> = packed::ops(ops).collect();
    ops.map_err(|e| format!("in the {name}-operations of the transaction, {e}"))
}

/// Checks a transaction. `Some`: an operation, in whatever branch, or a compare breaks a rule of the
/// store; nothing happens, and this is the answer. `succeeded` then says in which branch it is.
///
/// # Errors
/// When it is no request at all.
pub fn check(
    compares: &[Compare<'_>],
    then_ops: &[Op<'_>],
    else_ops: &[Op<'_>],
    caller: Option<[u8; 16]>,
) -> Result<Option<TxnResult<'static>>, String> {
    check_size(compares, then_ops, else_ops)?;
    let refused = |code, succeeded, failed_op| TxnResult { code, succeeded, failed_op, results: &[] };
    if let Some(code) = compares.iter().find_map(|compare| check_key_or_root(compare.key).err()) {
        return Ok(Some(refused(code, false, None)));
    }
    let mut refusal = None;
    for (succeeded, ops) in [(true, then_ops), (false, else_ops)] {
        for (position, op) in (0..).zip(ops) {
            check_branch_op(op)?;
            let owned = Op { session: caller.map(|client| (client, 0)), ..*op };
            check_owner(&owned)?;
            if let (None, Err(code)) = (&refusal, check_rules(&owned)) {
                refusal = Some(refused(code, succeeded, Some(position)));
            }
        }
    }
    Ok(refusal)
}

fn check_size(compares: &[Compare<'_>], then_ops: &[Op<'_>], else_ops: &[Op<'_>]) -> Result<(), String> {
    let ops = || then_ops.iter().chain(else_ops);
    let items = compares.len() + ops().count();
    if items > BATCH_ITEMS_MAX {
        return Err(format!(
            "the transaction has {items} compares and operations, the limit is {BATCH_ITEMS_MAX}"
        ));
    }
    let compared: usize = compares.iter().map(|compare| compare.key.len() + compare.operand.len()).sum();
    let expected = |op: &Op<'_>| op.expect.map_or(0, <[u8]>::len);
    let bytes = compared + ops().map(|op| op.key.len() + op.value.len() + expected(op)).sum::<usize>();
    if bytes > BATCH_BYTES_MAX {
        return Err(format!("the transaction has {bytes} bytes, the limit is {BATCH_BYTES_MAX}"));
    }
    Ok(())
}

fn check_branch_op(op: &Op<'_>) -> Result<(), String> {
    match op.kind {
        Kind::Put | Kind::Remove | Kind::Mkdir | Kind::CompareAndSet | Kind::UpdateTtl | Kind::Get => {}
        kind => return Err(format!("{kind:?} in a transaction")),
    }
    if op.session.is_some() || op.guard.is_some() {
        return Err("the operations of a transaction have no session or guard of their own".to_owned());
    }
    check_options(op)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtkv_client::v1::Code;

    fn txn(
        compares: &[Compare<'_>],
        then_ops: &[Op<'_>],
        else_ops: &[Op<'_>],
    ) -> Result<Option<Vec<u8>>, String> {
        let pack = |ops: &[Op<'_>]| {
            let mut bytes = Vec::new();
            ops.iter().for_each(|op| op.pack(&mut bytes));
            bytes
        };
        let mut value = Vec::new();
        Txn { compares: compares.to_vec(), then_ops: &pack(then_ops), else_ops: &pack(else_ops) }
            .pack(&mut value);
        check_packed(&Op::new(Kind::Txn, b"", &value))
    }

    const PUT: Op<'static> = Op {
        kind: Kind::Put,
        key: b"k",
        value: b"v",
        session: None,
        ttl_ms: None,
        expect_index: None,
        expect: None,
        has_new_value: false,
        create_parents: false,
        recursive: false,
        guard: None,
    };

    #[test]
    fn what_breaks_a_rule_is_answered_with_where_it_stands() {
        let bad = Op { key: b"k.", ..PUT };
        let answer = |code, succeeded, failed_op| {
            let mut bytes = Vec::new();
            TxnResult { code, succeeded, failed_op, results: &[] }.pack(&mut bytes);
            Ok(Some(bytes))
        };
        assert_eq!(txn(&[], &[PUT, Op::new(Kind::Get, b"", b"")], &[PUT]), Ok(None));
        assert_eq!(txn(&[], &[], &[]), Ok(None));
        assert_eq!(txn(&[], &[PUT, bad], &[]), answer(Code::InvalidKey, true, Some(1)));
        assert_eq!(txn(&[], &[PUT], &[bad]), answer(Code::InvalidKey, false, Some(0)));
        let compare = Compare {
            target: dtkv_client::packed::txn::Target::Value,
            relation: dtkv_client::packed::txn::Relation::Equal,
            key: b".",
            operand: b"",
        };
        assert_eq!(txn(&[compare], &[bad], &[]), answer(Code::InvalidKey, false, None));
    }

    #[test]
    fn transactions_that_are_none_are_refused_with_a_reason() {
        let big = vec![b'v'; 1 << 20];
        let cases = [
            (txn(&[], &[PUT; 600], &[PUT; 425]), "1025 compares and operations, the limit is 1024"),
            (txn(&[], &[Op { value: &big, ..PUT }; 4], &[]), "bytes, the limit is 4194304"),
            (txn(&[], &[Op::new(Kind::TryLock, b"l", b"")], &[]), "TryLock in a transaction"),
            (txn(&[], &[], &[Op { session: Some(([1; 16], 1)), ..PUT }]), "no session or guard"),
            (txn(&[], &[], &[Op { guard: Some((1, b"l")), ..PUT }]), "no session or guard"),
            (txn(&[], &[Op { recursive: true, ..PUT }], &[]), "does not take recursive"),
            (check_packed(&Op::new(Kind::Txn, b"", b"short")), "in the transaction"),
        ];
        for (refused, expected) in cases {
            let message = refused.expect_err("must be refused");
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }
}
