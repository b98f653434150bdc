//! Operations on everything that a client owns.

use super::*;
use Code::*;
use dtkv_client::packed::lock::entry_key;

const WAIT: [u8; 8] = 400u64.to_le_bytes();

/// I own a value, a directory with somebody's value in it, a held lock, and wait for a lock of OTHER.
fn owned() -> Fixture {
    let mut f = Fixture::new();
    let lock =
        |client, key: &'static str| by(client, with_ttl(500, Op::new(Kind::TryLock, key.as_bytes(), &WAIT)));
    f.apply(&by(ME, with_ttl(100, op(Kind::Put, "z", "x"))));
    f.apply(&by(ME, with_ttl(200, op(Kind::Mkdir, "dir", ""))));
    f.put("dir.x", "x");
    f.apply_all(&[lock(ME, "held"), lock(OTHER, "held"), lock(OTHER, "queue"), lock(ME, "queue")]);
    f.apply(&by(OTHER, with_ttl(100, op(Kind::Put, "theirs", "x"))));
    f
}

fn count(f: &mut Fixture, kind: Kind, client: [u8; 16]) -> u32 {
    let results = f.apply_all(&[by(client, Op::new(kind, b"", b""))]);
    assert_eq!(results[0], Success as u8);
    u32::from_le_bytes(results[1..].try_into().unwrap())
}

fn keys(f: &Fixture, owner: [u8; 16]) -> Vec<String> {
    let page = f.tree.list_owned(&OwnedQuery { owner, ..OwnedQuery::default() }).unwrap();
    page.nodes.iter().map(|node| String::from_utf8(node.key.to_vec()).unwrap()).collect()
}

fn entry_of(client: [u8; 16], lock: &str) -> String {
    String::from_utf8(entry_key(lock.as_bytes(), &client)).unwrap()
}

#[test]
fn keep_alive_renews_nodes_and_held_locks_but_no_place_in_a_queue() {
    let mut f = owned();
    let (root, waiting) = (f.meta(""), f.lease(&entry_of(ME, "queue")));
    let theirs = f.lease("theirs");
    f.clock_ms += 90;
    assert_eq!(count(&mut f, Kind::KeepAlive, ME), 3);
    for (key, ttl_ms) in [("z", 100), ("dir", 200), (&*entry_of(ME, "held"), 500)] {
        assert_eq!(f.lease(key), Lease { owner: ME, ttl_ms, start_ms: 5_090, ttl_index: f.index }, "{key}");
    }
    assert_eq!((f.lease(&entry_of(ME, "queue")), f.lease("theirs")), (waiting, theirs));
    assert_eq!(f.meta(""), root);
    assert_eq!(count(&mut f, Kind::KeepAlive, [8; 16]), 0);
}

#[test]
fn drop_owner_removes_everything_and_hands_locks_over() {
    let mut f = owned();
    assert_eq!(count(&mut f, Kind::DropOwner, ME), 4);
    for key in ["z", "dir", "dir.x", &entry_of(ME, "held"), &entry_of(ME, "queue")] {
        assert!(!f.exists(key), "{key}");
    }
    assert!(f.exists("theirs") && f.exists("queue"));
    assert_eq!(f.tree.lock_token(b"held"), f.index, "the next in the queue holds it");
    assert_eq!(keys(&f, ME), Vec::<String>::new());
    assert_eq!(count(&mut f, Kind::DropOwner, ME), 0);
    assert_eq!(count(&mut f, Kind::DropOwner, OTHER), 3);
    assert_eq!((f.tree.node_count(), f.tree.lease_count()), (1, 0));
}

#[test]
fn both_need_to_know_the_client() {
    let mut f = owned();
    let before = f.tree.digest();
    for kind in [Kind::KeepAlive, Kind::DropOwner] {
        assert_eq!(f.apply_all(&[Op::new(kind, b"", b"")]), [ClientReqError as u8, 0, 0, 0, 0]);
    }
    assert_eq!(f.tree.digest(), before);
}

#[test]
fn what_a_client_owns_is_listed_by_key_in_pages() {
    let mut f = owned();
    let expected = ["dir".to_owned(), entry_of(ME, "held"), entry_of(ME, "queue"), "z".to_owned()];
    assert_eq!(keys(&f, ME), expected);
    let mut continuation = Vec::new();
    for (i, key) in expected.iter().enumerate() {
        let query = OwnedQuery { owner: ME, limit: 1, continuation: &continuation, keys_only: true };
        let page = f.tree.list_owned(&query).unwrap();
        assert_eq!(page.nodes.len(), 1);
        assert_eq!((&*page.nodes[0].key, &page.nodes[0].value), (key.as_bytes(), &None));
        assert_eq!(page.continuation.is_empty(), i == expected.len() - 1);
        continuation = page.continuation;
    }
    let first = OwnedQuery { owner: ME, limit: 1, ..OwnedQuery::default() };
    let continuation = f.tree.list_owned(&first).unwrap().continuation;
    f.clock_ms += 201;
    f.expire();
    let page = f.tree.list_owned(&OwnedQuery { continuation: &continuation, ..first }).unwrap();
    assert_eq!(*page.nodes[0].key, *entry_of(ME, "held").as_bytes(), "the last one may be gone");
    for (owner, continuation) in [(OTHER, &continuation[..]), (ME, b"garbage"), (ME, &continuation[..6])] {
        let query = OwnedQuery { owner, continuation, ..OwnedQuery::default() };
        assert_eq!(f.tree.list_owned(&query), Err(InvalidKey));
    }
    let owned = f.tree.list_owned(&OwnedQuery { owner: [8; 16], ..OwnedQuery::default() });
    assert_eq!(owned, Ok(ListPage::default()));
}
