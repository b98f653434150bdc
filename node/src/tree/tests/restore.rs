use super::steps::{Step, due, steps};
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// What the engine would hold: records by key, in byte order.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

fn encoded(record: &NodeRecord) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

/// Writes behind what changed; answers how many removals were not needed.
fn write_behind(tree: &mut Tree, records: &mut Records) -> usize {
    let count = tree.dirty_count() as usize;
    let dirty = tree.take_dirty();
    assert!(dirty.changed.len() + dirty.removed.len() <= count);
    assert_eq!((tree.dirty_count(), tree.take_dirty().is_empty()), (0, true));
    write(dirty, records)
}

fn write(dirty: Dirty, records: &mut Records) -> usize {
    let keys: BTreeSet<_> = dirty.changed.iter().map(|(key, _)| key).chain(&dirty.removed).collect();
    assert_eq!(keys.len(), dirty.changed.len() + dirty.removed.len(), "each key once");
    let (mut bytes, mut pointless) = (0, 0);
    for key in &dirty.removed {
        pointless += usize::from(records.remove(&key[..]).is_none());
        bytes += key.len();
    }
    for (key, record) in &dirty.changed {
        let record = encoded(record);
        bytes += key.len() + record.len();
        assert_ne!(records.get(&key[..]), Some(&record), "{key:?} has not changed");
        records.insert(key.to_vec(), record);
    }
    assert_eq!(dirty.bytes as usize, bytes);
    pointless
}

fn restored(records: &Records) -> Tree {
    let mut tree = Tree::new();
    records.iter().for_each(|(key, record)| tree.load(key, record).unwrap());
    tree
}

fn apply(tree: &mut Tree, index: usize, step: &Step) -> Vec<u8> {
    let mut results = Vec::new();
    let packed = step.pack(tree);
    tree.apply(step.context(index as u64 + 1), &packed, &mut results).unwrap();
    results
}

fn assert_same(a: &Tree, b: &Tree) {
    assert_eq!(a.digest(), b.digest());
    assert_eq!((a.node_count(), a.bytes()), (b.node_count(), b.bytes()));
    assert_eq!(due(a, u64::MAX), due(b, u64::MAX));
    for owner in [ME, OTHER, [3; 16]] {
        let query = OwnedQuery { owner, ..OwnedQuery::default() };
        assert_eq!(a.list_owned(&query), b.list_owned(&query));
    }
}

fn keys(keys: &[Arc<[u8]>]) -> Vec<&str> {
    keys.iter().map(|key| str::from_utf8(key).unwrap()).collect()
}

fn changed(dirty: &Dirty) -> Vec<&str> {
    dirty.changed.iter().map(|(key, _)| str::from_utf8(key).unwrap()).collect()
}

#[test]
fn a_node_changed_many_times_is_handed_out_once_with_its_directories() {
    let mut f = Fixture::new();
    assert_eq!(f.mkdir("d"), Code::Success);
    for i in 0..100 {
        f.put("d.hot", &i.to_string());
    }
    let dirty = f.tree.take_dirty();
    assert_eq!(changed(&dirty), ["d", "", "d.hot"]);
    assert_eq!(dirty.changed[2].1.value.as_deref(), Some(&b"99"[..]));
    assert!(f.tree.take_dirty().is_empty());
    f.put("d.hot", "xx");
    assert_eq!(dirty.changed[2].1.value.as_deref(), Some(&b"99"[..]), "what was taken stays as it was");
}

#[test]
fn removed_keys_are_handed_out_only_when_their_records_may_have_been_written() {
    let mut f = Fixture::new();
    for key in ["d.a", "d.b", "d.e.f"] {
        f.apply(&Op { create_parents: true, ..op(Kind::Put, key, "x") });
    }
    f.tree.take_dirty();
    f.put("d.e.short", "lived");
    assert_eq!(f.remove_all("d.e"), Code::Success);
    assert_eq!(f.remove("d.a"), Code::Success);
    let dirty = f.tree.take_dirty();
    let mut removed = keys(&dirty.removed);
    removed.sort_unstable();
    assert_eq!(removed, ["d.a", "d.e", "d.e.f"]);
    assert_eq!(changed(&dirty), ["d", ""]);
}

#[test]
fn a_key_removed_and_made_again_is_handed_out_as_changed_only() {
    let mut f = Fixture::new();
    f.put("k", "1");
    f.tree.take_dirty();
    f.remove("k");
    f.mkdir("k");
    let dirty = f.tree.take_dirty();
    assert!(dirty.removed.is_empty());
    assert!(dirty.changed.iter().any(|(key, record)| **key == *b"k" && record.value.is_none()));
    f.remove("k");
    f.put("k", "2");
    f.remove("k");
    assert_eq!(keys(&f.tree.take_dirty().removed), ["k"]);
    f.put("k", "3");
    f.remove("k");
    assert!(f.tree.take_dirty().removed.is_empty(), "its record is gone already");
}

