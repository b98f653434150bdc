//! What is refused before it costs anything: operations that break a rule, and more bytes than the
//! node has room for.

pub mod txn;

use crate::failure::Failure;
use crate::service::scope;
use bytes::Bytes;
use dtkv_client::limits::{
    BATCH_BYTES_MAX, BATCH_ITEMS_MAX, FRAME_OPS_MAX, check_key, check_key_or_root, check_value,
};
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::txn::Txn;
use dtkv_client::packed::{self, Kind, Malformed, Op};
use dtkv_client::v1::Code;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the check of packed operations found.
#[derive(Debug, PartialEq)]
pub enum Checked {
    /// All of them go on, as they are.
    All,
    /// Some are answered here.
    Partly(Partly),
}

/// Operations of which some are answered without going on.
#[derive(Debug, PartialEq)]
pub struct Partly {
    /// Those that go on, packed, behind the scope that they have; empty when none does.
    pub ops: Bytes,
    /// How many go on.
    pub count: u32,
    verdicts: Vec<Verdict>,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    GoesOn(Kind),
    /// The packed result.
    Answered(Vec<u8>),
}

impl Partly {
    /// How many are answered here.
    pub fn answered(&self) -> usize {
        self.verdicts.len() - self.count as usize
    }

    /// The results of all operations, given those of the ones that went on.
    ///
    /// # Errors
    /// When `results` are not the results of those operations.
    pub fn splice(&self, results: &[u8]) -> Result<Bytes, Malformed> {
        let mut reader = packed::results(results);
        let mut all = Vec::with_capacity(results.len() + self.verdicts.len());
        for verdict in &self.verdicts {
            match verdict {
                Verdict::Answered(result) => all.extend_from_slice(result),
                Verdict::GoesOn(kind) => {
                    let from = reader.offset();
                    reader.next(*kind)?;
                    all.extend_from_slice(&results[from..reader.offset()]);
                }
            }
        }
        Ok(all.into())
    }
}

/// Whether a frame holds writes or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything except gets.
    Write,
    /// Gets.
    Read,
}

impl Access {
    /// As in `Frame.read`.
    pub fn of(read: bool) -> Access {
        if read { Access::Read } else { Access::Write }
    }
}

/// Checks the number of operations that a frame says it has.
///
/// # Errors
/// When it has none or too many.
pub fn check_count(count: u32) -> Result<(), Failure> {
    if count == 0 || count as usize > FRAME_OPS_MAX {
        return Err(Failure::invalid(format!(
            "a frame holds 1 to {FRAME_OPS_MAX} operations, this one says {count}"
        )));
    }
    Ok(())
}

/// Checks packed operations: layout, scope, number, kinds, keys, values and sizes.
///
/// # Errors
/// When they are no request at all. A single operation that breaks a rule of the store is no error:
/// it is answered here and the others go on.
pub fn check(ops: &[u8], count: u32, access: Access) -> Result<Checked, Failure> {
    let (scope, covered) = scope::take(ops, count)?;
    let mut found = 0;
    let mut all_go_on = true;
    for op in packed::ops(covered) {
        found += 1;
        let op = op.map_err(|e| Failure::invalid(format!("operation {found} of {count}: {e}")))?;
        let verdict = check_op(op, scope.as_ref(), access);
        let verdict =
            verdict.map_err(|what| Failure::invalid(format!("operation {found} of {count}: {what}")))?;
        all_go_on &= verdict.is_none();
    }
    if found != count {
        return Err(Failure::invalid(format!("the frame says {count} operations and holds {found}")));
    }
    if all_go_on { Ok(Checked::All) } else { Ok(Checked::Partly(split(covered, scope, access))) }
}

