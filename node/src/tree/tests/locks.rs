//! A test for each row of the tables of locks.

use super::tables::{BAD_KEYS, cas, furnished, long_key, refused};
use super::*;
use Code::*;
use dtkv_client::limits::LOCK_KEY_BYTES_MAX;
use dtkv_client::packed::lock::entry_key;

const THIRD: [u8; 16] = [3; 16];

fn answer(results: &[u8]) -> (Code, u64) {
    assert_eq!(results.len(), 9);
    let code = Code::try_from(i32::from(results[0])).unwrap();
    (code, u64::from_le_bytes(results[1..].try_into().unwrap()))
}

fn try_lock(f: &mut Fixture, client: [u8; 16], key: &str, hold_ms: u64, wait_ms: u64) -> (Code, u64) {
    let wait = wait_ms.to_le_bytes();
    answer(&f.apply_all(&[by(client, with_ttl(hold_ms, Op::new(Kind::TryLock, key.as_bytes(), &wait)))]))
}

fn update_lease(f: &mut Fixture, client: [u8; 16], key: &str, hold_ms: u64) -> (Code, u64) {
    answer(&f.apply_all(&[by(client, with_ttl(hold_ms, op(Kind::UpdateLease, key, "")))]))
}

fn unlock(f: &mut Fixture, client: [u8; 16], key: &str) -> Code {
    f.apply(&by(client, op(Kind::Unlock, key, "")))
}

fn entry(f: &Fixture, client: [u8; 16], lock: &str) -> Option<(LockEntry, Lease)> {
    let node = f.tree.get(&entry_key(lock.as_bytes(), &client)).ok()?;
    assert!(node.is_lock() && !node.is_dir());
    Some((LockEntry::read(node.value()?)?, node.lease()?.clone()))
}

fn unchanged<T>(f: &mut Fixture, act: impl FnOnce(&mut Fixture) -> T) -> T {
    let before = f.tree.digest();
    let answer = act(f);
    assert_eq!(f.tree.digest(), before);
    answer
}

/// `l` is held by me for 100 ms; OTHER waits 60 ms for a hold of 80, THIRD 90 ms for 90.
fn contended() -> Fixture {
    let mut f = Fixture::new();
    assert_eq!(try_lock(&mut f, ME, "l", 100, 0).0, Success);
    assert_eq!(try_lock(&mut f, OTHER, "l", 80, 60), (LockByOther, 0));
    assert_eq!(try_lock(&mut f, THIRD, "l", 90, 90), (LockByOther, 0));
    f
}

#[test]
fn try_lock_checks_times_then_the_key_then_the_parent_then_what_is_there() {
    let mut f = furnished();
    let long = long_key(LOCK_KEY_BYTES_MAX + 1);
    for (key, hold_ms, wait_ms, code) in [
        ("a..b", 0, 0, InvalidTtl),
        ("a..b", TTL_MS_MAX + 1, 0, InvalidTtl),
        ("a..b", 5, 6, InvalidTtl),
        ("a..b", 5, 5, InvalidKey),
        (&long, 5, 0, KeyTooLong),
        ("no.parent", 5, 0, ParentDirNotExists),
        ("v.l", 5, 0, ParentNotDir),
        ("lock.l", 5, 0, ParentIsLock),
        ("lock.entry", 5, 0, ParentIsLock),
        ("minedir.l", 5, 0, UnderTempDir),
        ("v", 5, 0, NotLockNode),
        ("d", 5, 0, NotLockNode),
        ("mine", 5, 0, NotLockNode),
        ("minedir", 5, 0, NotLockNode),
    ] {
        let got = unchanged(&mut f, |f| try_lock(f, ME, key, hold_ms, wait_ms));
        assert_eq!(got, (code, 0), "{hold_ms} {wait_ms}");
    }
    for key in BAD_KEYS {
        assert_eq!(unchanged(&mut f, |f| try_lock(f, ME, key, 5, 0)), (InvalidKey, 0));
    }
    let wait = [0; 8];
    let plain = Op::new(Kind::TryLock, b"new", &wait);
    for bad in [with_ttl(5, plain), by(ME, plain), by(ME, with_ttl(5, Op { value: b"short", ..plain }))] {
        let results = unchanged(&mut f, |f| f.apply_all(&[bad]));
        assert_eq!(answer(&results), (ClientReqError, 0));
    }
    assert_eq!(try_lock(&mut f, ME, &long[1..], 5, 0).0, Success);
    assert_eq!(unlock(&mut f, ME, &long[1..]), Success);
}

#[test]
fn a_free_lock_is_granted_with_a_token_and_makes_its_directory() {
    let mut f = Fixture::new();
    assert_eq!(try_lock(&mut f, ME, "l", 100, 30), (Success, 101));
    let lock = f.tree.get(b"l").unwrap_or_else(|_| panic!());
    assert!(lock.is_dir() && lock.is_lock() && lock.lease().is_none());
    let (held, lease) = entry(&f, ME, "l").unwrap();
    assert_eq!((held.hold_ms, held.token, lease.ttl_ms, lease.owner), (100, 101, 100, ME));
    assert_eq!(f.meta("l").update_index, f.index);
}

