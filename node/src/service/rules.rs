//! The rules that one operation must keep, as far as they can be told from itself: which options it
//! takes, its key, value, times and sizes. What breaks them never reaches the log.

use crate::service::admission::{Access, txn};
use crate::service::scope;
use dtkv_client::limits::{
    BATCH_BYTES_MAX, BATCH_ITEMS_MAX, check_key, check_key_or_root, check_lock_key, check_lock_times,
    check_ttl, check_value,
};
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::{self, Kind, Op, pack_refusal};
use dtkv_client::v1::Code;

/// `None`: the operation goes on. `Some`: its packed result is known already.
///
/// # Errors
/// What makes it no operation at all.
pub fn check_op(op: Op<'_>, scope: Option<&Scope>, access: Access) -> Result<Option<Vec<u8>>, String> {
    let op = &scope::owned(op, scope)?;
    if (op.kind == Kind::Get) != (access == Access::Read) {
        return Err(match access {
            Access::Write => {
                "a get in a frame of writes; set `read` and send it in a frame of gets".to_owned()
            }
            Access::Read => format!("{:?} in a frame of gets", op.kind),
        });
    }
    match op.kind {
        Kind::Scope => return Err("a scope that is not the first operation of its frame".to_owned()),
        Kind::Expire => return Err("an expiry, which only leaders propose".to_owned()),
        _ => {}
    }
    check_options(op)?;
    check_owner(op)?;
    match op.kind {
        Kind::Batch => check_batch(op),
        Kind::Txn => match check_rules(op) {
            Ok(()) => txn::check_packed(op),
            Err(code) => Ok(Some(refusal(op.kind, code))),
        },
        _ => Ok(check_rules(op).err().map(|code| refusal(op.kind, code))),
    }
}

fn refusal(kind: Kind, code: Code) -> Vec<u8> {
    let mut result = Vec::new();
    pack_refusal(kind, code, &mut result);
    result
}

/// Operations that make or name something that a client owns must say which client.
///
/// # Errors
/// What is missing.
pub fn check_owner(op: &Op<'_>) -> Result<(), String> {
    let kind = op.kind;
    let has_owner = matches!(
        kind,
        Kind::UpdateTtl
            | Kind::TryLock
            | Kind::Unlock
            | Kind::UpdateLease
            | Kind::KeepAlive
            | Kind::DropOwner
    );
    match op.session {
        None if has_owner => Err(format!("{kind:?} needs a session: it says who the owner is")),
        None if op.ttl_ms.is_some() => {
            Err(format!("{kind:?} with a ttl needs a session: it says who the owner is"))
        }
        _ => Ok(()),
    }
}

/// Options that the operation does not have, or lacks.
pub(super) fn check_options(op: &Op<'_>) -> Result<(), String> {
    let kind = op.kind;
    let cas = kind == Kind::CompareAndSet;
    let has_value =
        matches!(kind, Kind::Put | Kind::Batch | Kind::TryLock | Kind::Txn) || (cas && op.has_new_value);
    let has_key = !matches!(kind, Kind::Batch | Kind::KeepAlive | Kind::DropOwner | Kind::Txn);
    let needs_ttl = matches!(kind, Kind::UpdateTtl | Kind::TryLock | Kind::UpdateLease);
    let wrong = [
        ("a value", !op.value.is_empty() && !has_value),
        ("a key", !op.key.is_empty() && !has_key),
        ("an expectation", (op.expect.is_some() || op.has_new_value) && !cas),
        ("an expected index", op.expect_index.is_some() && !matches!(kind, Kind::Put | Kind::Remove) && !cas),
        ("create_parents", op.create_parents && !matches!(kind, Kind::Put | Kind::Mkdir)),
        ("recursive", op.recursive && kind != Kind::Remove),
        ("a session", op.session.is_some() && kind == Kind::Get),
        ("a ttl", op.ttl_ms.is_some() && !matches!(kind, Kind::Put | Kind::Mkdir) && !needs_ttl),
        ("a guard", op.guard.is_some() && kind == Kind::Get),
    ];
    if let Some((option, _)) = wrong.iter().find(|(_, is_wrong)| *is_wrong) {
        return Err(format!("{kind:?} does not take {option}"));
    }
    if needs_ttl && op.ttl_ms.is_none() {
        return Err(format!("{kind:?} needs a ttl"));
    }
    if kind == Kind::TryLock && op.value.len() != WAIT_BYTES {
        return Err(format!(
            "the value of a TryLock has {} bytes, it must have {WAIT_BYTES}",
            op.value.len()
        ));
    }
    Ok(())
}

