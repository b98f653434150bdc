//! A test for each row of the tables of temporary nodes.

use super::tables::{BAD_KEYS, cas, furnished, long_key, long_value, refusals, refused};
use super::*;
use Code::*;
use dtkv_client::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

fn put_temp<'a>(key: &'a str, ttl_ms: u64) -> Op<'a> {
    by(ME, with_ttl(ttl_ms, op(Kind::Put, key, "x")))
}

fn make_temp_dir<'a>(key: &'a str, ttl_ms: u64) -> Op<'a> {
    by(ME, with_ttl(ttl_ms, op(Kind::Mkdir, key, "")))
}

fn update_ttl<'a>(key: &'a str, ttl_ms: u64) -> Op<'a> {
    by(ME, with_ttl(ttl_ms, op(Kind::UpdateTtl, key, "")))
}

fn lock<'a>(key: &'a str) -> Op<'a> {
    by(ME, with_ttl(10, Op::new(Kind::TryLock, key.as_bytes(), &[0; 8])))
}

#[test]
fn a_temporary_node_needs_an_owner_and_a_ttl_within_its_range() {
    for kind in [Kind::Put, Kind::Mkdir, Kind::UpdateTtl] {
        let new = |ttl_ms| by(ME, with_ttl(ttl_ms, op(kind, "new", "")));
        refusals(&[
            (Op { session: None, ..new(1) }, ClientReqError),
            (new(0), InvalidTtl),
            (new(TTL_MS_MAX + 1), InvalidTtl),
            (new(u64::MAX), InvalidTtl),
        ]);
    }
    let mut f = furnished();
    assert_eq!(f.apply(&put_temp("new", TTL_MS_MAX)), Success);
    refused(&mut f, &by(ME, op(Kind::UpdateTtl, "new", "")), ClientReqError);
}

#[test]
fn put_temp_follows_its_table_in_order() {
    let huge = long_value(VALUE_BYTES_MAX + 1);
    let long = long_key(KEY_BYTES_MAX + 1);
    let put = |key| put_temp(key, 10);
    refusals(&[
        (Op { value: b"", ..put("a..b") }, InvalidValue),
        (Op { value: huge.as_bytes(), ..put("a..b") }, ValueTooLong),
        (put(&long), KeyTooLong),
        (put("no.parent"), ParentDirNotExists),
        (put("v.below"), ParentNotDir),
        (put("mine.below"), ParentNotDir),
        (put("lock.new"), ParentIsLock),
        (put("lock.entry"), ParentIsLock),
        (put("minedir.x"), UnderTempDir),
        (put("theirdir.x"), UnderTempDir),
        (Op { create_parents: true, ..put("minedir.x.y") }, UnderTempDir),
        (Op { create_parents: true, ..put("v.x.y") }, ParentNotDir),
        (Op { create_parents: true, ..put("lock.x.y") }, ParentIsLock),
        (put("lock"), IsLockNode),
        (put("v"), NotTempNode),
        (put("d"), NotTempNode),
        (put("theirs"), NotOwner),
        (put("theirdir"), NotOwner),
        (put("minedir"), DirExists),
        (by([9; 16], put("mine")), NotOwner),
    ]);
    let mut f = furnished();
    for key in BAD_KEYS {
        refused(&mut f, &put(key), InvalidKey);
    }
}

#[test]
fn put_temp_makes_a_leased_value_and_renews_its_own() {
    let mut f = furnished();
    assert_eq!(f.apply(&put_temp("d.t", 10)), Success);
    let made = f.meta("d.t");
    assert_eq!(f.lease("d.t"), Lease { owner: ME, ttl_ms: 10, start_ms: 5_000, ttl_index: f.index });
    assert_eq!((made.create_index, f.meta("d").update_index), (f.index, f.index));
    f.clock_ms += 7;
    assert_eq!(f.apply(&Op { value: b"other", ..put_temp("d.t", 20) }), SuccessOverwrite);
    assert_eq!(f.lease("d.t"), Lease { owner: ME, ttl_ms: 20, start_ms: 5_007, ttl_index: f.index });
    assert_eq!((f.meta("d.t").create_index, f.meta("d.t").update_index), (made.create_index, f.index));
    assert_eq!(f.value("d.t").unwrap(), "other");
    assert_eq!(f.apply(&Op { create_parents: true, ..put_temp("p.q.t", 10) }), Success);
    assert!(f.tree.get(b"p.q").is_ok_and(|node| node.is_dir() && node.lease().is_none()));
}

