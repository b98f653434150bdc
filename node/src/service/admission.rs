//! What is refused before it costs anything: operations that break a rule, and more bytes than the
//! node has room for.

pub mod txn;

use crate::failure::Failure;
use crate::service::rules::check_op;
use crate::service::scope;
use bytes::Bytes;
use dtkv_client::limits::FRAME_OPS_MAX;
use dtkv_client::packed::scope::Scope;
use dtkv_client::packed::txn::Txn;
use dtkv_client::packed::{self, Kind, Malformed};
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
    use dtkv_client::packed::Op;
    use dtkv_client::v1::Code;
    use dtkv_client::v1::failure::Reason;
    use proptest::prelude::*;

    fn pack(ops: &[Op<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        ops.iter().for_each(|op| op.pack(&mut bytes));
        bytes
    }

    /// What the request as a whole is refused with.
    fn refusal(bytes: &[u8], count: u32, access: Access) -> String {
        let failure = check(bytes, count, access).expect_err("must be refused");
        assert_eq!(failure.reason, Reason::InvalidArgument);
        assert!(!failure.outcome_unknown);
        failure.message
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