#[test]
fn trying_again_as_the_holder_begins_the_hold_anew() {
    let mut f = contended();
    f.clock_ms += 40;
    assert_eq!(try_lock(&mut f, ME, "l", 70, 0), (LockBySelf, 101));
    let (held, lease) = entry(&f, ME, "l").unwrap();
    assert_eq!((held.hold_ms, held.token), (70, 101));
    assert_eq!((lease.ttl_ms, lease.start_ms, lease.ttl_index), (70, 5_040, f.index));
}

#[test]
fn without_waiting_a_lock_that_is_taken_stores_nothing() {
    let mut f = contended();
    assert_eq!(unchanged(&mut f, |f| try_lock(f, [4; 16], "l", 10, 0)), (LockByOther, 0));
    assert_eq!(unchanged(&mut f, |f| try_lock(f, OTHER, "l", 10, 0)), (LockByOther, 0));
    assert!(entry(&f, OTHER, "l").is_some(), "an earlier place in the queue stays");
}

#[test]
fn waiting_again_keeps_the_place_and_renews_the_wait() {
    let mut f = contended();
    let before = entry(&f, OTHER, "l").unwrap().0;
    f.clock_ms += 50;
    assert_eq!(try_lock(&mut f, OTHER, "l", 85, 65), (LockByOther, 0));
    let (waiting, lease) = entry(&f, OTHER, "l").unwrap();
    assert_eq!(waiting, LockEntry { hold_ms: 85, ..before });
    assert_eq!((lease.ttl_ms, lease.start_ms), (65, 5_050));
    assert_eq!(unlock(&mut f, ME, "l"), Success);
    assert!(entry(&f, OTHER, "l").unwrap().0.token > 0, "it was first");
}

#[test]
fn unlock_follows_its_table() {
    let mut f = furnished();
    assert_eq!(try_lock(&mut f, ME, "l", 100, 0).0, Success);
    for (key, code) in [
        ("a..b", InvalidKey),
        ("absent", NotFound),
        ("v", NotLockNode),
        ("d", NotLockNode),
        ("mine", NotLockNode),
    ] {
        refused(&mut f, &by(ME, op(Kind::Unlock, key, "")), code);
    }
    refused(&mut f, &by(ME, op(Kind::Unlock, "lock.entry", "")), NotLockNode);
    refused(&mut f, &by(OTHER, op(Kind::Unlock, "l", "")), LockByOther);
    refused(&mut f, &op(Kind::Unlock, "l", ""), ClientReqError);
    let mut f = contended();
    assert_eq!(unlock(&mut f, OTHER, "l"), LockByOther, "a waiter leaves the queue");
    assert!(entry(&f, OTHER, "l").is_none() && entry(&f, ME, "l").is_some());
    f.clock_ms += 20;
    assert_eq!(unlock(&mut f, ME, "l"), Success);
    let (next, lease) = entry(&f, THIRD, "l").unwrap();
    assert_eq!((next.token, f.tree.lock_token(b"l")), (f.index, f.index));
    assert_eq!((lease.ttl_ms, lease.start_ms, lease.ttl_index), (90, 5_020, f.index));
    let granted = f.meta(str::from_utf8(&entry_key(b"l", &THIRD)).unwrap());
    assert_eq!((granted.update_index, f.meta("").update_index), (f.index, f.index), "a watch sees the grant");
    assert_eq!(unlock(&mut f, ME, "l"), LockByOther);
    assert_eq!(unlock(&mut f, THIRD, "l"), Success);
    assert!(!f.exists("l"), "the last entry takes the lock with it");
    assert_eq!(unlock(&mut f, THIRD, "l"), NotFound);
    assert_eq!((f.tree.node_count(), f.tree.lease_count()), (1, 0));
}

#[test]
fn update_lease_follows_its_table_and_moves_no_index() {
    let mut f = furnished();
    assert_eq!(try_lock(&mut f, ME, "l", 100, 0), (Success, f.index));
    let token = f.index;
    for (key, hold_ms, code) in [
        ("a..b", 0, InvalidTtl),
        ("a..b", TTL_MS_MAX + 1, InvalidTtl),
        ("a..b", 1, InvalidKey),
        ("absent", 1, NotFound),
        ("v", 1, NotLockNode),
        ("d", 1, NotLockNode),
    ] {
        assert_eq!(unchanged(&mut f, |f| update_lease(f, ME, key, hold_ms)), (code, 0), "{key} {hold_ms}");
    }
    assert_eq!(unchanged(&mut f, |f| update_lease(f, OTHER, "l", 5)), (LockByOther, 0));
    try_lock(&mut f, OTHER, "l", 50, 50);
    assert_eq!(unchanged(&mut f, |f| update_lease(f, OTHER, "l", 5)), (LockByOther, 0));
    let (meta, root) = (f.meta("l"), f.meta(""));
    f.clock_ms += 30;
    assert_eq!(update_lease(&mut f, ME, "l", 200), (Success, token));
    let (held, lease) = entry(&f, ME, "l").unwrap();
    assert_eq!((held.hold_ms, lease.ttl_ms, lease.start_ms), (100, 200, 5_030));
    assert_eq!((f.meta("l"), f.meta("")), (meta, root));
}

