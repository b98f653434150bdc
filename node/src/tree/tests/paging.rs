use super::steps::{key, steps};
use super::*;
use dtkv_client::limits::{KEY_BYTES_MAX, LIST_BYTES_MAX, VALUE_BYTES_MAX};
use proptest::prelude::*;

fn names(page: &ListPage) -> Vec<String> {
    page.nodes.iter().map(|node| String::from_utf8(node.key.to_vec()).unwrap()).collect()
}

fn page(tree: &Tree, query: &ListQuery<'_>) -> ListPage {
    tree.list(query).unwrap_or_else(|code| panic!("{query:?}: {code:?}"))
}

/// Directories named like what would sort between a directory and its children byte by byte.
fn sample() -> Fixture {
    let mut f = Fixture::new();
    for key in ["b", "a-", "a.y.z", "a.x", "a.x!", "c.d", "aa"] {
        assert_eq!(f.apply(&Op { create_parents: true, ..op(Kind::Put, key, "v") }), Code::Success);
    }
    f
}

#[test]
fn direct_children_are_sorted_by_segment() {
    let f = sample();
    assert_eq!(names(&page(&f.tree, &ListQuery::default())), ["a", "a-", "aa", "b", "c"]);
    let below = page(&f.tree, &ListQuery { key: b"a", ..ListQuery::default() });
    assert_eq!(names(&below), ["a.x", "a.x!", "a.y"]);
    assert_eq!(below.nodes[0].value.as_deref(), Some(&b"v"[..]));
    assert_eq!((below.nodes[2].dir, below.nodes[2].child_count), (true, 1));
}

#[test]
fn a_recursive_listing_has_each_directory_before_its_children() {
    let f = sample();
    let all = page(&f.tree, &ListQuery { recursive: true, ..ListQuery::default() });
    assert_eq!(names(&all), ["a", "a.x", "a.x!", "a.y", "a.y.z", "a-", "aa", "b", "c", "c.d"]);
    let below = page(&f.tree, &ListQuery { key: b"a", recursive: true, ..ListQuery::default() });
    assert_eq!(names(&below), ["a.x", "a.x!", "a.y", "a.y.z"]);
}

#[test]
fn keys_only_leaves_the_values_out() {
    let f = sample();
    let keys = page(&f.tree, &ListQuery { recursive: true, keys_only: true, ..ListQuery::default() });
    assert!(keys.nodes.iter().all(|node| node.value.is_none()));
    assert_eq!(keys.nodes.iter().filter(|node| node.dir).count(), 3);
}

#[test]
fn the_last_page_has_no_continuation_even_when_it_is_full() {
    let f = sample();
    let exact = page(&f.tree, &ListQuery { key: b"a", limit: 3, ..ListQuery::default() });
    assert_eq!((exact.nodes.len(), exact.continuation.len()), (3, 0));
    let first = page(&f.tree, &ListQuery { key: b"a", limit: 2, ..ListQuery::default() });
    assert_eq!(names(&first), ["a.x", "a.x!"]);
    let query = ListQuery { key: b"a", limit: 2, continuation: &first.continuation, ..ListQuery::default() };
    assert_eq!(names(&page(&f.tree, &query)), ["a.y"]);
}

#[test]
fn a_page_ends_before_its_byte_limit_but_is_never_empty() {
    let mut f = Fixture::new();
    let third = "x".repeat(LIST_BYTES_MAX / 3);
    for key in ["a", "b", "c", "d"] {
        assert_eq!(f.put(key, &third), Code::Success);
    }
    let first = page(&f.tree, &ListQuery::default());
    assert_eq!(names(&first), ["a", "b"]);
    let query = ListQuery { continuation: &first.continuation, ..ListQuery::default() };
    assert_eq!(names(&page(&f.tree, &query)), ["c", "d"]);
    assert_eq!(page(&f.tree, &ListQuery { keys_only: true, ..ListQuery::default() }).nodes.len(), 4);

    let long = "k".repeat(KEY_BYTES_MAX);
    assert_eq!(f.put(&long, &"x".repeat(VALUE_BYTES_MAX)), Code::Success);
    let query = ListQuery { continuation: &first.continuation, limit: 2, ..ListQuery::default() };
    let second = page(&f.tree, &query);
    let query = ListQuery { continuation: &second.continuation, ..ListQuery::default() };
    let last = page(&f.tree, &query);
    assert_eq!((last.nodes.len(), last.continuation.len()), (1, 0));
    let query = ListQuery { continuation: &second.continuation, keys_only: true, ..ListQuery::default() };
    assert_eq!(page(&f.tree, &query).nodes.len(), 1);
}

