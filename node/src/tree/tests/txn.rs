use super::steps::{Action, key, plain};
use super::*;
use dtkv_client::packed::txn::{Compare, Relation, Target, Txn, TxnResult};
use dtkv_client::packed::{self, PackedResult};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn packed_txn(compares: &[Compare<'_>], then_ops: &[u8], else_ops: &[u8]) -> Vec<u8> {
    let (mut value, mut packed) = (Vec::new(), Vec::new());
    Txn { compares: compares.to_vec(), then_ops, else_ops }.pack(&mut value);
    Op { session: Some((ME, 0)), ..Op::new(Kind::Txn, b"", &value) }.pack(&mut packed);
    packed
}

fn pack(ops: &[Op<'_>]) -> Vec<u8> {
    let mut packed = Vec::new();
    ops.iter().for_each(|op| op.pack(&mut packed));
    packed
}

fn txn_result(results: &[u8]) -> TxnResult<'_> {
    match packed::results(results).next(Kind::Txn) {
        Ok(PackedResult::Txn(result)) => result,
        other => panic!("{other:?}"),
    }
}

impl Fixture {
    fn txn(&mut self, compares: &[Compare<'_>], then_ops: &[Op<'_>], else_ops: &[Op<'_>]) -> Vec<u8> {
        self.index += 1;
        let (ops, mut results) = (packed_txn(compares, &pack(then_ops), &pack(else_ops)), Vec::new());
        self.tree.apply(context(self.index), &ops, &mut results).unwrap();
        results
    }

    fn holds(&mut self, target: Target, relation: Relation, key: &str, operand: &[u8]) -> bool {
        let compare = Compare { target, relation, key: key.as_bytes(), operand };
        txn_result(&self.txn(&[compare], &[], &[])).succeeded
    }
}

const OK: u8 = Code::Success as u8;

#[test]
fn the_branch_that_the_compares_choose_is_applied() {
    let mut f = Fixture::new();
    f.put("a", "1");
    let is_one = Compare { target: Target::Value, relation: Relation::Equal, key: b"a", operand: b"1" };
    let swap = [op(Kind::Put, "a", "2"), op(Kind::Remove, "none", ""), op(Kind::Mkdir, "d", "")];
    let other = [op(Kind::Put, "b", "else")];
    let results = f.txn(&[is_one], &swap, &other);
    let codes = [Code::SuccessOverwrite as u8, Code::NotFound as u8, OK];
    let expected = TxnResult { code: Code::Success, succeeded: true, failed_op: None, results: &codes };
    assert_eq!(txn_result(&results), expected);
    let results = f.txn(&[is_one], &swap, &other);
    let expected = TxnResult { code: Code::Success, succeeded: false, failed_op: None, results: &[OK] };
    assert_eq!(txn_result(&results), expected);
    assert_eq!((f.value("a").as_deref(), f.value("b").as_deref()), (Some("2"), Some("else")));
    assert_eq!(f.meta("b").create_index, f.index);
}

#[test]
fn an_operation_that_fails_takes_back_those_before_it() {
    let mut f = Fixture::new();
    f.mkdir("d");
    f.put("d.a", "1");
    let before = (f.tree.digest(), f.tree.node_count(), f.tree.bytes(), f.tree.event_count());
    let first = [op(Kind::Put, "new", "1"), op(Kind::Put, "d.a", "longer")];
    let all = Op { recursive: true, ..op(Kind::Remove, "d", "") };
    let parents = Op { create_parents: true, ..op(Kind::Put, "x.y.z", "1") };
    let failing = [
        (op(Kind::Put, "d", "1"), Code::DirExists),
        (op(Kind::Put, "q.r", "1"), Code::ParentDirNotExists),
        (op(Kind::Remove, "d", ""), Code::HasChildren),
        (op(Kind::Mkdir, "d.a", ""), Code::ValueExists),
        (Op { has_new_value: true, ..op(Kind::CompareAndSet, "d.a", "2") }, Code::CasMismatch),
        (op(Kind::TryLock, "l", ""), Code::ClientReqError),
        (op(Kind::UpdateTtl, "d.a", ""), Code::ClientReqError),
        (Op { session: Some((ME, 1)), ..op(Kind::Put, "a", "1") }, Code::ClientReqError),
        (op(Kind::Get, "a..b", ""), Code::InvalidKey),
    ];
    for (last, code) in failing {
        let ops = [first[0], first[1], parents, last];
        let results = f.txn(&[], &ops, &[]);
        let expected = TxnResult { code, succeeded: true, failed_op: Some(3), results: &[] };
        assert_eq!(txn_result(&results), expected, "{:?}", last.kind);
        let after = (f.tree.digest(), f.tree.node_count(), f.tree.bytes(), f.tree.event_count());
        assert_eq!(after, before, "{:?}", last.kind);
    }
    let results = f.txn(&[], &[all, parents, op(Kind::Put, "x", "1")], &[]);
    assert_eq!(txn_result(&results).failed_op, Some(2));
    assert_eq!((f.tree.digest(), f.value("d.a").as_deref()), (before.0, Some("1")));
    assert_eq!(f.tree.get(b"x.y").map(|_| ()), Err(Code::NotFound));
}

#[test]
fn gets_in_a_branch_see_what_was_done_before_them() {
    let mut f = Fixture::new();
    let results = f.txn(&[], &[op(Kind::Get, "a", ""), op(Kind::Put, "a", "1"), op(Kind::Get, "a", "")], &[]);
    let result = txn_result(&results);
    let mut results = packed::results(result.results);
    assert_eq!(results.next(Kind::Get), Ok(PackedResult::Code(Code::NotFound)));
    assert_eq!(results.next(Kind::Put), Ok(PackedResult::Code(Code::Success)));
    let Ok(PackedResult::Node(node)) = results.next(Kind::Get) else { panic!("no node") };
    assert_eq!((node.value, node.create_index), (&b"1"[..], f.index));
}

#[test]
fn reading_too_much_at_once_takes_everything_back() {
    let mut f = Fixture::new();
    f.put("big", &"x".repeat(1 << 20));
    let digest = f.tree.digest();
    let ops = [&[op(Kind::Put, "a", "1")], &[op(Kind::Get, "big", ""); 4][..]].concat();
    let results = f.txn(&[], &ops, &[]);
    let result = txn_result(&results);
    assert_eq!((result.code, result.failed_op), (Code::ValueTooLong, Some(4)));
    assert_eq!(f.tree.digest(), digest);
}

#[test]
fn compares_look_at_values_and_indexes() {
    use Relation::{Equal, Greater, Less, NotEqual};
    let mut f = Fixture::new();
    f.put("a", "m");
    f.mkdir("d");
    let (created, updated) = (f.index - 1, f.index + 1);
    f.put("a", "m");
    let number = |n: u64| n.to_le_bytes();
    let cases: Vec<(Target, Relation, &str, Vec<u8>, bool)> = vec![
        (Target::Value, Equal, "a", b"m".to_vec(), true),
        (Target::Value, NotEqual, "a", b"m".to_vec(), false),
        (Target::Value, Less, "a", b"n".to_vec(), true),
        (Target::Value, Greater, "a", b"l".to_vec(), true),
        (Target::Value, Greater, "a", b"m".to_vec(), false),
        (Target::Value, Equal, "none", b"".to_vec(), false),
        (Target::Value, NotEqual, "none", b"m".to_vec(), true),
        (Target::Value, Less, "none", b"m".to_vec(), false),
        (Target::Value, NotEqual, "d", b"".to_vec(), true),
        (Target::CreateIndex, Equal, "a", number(created).to_vec(), true),
        (Target::UpdateIndex, Equal, "a", number(updated).to_vec(), true),
        (Target::UpdateIndex, Greater, "a", number(created).to_vec(), true),
        (Target::UpdateIndex, Equal, "none", number(0).to_vec(), true),
        (Target::CreateIndex, Less, "none", number(1).to_vec(), true),
        (Target::UpdateIndex, Equal, "", number(updated).to_vec(), true),
        (Target::LockToken, Equal, "none", number(0).to_vec(), true),
        (Target::LockToken, NotEqual, "a", number(0).to_vec(), false),
    ];
    for (target, relation, key, operand, expected) in cases {
        assert_eq!(f.holds(target, relation, key, &operand), expected, "{target:?} {relation:?} {key:?}");
    }
}

/// Records of a whole tree; loading them makes another that is equal.
fn copy(tree: &Tree) -> Tree {
    let mut nodes = BTreeMap::new();
    let mut note = |node: &Node| {
        let mut record = Vec::new();
        node.record().encode(&mut record);
        nodes.insert(node.key.to_vec(), record);
    };
    note(&tree.slab[ROOT]);
    walk::Walk::new(tree, ROOT, true).for_each(note);
    let mut copy = Tree::new();
    nodes.iter().for_each(|(key, record)| copy.load(key, record).unwrap());
    copy.restore_counters(tree.counters());
    copy
}

/// What is done inside of transactions and outside of them.
#[derive(Clone, Debug)]
enum Act {
    Plain(Action),
    PutTemp(String, u64),
    MakeTempDir(String, u64),
    UpdateTtl(String, u64),
}

impl Act {
    /// Packs it for the tree as it is; in a branch without a session.
    fn pack(&self, tree: &Tree, caller: Option<[u8; 16]>) -> Vec<u8> {
        let session = caller.map(|client| (client, 0));
        let temp = |kind, key, value, ttl| {
            pack(&[Op { session, ttl_ms: Some(ttl), create_parents: true, ..op(kind, key, value) }])
        };
        match self {
            Act::Plain(action) => action.pack_plain(tree),
            Act::PutTemp(key, ttl) => temp(Kind::Put, key, "temporary", *ttl),
            Act::MakeTempDir(key, ttl) => temp(Kind::Mkdir, key, "", *ttl),
            Act::UpdateTtl(key, ttl) => {
                pack(&[Op { session, ttl_ms: Some(*ttl), ..op(Kind::UpdateTtl, key, "") }])
            }
        }
    }
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => plain().prop_map(Act::Plain),
        2 => (key(), 1u64..50).prop_map(|(key, ttl)| Act::PutTemp(key, ttl)),
        1 => (key(), 1u64..50).prop_map(|(key, ttl)| Act::MakeTempDir(key, ttl)),
        2 => (key(), 1u64..50).prop_map(|(key, ttl)| Act::UpdateTtl(key, ttl)),
    ]
}

fn branch() -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec(act(), 1..8)
}