#[test]
fn other_operations_leave_locks_alone() {
    let mut f = contended();
    let mine = String::from_utf8(entry_key(b"l", &ME)).unwrap();
    let put = |key| op(Kind::Put, key, "x");
    for (op, code) in [
        (put("l"), IsLockNode),
        (op(Kind::Mkdir, "l", ""), IsLockNode),
        (op(Kind::Remove, "l", ""), IsLockNode),
        (Op { recursive: true, ..op(Kind::Remove, "l", "") }, IsLockNode),
        (op(Kind::Remove, &mine, ""), IsLockNode),
        (with_ttl(5, put("l")), IsLockNode),
        (with_ttl(5, op(Kind::Mkdir, "l", "")), IsLockNode),
        (cas("l", None, Some("x")), IsLockNode),
        (put("l.x"), ParentIsLock),
        (put(&mine), ParentIsLock),
        (with_ttl(5, op(Kind::UpdateTtl, "l", "")), NotTempNode),
        (with_ttl(5, op(Kind::UpdateTtl, &mine, "")), NotTempNode),
    ] {
        refused(&mut f, &by(ME, op), code);
    }
}

#[test]
fn a_hold_that_ends_hands_over_and_a_wait_that_ends_just_leaves() {
    let mut f = contended();
    f.clock_ms += 61;
    assert_eq!(f.expire().len(), 1);
    assert!(entry(&f, OTHER, "l").is_none(), "it waited 60 ms");
    assert_eq!(f.tree.lock_token(b"l"), 101);
    f.clock_ms = 5_101;
    f.apply(&by(THIRD, with_ttl(1, op(Kind::Put, "t", "x"))));
    assert_eq!(try_lock(&mut f, THIRD, "l", 90, 90), (LockByOther, 0));
    f.expire();
    assert_eq!(f.tree.lock_token(b"l"), f.index);
    let (_, lease) = entry(&f, THIRD, "l").unwrap();
    assert_eq!((lease.ttl_ms, lease.start_ms), (90, 5_101));
    f.clock_ms = 5_192;
    f.expire();
    assert!(!f.exists("l"));
}

#[test]
fn a_waiter_whose_time_is_over_is_passed_over() {
    let mut f = contended();
    f.clock_ms += 61;
    assert_eq!(unlock(&mut f, ME, "l"), Success);
    assert!(entry(&f, OTHER, "l").is_none());
    assert!(entry(&f, THIRD, "l").unwrap().0.token > 0);
    let mut f = contended();
    f.clock_ms += 95;
    assert_eq!(unlock(&mut f, ME, "l"), Success);
    assert!(!f.exists("l"), "nobody waits any more");
}

#[test]
fn holder_and_waiter_that_are_over_go_in_one_entry() {
    let mut f = contended();
    f.clock_ms += 1_000;
    assert_eq!(f.expire().len(), 3);
    assert_eq!((f.tree.node_count(), f.tree.lease_count()), (1, 0));
}

#[test]
fn tokens_and_tickets_grow_within_one_entry_and_across_locks() {
    let mut f = Fixture::new();
    let wait = 50u64.to_le_bytes();
    let lock =
        |client, key: &'static str| by(client, with_ttl(50, Op::new(Kind::TryLock, key.as_bytes(), &wait)));
    let results =
        f.apply_all(&[lock(ME, "a"), lock(OTHER, "b"), lock(THIRD, "a"), lock(OTHER, "a"), lock(ME, "c")]);
    let answers: Vec<_> = results.chunks(9).map(answer).collect();
    let expected = [(Success, 101), (Success, 102), (LockByOther, 0), (LockByOther, 0), (Success, 103)];
    assert_eq!(answers, expected);
    assert_eq!(unlock(&mut f, ME, "a"), Success);
    assert_eq!(entry(&f, THIRD, "a").unwrap().0.token, 104, "behind the last token, not the index 102");
    assert_eq!(f.tree.counters(), Counters { clock_ms: 5_000, last_token: 104, last_ticket: 5 });
    assert_eq!(unlock(&mut f, THIRD, "a"), Success);
    assert!(entry(&f, OTHER, "a").unwrap().0.token > 104);
}

#[test]
fn a_queue_is_served_in_the_order_in_which_it_was_joined() {
    let mut f = Fixture::new();
    let clients: Vec<[u8; 16]> = (0..20u8).map(|i| [i.wrapping_mul(77); 16]).collect();
    for client in &clients {
        try_lock(&mut f, *client, "l", 1_000, 1_000);
    }
    let mut last = 0;
    for client in &clients {
        let token = f.tree.lock_token(b"l");
        assert_eq!(entry(&f, *client, "l").unwrap().0.token, token);
        assert!(token > last);
        last = token;
        assert_eq!(unlock(&mut f, *client, "l"), Success);
    }
    assert_eq!(f.tree.node_count(), 1);
}