/// The value of a try-lock: how long to wait, in ms.
const WAIT_BYTES: usize = 8;

fn wait_ms(op: &Op<'_>) -> u64 {
    op.value.try_into().map_or(0, u64::from_le_bytes)
}

/// The rules of a single operation, in the order in which they are promised.
///
/// # Errors
/// The code to answer it with.
pub fn check_rules(op: &Op<'_>) -> Result<(), Code> {
    // Nobody holds a lock that cannot be.
    if op.guard.is_some_and(|(_, lock)| check_lock_key(lock).is_err()) {
        return Err(Code::Fenced);
    }
    let ttl_ms = op.ttl_ms.unwrap_or(0);
    match op.kind {
        Kind::Put => {
            op.ttl_ms.map_or(Ok(()), check_ttl)?;
            check_value(op.value)?;
            check_key(op.key)
        }
        Kind::Mkdir => {
            op.ttl_ms.map_or(Ok(()), check_ttl)?;
            check_key(op.key)
        }
        Kind::CompareAndSet => check_compare_and_set(op),
        Kind::Get => check_key_or_root(op.key),
        Kind::Remove => check_key(op.key),
        Kind::UpdateTtl => check_ttl(ttl_ms).and_then(|()| check_key(op.key)),
        Kind::TryLock => check_lock_times(ttl_ms, wait_ms(op)).and_then(|()| check_lock_key(op.key)),
        Kind::UpdateLease => check_ttl(ttl_ms).and_then(|()| check_lock_key(op.key)),
        Kind::Unlock => check_lock_key(op.key),
        Kind::Batch | Kind::Txn | Kind::KeepAlive | Kind::DropOwner => Ok(()),
        Kind::Scope | Kind::Expire => Err(Code::ClientReqError),
    }
}

fn check_compare_and_set(op: &Op<'_>) -> Result<(), Code> {
    check_key(op.key)?;
    let must_not_exist = op.expect_index.map_or(op.expect.is_none(), |index| index == 0);
    match (op.has_new_value, must_not_exist) {
        (true, _) => check_value(op.value),
        (false, true) => Err(Code::InvalidValue),
        (false, false) => Ok(()),
    }
}

/// A batch goes on unless no item of it can; the codes of single items come from the tree.
fn check_batch(op: &Op<'_>) -> Result<Option<Vec<u8>>, String> {
    if op.value.len() > BATCH_BYTES_MAX + BATCH_ITEMS_MAX * packed::HEADER_BYTES {
        return Err(format!(
            "the batch has {} bytes, the limit is {BATCH_BYTES_MAX}; split it",
            op.value.len()
        ));
    }
    let (mut bytes, mut codes, mut kind) = (0, Vec::new(), None);
    for item in packed::ops(op.value) {
        let item = item.map_err(|e| format!("in the batch, {e}"))?;
        check_item(&item, *kind.get_or_insert(item.kind))?;
        bytes += item.key.len() + item.value.len();
        codes.push(check_rules(&item).err().map_or(0, |code| code as u8));
    }
    check_batch_size(codes.len(), bytes)?;
    if let Err(code) = check_rules(op) {
        return Ok(Some(batch_result(code, &[])));
    }
    let all_refused = codes.iter().all(|code| *code != Code::Success as u8);
    Ok(all_refused.then(|| batch_result(Code::Success, &codes)))
}

/// Checks the number of items of a batch, and the bytes of their keys and values.
///
/// # Errors
/// Which limit it breaks.
pub fn check_batch_size(items: usize, bytes: usize) -> Result<(), String> {
    if items == 0 || items > BATCH_ITEMS_MAX {
        return Err(format!("the batch has {items} items, it must have 1 to {BATCH_ITEMS_MAX}"));
    }
    if bytes > BATCH_BYTES_MAX {
        return Err(format!("the batch has {bytes} bytes, the limit is {BATCH_BYTES_MAX}; split it"));
    }
    Ok(())
}

fn check_item(item: &Op<'_>, kind: Kind) -> Result<(), String> {
    if item.kind != kind || !matches!(kind, Kind::Put | Kind::Remove) {
        return Err("a batch holds puts or removes, not both and nothing else".to_owned());
    }
    if item.session.is_some() || item.guard.is_some() || item.ttl_ms.is_some() || item.expect_index.is_some()
    {
        return Err(
            "the items of a batch have no session, guard, ttl or expected index of their own".to_owned()
        );
    }
    check_options(item)
}