/// Sorts operations, all of them well formed, into those that go on and those answered here. The same
/// frame is always split in the same way, so a scope covers the same operations each time.
fn split(ops: &[u8], scope: Option<Scope>, access: Access) -> Partly {
    let mut going_on = Vec::with_capacity(ops.len() + Scope::PACKED_BYTES);
    if let Some(scope) = scope {
        scope.pack(&mut going_on);
    }
    let mut verdicts = Vec::new();
    let mut count: u16 = 0;
    let mut reader = packed::ops(ops);
    loop {
        let from = reader.offset();
        let Some(Ok(op)) = reader.next() else { break };
        match check_op(op, scope.as_ref(), access) {
            Ok(Some(result)) => verdicts.push(Verdict::Answered(result)),
            _ => {
                going_on.extend_from_slice(&ops[from..reader.offset()]);
                verdicts.push(Verdict::GoesOn(op.kind));
                count += 1;
            }
        }
    }
    match scope {
        _ if count == 0 => going_on.clear(),
        Some(scope) => {
            let mut head = Vec::with_capacity(Scope::PACKED_BYTES);
            Scope { operations: count, ..scope }.pack(&mut head);
            going_on.splice(..head.len(), head);
        }
        None => {}
    }
    Partly { ops: going_on.into(), count: count.into(), verdicts }
}

/// `None`: it goes on. `Some`: its packed result is known already.
fn check_op(op: Op<'_>, scope: Option<&Scope>, access: Access) -> Result<Option<Vec<u8>>, String> {
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
    match op.kind {
        Kind::Batch => return check_batch(op),
        Kind::Txn => return txn::check_packed(op),
        _ => {}
    }
    Ok(check_rules(op).err().map(|code| vec![code as u8]))
}

/// Options that the operation does not have.
fn check_options(op: &Op<'_>) -> Result<(), String> {
    let kind = op.kind;
    let cas = kind == Kind::CompareAndSet;
    let has_value = matches!(kind, Kind::Put | Kind::Batch | Kind::Txn) || (cas && op.has_new_value);
    let wrong = [
        ("a value", !op.value.is_empty() && !has_value),
        ("a key", !op.key.is_empty() && matches!(kind, Kind::Batch | Kind::Txn)),
        ("an expectation", (op.expect.is_some() || op.expect_index.is_some() || op.has_new_value) && !cas),
        ("create_parents", op.create_parents && !matches!(kind, Kind::Put | Kind::Mkdir)),
        ("recursive", op.recursive && kind != Kind::Remove),
        ("a session", op.session.is_some() && kind == Kind::Get),
        ("a ttl", op.ttl_ms.is_some() && !matches!(kind, Kind::Put | Kind::Mkdir)),
        ("a guard", op.guard.is_some() && kind == Kind::Get),
    ];
    match wrong.iter().find(|(_, is_wrong)| *is_wrong) {
        Some((option, _)) => Err(format!("{kind:?} does not take {option}")),
        None => Ok(()),
    }
}