#[test]
fn make_temp_dir_follows_its_table_in_order() {
    let dir = |key| make_temp_dir(key, 10);
    refusals(&[
        (dir("a..b"), InvalidKey),
        (dir("no.parent"), ParentDirNotExists),
        (dir("v.below"), ParentNotDir),
        (dir("lock.entry"), ParentIsLock),
        (dir("theirdir.x"), UnderTempDir),
        (dir("lock"), IsLockNode),
        (dir("v"), NotTempNode),
        (dir("d"), NotTempNode),
        (dir("theirs"), NotOwner),
        (dir("theirdir"), NotOwner),
        (dir("mine"), ValueExists),
    ]);
    let mut f = furnished();
    assert_eq!(f.apply(&dir("d.t")), Success);
    let meta = f.meta("d.t");
    f.clock_ms += 5;
    assert_eq!(f.apply(&make_temp_dir("d.t", 30)), DirExists);
    assert_eq!(f.lease("d.t"), Lease { owner: ME, ttl_ms: 30, start_ms: 5_005, ttl_index: f.index });
    assert_eq!(
        (f.meta("d.t"), f.meta("d").update_index),
        (meta, meta.update_index),
        "a renewal moves nothing"
    );
}

#[test]
fn update_ttl_follows_its_table_and_moves_no_index() {
    let long = long_key(KEY_BYTES_MAX + 1);
    refusals(&[
        (update_ttl("a..b", 0), InvalidTtl),
        (update_ttl("a..b", 1), InvalidKey),
        (update_ttl("", 1), InvalidKey),
        (update_ttl(&long, 1), KeyTooLong),
        (update_ttl("absent", 1), NotFound),
        (update_ttl("v", 1), NotTempNode),
        (update_ttl("d", 1), NotTempNode),
        (update_ttl("lock", 1), NotTempNode),
        (update_ttl("lock.entry", 1), NotTempNode),
        (update_ttl("theirs", 1), NotOwner),
        (update_ttl("theirdir", 1), NotOwner),
    ]);
    let mut f = furnished();
    let root = f.meta("");
    for key in ["mine", "minedir"] {
        let meta = f.meta(key);
        assert_eq!(f.apply(&update_ttl(key, 77)), Success);
        assert_eq!(f.lease(key), Lease { owner: ME, ttl_ms: 77, start_ms: 5_000, ttl_index: f.index });
        assert_eq!((f.meta(key), f.meta("")), (meta, root));
    }
}

#[test]
fn who_may_do_what_with_a_temporary_node() {
    let mut f = furnished();
    f.plant("minedir.x", false, false, None);
    let plain = |key| op(Kind::Put, key, "x");
    for client in [ME, OTHER] {
        for op in [
            by(client, plain("mine")),
            by(client, plain("minedir")),
            by(client, op(Kind::Mkdir, "minedir", "")),
            by(client, cas("mine", Some("planted"), Some("x"))),
        ] {
            refused(&mut f, &op, IsTempNode);
        }
        refused(&mut f, &by(client, put_temp("minedir.t", 1)), UnderTempDir);
        refused(&mut f, &by(client, make_temp_dir("minedir.t", 1)), UnderTempDir);
        refused(&mut f, &by(client, update_ttl("minedir.x", 1)), NotTempNode);
        assert_eq!(f.apply(&by(client, op(Kind::Mkdir, "minedir.d", ""))), Success);
        assert_eq!(f.apply(&by(client, plain("minedir.d.y"))), Success);
        refused(&mut f, &by(client, put_temp("minedir.d.t", 1)), UnderTempDir);
        assert_eq!(
            f.apply(&by(client, Op { recursive: true, ..op(Kind::Remove, "minedir.d", "") })),
            Success
        );
    }
    for key in ["mine", "minedir"] {
        refused(&mut f, &by(OTHER, put_temp(key, 1)), NotOwner);
        refused(&mut f, &by(OTHER, update_ttl(key, 1)), NotOwner);
        refused(&mut f, &by(OTHER, op(Kind::Remove, key, "")), NotOwner);
    }
    refused(&mut f, &by(ME, op(Kind::Remove, "minedir", "")), HasChildren);
    assert_eq!(f.apply(&by(OTHER, op(Kind::Remove, "minedir.x", ""))), Success);
    assert_eq!(f.apply(&by(ME, op(Kind::Remove, "minedir", ""))), Success);
    assert_eq!(f.apply(&by(ME, op(Kind::Remove, "mine", ""))), Success);
    assert_eq!(f.tree.lease_count(), 3, "theirs, their directory and the entry of the lock");
}

#[test]
fn no_lock_below_a_temporary_directory() {
    let mut f = furnished();
    f.plant("theirdir.d", true, false, None);
    for key in ["theirdir.l", "theirdir.d.l", "minedir.l"] {
        let results = f.apply_all(&[lock(key)]);
        assert_eq!(results, [&[UnderTempDir as u8][..], &[0; 8]].concat(), "{key}");
    }
}

#[test]
fn a_node_expires_behind_its_last_millisecond_and_not_before() {
    let mut f = furnished();
    f.apply(&put_temp("d.t", 100));
    assert_eq!(f.tree.next_deadline(), Some(5_100));
    f.clock_ms = 5_100;
    assert!(f.expire().is_empty());
    f.clock_ms = 5_101;
    assert_eq!(f.expire(), ["d.t"]);
    assert!(!f.exists("d.t"));
    let meta = f.meta("d");
    assert_eq!((meta.update_index, meta.update_time_ms), (f.index, context(f.index).time_ms));
}

