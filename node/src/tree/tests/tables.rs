//! A test for each row of the contract's tables.

use super::*;
use Code::*;
use dtkv_client::limits::{BATCH_ITEMS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use dtkv_client::packed::{PackedNode, PackedResult, results};

pub(super) const BAD_KEYS: [&str; 8] = ["", ".x", "x.", "a..b", "a b", "a\tb", "a\x7f", "."];

/// `d` holds a value `d.v` and an empty directory `d.e`; beside it a value, an empty directory, a
/// lock directory with an entry, and temporary nodes of mine and of somebody else.
pub(super) fn furnished() -> Fixture {
    let mut f = Fixture::new();
    assert_eq!(f.mkdir("d"), Success);
    assert_eq!(f.put("d.v", "below"), Success);
    assert_eq!(f.mkdir("d.e"), Success);
    assert_eq!(f.put("v", "old"), Success);
    assert_eq!(f.mkdir("empty"), Success);
    f.plant("lock", true, true, None);
    f.plant("lock.entry", false, true, Some(OTHER));
    f.plant("mine", false, false, Some(ME));
    f.plant("theirs", false, false, Some(OTHER));
    f.plant("minedir", true, false, Some(ME));
    f.plant("theirdir", true, false, Some(OTHER));
    f
}

pub(super) fn long_key(len: usize) -> String {
    "k".repeat(len)
}

pub(super) fn long_value(len: usize) -> String {
    "v".repeat(len)
}

fn as_me<'a>(op: Op<'a>) -> Op<'a> {
    by(ME, op)
}

/// Applies the operation and makes sure that a refusal changes nothing.
pub(super) fn refused(f: &mut Fixture, op: &Op<'_>, expected: Code) {
    let before = f.tree.digest();
    assert_eq!(f.apply(op), expected, "{op:?}");
    assert_eq!(f.tree.digest(), before, "{op:?}");
}