#[test]
fn loaded_nodes_are_not_dirty_but_their_removal_is() {
    let mut f = Fixture::new();
    f.plant("k", false, false, None);
    assert_eq!(f.tree.dirty_count(), 0);
    f.remove("k");
    assert_eq!(keys(&f.tree.take_dirty().removed), ["k"]);
}

#[test]
fn temporary_nodes_and_locks_survive_a_restore() {
    let mut f = Fixture::new();
    f.plant("lock", true, true, None);
    f.plant("lock.entry", false, true, Some(OTHER));
    f.plant("tempdir", true, false, Some(ME));
    let mut records = Records::new();
    for key in ["lock", "lock.entry", "tempdir"] {
        records
            .insert(key.into(), encoded(&f.tree.get(key.as_bytes()).unwrap_or_else(|_| panic!()).0.record()));
    }
    f.put("tempdir.x", "x");
    f.mkdir("d");
    write_behind(&mut f.tree, &mut records);
    assert_same(&restored(&records), &f.tree);
}

#[test]
fn a_record_that_does_not_fit_is_refused_with_its_key() {
    let value = encoded(&NodeRecord {
        meta: Meta::default(),
        lock: false,
        lease: None,
        value: Some(Arc::from(&b"v"[..])),
    });
    let mut f = Fixture::new();
    f.plant("v", false, false, None);
    f.plant("lockdir", true, true, None);
    let lease = Some(Box::new(Lease { owner: ME, ttl_ms: 1, start_ms: 1, ttl_index: 1 }));
    let value_of_entry = Some(Arc::from(LockEntry { hold_ms: 1, ticket: 1, token: 1 }.pack()));
    let entry = NodeRecord { meta: Meta::default(), lock: true, lease, value: value_of_entry };
    let leased_lock = encoded(&NodeRecord { value: None, ..entry.clone() });
    let unleased = encoded(&NodeRecord { lease: None, ..entry.clone() });
    let entry = encoded(&entry);
    for (key, record, reason) in [
        ("v", &value[..], "there already"),
        ("v.below", &value, "not a directory"),
        ("no.parent", &value, "parent is not there"),
        ("a..b", &value, "syntax"),
        ("", &value, "root"),
        ("new", &value[..5], "too short"),
        ("lock", &leased_lock, "a lease of its own"),
        ("free", &entry, "entry of a lock"),
        ("lockdir.entry", &entry[..entry.len() - 1], "entry of a lock"),
        ("lockdir.entry", &unleased, "entry of a lock"),
    ] {
        let text = f.tree.load(key.as_bytes(), record).unwrap_err().to_string();
        assert!(text.contains(reason) && text.contains(&format!("\"{key}\"")), "{text}");
    }
    assert_eq!(f.tree.node_count(), 3);
    assert_eq!(f.tree.load(b"lockdir.entry", &entry), Ok(()));
}

#[test]
fn the_digest_sees_every_field() {
    let base =
        NodeRecord { meta: Meta::default(), lock: false, lease: None, value: Some(Arc::from(&b"v"[..])) };
    let lease = |owner, [ttl_ms, start_ms, ttl_index]: [u64; 3]| {
        Some(Box::new(Lease { owner, ttl_ms, start_ms, ttl_index }))
    };
    let variants = [
        base.clone(),
        NodeRecord { meta: Meta { create_index: 1, ..Meta::default() }, ..base.clone() },
        NodeRecord { meta: Meta { create_time_ms: 1, ..Meta::default() }, ..base.clone() },
        NodeRecord { meta: Meta { update_index: 1, ..Meta::default() }, ..base.clone() },
        NodeRecord { meta: Meta { update_time_ms: 1, ..Meta::default() }, ..base.clone() },
        NodeRecord { lease: lease(ME, [1, 1, 1]), ..base.clone() },
        NodeRecord { lease: lease(OTHER, [1, 1, 1]), ..base.clone() },
        NodeRecord { lease: lease(ME, [2, 1, 1]), ..base.clone() },
        NodeRecord { lease: lease(ME, [1, 2, 1]), ..base.clone() },
        NodeRecord { lease: lease(ME, [1, 1, 2]), ..base.clone() },
        NodeRecord { value: None, ..base.clone() },
        NodeRecord { lock: true, value: None, ..base.clone() },
        NodeRecord { value: Some(Arc::from(&b"w"[..])), ..base.clone() },
    ];
    let digests: BTreeSet<String> = variants
        .iter()
        .flat_map(|record| ["k", "l"].map(|key| (key, record)))
        .map(|(key, record)| restored(&Records::from([(key.into(), encoded(record))])).digest().to_string())
        .collect();
    assert_eq!(digests.len(), 2 * variants.len());
    assert!(digests.iter().all(|digest| digest.len() == 32));
}

