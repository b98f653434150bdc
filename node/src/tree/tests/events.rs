//! What watchers are told of.

use super::steps::{Step, steps};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Kind, key, value and previous index of the events since the last call.
fn told(fixture: &mut Fixture) -> Vec<(EventKind, String, Option<String>, u64)> {
    let text = |bytes: &Arc<[u8]>| String::from_utf8(bytes.to_vec()).unwrap();
    let events = fixture.tree.take_events().into_iter();
    events.map(|e| (e.kind, text(&e.key), e.value.as_ref().map(text), e.prev_index)).collect()
}

#[test]
fn every_change_of_a_node_is_told_once_in_order() {
    let mut fixture = Fixture::new();
    let deep = Op { create_parents: true, ..op(Kind::Put, "a.b.c", "1") };
    fixture.apply_all(&[deep, op(Kind::Put, "a.b.c", "2"), op(Kind::Mkdir, "a.b", "")]);
    let some = |text: &str| Some(text.to_owned());
    let expected = [
        (EventKind::Mkdir, "a".to_owned(), None, 0),
        (EventKind::Mkdir, "a.b".to_owned(), None, 0),
        (EventKind::Put, "a.b.c".to_owned(), some("1"), 0),
        (EventKind::Put, "a.b.c".to_owned(), some("2"), 101),
    ];
    assert_eq!(told(&mut fixture), expected);
    fixture.put("a.b.c", "3");
    assert_eq!(told(&mut fixture), [(EventKind::Put, "a.b.c".to_owned(), some("3"), 101)]);
    fixture.put("none.x", "1");
    fixture.mkdir("a");
    fixture.remove("a");
    assert_eq!(told(&mut fixture), [], "what is refused changes nothing");
}

#[test]
fn a_subtree_goes_leaves_first_and_comes_back_as_new() {
    let mut fixture = Fixture::new();
    fixture.mkdir("d");
    fixture.mkdir("d.e");
    fixture.put("d.a", "1");
    fixture.put("d.e.b", "2");
    fixture.tree.take_events();
    fixture.remove_all("d");
    let expected = [("d.e.b", 104), ("d.e", 104), ("d.a", 103), ("d", 104)]
        .map(|(key, prev)| (EventKind::Remove, key.to_owned(), None, prev));
    assert_eq!(told(&mut fixture), expected);
    fixture.put("d", "3");
    assert_eq!(told(&mut fixture), [(EventKind::Put, "d".to_owned(), Some("3".to_owned()), 0)]);
}

#[test]
fn events_of_what_was_undone_can_be_taken_back() {
    let mut fixture = Fixture::new();
    fixture.put("a", "1");
    let before = fixture.tree.event_count();
    fixture.put("b", "1");
    fixture.tree.truncate_events(before);
    assert_eq!(told(&mut fixture).len(), 1);
    assert_eq!(fixture.tree.event_count(), 0);
}

/// Key to value (None: directory) and update index, kept by events alone. The index of a directory
/// moves without an event.
#[derive(Default)]
struct Mirror(BTreeMap<Arc<[u8]>, Known>);

type Known = (Option<Arc<[u8]>>, u64);

impl Mirror {
    fn apply(&mut self, event: Event, index: u64) {
        let before = self.0.get(&event.key).map(|(value, index)| (value.is_none(), *index));
        match event.kind {
            EventKind::Put | EventKind::Mkdir => {
                assert_eq!(event.prev_index, before.map_or(0, |(_, index)| index));
                assert_eq!(event.dir, event.value.is_none());
                let parent = event.key.iter().rposition(|byte| *byte == b'.').map(|dot| &event.key[..dot]);
                assert!(parent.is_none_or(|parent| self.0.contains_key(parent)), "parents come first");
                self.0.insert(event.key, (event.value, index));
            }
            EventKind::Remove | EventKind::Expire => {
                let (dir, index) = before.expect("what is removed was there");
                assert!(event.prev_index == index || (dir && event.prev_index > index));
                assert_eq!(event.dir, dir);
                let below = [&event.key[..], b"."].concat();
                assert!(!self.0.keys().any(|key| key.starts_with(&below)), "children go first");
                self.0.remove(&event.key);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_mirror_fed_by_events_equals_the_tree(steps in steps()) {
        let mut fixture = Fixture::new();
        let mut mirror = Mirror::default();
        for step in steps {
            let packed = Step::pack(&step, &fixture.tree);
            fixture.index += 1;
            fixture.tree.apply(step.context(fixture.index), &packed, &mut Vec::new()).unwrap();
            for event in fixture.tree.take_events() {
                mirror.apply(event, fixture.index);
            }
        }
        let query = ListQuery { recursive: true, ..ListQuery::default() };
        let listed = fixture.tree.list(&query).unwrap().nodes.into_iter();
        let listed: BTreeMap<_, _> = listed.map(|node| (node.key, node.value)).collect();
        let mirrored: BTreeMap<_, _> = mirror.0.into_iter().map(|(key, (value, _))| (key, value)).collect();
        prop_assert_eq!(listed, mirrored);
    }
}