pub(super) fn refusals(cases: &[(Op<'_>, Code)]) {
    let mut f = furnished();
    cases.iter().for_each(|(op, expected)| refused(&mut f, op, *expected));
}

// put

#[test]
fn put_checks_the_value_then_the_key_then_the_parent() {
    let huge = long_value(VALUE_BYTES_MAX + 1);
    let put = |key, value| op(Kind::Put, key, value);
    refusals(&[
        (put("", ""), InvalidValue),
        (put("", &huge), ValueTooLong),
        (put("no.parent", ""), InvalidValue),
        (put("no.parent", "x"), ParentDirNotExists),
        (put("v.below.more", "x"), ParentDirNotExists),
        (put("v.below", "x"), ParentNotDir),
        (put("v.below", &huge), ValueTooLong),
        (put("mine.below", "x"), ParentNotDir),
    ]);
}

#[test]
fn put_refuses_bad_keys() {
    let mut f = furnished();
    for key in BAD_KEYS {
        refused(&mut f, &op(Kind::Put, key, "x"), InvalidKey);
    }
    refused(&mut f, &op(Kind::Put, &long_key(KEY_BYTES_MAX + 1), "x"), KeyTooLong);
    assert_eq!(f.put(&long_key(KEY_BYTES_MAX), "x"), Success);
}

#[test]
fn put_leaves_locks_temporary_nodes_and_directories_alone() {
    let put = |key| op(Kind::Put, key, "x");
    refusals(&[
        (put("lock.new"), ParentIsLock),
        (put("lock.entry"), ParentIsLock),
        (put("lock"), IsLockNode),
        (put("mine"), IsTempNode),
        (as_me(put("mine")), IsTempNode),
        (put("theirs"), IsTempNode),
        (put("theirdir"), IsTempNode),
        (as_me(put("minedir")), IsTempNode),
        (put("d"), DirExists),
        (put("empty"), DirExists),
    ]);
}

#[test]
fn put_creates_then_overwrites_even_with_the_same_bytes() {
    let mut f = furnished();
    assert_eq!(f.put("d.new", "1"), Success);
    let created = f.meta("d.new");
    assert_eq!(f.put("d.new", "1"), SuccessOverwrite);
    let meta = f.meta("d.new");
    assert_eq!((meta.create_index, meta.create_time_ms), (created.create_index, created.create_time_ms));
    assert_eq!((meta.update_index, meta.update_time_ms), (f.index, context(f.index).time_ms));
    assert_eq!(f.put("v", "longer"), SuccessOverwrite);
    assert_eq!(f.value("v").unwrap(), "longer");
    assert_eq!(f.put("max", &long_value(VALUE_BYTES_MAX)), Success);
}

#[test]
fn anybody_may_put_below_somebody_elses_temporary_directory() {
    let mut f = furnished();
    assert_eq!(f.put("theirdir.x", "x"), Success);
    assert_eq!(f.mkdir("theirdir.d"), Success);
    assert_eq!(f.remove("theirdir.x"), Success);
}

#[test]
fn create_parents_makes_the_missing_directories_in_the_same_entry() {
    let mut f = furnished();
    let put = Op { create_parents: true, ..op(Kind::Put, "d.a.b.c", "x") };
    assert_eq!(f.apply(&put), Success);
    for made in ["d.a", "d.a.b", "d.a.b.c"] {
        assert_eq!(f.meta(made).create_index, f.index, "{made}");
    }
    assert_eq!(f.meta("d").update_index, f.index);
    assert!(f.meta("d").create_index < f.index);
    assert!(f.tree.get(b"d.a.b").unwrap().is_dir());
    assert_eq!(f.apply(&put), SuccessOverwrite);
    assert_eq!(f.apply(&Op { create_parents: true, ..op(Kind::Mkdir, "m.n.o", "") }), Success);
    assert_eq!(f.apply(&Op { create_parents: true, ..op(Kind::Put, "theirdir.n.o", "x") }), Success);
    assert_eq!(f.apply(&Op { create_parents: true, ..op(Kind::Put, "toplevel", "x") }), Success);
}

#[test]
fn create_parents_stops_at_what_is_no_directory_and_makes_nothing() {
    let put = |key| Op { create_parents: true, ..op(Kind::Put, key, "x") };
    refusals(&[
        (put("v.a.b"), ParentNotDir),
        (put("d.v.b"), ParentNotDir),
        (put("lock.a.b"), ParentIsLock),
        (put("lock.entry.b"), ParentNotDir),
        (put("new..b"), InvalidKey),
        (put("new.b."), InvalidKey),
        (put("d"), DirExists),
    ]);
}

#[test]
fn create_parents_makes_the_deepest_key_that_fits() {
    let mut f = Fixture::new();
    let key = vec!["x"; 4096].join(".");
    assert_eq!(f.apply(&Op { create_parents: true, ..op(Kind::Put, &key, "x") }), Success);
    assert_eq!(f.tree.node_count(), 4097);
    assert_eq!(f.remove_all("x"), Success);
    assert_eq!(f.tree.node_count(), 1);
}

// get

#[test]
fn get_answers_every_kind_of_node() {
    let f = furnished();
    for (key, dir, temp, lock, children) in [
        ("", true, false, false, 8),
        ("d", true, false, false, 2),
        ("v", false, false, false, 0),
        ("lock", true, false, true, 1),
        ("lock.entry", false, true, true, 0),
        ("theirs", false, true, false, 0),
        ("theirdir", true, true, false, 0),
    ] {
        let node = f.tree.get(key.as_bytes()).unwrap_or_else(|code| panic!("{key}: {code:?}"));
        assert_eq!(*node.key().as_ref(), *key.as_bytes());
        assert_eq!((node.is_dir(), node.lease().is_some(), node.is_lock()), (dir, temp, lock), "{key}");
        assert_eq!((node.value().is_none(), node.child_count()), (dir, children), "{key}");
    }
}

#[test]
fn get_refuses_bad_keys_and_misses_absent_ones() {
    let f = furnished();
    let get = |key: &str| f.tree.get(key.as_bytes()).err();
    for key in BAD_KEYS.into_iter().filter(|key| !key.is_empty()) {
        assert_eq!(get(key), Some(InvalidKey), "{key}");
    }
    assert_eq!(get(&long_key(KEY_BYTES_MAX + 1)), Some(KeyTooLong));
    for absent in ["absent", "d.absent", "v.below", "absent.below", "lock.absent"] {
        assert_eq!(get(absent), Some(NotFound), "{absent}");
    }
}

#[test]
fn packed_gets_carry_the_node_or_the_code() {
    let f = furnished();
    let mut out = Vec::new();
    for key in ["v", "absent", "a..b", "lock.entry", "d"] {
        f.tree.pack_get(key.as_bytes(), 0, &mut out);
    }
    let mut results = results(&out);
    let meta = f.meta("v");
    let expected = PackedNode {
        create_index: meta.create_index,
        create_time_ms: meta.create_time_ms,
        update_index: meta.update_index,
        update_time_ms: meta.update_time_ms,
        value: b"old",
        ..PackedNode::default()
    };
    assert_eq!(results.next(Kind::Get), Ok(PackedResult::Node(expected)));
    assert_eq!(results.next(Kind::Get), Ok(PackedResult::Code(NotFound)));
    assert_eq!(results.next(Kind::Get), Ok(PackedResult::Code(InvalidKey)));
    let Ok(PackedResult::Node(entry)) = results.next(Kind::Get) else { panic!("no entry") };
    assert!(entry.lock && entry.temp && !entry.dir);
    let Ok(PackedResult::Node(dir)) = results.next(Kind::Get) else { panic!("no directory") };
    assert_eq!((dir.dir, dir.child_count, dir.value), (true, 2, &b""[..]));
    assert_eq!(results.offset(), out.len());
}

// list

#[test]
fn list_refuses_values_absent_and_bad_keys() {
    let f = furnished();
    let list = |key: &str| f.tree.list(&ListQuery { key: key.as_bytes(), ..ListQuery::default() }).err();
    for (key, code) in
        [("absent", NotFound), ("d.absent", NotFound), ("v", ParentNotDir), ("a..b", InvalidKey)]
    {
        assert_eq!(list(key), Some(code), "{key}");
    }
    assert_eq!(list("lock.entry"), Some(ParentNotDir));
    assert_eq!(list(&long_key(KEY_BYTES_MAX + 1)), Some(KeyTooLong));
    for key in ["", "d", "empty", "lock", "theirdir"] {
        assert_eq!(list(key), None, "{key}");
    }
}

// remove

#[test]
fn remove_checks_the_key_then_existence_then_lock_then_owner_then_children() {
    let mut f = furnished();
    f.plant("theirdir.x", false, false, None);
    let remove = |key| op(Kind::Remove, key, "");
    for key in BAD_KEYS {
        refused(&mut f, &remove(key), InvalidKey);
    }
    let long = long_key(KEY_BYTES_MAX + 1);
    refused(&mut f, &op(Kind::Remove, &long, ""), KeyTooLong);
    for (op, expected) in [
        (remove("absent"), NotFound),
        (remove("v.below"), NotFound),
        (remove("lock"), IsLockNode),
        (remove("lock.entry"), IsLockNode),
        (as_me(remove("lock.entry")), IsLockNode),
        (remove("theirs"), NotOwner),
        (as_me(remove("theirs")), NotOwner),
        (remove("mine"), NotOwner),
        (remove("theirdir"), NotOwner),
        (remove("d"), HasChildren),
    ] {
        refused(&mut f, &op, expected);
    }
}

#[test]
fn remove_takes_permanent_nodes_of_anybody_and_ones_own_temporary_nodes() {
    let mut f = furnished();
    f.plant("minedir.x", false, false, None);
    refused(&mut f, &as_me(op(Kind::Remove, "minedir", "")), HasChildren);
    for key in ["v", "empty", "d.v", "d.e", "d", "mine", "minedir.x", "minedir"] {
        assert_eq!(f.apply(&as_me(op(Kind::Remove, key, ""))), Success, "{key}");
        assert_eq!(f.tree.get(key.as_bytes()).err(), Some(NotFound));
        refused(&mut f, &op(Kind::Remove, key, ""), NotFound);
    }
}

#[test]
fn a_name_may_come_back_as_the_other_kind_with_a_new_create_index() {
    let mut f = furnished();
    let before = f.meta("v");
    assert_eq!(f.remove("v"), Success);
    assert_eq!(f.mkdir("v"), Success);
    assert!(f.meta("v").create_index > before.create_index);
    assert_eq!(f.put("v.x", "x"), Success);
    assert_eq!(f.remove_all("v"), Success);
    assert_eq!(f.put("v", "x"), Success);
}

#[test]
fn recursive_remove_takes_the_whole_subtree() {
    let mut f = furnished();
    assert_eq!(f.apply(&Op { create_parents: true, ..op(Kind::Put, "d.e.a.b", "x") }), Success);
    let nodes = f.tree.node_count();
    assert_eq!(f.remove_all("d"), Success);
    assert_eq!(f.tree.node_count(), nodes - 6 + 1);
    for key in ["d", "d.v", "d.e", "d.e.a", "d.e.a.b"] {
        assert_eq!(f.tree.get(key.as_bytes()).err(), Some(NotFound));
    }
    assert_eq!(f.meta("").update_index, f.index);
    assert_eq!(f.remove_all("v"), Success);
    assert_eq!(f.remove_all("empty"), Success);
    assert_eq!(f.remove_all("absent"), NotFound);
    assert_eq!(f.remove_all(""), InvalidKey);
}

#[test]
fn recursive_remove_is_refused_by_locks_and_by_others_temporary_nodes_below() {
    let mut f = furnished();
    let all = |key| Op { recursive: true, ..op(Kind::Remove, key, "") };
    refused(&mut f, &all("lock"), IsLockNode);
    refused(&mut f, &as_me(all("theirdir")), NotOwner);
    f.plant("d.e.mine", false, false, Some(ME));
    refused(&mut f, &all("d"), NotOwner);
    f.plant("d.e.theirs", false, false, Some(OTHER));
    refused(&mut f, &as_me(all("d")), NotOwner);
    f.plant("d.z", true, true, None);
    refused(&mut f, &as_me(all("d")), IsLockNode);
}

#[test]
fn recursive_remove_takes_ones_own_temporary_nodes_below() {
    let mut f = furnished();
    f.plant("d.mine", true, false, Some(ME));
    f.plant("d.mine.x", false, false, None);
    assert_eq!(f.apply(&as_me(Op { recursive: true, ..op(Kind::Remove, "d", "") })), Success);
}

// mkdir

#[test]
fn mkdir_checks_the_key_then_the_parent_then_what_is_there() {
    let mut f = furnished();
    let mkdir = |key| op(Kind::Mkdir, key, "");
    for key in BAD_KEYS {
        refused(&mut f, &mkdir(key), InvalidKey);
    }
    for (op, expected) in [
        (mkdir("no.parent"), ParentDirNotExists),
        (mkdir("v.below"), ParentNotDir),
        (mkdir("lock.new"), ParentIsLock),
        (mkdir("lock.entry"), ParentIsLock),
        (mkdir("lock"), IsLockNode),
        (mkdir("mine"), IsTempNode),
        (as_me(mkdir("mine")), IsTempNode),
        (as_me(mkdir("minedir")), IsTempNode),
        (mkdir("theirdir"), IsTempNode),
        (mkdir("v"), ValueExists),
        (mkdir("d"), DirExists),
        (Op { create_parents: true, ..mkdir("d") }, DirExists),
        (Op { create_parents: true, ..mkdir("v.a.b") }, ParentNotDir),
    ] {
        refused(&mut f, &op, expected);
    }
    let long = long_key(KEY_BYTES_MAX + 1);
    refused(&mut f, &op(Kind::Mkdir, &long, ""), KeyTooLong);
    assert_eq!(f.mkdir("d.new"), Success);
    assert_eq!(f.meta("d.new").create_index, f.index);
}

// compare-and-set

pub(super) fn cas<'a>(key: &'a str, expect: Option<&'a str>, new: Option<&'a str>) -> Op<'a> {
    let mut op = op(Kind::CompareAndSet, key, new.unwrap_or_default());
    op.expect = expect.map(str::as_bytes);
    op.has_new_value = new.is_some();
    op
}