#[test]
fn a_temporary_directory_expires_with_all_below_it_in_one_entry() {
    let mut f = Fixture::new();
    f.apply(&make_temp_dir("t", 10));
    f.apply(&Op { create_parents: true, ..by(OTHER, op(Kind::Put, "t.a.b", "x")) });
    f.mkdir("t.c");
    f.clock_ms += 11;
    assert_eq!(f.expire(), ["t"]);
    assert_eq!(f.tree.node_count(), 1);
}

fn expire_named(f: &mut Fixture, key: &str, ttl_index: u64) -> Vec<u8> {
    let mut value = Vec::new();
    Expired { ttl_index, key: key.as_bytes() }.pack(&mut value);
    f.apply_all(&[Op::new(Kind::Expire, b"", &value)])
}

#[test]
fn an_expiry_does_nothing_after_a_renewal_or_before_the_time() {
    let mut f = Fixture::new();
    f.apply(&put_temp("t", 10));
    let first = f.index;
    f.clock_ms += 10;
    assert_eq!(expire_named(&mut f, "t", first), [0, 0, 0, 0, 0], "its time is not over");
    f.apply(&update_ttl("t", 10));
    f.clock_ms += 100;
    assert_eq!(expire_named(&mut f, "t", first), [0, 0, 0, 0, 0], "it was renewed");
    let renewed = f.lease("t").ttl_index;
    assert_eq!(expire_named(&mut f, "t", renewed), [0, 1, 0, 0, 0]);
    assert_eq!(expire_named(&mut f, "t", renewed), [0, 0, 0, 0, 0], "it is gone");
    f.put("t", "permanent");
    assert_eq!(expire_named(&mut f, "t", renewed), [0, 0, 0, 0, 0]);
    let bytes = f.apply_all(&[Op::new(Kind::Expire, b"", b"broken")]);
    assert_eq!(bytes, [ClientReqError as u8, 0, 0, 0, 0]);
}

#[test]
fn a_wall_clock_that_jumps_has_no_influence() {
    let mut f = Fixture::new();
    let mut applied = |time_ms: u64, clock_ms: u64, op: Op<'_>| {
        let (mut packed, mut results) = (Vec::new(), Vec::new());
        op.pack(&mut packed);
        f.index += 1;
        let at = ApplyContext { index: f.index, time_ms, clock_ms };
        f.tree.apply(at, &packed, &mut results).unwrap();
        results[0] == Success as u8 && f.tree.due(clock_ms, 9).is_empty()
    };
    assert!(applied(u64::MAX, 100, put_temp("t", 50)));
    assert!(applied(0, 120, update_ttl("t", 50)));
    assert!(applied(u64::MAX / 2, 170, op(Kind::Put, "p", "x")));
    assert!(!applied(1, 171, op(Kind::Mkdir, "d", "")), "it is due by the group clock alone");
}

#[test]
fn the_clock_of_the_tree_never_goes_back() {
    let mut f = Fixture::new();
    f.apply(&put_temp("t", 10));
    f.clock_ms = 1;
    f.apply(&put_temp("u", 10));
    assert_eq!(f.lease("u").start_ms, 5_000);
    assert_eq!(f.tree.counters().clock_ms, 5_000);
}

#[test]
fn what_is_due_comes_in_order_and_within_the_limit() {
    let mut f = Fixture::new();
    for (key, ttl_ms) in [("c", 30), ("a", 10), ("b", 20), ("z", 1_000)] {
        f.apply(&put_temp(key, ttl_ms));
    }
    let keys = |due: Vec<Due>| due.into_iter().map(|due| due.key[0]).collect::<Vec<_>>();
    assert_eq!(keys(f.tree.due(5_100, 50)), *b"abc");
    assert_eq!(keys(f.tree.due(5_100, 2)), *b"ab");
    assert_eq!(keys(f.tree.due(5_020, 50)), *b"a");
    f.apply(&update_ttl("a", 500));
    assert_eq!((f.tree.next_deadline(), f.tree.lease_count()), (Some(5_020), 4));
    f.apply(&by(ME, op(Kind::Remove, "b", "")));
    assert_eq!((f.tree.next_deadline(), f.tree.lease_count()), (Some(5_030), 3));
}

#[test]
fn readers_see_owner_and_what_is_left() {
    let mut f = Fixture::new();
    f.apply(&put_temp("t", 100));
    let mut packed = Vec::new();
    f.tree.pack_get(b"t", 5_040, &mut packed);
    f.tree.pack_get(b"t", 9_999, &mut packed);
    let mut reader = dtkv_client::packed::results(&packed);
    for left in [60, 0] {
        let Ok(dtkv_client::packed::PackedResult::Node(node)) = reader.next(Kind::Get) else { panic!() };
        assert_eq!((node.temp, node.lease), (true, Some((left, ME))));
    }
    let listed = f.tree.get(b"t").unwrap_or_else(|_| panic!()).to_listed(false).into_message(5_040);
    assert_eq!((listed.temp, listed.ttl_remaining_ms), (true, Some(60)));
    assert_eq!(listed.owner.as_deref(), Some(&ME[..]));
}