fn batch_result(code: Code, items: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(items.len() + 3);
    packed::pack_batch_result(code, items, &mut result);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::admission::{Checked, check};
    use dtkv_client::limits::{KEY_BYTES_MAX, LOCK_KEY_BYTES_MAX, TTL_MS_MAX, VALUE_BYTES_MAX};
    use dtkv_client::v1::failure::Reason;

    fn by_client<'a>(op: Op<'a>) -> Op<'a> {
        Op { session: Some(([1; 16], 0)), ..op }
    }

    fn owned<'a>(ttl_ms: u64, op: Op<'a>) -> Op<'a> {
        by_client(Op { ttl_ms: Some(ttl_ms), ..op })
    }

    fn pack(ops: &[Op<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        ops.iter().for_each(|op| op.pack(&mut bytes));
        bytes
    }

    /// The code that a single operation is answered with here; `None` when it goes on.
    fn code_of(op: Op<'_>) -> Option<Code> {
        let access = Access::of(op.kind == Kind::Get);
        match check(&pack(&[op]), 1, access).expect("well formed") {
            Checked::All => None,
            Checked::Partly(partly) => {
                assert_eq!((partly.count, partly.ops.len()), (0, 0));
                let results = partly.splice(&[]).expect("results");
                Code::try_from(i32::from(results[0])).ok()
            }
        }
    }

    /// What the request as a whole is refused with.
    fn refusal(bytes: &[u8], count: u32, access: Access) -> String {
        let failure = check(bytes, count, access).expect_err("must be refused");
        assert_eq!(failure.reason, Reason::InvalidArgument);
        assert!(!failure.outcome_unknown);
        failure.message
    }

    #[test]
    fn single_operations_that_break_a_rule_are_answered_with_its_code() {
        let long_key = vec![b'k'; KEY_BYTES_MAX + 1];
        let long_value = vec![b'v'; VALUE_BYTES_MAX + 1];
        let (lock_key, wait) = (&long_key[..LOCK_KEY_BYTES_MAX + 1], 5u64.to_le_bytes());
        let put = |key, value| Op::new(Kind::Put, key, value);
        let cas = Op { has_new_value: true, ..Op::new(Kind::CompareAndSet, b"k", b"v") };
        let get = |key| Op::new(Kind::Get, key, b"");
        let cases: Vec<(Op<'_>, Option<Code>)> = vec![
            (put(b"a.b", b"v"), None),
            (put(b"a..b", b""), Some(Code::InvalidValue)),
            (put(b"a..b", &long_value), Some(Code::ValueTooLong)),
            (put(b"a..b", b"v"), Some(Code::InvalidKey)),
            (put(b"", b"v"), Some(Code::InvalidKey)),
            (put(b"a b", b"v"), Some(Code::InvalidKey)),
            (put(&long_key, b"v"), Some(Code::KeyTooLong)),
            (Op { create_parents: true, ..put(b"a.b", b"v") }, None),
            (Op { session: Some(([1; 16], 4)), ..put(b"a", b"v") }, None),
            (owned(5, put(b"a", b"v")), None),
            (owned(0, put(b"", b"")), Some(Code::InvalidTtl)),
            (owned(TTL_MS_MAX + 1, put(b"a", b"v")), Some(Code::InvalidTtl)),
            (Op { guard: Some((5, b"l")), ..put(b"a", b"v") }, None),
            (Op { guard: Some((5, b"l..")), ..put(b"", b"v") }, Some(Code::Fenced)),
            (Op { guard: Some((5, &long_key)), ..put(b"a", b"v") }, Some(Code::Fenced)),
            (Op { expect_index: Some(3), ..put(b"a", b"v") }, None),
            (Op { expect_index: Some(3), ..Op::new(Kind::Remove, b"a", b"") }, None),
            (owned(0, Op::new(Kind::Mkdir, b"", b"")), Some(Code::InvalidTtl)),
            (owned(5, Op::new(Kind::UpdateTtl, b"", b"")), Some(Code::InvalidKey)),
            (owned(0, Op::new(Kind::UpdateTtl, b"", b"")), Some(Code::InvalidTtl)),
            (owned(5, Op::new(Kind::TryLock, b"a", &wait)), None),
            (owned(4, Op::new(Kind::TryLock, b"", &wait)), Some(Code::InvalidTtl)),
            (owned(5, Op::new(Kind::TryLock, lock_key, &wait)), Some(Code::KeyTooLong)),
            (owned(5, Op::new(Kind::TryLock, &lock_key[1..], &wait)), None),
            (owned(0, Op::new(Kind::UpdateLease, b"", b"")), Some(Code::InvalidTtl)),
            (owned(1, Op::new(Kind::UpdateLease, lock_key, b"")), Some(Code::KeyTooLong)),
            (by_client(Op::new(Kind::Unlock, lock_key, b"")), Some(Code::KeyTooLong)),
            (by_client(Op::new(Kind::Unlock, b"a", b"")), None),
            (by_client(Op::new(Kind::KeepAlive, b"", b"")), None),
            (by_client(Op::new(Kind::DropOwner, b"", b"")), None),
            (Op::new(Kind::Remove, b".a", b""), Some(Code::InvalidKey)),
            (Op::new(Kind::Remove, b"", b""), Some(Code::InvalidKey)),
            (Op { recursive: true, ..Op::new(Kind::Remove, b"a", b"") }, None),
            (Op::new(Kind::Mkdir, b"a.", b""), Some(Code::InvalidKey)),
            (Op { create_parents: true, ..Op::new(Kind::Mkdir, b"a.b", b"") }, None),
            (get(b""), None),
            (get(b"a\x7f"), Some(Code::InvalidKey)),
            (get(&long_key), Some(Code::KeyTooLong)),
            (cas, None),
            (Op { value: b"", ..cas }, Some(Code::InvalidValue)),
            (Op { value: &long_value, ..cas }, Some(Code::ValueTooLong)),
            (Op { key: b"", ..cas }, Some(Code::InvalidKey)),
            (Op { has_new_value: false, value: b"", ..cas }, Some(Code::InvalidValue)),
            (Op { has_new_value: false, value: b"", expect: Some(b"e"), ..cas }, None),
            (Op { has_new_value: false, value: b"", expect_index: Some(0), ..cas }, Some(Code::InvalidValue)),
            (Op { has_new_value: false, value: b"", expect_index: Some(9), ..cas }, None),
        ];
        for (op, expected) in cases {
            assert_eq!(code_of(op), expected, "{:?} {:?}", op.kind, String::from_utf8_lossy(op.key));
        }
    }

    #[test]
    fn options_that_an_operation_does_not_have_are_refused() {
        let new = |kind| Op::new(kind, b"k", b"");
        let cases = [
            (Op { value: b"v", ..new(Kind::Remove) }, "Remove does not take a value"),
            (Op { value: b"v", ..new(Kind::CompareAndSet) }, "CompareAndSet does not take a value"),
            (Op { recursive: true, ..new(Kind::Mkdir) }, "Mkdir does not take recursive"),
            (Op { create_parents: true, ..new(Kind::Remove) }, "Remove does not take create_parents"),
            (Op { expect: Some(b"v"), value: b"v", ..new(Kind::Put) }, "Put does not take an expectation"),
            (Op { ttl_ms: Some(1), ..new(Kind::Remove) }, "Remove does not take a ttl"),
            (Op { session: Some(([0; 16], 1)), ..new(Kind::Get) }, "Get does not take a session"),
            (Op { guard: Some((1, b"l")), ..new(Kind::Get) }, "Get does not take a guard"),
            (new(Kind::Batch), "Batch does not take a key"),
            (new(Kind::DropOwner), "DropOwner does not take a key"),
            (Op { key: b"", ..new(Kind::Expire) }, "only leaders"),
            (Op { expect_index: Some(1), ..new(Kind::Mkdir) }, "Mkdir does not take an expected index"),
            (by_client(new(Kind::UpdateTtl)), "UpdateTtl needs a ttl"),
            (owned(5, new(Kind::TryLock)), "has 0 bytes, it must have 8"),
            (new(Kind::Unlock), "Unlock needs a session"),
            (Op { key: b"", ..new(Kind::KeepAlive) }, "KeepAlive needs a session"),
            (Op { value: b"v", ttl_ms: Some(5), ..new(Kind::Put) }, "Put with a ttl needs a session"),
        ];
        for (op, expected) in cases {
            let message = refusal(&pack(&[op]), 1, Access::of(op.kind == Kind::Get));
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    #[test]
    fn batches_are_held_to_their_limits() {
        let item = Op::new(Kind::Put, b"k", b"v");
        let big = vec![b'v'; VALUE_BYTES_MAX];
        let cases = [
            (vec![], "0 items, it must have 1 to 1024"),
            (vec![item; 1025], "1025 items, it must have 1 to 1024"),
            (vec![Op { value: &big, ..item }; 4], "limit is 4194304; split it"),
            (vec![item, Op::new(Kind::Remove, b"k", b"")], "puts or removes"),
            (vec![Op::new(Kind::Mkdir, b"k", b"")], "puts or removes"),
            (vec![Op { session: Some(([0; 16], 1)), ..item }], "ttl or expected index of their own"),
        ];
        for (items, expected) in cases {
            let items = pack(&items);
            let message = refusal(&pack(&[Op::new(Kind::Batch, b"", &items)]), 1, Access::Write);
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
        let fine = pack(&vec![item; 1024]);
        let batch = Op::new(Kind::Batch, b"", &fine);
        assert_eq!(check(&pack(&[batch]), 1, Access::Write), Ok(Checked::All));
        assert_eq!(code_of(Op { guard: Some((1, b"l")), ..batch }), None);
        assert_eq!(code_of(Op { guard: Some((1, b"l.")), ..batch }), Some(Code::Fenced));
    }

    #[test]
    fn a_batch_goes_on_if_any_item_can() {
        let (good, bad) = (Op::new(Kind::Put, b"k", b"v"), Op::new(Kind::Put, b"k.", b"v"));
        let mixed = pack(&[bad, good]);
        assert_eq!(check(&pack(&[Op::new(Kind::Batch, b"", &mixed)]), 1, Access::Write), Ok(Checked::All));
        let hopeless = pack(&[bad, Op { value: b"", ..good }]);
        let checked = check(&pack(&[Op::new(Kind::Batch, b"", &hopeless)]), 1, Access::Write);
        let Ok(Checked::Partly(partly)) = checked else { panic!("{checked:?}") };
        let results = partly.splice(&[]).expect("results");
        assert_eq!(results.as_ref(), [0, 2, 0, Code::InvalidKey as u8, Code::InvalidValue as u8]);
    }

    /// Every flag of the layout, alone, with every kind: either it is the kind's own, or the whole
    /// request is refused and the message names kind and flag.
    #[test]
    fn no_flag_is_passed_over_in_silence() {
        let kinds = [
            Kind::Put,
            Kind::Remove,
            Kind::Mkdir,
            Kind::CompareAndSet,
            Kind::Batch,
            Kind::Get,
            Kind::UpdateTtl,
            Kind::Unlock,
            Kind::UpdateLease,
            Kind::KeepAlive,
            Kind::DropOwner,
        ];
        let flags = ["session", "ttl", "expected index", "expectation", "expectation", "create_parents"];
        let flags = flags.into_iter().chain(["recursive", "guard"]);
        for (bit, name) in flags.enumerate() {
            for kind in kinds {
                let takes = match name {
                    "session" | "guard" => kind != Kind::Get,
                    "ttl" => {
                        matches!(kind, Kind::Put | Kind::Mkdir | Kind::UpdateTtl | Kind::UpdateLease)
                    }
                    "create_parents" => matches!(kind, Kind::Put | Kind::Mkdir),
                    "expected index" => {
                        matches!(kind, Kind::Put | Kind::Remove | Kind::CompareAndSet)
                    }
                    "expectation" => kind == Kind::CompareAndSet,
                    _ => kind == Kind::Remove,
                };
                let has_key = !matches!(kind, Kind::Batch | Kind::KeepAlive | Kind::DropOwner);
                let key: &[u8] = if has_key { b"k" } else { b"" };
                let mut bytes = pack(&[Op::new(kind, key, b"")]);
                bytes[1] = 1 << bit;
                // What the flag announces, all of it zero: client and sequence, ttl, index, an empty
                // expectation, a token and an empty lock.
                bytes.extend(vec![0; [24, 8, 8, 4, 0, 0, 0, 10][bit]]);
                let refused = check(&bytes, 1, Access::of(kind == Kind::Get)).err();
                let names_it = refused.as_ref().is_some_and(|failure| {
                    failure.message.contains(&format!("{kind:?} does not take"))
                        && failure.message.contains(name)
                });
                assert_eq!(names_it, !takes, "{kind:?} with {name}: {refused:?}");
            }
        }
    }
}