fn cas_index<'a>(key: &'a str, index: u64, new: Option<&'a str>) -> Op<'a> {
    Op { expect_index: Some(index), ..cas(key, None, new) }
}

#[test]
fn compare_and_set_checks_the_key_then_the_values_then_the_parent() {
    let huge = long_value(VALUE_BYTES_MAX + 1);
    let mut cases = vec![
        (cas("no.parent", None, None), InvalidValue),
        (cas("v", None, None), InvalidValue),
        (cas("lock", None, None), InvalidValue),
        (cas_index("v", 0, None), InvalidValue),
        (cas("v", Some(""), Some("x")), InvalidValue),
        (cas("v", Some("old"), Some("")), InvalidValue),
        (cas("v", None, Some("")), InvalidValue),
        (cas("v", Some("old"), Some(&huge)), ValueTooLong),
        (cas("new", None, Some(&huge)), ValueTooLong),
        (cas("v", Some(&huge), Some("x")), ValueTooLong),
        (cas("no.parent", None, Some("x")), ParentDirNotExists),
        (cas("no.parent", Some("x"), None), ParentDirNotExists),
        (cas("v.below", None, Some("x")), ParentNotDir),
        (cas("lock.new", None, Some("x")), ParentIsLock),
        (cas("lock", None, Some("x")), IsLockNode),
        (cas("mine", Some("planted"), Some("x")), IsTempNode),
        (as_me(cas("mine", Some("planted"), None)), IsTempNode),
        (cas("theirdir", Some("x"), None), IsTempNode),
        (Op { create_parents: true, ..cas("no.parent", None, Some("x")) }, ParentDirNotExists),
    ];
    let long = long_key(KEY_BYTES_MAX + 1);
    cases.push((cas(&long, None, None), KeyTooLong));
    cases.extend(BAD_KEYS.map(|key| (cas(key, None, None), InvalidKey)));
    refusals(&cases);
}