/// The rules of a single operation, in the order in which they are promised.
///
/// # Errors
/// The code to answer it with.
pub fn check_rules(op: &Op<'_>) -> Result<(), Code> {
    // Temporary nodes and fencing are not served yet; a write must not pass as if they were.
    if op.ttl_ms.is_some() || op.guard.is_some() {
        return Err(Code::ClientReqError);
    }
    match op.kind {
        Kind::Put => check_value(op.value).and_then(|()| check_key(op.key)),
        Kind::CompareAndSet => check_compare_and_set(op),
        Kind::Get => check_key_or_root(op.key),
        Kind::Remove | Kind::Mkdir | Kind::Batch => check_key(op.key),
        _ => Err(Code::ClientReqError),
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
    if op.guard.is_some() || op.ttl_ms.is_some() {
        return Ok(Some(batch_result(Code::ClientReqError, &[])));
    }
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
    let all_refused = codes.iter().all(|code| *code != Code::Success as u8);
    Ok(all_refused.then(|| batch_result(Code::Success, &codes)))
}

/// Whether any of these operations, all of them well formed, makes the tree grow.
pub fn grows(ops: &[u8]) -> bool {
    packed::ops(ops).flatten().any(|op| match op.kind {
        Kind::Put | Kind::Mkdir | Kind::TryLock => true,
        Kind::CompareAndSet => op.has_new_value,
        Kind::Batch => grows(op.value),
        Kind::Txn => Txn::read(op.value).is_ok_and(|txn| grows(txn.then_ops) || grows(txn.else_ops)),
        Kind::Remove | Kind::Get | Kind::Scope | Kind::Expire => false,
        Kind::UpdateTtl | Kind::UpdateLease | Kind::KeepAlive => false,
        Kind::Unlock | Kind::DropOwner => false,
    })
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
    if item.session.is_some() || item.guard.is_some() || item.ttl_ms.is_some() {
        return Err("the items of a batch have no session, guard or ttl of their own".to_owned());
    }
    check_options(item)
}

fn batch_result(code: Code, items: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(items.len() + 3);
    packed::pack_batch_result(code, items, &mut result);
    result
}

/// Bytes of requests and answers in flight on this node.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    /// Room for this many bytes.
    pub fn new(bytes_max: usize) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicUsize::new(0), bytes_max })
    }

    /// Bytes in flight.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes room for a request.
    ///
    /// # Errors
    /// `OVERLOADED`, with a time to wait, when there is none.
    pub fn take(self: &Arc<Budget>, bytes: usize) -> Result<Hold, Failure> {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Hold { budget: self.clone(), bytes }),
            Err(used) => Err(Failure::overloaded(
                format!(
                    "{used} bytes of requests are in flight on this node and this one has {bytes}; the limit is {}",
                    self.bytes_max
                ),
                RETRY_AFTER_MS,
            )),
        }
    }
}

/// When a refused request may come again. A node works its budget off within a few syncs.
pub const RETRY_AFTER_MS: u32 = 50;