#[test]
fn bytes_and_nodes_come_back_to_where_they_were() {
    let mut f = Fixture::new();
    let empty = f.tree.bytes();
    for i in 0..3000 {
        f.apply(&Op { create_parents: true, ..op(Kind::Put, &format!("d{}.k{i}", i % 7), "some value") });
    }
    assert!(f.tree.bytes() > empty + 3000 * 100);
    for i in 0..7 {
        assert_eq!(f.remove_all(&format!("d{i}")), Code::Success);
    }
    assert_eq!((f.tree.bytes(), f.tree.node_count()), (empty, 1));
    f.tree.take_dirty();
    f.put("again", "x");
    assert_eq!(f.value("again").unwrap(), "x");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn write_behind_and_restore_lose_nothing(
        steps in steps(), restart in 0usize..80, every in 1usize..30,
    ) {
        let mut records = Records::new();
        let (mut straight, mut restarted) = (Tree::new(), Tree::new());
        for (i, step) in steps.iter().enumerate() {
            prop_assert_eq!(apply(&mut straight, i, step), apply(&mut restarted, i, step));
            if i % every == 0 {
                prop_assert_eq!(write_behind(&mut restarted, &mut records), 0);
                assert_same(&restored(&records), &straight);
            }
            if i == restart {
                prop_assert_eq!(write_behind(&mut restarted, &mut records), 0);
                restarted = restored(&records);
                restarted.restore_counters(straight.counters());
            }
        }
        prop_assert_eq!(write_behind(&mut restarted, &mut records), 0);
        assert_same(&restarted, &straight);
        prop_assert_eq!(restarted.counters(), straight.counters());
        assert_same(&restored(&records), &straight);
    }

    /// Pieces of a frozen set, with operations between them, are the tree as it was when frozen.
    #[test]
    fn a_frozen_set_is_drained_while_the_tree_goes_on(
        steps in steps(), every in 1usize..8, piece in 1usize..6,
    ) {
        let mut records = Records::new();
        let mut tree = Tree::new();
        let mut draining = None;
        for (i, step) in steps.iter().enumerate() {
            apply(&mut tree, i, step);
            let (frozen, mut dirty) = match draining.take() {
                Some(draining) => draining,
                None if i % every == 0 => {
                    tree.freeze_dirty();
                    (tree.digest(), Dirty::default())
                }
                None => continue,
            };
            if !tree.drain_frozen(piece, &mut dirty) {
                draining = Some((frozen, dirty));
                continue;
            }
            write(dirty, &mut records);
            prop_assert_eq!(restored(&records).digest(), frozen);
        }
        if let Some((frozen, mut dirty)) = draining {
            prop_assert!(tree.drain_frozen(usize::MAX, &mut dirty));
            write(dirty, &mut records);
            prop_assert_eq!(restored(&records).digest(), frozen);
        }
        write_behind(&mut tree, &mut records);
        assert_same(&restored(&records), &tree);
    }

    /// Freezing again loses nothing of a set that was not drained.
    #[test]
    fn a_set_frozen_twice_is_whole(steps in steps(), every in 1usize..8) {
        let mut records = Records::new();
        let mut tree = Tree::new();
        for (i, step) in steps.iter().enumerate() {
            apply(&mut tree, i, step);
            match i % (3 * every) {
                0 => {
                    write_behind(&mut tree, &mut records);
                }
                n if n % every == 0 => tree.freeze_dirty(),
                _ => {}
            }
        }
        write_behind(&mut tree, &mut records);
        assert_same(&restored(&records), &tree);
    }

    #[test]
    fn the_same_log_gives_the_same_bytes_in_the_same_order(steps in steps()) {
        let (mut a, mut b) = (Tree::new(), Tree::new());
        for (i, step) in steps.iter().enumerate() {
            prop_assert_eq!(apply(&mut a, i, step), apply(&mut b, i, step));
        }
        assert_same(&a, &b);
        let (a, b) = (a.take_dirty(), b.take_dirty());
        prop_assert_eq!(a.changed, b.changed);
        prop_assert_eq!(a.removed, b.removed);
    }

    #[test]
    fn any_records_are_loaded_without_panic(records: Vec<(Vec<u8>, Vec<u8>)>, key in "[ab.]{0,4}") {
        let mut tree = Tree::new();
        for (any, record) in &records {
            let _ = tree.load(any, record);
            let _ = tree.load(key.as_bytes(), &[&[1, 0][..], &[0; 32], record].concat());
        }
        tree.digest();
    }
}