#[test]
fn compare_and_set_by_value_follows_its_table() {
    refusals(&[
        (cas("new", Some("e"), Some("x")), CasMismatch),
        (cas("new", Some("e"), None), CasMismatch),
        (cas("v", None, Some("x")), CasMismatch),
        (cas("v", Some("e"), Some("x")), CasMismatch),
        (cas("v", Some("e"), None), CasMismatch),
        (cas("v", Some("ol"), Some("x")), CasMismatch),
        (cas("d", None, Some("x")), CasMismatch),
        (cas("d", Some("e"), Some("x")), CasMismatch),
        (cas("empty", Some("e"), None), CasMismatch),
    ]);
    let mut f = furnished();
    assert_eq!(f.apply(&cas("d.new", None, Some("1"))), Success);
    assert_eq!((f.meta("d.new").create_index, f.meta("d").update_index), (f.index, f.index));
    assert_eq!(f.apply(&cas("d.new", Some("1"), Some("2"))), Success);
    assert_eq!((f.value("d.new").unwrap().as_str(), f.meta("d.new").update_index), ("2", f.index));
    assert_eq!(f.apply(&cas("d.new", Some("2"), None)), Success);
    assert_eq!(f.tree.get(b"d.new").err(), Some(NotFound));
    assert_eq!(f.meta("d").update_index, f.index);
}