/// Room taken in the budget, given back when dropped: with the answer, and also when nobody is there
/// any more to take it.
#[derive(Debug)]
pub struct Hold {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Hold {
    /// Takes more: the size of an answer is known only when it is there. It cannot be refused any
    /// more; instead, later requests are.
    pub fn grow(&mut self, bytes: usize) {
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtkv_client::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
    use dtkv_client::v1::failure::Reason;
    use proptest::prelude::*;

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
            (Op { ttl_ms: Some(5), ..put(b"a", b"v") }, Some(Code::ClientReqError)),
            (Op { guard: Some((5, b"l")), ..put(b"a", b"v") }, Some(Code::ClientReqError)),
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
    fn requests_that_are_none_are_refused_with_a_reason() {
        let put = Op::new(Kind::Put, b"k", b"v");
        let get = Op::new(Kind::Get, b"k", b"");
        let two = pack(&[put, put]);
        let cases = [
            (refusal(&two, 0, Access::Write), "says 0 operations and holds 2"),
            (refusal(&two, 1, Access::Write), "says 1 operations and holds 2"),
            (refusal(&two, 3, Access::Write), "says 3 operations and holds 2"),
            (refusal(b"", 1, Access::Write), "says 1 operations and holds 0"),
            (
                refusal(&two[..two.len() - 1], 2, Access::Write),
                "operation 2 of 2: packed bytes are malformed",
            ),
            (refusal(&[9; 40], 1, Access::Write), "malformed"),
            (refusal(&pack(&[get]), 1, Access::Write), "a get in a frame of writes"),
            (refusal(&two, 2, Access::Read), "Put in a frame of gets"),
        ];
        for (message, expected) in cases {
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    #[test]
    fn frames_hold_1_to_256_operations() {
        assert!(check_count(1).is_ok() && check_count(256).is_ok());
        for count in [0, 257, u32::MAX] {
            let failure = check_count(count).expect_err("must be refused");
            assert!(failure.message.contains("1 to 256 operations"), "{failure}");
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
        ];
        for (op, expected) in cases {
            let message = refusal(&pack(&[op]), 1, Access::of(op.kind == Kind::Get));
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    /// Every flag of the layout, alone, with every kind: either it is the kind's own, or the whole
    /// request is refused and the message names kind and flag.
    #[test]
    fn no_flag_is_passed_over_in_silence() {
        let kinds = [Kind::Put, Kind::Remove, Kind::Mkdir, Kind::CompareAndSet, Kind::Batch, Kind::Get];
        let flags = ["session", "ttl", "expectation", "expectation", "expectation", "create_parents"];
        let flags = flags.into_iter().chain(["recursive", "guard"]);
        for (bit, name) in flags.enumerate() {
            for kind in kinds {
                let takes = match name {
                    "session" | "guard" => kind != Kind::Get,
                    "ttl" | "create_parents" => matches!(kind, Kind::Put | Kind::Mkdir),
                    "expectation" => kind == Kind::CompareAndSet,
                    _ => kind == Kind::Remove,
                };
                let key: &[u8] = if kind == Kind::Batch { b"" } else { b"k" };
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

    #[test]
    fn only_what_adds_to_the_tree_grows() {
        let puts = pack(&[Op::new(Kind::Put, b"k", b"v")]);
        let removes = pack(&[Op::new(Kind::Remove, b"k", b"")]);
        let cas = Op { expect: Some(b"e"), ..Op::new(Kind::CompareAndSet, b"k", b"") };
        let cases = [
            (Op::new(Kind::Put, b"k", b"v"), true),
            (Op::new(Kind::Mkdir, b"k", b""), true),
            (Op { has_new_value: true, value: b"v", ..cas }, true),
            (cas, false),
            (Op::new(Kind::Batch, b"", &puts), true),
            (Op::new(Kind::Batch, b"", &removes), false),
            (Op { recursive: true, ..Op::new(Kind::Remove, b"k", b"") }, false),
            (Op::new(Kind::Get, b"k", b""), false),
        ];
        for (op, expected) in cases {
            assert_eq!(grows(&pack(&[op])), expected, "{:?}", op.kind);
            let beside = pack(&[Op::new(Kind::Remove, b"a", b""), op]);
            assert_eq!(grows(&beside), expected, "a remove and {:?}", op.kind);
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
            (vec![Op { session: Some(([0; 16], 1)), ..item }], "no session, guard or ttl of their own"),
        ];
        for (items, expected) in cases {
            let items = pack(&items);
            let message = refusal(&pack(&[Op::new(Kind::Batch, b"", &items)]), 1, Access::Write);
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
        let fine = pack(&vec![item; 1024]);
        let batch = Op::new(Kind::Batch, b"", &fine);
        assert_eq!(check(&pack(&[batch]), 1, Access::Write), Ok(Checked::All));
        assert_eq!(code_of(Op { guard: Some((1, b"l")), ..batch }), Some(Code::ClientReqError));
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

    #[test]
    fn refused_operations_are_spliced_between_the_results_of_the_others() {
        let batch_items = pack(&[Op::new(Kind::Remove, b"a", b""), Op::new(Kind::Remove, b"b", b"")]);
        let good = [
            Op::new(Kind::Put, b"k", b"v"),
            Op::new(Kind::Batch, b"", &batch_items),
            Op::new(Kind::Mkdir, b"d", b""),
        ];
        let bad = Op::new(Kind::Put, b"", b"v");
        let bytes = pack(&[bad, good[0], good[1], bad, good[2], bad]);
        let Ok(Checked::Partly(partly)) = check(&bytes, 6, Access::Write) else { panic!("must be split") };
        assert_eq!((partly.count, partly.answered()), (3, 3));
        assert_eq!(partly.ops, pack(&good));
        let mut results = vec![Code::SuccessOverwrite as u8];
        packed::pack_batch_result(Code::Success, &[0, 1], &mut results);
        results.push(Code::DirExists as u8);
        let expected = [6, 2, 0, 2, 0, 0, 1, 6, 3, 6];
        assert_eq!(partly.splice(&results).expect("results").as_ref(), expected);
        assert!(partly.splice(&results[..2]).is_err());
    }

    #[test]
    fn the_budget_refuses_what_has_no_room_and_takes_everything_back() {
        let budget = Budget::new(100);
        let mut first = budget.take(60).expect("room");
        let refused = budget.take(41).expect_err("no room");
        assert_eq!((refused.reason, refused.retry_after_ms), (Reason::Overloaded, Some(RETRY_AFTER_MS)));
        assert!(refused.message.contains("limit is 100"), "{}", refused.message);
        let second = budget.take(40).expect("room");
        first.grow(500);
        assert_eq!(budget.used(), 600);
        drop(first);
        assert_eq!(budget.used(), 40);
        drop(second);
        assert_eq!(budget.used(), 0);
        assert!(budget.take(usize::MAX).is_err());
    }

    const ME: [u8; 16] = [1; 16];

    fn scope(operations: u16) -> Scope {
        Scope { client_id: ME, sequence: 3, acknowledged_below: 2, operations, is_retry: true }
    }

    fn scoped(scope: Scope, ops: &[Op<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        scope.pack(&mut bytes);
        bytes.extend(pack(ops));
        bytes
    }

    #[test]
    fn a_scope_covers_exactly_its_frame() {
        let put = Op::new(Kind::Put, b"k", b"v");
        let mine = Op { session: Some((ME, 0)), ..put };
        let theirs = Op { session: Some(([2; 16], 0)), ..put };
        assert_eq!(check(&scoped(scope(2), &[put, mine]), 2, Access::Write), Ok(Checked::All));
        let (one, get) = (scoped(scope(1), &[put]), Op::new(Kind::Get, b"k", b""));
        let broken = Op { session: Some((ME, 0)), ..Op::new(Kind::Scope, b"", &[1; 11]) };
        let cases = [
            (
                refusal(&scoped(scope(2), &[put]), 1, Access::Write),
                "covers 2 operations and the frame says 1",
            ),
            (refusal(&scoped(scope(2), &[put]), 2, Access::Write), "says 2 operations and holds 1"),
            (refusal(&scoped(scope(1), &[theirs]), 1, Access::Write), "another client"),
            (refusal(&[&one[..], &one].concat(), 1, Access::Write), "second scope"),
            (refusal(&[&pack(&[put])[..], &one].concat(), 2, Access::Write), "not the first operation"),
            (refusal(&pack(&[broken, put]), 1, Access::Write), "the scope is malformed"),
            (refusal(&scoped(scope(1), &[get]), 1, Access::Write), "a get in a frame of writes"),
            (refusal(&pack(&[Op::new(Kind::Expire, b"", b"")]), 1, Access::Write), "only leaders"),
        ];
        for (message, expected) in cases {
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
        assert!(check(&scoped(scope(1), &[get]), 1, Access::Read).is_err());
    }

    #[test]
    fn a_scope_goes_on_with_the_operations_that_do() {
        let (good, bad) = (Op::new(Kind::Put, b"k", b"v"), Op::new(Kind::Put, b"k.", b"v"));
        let mixed = check(&scoped(scope(3), &[bad, good, bad]), 3, Access::Write);
        let Ok(Checked::Partly(partly)) = mixed else { panic!("{mixed:?}") };
        assert_eq!((partly.count, &partly.ops[..]), (1, &scoped(scope(1), &[good])[..]));
        assert_eq!(partly.splice(&[2]).expect("results").as_ref(), [6, 2, 6]);
        let hopeless = check(&scoped(scope(1), &[bad]), 1, Access::Write);
        let Ok(Checked::Partly(partly)) = hopeless else { panic!("{hopeless:?}") };
        assert_eq!((partly.count, partly.ops.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_checked_without_panic(bytes: Vec<u8>, count in 0u32..4, read: bool) {
            let _ = check(&bytes, count, Access::of(read));
        }
    }
}