#[test]
fn continuations_of_another_listing_and_damaged_ones_are_refused() {
    let f = sample();
    let direct = page(&f.tree, &ListQuery { key: b"a", limit: 1, ..ListQuery::default() }).continuation;
    let deep = ListQuery { key: b"a", limit: 3, recursive: true, ..ListQuery::default() };
    let deep = page(&f.tree, &deep).continuation;
    let query = |key: &[u8], continuation: &[u8], recursive: bool| {
        f.tree.list(&ListQuery { key, continuation, recursive, ..ListQuery::default() }).err()
    };
    assert_eq!(query(b"a", &direct, false), None);
    assert_eq!(query(b"a", &deep, true), None);
    for (key, token, recursive) in [
        (&b"a"[..], &direct[..], true),
        (b"a", &deep, false),
        (b"", &direct, false),
        (b"c", &direct, false),
        (b"absent", &direct, false),
        (b"a", &direct[..6], false),
        (b"a", &direct[..3], false),
        (b"a", b"garbage", false),
        (b"a", &[&direct[..], b".x"].concat(), false),
        (b"a", &[&deep[..], b"..x"].concat(), true),
        (b"a", &[&[2], &direct[1..]].concat(), false),
    ] {
        assert_eq!(query(key, token, recursive), Some(Code::InvalidKey), "{key:?} {token:?}");
    }
    assert_eq!(query(b"a", &[&deep[..], b".x"].concat(), true), None);
}

#[test]
fn a_listing_goes_on_behind_a_name_that_is_gone() {
    let mut f = sample();
    let query = ListQuery { limit: 3, recursive: true, ..ListQuery::default() };
    let first = page(&f.tree, &query);
    assert_eq!(names(&first), ["a", "a.x", "a.x!"]);
    let query = ListQuery { continuation: &first.continuation, ..query };
    assert_eq!(f.remove("a.x!"), Code::Success);
    assert_eq!(names(&page(&f.tree, &query)), ["a.y", "a.y.z", "a-"]);
    assert_eq!(f.remove_all("a"), Code::Success);
    assert_eq!(names(&page(&f.tree, &query)), ["a-", "aa", "b"]);
    assert_eq!(f.put("a", "now a value"), Code::Success);
    assert_eq!(names(&page(&f.tree, &query)), ["a-", "aa", "b"]);
}

/// Strictly ascending, so nothing comes twice.
fn assert_ascending(keys: &[String]) {
    for pair in keys.windows(2) {
        assert!(pair[0].split('.').lt(pair[1].split('.')), "{pair:?}");
    }
}

proptest! {
    #[test]
    fn pages_together_are_the_whole_listing(
        keys in prop::collection::vec(key(), 1..40), dir in key(), limit in 1u32..5, recursive: bool,
    ) {
        let mut f = Fixture::new();
        for key in &keys {
            f.apply(&Op { create_parents: true, ..op(Kind::Put, key, "v") });
        }
        for key in [dir.as_str(), ""] {
            let whole = ListQuery { key: key.as_bytes(), recursive, ..ListQuery::default() };
            let Ok(expected) = f.tree.list(&whole) else { continue };
            let (mut listed, mut continuation) = (Vec::new(), Vec::new());
            loop {
                let part = page(&f.tree, &ListQuery { limit, continuation: &continuation, ..whole });
                prop_assert!(part.nodes.len() <= limit as usize);
                listed.extend(part.nodes);
                continuation = part.continuation;
                if continuation.is_empty() { break }
            }
            prop_assert_eq!(listed, expected.nodes);
        }
    }

    /// Whatever is there from the first page to the last is listed, once, in order.
    #[test]
    fn paging_is_stable_under_concurrent_changes(
        stay in prop::collection::vec(key(), 1..20), changes in steps(),
        limit in 1u32..4, recursive: bool,
    ) {
        let mut f = Fixture::new();
        let mut continuation = Vec::new();
        let (mut listed, mut steadfast) = (Vec::new(), None::<Vec<String>>);
        for key in &stay {
            f.apply(&Op { create_parents: true, ..op(Kind::Put, key, "v") });
        }
        let mut changes = changes.iter();
        loop {
            let query = ListQuery { recursive, ..ListQuery::default() };
            let now = names(&page(&f.tree, &query));
            steadfast = Some(match steadfast {
                None => now,
                Some(before) => before.into_iter().filter(|key| now.contains(key)).collect(),
            });
            let part = page(&f.tree, &ListQuery { limit, continuation: &continuation, ..query });
            listed.extend(names(&part));
            continuation = part.continuation;
            if continuation.is_empty() { break }
            for step in changes.by_ref().take(2) {
                f.index += 1;
                let packed = step.pack(&f.tree);
                f.tree.apply(step.context(f.index), &packed, &mut Vec::new()).unwrap();
            }
        }
        assert_ascending(&listed);
        for key in steadfast.unwrap_or_default() {
            prop_assert!(listed.contains(&key), "{} is missing in {:?}", key, listed);
        }
    }

    #[test]
    fn any_continuation_is_read_without_panic(garbage: Vec<u8>, recursive: bool) {
        let f = sample();
        let good = page(&f.tree, &ListQuery { limit: 1, recursive, ..ListQuery::default() }).continuation;
        for continuation in [garbage.clone(), [&good[..6], &garbage].concat()] {
            let query = ListQuery { continuation: &continuation, recursive, ..ListQuery::default() };
            let _ = f.tree.list(&query);
        }
    }
}