#[test]
fn compare_and_set_by_index_sees_through_aba() {
    let mut f = furnished();
    let index = f.meta("v").update_index;
    for absent in [cas_index("new", 7, Some("x")), cas_index("new", 7, None)] {
        refused(&mut f, &absent, CasMismatch);
    }
    for there in
        [cas_index("v", 0, Some("x")), cas_index("v", index + 1, Some("x")), cas_index("v", index - 1, None)]
    {
        refused(&mut f, &there, CasMismatch);
    }
    let dir_index = f.meta("d").update_index;
    refused(&mut f, &cas_index("d", dir_index, Some("x")), CasMismatch);
    refused(&mut f, &cas_index("d", dir_index, None), CasMismatch);
    assert_eq!((f.put("v", "other"), f.put("v", "old")), (SuccessOverwrite, SuccessOverwrite));
    refused(&mut f, &cas_index("v", index, Some("x")), CasMismatch);
    let index = f.meta("v").update_index;
    assert_eq!(f.apply(&Op { expect: Some(b"ignored"), ..cas_index("v", index, Some("x")) }), Success);
    assert_eq!(f.value("v").unwrap(), "x");
    assert_eq!(f.apply(&cas_index("v", f.index, None)), Success);
    assert_eq!(f.apply(&cas_index("v", 0, Some("again"))), Success);
}

// batches

