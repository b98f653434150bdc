//! Guards and expected update indexes.

use super::tables::{apply_batch, batch, cas, furnished, refused};
use super::*;
use Code::*;

/// A tree with a lock that I hold, and its fencing token.
fn locked() -> (Fixture, u64) {
    let mut f = furnished();
    let results = f.apply_all(&[by(ME, with_ttl(50, Op::new(Kind::TryLock, b"guard", &[0; 8])))]);
    assert_eq!(results[0], Success as u8);
    let token = u64::from_le_bytes(results[1..].try_into().unwrap());
    assert_eq!((token, f.tree.lock_token(b"guard")), (f.index, token));
    (f, token)
}

fn guarded<'a>(token: u64, op: Op<'a>) -> Op<'a> {
    Op { guard: Some((token, b"guard")), ..op }
}

#[test]
fn a_guard_lets_a_write_through_while_its_grant_holds() {
    let (mut f, token) = locked();
    for write in [
        op(Kind::Put, "new", "x"),
        cas("new", Some("x"), Some("y")),
        op(Kind::Remove, "new", ""),
        op(Kind::Mkdir, "new", ""),
        by(ME, with_ttl(5, op(Kind::Put, "temp", "x"))),
        by(ME, with_ttl(5, op(Kind::UpdateTtl, "temp", ""))),
    ] {
        assert_eq!(f.apply(&guarded(token, write)), Success, "{write:?}");
    }
    let items = batch(&[op(Kind::Put, "v", "x")]);
    let batch = guarded(token, Op::new(Kind::Batch, b"", &items));
    assert_eq!(apply_batch(&mut f, &batch), (Success, vec![SuccessOverwrite]));
}

#[test]
fn a_stale_guard_refuses_before_everything_else() {
    let (mut f, token) = locked();
    for write in [op(Kind::Put, "a..b", ""), op(Kind::Remove, "absent", ""), cas("v", None, None)] {
        for stale in [0, token - 1, token + 1] {
            refused(&mut f, &guarded(stale, write), Fenced);
        }
        for lock in [&b"v"[..], b"d", b"absent", b"guard.x", b"", b"lock"] {
            refused(&mut f, &Op { guard: Some((token, lock)), ..write }, Fenced);
        }
    }
    let items = batch(&[op(Kind::Put, "v", "x")]);
    let batch = guarded(token + 1, Op::new(Kind::Batch, b"", &items));
    assert_eq!(apply_batch(&mut f, &batch), (Fenced, vec![]));
    let results = f.apply_all(&[by(ME, guarded(1, Op::new(Kind::KeepAlive, b"", b"")))]);
    assert_eq!(results, [Fenced as u8, 0, 0, 0, 0]);
}

#[test]
fn a_guard_ends_with_the_grant() {
    let (mut f, token) = locked();
    f.clock_ms += 51;
    assert_eq!(f.apply(&guarded(token, op(Kind::Put, "n", "x"))), Success, "not expired yet");
    f.expire();
    refused(&mut f, &guarded(token, op(Kind::Put, "n", "x")), Fenced);
    f.apply_all(&[by(ME, with_ttl(50, Op::new(Kind::TryLock, b"guard", &[0; 8])))]);
    refused(&mut f, &guarded(token, op(Kind::Put, "n", "x")), Fenced);
    assert_eq!(f.apply(&guarded(f.tree.lock_token(b"guard"), op(Kind::Put, "n", "x"))), SuccessOverwrite);
}

fn expecting<'a>(index: u64, op: Op<'a>) -> Op<'a> {
    Op { expect_index: Some(index), ..op }
}

#[test]
fn an_expected_index_is_compared_behind_all_rows_of_the_table() {
    let mut f = furnished();
    let index = f.meta("v").update_index;
    let put = |key| op(Kind::Put, key, "x");
    for (op, code) in [
        (expecting(7, put("no.parent")), ParentDirNotExists),
        (expecting(7, put("lock")), IsLockNode),
        (expecting(7, put("mine")), IsTempNode),
        (expecting(7, put("d")), DirExists),
        (expecting(index + 1, put("v")), CasMismatch),
        (expecting(0, put("v")), CasMismatch),
        (expecting(7, put("new")), CasMismatch),
        (expecting(7, Op { create_parents: true, ..put("new.a.b") }), CasMismatch),
        (expecting(7, Op { create_parents: true, ..put("v.a.b") }), ParentNotDir),
        (expecting(7, by(ME, with_ttl(9, put("mine")))), CasMismatch),
        (expecting(7, by(ME, with_ttl(9, put("new")))), CasMismatch),
        (expecting(7, by(ME, with_ttl(9, put("theirs")))), NotOwner),
        (expecting(0, op(Kind::Remove, "absent", "")), NotFound),
        (expecting(7, op(Kind::Remove, "theirs", "")), NotOwner),
        (expecting(7, op(Kind::Remove, "d", "")), HasChildren),
        (expecting(7, op(Kind::Remove, "v", "")), CasMismatch),
        (expecting(0, op(Kind::Remove, "v", "")), CasMismatch),
    ] {
        refused(&mut f, &op, code);
    }
    assert_eq!(f.apply(&expecting(index, put("v"))), SuccessOverwrite);
    assert_eq!(f.apply(&expecting(f.index, op(Kind::Remove, "v", ""))), Success);
    assert_eq!(f.apply(&expecting(0, put("v"))), Success);
    assert_eq!(f.apply(&expecting(0, Op { create_parents: true, ..put("n.a.b") })), Success);
    let below = f.meta("n").update_index;
    f.put("n.a.c", "x");
    let all = Op { recursive: true, ..op(Kind::Remove, "n", "") };
    refused(&mut f, &expecting(below, all), CasMismatch);
    assert_eq!(f.apply(&expecting(f.meta("n").update_index, all)), Success);
    let mine = f.meta("mine").update_index;
    assert_eq!(f.apply(&expecting(mine, by(ME, with_ttl(9, put("mine"))))), SuccessOverwrite);
}