fn packed_branch(tree: &Tree, branch: &[Act]) -> Vec<u8> {
    branch.iter().flat_map(|act| act.pack(tree, None)).collect()
}

fn caller() -> impl Strategy<Value = Option<[u8; 16]>> {
    prop_oneof![4 => Just(Some(ME)), 1 => Just(Some(OTHER)), 1 => Just(None)]
}

/// Everything that is seen from outside.
fn assert_alike(a: &Tree, b: &Tree) {
    assert_eq!(a.digest(), b.digest());
    assert_eq!((a.node_count(), a.bytes(), a.counters()), (b.node_count(), b.bytes(), b.counters()));
    assert_eq!((a.next_deadline(), a.lease_count()), (b.next_deadline(), b.lease_count()));
    // Which of two with the same deadline comes first is the slots' affair.
    let due = |tree: &Tree| {
        let due = tree.due(u64::MAX, usize::MAX).into_iter();
        due.map(|due| (due.key, due.ttl_index)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(due(a), due(b));
    for owner in [ME, OTHER] {
        let names =
            |tree: &Tree| tree.leases.owned(&owner).map(|owned| owned.keys().cloned().collect::<Vec<_>>());
        assert_eq!(names(a), names(b));
    }
}

type Records = BTreeMap<Arc<[u8]>, NodeRecord>;

/// What to write, in a comparable form.
fn handed_out(dirty: Dirty) -> (Records, Vec<Arc<[u8]>>, u64) {
    let mut removed = dirty.removed;
    removed.sort();
    let count = dirty.changed.len();
    let changed: BTreeMap<_, _> = dirty.changed.into_iter().collect();
    assert_eq!(changed.len(), count, "each key once");
    (changed, removed, dirty.bytes)
}

proptest! {
    /// Two trees take the same steps; one of them also transactions that fail. Nobody can tell them
    /// apart: neither by what they hold, nor by what they tell or write, a set that was fixed before
    /// included.
    #[test]
    fn a_transaction_that_fails_never_was(
        steps in prop::collection::vec((act(), caller(), prop::option::of(branch()), 0u8..6), 1..60),
    ) {
        let (mut tree, mut twin) = (Tree::new(), Tree::new());
        for (index, (act, caller, branch, action)) in (1u64..).zip(steps) {
            let (ops, mut results, mut expected) = (act.pack(&tree, caller), Vec::new(), Vec::new());
            tree.apply(context(index), &ops, &mut results).unwrap();
            twin.apply(context(index), &ops, &mut expected).unwrap();
            prop_assert_eq!(results, expected);
            match action {
                0 => {
                    tree.freeze_dirty();
                    twin.freeze_dirty();
                }
                1 => {
                    let (mut dirty, mut expected) = (Dirty::default(), Dirty::default());
                    tree.drain_frozen(usize::MAX, &mut dirty);
                    twin.drain_frozen(usize::MAX, &mut expected);
                    prop_assert_eq!(handed_out(dirty), handed_out(expected));
                }
                _ => {}
            }
            // Sometimes at the same index: operations of one entry.
            let at = context(index + u64::from(action % 2));
            if let Some(branch) = branch {
                let failing = op(Kind::CompareAndSet, "never.there", "x");
                let ops = [packed_branch(&tree, &branch), pack(&[Op { has_new_value: true, ..failing }])].concat();
                let mut results = Vec::new();
                tree.apply(at, &packed_txn(&[], &ops, &[]), &mut results).unwrap();
                prop_assert!(txn_result(&results).failed_op.is_some());
                // The clock goes on with every entry, whatever becomes of it.
                twin.apply(at, &[], &mut Vec::new()).unwrap();
            }
            assert_alike(&tree, &twin);
            prop_assert_eq!(tree.take_events(), twin.take_events());
            prop_assert_eq!(tree.dirty_count(), twin.dirty_count());
        }
        prop_assert_eq!(handed_out(tree.take_dirty()), handed_out(twin.take_dirty()));
    }

    /// A transaction is its operations one after the other on a copy, which is taken if all went well.
    #[test]
    fn a_transaction_is_all_of_its_operations_or_none(
        acts in prop::collection::vec((act(), caller()), 0..40),
        branches in prop::collection::vec(branch(), 1..6),
    ) {
        let (mut tree, mut index) = (Tree::new(), 0);
        for (act, caller) in &acts {
            index += 1;
            let ops = act.pack(&tree, *caller);
            tree.apply(context(index), &ops, &mut Vec::new()).unwrap();
        }
        for branch in branches {
            index += 1;
            let (mut after, ops) = (copy(&tree), packed_branch(&tree, &branch));
            let (mut codes, mut failed) = (Vec::new(), None);
            for (n, op) in (0..).zip(packed::ops(&ops)) {
                let op = op.unwrap();
                let op = Op { session: Some((ME, 0)), ..op };
                after.apply(context(index), &pack(&[op]), &mut codes).unwrap();
                let accepted: &[Code] = match op.kind {
                    Kind::Put => &[Code::Success, Code::SuccessOverwrite],
                    Kind::Remove => &[Code::Success, Code::NotFound],
                    Kind::Mkdir => &[Code::Success, Code::DirExists],
                    _ => &[Code::Success],
                };
                let code = Code::try_from(i32::from(*codes.last().unwrap())).unwrap();
                if !accepted.contains(&code) {
                    failed = Some((n, code));
                    break;
                }
            }
            let (before, mut results) = (copy(&tree), Vec::new());
            tree.apply(context(index), &packed_txn(&[], &ops, &[]), &mut results).unwrap();
            let result = txn_result(&results);
            match failed {
                None => {
                    prop_assert_eq!((result.code, result.results), (Code::Success, &codes[..]));
                    assert_alike(&tree, &after);
                }
                Some((n, code)) => {
                    prop_assert_eq!((result.code, result.failed_op), (code, Some(n)));
                    prop_assert_eq!(tree.digest(), before.digest());
                }
            }
        }
    }
}