pub(super) fn batch(items: &[Op<'_>]) -> Vec<u8> {
    let mut packed = Vec::new();
    items.iter().for_each(|item| item.pack(&mut packed));
    packed
}

pub(super) fn apply_batch(f: &mut Fixture, batch: &Op<'_>) -> (Code, Vec<Code>) {
    let bytes = f.apply_all(std::slice::from_ref(batch));
    let mut reader = results(&bytes);
    let Ok(PackedResult::Batch(code, items)) = reader.next(Kind::Batch) else { panic!("no batch result") };
    assert_eq!(reader.offset(), bytes.len());
    (code, items.iter().map(|item| Code::try_from(i32::from(*item)).unwrap()).collect())
}

fn batch_codes(f: &mut Fixture, items: &[Op<'_>]) -> Vec<Code> {
    let packed = batch(items);
    let (code, codes) = apply_batch(f, &Op::new(Kind::Batch, &[], &packed));
    assert_eq!(code, Success);
    codes
}

#[test]
fn batch_items_are_applied_in_order_each_with_its_code_and_all_with_one_index() {
    let mut f = furnished();
    let put = |key, value| op(Kind::Put, key, value);
    let codes = batch_codes(
        &mut f,
        &[
            put("n", "1"),
            put("no.parent", "x"),
            put("d", "x"),
            put("n2", ""),
            put("n", "2"),
            put("mine", "x"),
        ],
    );
    assert_eq!(codes, [Success, ParentDirNotExists, DirExists, InvalidValue, SuccessOverwrite, IsTempNode]);
    assert_eq!(f.value("n").unwrap(), "2");
    let meta = f.meta("n");
    assert_eq!((meta.create_index, meta.update_index), (f.index, f.index));
    assert_eq!(f.tree.get(b"n2").err(), Some(NotFound));
}

#[test]
fn batch_items_see_the_items_before_them() {
    let mut f = furnished();
    let remove = |key| op(Kind::Remove, key, "");
    let codes = batch_codes(
        &mut f,
        &[
            remove("v"),
            remove("absent"),
            remove("d"),
            remove("d.v"),
            remove("d.e"),
            remove("d"),
            remove("lock"),
        ],
    );
    assert_eq!(codes, [Success, NotFound, HasChildren, Success, Success, Success, IsLockNode]);
    let deep = Op { create_parents: true, ..op(Kind::Put, "p.q", "x") };
    let codes = batch_codes(&mut f, &[deep, Op { recursive: true, ..remove("p") }, remove("p.q"), deep]);
    assert_eq!(codes, [Success, Success, NotFound, Success]);
}

#[test]
fn a_batch_whose_items_all_fail_succeeds() {
    let mut f = furnished();
    let before = f.tree.digest();
    assert_eq!(
        batch_codes(&mut f, &[op(Kind::Put, ".x", "x"), op(Kind::Remove, "absent", "")]),
        [InvalidKey, NotFound]
    );
    assert_eq!(f.tree.digest(), before);
}

#[test]
fn batch_items_other_than_plain_puts_and_removes_are_refused() {
    let mut f = furnished();
    let inner = batch(&[op(Kind::Put, "n", "x")]);
    let codes = batch_codes(
        &mut f,
        &[
            op(Kind::Mkdir, "n", ""),
            cas("n", None, Some("x")),
            op(Kind::Get, "v", ""),
            Op::new(Kind::Batch, &[], &inner),
            Op { ttl_ms: Some(1), ..op(Kind::Put, "n", "x") },
            Op { guard: Some((1, b"lock")), ..op(Kind::Put, "n", "x") },
            Op { expect_index: Some(0), ..op(Kind::Put, "n", "x") },
            as_me(op(Kind::Put, "n", "x")),
        ],
    );
    assert_eq!(codes, [ClientReqError; 8]);
    assert_eq!(f.tree.get(b"n").err(), Some(NotFound));
}

#[test]
fn the_session_of_a_batch_owns_all_its_items() {
    let mut f = furnished();
    let packed = batch(&[op(Kind::Remove, "mine", ""), op(Kind::Remove, "theirs", "")]);
    let result = apply_batch(&mut f, &as_me(Op::new(Kind::Batch, &[], &packed)));
    assert_eq!(result, (Success, vec![Success, NotOwner]));
}

#[test]
fn a_batch_that_cannot_be_read_or_breaks_a_limit_is_refused_whole() {
    let mut f = furnished();
    let put = op(Kind::Put, "n", "x");
    let good = batch(&[put]);
    let too_many = batch(&vec![put; BATCH_ITEMS_MAX + 1]);
    let large = long_value(VALUE_BYTES_MAX);
    let too_large = batch(&[op(Kind::Put, "n", &large); 4]);
    let cut = [&good[..], &good[..good.len() - 1]].concat();
    let before = f.tree.digest();
    for bytes in [&[][..], &too_many, &too_large, &cut, b"garbage"] {
        let result = apply_batch(&mut f, &Op::new(Kind::Batch, &[], bytes));
        assert_eq!(result, (ClientReqError, vec![]));
    }
    let plain = Op::new(Kind::Batch, &[], &good);
    assert_eq!(apply_batch(&mut f, &with_ttl(1, plain)), (ClientReqError, vec![]));
    assert_eq!(f.tree.digest(), before);
    let full = batch(&vec![put; BATCH_ITEMS_MAX]);
    assert_eq!(apply_batch(&mut f, &Op::new(Kind::Batch, &[], &full)).1.len(), BATCH_ITEMS_MAX);
}

// entries

#[test]
fn reads_and_ttls_that_would_be_ignored_are_refused() {
    refusals(&[
        (op(Kind::Get, "v", ""), ClientReqError),
        (with_ttl(1, op(Kind::Remove, "v", "")), ClientReqError),
        (with_ttl(1, cas("v", Some("old"), Some("x"))), ClientReqError),
        (with_ttl(1, as_me(op(Kind::Unlock, "lock", ""))), ClientReqError),
    ]);
}

#[test]
fn an_entry_answers_each_of_its_operations_in_order() {
    let mut f = furnished();
    let items = batch(&[op(Kind::Put, "x", "1"), op(Kind::Remove, "absent", "")]);
    let bytes = f.apply_all(&[
        op(Kind::Put, "v", "x"),
        Op::new(Kind::Batch, &[], &items),
        op(Kind::Remove, "absent", ""),
        as_me(op(Kind::Mkdir, "y", "")),
    ]);
    let mut reader = results(&bytes);
    assert_eq!(reader.next(Kind::Put), Ok(PackedResult::Code(SuccessOverwrite)));
    assert_eq!(reader.next(Kind::Batch), Ok(PackedResult::Batch(Success, &[0, 1])));
    assert_eq!(reader.next(Kind::Remove), Ok(PackedResult::Code(NotFound)));
    assert_eq!(reader.next(Kind::Mkdir), Ok(PackedResult::Code(Success)));
    assert_eq!(reader.offset(), bytes.len());
}

#[test]
fn operations_in_front_of_malformed_bytes_stay_applied() {
    let mut f = furnished();
    let mut packed = batch(&[op(Kind::Put, "x", "1")]);
    let offset = packed.len();
    packed.extend(b"garbage");
    let mut results = Vec::new();
    let malformed = f.tree.apply(context(500), &packed, &mut results).unwrap_err();
    assert_eq!((malformed.offset, results), (offset, vec![Success as u8]));
    assert_eq!(f.value("x").unwrap(), "1");
}

// metadata

#[test]
fn every_change_moves_index_and_time_of_all_directories_above() {
    let mut f = Fixture::new();
    assert_eq!(f.apply(&Op { create_parents: true, ..op(Kind::Put, "m.n.o", "1") }), Success);
    assert_eq!(f.put("beside", "x"), Success);
    let beside = f.meta("beside");
    let changes: [Op<'_>; 8] = [
        op(Kind::Put, "m.n.o", "2"),
        op(Kind::Put, "m.n.p", "1"),
        op(Kind::Mkdir, "m.n.q", ""),
        op(Kind::Remove, "m.n.q", ""),
        cas("m.n.o", Some("2"), Some("3")),
        cas("m.n.r", None, Some("1")),
        cas("m.n.r", Some("1"), None),
        Op { create_parents: true, ..op(Kind::Put, "m.n.s.t", "1") },
    ];
    for change in changes {
        assert_eq!((f.apply(&change) as u8) & !2, Success as u8, "{change:?}");
        for above in ["m.n", "m", ""] {
            let meta = f.meta(above);
            let expected = (f.index, context(f.index).time_ms);
            assert_eq!((meta.update_index, meta.update_time_ms), expected, "{above} after {change:?}");
            assert!(meta.create_index < f.index);
        }
        assert_eq!(f.meta("beside"), beside);
    }
    assert_eq!(f.meta("m.n.p").update_index, f.index - 6);
    assert_eq!(f.meta("").create_index, 0);
}

#[test]
fn a_new_tree_is_an_empty_root_without_a_past() {
    let f = Fixture::new();
    assert_eq!(f.meta(""), Meta::default());
    assert_eq!(f.tree.node_count(), 1);
    assert_eq!(f.tree.list(&ListQuery::default()), Ok(ListPage::default()));
}
